"""Weights & Biases: totals, table and page in a run's summary, modules in its config, the JSON as file and artifact.

Imports wandb only when it is used.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from summarycb import serialize
from summarycb.errors import SummaryError
from summarycb.report import Report
from summarycb.trackers import LIGHTNING, is_kind
from summarycb.tree import ModelSummary
from summarycb_wandb import offline, server
from summarycb_wandb.contents import JSON, fill

if TYPE_CHECKING:
    import wandb


_OF_FOLDERS = re.compile(r"|[.~]|\.\.|files|latest-run|offline-run-.*|run-\d{8}_\d{6}-.*")
"""The parts of a path that no ``<entity>/<project>/<run>`` has; the empty one is that of an absolute path."""


class WandbTracker:
    """Writes to a ``wandb.Run``, or to a run on the server that has ended; reads from the server or a run's folder.

    ``WandbTracker(run, config=False)`` adds nothing to the run's config. Where the user has ``model_summary`` there, a
    dict keeps its other keys, and any other value stays as it is.
    """

    def __init__(self, run: wandb.Run | str, *, config: bool = True) -> None:
        self._run = None if isinstance(run, str) else run
        self._where = run if isinstance(run, str) else run.dir
        self._config = config

    @classmethod
    def wrap(cls, target: object) -> Self | None:
        """Takes a ``wandb.Run``, or the Lightning logger that holds one."""
        if is_kind(target, "Run", "wandb"):
            return cls(cast("wandb.Run", target))
        if is_kind(target, "WandbLogger", *LIGHTNING):
            return cls.wrap(target.experiment)  # type: ignore[attr-defined]
        return None

    @classmethod
    def open(cls, reference: str) -> Self:
        """``wandb:<run folder>``, ``wandb:<entity>/<project>/<run>``, or the run active in this process."""
        where = reference.partition(":")[2]
        if where:
            return cls(where)
        run = server.library().run
        if run is None:
            raise SummaryError(f"{reference!r}: no W&B run is active in this process; call wandb.init() first")
        return cls(run)

    @classmethod
    def find(cls, reference: str) -> list[str]:
        """Of a folder of runs, or ``wandb:<entity>/<project>``, those that have a summary, newest first."""
        scheme, _, where = reference.partition(":")
        folder = Path(where)
        if re.fullmatch("[^/]+/[^/]+", where) and not _has_files(folder):
            return [f"{scheme}:{where}/{run_id}" for run_id in server.runs(where)]
        files = [file for runs in (folder, folder / "wandb") for file in runs.glob(f"*run-*/files/{JSON}")]
        of_run = [file for file in files if file.parent.parent.name != "latest-run"] if where else []
        newest = sorted(of_run, key=_began, reverse=True)
        return [f"{scheme}:{file.parent.parent}" for file in newest] or [reference]

    def run_name(self) -> str | None:
        """As it was first given, or as W&B's server has made it up; None where its folder does not say."""
        if self._run is None and self._on_server:
            name: str = server.run(self._where).name
        else:
            name = self._logged.display_name if self._logged else ""
        return name or None

    def created(self) -> datetime | None:
        """When the run began; None where its folder does not say, or W&B's package, which reads it, is not here."""
        if self._run is None and self._on_server:
            return datetime.fromisoformat(server.run(self._where).created_at)
        return self._logged.start_time.ToDatetime(UTC) if self._logged else None

    @property
    def _logged(self) -> Any:
        folder = Path(self._where)
        return offline.run(folder.parent if folder.name == "files" else folder)

    @property
    def writable(self) -> bool:
        """Whether it is a run; the folder of one can only be read."""
        return self._run is not None or self._on_server

    def write(self, report: Report, *, step: int) -> None:
        """Everything, in place of what was written before; a run's summary and config have no steps."""
        if self._run is not None:
            fill(self._run, report, config=self._config)
        elif self._on_server:
            with server.resumed(self._where) as run:
                fill(run, report, config=self._config)
        else:
            raise SummaryError(
                f"'wandb:{self._where}' can only be read; to write, give the wandb.Run, or "
                "'wandb:<entity>/<project>/<run>' of one that has ended"
            )

    def read(self) -> ModelSummary:
        """The summary in the run's folder, or, when there is no such folder, of the run on the server."""
        folder = Path(self._where)
        for files in (folder, folder / "files", folder / "latest-run" / "files"):
            if (files / JSON).is_file():
                return serialize.read(files / JSON)
        if self._on_server:
            return server.download(self._where)
        raise SummaryError(f"no {JSON} in the W&B run folder {self._where!r}")

    @property
    def _on_server(self) -> bool:
        parts = self._where.split("/")
        if len(parts) != 3 or any(map(_OF_FOLDERS.fullmatch, parts)):
            return False
        return not _has_files(Path(self._where))


def _has_files(folder: Path) -> bool:
    # wandb.Api leaves an empty folder with the name of each run, <entity>/<project>/<run>, where WANDB_DIR says
    return any(not path.is_dir() for path in folder.rglob("*"))


def _began(summary: Path) -> tuple[str, int]:
    """By offline-run-<time>-<id>, or run-<time>-<id> where there was a server; in one second by what was written."""
    day, _, rest = summary.parent.parent.name.removeprefix("offline-").removeprefix("run-").partition("_")
    return f"{day}_{rest.partition('-')[0]}", summary.stat().st_mtime_ns
