"""How long it takes to write a summary of 3,000 modules, and whether that is within what is promised.

    python benchmarks/render.py [RUNS]

The modules are 230 layers of 13, no two of which are equal, so that nothing is folded: the most that there is to write.
Times are of the processor, which a busy machine moves less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from summarycb import ModelSummary, ModuleSummary
from summarycb.specs import ParameterSpec, TensorSpec
from summarycb.step import Environment, Memory
from summarycb.tree import CallGroup, Work

LAYERS, PARTS = 230, 12


def model() -> ModelSummary:
    layers = []
    for i in range(LAYERS):
        parts = tuple(leaf(f"layers.{i}.part{j}", 64 + i) for j in range(PARTS))
        layers.append(ModuleSummary(f"layers.{i}", f"{i}", "Layer", call_groups=called(64, 64, 0), children=parts))
    root = ModuleSummary("", "", "Large", children=(
        ModuleSummary("layers", "layers", "ModuleList", call_groups=(), children=tuple(layers)),
    ), call_groups=called(64, 64, 0))  # fmt: skip
    return ModelSummary(root, Work(0, 0, 0, 0, 0), Memory(0, 0), Environment("benchmark"), 0, observed="step")


def leaf(path: str, width: int) -> ModuleSummary:
    weight = ParameterSpec("weight", (width, 64), "float32", "cpu", True, 4 * width * 64)
    name = path.rpartition(".")[2]
    config = f"in_features=64, out_features={width}"
    return ModuleSummary(path, name, "Linear", config, True, (weight,), (), called(64, width, 128 * 64 * width))


def called(given: int, returned: int, macs: int) -> tuple[CallGroup, ...]:
    x, y = TensorSpec((2, 64, given), "float32", "cpu"), TensorSpec((2, 64, returned), "float32", "cpu")
    work = Work(macs, 2 * macs, 0, 4 * 128 * returned, 0)
    return (CallGroup(1, (x,), y, work, work),)


def main(runs: int) -> int:
    summary = model()
    bounds: dict[str, tuple[Callable[[], str], float]] = {
        "text, every module": (lambda: summary.to_text(depth=None), 0.3),
        "text, as printed": (summary.to_text, 0.3),
        "text, ten that have most": (lambda: summary.to_text(top=10), 0.3),
        "markdown, every module": (lambda: summary.to_markdown(depth=None), 0.3),
    }
    print(f"{len(summary.modules):,} modules, least of {runs} runs\n")
    print("| | s | within | characters |\n|---|--:|--:|--:|")
    late = 0
    for what, (write, bound) in bounds.items():
        least, size = min(timed(write) for _ in range(runs))
        late += least > bound
        print(f"| {what} | {least:.3f} | {bound} | {size:,} |")
    return 1 if late else 0


def timed(write: Callable[[], str]) -> tuple[float, int]:
    began = time.process_time()
    text = write()
    return time.process_time() - began, len(text)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
