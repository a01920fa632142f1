"""A LightningModule that trains, a Trainer for it, and the same training with and without the callback."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.data import DataLoader, TensorDataset

from summarycb.report import Report
from summarycb.tree import ModelSummary
from summarycb_lightning import ModelSummaryCallback
from tests.trainings import CNN, NOTHING, bits, everything, left_behind, loss_of

MARKS = [
    pytest.mark.filterwarnings("ignore:The '(train|val|test|predict)_dataloader' does not have many workers"),
    pytest.mark.filterwarnings(r"ignore:Found \d module\(s\) in eval mode at the start of training"),  # it is frozen
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),  # Lightning 2.6 on torch 2.13
]

# conv: 4 images x 8 channels x 8 x 8 places x 27; head: 4 x 8 x 5
FORWARD = 4 * 8 * 64 * 27 + 4 * 8 * 5
# of each weight once; the head's input has a gradient, the image has none
BACKWARD = FORWARD + 4 * 8 * 5
IMAGE = 3 * 8 * 8 * 4
"""Bytes of one image; a batch has four, whose targets go into no module."""


def evaluates(self: Any, batch: Any, index: int) -> None:
    """A ``validation_step``."""
    self.evaluated.append(bits(self(batch[0])))


def lit(L: ModuleType, **overridden: Any) -> Any:
    """A LightningModule around the CNN; functions in ``overridden`` take the place of its methods."""

    class Lit(L.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = CNN()
            self.losses: list[torch.Tensor] = []
            self.evaluated: list[Any] = []
            self.watched: list[bool] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            self.watched.append(is_watched())
            loss = loss_of(self(batch[0]), batch[1])
            self.losses.append(loss.detach())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

        def train_dataloader(self) -> Any:
            return loader(4)

    torch.manual_seed(0)
    random.seed(0)
    kind = type("Lit", (Lit,), overridden)
    return kind()


def is_watched() -> bool:
    """Whether a step is observed now; every batch's answer is in ``Lit.watched``."""
    return bool(_get_current_dispatch_mode_stack())


def loader(rows: int, batches: int = 3) -> Any:
    generator = torch.Generator().manual_seed(1)
    x, y = (
        torch.rand(rows * batches, 3, 8, 8, generator=generator),
        torch.randint(5, (rows * batches,), generator=generator),
    )
    return DataLoader(TensorDataset(x, y), batch_size=rows)


def trainer(L: ModuleType, path: Path, *callbacks: Any, **arguments: Any) -> Any:
    defaults: dict[str, Any] = {
        "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": path, "log_every_n_steps": 1,
    }  # fmt: skip
    return L.Trainer(callbacks=list(callbacks), **defaults | arguments)


def all_of(runner: Any, model: Any) -> dict[str, Any]:
    """All that a fit leaves behind: to be equal with and without the callback."""
    return {
        **everything(model, runner.optimizers[0], model.losses),
        "optimizers": [bits(optimizer.state_dict()) for optimizer in runner.optimizers],
        "evaluated": model.evaluated,
        "attributes": sorted(vars(model)),
        "global step": runner.global_step,
    }


class Recording:
    """A tracker that keeps what is written to it, and is opened by nobody."""

    wrap = open = print

    def __init__(self) -> None:
        self.written: list[tuple[ModelSummary, int]] = []

    def write(self, report: Report, *, step: int) -> None:
        self.written.append((report.summary, step))

    def read(self) -> ModelSummary:
        return self.written[-1][0]


class Fitted(NamedTuple):
    """A fit with the callback, which was bitwise the one without."""

    summary: ModelSummary
    model: Any
    step: int
    """The global step that the summary was written at."""


Fit = Callable[[Any, Any], None]


def fitted(
    L: ModuleType,
    path: Path,
    make: Callable[[], Any],
    fit: Fit = lambda runner, model: runner.fit(model),
    **arguments: Any,
) -> Fitted:
    """Train without the callback and with it, as ``fit`` has it: the same bit by bit, and nothing is left."""

    def train(*callbacks: Any) -> tuple[Any, dict[str, Any]]:
        torch.manual_seed(0)
        random.seed(0)
        model = make()
        given = [make_callback() for make_callback in arguments.get("callbacks", [])]
        rest = {name: value for name, value in arguments.items() if name != "callbacks"}
        runner = trainer(L, path, *given, *callbacks, **rest)
        fit(runner, model)
        assert left_behind(model) == NOTHING
        return model, all_of(runner, model)

    tracker = Recording()
    callback = ModelSummaryCallback(trackers=[tracker], verbose=False)
    plain, expected = train()
    model, found = train(callback)
    assert found == expected
    assert not any(plain.watched)
    assert callback.summary is not None
    assert callback.summary.incomplete == ()
    ((summary, step),) = tracker.written
    assert summary == callback.summary
    return Fitted(summary, model, step)
