"""TensorBoard: totals as scalars, the hierarchy as text, the JSON as a string tensor of a plugin of its own.

Imports neither torch nor tensorboard until something is written or read. A scalar of TensorBoard is a 32-bit float,
exact below 2**24; the JSON is always exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from summarycb.errors import SummaryError, missing
from summarycb.serialize import loads
from summarycb.trackers import LIGHTNING, PREFIX, Report, is_kind
from summarycb.tree import ModelSummary

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
        try:
            from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            raise missing("tensorboard", "tensorboard") from None
        writer = self._writer or SummaryWriter(self._logdir)
        for name, value in report.metrics.items():
            writer.add_scalar(name, value, step)
        text = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[report.json.encode()])
        plugin = summary_pb2.SummaryMetadata(plugin_data={"plugin_name": PLUGIN})
        value = summary_pb2.Summary.Value(tag=TAG, metadata=plugin, tensor=text)
        writer.file_writer.add_summary(summary_pb2.Summary(value=[value]), step)
        writer.add_text(f"{PREFIX}/text", f"```\n{report.text}\n```", step)
        writer.flush()
        if self._writer is None:
            writer.close()

    def read(self) -> ModelSummary:
        """The summary of the newest event."""
        events = self._events()
        if TAG not in events.Tags()["tensors"]:
            raise SummaryError(f"no model summary in the TensorBoard log directory {self._logdir!r}")
        newest = sorted(events.Tensors(TAG), key=lambda event: event.wall_time)[-1]
        return loads(b"".join(newest.tensor_proto.string_val).decode(), self._logdir)

    def _events(self) -> EventAccumulator:
        try:
            from tensorboard.backend.event_processing import event_accumulator
        except ModuleNotFoundError:
            raise missing("tensorboard", "tensorboard") from None
        everything, little = 0, 1
        keep = {kind: little for kind in event_accumulator.DEFAULT_SIZE_GUIDANCE} | {"tensors": everything}
        # a restart from an earlier step must not take the summary away
        return event_accumulator.EventAccumulator(self._logdir, keep, purge_orphaned_data=False).Reload()
