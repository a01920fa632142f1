"""How long it takes to write a summary of 3,000 modules, and whether that is within what is promised.

    python benchmarks/render.py [RUNS]

The model is 214 layers of 14 modules, no two of which are equal, so that nothing is folded: the most that there is to
write, with the dataflow of a real step. Times are of the processor, which a busy machine moves less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import summarycb

LAYERS, PARTS, WIDTH = 214, 12, 64


class Layer(nn.Module):
    """Residual blocks whose width is this layer's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        ends = [(WIDTH, width), (width, WIDTH)]
        self.parts = nn.ModuleList(nn.Linear(*ends[number % 2]) for number in range(PARTS))

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.parts[::2], self.parts[1::2], strict=True):
            x = x + down(up(x).relu())
        return x


def main(runs: int) -> int:
    model = nn.Sequential(*[Layer(WIDTH + number) for number in range(LAYERS)])
    summary = summarycb.summarize(model, (torch.rand(2, WIDTH),), backward=True)
    assert summary.dataflow is not None
    stored = summary.to_json()
    bounds: dict[str, tuple[Callable[[], str], float]] = {
        "text, every module": (lambda: summary.to_text(depth=None), 0.3),
        "text, as printed": (summary.to_text, 0.3),
        "text, ten that have most": (lambda: summary.to_text(top=10), 0.3),
        "Markdown, every module": (lambda: summary.to_markdown(depth=None), 0.3),
        "HTML, every module": (summary.to_html, 1.0),
        "a notebook's fragment": (summary._repr_html_, 1.0),
        "the dataflow as Mermaid": (summary.to_mermaid, 1.0),
    }
    print(
        f"{len(summary.modules):,} modules, {len(summary.dataflow.nodes):,} nodes of dataflow, least of {runs} runs\n"
    )
    print("| | s | within | characters |\n|---|--:|--:|--:|")
    late = 0
    for what, (write, bound) in bounds.items():
        least, size = min(timed(write) for _ in range(runs))
        late += least > bound
        print(f"| {what} | {least:.3f} | {bound} | {size:,} |")
    print(f"\nthe JSON has {len(stored):,} characters; {late or 'none'} over what is promised")
    return 1 if late else 0


def timed(write: Callable[[], str]) -> tuple[float, int]:
    began = time.process_time()
    text = write()
    return time.process_time() - began, len(text)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
