"""Items -> icicles: a box for each row, as wide as its part of a metric, below its parent's. Must not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol, Self, TypeAlias, TypeVar

from summarycb import units
from summarycb.columns import Column
from summarycb.fold import Item
from summarycb.render.html.rows import Row
from summarycb.tree import ModelSummary

Amount: TypeAlias = int | Fraction
MOST_LEVELS = 24
_LEAST = 1 / 1000
_CHARACTER = 0.75
"""Of a text, in percent of a page of the usual width; the page measures as it zooms."""


class Nested(Protocol):
    """What has a box: how often it repeats, and what is in it."""

    @property
    def label(self) -> str:
        """What it is called."""

    @property
    def times(self) -> int:
        """How often it repeats."""

    @property
    def children(self) -> Sequence[Self]:
        """What is in it."""


class Shown(Protocol):
    """The row that a box belongs to."""

    @property
    def number(self) -> int:
        """Its place among all rows."""

    @property
    def item(self) -> Nested:
        """What it stands for."""


N = TypeVar("N", bound=Nested)


@dataclass(frozen=True, slots=True)
class Box:
    """``x`` and ``width`` are in percent, ``level`` counts from the top; ``value`` is of all copies together.

    ``kind`` is the class that colours it.
    """

    x: float
    width: float
    level: int
    row: Shown
    value: str
    percent: str
    kind: str

    @property
    def label(self) -> str:
        """What it is called, and how often it repeats."""
        return self.row.item.label + (f" ×{self.row.item.times}" if self.row.item.times > 1 else "")

    @property
    def room(self) -> int:
        """For how much there is room: 0 for nothing, 1 for the label, 2 for the percentage too."""
        characters = self.width / _CHARACTER - 2
        return sum([len(text) <= characters for text in (self.label, f"{self.label} {self.percent}")])


@dataclass(frozen=True, slots=True)
class Icicle:
    """Where a metric's total is. ``partial``: something is unknown, and only what is known has a box."""

    title: str
    boxes: Sequence[Box]
    total: str
    partial: bool

    @property
    def levels(self) -> int:
        """How deep it is."""
        return 1 + max([box.level for box in self.boxes], default=0)


def icicle(summary: ModelSummary, metric: Column, roots: Sequence[Item], rows: Sequence[Row]) -> Icicle:
    """The boxes of ``metric``, each at least a thousandth of the whole; none where all of it is 0."""
    row_of = {id(row.item): row for row in rows}
    known = _known(summary, metric, rows)
    whole = sum([known[id(root)] for root in roots])
    boxes: list[Box] = []
    for item, x, width, level in laid_out(roots, known):
        row, value = row_of[id(item)], known[id(item)]
        kind = "" if row.colour is None else f"t{row.colour}"
        boxes.append(Box(x, width, level, row, metric.cell([value]), f"{units.percent(value, whole)} %", kind))
    boxes.sort(key=lambda box: box.row.number)
    return Icicle(metric.title, boxes, metric.cell([whole]), metric.total(summary) is None)


def laid_out(roots: Sequence[N], known: Mapping[int, Amount]) -> Iterator[tuple[N, float, float, int]]:
    """Where each is that has at least a thousandth of the whole; ``known`` is how much each has, by ``id``."""
    whole = sum([known[id(root)] for root in roots])
    at: Amount = 0
    stack: list[tuple[N, Amount, int]] = []
    for root in roots:
        stack.append((root, at, 0))
        at += known[id(root)]
    while stack:
        item, at, level = stack.pop()
        value = known[id(item)]
        if not value or value < whole * _LEAST or level >= MOST_LEVELS:
            continue
        yield item, round(float(100 * at / whole), 3), round(float(100 * value / whole), 3), level
        for child in item.children:
            stack.append((child, at, level + 1))
            at += known[id(child)]


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
