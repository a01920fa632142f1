"""For tests: a tracker that keeps what it is given, and the contract that every tracker has to keep.

Must not import torch.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import datetime
from functools import cache, partial
from inspect import signature
from pathlib import Path
from typing import Self, cast

from summarycb.errors import SummaryError
from summarycb.report import Report
from summarycb.specs import ParameterSpec, TensorSpec
from summarycb.step import Environment, Memory, Moment, Note
from summarycb.trackers import Tracker, found_by, lacking, reason
from summarycb.tree import CallGroup, ModelSummary, ModuleSummary, Work

Keeps = Callable[[str, Callable[[], object]], None]


class RecordingTracker:
    """Keeps the reports that it is given, each with its step::

    tracker = RecordingTracker()
    hook = summarycb.watch(model, trackers=[tracker])
    train(model)
    hook.flush()
    [(report, step)] = tracker.reports
    """

    def __init__(self) -> None:
        self.reports: list[tuple[Report, int]] = []

    @classmethod
    def wrap(cls, target: object) -> Self | None:
        """Takes nothing: it is given to ``trackers`` itself."""
        return None

    @classmethod
    def open(cls, reference: str) -> Self:
        """There is nothing to open."""
        raise SummaryError(f"a RecordingTracker has no references, such as {reference!r}")

    def write(self, report: Report, *, step: int) -> None:
        """Keep it."""
        self.reports.append((report, step))

    def read(self) -> ModelSummary:
        """The newest."""
        if not self.reports:
            raise SummaryError("nothing was written to this RecordingTracker")
        return self.reports[-1][0].summary


def check_tracker(
    kind: type[Tracker], native: object, reference: str, *, modules: int = 1_000, timeout: float = 60.0
) -> None:
    """Raise AssertionError, with the promise that is not kept, unless ``kind`` keeps what a tracker has to.

    ``native`` is an open run, writer or logger that ``kind.wrap`` takes, and ``reference`` (``scheme:where``) what it
    is read back from, here and in a fresh process; both are written to. The largest summary has ``modules`` modules.
    Each call may take ``timeout`` seconds. What is stored beside the summary is the author's own to test.
    """
    keeps = partial(_keeps, timeout)
    scheme, _, where = reference.partition(":")
    nowhere = f"{where}-that-is-not-there"

    keeps("it has wrap, open, write and read", lambda: not lacking(kind))
    for stranger in (object(), _Everything(), "nobody's", None):
        promise = f"wrap gives None for what is not its kind, as {type(stranger).__name__}"
        keeps(promise, partial(_is_nobodys, kind, stranger))
    wrapped = cache(lambda: kind.wrap(native))
    keeps(f"wrap takes {type(native).__name__}", lambda: isinstance(wrapped(), kind))
    keeps("open raises SummaryError, or gives what is active, for its bare name", lambda: _opens(kind, scheme))
    keeps("read raises SummaryError where there is no summary", lambda: _finds_nothing(kind, f"{scheme}:{nowhere}"))
    keeps(f"nothing is made where there is nothing to read, as {nowhere}", lambda: not Path(nowhere).exists())
    keeps("write takes step by its name", lambda: signature(kind.write).bind(None, None, step=0))

    summary, newest = _summary("Net", modules=3), Report(_summary("Large", modules=modules))
    with redirect_stdout(io.StringIO()) as printed:
        for step, (report, what) in enumerate(
            [
                (Report(summary), "a summary"),
                (Report(summary), "the same summary again, as when a training is resumed"),
                (Report(replace(summary, optimizer_macs=7)), "a newer summary"),
                (Report(replace(summary, memory=Memory())), "a summary with a figure that is unknown"),
                (Report(_summary("größe|`0`/[(层)]//🙂\\<b>" + "x" * 5_000, modules=3)), "a module of any name"),
                (newest, f"{modules:,} modules"),
            ]
        ):
            _check_write(keeps, cast(Tracker, wrapped()), kind, reference, report, step, what)
        keeps("nothing is printed", lambda: not printed.getvalue())
    if hasattr(kind, "find"):
        keeps(
            "find, if it is there, gives of a reference to one summary that alone",
            lambda: [kind.open(one).read().to_json() for one in found_by(kind, reference)] == [newest.json],
        )
    if hasattr(kind, "created"):
        keeps(
            "created, if it is there, gives a datetime with its time zone, or None",
            lambda: _is_moment(kind.open(reference).created()),
        )
    if hasattr(kind, "run_name"):
        keeps(
            "run_name, if it is there, gives a str, or None",
            lambda: isinstance(kind.open(reference).run_name(), str | None),
        )
    if where:  # else it is what is active in this process
        keeps(
            "a fresh process, which imports the class by its name, reads the newest summary",
            lambda: _read_elsewhere(kind, reference, newest.json, 0.9 * timeout),  # ended before the wait for it is
        )


def _check_write(
    keeps: Keeps, tracker: Tracker, kind: type[Tracker], reference: str, report: Report, step: int, what: str
) -> None:
    folder, environment, threads = os.getcwd(), dict(os.environ), _threads()
    keeps(f"write takes {what}, in a thread of its own", partial(tracker.write, report, step=step))
    keeps("the report, which others are given too, is not changed", lambda: _is_as_made(report))
    keeps("the working directory is not changed", lambda: os.getcwd() == folder)
    keeps("the environment variables are not changed", lambda: dict(os.environ) == environment)
    keeps("no thread is left that the end of the process would wait for", lambda: _threads() <= threads)
    keeps(f"read gives {what}, as it was written", lambda: tracker.read().to_json() == report.json)
    keeps(f"{reference} gives {what}, as it was written", lambda: kind.open(reference).read().to_json() == report.json)


def _keeps(timeout: float, promise: str, kept: Callable[[], object]) -> None:
    """It is when ``kept`` does not raise, nor give False. Asked in a thread, where what never answers is left."""
    found: list[object] = []

    def ask() -> None:
        try:
            found.append(kept())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    answer = found[0] if found else TimeoutError(f"no answer within {timeout:g} s")
    if isinstance(answer, BaseException):
        raise AssertionError(f"a tracker must keep this: {promise}; it raised {reason(answer)}") from answer
    if answer is False:
        raise AssertionError(f"a tracker must keep this: {promise}")


def _is_nobodys(kind: type[Tracker], target: object) -> bool:
    return kind.wrap(target) is None


def _opens(kind: type[Tracker], reference: str) -> bool:
    try:
        return isinstance(kind.open(reference), kind)
    except SummaryError:
        return True


def _finds_nothing(kind: type[Tracker], reference: str) -> bool:
    try:
        kind.open(reference).read()
    except SummaryError:
        return True
    return False


def _is_moment(when: object) -> bool:
    return when is None or (isinstance(when, datetime) and when.tzinfo is not None)


def _is_as_made(report: Report) -> bool:
    made = Report(report.summary)
    return all(getattr(made, name) == value for name, value in vars(report).items())


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.daemon}


_READ = """
import json, sys
from importlib import import_module
from operator import attrgetter
path, module, name, reference = json.loads(sys.argv[1])
sys.path[:] = path
found = attrgetter(name)(import_module(module)).open(reference).read().to_json()
sys.exit(None if found.encode() == sys.stdin.buffer.read() else "it read another")
"""


def _read_elsewhere(kind: type[Tracker], reference: str, written: str, timeout: float) -> None:
    where = json.dumps([sys.path, kind.__module__, kind.__qualname__, reference])
    command = [sys.executable, "-c", _READ, where]
    done = subprocess.run(command, input=written.encode(), capture_output=True, timeout=timeout)
    if done.returncode:
        raise ChildProcessError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])


class _Everything:
    """As Lightning's dummies, which have every attribute."""

    def __getattr__(self, name: str) -> object:
        return self


def _summary(name: str, modules: int) -> ModelSummary:
    """``modules`` in all: linear layers of 3 x 2 weights, given 4 rows: 24 MACs each, as much again backward."""
    weight = ParameterSpec("weight", (2, 3), "float32", "cpu", True, 24, gradient=24)
    given, made = TensorSpec((4, 3), "float32", "cpu"), TensorSpec((4, 2), "float32", "cpu")
    work = Work(24, 24, 0, 32, 0)
    group = CallGroup(1, (given,), made, work, work)
    children = tuple(
        ModuleSummary(path, path, "Linear", "in_features=3, out_features=2", True, (weight,), (), (group,))
        for path in [name, *[f"layer{number}" for number in range(2, modules)]]
    )
    count = len(children)
    whole = CallGroup(1, (given,), made, Work(0, 0, 0, 0, 0), Work(24 * count, 24 * count, 0, 32 * count, 0))
    peak = Moment("backward", name, 24 * count, 0, 24 * count, 0, 32 * count, 0, 48, 0)
    return ModelSummary(
        ModuleSummary("", "", "Model", call_groups=(whole,), children=children),
        outside=Work(0, 0, 0, 0, 0),
        memory=Memory(24 * count, 0, 24 * count, None, 32 * count, 0, 48, peak),
        environment=Environment("0.1.0", torch="2.13.0", device="cpu"),
        observed="step",
        notes=(Note("unknown", 'no formula for "mylib::op"', name),),
    )
