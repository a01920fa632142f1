"""The callback for Lightning Fabric: a model that ``fabric.setup`` returns is summarized as its owner knows it."""

from __future__ import annotations

import copy
import gc
import importlib
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger, TensorBoardLogger
from torch import nn

import summarycb
import summarycb_fabric
from summarycb.errors import SummaryError, SummaryWarning
from summarycb_fabric import ModelSummaryCallback
from tests.test_faults import plant
from tests.trainings import CNN, NOTHING, Case, everything, images, leave_group, left_behind, loss_of

# conv: 4 images x 8 channels x 8 x 8 places x 27; head: 4 x 8 x 5; the input needs no gradient, the head's does
CONVOLUTION, HEAD = 4 * 8 * 64 * 27, 4 * 8 * 5
FORWARD, BACKWARD = CONVOLUTION + HEAD, CONVOLUTION + 2 * HEAD
PATHS = ["", "conv", "norm", "frozen", "drop", "head"]


def train(fabric: Any, model: nn.Module | None = None, accumulate: int = 1) -> dict[str, Any]:
    """Three steps of the CNN, or as many as ``accumulate`` leaves of six batches."""
    torch.manual_seed(0)
    random.seed(0)
    inner = CNN() if model is None else model
    module, optimizer = fabric.setup(inner, torch.optim.SGD(inner.parameters(), lr=0.1, momentum=0.9))
    generator = torch.Generator().manual_seed(1)
    losses = []
    for number in range(3 * accumulate):
        x, y = images(generator)
        with fabric.no_backward_sync(module, enabled=(number + 1) % accumulate != 0):
            loss = loss_of(module(x), y)
            fabric.backward(loss)
        losses.append(loss.detach())
        if (number + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert left_behind(module) == NOTHING
    return everything(module, optimizer.optimizer, losses)


@pytest.mark.parametrize("package", ["lightning.fabric", "lightning_fabric"])
def test_nothing_changes_and_the_summary_is_in_the_run(package: str, tmp_path: Path) -> None:
    """Bitwise, after three steps; what Fabric's logger holds is what was observed."""
    library: ModuleType = importlib.import_module(package)
    logger = importlib.import_module(f"{package}.loggers").TensorBoardLogger(tmp_path, name="", version="run")
    callback = ModelSummaryCallback(verbose=False)
    observed = train(library.Fabric(accelerator="cpu", devices=1, callbacks=[callback], loggers=logger))
    assert observed == train(library.Fabric(accelerator="cpu", devices=1))
    callback.flush()
    (summary,) = callback.summaries
    assert summarycb.load(f"tensorboard:{tmp_path}/run") == summary
    assert summary.incomplete == summary.notes == ()
    assert list(summary.modules) == PATHS
    assert (summary.root.type_name, summary.root.calls) == ("CNN", 1)
    assert (summary.forward_macs, summary.backward_macs) == (FORWARD, BACKWARD)
    known = summary.environment
    assert (known.framework, known.strategy, known.world_size) == ("fabric", "SingleDeviceStrategy", 1)
    assert known.optimizer == "SGD"


def test_gradients_that_accumulate_are_one_step() -> None:
    callback = ModelSummaryCallback(verbose=False)
    train(Fabric(accelerator="cpu", devices=1, callbacks=[callback]), accumulate=2)
    (summary,) = callback.summaries
    assert (summary.forward_macs, summary.root.calls) == (2 * FORWARD, 2)


def test_mixed_precision() -> None:
    """Fabric's autocast begins within the call of what it has wrapped the model in."""
    callback = ModelSummaryCallback(verbose=False)
    observed = train(Fabric(accelerator="cpu", devices=1, precision="bf16-mixed", callbacks=[callback]))
    assert observed == train(Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))
    (summary,) = callback.summaries
    assert summary.environment.precision == "bfloat16 autocast"
    # the weights of convolution and head, at 2 bytes; no backward needs their biases' copies
    assert summary.memory.weight_copies == 2 * (8 * 27 + 8 * 5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler looks at it
def test_a_compiled_model() -> None:
    """Fabric takes the compiled wrapper off, and puts it on again around its own: as many graphs as without us."""
    from torch._dynamo.utils import counters

    def run(*callbacks: Any) -> tuple[Any, ...]:
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        compiled: Any = torch.compile(CNN(), backend="eager")
        trained = train(Fabric(accelerator="cpu", devices=1, callbacks=list(callbacks)), compiled)
        return trained, counters["stats"]["unique_graphs"], dict(counters["frames"])

    callback = ModelSummaryCallback(verbose=False)
    try:
        plain, observed = run(), run(callback)
    finally:
        torch._dynamo.reset()
    assert plain[1] > 0
    assert observed == plain
    (summary,) = callback.summaries
    assert list(summary.modules) == PATHS
    assert (summary.forward_macs, summary.backward_macs) == (FORWARD, BACKWARD)


def test_each_of_several_models_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """A GAN: the judge steps first, yet the summaries are in the order of the set-up."""
    callback = ModelSummaryCallback()
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[callback])
    generator, judge = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1))
    generator, g_step = fabric.setup(generator, torch.optim.Adam(generator.parameters()))
    judge, d_step = fabric.setup(judge, torch.optim.SGD(judge.parameters(), lr=0.1))
    assert callback.summaries == []
    for _ in range(2):
        noise = torch.rand(5, 2)
        fabric.backward(judge(generator(noise).detach()).mean())
        d_step.step()
        d_step.zero_grad()
        fabric.backward(-judge(generator(noise)).mean())
        g_step.step()
        g_step.zero_grad()
    assert left_behind(generator, judge) == NOTHING
    of_generator, of_judge = callback.summaries
    assert [s.environment.optimizer for s in callback.summaries] == ["Adam", "SGD"]
    assert of_judge.root.total.forward_macs == 5 * 3 * 1
    # twice: of the first its output was detached
    assert of_generator.root.total.forward_macs == 2 * (5 * 2 * 3)
    assert [line for line in capsys.readouterr().out.splitlines() if line in ("Linear", "Sequential")] == [
        "Sequential",
        "Linear",
    ]


def test_a_model_that_is_set_up_without_its_optimizer() -> None:
    """``setup_module`` calls no callback; one line does."""
    callback = ModelSummaryCallback(verbose=False)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[callback])
    model = fabric.setup_module(nn.Sequential(nn.Linear(3, 4)))
    fabric.call("on_after_setup", fabric=fabric, module=model)
    optimizer = fabric.setup_optimizers(torch.optim.SGD(model.parameters(), lr=0.1))
    fabric.backward(model(torch.rand(2, 3)).sum())
    optimizer.step()
    fabric.call("flush")
    (summary,) = callback.summaries
    assert summary.forward_macs == 2 * 3 * 4


def test_a_training_that_raises_leaves_nothing_once_it_is_dropped(case: Case) -> None:
    """And the error is the user's own."""
    callback = ModelSummaryCallback(verbose=False)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[callback])
    model, optimizer = case.make()
    model, optimizer = fabric.setup(model, optimizer)
    loss = loss_of(model(case.batches(1)[0][0]), case.batches(1)[0][1])
    loss.register_hook(lambda gradient: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fabric.backward(loss)
    del callback, fabric, model, optimizer, loss
    gc.collect()
    assert left_behind() == NOTHING


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": -1}, "depth must be None"),
        ({"columns": ["weight"]}, "there is no column 'weight'"),
        ({"timeout": "soon"}, "timeout must be a number of seconds"),
        ({"trackers": "tensorboard"}, "trackers must be a list"),
        ({"trackers": ["tensorbord"]}, "unknown tracker 'tensorbord'"),
        ({"trackers": [object()]}, "no tracker takes 'object'"),
    ],
)
def test_a_wrong_argument_raises_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SummaryError, match=message):
        ModelSummaryCallback(**arguments)


@pytest.mark.parametrize("fault", ["open_targets", "watch"])
def test_a_fault_does_not_reach_the_training(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(Fabric(accelerator="cpu", devices=1))
    callback = ModelSummaryCallback(verbose=False)
    plant(monkeypatch, summarycb_fabric, fault)
    with pytest.warns(SummaryWarning, match=r"^the model summary could not be made: Planted: on purpose$"):
        assert train(Fabric(accelerator="cpu", devices=1, callbacks=[callback])) == plain
    assert callback.summaries == []


def test_a_name_is_fabrics_logger_and_one_that_is_none_does_not_stop_the_others(tmp_path: Path) -> None:
    callback = ModelSummaryCallback(trackers=["wandb", "tensorboard"], verbose=False)
    loggers: list[Any] = [CSVLogger(tmp_path), TensorBoardLogger(tmp_path, name="", version="run")]
    train(Fabric(accelerator="cpu", devices=1, callbacks=[callback], loggers=loggers))
    with pytest.warns(SummaryWarning, match=r"^the model summary was not written to 'wandb': 'wandb': "):
        callback.flush()
    assert [summarycb.load(f"tensorboard:{tmp_path}/run")] == callback.summaries


@pytest.mark.parametrize("again", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"])
def test_a_copy(again: Callable[[Any], Any]) -> None:
    """As strategies that start processes make it."""
    callback = again(ModelSummaryCallback(depth=1, columns=["params"], verbose=False))
    train(Fabric(accelerator="cpu", devices=1, callbacks=[callback]))
    assert len(callback.summaries) == 1


def on_two(fabric: Fabric, folder: Path) -> None:
    train(fabric)
    (callback,) = fabric._callbacks
    callback.flush()
    (summary,) = callback.summaries
    summary.save(folder / f"{fabric.global_rank}.json")
    leave_group()


@pytest.mark.slow
def test_two_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each observes, rank zero alone prints and writes, and nobody waits for anybody."""
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    callback = ModelSummaryCallback()
    fabric = Fabric(accelerator="cpu", strategy="ddp_spawn", devices=2, callbacks=[callback], loggers=logger)
    fabric.launch(on_two, tmp_path)
    first, second = (summarycb.load(tmp_path / f"{rank}.json") for rank in range(2))
    assert summarycb.load(f"tensorboard:{tmp_path}/run") == first
    for summary in (first, second):
        assert list(summary.modules) == PATHS
        assert (summary.forward_macs, summary.backward_macs) == (FORWARD, BACKWARD)
        assert (summary.environment.strategy, summary.environment.world_size) == ("DDPStrategy", 2)
    printed = capfd.readouterr().out
    assert printed.count("step    training · cpu · float32 · SGD · fabric · DDPStrategy") == 1
