"""What observing a training step costs, as ratios within one interleaved run, and what a very large model costs.

    python benchmarks/step.py [--quick] [--repeats N] [--device cuda] [--write]

Each repetition runs every way to run the step once, in an order that rotates, and each ratio is taken within its
repetition, so that a machine that is slow for a while is slow for all of them. The plain step has a model of its own
that nothing ever observed: "a later step" is compared with that. The optimizer state exists before the clock starts.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import platform
import statistics
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchinfo
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
)

import summarycb
from summarycb import serialize

RESULTS = Path(__file__).with_name("RESULTS.md")
PLAIN, OBSERVED, LATER, NULL = "plain step", "observed step", "a later step", "null dispatch mode"
TORCHINFO, FLOPS, MEMORY = "torchinfo, its extra forward", "FlopCounterMode", "MemTracker"
TINY_TIMES = 3
"""Repetitions of the short steps of tiny operations, for each of the others'."""
ROW_COUNTS = (100, 1_000, 10_000)


@dataclass
class Trainer:
    """A model, its optimizer and one batch."""

    model: nn.Module
    inputs: dict[str, torch.Tensor]

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)

    def step(self) -> None:
        self.model(**self.inputs)["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], Trainer]
    tiny: bool = False
    """A step of thousands of tiny operations: the cost of each is shown too, and one thread does it.

    More threads make no such step faster, and on a busy machine they wait for each other at every operation.
    """


class Cells(nn.Module):
    """One LSTM cell, called once for each position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, width)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.cell(x[0])
        for position in x[1:]:
            state = self.cell(position, state)
        return {"loss": state[0].sum()}


def tokens(batch: int, length: int, vocabulary: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(vocabulary, (batch, length))
    return {"input_ids": ids, "labels": ids}


def resnet50() -> Trainer:
    inputs = {"pixel_values": torch.randn(4, 3, 224, 224), "labels": torch.zeros(4, dtype=torch.long)}
    return Trainer(ResNetForImageClassification(ResNetConfig()), inputs)


def bert() -> Trainer:
    return Trainer(BertForMaskedLM(BertConfig()), tokens(2, 128, 30522))


def gpt2() -> Trainer:
    return Trainer(GPT2LMHeadModel(GPT2Config()), tokens(2, 128, 50257))


def cells() -> Trainer:
    return Trainer(Cells(64), {"x": torch.randn(200, 8, 64)})


def mamba() -> Trainer:
    config = MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=256)
    return Trainer(MambaForCausalLM(config), tokens(2, 128, 256))


CASES = (
    Case("ResNet-50, batch 4, 224 px", resnet50),
    Case("BERT-base, batch 2, 128 tokens", bert),
    Case("GPT-2 small, batch 2, 128 tokens", gpt2),
    Case("LSTMCell called 200 times", cells, tiny=True),
    Case("Mamba slow path, 2 layers, 128 tokens", mamba, tiny=True),
)


class NullMode(TorchDispatchMode):
    """Sees every operation and does nothing but count: the least that any dispatch mode costs."""

    ops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as ours: torch's guard would be a part of the price

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Timings:
    """Seconds of each way to run the step, one for each repetition."""

    case: Case
    ops: int
    seconds: dict[str, list[float]]

    def ratios(self, above: str, below: str) -> list[float]:
        return [a / b for a, b in zip(self.seconds[above], self.seconds[below], strict=True)]

    def added(self, way: str) -> float:
        """Seconds that are spent beside the plain step."""
        plain = self.seconds[PLAIN]
        if way == TORCHINFO:
            return statistics.median(self.seconds[way])
        return statistics.median([a - b for a, b in zip(self.seconds[way], plain, strict=True)])

    def rows(self) -> list[list[str]]:
        found = []
        for way, seconds in self.seconds.items():
            ratios = self.ratios(way, PLAIN)
            spread = "" if way == PLAIN else f"{min(ratios):.2f} to {max(ratios):.2f}"
            added = "" if way == PLAIN else f"{self.added(way) * 1e3:+,.1f}"
            per_op = f"{self.added(way) / self.ops * 1e6:+.1f}" if self.case.tiny and way != PLAIN else ""
            against = "" if way == OBSERVED else f"{statistics.median(self.ratios(OBSERVED, way)):.2f}"
            time_ms = f"{statistics.median(seconds) * 1e3:,.1f}"
            fastest = f"{min(seconds) / min(self.seconds[PLAIN]):.2f}"
            found.append([way, time_ms, f"{statistics.median(ratios):.2f}", spread, fastest, added, per_op, against])
        return found


STEP_HEAD = ("", "median ms", "÷ plain", "spread", "fastest", "adds ms", "adds µs an op", "observed ÷ it")


def time_case(case: Case, repeats: int) -> Timings:
    torch.manual_seed(0)
    untouched, ours, theirs = case.build(), case.build(), case.build()

    def observed() -> None:
        with summarycb.observe(ours.model) as observation:
            ours.step()
        assert observation.summary is not None

    def null() -> None:
        with NullMode():
            theirs.step()

    def torchinfo_forward() -> None:
        torchinfo.summary(theirs.model, input_data=theirs.inputs, mode="train", verbose=0)

    def flops() -> None:
        with FlopCounterMode(display=False):
            theirs.step()

    def memory() -> None:
        tracker = MemTracker()  # one tracks one step only
        tracker.track_external(theirs.model, theirs.optimizer)
        with tracker:
            theirs.step()

    ways = {
        PLAIN: untouched.step,
        OBSERVED: observed,
        LATER: ours.step,
        NULL: null,
        TORCHINFO: torchinfo_forward,
        FLOPS: flops,
        MEMORY: memory,
    }
    for trainer in (untouched, ours, theirs):
        trainer.step()
    for run in ways.values():
        run()
    with NullMode() as counter:
        theirs.step()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    names = list(ways)
    for repeat in range(repeats):
        turn = repeat % len(names)
        for way in names[turn:] + names[:turn]:
            seconds[way].append(clock(ways[way])[0])
    return Timings(case, counter.ops, seconds)


def wait() -> None:
    """Until an accelerator has done what it was told."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


def clock(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and the result; what an earlier run left to the garbage collector is not on this one's bill."""
    gc.collect()
    wait()
    start = time.perf_counter()
    result = run()
    wait()
    return time.perf_counter() - start, result


def tree_model(modules: int, width: int = 4) -> nn.Module:
    """``modules`` modules in three levels, ten in each block."""
    return nn.Sequential(*[nn.Sequential(*[nn.Linear(width, width) for _ in range(9)]) for _ in range(modules // 10)])


LARGE_HEAD = ("modules", "forward", "observed forward", "structure", "text", "JSON", "read JSON", "adds+text+JSON")


def time_large(modules: int, repeats: int) -> list[float]:
    """Seconds, in the order of ``LARGE_HEAD``; text is every row."""
    model, x = tree_model(modules), torch.randn(1, 4)

    def observed() -> summarycb.ModelSummary:
        with summarycb.observe(model) as observation:
            model(x)
        assert observation.summary is not None
        return observation.summary

    samples = []
    for _ in range(repeats + 1):
        forward, _ = clock(lambda: model(x))
        observing, summary = clock(observed)
        structure, _ = clock(lambda: summarycb.summarize(model))
        text, _ = clock(lambda: summary.to_text(depth=None))  # noqa: B023  (called at once)
        dump, document = clock(lambda: serialize.dumps(summary))  # noqa: B023
        load, again = clock(lambda: serialize.loads(document))  # noqa: B023
        assert again == summary
        total = observing - forward + text + dump
        samples.append([forward, observing, structure, text, dump, load, total])
    return [statistics.median(column) for column in zip(*samples[1:], strict=True)]  # the first warms up


def large_rows(repeats: int) -> list[list[str]]:
    seconds = [time_large(count, repeats) for count in ROW_COUNTS]
    rows = [[f"{n:,}", *[f"{s * 1e3:,.1f} ms" for s in line]] for n, line in zip(ROW_COUNTS, seconds, strict=True)]
    for small, large, line, more in zip(ROW_COUNTS, ROW_COUNTS[1:], seconds, seconds[1:], strict=False):
        growth = [f"x {b / a:.1f}" for a, b in zip(line, more, strict=True)]
        rows.append([f"{small:,} to {large:,}, x {large // small}", *growth])
    return rows


class Ops(nn.Module):
    """Tiny operations in one call."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = x * 1.5
        return x


class CallsOf(nn.Module):
    """Calls of one module."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.inner, self.times = nn.Identity(), times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = self.inner(x)
        return x


HELD_HEAD = ("", *[f"{count:,}" for count in (100, 1_000, 10_000)])


def held(model: nn.Module) -> int:
    """Bytes of Python's that an observation holds when a forward is over, before its summary is made."""
    x = torch.ones(2)
    with torch.no_grad():
        summarycb.summarize(model, (x,))  # what is made once and stays
        observation = summarycb.observe(model)
        tracemalloc.start()
        with observation:
            model(x)
            gc.collect()
            size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return size


def held_rows() -> list[list[str]]:
    kinds = {"operations in one call": Ops, "calls of one module": CallsOf}
    rows = [
        [name, *[f"{held(kind(count)) / 1024:,.0f} KiB" for count in (100, 1_000, 10_000)]]
        for name, kind in kinds.items()
    ]
    return [*rows, ["modules", *[f"{held(tree_model(count, 2)) / 1024:,.0f} KiB" for count in (100, 1_000, 10_000)]]]


def machine() -> str:
    cpu = platform.processor() or "an unknown CPU"
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    if torch.get_default_device().type == "cuda":
        cpu = f"{torch.cuda.get_device_name()} beside {cpu}"
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 140
    Console(width=width).print(table, "", sep="\n")


def markdown(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["---", *["---:"] * (len(head) - 1)]
    return f"### {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in (head, align, *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description="What observing a training step costs, as ratios of one run.")
    parser.add_argument("--repeats", type=int, help="repetitions of every way to run the step (9; 3 with --quick)")
    parser.add_argument("--quick", action="store_true", help="3 repetitions")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} beside this file")
    parser.add_argument("--only", default="", help="only the models whose name contains this")
    parser.add_argument("--device", default="cpu", help="where the models train")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write keeps the results of all models; leave --only out")
    torch.set_default_device(options.device)
    repeats: int = options.repeats or (3 if options.quick else 9)
    logging.disable(logging.WARNING)  # transformers recommends faster kernels for the slow path we want
    warnings.filterwarnings("ignore", module="torch")

    about = (
        f"{machine()}.\n\nMedians of {repeats} interleaved repetitions ({repeats * TINY_TIMES}, on one thread, of "
        "the steps of tiny operations) of a training step: forward, backward, AdamW, random weights. Ratios are taken "
        'within a repetition, the spread is their least and greatest; "fastest" is the fastest of all over the fastest '
        "plain step, which a busy machine moves less. torchinfo's row is its extra forward alone: it comes on top."
    )
    before, threads = load(), torch.get_num_threads()
    print(about, flush=True)
    tables: list[tuple[str, Sequence[str], list[list[str]]]] = []
    for case in CASES:
        if options.only.lower() in case.name.lower():
            started = time.perf_counter()
            torch.set_num_threads(1 if case.tiny else threads)
            timings = time_case(case, repeats * (TINY_TIMES if case.tiny else 1))
            tables.append((f"{case.name} ({timings.ops:,} operations)", STEP_HEAD, timings.rows()))
            show(*tables[-1])
            print(f"{case.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
            del timings
            gc.collect()
    if not options.only:
        title = "Large models: one forward of nested Sequentials, the summary, its text (all rows) and JSON"
        tables.append((title, LARGE_HEAD, large_rows(min(repeats, 5))))
        show(*tables[-1])
        tables.append(("Memory that an observation holds, by how much it has seen", HELD_HEAD, held_rows()))
        show(*tables[-1])
    cores = os.cpu_count()
    noise = f"Load of the machine: {before} at the start, {load()} at the end; a quiet one ends near 1 to {cores}."
    print(noise)
    if options.write:
        parts = ["# What observing costs", "Written by `python benchmarks/step.py --write`.", about, noise]
        parts += [markdown(*table) for table in tables]
        RESULTS.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        print(f"written: benchmarks/{RESULTS.name}")


if __name__ == "__main__":
    main()
