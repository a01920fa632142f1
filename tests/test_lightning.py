"""ModelSummaryCallback: the first real training batch of a Trainer, in both packages that Lightning is shipped as."""

from __future__ import annotations

import copy
import importlib
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import summarycb
from summarycb.errors import SummaryWarning
from summarycb_lightning import ModelSummaryCallback
from tests.test_faults import Broken, Planted, plant
from tests.trainings import CNN, NOTHING, everything, left_behind, loss_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '(train|val|predict)_dataloader' does not have many workers"),
    pytest.mark.filterwarnings(r"ignore:Found 1 module\(s\) in eval mode at the start of training"),  # it is frozen
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),  # Lightning 2.6 on torch 2.13
]


def evaluates(self: Any, batch: Any, index: int) -> None:
    """A ``validation_step``."""
    self(batch[0])


PACKAGES = ["lightning.pytorch", "pytorch_lightning"]
# conv: 4 images x 8 channels x 8 x 8 places x 27; head: 4 x 8 x 5
FORWARD = 4 * 8 * 64 * 27 + 4 * 8 * 5


@pytest.fixture(params=PACKAGES)
def L(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


@pytest.fixture
def lightning() -> ModuleType:
    return importlib.import_module("lightning.pytorch")


def lit(L: ModuleType, **overridden: Any) -> Any:
    """A LightningModule around the CNN; functions in ``overridden`` take the place of its methods."""

    class Lit(L.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = CNN()
            self.losses: list[torch.Tensor] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
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
        "enable_progress_bar": False, "default_root_dir": path, "log_every_n_steps": 1,
    }  # fmt: skip
    return L.Trainer(callbacks=list(callbacks), **defaults | arguments)


def test_nothing_changes(L: ModuleType, tmp_path: Path) -> None:
    """Losses, weights, gradients, buffers, optimizer and random state, flags and hooks after three steps: bitwise."""

    def fit(*callbacks: Any) -> Any:
        model = lit(L)
        runner = trainer(L, tmp_path, *callbacks, enable_model_summary=False, num_sanity_val_steps=0)
        runner.fit(model)
        return everything(model, runner.optimizers[0], model.losses)

    assert len(fit()["losses"]) == 3
    callback = summarycb.ModelSummaryCallback()
    assert fit(callback) == fit()
    assert callback.summary is not None
    assert callback.summary.incomplete == ()


def test_the_first_real_batch(L: ModuleType, tmp_path: Path) -> None:
    """Not the sanity check's; every figure is of that step, with what Lightning knows of it."""
    callback = ModelSummaryCallback(verbose=False)
    model = lit(L, validation_step=evaluates, val_dataloader=lambda self: loader(7, 2))
    trainer(L, tmp_path, callback, num_sanity_val_steps=2).fit(model)
    summary = callback.summary
    assert summary is not None
    assert [(path, m.calls) for path, m in summary.modules.items()] == [
        ("", 1), ("net", 1), ("net.conv", 1), ("net.norm", 1), ("net.frozen", 1), ("net.drop", 1), ("net.head", 1),
    ]  # fmt: skip
    assert summary.root.type_name == "Lit"
    assert (summary.observed, summary.forward_macs) == ("step", FORWARD)
    assert summary.memory.batch == 4 * 3 * 8 * 8 * 4
    assert summary.memory.gradients == summary.memory.optimizer_state == 285 * 4  # the frozen norm has none
    assert summary.memory.saved_activations is not None
    environment = summary.environment
    assert (environment.framework, environment.strategy, environment.world_size) == (
        "lightning", "SingleDeviceStrategy", 1,
    )  # fmt: skip
    assert (environment.training, environment.optimizer) == (True, "SGD")
    assert left_behind(model) == NOTHING


@pytest.mark.parametrize("enable_model_summary", [True, None], ids=["on", "default"])
def test_it_takes_the_place_of_lightnings_table(
    L: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], enable_model_summary: bool | None
) -> None:
    """One summary is printed, ours."""
    callback = ModelSummaryCallback(depth=1, columns=["type", "params"])
    runner = trainer(L, tmp_path, callback, enable_model_summary=enable_model_summary)
    runner.fit(lit(L))
    captured = capsys.readouterr()
    assert callback.summary is not None
    table = callback.summary.to_text(depth=1, columns=["type", "params"])
    assert captured.out.count(table) == 1
    assert "Total params" not in captured.out + captured.err
    assert "Non-trainable params" not in captured.out + captured.err
    summaries = [c for c in runner.callbacks if isinstance(c, L.callbacks.ModelSummary)]
    assert summaries == [callback]


def test_verbose_false_prints_nothing(
    lightning: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = ModelSummaryCallback(verbose=False)
    trainer(lightning, tmp_path, callback).fit(lit(lightning))
    assert callback.summary is not None
    assert "params" not in capsys.readouterr().out


def test_the_trainers_loggers_are_used(L: ModuleType, tmp_path: Path) -> None:
    """By itself: TensorBoard's log directory gives an equal summary back; a logger that no tracker takes is passed."""
    tensorboard = L.loggers.TensorBoardLogger(tmp_path, name="runs")
    csv = L.loggers.CSVLogger(tmp_path)
    callback = ModelSummaryCallback(verbose=False)
    trainer(L, tmp_path, callback, logger=[tensorboard, csv]).fit(lit(L))
    assert callback.summary is not None
    assert summarycb.load(f"tensorboard:{tensorboard.log_dir}") == callback.summary


def test_two_loggers(lightning: ModuleType, tmp_path: Path) -> None:
    loggers = [lightning.loggers.TensorBoardLogger(tmp_path, name=name) for name in ("a", "b")]
    callback = ModelSummaryCallback(verbose=False)
    trainer(lightning, tmp_path, callback, logger=loggers).fit(lit(lightning))
    assert [summarycb.load(f"tensorboard:{logger.log_dir}") for logger in loggers] == [callback.summary] * 2


def test_trackers_that_are_given_replace_the_loggers(lightning: ModuleType, tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    logger = lightning.loggers.TensorBoardLogger(tmp_path, name="logger")
    with SummaryWriter(str(tmp_path / "writer")) as writer:
        callback = ModelSummaryCallback(trackers=[writer], verbose=False)
        trainer(lightning, tmp_path, callback, logger=logger).fit(lit(lightning))
    assert summarycb.load(f"tensorboard:{tmp_path / 'writer'}") == callback.summary
    with pytest.raises(summarycb.SummaryError, match="no model summary"):
        summarycb.load(f"tensorboard:{logger.log_dir}")


@pytest.mark.parametrize("logger", ["csv", "false", "dummy"])
def test_loggers_that_no_tracker_takes(lightning: ModuleType, tmp_path: Path, logger: str) -> None:
    """Are passed over without a word: a warning would be an error here."""
    loggers = {"csv": lightning.loggers.CSVLogger(tmp_path), "false": False, "dummy": True}
    arguments = {"fast_dev_run": True} if logger == "dummy" else {}
    callback = ModelSummaryCallback(verbose=False)
    runner = trainer(lightning, tmp_path, callback, logger=loggers[logger], **arguments)
    runner.fit(lit(lightning))
    if logger == "dummy":
        assert [type(used).__name__ for used in runner.loggers] == ["DummyLogger"]
    assert callback.summary is not None


def test_a_training_step_that_returns_none(L: ModuleType, tmp_path: Path) -> None:
    """Skipping the first batch: the next one that trains is the first step."""

    def training_step(self: Any, batch: Any, index: int) -> Any:
        return None if index == 0 else loss_of(self(batch[0]), batch[1])

    model = lit(L, training_step=training_step)
    callback = ModelSummaryCallback(verbose=False)
    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        trainer(L, tmp_path, callback).fit(model)
    assert callback.summary is not None
    assert (callback.summary[""].calls, callback.summary.forward_macs) == (1, FORWARD)
    assert left_behind(model) == NOTHING


def test_on_train_batch_start_that_returns_minus_one(L: ModuleType, tmp_path: Path) -> None:
    """The epoch is skipped and no batch end comes; the next epoch's first batch is observed."""

    def on_train_batch_start(self: Any, batch: Any, index: int) -> int | None:
        return -1 if self.current_epoch == 0 else None

    model = lit(L, on_train_batch_start=on_train_batch_start)
    callback = ModelSummaryCallback(verbose=False)
    left: list[Any] = []
    model.on_train_epoch_start = lambda: left.append(left_behind(model))
    trainer(L, tmp_path, callback, max_epochs=2).fit(model)
    assert left == [NOTHING, NOTHING]
    assert callback.summary is not None
    assert (callback.summary[""].calls, callback.summary.forward_macs) == (1, FORWARD)


def test_every_epoch_is_skipped(lightning: ModuleType, tmp_path: Path) -> None:
    model = lit(lightning, on_train_batch_start=lambda self, batch, index: -1)
    callback = ModelSummaryCallback(verbose=False)
    trainer(lightning, tmp_path, callback).fit(model)
    assert callback.summary is None
    assert left_behind(model) == NOTHING


def test_a_second_fit(L: ModuleType, tmp_path: Path) -> None:
    """Is observed again; its summary is its own."""
    model = lit(L)
    callback = ModelSummaryCallback(verbose=False)
    trainer(L, tmp_path, callback).fit(model)
    first = callback.summary
    model.net.head = nn.Linear(8, 6)
    trainer(L, tmp_path, callback).fit(model)
    assert first is not None
    assert callback.summary is not None
    assert (first["net.head"].own_params, callback.summary["net.head"].own_params) == (8 * 5 + 5, 8 * 6 + 6)


@pytest.mark.parametrize("error", [ValueError("the user's"), KeyboardInterrupt("Ctrl-C")], ids=repr)
@pytest.mark.parametrize("where", ["training_step", "on_before_optimizer_step", "on_after_backward"])
def test_an_error_of_the_step_goes_through(
    L: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, error: BaseException
) -> None:
    """Unchanged; the partial summary is shown, and nothing is left."""

    def fail(self: Any, *args: Any) -> None:
        if where == "training_step":
            self(args[0][0])
        raise error

    model = lit(L, **{where: fail})
    callback = ModelSummaryCallback()
    runner = trainer(L, tmp_path, callback)
    expected: Any = SystemExit if isinstance(error, KeyboardInterrupt) else type(error)
    with pytest.raises(expected) as raised:
        runner.fit(model)
    if not isinstance(error, KeyboardInterrupt):
        assert raised.value is error
    assert left_behind(model) == NOTHING
    assert callback.summary is not None
    assert callback.summary.incomplete == (f"the step raised {type(error).__name__}",)
    assert callback.summary.forward_macs == FORWARD
    assert f"incomplete: the step raised {type(error).__name__}" in capsys.readouterr().out


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


def test_gradients_that_accumulate(L: ModuleType, tmp_path: Path) -> None:
    """The first batch alone: forward and backward. No optimizer has stepped, so what its state will be is unknown."""
    callback = ModelSummaryCallback(verbose=False)
    trainer(L, tmp_path, callback, accumulate_grad_batches=2).fit(lit(L))
    summary = callback.summary
    assert summary is not None
    assert (summary[""].calls, summary.forward_macs, summary.observed) == (1, FORWARD, "step")
    assert (summary.memory.gradients, summary.memory.optimizer_state) == (285 * 4, None)
    assert summary.environment.optimizer == "SGD"


def test_manual_optimization_with_two_optimizers(L: ModuleType, tmp_path: Path) -> None:
    """A GAN's batch: both networks, both optimizers, and a root that is never called."""

    class Gan(L.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.judge = nn.Linear(2, 3), nn.Linear(3, 1)

        def training_step(self, batch: Any, index: int) -> None:
            g_step, d_step = self.optimizers()
            noise = torch.rand(4, 2)
            for optimizer, sign in ((d_step, 1), (g_step, -1)):
                optimizer.zero_grad()
                fake = self.generator(noise)
                self.manual_backward(sign * self.judge(fake.detach() if sign == 1 else fake).mean())
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.generator.parameters()), torch.optim.SGD(self.judge.parameters())

        def train_dataloader(self) -> Any:
            return loader(4)

    torch.manual_seed(0)
    model = Gan()
    callback = ModelSummaryCallback(verbose=False)
    trainer(L, tmp_path, callback).fit(model)
    summary = callback.summary
    assert summary is not None
    assert [(path, m.calls) for path, m in summary.modules.items()] == [("", 0), ("generator", 2), ("judge", 2)]
    assert (summary["generator"].forward_macs, summary["judge"].forward_macs) == (2 * 4 * 2 * 3, 2 * 4 * 3)
    # the generator's weight once; the judge's weight twice and its input once
    assert (summary["generator"].backward_macs, summary["judge"].backward_macs) == (4 * 2 * 3, 3 * 4 * 3)
    assert summary.environment.optimizer == "Adam, SGD"
    # two moments of 9 floats and a step count for each of two tensors; SGD without momentum keeps nothing
    assert (summary["generator"].total.optimizer_state, summary["judge"].total.optimizer_state) == (2 * 9 * 4 + 8, 0)
    assert left_behind(model) == NOTHING


def test_lbfgs(lightning: ModuleType, tmp_path: Path) -> None:
    """Several forwards in one batch; the optimizer's own products are not the model's."""

    def configure_optimizers(self: Any) -> Any:
        return torch.optim.LBFGS(self.parameters(), max_iter=3)

    model = lit(lightning, configure_optimizers=configure_optimizers)
    callback = ModelSummaryCallback(verbose=False)
    trainer(lightning, tmp_path, callback).fit(model)
    summary = callback.summary
    assert summary is not None
    assert summary[""].calls is not None
    assert summary[""].calls > 1
    assert summary.forward_macs == summary[""].calls * FORWARD


def test_mixed_precision(lightning: ModuleType, tmp_path: Path) -> None:
    """Autocast is on inside the forward alone; what it was is recorded."""
    callback = ModelSummaryCallback(verbose=False)
    trainer(lightning, tmp_path, callback, precision="bf16-mixed").fit(lit(lightning))
    summary = callback.summary
    assert summary is not None
    assert summary.environment.precision == "bfloat16 autocast"
    assert summary["net.conv"].outputs.dtype == "bfloat16"  # type: ignore[union-attr]


def test_a_compiled_module(lightning: ModuleType, tmp_path: Path) -> None:
    """The observed step is eager, the later ones compiled: one graph."""
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    model = lit(lightning)
    model.net = torch.compile(model.net, backend=backend)
    callback = ModelSummaryCallback(verbose=False)
    trainer(lightning, tmp_path, callback).fit(model)
    torch._dynamo.reset()
    assert len(graphs) == 1
    assert callback.summary is not None
    assert (callback.summary["net.conv"].calls, callback.summary.forward_macs) == (1, FORWARD)


def test_barebones(L: ModuleType, tmp_path: Path) -> None:
    """Somebody who wants nothing but the loop gets nothing else."""
    callback = ModelSummaryCallback()
    L.Trainer(callbacks=[callback], barebones=True, max_epochs=1, accelerator="cpu", default_root_dir=tmp_path).fit(
        lit(L)
    )
    assert callback.summary is None


def test_fast_dev_run(L: ModuleType, tmp_path: Path) -> None:
    callback = ModelSummaryCallback(verbose=False)
    trainer(L, tmp_path, callback, fast_dev_run=True, logger=True).fit(lit(L))
    assert callback.summary is not None
    assert callback.summary.forward_macs == FORWARD


def test_validate_test_and_predict_alone(lightning: ModuleType, tmp_path: Path) -> None:
    """No training step, no summary, no error."""
    callback = ModelSummaryCallback()
    runner = trainer(lightning, tmp_path, callback)
    model = lit(lightning, validation_step=evaluates, predict_step=lambda self, batch, index: self(batch[0]))
    runner.validate(model, loader(2), verbose=False)
    runner.predict(model, loader(2))
    assert callback.summary is None


def test_a_learning_rate_finder_before_the_fit(lightning: ModuleType, tmp_path: Path) -> None:
    """Its trial batches are not the first training step."""
    model = lit(lightning)
    model.lr = 0.1
    callback = ModelSummaryCallback(verbose=False)
    runner = trainer(lightning, tmp_path, callback)
    found = lightning.tuner.Tuner(runner).lr_find(
        model, train_dataloaders=loader(2, 8), num_training=4, update_attr=False
    )
    assert found is not None
    assert callback.summary is None
    runner.fit(model)
    assert callback.summary is not None
    assert callback.summary.memory.batch == 4 * 3 * 8 * 8 * 4
    assert left_behind(model) == NOTHING


# Faults


HOOKS = {
    "start": ("summarycb.observe", "walk"),
    "observation": ("summarycb_lightning", "_Step"),
    "context": ("summarycb_lightning", "_context"),
    "build": ("summarycb.observe", "build"),
    "show": ("summarycb_lightning", "show"),
    "report": ("summarycb_lightning", "Report"),
    "trackers": ("summarycb_lightning", "wrap"),
}


@pytest.mark.parametrize("fault", list(HOOKS))
def test_a_fault_in_the_callback(monkeypatch: pytest.MonkeyPatch, L: ModuleType, tmp_path: Path, fault: str) -> None:
    """Training goes on bit by bit, and one warning says what happened, once for all batches."""

    def fit(*callbacks: Any) -> Any:
        model = lit(L)
        runner = trainer(L, tmp_path, *callbacks, enable_model_summary=False, logger=L.loggers.CSVLogger(tmp_path))
        runner.fit(model)
        assert left_behind(model) == NOTHING
        return everything(model, runner.optimizers[0], model.losses)

    plain = fit()
    module, name = HOOKS[fault]
    callback = ModelSummaryCallback(verbose=True)
    plant(monkeypatch, importlib.import_module(module), name)
    with pytest.warns(SummaryWarning, match="Planted: on purpose") as caught:
        assert fit(callback) == plain
    assert len([warning for warning in caught if issubclass(warning.category, SummaryWarning)]) == 1


def test_a_tracker_that_fails(L: ModuleType, tmp_path: Path) -> None:
    """The warning comes at the end of the fit, names the tracker, and nothing else is lost."""
    written: list[Any] = []

    class Working(Broken):
        def write(self, report: Any, *, step: int) -> None:
            written.append((report.summary, step))

    model = lit(L)
    callback = ModelSummaryCallback(trackers=[Broken(), Working()], verbose=False)
    with pytest.warns(SummaryWarning, match=r"^the model summary was not written to Broken: Planted: on purpose$"):
        trainer(L, tmp_path, callback).fit(model)
    assert len(model.losses) == 3
    assert written == [(callback.summary, 0)]  # the step that was observed is the first: global step 0


@pytest.mark.parametrize("method", ["wrap", "write"])
def test_a_logger_whose_adapter_fails(
    monkeypatch: pytest.MonkeyPatch, L: ModuleType, tmp_path: Path, method: str
) -> None:
    """The real TensorBoard adapter, broken."""
    from summarycb_tensorboard import TensorBoardTracker

    def planted(*args: Any, **kwargs: Any) -> Any:
        raise Planted("on purpose")

    monkeypatch.setattr(TensorBoardTracker, method, classmethod(planted) if method == "wrap" else planted)
    model = lit(L)
    callback = ModelSummaryCallback(verbose=False)
    with pytest.warns(SummaryWarning, match="Planted: on purpose") as caught:
        trainer(L, tmp_path, callback, logger=L.loggers.TensorBoardLogger(tmp_path)).fit(model)
    assert len([warning for warning in caught if issubclass(warning.category, SummaryWarning)]) == 1
    assert len(model.losses) == 3
    assert callback.summary is not None


# The object


def test_it_is_a_summary_of_both_packages() -> None:
    """So that neither Trainer prints its own table."""
    import lightning.pytorch.callbacks
    import pytorch_lightning.callbacks

    callback = summarycb.ModelSummaryCallback()
    for kind in (
        ModelSummaryCallback,
        lightning.pytorch.callbacks.ModelSummary,
        lightning.pytorch.callbacks.Callback,
        pytorch_lightning.callbacks.ModelSummary,
        pytorch_lightning.callbacks.Callback,
    ):
        assert isinstance(callback, kind)
    assert type(callback).__name__ == "ModelSummaryCallback"


class Mine(ModelSummaryCallback):
    """A user's subclass, with an argument of its own and a hook that calls ours."""

    def __init__(self, tag: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.tag = tag

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.tag += "."


def test_a_subclass(L: ModuleType, tmp_path: Path) -> None:
    callback = Mine("batches", depth=1, verbose=False)
    assert isinstance(callback, Mine)
    trainer(L, tmp_path, callback).fit(lit(L))
    assert callback.tag == "batches..."
    assert callback.summary is not None


def test_a_subclass_that_names_lightnings_callback_too(lightning: ModuleType, tmp_path: Path) -> None:
    """``class C(ModelSummaryCallback, Callback)``, as people write who do not know that it is one."""
    kind: Any = type("Both", (ModelSummaryCallback, lightning.Callback), {})
    callback = kind(verbose=False)
    trainer(lightning, tmp_path, callback, enable_model_summary=False).fit(lit(lightning))
    assert callback.summary is not None


@pytest.mark.parametrize("again", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("after", ["new", "fit"])
def test_a_copy(lightning: ModuleType, tmp_path: Path, again: Callable[[Any], Any], after: str) -> None:
    """As strategies that start processes make it: same arguments, same summary, and it works."""
    callback = Mine("x", depth=2, columns=["params"], verbose=False)
    if after == "fit":
        trainer(lightning, tmp_path, callback, logger=lightning.loggers.TensorBoardLogger(tmp_path)).fit(lit(lightning))
    other = again(callback)
    assert isinstance(other, Mine)
    assert isinstance(other, lightning.callbacks.ModelSummary)
    assert (other.tag, other._depth, other._columns) == (callback.tag, 2, ("params",))
    assert other.summary == callback.summary
    trainer(lightning, tmp_path, other).fit(lit(lightning))
    assert other.summary is not None


def test_a_checkpoint_does_not_hold_it(lightning: ModuleType, tmp_path: Path) -> None:
    """A run can be resumed without the callback: it keeps no state of its own in checkpoints."""
    callback = ModelSummaryCallback(verbose=False)
    runner = trainer(lightning, tmp_path, callback)
    runner.fit(lit(lightning))
    runner.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert [key for key in stored["callbacks"] if "Summary" in key] == []
    resumed = ModelSummaryCallback(verbose=False)
    trainer(lightning, tmp_path, resumed, max_epochs=2).fit(
        lit(lightning), ckpt_path=tmp_path / "last.ckpt", weights_only=False
    )
    assert resumed.summary is not None


@pytest.mark.slow
def test_only_the_lightning_in_use_is_imported() -> None:
    """A user of one package does not pay for the other, and without either the extra is named."""
    code = """
import sys
import lightning.pytorch as L
import summarycb
callback = summarycb.ModelSummaryCallback()
assert isinstance(callback, L.callbacks.ModelSummary)
print("pytorch_lightning" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr
    code = """
import sys
sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
import summarycb
try:
    summarycb.ModelSummaryCallback()
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "lightning is not installed; install it with: pip install 'summarycb[lightning]'", (
        done.stderr
    )


def test_a_name_is_the_trainers_logger_and_one_that_is_none_does_not_stop_the_others(tmp_path: Path) -> None:
    import lightning.pytorch as L
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="", version="run")
    callback = ModelSummaryCallback(trackers=["wandb", "tensorboard"], verbose=False)
    with pytest.warns(
        SummaryWarning, match=r"^the model summary was not written to 'wandb': SummaryError: 'wandb': no W&B"
    ):
        trainer(L, tmp_path, callback, logger=logger).fit(lit(L))
    assert summarycb.load(f"tensorboard:{tmp_path}/run") == callback.summary


def test_a_logger_that_is_given_is_opened_at_the_first_step_and_not_before(tmp_path: Path) -> None:
    """On the ranks above zero it has no run, and on rank zero making one early is not ours to do."""
    import lightning.pytorch as L
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="", version="run")
    callback = ModelSummaryCallback(trackers=[logger], verbose=False)
    assert not (tmp_path / "run").exists()
    trainer(L, tmp_path, callback, logger=False).fit(lit(L))
    assert summarycb.load(f"tensorboard:{tmp_path}/run") == callback.summary


def test_accumulated_gradients_are_said(tmp_path: Path) -> None:
    """The first micro-batch is what is observed; its optimizer has no state yet."""
    import lightning.pytorch as L

    callback = ModelSummaryCallback(verbose=False)
    trainer(L, tmp_path, callback, accumulate_grad_batches=3, logger=False).fit(lit(L))
    assert callback.summary is not None
    assert callback.summary.forward_macs == FORWARD
    assert callback.summary.memory.optimizer_state is None
    assert [note.text for note in callback.summary.notes if note.kind == "optimizer"] == [
        "an optimizer did not step, as in gradient accumulation: its state is unknown"
    ]
