"""How long it takes to write a summary of 3,000 modules, and whether that is within what is promised.

    python benchmarks/render.py [RUNS]

The model is 250 blocks of 12 modules, no two of which are equal, so that nothing is folded: the most that there is to
write, with the dataflow of a real step. Times are of the processor, which a busy machine moves less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import summarycb

LAYERS, WIDTH = 250, 64


class Block(nn.Module):
    """A transformer's, of a width of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = nn.Linear(WIDTH, width), nn.Linear(WIDTH, width), nn.Linear(WIDTH, width)
        self.out, self.dropout1 = nn.Linear(width, WIDTH), nn.Dropout(0.1)
        self.up, self.act, self.down = nn.Linear(WIDTH, 2 * width), nn.GELU(), nn.Linear(2 * width, WIDTH)
        self.dropout2 = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        h = F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h))
        x = x + self.dropout1(self.out(h))
        return x + self.dropout2(self.down(self.act(self.up(self.norm2(x)))))


def main(runs: int) -> None:
    model = nn.Sequential(*[Block(8 + number) for number in range(LAYERS)])
    summary = summarycb.summarize(model, (torch.rand(2, 16, WIDTH),), backward=True)
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


def timed(write: Callable[[], str]) -> tuple[float, int]:
    began = time.process_time()
    text = write()
    return time.process_time() - began, len(text)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
