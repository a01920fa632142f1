"""Where summaries are written to and read from: the Tracker contract, discovery by entry point, publishing.

Must not import torch, and imports an adapter only when it is used: names are listed from the installed packages'
metadata.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Literal, Protocol, Self, cast

from summarycb.errors import SummaryError, SummaryWarning
from summarycb.exits import at_exit
from summarycb.tree import ModelSummary
from summarycb.view import Selection, select

if TYPE_CHECKING:
    from summarycb.render.exports import Cell

GROUP = "summarycb.trackers"
PREFIX = "model_summary"
"""Every metric, tag and file that is written to a tracker begins with this."""
LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")
"""The packages whose loggers an adapter takes, for :func:`is_kind`."""


@dataclass(frozen=True)
class Report:
    """A summary with its renderings, each made once and when first asked for; an adapter hands them over as is."""

    summary: ModelSummary
    selection: Selection = field(default_factory=Selection)

    @cached_property
    def metrics(self) -> dict[str, int]:
        """Totals by flat name (``model_summary/forward_macs``): elements, bytes, MACs, FLOPs; unknown ones left out."""
        summary, memory = self.summary, self.summary.memory
        over_ranks = summary.over_ranks("peak")
        least, most = (None, None) if over_ranks is None else [rank.memory.peak for rank in over_ranks]
        figures = {
            "total_params": summary.total_params,
            "trainable_params": summary.trainable_params,
            "total_buffers": summary.total_buffers,
            "forward_macs": summary.forward_macs,
            "forward_flops": summary.forward_flops,
            "backward_flops": summary.backward_flops,
            "step_flops": summary.step_flops,
            "hardware_flops": summary.hardware_flops,
            "memory_parameters_bytes": memory.parameters,
            "memory_buffers_bytes": memory.buffers,
            "memory_gradients_bytes": memory.gradients,
            "memory_optimizer_state_bytes": memory.optimizer_state,
            "memory_saved_activations_bytes": memory.saved_activations,
            "memory_weight_copies_bytes": memory.weight_copies,
            "memory_batch_bytes": memory.batch,
            "memory_peak_bytes": memory.peak,
            "memory_allocator_peak_bytes": memory.allocator_peak,
            "all_ranks_flops": summary.all_ranks_flops if summary.ranks else None,
            "ranks_memory_peak_min_bytes": least,
            "ranks_memory_peak_max_bytes": most,
        }
        return {f"{PREFIX}/{name}": value for name, value in figures.items() if value is not None}

    @cached_property
    def table(self) -> list[dict[str, Cell]]:
        """One record a module, in definition order; exact numbers, None where unknown."""
        from summarycb.render.exports import records

        return records(self.summary)

    @cached_property
    def text(self) -> str:
        """The hierarchy as the terminal shows it, without colours."""
        from summarycb.render.terminal import to_text  # rich, which writing to a tracker need not have

        return to_text(select(self.summary, self.selection))

    @cached_property
    def json(self) -> str:
        """The whole summary; what a tracker stores of it must come back byte for byte."""
        return self.summary.to_json()


class Tracker(Protocol):
    """What an adapter implements; it is found through the entry-point group ``summarycb.trackers``.

    The entry point's name is the scheme of the adapter's references: ``mlflow:<run_id>``.
    """

    @classmethod
    def wrap(cls, target: object) -> Self | None:
        """The adapter for a native run, writer or logger; None when ``target`` is not of its kind."""

    @classmethod
    def open(cls, reference: str) -> Self:
        """The adapter for ``scheme:where``; a bare ``scheme`` is the run that is active in this process.

        Raises :class:`SummaryError` when there is none.
        """

    def write(self, report: Report, *, step: int) -> None:
        """Store the report. Called from a thread of its own; whatever it raises is reported and goes no further."""

    def read(self) -> ModelSummary:
        """The newest stored summary, equal to what was written. Raises :class:`SummaryError` when there is none."""


def names() -> list[str]:
    """The installed trackers' names; nothing is imported for it."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def check_names(targets: object) -> None:
    """Raise :class:`SummaryError` for a string that names no installed tracker, before anything is opened."""
    for target in _as_sequence(targets):
        if isinstance(target, str) and _scheme(target) is None and not _could_be_id(target):
            raise SummaryError(
                f"unknown tracker {target!r}; allowed are the names {', '.join(names())}, a reference such as "
                "'mlflow:<run_id>', or a native run, writer or logger"
            )


def check_timeout(timeout: object) -> float:
    """``timeout``, or :class:`SummaryError` when it is no number of seconds that a thread can be waited for."""
    if isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and 0 <= timeout <= threading.TIMEOUT_MAX:
        return timeout
    raise SummaryError(f"timeout must be a number of seconds from 0 on, not {timeout!r}")


def resolve(targets: object) -> list[Tracker]:
    """Adapters for native objects, names and references. Raises :class:`SummaryError` for what no adapter takes.

    One that fails in another way, because its server does not answer, is left out with a warning.
    """
    check_names(targets)
    found = []
    for target in _as_sequence(targets):
        try:
            found.append(_resolve_one(target))
        except SummaryError:
            raise
        except Exception as error:
            warn(f"the model summary was not written to {target!r}: {_reason(error)}")
    return found


def check_targets(targets: object) -> Sequence[object] | Literal["auto"]:
    """What a framework's callback is given as ``trackers``, for :func:`open_targets`; SummaryError for what is wrong.

    What a name or a logger stands for may begin later; anything else that no tracker takes is wrong now.
    """
    if isinstance(targets, str) and targets == "auto":
        return "auto"
    check_names(targets)
    return [target if _is_later(target) else _resolve_one(target) for target in _as_sequence(targets)]


def open_targets(targets: Sequence[object] | Literal["auto"], natives: Iterable[object]) -> list[Tracker]:
    """The trackers to write to, where the framework has loggers, runs or writers of its own: ``natives``.

    ``"auto"`` is each of them that a tracker takes. A name is those of that kind, or else the run that is active. What
    cannot be opened is said in a warning: it must not keep the others from being written to.
    """
    found = [tracker for native in natives if (tracker := wrap(native)) is not None]
    if targets == "auto":
        return found
    opened: list[Tracker] = []
    for target in targets:
        try:
            named = kind(target) if isinstance(target, str) and target in names() else None
            of_that_kind = [tracker for tracker in found if named is not None and type(tracker) is named]
            opened += of_that_kind or resolve([target])
        except Exception as error:
            warn(f"the model summary was not written to {target!r}: {type(error).__name__}: {error}")
    return opened


def is_kind(target: object, name: str, *packages: str) -> bool:
    """Whether ``target``'s class, or a base of it, is called ``name`` in one of ``packages``; none is imported."""
    return any(base.__name__ == name and base.__module__.partition(".")[0] in packages for base in type(target).__mro__)


def wrap(target: object) -> Tracker | None:
    """The adapter whose kind ``target`` is, or None. An adapter that cannot be loaded is passed over with a warning."""
    for entry in entry_points(group=GROUP):
        try:
            wrapped = _load(entry).wrap(target)
        except Exception as error:
            warn(f"tracker {entry.name!r} could not be asked for {type(target).__name__}: {_reason(error)}")
            continue
        if wrapped is not None:
            return wrapped
    return None


def open_reference(reference: str) -> Tracker | None:
    """The tracker of ``scheme:where``; None when ``reference`` begins with no installed tracker's name."""
    scheme = _scheme(reference)
    return None if scheme is None else kind(scheme).open(reference)


def kind(scheme: str) -> type[Tracker]:
    """The adapter of an installed tracker. Raises :class:`SummaryError` when it cannot be told apart or loaded."""
    entry, *others = entry_points(group=GROUP, name=scheme)
    if others:
        packages = ", ".join(e.value for e in (entry, *others))
        raise SummaryError(
            f"several installed packages offer a tracker named {scheme!r}: {packages}; uninstall all but one"
        )
    return _load(entry)


class Publisher:
    """Writes a report to each tracker in a thread of its own; the caller never waits for one until :meth:`flush`.

    ``timeout`` bounds, in seconds, how long ``flush`` waits for all of them together. What could not be written is said
    in one warning.
    """

    def __init__(self, trackers: Iterable[Tracker], timeout: float = 10.0) -> None:
        self._jobs = [_Job(tracker) for tracker in trackers]
        self._timeout = timeout
        self._not_at_exit: Callable[[], object] | None = None
        self._lock = threading.Lock()

    def publish(self, report: Report, *, step: int) -> None:
        """Start writing; returns at once. A tracker that still writes an earlier report does not get this one."""
        with self._lock:
            if self._jobs and self._not_at_exit is None:
                self._not_at_exit = at_exit(self.flush)
            for job in self._jobs:
                job.start(report, step, self._written)

    def _written(self) -> None:
        """A tracker has its report: with nothing to wait for and nothing to say, the exit need not know of this."""
        with self._lock:
            if not any(job.writing or job.failures for job in self._jobs):
                self._leave_exit()

    def _leave_exit(self) -> None:
        self._not_at_exit, take_back = None, self._not_at_exit
        if take_back is not None:
            take_back()

    def flush(self) -> None:
        """Wait until everything is written or the time is over, then say once what was not."""
        self._leave_exit()
        deadline = time.monotonic() + self._timeout
        reasons = []
        for job in self._jobs:
            if job.thread is not None and job.thread.ident is not None:
                job.thread.join(max(0.0, deadline - time.monotonic()))
            if job.writing:
                job.failures[f"no answer within {self._timeout:g} s"] = None
            reasons += [f"{type(job.tracker).__name__}: {failure}" for failure in job.failures]
        self._jobs = [_Job(job.tracker) for job in self._jobs]
        if reasons:
            warn("the model summary was not written to " + "; ".join(reasons))


@dataclass(eq=False)
class _Job:
    """What is being written to one tracker, and what could not be, each reason once."""

    tracker: Tracker
    thread: threading.Thread | None = None
    writing: bool = False
    failures: dict[str, None] = field(default_factory=dict)

    def start(self, report: Report, step: int, then: Callable[[], None]) -> None:
        if self.writing:
            self.failures["was still busy with the one before"] = None
            return
        # a daemon: a tracker that never answers must not keep the process from ending
        name = f"summarycb-{type(self.tracker).__name__}"
        self.thread = threading.Thread(target=self._write, args=(report, step, then), name=name, daemon=True)
        self.writing = True
        try:
            self.thread.start()
        except RuntimeError as error:  # the process may have no more threads
            self.failures[_reason(error)] = None
            self.writing = False

    def _write(self, report: Report, step: int, then: Callable[[], None]) -> None:
        try:
            self.tracker.write(report, step=step)
        except BaseException as error:  # the thread ends here: a SystemExit, too, would be lost without a word
            self.failures[_reason(error)] = None
        self.writing = False
        then()


def warn(message: str) -> None:
    """Warn; where warnings are turned into errors, log instead: the caller's training must go on."""
    try:
        warnings.warn(message, SummaryWarning, stacklevel=3)
    except SummaryWarning:
        import logging

        logging.getLogger("summarycb").warning(message)


def _resolve_one(target: object) -> Tracker:
    if not _lacking(type(target)):  # the type, because Lightning's DummyLogger instances have every attribute
        return cast(Tracker, target)
    if isinstance(target, str) and (tracker := open_reference(target)) is not None:
        return tracker
    if (tracker := wrap(target)) is not None:
        return tracker
    raise SummaryError(
        f"no tracker takes {target if isinstance(target, str) else type(target).__name__!r}; installed are "
        f"{', '.join(names())}, each with its native run, writer or logger"
    )


def _is_later(target: object) -> bool:
    return isinstance(target, str) or is_kind(target, "Logger", *LIGHTNING)


def _load(entry: EntryPoint) -> type[Tracker]:
    try:
        kind = entry.load()
    except Exception as error:
        raise SummaryError(f"tracker {entry.name!r} ({entry.value}) cannot be imported: {_reason(error)}") from error
    if lacking := _lacking(kind):
        raise SummaryError(f"tracker {entry.name!r} ({entry.value}) lacks {', '.join(lacking)}")
    return cast("type[Tracker]", kind)


def _lacking(kind: object) -> list[str]:
    return [method for method in ("wrap", "open", "write", "read") if not callable(getattr(kind, method, None))]


def _as_sequence(targets: object) -> Sequence[object]:
    if isinstance(targets, (list, tuple)):
        return targets
    raise SummaryError(f"trackers must be a list of trackers, not {targets!r}")


def _scheme(reference: str) -> str | None:
    scheme = reference.partition(":")[0]
    return scheme if scheme in names() else None


def _could_be_id(text: str) -> bool:
    return len(text) == 32 and text.isalnum()  # an MLflow run id


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
