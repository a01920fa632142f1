"""Items -> icicles: a box for each row, as wide as its part of a metric, below its parent's. Must not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from summarycb import units
from summarycb.columns import Column
from summarycb.fold import Item
from summarycb.render.html.rows import Row
from summarycb.tree import ModelSummary

MOST_LEVELS = 24
_LEAST = 1 / 1000
_CHARACTER = 0.75
"""Of a text, in percent of a page of the usual width; the page measures as it zooms."""


@dataclass(frozen=True, slots=True)
class Box:
    """``x`` and ``width`` are in percent, ``level`` counts from the top; ``value`` is of all copies together."""

    x: float
    width: float
    level: int
    row: Row
    value: str
    percent: str

    @property
    def label(self) -> str:
        """What it is called, and how often it repeats."""
        return self.row.item.label + (f" ×{self.row.item.times}" if self.row.item.times > 1 else "")

    @property
    def room(self) -> int:
        """For how much there is room: 0 for nothing, 1 for the label, 2 for the percentage too."""
        characters = self.width / _CHARACTER - 2
        return sum([len(text) <= characters for text in (self.label, f"{self.label} {self.percent} %")])


@dataclass(frozen=True, slots=True)
class Icicle:
    """Where a metric's total is. ``partial``: something is unknown, and only what is known has a box."""

    metric: Column
    boxes: tuple[Box, ...]
    levels: int
    total: str
    partial: bool


def icicle(summary: ModelSummary, metric: Column, roots: Sequence[Item], rows: Sequence[Row]) -> Icicle:
    """The boxes of ``metric``, each at least a thousandth of the whole; none where all of it is 0."""
    row_of = {id(row.item): row for row in rows}
    known = _known(summary, metric, rows)
    whole = sum([known[id(root)] for root in roots])
    boxes: list[Box] = []
    at = 0
    stack: list[tuple[Item, int, int]] = []
    for root in roots:
        stack.append((root, at, 0))
        at += known[id(root)]
    while stack:
        item, at, level = stack.pop()
        value = known[id(item)]
        if not value or value < whole * _LEAST or level >= MOST_LEVELS:
            continue
        x, width = round(100 * at / whole, 3), round(100 * value / whole, 3)
        boxes.append(Box(x, width, level, row_of[id(item)], metric.cell([value]), units.percent(value, whole)))
        for child in item.children:
            stack.append((child, at, level + 1))
            at += known[id(child)]
    boxes.sort(key=lambda box: box.row.number)
    partial = metric.total(summary) is None
    return Icicle(metric, tuple(boxes), 1 + max([box.level for box in boxes], default=0), metric.cell([whole]), partial)


def _known(summary: ModelSummary, metric: Column, rows: Sequence[Row]) -> Mapping[int, int]:
    """By ``id`` of an item, the sum of all that is known in it, over all its copies."""
    known: dict[int, int] = {}
    for row in reversed(rows):
        copies = row.item.copies
        figures = [metric.value(copy, summary) for copy in copies]
        if None in figures or not copies:
            own = [metric.value(replace(copy, children=()), summary) or 0 for copy in copies]
            known[id(row.item)] = sum(own) + sum([known[id(child)] for child in row.item.children])
        else:
            known[id(row.item)] = sum(figures)
    return known
