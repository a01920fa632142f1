"""TensorBoard: totals as scalars, the hierarchy as text, the JSON as a string tensor of a plugin of its own.

Imports neither torch nor tensorboard until something is written or read. A scalar of TensorBoard is a 32-bit float,
exact below 2**24; the JSON is always exact.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Self

from summarycb.errors import SummaryError, missing
from summarycb.serialize import loads
from summarycb.trackers import LIGHTNING, PREFIX, Report, is_kind
from summarycb.tree import ModelSummary

PLUGIN = "summarycb"
TAG = f"{PREFIX}/json"


class TensorBoardTracker:
    """Writes to a ``SummaryWriter`` (torch's or tensorboardX's), reads from a log directory."""

    def __init__(self, logdir: str, writer: Any = None) -> None:
        self._logdir = logdir
        self._writer = writer

    @classmethod
    def wrap(cls, target: object) -> Self | None:
        """Takes a ``SummaryWriter``, or the Lightning logger that holds one."""
        if is_kind(target, "SummaryWriter", "torch", "tensorboardX"):
            writer: Any = target
            return cls(str(writer.log_dir if hasattr(writer, "log_dir") else writer.logdir), writer)
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
        return cls(logdir)

    def write(self, report: Report, *, step: int) -> None:
        """Scalars, JSON and text at ``step``, flushed."""
        package = (
            "tensorboardX" if is_kind(self._writer, "SummaryWriter", "tensorboardX") else "torch.utils.tensorboard"
        )
        try:
            library = import_module(package)
            summary = import_module(f"{package}.summary").text(TAG, report.json)
        except ModuleNotFoundError:
            raise missing("tensorboard", "tensorboard") from None
        # the same string tensor as a text's, but of our own plugin: the text dashboard must not render it
        summary.value[0].tag = TAG
        summary.value[0].metadata.plugin_data.plugin_name = PLUGIN
        writer = self._writer or library.SummaryWriter(self._logdir)
        writer.file_writer.add_summary(summary, step)  # first, for a writer that is closed meanwhile
        for name, value in report.metrics.items():
            writer.add_scalar(name, value, step)
        writer.add_text(f"{PREFIX}/text", f"```\n{report.text}\n```", step)
        writer.flush()
        if writer is not self._writer:
            writer.close()

    def read(self) -> ModelSummary:
        """The summary of the newest event."""
        try:
            accumulator: Any = import_module("tensorboard.backend.event_processing.event_accumulator")
        except ModuleNotFoundError:
            raise missing("tensorboard", "tensorboard") from None
        every, few = 0, 1
        keep = dict.fromkeys(accumulator.DEFAULT_SIZE_GUIDANCE, few) | {"tensors": every}
        # not purged: a training that goes on from an earlier step keeps the summary
        events = accumulator.EventAccumulator(self._logdir, keep, purge_orphaned_data=False)
        if not Path(self._logdir).exists() or TAG not in events.Reload().Tags()["tensors"]:
            raise SummaryError(f"no model summary in the TensorBoard log directory {self._logdir!r}")
        newest = sorted(events.Tensors(TAG), key=lambda event: event.wall_time)[-1]
        return loads(b"".join(newest.tensor_proto.string_val).decode(errors="replace"), self._logdir)
