"""Lightning's ThroughputMonitor beside ModelSummaryCallback: it logs FLOP/s, and nothing of it is left behind.

Without a ``flops_per_batch`` on the module the monitor warns, and a warning is an error here.
"""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from summarycb_lightning import ModelSummaryCallback
from tests.lightning_trainings import BACKWARD, FORWARD, MARKS, evaluates, fitted, lit, loader, trainer

pytestmark = MARKS

STEP = 2 * (FORWARD + BACKWARD)
WARNING = "When using the `ThroughputMonitor`, you need to define a `flops_per_batch`"


def monitor(L: ModuleType) -> Any:
    return L.callbacks.ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0]), window_size=2)


def reading(L: ModuleType, **overridden: Any) -> Any:
    """A module that keeps what it says of its FLOPs at the end of each batch, as the monitors may read it."""

    def says(self: Any, *args: Any) -> None:
        self.said.append(getattr(self, "flops_per_batch", "nothing"))

    methods: dict[str, Any] = {"on_train_batch_end": says, "train_dataloader": lambda self: loader(4, 4)}
    model = lit(L, **methods | overridden)
    model.said = []
    return model


def logged(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("order", ["monitor first", "callback first"])
def test_flops_per_second_are_logged(L: ModuleType, tmp_path: Path, order: str) -> None:
    """In training, by whichever of the two comes first. A batch of validation has others, which are not known."""
    model = reading(L, validation_step=evaluates, val_dataloader=lambda self: loader(7, 3))
    callback = ModelSummaryCallback(verbose=False)
    callbacks = [monitor(L), callback] if order == "monitor first" else [callback, monitor(L)]
    logger = L.loggers.CSVLogger(tmp_path, name="", version="")
    runner = trainer(L, tmp_path, *callbacks, logger=logger, val_check_interval=2, num_sanity_val_steps=1)
    runner.fit(model)
    assert callback.summary is not None
    assert callback.summary.step_flops == STEP
    assert model.said == [STEP] * 4
    rows = logged(tmp_path / "metrics.csv")
    rates = ("train/device/flops_per_sec", "train/device/batches_per_sec")
    per_batch = [float(row[rates[0]]) / float(row[rates[1]]) for row in rows if set(rates) <= set(row)]
    # the window of two is full after the second batch; the first one's figure came after a monitor that comes first
    assert per_batch == pytest.approx([STEP] * (2 if order == "monitor first" else 3), rel=1e-12)
    assert [row for row in rows if "validate/device/batches_per_sec" in row]
    assert not [row for row in rows if "validate/device/flops_per_sec" in row]


def test_nothing_changes_and_nothing_is_left(L: ModuleType, tmp_path: Path) -> None:
    """Bitwise, and by attribute; the one warning is of the training without the callback."""

    def make() -> Any:
        return lit(L, validation_step=evaluates, val_dataloader=lambda self: loader(7, 2))

    with pytest.warns(UserWarning, match=WARNING) as warned:
        fitted(L, tmp_path, make, callbacks=[lambda: monitor(L)], max_epochs=2)
    assert len([w for w in warned if str(w.message).startswith(WARNING)]) == 1


@pytest.mark.parametrize("end", ["at the end", "by an error"])
def test_it_is_taken_away_with_the_fit(lightning: ModuleType, tmp_path: Path, end: str) -> None:
    """And the monitor asks anew: in an evaluation, with Lightning's warning, and in a fit with the callback."""
    fails = [end == "by an error"]

    def on_train_epoch_end(self: Any) -> None:
        if fails.pop():
            raise ValueError("the user's")

    model = reading(
        lightning, on_train_epoch_end=on_train_epoch_end,
        validation_step=evaluates, val_dataloader=lambda self: loader(7, 3),
    )  # fmt: skip
    runner = trainer(lightning, tmp_path, monitor(lightning), ModelSummaryCallback(verbose=False), max_epochs=2)
    with pytest.warns(UserWarning, match=WARNING):
        runner.validate(model, verbose=False)
    if fails[0]:
        with pytest.raises(ValueError, match=r"^the user's$"):
            runner.fit(model)
    else:
        fails.append(False)
        runner.fit(model)
    assert model.said == [STEP] * (4 if end == "by an error" else 8)
    assert not hasattr(model, "flops_per_batch")
    with pytest.warns(UserWarning, match=WARNING):
        runner.validate(model, verbose=False)


def test_the_users_own_is_left_alone(L: ModuleType, tmp_path: Path) -> None:
    """An attribute; one that is set while the fit goes on; and a property, which is asked by the monitor alone."""
    asked: list[int] = []

    def flops_per_batch(self: Any) -> int:
        asked.append(1)
        return 8

    def sets(self: Any, outputs: Any, batch: Any, index: int) -> None:
        self.said.append(self.flops_per_batch)
        self.flops_per_batch = 9

    def fit(model: Any, *callbacks: Any) -> Any:
        trainer(L, tmp_path, *callbacks, monitor(L)).fit(model)
        return model

    attribute = reading(L)
    attribute.flops_per_batch = 7
    fit(attribute, ModelSummaryCallback(verbose=False))
    assert (attribute.said, attribute.flops_per_batch) == ([7] * 4, 7)
    later = fit(reading(L, on_train_batch_end=sets), ModelSummaryCallback(verbose=False))
    assert (later.said, later.flops_per_batch) == ([STEP, 9, 9, 9], 9)
    fit(reading(L, flops_per_batch=property(flops_per_batch)))
    without = len(asked)
    fit(reading(L, flops_per_batch=property(flops_per_batch)), ModelSummaryCallback(verbose=False))
    assert len(asked) == 2 * without


def test_without_a_monitor_the_module_has_nothing(lightning: ModuleType, tmp_path: Path) -> None:
    model = reading(lightning)
    trainer(lightning, tmp_path, ModelSummaryCallback(verbose=False)).fit(model)
    assert model.said == ["nothing"] * 4


def test_unknown_flops(L: ModuleType, tmp_path: Path) -> None:
    """Are no FLOP/s, and no 0."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + 0 * torch.linalg.eigvalsh(torch.eye(2)).sum()

    model = reading(L, forward=forward)
    callback = ModelSummaryCallback(verbose=False)
    logger = L.loggers.CSVLogger(tmp_path, name="", version="")
    trainer(L, tmp_path, monitor(L), callback, logger=logger).fit(model)
    assert callback.summary is not None
    assert callback.summary.step_flops is None
    assert model.said == [None] * 4
    rows = logged(tmp_path / "metrics.csv")
    assert [row for row in rows if "train/device/batches_per_sec" in row]
    assert not [row for row in rows if "train/device/flops_per_sec" in row]


def test_checkpoints_and_copies(lightning: ModuleType, tmp_path: Path) -> None:
    """A checkpoint has no trace of it; a module that is pickled amid a fit holds a plain number."""
    contents: list[tuple[bytes, dict[str, Any]]] = []

    class Small(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 1)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.net(batch[0][:, 0, 0, :2]).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def on_train_batch_end(self, *args: Any) -> None:
            if (last := self.trainer.global_step) == 2:
                path = tmp_path / f"{last}.ckpt"
                self.trainer.save_checkpoint(path)
                contents.append((pickle.dumps(vars(self).get("flops_per_batch")), torch.load(path, weights_only=False)))

    for callbacks in ([], [ModelSummaryCallback(verbose=False), monitor(lightning)]):
        torch.manual_seed(0)
        trainer(lightning, tmp_path, *callbacks).fit(Small(), loader(4))
    (without, plain), (held, observed) = contents
    # 4 rows of two features: forward and the weight's gradient
    assert (pickle.loads(without), pickle.loads(held)) == (None, 2 * (4 * 2 + 4 * 2))
    assert str(observed) == str(plain)
