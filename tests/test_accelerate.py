"""watch() for accelerate: its trackers, its wrapped optimizers and models, and its gradients that accumulate."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

import summarycb
import summarycb_accelerate
from summarycb.errors import SummaryError, SummaryWarning
from tests.test_faults import plant
from tests.trainings import CNN, NOTHING, everything, images, left_behind, loss_of

ROOT = Path(__file__).parent.parent
# conv: 4 images x 8 channels x 8 x 8 places x 27; head: 4 x 8 x 5; the input needs no gradient, the head's does
CONVOLUTION, HEAD = 4 * 8 * 64 * 27, 4 * 8 * 5
FORWARD, BACKWARD = CONVOLUTION + HEAD, CONVOLUTION + 2 * HEAD
PATHS = ["", "conv", "norm", "frozen", "drop", "head"]


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """An Accelerator's settings are those of the first of the process."""
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


def accelerator(**arguments: Any) -> Any:
    AcceleratorState._reset_state()
    return Accelerator(cpu=True, **arguments)


def train(runner: Any, watched: str | None = None, named: bool = False, **settings: Any) -> tuple[Any, Any]:
    """Three steps, or as many as the accumulation leaves of six batches; ``watched`` before or after ``prepare``."""
    torch.manual_seed(0)
    random.seed(0)
    inner = CNN()
    given: torch.optim.Optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    hook = None

    def watch(when: str, model: Any, optimizer: Any) -> None:
        nonlocal hook
        if watched == when:
            hook = summarycb_accelerate.watch(runner, model, optimizer if named else None, verbose=False, **settings)

    watch("before", inner, given)
    model, optimizer = runner.prepare(inner, given)
    watch("after", model, optimizer)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(3 * runner.gradient_accumulation_steps):
        x, y = images(generator)
        with runner.accumulate(model):
            loss = loss_of(model(x), y)
            losses.append(loss.detach())
            runner.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    assert left_behind(model) == NOTHING
    return everything(inner, given, losses), hook


@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
@pytest.mark.parametrize("watched", ["before", "after"])
def test_nothing_changes(watched: str, named: bool) -> None:
    """Bitwise. A plain SGD has no state, which is known only of the optimizer that accelerate's wrapper holds."""
    observed, hook = train(accelerator(), watched, named)
    assert observed == train(accelerator())[0]
    summary = hook.summary
    assert summary.incomplete == summary.notes == ()
    assert list(summary.modules) == PATHS
    assert (summary.forward_macs, summary.backward_macs) == (FORWARD, BACKWARD)
    assert summary.memory.optimizer_state == 0
    known = summary.environment
    assert (known.framework, known.strategy, known.world_size) == ("accelerate", "DistributedType.NO", 1)
    assert (known.optimizer, known.precision) == ("SGD", "float32")


@pytest.mark.parametrize("watched", ["before", "after"])
def test_gradients_that_accumulate_in_mixed_precision(watched: str) -> None:
    """Both batches are the step; accelerate's autocast begins within the model's own forward."""
    arguments = {"mixed_precision": "bf16", "gradient_accumulation_steps": 2}
    observed, hook = train(accelerator(**arguments), watched)
    assert observed == train(accelerator(**arguments))[0]
    assert (hook.summary.forward_macs, hook.summary.root.calls) == (2 * FORWARD, 2)
    assert hook.summary.environment.precision == "bfloat16 autocast"
    # the weights of convolution and head, at 2 bytes; no backward needs their biases' copies
    assert hook.summary.memory.weight_copies == 2 * (8 * 27 + 8 * 5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler looks at it
def test_a_compiled_model() -> None:
    """As many graphs as without us, and bitwise the same training."""
    from torch._dynamo.utils import counters

    def run(watched: str | None) -> tuple[Any, Any]:
        torch._dynamo.reset()
        counters.clear()
        trained, hook = train(accelerator(dynamo_backend="eager"), watched)
        return (trained, counters["stats"]["unique_graphs"], dict(counters["frames"])), hook

    try:
        (plain, _), (observed, hook) = run(None), run("after")
    finally:
        torch._dynamo.reset()
    assert plain[1] > 0
    assert observed == plain
    assert list(hook.summary.modules) == PATHS
    assert (hook.summary.forward_macs, hook.summary.backward_macs) == (FORWARD, BACKWARD)


@pytest.mark.parametrize("trackers", ["auto", ["tensorboard"], ["wandb", "tensorboard"]], ids=str)
def test_the_accelerators_trackers(trackers: Any, tmp_path: Path) -> None:
    """What ``init_trackers`` has begun; a name is the one of that kind, and what is not there stops nobody."""
    runner = accelerator(log_with="tensorboard", project_dir=str(tmp_path))
    runner.init_trackers("run")
    _, hook = train(runner, "after", trackers=trackers)
    if "wandb" in trackers:
        with pytest.warns(SummaryWarning, match=r"^the model summary was not written to 'wandb': "):
            hook.flush()
    else:
        hook.flush()
    runner.end_training()
    assert summarycb.load(f"tensorboard:{tmp_path}/run") == hook.summary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accelerator": object()}, "accelerator must be an accelerate.Accelerator, not object"),
        ({"model": CNN}, "model must be a torch.nn.Module, not the class CNN"),
        ({"optimizer": 0.1}, "optimizer must be a torch.optim.Optimizer"),
        ({"depth": "all"}, "depth must be None"),
        ({"columns": ["weight"]}, "there is no column 'weight'"),
        ({"timeout": None}, "timeout must be a number of seconds"),
        ({"trackers": "tensorboard"}, "trackers must be a list"),
        ({"trackers": [object()]}, "no tracker takes 'object'"),
    ],
)
def test_a_wrong_argument_raises_at_once(arguments: dict[str, Any], message: str) -> None:
    model = CNN()
    with pytest.raises(SummaryError, match=message):
        summarycb_accelerate.watch(**{"accelerator": accelerator(), "model": model} | arguments)
    assert left_behind(model) == NOTHING


@pytest.mark.parametrize(("where", "fault"), [("watch", "Observation"), ("deliver", "Report")])
def test_a_fault_does_not_reach_the_training(where: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = train(accelerator())
    plant(monkeypatch, sys.modules[f"summarycb.{where}"], fault)
    with pytest.warns(SummaryWarning, match=r"^the model summary could not be .*: Planted: on purpose$"):
        observed, _ = train(accelerator(), "after")
    assert observed == plain


SCRIPT = """
import sys
import torch
from accelerate import Accelerator
import summarycb_accelerate
from tests.trainings import CNN, images, leave_group, loss_of

torch.set_num_threads(1)
folder = sys.argv[1]
accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=folder)
accelerator.init_trackers("run")
torch.manual_seed(0)
model = CNN()
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
hook = summarycb_accelerate.watch(accelerator, model)
generator = torch.Generator().manual_seed(accelerator.process_index)
for _ in range(2):
    x, y = images(generator)
    accelerator.backward(loss_of(model(x), y))
    optimizer.step()
    optimizer.zero_grad()
hook.flush()
hook.summary.save(f"{folder}/{accelerator.process_index}.json")
leave_group()
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Each observes, rank zero alone has a run, prints and writes, and nobody waits for anybody."""
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")])},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (summarycb.load(tmp_path / f"{rank}.json") for rank in range(2))
    assert summarycb.load(f"tensorboard:{tmp_path}/run") == first
    for summary in (first, second):
        assert list(summary.modules) == PATHS
        assert (summary.forward_macs, summary.backward_macs) == (FORWARD, BACKWARD)
        assert (summary.environment.strategy, summary.environment.world_size) == ("DistributedType.MULTI_CPU", 2)
    heading = "step    training · cpu · float32 · SGD · accelerate · DistributedType.MULTI_CPU"
    assert done.stdout.count(heading) == 1
