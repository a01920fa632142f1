"""ModelSummaryCallback for the Trainer of Hugging Face transformers: the first real step of each training."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from summarycb.baseline import Baseline
from summarycb.errors import missing
from summarycb.report import Report
from summarycb.trackers import (
    Tracker,
    Unopened,
    check_targets,
    check_timeout,
    is_kind,
    kind,
    names,
    open_targets,
    warn,
)
from summarycb.tree import ModelSummary
from summarycb.view import Selection
from summarycb.watch import Watch, watch

try:
    from transformers import Trainer, TrainerCallback
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise missing("transformers", "transformers") from None

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class ModelSummaryCallback(TrainerCallback):
    """Summarize the first real training step, and send it where the Trainer reports to::

        Trainer(..., callbacks=[ModelSummaryCallback(depth=3)])

    The arguments are those of :func:`summarycb.watch`, but for ``trackers="auto"``: what ``report_to`` names and a
    tracker is installed for, in the run that the Trainer reports to. A list takes native runs and writers, references,
    and such names. Where gradients are accumulated, all batches until the optimizer steps are the step. Every
    ``train()`` is observed anew; ``summary`` is that of the newest.

    Raises :class:`SummaryError` at once for a wrong argument, and with ``fail_on``, which each rank has to be given,
    where the baseline cannot be read as the training begins. Of what fails later, only a gate reaches the training.
    """

    def __init__(
        self,
        depth: int | None = 3,
        trackers: Sequence[object] | Literal["auto"] = "auto",
        *,
        columns: Sequence[str] | None = None,
        baseline: ModelSummary | str | Path | None = None,
        fail_on: Sequence[str] = (),
        verbose: bool = True,
        timeout: float = 10.0,
    ) -> None:
        self._trackers = check_targets(trackers)
        Selection(depth, columns)  # a wrong argument raises here, not within the training
        check_timeout(timeout)
        self._baseline = Baseline(baseline, fail_on)
        self._shown: dict[str, Any] = {"depth": depth, "columns": columns, "verbose": verbose, "timeout": timeout}
        self._shown["baseline"] = self._baseline
        self._watch: Watch | None = None
        self._later: list[_Later] = []

    @property
    def summary(self) -> ModelSummary | None:
        """None until the first step of the training has been made."""
        return None if self._watch is None else self._watch.summary

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The first training step is to be observed; an evaluation before it does not count."""
        zero, alone, timeout = state.is_world_process_zero, args.world_size == 1, self._shown["timeout"]
        self._baseline.read(rank_zero=zero, alone=alone, timeout=timeout)
        try:
            if self._watch is not None:
                self._watch.discard()  # a training that raised had no end
            self._watch = None
            self._look_for_runs()
            trainer = _trainer()
            reported = [name for name in names() if name in (args.report_to or ())]
            targets = reported if self._trackers == "auto" else self._trackers
            trackers = self._open(targets, _writers(trainer)) if state.is_world_process_zero else []
            known = {
                "framework": "transformers",
                "strategy": f"DistributedType.{trainer.accelerator.distributed_type.value}",
                "world_size": args.world_size,
            }
            self._watch = watch(
                trainer.model_wrapped, trackers=trackers, step=state.global_step, **known, **self._shown
            )
        except Exception as error:
            warn(f"the model summary could not be made: {type(error).__name__}: {error}")

    def _open(self, targets: Sequence[object], writers: list[object]) -> list[Tracker]:
        """What a name stands for may begin as late as with the first log, as MLflow's run of a second training does."""
        opened: list[Tracker] = []
        for target in targets:
            for tracker in open_targets([target], writers):
                if isinstance(target, str) and target in names() and isinstance(tracker, Unopened):
                    later = _Later(target, tracker)
                    weakref.finalize(self, later.give_up)  # a training that raised, and is dropped, has no log
                    self._later.append(later)
                    tracker = later
                opened.append(tracker)
        return opened

    def _look_for_runs(self) -> None:
        later, self._later = self._later, []
        for one in later:
            one.look()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The trackers are waited for at the last, once and up to ``timeout``: the Trainer's close before our turn."""
        self._look_for_runs()
        if self._watch is not None and control.should_training_stop:
            self._watch.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Whatever has not been observed by now will not be."""
        self._look_for_runs()
        if self._watch is not None:
            self._watch.close()


_LOOKS = 0.2
"""Seconds from one look at whether the process ends to the next."""


class _Later(Unopened):
    """A name of whose kind no run is active yet. What is written to it waits in its thread until it is looked for."""

    def __init__(self, name: str, tracker: Unopened) -> None:
        self.name = tracker.name
        self._scheme = name
        self._tracker: Tracker = tracker
        self._looked = threading.Event()

    def look(self) -> None:
        """In the thread of the training: which run is active may be known there alone. The first time counts."""
        if not self._looked.is_set():
            with suppress(Exception):  # then it is still what could not be opened, which says why
                self._tracker = kind(self._scheme).open(self._scheme)
            self._looked.set()

    def give_up(self) -> None:
        """Nobody will look any more."""
        self._looked.set()

    def write(self, report: Report, *, step: int) -> None:
        """Once it has been looked for, or the process ends."""
        while not self._looked.wait(_LOOKS) and threading.main_thread().is_alive():
            pass
        self._tracker.write(report, step=step)


def _trainer() -> Trainer:
    """Who calls: a callback is not told of the model as it is wrapped, nor of the other callbacks and their runs."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if isinstance(caller := frame.f_locals.get("self"), Trainer):
            return caller
        frame = frame.f_back
    raise RuntimeError("no Trainer has called on_train_begin")


def _writers(trainer: Trainer) -> list[object]:
    """TensorBoard's in use; W&B and MLflow know which of their runs is active."""
    others = trainer.callback_handler.callbacks
    return [other.tb_writer for other in others if is_kind(other, "TensorBoardCallback", "transformers")]
