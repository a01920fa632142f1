"""For tests: a tracker that keeps what it is given, and the contract that every tracker has to keep.

Must not import torch.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Self

from summarycb.errors import SummaryError
from summarycb.report import Report
from summarycb.specs import ParameterSpec, TensorSpec
from summarycb.step import Environment, Memory, Moment, Note
from summarycb.trackers import Tracker, lacking
from summarycb.tree import CallGroup, ModelSummary, ModuleSummary, Work


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


def check_tracker(kind: type[Tracker], native: object, reference: str, *, modules: int = 1_000) -> None:
    """Raise AssertionError, with the promise that is not kept, unless ``kind`` keeps what a tracker has to.

    ``native`` is an open run, writer or logger that ``kind.wrap`` takes, and ``reference`` (``scheme:where``) what it
    is read back from; both are written to. The largest summary has ``modules`` modules.
    """
    _keeps(not (missing := lacking(kind)), f"it has wrap, open, write and read, not {', '.join(missing)}")
    for stranger in (object(), _Everything(), "nobody's", None):
        _keeps(kind.wrap(stranger) is None, f"wrap gives None for what is not its kind, as {type(stranger).__name__}")
    tracker = kind.wrap(native)
    _keeps(isinstance(tracker, kind), f"wrap takes {type(native).__name__}")
    assert tracker is not None
    summary = _summary("Net", modules=3)
    for step, (written, promise) in enumerate(
        [
            (summary, "what is read is equal to what was written"),
            (summary, "the same summary can be written twice, as when a training is resumed"),
            (replace(summary, optimizer_macs=7), "the newest summary is read"),
            (replace(summary, memory=Memory()), "a figure that is unknown can be written"),
            (_summary("größe|`0`/[(层)]//🙂\\<b>" + "x" * 5_000, modules=3), "any name of a module can be written"),
            (_summary("Large", modules=modules), f"{modules:,} modules can be written"),
        ]
    ):
        report = Report(written)
        _write(tracker, report, step)
        for reader in (tracker, kind.open(reference)):
            _keeps(reader.read() == written, promise)
            _keeps(reader.read().to_json() == report.json, f"{promise}, byte for byte")
    nowhere = f"{reference}-that-is-not-there"
    try:
        kind.open(nowhere).read()
    except SummaryError:
        return
    _keeps(False, f"SummaryError is raised where there is no summary, as at {nowhere!r}")


def _keeps(kept: bool, promise: str) -> None:
    if not kept:
        raise AssertionError(f"a tracker must keep this: {promise}")


def _write(tracker: Tracker, report: Report, step: int) -> None:
    """In a thread of its own, as the publisher does."""
    raised: list[BaseException] = []

    def write() -> None:
        try:
            tracker.write(report, step=step)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    if raised:
        raise AssertionError("a tracker must keep this: write can be called in another thread") from raised[0]


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
