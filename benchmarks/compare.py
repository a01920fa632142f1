"""How long it takes to say what changed between two models, and until the command says it.

    python benchmarks/compare.py [RUNS]

Trees of 3,000 and 30,000 modules that are there already, in blocks of nine, edited in the ways below: which module is
which, what changed in each, and the totals, without writing any of it. Every round times each of them once, and `apted`
on small trees of the same making, as it takes seconds at a few hundred modules: medians of the processor's time.

The command compares two stored summaries of a few modules, in new processes beside ones that do nothing, four times a
round: the processor's time too, which is all that it takes on an idle machine. It is run once before: what is compiled
then is kept.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random

from apted import APTED
from apted.helpers import Tree

from summarycb import ModelSummary, compare
from summarycb.specs import ParameterSpec, TensorSpec
from summarycb.step import Environment, Memory
from summarycb.tree import CallGroup, ModuleSummary, Work

WITHIN = {3_000: 0.050, 30_000: 1.0}
COMMAND_WITHIN = 0.100
NOTHING = "`python -c pass`"
SMALL = 180
"""Modules of the trees that are given to apted."""


def linear(path: str, name: str, width: int, trainable: bool) -> ModuleSummary:
    weight = ParameterSpec("weight", (width, 8), "float32", "cpu", trainable, 32 * width)
    work = Work(16 * width, 32 * width, 0, 8 * width, 0)
    calls = CallGroup(1, (TensorSpec((2, 8), "float32", "cpu"),), TensorSpec((2, width), "float32", "cpu"), work, work)
    config = f"in_features=8, out_features={width}"
    return ModuleSummary(f"{path}.{name}", name, "Linear", config, True, (weight,), (), (calls,))


def model(widths: Sequence[int], leaf: str = "fc", name: str = "h", trainable: bool = True) -> ModelSummary:
    """A block of nine modules for each of the widths."""
    blocks = []
    for number, width in enumerate(widths):
        path = f"{name}.{number}"
        layers = tuple(linear(path, f"{leaf}{place}", width, trainable) for place in range(8))
        blocks.append(module(path, "Block", layers))
    return whole(module(name, "ModuleList", blocks))


def module(path: str, type_name: str, children: Iterable[ModuleSummary]) -> ModuleSummary:
    return ModuleSummary(path, path.rpartition(".")[2], type_name, "", True, call_groups=(), children=tuple(children))


def whole(*children: ModuleSummary) -> ModelSummary:
    environment = Environment("0", "0", True, "cpu", "float32")
    return ModelSummary(module("", "Net", children), Work(0, 0, 0, 0, 0), Memory(), environment)


def nested(depth: int, width: int) -> ModelSummary:
    """Each module the only one in the next."""
    path = "inner" + ".inner" * (depth - 1)
    inside = linear(path, "fc", width, True)
    for _ in range(depth):
        inside = module(path, "Shell", [inside])
        path = path.rpartition(".")[0]
    return whole(inside)


def edited(modules: int) -> Iterator[tuple[str, ModelSummary, ModelSummary]]:
    """What was done, and the model before and after."""
    count = modules // 9
    base, distinct = [8] * count, list(range(8, 8 + count))
    yield "themselves", model(base), model(base)
    yield "one block more", model(base), model([*base, 8])
    yield "two of three wider", model(base), model([12 if number % 3 else 8 for number in range(count)])
    yield "all wider", model(base), model([12] * count)
    yield "all leaves renamed", model(base), model(base, leaf="up")
    yield "the list renamed", model(base), model(base, name="layers")
    yield "all frozen", model(base), model(base, trainable=False)
    yield "half of them gone", model(distinct), model(distinct[::2])
    yield "in random order", model(distinct), model(Random(0).sample(distinct, count))
    equal = [linear("h", str(number), 8, True) for number in range(modules + 1)]
    yield "equal leaves, one more", *[whole(module("h", "ModuleList", equal[: modules + more])) for more in (0, 1)]
    depth = min(modules, 500)
    yield f"nested {depth} deep, wider", nested(depth, 8), nested(depth, 12)


def bracketed(module: ModuleSummary) -> str:
    """As apted reads trees; a label is all that makes a module the one that it is."""
    label = f"{module.name} {module.type_name} {module.config}".replace("{", "(").replace("}", ")")
    return "{" + label + "".join(map(bracketed, module.children)) + "}"


def compared(a: ModelSummary, b: ModelSummary) -> None:
    comparison = compare(a, b)
    assert comparison.metrics
    assert comparison.rows is not None


def timed(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def started(arguments: list[str]) -> float:
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, timeout=60, env=environment)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime


def main(runs: int) -> None:
    cases: dict[str, tuple[Callable[[], object], float | None]] = {}
    for modules in (SMALL, *WITHIN):
        for what, a, b in edited(modules):
            cases[f"{modules:,} modules: {what}"] = partial(compared, a, b), WITHIN.get(modules)
    count = SMALL // 9
    trees = [Tree.from_text(bracketed(model(widths).root)) for widths in ([8] * count, [12] * count)]
    apted = f"{SMALL:,} modules: all wider, apted"
    cases[apted] = (lambda: APTED(*trees).compute_edit_distance()), None
    gc.freeze()  # the models of the other cases would not be there
    found: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        stored = [str(model([width]).save(Path(folder, f"{width}.json"))) for width in (8, 12)]
        python, command = sys.executable, str(Path(sys.executable).with_name("summarycb"))
        commands: dict[str, tuple[list[str], float | None]] = {
            NOTHING: ([python, "-c", "pass"], None),
            "`summarycb --version`": ([command, "--version"], COMMAND_WITHIN),
            "`summarycb compare a.json b.json`": ([command, "compare", *stored], COMMAND_WITHIN),
            "`python -m summarycb compare a.json b.json`": (
                [python, "-m", "summarycb", "compare", *stored],
                COMMAND_WITHIN,
            ),
        }
        starts: dict[str, list[float]] = {name: [] for name in commands}
        for arguments, _ in commands.values():
            started(arguments)
        for _ in range(runs):
            for name, (run, _) in cases.items():
                found[name].append(timed(run))
            for name, (arguments, _) in [*commands.items()] * 4:
                starts[name].append(started(arguments))
    medians = {name: statistics.median(times) for name, times in (found | starts).items()}
    bounds = {name: bound for name, (_, bound) in (cases | commands).items()}  # type: ignore[operator]
    print(f"medians of {runs} interleaved runs; apted is given {SMALL} and {SMALL} modules\n")
    print("| | ms | within | ÷ apted, or the process that does nothing |\n|---|--:|--:|--:|")
    for name, median in medians.items():
        bound = bounds[name]
        within = "" if bound is None else f"{1000 * bound:,.0f}"
        ratio = f"{median / medians[NOTHING]:.1f}" if name in starts else f"{median / medians[apted]:.4f}"
        print(f"| {name} | {1000 * median:,.1f} | {within} | {ratio} |")
    late = [name for name, bound in bounds.items() if bound is not None and medians[name] > bound]
    print(f"\n{len(late) or 'none'} over what is promised{': ' if late else ''}{', '.join(late)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
