"""Where the nodes and edges of a graph are drawn: in layers, from top to bottom. Must not import torch."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from summarycb.errors import SummaryError, missing

Size = tuple[float, float]
Point = tuple[float, float]
GAP = 34.0
_BESIDE = 26.0
_BESIDE_AN_EDGE = 12.0
_SWEEPS = 24
_WEIGHT = 1000.0
_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Layout:
    """The centre of each node, and of each edge the points of its curve: cubic, three for each part after the first."""

    size: Size
    centres: Mapping[int, Point]
    curves: Mapping[tuple[int, int], Sequence[Point]]


def fast_sugiyama(
    sizes: Mapping[int, Size], edges: Sequence[tuple[int, int]], order: Sequence[tuple[int, int]]
) -> Layout:
    """By the package of that name: which layer, and in which order; the coordinates are ours, as sizes differ.

    ``order`` says of pairs, besides those that an edge joins, that the second is further down.
    """
    try:
        from fast_sugiyama import from_edges
    except ModuleNotFoundError as error:
        raise missing("report", "fast_sugiyama") from error
    number = {node: place for place, node in enumerate(sizes)}
    node_of = {place: node for node, place in number.items()}
    links = [(number[a], number[b]) for a, b in dict.fromkeys([*edges, *order])]
    layers: dict[int, list[tuple[float, int]]] = defaultdict(list)
    onward: dict[int, list[int]] = defaultdict(list)
    across = 0.0
    found: list[Any] = []
    if links:
        found += from_edges(links, vertex_spacing=1, ranking_type="minimize", check_layout=False, dummy_vertices=True)
    for vertices, width, height, parts in sorted(found, key=lambda one: -len(one[0])):
        for vertex, (x, y) in vertices:
            layers[round(height - y)].append((across + x, vertex))
        for a, b in parts:
            onward[a].append(b)
        across += width + 1
    joined = {vertex for layer in layers.values() for _, vertex in layer}
    for place in number.values():
        if place not in joined:
            layers[0].append((across + place, place))
    rows = [[vertex for _, vertex in sorted(layers[layer])] for layer in sorted(layers)]
    widths = {vertex: sizes[node_of[vertex]][0] if vertex in node_of else 0.0 for row in rows for vertex in row}
    routes = {(a, b): _route(number[a], number[b], onward, node_of) for a, b in edges}
    joints = [link for (a, b), route in routes.items() for link in pairwise([number[a], *route, number[b]])]
    at = _across(rows, widths, joints)
    spans: dict[int, Point] = {}
    below = 0.0
    for row in rows:
        top, below = below, below + max([sizes[node_of[vertex]][1] for vertex in row if vertex in node_of], default=0.0)
        spans |= dict.fromkeys(row, (top, below))
        below += GAP
    centres = {node: (at[place], sum(spans[place]) / 2) for node, place in number.items()}
    curves: dict[tuple[int, int], Sequence[Point]] = {}
    for (a, b), route in routes.items():
        points = [(centres[a][0], centres[a][1] + sizes[a][1] / 2)]
        for vertex in route:
            top, bottom = spans[vertex]
            _curve(points, (at[vertex], top))
            points += [(at[vertex], top), (at[vertex], bottom), (at[vertex], bottom)]
        _curve(points, (centres[b][0], centres[b][1] - sizes[b][1] / 2))
        curves[a, b] = points
    right = max([at[vertex] + widths[vertex] / 2 for vertex in at], default=0.0)
    return Layout((right, max(0.0, below - GAP)), centres, curves)


def _route(start: int, end: int, onward: Mapping[int, Sequence[int]], real: Mapping[int, int]) -> list[int]:
    """The bends of an edge: vertices that stand for it in the layers between."""
    for first in onward[start]:
        route = []
        while first not in real:
            route.append(first)
            first = onward[first][0]
        if first == end:
            return route
    return []


def _curve(points: list[Point], to: Point) -> None:
    x, y = points[-1]
    middle = (y + to[1]) / 2
    points += [(x, middle), (to[0], middle), to]


def _across(
    rows: Sequence[Sequence[int]], widths: Mapping[int, float], parts: Sequence[tuple[int, int]]
) -> dict[int, float]:
    """The x of each vertex: in its row's order, apart by its width, and as near to above or below what it joins."""
    near: list[dict[int, list[int]]] = [defaultdict(list), defaultdict(list)]
    for a, b in parts:
        near[0][b].append(a)
        near[1][a].append(b)
    x = {vertex: 0.0 for row in rows for vertex in row}
    for sweep in range(_SWEEPS):
        side = sweep % 2
        for row in rows if side == 0 else reversed(rows):
            wanted = []
            for vertex in row:
                joined = near[side][vertex] or near[1 - side][vertex]
                if widths[vertex]:  # what follows directly, and goes on, stays in line, whatever else goes past
                    joined = [other for other in joined if widths[other]] or joined
                    joined = [other for other in joined if near[side][other]] or joined
                else:
                    joined = [other for other in joined if not widths[other]] or joined
                wanted.append(sum(x[other] for other in joined) / len(joined) if joined else x[vertex])
            x |= _apart(row, wanted, [_weight(v, widths, near) for v in row], widths)
    left = min((x[v] - widths[v] / 2 for v in x), default=0.0)
    return {vertex: at - left for vertex, at in x.items()}


def _weight(vertex: int, widths: Mapping[int, float], near: Sequence[Mapping[int, Sequence[int]]]) -> float:
    """Edges yield to nodes, and where the flow begins or ends to where it goes on."""
    if not widths[vertex]:
        return 1.0
    return _WEIGHT if near[0].get(vertex) and near[1].get(vertex) else _WEIGHT**0.5


def _apart(
    row: Sequence[int], wanted: Sequence[float], weights: Sequence[float], widths: Mapping[int, float]
) -> dict[int, float]:
    """As wanted, by least squares, in order and apart: regression on a sequence that grows."""
    offsets = [0.0]
    for one, other in pairwise(row):
        gap = _BESIDE if widths[one] or widths[other] else _BESIDE_AN_EDGE
        offsets.append(offsets[-1] + (widths[one] + widths[other]) / 2 + gap)
    blocks: list[tuple[float, float, int]] = []  # where, how heavy, how many
    for at, weight, offset in zip(wanted, weights, offsets, strict=True):
        blocks.append((at - offset, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, v, n), (b, w, m) = blocks[-2:]
            blocks[-2:] = [((a * v + b * w) / (v + w), v + w, n + m)]
    flat = [at for at, _, count in blocks for _ in range(count)]
    return {vertex: at + offset for vertex, at, offset in zip(row, flat, offsets, strict=True)}


def dot(sizes: Mapping[int, Size], edges: Sequence[tuple[int, int]], order: Sequence[tuple[int, int]]) -> Layout:
    """By graphviz's ``dot``, where it is installed."""
    program = shutil.which("dot")
    if program is None:
        raise SummaryError("layout='dot' needs graphviz's program dot, which is not on the PATH")
    lines = ["digraph{node[shape=box,fixedsize=true];"]
    lines += [f"{n}[width={w / 72:.4f},height={h / 72:.4f}];" for n, (w, h) in sizes.items()]
    lines += [f"{a}->{b}[arrowhead=none];" for a, b in edges]
    lines += [f"{a}->{b}[style=invis];" for a, b in order]
    try:
        done = subprocess.run(
            [program, "-Tplain"], input="".join([*lines, "}"]), capture_output=True, text=True, timeout=_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SummaryError(f"graphviz's dot could not lay out the graph: {type(error).__name__}") from None
    if done.returncode:
        raise SummaryError("graphviz's dot could not lay out the graph")
    rows = [line.split() for line in done.stdout.splitlines()]
    width, height = (72 * float(number) for number in rows[0][2:4])

    def point(x: str, y: str) -> Point:
        return 72 * float(x), height - 72 * float(y)

    centres = {int(row[1]): point(*row[2:4]) for row in rows if row[0] == "node"}
    curves, wanted = {}, set(edges)
    for row in rows:
        if row[0] == "edge" and (int(row[1]), int(row[2])) in wanted:
            numbers = row[4 : 4 + 2 * int(row[3])]
            curves[int(row[1]), int(row[2])] = [point(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
    return Layout((width, height), centres, curves)


LAYOUTS = {"fast-sugiyama": fast_sugiyama, "dot": dot}
