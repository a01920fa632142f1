"""Items -> icicles: one box for each row, as wide as its part of a metric, below its parent's. Must not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from summarycb import units
from summarycb.fold import Item
from summarycb.render.html.rows import Metric, Row
from summarycb.tree import ModelSummary

MOST_LEVELS = 24
_LEAST = 1 / 1000


@dataclass(frozen=True, slots=True)
class Box:
    """``x`` and ``width`` are in percent, ``level`` counts from the top; ``value`` is of all copies together."""

    x: float
    width: float
    level: int
    row: Row
    value: str
    percent: str


@dataclass(frozen=True, slots=True)
class Icicle:
    """Where a metric's total is. ``partial``: something is unknown, and only what is known has a box."""

    metric: Metric
    boxes: tuple[Box, ...]
    levels: int
    total: str
    partial: bool


def icicle(summary: ModelSummary, metric: Metric, roots: Sequence[Item], rows: Sequence[Row]) -> Icicle | None:
    """The boxes of ``metric``, each at least a thousandth of the whole; None where there is nothing to draw."""
    row_of = {id(row.item): row for row in rows}
    known = _known(metric, rows)
    whole = sum([known[id(root)] for root in roots])
    if not whole:
        return None
    boxes: list[Box] = []
    at = 0
    stack: list[tuple[Item, int, int]] = []
    for root in roots:
        stack.append((root, at, 0))
        at += known[id(root)]
    while stack:
        item, at, level = stack.pop()
        value = known[id(item)]
        if value < whole * _LEAST or level >= MOST_LEVELS:
            continue
        x, width = round(100 * at / whole, 3), round(100 * value / whole, 3)
        boxes.append(Box(x, width, level, row_of[id(item)], metric.text(value), units.percent(value, whole)))
        for child in item.children:
            stack.append((child, at, level + 1))
            at += known[id(child)]
    boxes.sort(key=lambda box: box.row.number)
    partial = metric.whole(summary) is None
    return Icicle(metric, tuple(boxes), 1 + max([box.level for box in boxes]), metric.text(whole), partial)


def _known(metric: Metric, rows: Sequence[Row]) -> Mapping[int, int]:
    """By ``id`` of an item, the sum of all that is known in it, over all its copies."""
    known: dict[int, int] = {}
    for row in reversed(rows):
        own = [metric.own(copy) or 0 for copy in row.item.copies]
        known[id(row.item)] = sum(own) + sum([known[id(child)] for child in row.item.children])
    return known
