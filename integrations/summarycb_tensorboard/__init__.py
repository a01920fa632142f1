"""TensorBoard: totals as scalars, the model as graphs, text and pictures, and the JSON as a string tensor.

Imports neither torch nor tensorboard until something is written or read; tensorboardX alone is enough to write to a
directory of this machine, not to read. A scalar of TensorBoard is a 32-bit float,
exact below 2**24; the JSON is always exact.

A report is an event file of its own beside the writer's, which is not touched: where the disk is full, a writer that
had been given the report would raise at the training's next ``add_scalar``. By its name the file comes before those of
writers, since the slower of TensorBoard's two loaders never goes back to a file when there is a later one.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from summarycb.errors import SummaryError, missing
from summarycb.report import PREFIX, Report
from summarycb.serialize import loads
from summarycb.trackers import LIGHTNING, is_kind
from summarycb.tree import ModelSummary

TAG = f"{PREFIX}/json"
_NAME = "events.out.tfevents.0"


class TensorBoardTracker:
    """Writes beside a ``SummaryWriter`` (torch's or tensorboardX's) or into a log directory, and reads from one."""

    def __init__(self, logdir: str, *, make: bool, to_disk: bool = True) -> None:
        self._logdir = logdir if _is_remote(logdir) else os.path.abspath(logdir)  # the training may go elsewhere
        self._make = make
        self._to_disk = to_disk

    @classmethod
    def wrap(cls, target: object) -> Self | None:
        """Takes a ``SummaryWriter``, or the Lightning logger that holds one."""
        if is_kind(target, "SummaryWriter", "torch", "tensorboardX"):
            writer: Any = target
            logdir = str(writer.log_dir if hasattr(writer, "log_dir") else writer.logdir)
            return cls(logdir, make=False, to_disk=getattr(writer, "_write_to_disk", True))
        if is_kind(target, "TensorBoardLogger", *LIGHTNING):
            logger: Any = target
            return cls.wrap(logger.experiment)
        return None

    @classmethod
    def open(cls, reference: str) -> Self:
        """``tensorboard:<logdir>``, the directory that holds the run's event files."""
        logdir = reference.partition(":")[2]
        if not logdir:
            raise SummaryError(f"{reference!r} names no run: give a SummaryWriter, or 'tensorboard:<logdir>'")
        return cls(logdir, make=True)

    @classmethod
    def find(cls, reference: str) -> list[str]:
        """Of a folder of runs those that have a summary, newest first."""
        scheme, _, logdir = reference.partition(":")
        found = {path.parent: path.name for path in sorted(Path(logdir).rglob(f"{_NAME}*"), key=lambda p: p.name)}
        newest = sorted(found, key=lambda folder: found[folder], reverse=True)
        return [f"{scheme}:{folder}" for folder in newest] or [reference]

    def run_name(self) -> str:
        """Its folder's."""
        return os.path.basename(self._logdir.rstrip("/"))

    def created(self) -> datetime | None:
        """When the oldest of the event files was begun, as their names say; None in another file system."""
        stamps = [path.name.split(".")[3] for path in Path(self._logdir).glob("events.out.tfevents.*")]
        # writers' are in seconds, those of the files that are written here in nanoseconds
        began = [int(f"{stamp:0<19}" if len(stamp) == 10 else stamp) for stamp in stamps if stamp.isdecimal()]
        if not began:
            return None
        seconds, rest = divmod(min(began), 10**9)
        return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=rest // 1000)

    def write(self, report: Report, *, step: int) -> None:
        """All of it at ``step``, whole or not at all; an earlier report of the same architecture goes.

        Nothing where the writer is tensorboardX's with ``write_to_disk=False``.
        """
        if not self._to_disk:
            return
        try:
            from summarycb_tensorboard.events import event_file
        except ModuleNotFoundError:
            raise missing("tensorboard", "tensorboard") from None
        name = f"{_NAME}{time.time_ns()}.{_suffix(report.identity[f'{PREFIX}/structure'])}"
        events = event_file(report, step)
        if _is_remote(self._logdir):  # TensorBoard's way to other file systems, which knows no removing
            with _gfile().GFile(f"{self._logdir}/{name}", "wb") as file:
                file.write(events)
            return
        folder = Path(self._logdir)
        if self._make:
            folder.mkdir(parents=True, exist_ok=True)
        elif not folder.is_dir():
            raise FileNotFoundError(f"the log directory {self._logdir!r} is gone")
        earlier = self._files(report.identity[f"{PREFIX}/structure"])
        unfinished = folder / f".{name.replace('tfevents', 'unfinished')}"
        try:
            unfinished.write_bytes(events)
            unfinished.rename(folder / name)
        finally:
            unfinished.unlink(missing_ok=True)
        for path in earlier:
            path.unlink(missing_ok=True)

    def _files(self, structure: str = "*") -> list[Path]:
        """Those that were written here, oldest first."""
        return sorted(Path(self._logdir).glob(f"{_NAME}*.{_suffix(structure)}"))

    def read(self) -> ModelSummary:
        """The summary of the newest event."""
        accumulator = _tensorboard("backend.event_processing.event_accumulator")
        every, few = 0, 1
        keep = dict.fromkeys(accumulator.DEFAULT_SIZE_GUIDANCE, few) | {"tensors": every}
        where = [self._logdir, *map(str, self._files())][-1]  # of a run in another file system all is read
        # not purged: a training that goes on from an earlier step keeps the summary
        events = accumulator.EventAccumulator(where, keep, purge_orphaned_data=False)
        if not _gfile().exists(self._logdir) or TAG not in events.Reload().Tags()["tensors"]:
            raise SummaryError(f"no model summary in the TensorBoard log directory {self._logdir!r}")
        newest = max(events.Tensors(TAG), key=lambda event: event.wall_time)
        return loads(b"".join(newest.tensor_proto.string_val).decode(errors="replace"), self._logdir)


def _is_remote(logdir: str) -> bool:
    return "://" in logdir


def _suffix(structure: str) -> str:
    return f"{PREFIX}.{structure}"


def _gfile() -> Any:
    return _tensorboard("compat").tf.io.gfile


def _tensorboard(module: str) -> Any:
    try:
        return import_module(f"tensorboard.{module}")
    except ModuleNotFoundError:
        raise missing("tensorboard", "tensorboard") from None
