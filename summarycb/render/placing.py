"""Where the texts of a drawn graph stand: clear of the nodes and of each other. Must not import torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, product

from summarycb.graph import Edge, Graph
from summarycb.render.layout import Layout, Point, Size

_ALONG = (0.85, 0.75, 0.65, 0.55, 0.45, 0.35)
"""Where the text of an edge may stand on the last part of its way: at its arrow, or before it where there is room."""
_SQUARE = 64.0
_MOST_CHARACTERS = 30
_WIDTH = 5.2
Box = tuple[float, float, float, float]
Label = tuple[float, float, str]


def boxes(placed: Layout, sizes: dict[int, Size]) -> dict[int, Box]:
    """The nodes' left, top, right and bottom, by id."""
    return {
        node: (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        for node, (w, h) in sizes.items()
        for x, y in [placed.centres[node]]
    }


def texts(graph: Graph, placed: Layout, sizes: dict[int, Size]) -> list[Label]:
    """What comes out of each node, below it: the shapes without their dtypes.

    At the arrow of an edge is how many of them it stands for, and its own shapes where they are others.
    """
    below: dict[int, str] = {}
    labels: list[Label] = []
    for edge in graph.edges:
        if edge.source not in below and graph.nodes[edge.source].kind != "parameter":
            below[edge.source] = _of_one(edge)
            x, y = placed.centres[edge.source]
            labels.append((x + 6, y + sizes[edge.source][1] / 2 + 13, shortened(below[edge.source])))
    taken: dict[tuple[int, int], list[Box]] = defaultdict(list)
    for box in (*boxes(placed, sizes).values(), *map(room, labels)):
        for cell in _cells(box):
            taken[cell].append(box)

    def near(place: Label) -> Iterator[Box]:
        return chain.from_iterable(taken[cell] for cell in _cells(room(place)))

    for edge in graph.edges:
        own = below.get(edge.source, _of_one(edge)) != _of_one(edge)
        if text := edge.many + _of_one(edge) * own:
            *_, a, b, c, d = placed.curves[edge.source, edge.target]
            places = [(x + 6, y + 3, shortened(text.strip())) for x, y in (_on(a, b, c, d, at) for at in _ALONG)]
            free = (place for place in places if not any(overlap(room(place), box) for box in near(place)))
            labels.append(next(free, places[0]))
            for cell in _cells(room(labels[-1])):
                taken[cell].append(room(labels[-1]))
    return labels


def _of_one(edge: Edge) -> str:
    return re.sub(r"(\[[^]]*\]) \w+", r"\1", edge.tensor.removeprefix(edge.many))


def _on(a: Point, b: Point, c: Point, d: Point, at: float) -> Point:
    """The point of a cubic curve at a share of its way."""
    weights = (1 - at) ** 3, 3 * at * (1 - at) ** 2, 3 * at**2 * (1 - at), at**3
    x, y = (sum(w * point[side] for w, point in zip(weights, (a, b, c, d), strict=True)) for side in (0, 1))
    return x, y


def room(label: Label) -> Box:
    """What a text takes up."""
    x, y, text = label
    return x, y - 8, x + _WIDTH * len(text), y + 2


def _cells(box: Box) -> Iterator[tuple[int, int]]:
    """The squares in which it is, to look for others near it alone."""
    left, top, right, bottom = (int(side // _SQUARE) for side in box)
    return product(range(left, right + 1), range(top, bottom + 1))


def overlap(a: Box, b: Box) -> bool:
    """Whether they have a part in common."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def shortened(text: str, path: bool = False) -> str:
    """Of a path the end is kept, which tells it from its neighbours."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    if path:
        end = text[1 - _MOST_CHARACTERS :]
        return f"…{end[end.find('.') + 1 :]}"
    return f"{text[: _MOST_CHARACTERS - 1]}…"
