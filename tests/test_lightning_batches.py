"""Which batch ModelSummaryCallback observes: the first that really trains, whatever a Trainer does before it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from summarycb_lightning import ModelSummaryCallback
from tests.lightning_trainings import (
    BACKWARD,
    FORWARD,
    IMAGE,
    MARKS,
    Recording,
    all_of,
    evaluates,
    fitted,
    is_watched,
    lit,
    loader,
    trainer,
)
from tests.trainings import NOTHING, left_behind, loss_of

pytestmark = MARKS


def validates(rows: int = 7, **overridden: Any) -> dict[str, Any]:
    return {"validation_step": evaluates, "val_dataloader": lambda self: loader(rows, 2)} | overridden


def test_the_first_batch_of_three(L: ModuleType, tmp_path: Path) -> None:
    """Losses, weights, gradients, buffers, optimizer and random state, flags and hooks after three steps: bitwise."""
    summary, model, step = fitted(L, tmp_path, lambda: lit(L))
    assert (model.watched, step) == ([True, False, False], 0)
    assert [(path, m.calls) for path, m in summary.modules.items()] == [
        ("", 1), ("net", 1), ("net.conv", 1), ("net.norm", 1), ("net.frozen", 1), ("net.drop", 1), ("net.head", 1),
    ]  # fmt: skip
    assert summary.root.type_name == "Lit"
    assert (summary.observed, summary.forward_macs, summary.backward_macs) == ("step", FORWARD, BACKWARD)
    assert summary.memory.batch == 4 * IMAGE
    assert summary.memory.gradients == summary.memory.optimizer_state == 285 * 4  # the frozen norm has none
    assert summary.memory.saved_activations is not None
    environment = summary.environment
    assert (environment.framework, environment.strategy, environment.world_size) == (
        "lightning", "SingleDeviceStrategy", 1,
    )  # fmt: skip
    assert (environment.training, environment.optimizer) == (True, "SGD")


def test_a_sanity_check_and_validation(L: ModuleType, tmp_path: Path) -> None:
    """Seven images: they are not the four of the first training batch."""
    summary, model, _ = fitted(L, tmp_path, lambda: lit(L, **validates()), num_sanity_val_steps=2, val_check_interval=1)
    assert len(model.evaluated) == 2 + 3 * 2
    assert (model.watched, summary.memory.batch) == ([True, False, False], 4 * IMAGE)
    assert (summary[""].calls, summary.forward_macs, summary.environment.training) == (1, FORWARD, True)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_training_step_that_returns_none(L: ModuleType, tmp_path: Path) -> None:
    """Skipping the first batch, after a forward: the next one that trains is the first step."""

    def training_step(self: Any, batch: Any, index: int) -> Any:
        self.watched.append(is_watched())
        loss = loss_of(self(batch[0]), batch[1])
        self.losses.append(loss.detach())
        return None if index == 0 else loss

    summary, model, _ = fitted(L, tmp_path, lambda: lit(L, training_step=training_step))
    assert model.watched == [True, True, False]
    assert (summary[""].calls, summary.forward_macs, summary.backward_macs) == (1, FORWARD, BACKWARD)


def test_on_train_batch_start_that_returns_minus_one(L: ModuleType, tmp_path: Path) -> None:
    """The epoch is skipped and no batch end comes; the next epoch's first batch is observed."""
    left: list[Any] = []

    def on_train_batch_start(self: Any, batch: Any, index: int) -> int | None:
        return -1 if self.current_epoch == 0 else None

    def on_train_epoch_start(self: Any) -> None:
        left.append(left_behind(self))

    def make() -> Any:
        return lit(L, on_train_batch_start=on_train_batch_start, on_train_epoch_start=on_train_epoch_start)

    summary, model, step = fitted(L, tmp_path, make, max_epochs=2)
    assert left == [NOTHING] * 4
    assert (model.watched, step) == ([True, False, False], 0)
    assert (summary[""].calls, summary.forward_macs) == (1, FORWARD)


def test_every_epoch_is_skipped(lightning: ModuleType, tmp_path: Path) -> None:
    model = lit(lightning, on_train_batch_start=lambda self, batch, index: -1)
    callback = ModelSummaryCallback(verbose=False)
    trainer(lightning, tmp_path, callback).fit(model)
    assert callback.summary is None
    assert left_behind(model) == NOTHING


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument in the `training_step`")
def test_a_dataloader_iter(L: ModuleType, tmp_path: Path) -> None:
    """The callback is given no batch, and then the one before: what went in is what the module was called with."""

    def training_step(self: Any, dataloader_iter: Any) -> Any:
        self.watched.append(is_watched())
        (x, y), _, _ = next(dataloader_iter)
        loss = loss_of(self(x), y)
        self.losses.append(loss.detach())
        return loss

    summary, model, _ = fitted(L, tmp_path, lambda: lit(L, training_step=training_step))
    assert model.watched == [True, False, False]
    assert (summary.forward_macs, summary.backward_macs, summary.memory.batch) == (FORWARD, BACKWARD, 4 * IMAGE)
    assert summary.root.inputs[0].shape == (4, 3, 8, 8)  # type: ignore[index,union-attr]


@pytest.mark.parametrize("reader", [True, False], ids=["read with", "read without"])
@pytest.mark.parametrize("writer", [True, False], ids=["written with", "written without"])
def test_a_resume(L: ModuleType, tmp_path: Path, writer: bool, reader: bool) -> None:
    """A checkpoint is the same with and without, is loaded by either without a warning, and training goes on bitwise.

    The first batch after it is observed, and logged at the step that the checkpoint was written at.
    """

    def train(writer: Any, reader: Any) -> tuple[Any, Any]:
        runner = trainer(L, tmp_path, *writer)
        runner.fit(lit(L))
        runner.save_checkpoint(tmp_path / "last.ckpt")
        model = lit(L)
        runner = trainer(L, tmp_path, *reader, max_epochs=2)
        runner.fit(model, ckpt_path=tmp_path / "last.ckpt", weights_only=False)
        assert left_behind(model) == NOTHING
        return all_of(runner, model), torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]

    tracker = Recording()
    resumed = ModelSummaryCallback(trackers=[tracker], verbose=False)
    expected = train([], [])
    assert expected[1] == {}
    assert expected[0]["global step"] == 6
    assert train([ModelSummaryCallback(verbose=False)] if writer else [], [resumed] if reader else []) == expected
    assert tracker.written == ([(resumed.summary, 3)] if reader else [])
    if reader:
        assert resumed.summary is not None
        assert (resumed.summary.forward_macs, resumed.summary.memory.batch) == (FORWARD, 4 * IMAGE)
        assert resumed.summary.memory.optimizer_state == 285 * 4


def test_a_second_fit(L: ModuleType, tmp_path: Path) -> None:
    """Is observed again; its summary is its own."""

    def train(*callbacks: Any) -> tuple[Any, ...]:
        model = lit(L)
        trainer(L, tmp_path, *callbacks).fit(model)
        first = callbacks[0].summary if callbacks else None
        model.net.head = nn.Linear(8, 6)
        runner = trainer(L, tmp_path, *callbacks, max_epochs=2)
        runner.fit(model)
        assert left_behind(model) == NOTHING
        return first, model.watched, all_of(runner, model)

    callback = ModelSummaryCallback(verbose=False)
    first, watched, found = train(callback)
    assert found == train()[-1]
    assert watched == [True, False, False, True, False, False, False, False, False]
    assert callback.summary is not None
    assert (first["net.head"].own_params, callback.summary["net.head"].own_params) == (8 * 5 + 5, 8 * 6 + 6)


# Tuners


def tuned(L: ModuleType) -> Any:
    """A module whose learning rate and batch size may be found, with 64 images."""

    def optimizer(self: Any) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def train_dataloader(self: Any) -> Any:
        return loader(self.batch_size, 64 // self.batch_size)

    model = lit(L, configure_optimizers=optimizer, train_dataloader=train_dataloader)
    model.lr, model.batch_size = 0.1, 16
    return model


# 14 trials, of which the finder looks at those after the first ten: four batches an epoch are not enough
RATE = {"num_training": 14}
# one step with 2 images, one with 4, and then it is enough
SIZE = {"init_val": 2, "max_trials": 2, "steps_per_trial": 1}


def test_a_learning_rate_is_found_before_the_fit(L: ModuleType, tmp_path: Path) -> None:
    """Its trial batches are not the first training step."""

    def fit(runner: Any, model: Any) -> None:
        model.batch_size = 4
        L.tuner.Tuner(runner).lr_find(model, **RATE)
        assert model.lr != 0.1
        runner.fit(model)

    summary, model, step = fitted(L, tmp_path, lambda: tuned(L), fit)
    assert (model.watched, step) == ([False] * 14 + [True] + [False] * 15, 0)
    assert (summary.forward_macs, summary.backward_macs) == (FORWARD, BACKWARD)


def test_a_batch_size_is_found_before_the_fit(L: ModuleType, tmp_path: Path) -> None:
    """Of its trials only the last had as many images as the first training step."""

    def fit(runner: Any, model: Any) -> None:
        L.tuner.Tuner(runner).scale_batch_size(model, **SIZE)
        runner.fit(model)

    summary, model, step = fitted(L, tmp_path, lambda: tuned(L), fit)
    assert (model.watched, step) == ([False] * 2 + [True] + [False] * 15, 0)
    assert (model.batch_size, summary.memory.batch) == (4, 4 * IMAGE)


def test_a_learning_rate_finder_among_the_callbacks(L: ModuleType, tmp_path: Path) -> None:
    """It trains as the fit begins, when the callback is armed already."""
    finders = [lambda: L.callbacks.LearningRateFinder(num_training_steps=14)]

    def make() -> Any:
        model = tuned(L)
        model.batch_size = 4
        return model

    summary, model, step = fitted(L, tmp_path, make, callbacks=finders)
    assert (model.watched, step) == ([False] * 14 + [True] + [False] * 15, 0)
    assert (summary.forward_macs, summary.backward_macs) == (FORWARD, BACKWARD)


def test_a_batch_size_finder_among_the_callbacks(lightning: ModuleType, tmp_path: Path) -> None:
    finders = [lambda: lightning.callbacks.BatchSizeFinder(**SIZE)]
    summary, model, step = fitted(lightning, tmp_path, lambda: tuned(lightning), callbacks=finders)
    assert (model.watched, step) == ([False] * 2 + [True] + [False] * 15, 0)
    assert (model.batch_size, summary.memory.batch) == (4, 4 * IMAGE)


# Runs of a kind


def test_barebones(L: ModuleType, tmp_path: Path) -> None:
    """Somebody who wants nothing but the loop gets nothing else."""
    callback = ModelSummaryCallback()
    model = lit(L)
    L.Trainer(callbacks=[callback], barebones=True, max_epochs=1, accelerator="cpu", default_root_dir=tmp_path).fit(
        model
    )
    assert callback.summary is None
    assert model.watched == [False, False, False]


def test_fast_dev_run(L: ModuleType, tmp_path: Path) -> None:
    """One batch, with a logger that has every attribute and is none."""
    summary, model, _ = fitted(L, tmp_path, lambda: lit(L, **validates()), fast_dev_run=True, logger=True)
    assert model.watched == [True]
    assert (summary.forward_macs, summary.backward_macs) == (FORWARD, BACKWARD)
