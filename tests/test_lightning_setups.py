"""ModelSummaryCallback in the set-ups that a LightningModule comes in: right, and bitwise harmless."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import summarycb
from summarycb.errors import SummaryWarning
from summarycb_lightning import ModelSummaryCallback
from tests.lightning_trainings import (
    BACKWARD,
    FORWARD,
    IMAGE,
    MARKS,
    Recording,
    all_of,
    fitted,
    is_watched,
    lit,
    loader,
    trainer,
)
from tests.trainings import NOTHING, left_behind, loss_of

pytestmark = MARKS


def test_gradients_that_accumulate(L: ModuleType, tmp_path: Path) -> None:
    """The first batch alone: forward and backward. No optimizer has stepped, so what its state will be is unknown."""
    summary, model, step = fitted(L, tmp_path, lambda: lit(L), accumulate_grad_batches=2)
    assert (model.watched, step) == ([True, False, False], 0)
    assert (summary[""].calls, summary.observed) == (1, "step")
    assert (summary.forward_macs, summary.backward_macs) == (FORWARD, BACKWARD)
    assert (summary.memory.gradients, summary.memory.optimizer_state) == (285 * 4, None)
    assert summary.environment.optimizer == "SGD"
    assert [note.text for note in summary.notes if note.kind == "optimizer"] == [
        "an optimizer did not step, as in gradient accumulation: its state is unknown"
    ]


def manual(**overridden: Any) -> dict[str, Any]:
    def training_step(self: Any, batch: Any, index: int) -> None:
        self.watched.append(is_watched())
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = loss_of(self.net(batch[0]), batch[1])
        self.losses.append(loss.detach())
        self.manual_backward(loss)
        optimizer.step()

    return {"training_step": training_step, "automatic_optimization": False} | overridden


def test_manual_optimization(L: ModuleType, tmp_path: Path) -> None:
    """A root that is never called, and an optimizer that the training step drives."""
    summary, model, _ = fitted(L, tmp_path, lambda: lit(L, **manual()))
    assert model.watched == [True, False, False]
    assert (summary[""].calls, summary["net"].calls) == (0, 1)
    assert (summary.forward_macs, summary.backward_macs) == (FORWARD, BACKWARD)
    assert (summary.memory.gradients, summary.memory.optimizer_state) == (285 * 4, 285 * 4)
    assert summary.environment.optimizer == "SGD"


def test_a_gan_with_two_optimizers(L: ModuleType, tmp_path: Path) -> None:
    """All of the batch: both networks, both optimizers, and a global step that has grown by two."""

    def training_step(self: Any, batch: Any, index: int) -> None:
        self.watched.append(is_watched())
        g_step, d_step = self.optimizers()
        noise = torch.rand(4, 2)
        for optimizer, sign in ((d_step, 1), (g_step, -1)):
            optimizer.zero_grad()
            fake = self.generator(noise)
            loss = sign * self.judge(fake.detach() if sign == 1 else fake).mean()
            self.losses.append(loss.detach())
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self: Any) -> Any:
        return torch.optim.Adam(self.generator.parameters()), torch.optim.SGD(self.judge.parameters())

    def make() -> Any:
        model = lit(L, **manual(training_step=training_step, configure_optimizers=configure_optimizers))
        model.net = None
        model.generator, model.judge = nn.Linear(2, 3), nn.Linear(3, 1)
        return model

    summary, model, step = fitted(L, tmp_path, make)
    assert (model.watched, step, model.trainer.global_step) == ([True, False, False], 0, 6)
    assert [(path, m.calls) for path, m in summary.modules.items()] == [("", 0), ("generator", 2), ("judge", 2)]
    assert (summary["generator"].forward_macs, summary["judge"].forward_macs) == (2 * 4 * 2 * 3, 2 * 4 * 3)
    # the generator's weight once; the judge's weight twice and its input once
    assert (summary["generator"].backward_macs, summary["judge"].backward_macs) == (4 * 2 * 3, 3 * 4 * 3)
    assert summary.environment.optimizer == "Adam, SGD"
    # two moments of 9 floats and a step count for each of two tensors; SGD without momentum keeps nothing
    assert (summary["generator"].total.optimizer_state, summary["judge"].total.optimizer_state) == (2 * 9 * 4 + 8, 0)


def test_lbfgs(L: ModuleType, tmp_path: Path) -> None:
    """Three forwards and backwards in one batch; the optimizer's own products are not the model's."""

    def configure_optimizers(self: Any) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.LBFGS(trained, max_iter=3, lr=0.1)

    summary, model, _ = fitted(L, tmp_path, lambda: lit(L, configure_optimizers=configure_optimizers))
    assert model.watched == [True] * 3 + [False] * 6
    assert summary[""].calls == 3
    assert (summary.forward_macs, summary.backward_macs) == (3 * FORWARD, 3 * BACKWARD)
    assert summary.optimizer_macs
    assert summary.environment.optimizer == "LBFGS"


def test_mixed_precision(L: ModuleType, tmp_path: Path) -> None:
    """Autocast is on inside the forward alone; what it was is recorded."""
    summary, model, _ = fitted(L, tmp_path, lambda: lit(L), precision="bf16-mixed")
    assert model.watched == [True, False, False]
    assert summary.environment.precision == "bfloat16 autocast"
    assert summary["net.conv"].outputs.dtype == "bfloat16"  # type: ignore[union-attr]
    assert (summary.forward_macs, summary.backward_macs) == (FORWARD, BACKWARD)
    assert summary.memory.batch == 4 * IMAGE


def test_several_loggers(L: ModuleType, tmp_path: Path) -> None:
    """Each that a tracker is installed for has it, at the step; the others are passed, and training is the same."""

    def run(*callbacks: Any) -> Any:
        model = lit(L)
        names = ("a", "b") if callbacks else ("c", "d")
        loggers = [L.loggers.TensorBoardLogger(tmp_path, name=name, version="") for name in names]
        runner = trainer(L, tmp_path, *callbacks, logger=[*loggers, L.loggers.CSVLogger(tmp_path)])
        runner.fit(model)
        assert left_behind(model) == NOTHING
        return all_of(runner, model)

    callback = ModelSummaryCallback(verbose=False)
    assert run(callback) == run()
    assert callback.summary is not None
    assert [summarycb.load(f"tensorboard:{tmp_path / name}") for name in "ab"] == [callback.summary] * 2


# Compiled models


Make = Callable[[Any, Any], Any]


def whole(L: ModuleType, backend: Any) -> Any:
    """``fit(torch.compile(module))``: the training step and the validation step are compiled, the forward in them."""
    return torch.compile(compilable(L), backend=backend)


def in_configure_model(L: ModuleType, backend: Any) -> Any:
    def configure_model(self: Any) -> None:
        if not isinstance(self.net, torch._dynamo.OptimizedModule):  # it is called for each fit
            self.net = torch.compile(self.net, backend=backend)

    return compilable(L, configure_model=configure_model)


def in_place(L: ModuleType, backend: Any) -> Any:
    def configure_model(self: Any) -> None:
        self.net.compile(backend=backend)

    return compilable(L, configure_model=configure_model)


def before(L: ModuleType, backend: Any) -> Any:
    model = compilable(L)
    model.net = torch.compile(model.net, backend=backend)
    return model


def compilable(L: ModuleType, **overridden: Any) -> Any:
    def training_step(self: Any, batch: Any, index: int) -> Any:
        return loss_of(self(batch[0]), batch[1])

    def validation_step(self: Any, batch: Any, index: int) -> None:
        self(batch[0])

    methods = {"training_step": training_step, "validation_step": validation_step}
    return lit(L, val_dataloader=lambda self: loader(7, 2), **methods | overridden)


@pytest.mark.parametrize("make", [whole, before, in_configure_model, in_place])
def test_a_compiled_model(L: ModuleType, tmp_path: Path, make: Make) -> None:
    """Sanity check, two epochs with validation, a second fit that is observed too: as many graphs as without.

    The observed steps are eager, so their numbers are those of the model, compiled once for training and once for
    evaluation.
    """
    from torch._dynamo.utils import counters

    def fit(*callbacks: Any) -> tuple[int, dict[str, int], Any]:
        graphs: list[Any] = []

        def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            graphs.append(graph)
            return graph

        torch._dynamo.reset()
        counters.clear()
        model = make(L, backend)
        runner = trainer(L, tmp_path, *callbacks, max_epochs=2, num_sanity_val_steps=1)
        runner.fit(model)
        again = trainer(L, tmp_path, *callbacks, max_epochs=1, num_sanity_val_steps=1)
        again.fit(getattr(model, "_orig_mod", model))
        inner = getattr(model, "_orig_mod", model)
        assert left_behind(inner) == NOTHING
        # and every frame that the compiler was given, again where a guard has sent it back
        return len(graphs), dict(counters["frames"]), all_of(again, inner)

    callback = ModelSummaryCallback(verbose=False)
    try:
        plain, observed = fit(), fit(callback)
    finally:
        torch._dynamo.reset()
    assert plain[0] == 2
    assert observed == plain
    assert callback.summary is not None
    assert callback.summary.incomplete == ()
    assert [path for path, m in callback.summary.modules.items() if m.calls != 1] == []
    assert (callback.summary.forward_macs, callback.summary.backward_macs) == (FORWARD, BACKWARD)


# Steps that end in an error


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """Lightning ignores Ctrl-C once it has seen one, for the rest of the process."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


class Fails(nn.Module):
    """Passes its input on, after something has happened to the process."""

    def __init__(self, happen: Callable[[], Any]) -> None:
        super().__init__()
        self.happen = happen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.happen()
        return x


def raise_error() -> None:
    raise ValueError("the user's")


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def run_out_of_memory() -> None:
    torch.empty(2**60)


@pytest.mark.parametrize(
    ("happen", "kind", "message"),
    [
        (raise_error, ValueError, "^the user's$"),
        (run_out_of_memory, RuntimeError, "can't allocate memory: you tried to allocate 4611686018427387904 bytes"),
        (press_ctrl_c, SystemExit, "^1$"),  # which Lightning makes of it
    ],
)
def test_a_step_that_fails(
    L: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    happen: Callable[[], None],
    kind: type[BaseException],
    message: str,
) -> None:
    """The error is the training's own, all is as it would be, and what was seen of the step is shown and logged."""

    def run(*callbacks: Any) -> Any:
        model = lit(L)
        model.net.drop = Fails(happen)
        name = "with" if callbacks else "without"
        runner = trainer(L, tmp_path, *callbacks, logger=L.loggers.TensorBoardLogger(tmp_path, name=name, version=""))
        with pytest.raises(kind, match=message) as raised:
            runner.fit(model)
        cause = raised.value.__context__ if kind is SystemExit else raised.value
        assert left_behind(model) == NOTHING
        return type(cause), str(cause), all_of(runner, model)

    callback = ModelSummaryCallback()
    plain = run()
    assert run(callback) == plain
    summary = callback.summary
    assert summary is not None
    assert summary.incomplete == (f"the step raised {plain[0].__name__} in net.drop",)
    assert summary.forward_macs == FORWARD - 4 * 8 * 5  # the head was never reached
    assert (summary["net.conv"].calls, summary["net.drop"].calls, summary["net.head"].calls) == (1, 1, 0)
    assert f"incomplete: the step raised {plain[0].__name__} in net.drop" in capsys.readouterr().out
    assert summarycb.load(f"tensorboard:{tmp_path / 'with'}") == summary


def test_trackers_are_waited_for_when_a_step_fails(L: ModuleType, tmp_path: Path) -> None:
    """The process may be about to end; but not for longer than was said."""
    release = threading.Event()

    class Blocked(Recording):
        def write(self, report: Any, *, step: int) -> None:
            release.wait(60)

    model = lit(L)
    model.net.drop = Fails(raise_error)
    callback = ModelSummaryCallback(trackers=[Blocked()], verbose=False, timeout=0.05)
    try:
        with (
            pytest.warns(
                SummaryWarning, match=r"^the model summary was not written to Blocked: no answer within 0.05 s; it is"
            ),
            pytest.raises(ValueError, match=r"^the user's$"),
        ):
            trainer(L, tmp_path, callback).fit(model)
    finally:
        release.set()


@pytest.mark.parametrize("where", ["training_step", "on_before_optimizer_step", "on_after_backward"])
def test_an_error_of_a_hook_goes_through(L: ModuleType, tmp_path: Path, where: str) -> None:
    """The very object, unchanged; nothing is left."""
    error = ValueError("the user's")

    def fail(self: Any, *args: Any) -> None:
        if where == "training_step":
            self(args[0][0])
        raise error

    model = lit(L, **{where: fail})
    callback = ModelSummaryCallback(verbose=False)
    with pytest.raises(ValueError, match=r"^the user's$") as raised:
        trainer(L, tmp_path, callback).fit(model)
    assert raised.value is error
    assert getattr(error, "__notes__", []) == []
    assert left_behind(model) == NOTHING
    assert callback.summary is not None
    assert callback.summary.incomplete == ("the step raised ValueError",)
    assert callback.summary.forward_macs == FORWARD


def test_an_error_before_the_first_step(lightning: ModuleType, tmp_path: Path) -> None:
    """In the sanity check: nothing was observed, nothing is shown."""

    def validation_step(self: Any, batch: Any, index: int) -> None:
        raise ValueError("the user's")

    model = lit(lightning, validation_step=validation_step, val_dataloader=lambda self: loader(2))
    callback = ModelSummaryCallback()
    with pytest.raises(ValueError, match=r"^the user's$"):
        trainer(lightning, tmp_path, callback).fit(model)
    assert callback.summary is None
    assert left_behind(model) == NOTHING
