"""Weights & Biases: totals and table in the run's summary, text and JSON as its files.

Imports wandb only when something is written. Never calls ``run.log``: that would move the step of the user's own log.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Self, cast

from summarycb import serialize
from summarycb.errors import SummaryError, missing
from summarycb.trackers import LIGHTNING, PREFIX, Report, is_kind
from summarycb.tree import ModelSummary

if TYPE_CHECKING:
    import wandb

JSON, TEXT = f"{PREFIX}.json", f"{PREFIX}.txt"


class WandbTracker:
    """Writes to a ``wandb.Run``; reads from its folder, or from the server."""

    def __init__(self, where: str, run: wandb.Run | None = None) -> None:
        self._where = where
        self._run = run

    @classmethod
    def wrap(cls, target: object) -> Self | None:
        """Takes a ``wandb.Run``, or the Lightning logger that holds one."""
        if is_kind(target, "Run", "wandb"):
            run = cast("wandb.Run", target)
            return cls(run.dir, run)
        if is_kind(target, "WandbLogger", *LIGHTNING):
            return cls.wrap(target.experiment)  # type: ignore[attr-defined]
        return None

    @classmethod
    def open(cls, reference: str) -> Self:
        """``wandb:<offline run folder>``, ``wandb:<entity>/<project>/<run>``, or the run active in this process."""
        where = reference.partition(":")[2]
        if where:
            return cls(where)
        try:
            import wandb
        except ModuleNotFoundError:
            raise missing("wandb", "wandb") from None
        if wandb.run is None:
            raise SummaryError(f"{reference!r}: no W&B run is active in this process; call wandb.init() first")
        return cls(wandb.run.dir, wandb.run)

    def write(self, report: Report, *, step: int) -> None:
        """Files, totals and table; a run's summary has no steps."""
        if self._run is None:
            raise SummaryError(f"'wandb:{self._where}' can only be read; to write, give the wandb.Run")
        if self._run.disabled:
            return
        import wandb

        for name, content in ((JSON, report.json), (TEXT, report.text)):
            path = Path(self._where, name)
            path.write_text(content, encoding="utf-8")
            self._run.save(path, base_path=self._where, policy="now")
        self._run.summary.update(report.metrics)
        rows = report.table
        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self._run.summary[f"{PREFIX}/table"] = table

    def read(self) -> ModelSummary:
        """The summary in the run's folder, or, when there is no such folder, of the run on the server."""
        folder = Path(self._where)
        for files in (folder, folder / "files", folder / "latest-run" / "files"):
            if (files / JSON).is_file():
                return serialize.read(files / JSON)
        if folder.exists() or self._where.count("/") != 2:
            raise SummaryError(f"no {JSON} in the W&B run folder {self._where!r}")
        return self._download()

    def _download(self) -> ModelSummary:
        try:
            import wandb
        except ModuleNotFoundError:
            raise missing("wandb", "wandb") from None
        try:
            with TemporaryDirectory() as folder:
                wandb.Api().run(self._where).file(JSON).download(root=folder, replace=True).close()
                return serialize.read(Path(folder, JSON))
        except (wandb.Error, ValueError, OSError) as error:
            raise SummaryError(f"no folder, and no {JSON} in a W&B run, {self._where!r}: {error}") from error
