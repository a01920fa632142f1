"""However often a training is observed, or could not be, nothing grows; ``make soak`` shows it in 10,000 steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import summarycb
from benchmarks.soak import MEMORY, Net, Soak, X, Y, called_back, figures, plain, watched
from summarycb.errors import SummaryWarning
from tests.trainings import everything

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '(train|val|predict)_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),  # Lightning 2.6 on torch 2.13
]


@pytest.mark.slow
@pytest.mark.parametrize("soak", [plain, watched, called_back])
def test_nothing_grows_with_the_observations(soak: Callable[[int, int], Soak]) -> None:
    """In a process of its own, because other tests leave one whose memory goes up and down.

    Its threads share one arena: what glibc keeps of each thread's freed memory was 5 MiB in a run, and 0.2 MiB of one.
    """
    code = (
        "import json, warnings; from benchmarks import soak\n"
        "warnings.simplefilter('ignore')\n"
        f"result = soak.{soak.__name__}(200, 10)\n"
        "print(json.dumps([result.observations, len(result.found), result.grown()]))"
    )
    arenas = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=arenas, capture_output=True, text=True, timeout=240, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0 if soak is plain else 200 // 10, 4, []]


def test_what_grows_is_named() -> None:
    result = Soak(100, 10, found=[{"threads": 1, MEMORY: 1_000}, {"threads": 3, MEMORY: 1_001}])
    assert result.grown() == ["threads: 1 after a quarter of the steps, 3 at the end"]
    result.times = [[1.0, 2.0, 3.0], [2.0], [2.0], [2.0, 3.0, 4.0]]  # the medians: 2 and 3
    assert result.slowed() == ["a step: 2.00 in the first quarter, 3.00 in the last, of what the yardstick takes"]


class OutOfMemory(torch.autograd.Function):
    """Asks for a pebibyte: in the forward, or in the backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, where: str) -> torch.Tensor:
        ctx.where = where
        return x.clone() if where == "backward" else torch.empty(2**48)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return torch.empty(2**48), None


class Head(nn.Linear):
    where: str | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        return x if self.where is None else OutOfMemory.apply(x, self.where)


def of_this_process_alone(found: dict[str, int]) -> dict[str, int]:
    """Without what goes up and down with other tests in the process: memory, and what lazy imports filter."""
    return {name: count for name, count in found.items() if name not in (MEMORY, "warning filters")}


@pytest.mark.parametrize("where", ["forward", "loss", "backward"])
def test_steps_that_run_out_of_memory_leave_nothing(where: str) -> None:
    """The model is trained on: the first step that is made is observed, and only that one."""
    model = Net()
    model.layers[-1] = head = Head(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    hook = summarycb.watch(model, verbose=False)

    def step(fails: bool) -> None:
        optimizer.zero_grad()
        head.where = where if fails and where != "loss" else None
        loss = nn.functional.cross_entropy(model(X), Y)
        if fails and where == "loss":
            torch.empty(2**48)
        loss.backward()
        optimizer.step()

    found = []
    for number in range(200):
        with pytest.raises(RuntimeError, match="allocate memory"):
            step(fails=True)
        if number % 150 == 49:
            found.append(of_this_process_alone(figures(model, optimizer)))
    assert Soak(200, 1, found=found).grown() == []
    step(fails=False)
    assert hook.summary is not None
    assert (hook.summary.observed, hook.summary.incomplete) == ("step", ())
    # 8 rows through layers of 16 x 32 and 32 x 4, once
    assert (hook.summary.root.calls, hook.summary.forward_macs) == (1, 8 * (16 * 32 + 32 * 4))


@pytest.mark.parametrize("end", ["dropped", "closed"])
def test_watches_that_never_fire_leave_nothing(end: str) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    found = []
    for number in range(1_000):
        hook = summarycb.watch(Net() if end == "dropped" else model, verbose=False)
        if end == "closed":
            hook.close()
        del hook
        if number % 900 == 99:
            found.append(figures(model, optimizer))
    assert Soak(1_000, 1, found=found).grown() == []


def test_very_many_watches_on_one_model() -> None:
    """Each is a call around each operation, so that with enough of them Python's stack would end the training."""

    def train(watches: int) -> dict[str, Any]:
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        hooks = [summarycb.watch(model, verbose=False) for _ in range(watches)]
        loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()
        optimizer.step()
        incomplete = [hook.summary.incomplete != () for hook in hooks if hook.summary is not None]
        assert sorted(incomplete) == [False] * min(watches, 16) + [True] * (watches - 16)
        return everything(model, optimizer, [loss])

    expected = train(0)
    with pytest.warns(SummaryWarning, match="16 other observations are running"):
        assert train(600) == expected


def test_what_is_done_at_the_exit_is_done_before_what_others_have_registered() -> None:
    """The newest wish first; one that was taken back not at all; and atexit has one callback for all."""
    code = """
import atexit
from summarycb.exits import at_exit
atexit.register(print, "theirs")
at_exit(lambda: print("ours"))
atexit.register(print, "theirs, later")
for _ in range(100):
    at_exit(lambda: print("taken back"))()
at_exit(lambda: print("ours, later"))
assert atexit._ncallbacks() <= 4  # the place of one that is taken back stays
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["ours, later", "ours", "theirs, later", "theirs"]
