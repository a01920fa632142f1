"""A long training that is observed again and again: nothing may grow with the observations, and no step become slower.

    python benchmarks/soak.py [--steps 10000] [--every 100]

Three trainings, one after the other: nothing observed, ``summarycb.watch`` anew every 100 steps, and a
``ModelSummaryCallback`` that is armed again every 100 batches; the last two write to TensorBoard. The status is 1 when
something has grown, with the reason.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import gc
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import summarycb
from summarycb.exits import at_exit

MEMORY, OBJECTS = "resident memory, KiB", "Python objects"
MOST_GROWN = {MEMORY: 8192, OBJECTS: 100}
"""What an allocator and the interpreter may keep, however many observations there were; of all else, nothing."""
MOST_SLOWED = 1.25
QUARTERS = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


X, Y = torch.randn(8, 16), torch.zeros(8, dtype=torch.long)
WEIGHT = torch.randn(16, 16, requires_grad=True)


def yardstick() -> float:
    """Seconds of work that no hook and no optimizer has a part in: how fast the machine is just now."""
    start = time.perf_counter()
    x = X
    for _ in range(8):
        x = x @ WEIGHT
    torch.autograd.grad(x.sum(), WEIGHT)
    return time.perf_counter() - start


def figures(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """How much there is of everything that an observation could leave, when what it has begun is over."""
    for thread in threading.enumerate():
        if thread.name.startswith("summarycb"):
            thread.join(60)
    at_exit(lambda: None)()  # moves behind what a lazy import has registered: that is a place of atexit's, left behind
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps of the threads' freed memory goes up and down by 10 MB
    hooks = {name for name in vars(nn.Module()) if name.endswith("_hooks")}
    return {
        MEMORY: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024,
        OBJECTS: len(gc.get_objects()),
        "hooks on modules": sum(len(vars(module)[name]) for module in model.modules() for name in hooks),
        "hooks of the process": sum(len(hooks) for hooks in _of_the_process()),
        "hooks on the optimizer": sum(len(hooks) for name, hooks in vars(optimizer).items() if name.endswith("_hooks")),
        "dispatch modes": len(_get_current_dispatch_mode_stack()),
        "threads": threading.active_count(),
        "exit callbacks": atexit._ncallbacks(),
        "open files": _open_files(),
        "callbacks of the collector": len(gc.callbacks),
        "warning filters": len(warnings.filters),
    }


def _open_files() -> int:
    """Without fonts: matplotlib keeps up to 64 of them open, two for each thread that has drawn."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself is closed by now
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum("/mpl-data/fonts/" not in target for target in found)


def _of_the_process() -> list[dict[Any, Any]]:
    """The hooks that torch has for every module and every optimizer."""
    names = [*vars(torch_module).items(), *vars(torch_optimizer).items()]
    return [hooks for name, hooks in names if name.startswith("_global_") and isinstance(hooks, dict)]


@dataclass
class Soak:
    """One long training: what there was at the end of each quarter, and how long the steps without observation took."""

    steps: int
    every: int
    observations: int = 0
    found: list[dict[str, int]] = field(default_factory=list)
    times: list[list[float]] = field(default_factory=lambda: [[] for _ in range(QUARTERS)])
    _began: float = 0.0

    def step_begins(self) -> None:
        self._began = time.perf_counter()

    def step_ends(self, number: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """``number`` counts from 0; a step with an observation is not timed, nor is the one right after it."""
        seconds = time.perf_counter() - self._began
        if number % self.every > 1:
            self.times[number * QUARTERS // self.steps].append(seconds / yardstick())
        if (number + 1) % (self.steps // QUARTERS) == 0:
            self.found.append(figures(model, optimizer))

    @property
    def pace(self) -> list[float]:
        """How long a step took in each quarter, the median, measured by what else the machine did at that moment."""
        return [statistics.median(times) for times in self.times]

    def grown(self) -> list[str]:
        """What there is more of after the last quarter than after the first."""
        first, last = self.found[0], self.found[-1]
        return [
            f"{name}: {first[name]:,} after a quarter of the steps, {last[name]:,} at the end"
            for name in first
            if last[name] - first[name] > MOST_GROWN.get(name, 0)
        ]

    def slowed(self) -> list[str]:
        """Whether the steps of the last quarter took longer than those of the first."""
        first, *_, last = self.pace
        said = f"a step: {first:.2f} in the first quarter, {last:.2f} in the last, of what the yardstick takes"
        return [said] if last > MOST_SLOWED * first else []


def plain(steps: int, every: int) -> Soak:
    """The same loop with nothing observed: what grows here is not ours."""
    return _loop(steps, every, lambda model, optimizer: None)


def watched(steps: int, every: int) -> Soak:
    """``summarycb.watch`` on the same model and optimizer, anew every so many steps, and never closed."""
    with tempfile.TemporaryDirectory() as folder:

        def watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> summarycb.Watch:
            return summarycb.watch(model, optimizer, trackers=[f"tensorboard:{folder}"], verbose=False)

        return _loop(steps, every, watch)


def _loop(steps: int, every: int, watch: Callable[[nn.Module, torch.optim.Optimizer], Any]) -> Soak:
    soak, model = Soak(steps, every), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for number in range(steps):
        hook = watch(model, optimizer) if number % every == 0 else None
        soak.step_begins()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        soak.observations += hook is not None and hook.summary is not None
        soak.step_ends(number, model, optimizer)
    return soak


def called_back(steps: int, every: int) -> Soak:
    """A ``ModelSummaryCallback`` in one fit of Lightning's, armed again every so many batches."""
    import lightning.pytorch as L

    soak = Soak(steps, every)

    class Lit(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)

    class Arm(L.Callback):
        """Stands before the callback in the list: it arms it for the batch that is about to start."""

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
            if number % every == 0:
                callback.summary = None
                callback.arm()
            soak.step_begins()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
            soak.step_ends(number, module, trainer.optimizers[0])

    class Count(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
            soak.observations += number % every == 0 and callback.summary is not None

    with tempfile.TemporaryDirectory() as folder:
        callback = summarycb.ModelSummaryCallback(trackers=[f"tensorboard:{folder}"], verbose=False)
        L.Trainer(
            callbacks=[Arm(), callback, Count()], max_epochs=1, accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, default_root_dir=folder,
        ).fit(Lit(), torch.utils.data.DataLoader(list(repeat((X, Y), steps)), batch_size=None))  # fmt: skip
    return soak


SOAKS = {"nothing observed": plain, "watch() anew": watched, "ModelSummaryCallback.arm()": called_back}


def show(name: str, soak: Soak) -> None:
    title = f"{name}: {soak.observations} observations in {soak.steps:,} steps"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("after")
    for quarter in range(QUARTERS):
        table.add_column(f"{(quarter + 1) * soak.steps // QUARTERS:,}", justify="right")
    for figure in soak.found[0]:
        table.add_row(figure, *[f"{found[figure]:,}" for found in soak.found])
    table.add_row("a step between ÷ yardstick", *[f"{pace:.2f}" for pace in soak.pace])
    Console(width=None if sys.stdout.isatty() else 120).print(table, "", sep="\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether anything grows with the observations of a long training.")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=100, help="steps from one observation to the next")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)  # the model is tiny
    reasons = []
    for name, run in SOAKS.items():
        soak = run(options.steps, options.every)
        show(name, soak)
        expected = 0 if run is plain else len(range(0, options.steps, options.every))
        if soak.observations != expected:
            reasons.append(f"{name}: {soak.observations} observations instead of {expected}")
        reasons += [f"{name}: {reason}" for reason in soak.grown() + soak.slowed()]
    print("\n".join(reasons) or "nothing has grown")
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
