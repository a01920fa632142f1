"""Where summaries are written to and read from: the Tracker contract, discovery by entry point.

Must not import torch, and imports an adapter only when it is used: names are listed from the installed packages'
metadata.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

from summarycb.errors import SummaryError, SummaryWarning

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

    from summarycb.report import Report
    from summarycb.tree import ModelSummary

GROUP = "summarycb.trackers"
LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")
"""The packages whose loggers an adapter takes, for :func:`is_kind`."""
REFERENCES = ("tensorboard:<logdir>", "mlflow:<run_id>", "wandb:<entity>/<project>/<run>")
"""Those of the trackers that come with the package; in all that is said of them they are written so."""
SEVERAL = (
    "mlflow:experiments/<name>",
    "tensorboard:<folder of runs>",
    "wandb:<entity>/<project>",
    "wandb:<folder of runs>",
)
"""Those that stand for all summaries that are there."""
READ_ONLY = ("wandb:<run folder>",)
"""And those that can be read, but not written to."""


class Tracker(Protocol):
    """What an adapter implements; it is found through the entry-point group ``summarycb.trackers``.

    The entry point's name is the scheme of the adapter's references: ``mlflow:<run_id>``. One that has an attribute
    ``writable``, and it is False, can only be read. One that has a class method ``find`` gives of a reference such as
    ``mlflow:experiments/<name>`` those to one summary each, newest first; of a reference to one summary that alone. One
    that has a method ``created`` gives when its run began, as a ``datetime`` with its time zone, or None; one that has
    ``run_name`` what its pages call the run, or None.
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


def _entries(**of: Any) -> EntryPoints:
    from importlib.metadata import entry_points  # takes longer to import than a file to show

    return entry_points(group=GROUP, **of)


def names() -> list[str]:
    """The installed trackers' names; nothing is imported for it."""
    return sorted({entry.name for entry in _entries()})


def forms() -> str:
    """What a reference may begin with."""
    return ", ".join(f"{name}:..." for name in names())


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

    One that fails in another way, because its server does not answer, is :class:`Unopened`.
    """
    check_names(targets)
    found = []
    for target in _as_sequence(targets):
        try:
            found.append(_resolve_one(target))
        except SummaryError:
            raise
        except Exception as error:
            found.append(Unopened(target, error))
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
    cannot be opened is :class:`Unopened`: it must not keep the others from being written to.
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
            opened.append(Unopened(target, error))
    return opened


def is_kind(target: object, name: str, *packages: str) -> bool:
    """Whether ``target``'s class, or a base of it, is called ``name`` in one of ``packages``; none is imported."""
    return any(base.__name__ == name and base.__module__.partition(".")[0] in packages for base in type(target).__mro__)


def wrap(target: object) -> Tracker | None:
    """The adapter whose kind ``target`` is, or None. One that cannot be loaded is passed over, and told of once."""
    installed: dict[str, list[EntryPoint]] = {}
    for entry in _entries():
        installed.setdefault(entry.name, []).append(entry)
    for name, entries in installed.items():
        try:
            wrapped = _load(*entries).wrap(target)
        except Exception as error:
            _warn_once(f"tracker {name!r} could not be asked for {type(target).__name__}: {reason(error)}")
            continue
        if wrapped is not None:
            return wrapped
    return None


_RUNS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_RUNS.clear)  # who holds one there is no thread of the child


def writing(run: str) -> threading.Lock:
    """To be held while a report is written to ``run``: of two models in one run, all of it is then the last one's."""
    return _RUNS[run]


def open_reference(reference: str) -> Tracker | None:
    """The tracker of ``scheme:where``; None when ``reference`` begins with no installed tracker's name."""
    scheme = _scheme(reference)
    return None if scheme is None else kind(scheme).open(reference)


def find(reference: str) -> list[str] | None:
    """The references to one summary each; None when ``reference`` begins with no installed tracker's name."""
    scheme = _scheme(reference)
    return None if scheme is None else found_by(kind(scheme), reference)


def found_by(kind: type[Tracker], reference: str) -> list[str]:
    """What ``find`` of the adapter gives; raises :class:`SummaryError` where it fails, or gives no references."""
    finder: Callable[[str], object] | None = getattr(kind, "find", None)
    if finder is None:
        return [reference]
    try:
        found = finder(reference)
    except (SummaryError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise SummaryError(f"{kind.__name__} could not be asked what is at {reference!r}: {reason(error)}") from error
    if isinstance(found, list) and all(isinstance(one, str) for one in found):
        return found
    raise SummaryError(f"find of {kind.__name__} must give a list of references, not {found!r:.200}")


def kind(scheme: str) -> type[Tracker]:
    """The adapter of an installed tracker. Raises :class:`SummaryError` when it cannot be told apart or loaded."""
    return _load(*_entries(name=scheme))


class Unopened:
    """Stands for a tracker that could not be opened: writing to it raises why, and the summary is saved instead."""

    def __init__(self, target: object, error: Exception) -> None:
        self.name = repr(target)
        self._reason = reason(error)  # not the error: its traceback holds what the training holds

    @classmethod
    def wrap(cls, target: object) -> None:
        """Takes nothing."""

    @classmethod
    def open(cls, reference: str) -> Self:
        """Opens nothing."""
        raise SummaryError(f"no tracker is named by {reference!r}")

    def write(self, report: Report, *, step: int) -> None:
        """Raises what opening it has raised."""
        raise SummaryError(self._reason)

    def read(self) -> ModelSummary:
        """Raises what opening it has raised."""
        raise SummaryError(self._reason)


def warn(message: str) -> None:
    """Warn; where warnings are turned into errors, log instead: the caller's training must go on."""
    try:
        warnings.warn(message, SummaryWarning, stacklevel=3)
    except SummaryWarning:
        import logging

        logging.getLogger("summarycb").warning(message)


_warn_once = lru_cache(warn)


def _resolve_one(target: object) -> Tracker:
    if not lacking(type(target)):  # the type, because Lightning's DummyLogger instances have every attribute
        return cast(Tracker, target)
    if isinstance(target, str) and (tracker := open_reference(target)) is not None:
        if not getattr(tracker, "writable", True):
            raise SummaryError(f"{target!r} can only be read; to write, give the native run, writer or logger")
        return tracker
    if (tracker := wrap(target)) is not None:
        return tracker
    raise SummaryError(
        f"no tracker takes {target if isinstance(target, str) else type(target).__name__!r}; installed are "
        f"{', '.join(names())}, each with its native run, writer or logger"
    )


def _is_later(target: object) -> bool:
    return isinstance(target, str) or is_kind(target, "Logger", *LIGHTNING)


def _load(entry: EntryPoint, *others: EntryPoint) -> type[Tracker]:
    if others:
        packages = ", ".join(e.value for e in (entry, *others))
        raise SummaryError(
            f"several installed packages offer a tracker named {entry.name!r}: {packages}; uninstall all but one"
        )
    try:
        kind = entry.load()
    except Exception as error:
        raise SummaryError(f"tracker {entry.name!r} ({entry.value}) cannot be imported: {reason(error)}") from error
    if missing := lacking(kind):
        raise SummaryError(f"tracker {entry.name!r} ({entry.value}) lacks {', '.join(missing)}")
    return cast("type[Tracker]", kind)


def lacking(kind: object) -> list[str]:
    """The methods of the contract that it does not have."""
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


_MOST_SAID = 500


def reason(error: BaseException) -> str:
    """What is said of it in a message: on one line, and no more of it than one reads."""
    try:
        said = " ".join(str(error).split())
    except Exception:
        said = "it cannot be told"
    said = f"{said[:_MOST_SAID]} …" if len(said) > _MOST_SAID else said
    if isinstance(error, SummaryError):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
