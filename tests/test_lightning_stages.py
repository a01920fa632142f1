"""ModelSummaryCallback where it is asked for: another stage than fit, and other batches than the first."""

from __future__ import annotations

import atexit
import random
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import summarycb
from summarycb_lightning import ModelSummaryCallback
from tests.lightning_trainings import (
    FORWARD,
    IMAGE,
    MARKS,
    Recording,
    all_of,
    evaluates,
    is_watched,
    lit,
    loader,
    trainer,
)
from tests.trainings import NOTHING, left_behind

pytestmark = MARKS

ROWS = {"validate": 7, "test": 6, "predict": 5}


def staged(L: ModuleType, **overridden: Any) -> Any:
    """A module with all of them, each with batches of another size."""

    def step(self: Any, batch: Any, index: int) -> Any:
        self.watched.append(is_watched())
        evaluates(self, batch, index)
        return torch.zeros(1)

    names = {"validate": ("validation_step", "val_dataloader")}
    methods: dict[str, Any] = {}
    for stage, rows in ROWS.items():
        does, loads = names.get(stage, (f"{stage}_step", f"{stage}_dataloader"))
        methods |= {does: step, loads: lambda self, rows=rows: loader(rows, 2)}
    return lit(L, **methods | overridden)


@pytest.mark.parametrize("stage", list(ROWS))
def test_a_stage_that_is_asked_for(L: ModuleType, tmp_path: Path, stage: str) -> None:
    """Its first batch, forward only; a fit before it is left alone, with its sanity check and its validation."""

    def run(*callbacks: Any) -> tuple[Any, dict[str, Any]]:
        random.seed(0)
        model = staged(L)
        runner = trainer(L, tmp_path, *callbacks, num_sanity_val_steps=1)
        runner.fit(model)
        assert not any(model.watched)
        model.watched.clear()
        getattr(runner, stage)(model, **({} if stage == "predict" else {"verbose": False}))
        assert left_behind(model) == NOTHING
        return model, all_of(runner, model)

    tracker = Recording()
    callback = ModelSummaryCallback(stage=stage, trackers=[tracker], verbose=False)  # type: ignore[arg-type]
    model, found = run(callback)
    assert found == run()[1]
    assert model.watched == [True, False]
    summary = callback.summary
    assert summary is not None
    assert tracker.written == [(summary, 3)]
    rows = ROWS[stage]
    assert (summary.observed, summary.forward_macs) == ("forward", rows * (8 * 64 * 27 + 8 * 5))
    assert (summary.backward_macs, summary.step_flops, summary.memory.saved_activations) == (None, None, None)
    assert (summary.memory.batch, summary.environment.training) == (rows * IMAGE, False)
    assert summary.root.outputs.shape == (rows, 5)  # type: ignore[union-attr]


def test_another_stage_than_the_one_asked_for(lightning: ModuleType, tmp_path: Path) -> None:
    """No training step, no summary, no error; nor for a batch that was asked for by hand."""
    callback = ModelSummaryCallback()
    runner = trainer(lightning, tmp_path, callback)
    model = staged(lightning)
    callback.arm()
    runner.validate(model, verbose=False)
    runner.test(model, verbose=False)
    runner.predict(model)
    assert model.watched == [False] * 6
    assert callback.summary is None


def test_two_callbacks_for_two_stages(lightning: ModuleType, tmp_path: Path) -> None:
    """And for one: each has its own."""
    stages: Any = ("fit", "fit", "test")
    callbacks = [ModelSummaryCallback(stage=stage, verbose=False) for stage in stages]
    runner = trainer(lightning, tmp_path, *callbacks)
    model = staged(lightning)
    runner.fit(model)
    runner.test(model, verbose=False)
    summaries = [callback.summary for callback in callbacks if callback.summary is not None]
    assert [s.observed for s in summaries] == ["step", "step", "forward"]
    assert [s.forward_macs for s in summaries] == [FORWARD, FORWARD, 6 * FORWARD // 4]
    assert left_behind(model) == NOTHING


def test_an_evaluation_that_raises(lightning: ModuleType, tmp_path: Path) -> None:
    """In the observed batch: the same error, and what was seen."""

    def test_step(self: Any, batch: Any, index: int) -> None:
        self(batch[0])
        raise ValueError("the user's")

    callback = ModelSummaryCallback(stage="test", verbose=False)
    model = staged(lightning, test_step=test_step)
    with pytest.raises(ValueError, match=r"^the user's$"):
        trainer(lightning, tmp_path, callback).test(model)
    assert callback.summary is not None
    assert callback.summary.incomplete == ("the step raised ValueError",)
    assert callback.summary.forward_macs == 6 * FORWARD // 4
    assert left_behind(model) == NOTHING


@pytest.mark.parametrize("stage", ["train", "", None, ["fit"]], ids=repr)
def test_a_stage_that_there_is_not(stage: Any) -> None:
    with pytest.raises(summarycb.SummaryError) as raised:
        ModelSummaryCallback(stage=stage)
    assert str(raised.value) == f"stage must be one of fit, validate, test, predict, not {stage!r}"


# Armed again


def writing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("summarycb-")]


def armed_before(*batches: int) -> Any:
    """The module's ``on_train_batch_start``, which runs after the callbacks': it arms for the batch after.

    What was written of the batches before is waited for.
    """

    def on_train_batch_start(self: Any, batch: Any, index: int) -> None:
        for thread in writing():
            thread.join(60)
        for callback in self.trainer.callbacks:
            if index + 1 in batches and isinstance(callback, ModelSummaryCallback):
                callback.arm()

    return on_train_batch_start


def test_armed_for_other_batches(L: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also while one is observed: each is printed, and written at its own step; training stays the same."""

    def run(*callbacks: Any) -> tuple[Any, dict[str, Any]]:
        model = lit(L, on_train_batch_start=armed_before(1, 3), train_dataloader=lambda self: loader(4, 5))
        runner = trainer(L, tmp_path, *callbacks)
        runner.fit(model)
        assert left_behind(model) == NOTHING
        return model, all_of(runner, model)

    tracker = Recording()
    callback = ModelSummaryCallback(trackers=[tracker], depth=0)
    model, found = run(callback)
    assert found == run()[1]
    assert model.watched == [True, True, False, True, False]
    assert [step for _, step in tracker.written] == [0, 1, 3]
    assert [summary.forward_macs for summary, _ in tracker.written] == [FORWARD] * 3
    assert tracker.read() == callback.summary
    printed = "".join(f"{summary.to_text(depth=0)}\n" for summary, _ in tracker.written)
    assert capsys.readouterr().out == printed


def test_armed_for_every_batch(lightning: ModuleType, tmp_path: Path) -> None:
    """Nothing gathers: no thread, no handler at the exit of the process; and the newest one is what is logged."""
    batches = 20
    exits = atexit._ncallbacks()  # type: ignore[attr-defined]
    during: set[int] = set()
    arms = armed_before(*range(batches))

    def on_train_batch_start(self: Any, batch: Any, index: int) -> None:
        arms(self, batch, index)
        during.add(atexit._ncallbacks())  # type: ignore[attr-defined]

    model = lit(lightning, on_train_batch_start=on_train_batch_start, train_dataloader=lambda self: loader(4, batches))
    tracker = Recording()
    callback = ModelSummaryCallback(trackers=[tracker], verbose=False)
    trainer(lightning, tmp_path, callback).fit(model)
    assert model.watched == [True] * batches
    assert [step for _, step in tracker.written] == list(range(batches))
    assert during <= {exits, exits + 1}  # one for all, which may be there from before
    assert writing() == []
    assert left_behind(model) == NOTHING
