"""Weights & Biases: totals, table and page in a run's summary, modules in its config, the JSON as file and artifact.

Imports wandb only when it is used.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from summarycb import serialize
from summarycb.errors import SummaryError
from summarycb.report import Report
from summarycb.trackers import LIGHTNING, is_kind
from summarycb.tree import ModelSummary
from summarycb_wandb import server
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
        # wandb.Api leaves an empty folder with the name of the run where WANDB_DIR says
        return not any(Path(self._where).glob("*"))
