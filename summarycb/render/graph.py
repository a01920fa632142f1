"""A graph of the dataflow as SVG, DOT and Mermaid. Must not import torch.

The SVG has no script and refers to nothing. What is in :data:`STYLE` gives it its colours; a page that holds several
has it once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from math import prod
from unicodedata import east_asian_width
from xml.sax.saxutils import escape, quoteattr

from summarycb.errors import SummaryError
from summarycb.graph import Edge, Graph, Group, Node, contractions, depths
from summarycb.render.layout import GAP, LAYOUTS, Layout, Size
from summarycb.render.placing import Box, boxes, overlap, room, shortened, texts
from summarycb.tree import ModelSummary
from summarycb.units import clean

MOST_NODES, MOST_EDGES = 400, 1_000
"""A graph of more of either is not drawn by :func:`drawings`."""
_MARGIN = 20.0
_AROUND = 12.0
_FULL_WIDTH = 1.7

STYLE = """\
.dataflow{--graph-ink:#1f2328;--graph-dim:#656d76;--graph-line:#8c959f;--graph-card:#fff;--graph-edge:#b6bfc9;\
--graph-accent:#2f6fb0;--graph-band:#2f6fb012;--graph-page:#fff;\
font-family:system-ui,-apple-system,"Segoe UI",sans-serif;font-size:12px;color:var(--graph-ink)}
@media(prefers-color-scheme:dark){.dataflow{--graph-ink:#e6edf3;--graph-dim:#9198a1;--graph-line:#768390;\
--graph-card:#1c2128;--graph-edge:#545d68;--graph-accent:#6cb0f5;--graph-band:#6cb0f514;--graph-page:#0d1117}}
.dataflow text{fill:var(--graph-ink);stroke:none}
.dataflow .dim,.dataflow .shapes text{fill:var(--graph-dim);font-size:10px}
.dataflow .shapes text,.dataflow .band text{paint-order:stroke;stroke:var(--graph-page);stroke-width:2.5px}
.dataflow .edges{stroke:var(--graph-line)}
.dataflow .node rect{fill:var(--graph-card);stroke:var(--graph-edge)}
.dataflow .module rect{stroke:var(--graph-accent)}
.dataflow .module text:not(.dim){font-weight:600}
.dataflow .op text{font-size:11px}
.dataflow .input rect,.dataflow .output rect{fill:var(--graph-ink);stroke:none}
.dataflow .input text,.dataflow .output text{fill:var(--graph-card);font-size:11px}
.dataflow .parameter rect{stroke-dasharray:3 2}
.dataflow .parameter text{fill:var(--graph-dim);font-size:10.5px}
.dataflow .node .times,.dataflow .band .times{fill:var(--graph-accent);font-weight:600;font-size:11px}
.dataflow .input .times,.dataflow .output .times{fill:inherit}
.dataflow .band rect{fill:var(--graph-band);stroke:var(--graph-accent);stroke-dasharray:2 3}
"""


@dataclass(frozen=True, slots=True)
class Drawing:
    """The dataflow at one depth, as SVG without a style of its own."""

    depth: int
    svg: str


def graphs(summary: ModelSummary) -> dict[int, Graph]:
    """By each depth at which there is more to see, up to the first that is too large to be drawn."""
    found: dict[int, Graph] = {}
    before: object = None
    offered = depths(summary)
    for depth, graph in zip(offered, contractions(summary, offered), strict=True):
        shape = len(graph.nodes), [(edge.source, edge.target) for edge in graph.edges]
        if shape != before:
            found[depth] = graph
        before = shape
        if not is_small(graph):
            break
    return found


def is_small(graph: Graph) -> bool:
    """Whether :func:`drawings` draws it."""
    return len(graph.nodes) <= MOST_NODES and len(graph.edges) <= MOST_EDGES


def drawings(graphs: Mapping[int, Graph]) -> list[Drawing]:
    """Those that are small; none without fast-sugiyama."""
    try:
        if find_spec("fast_sugiyama") is None:
            return []
    except ValueError:  # it is known not to be there
        return []
    small = {depth: graph for depth, graph in graphs.items() if is_small(graph)}
    return [Drawing(depth, to_svg(graph, style=False)) for depth, graph in small.items()]


def to_svg(graph: Graph, *, layout: str = "fast-sugiyama", style: bool = True) -> str:
    """The graph as SVG; ``style=False`` leaves :data:`STYLE` to the page that it is put in."""
    if layout not in LAYOUTS:
        raise SummaryError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
    edges = [(edge.source, edge.target) for edge in graph.edges]
    groups = _drawn(graph)
    while True:  # a group that cannot be told from what is beside it is told by numbers, for which there must be room
        many = {node.id: _many(node, graph, groups) for node in graph.nodes}
        sizes = {node.id: _size(node, many[node.id]) for node in graph.nodes}
        placed = LAYOUTS[layout](sizes, edges, _last(graph))
        around = _Around(graph, placed, sizes)
        bands = [(group, box) for group in groups if (box := around.group(group)) is not None]
        if len(bands) == len(groups):
            break
        groups = [group for group, _ in bands]
    labels = texts(graph, placed, sizes)
    left, top = (min([0.0, *[box[side] for _, box in bands]]) - _MARGIN for side in (0, 1))
    right = max([placed.size[0], *[room(label)[2] for label in labels]])
    width = max([right, *[box[2] for _, box in bands]]) + _MARGIN - left
    height = max([placed.size[1], *[box[3] for _, box in bands]]) + _MARGIN - top
    view = " ".join(f"{number:.0f}" for number in (left, top, width, height))
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="dataflow" viewBox="{view}" width="{width:.0f}" '
            f'height="{height:.0f}" role="group" font-size="12" text-anchor="middle" fill="none" '
            'stroke="currentColor">',
            "<title>The dataflow of the step</title>",
            f"<desc>From top to bottom: {len(graph.nodes):,} nodes, {len(graph.edges):,} edges</desc>",
            f"<style>{STYLE}</style>" if style else "",
            *[_band(group, box) for group, box in bands],
            '<g class="edges">',
            *[_edge(edge, graph, placed) for edge in graph.edges],
            '</g><g class="shapes" text-anchor="start">',
            *[f'<text x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>' for x, y, text in labels],
            "</g>",
            *[_node(node, placed.centres[node.id], sizes[node.id], many[node.id]) for node in graph.nodes],
            "</svg>\n",
        ]
    )


def _last(graph: Graph) -> list[tuple[int, int]]:
    """What the step gives comes after all that it ran."""
    sources, joined = {edge.source for edge in graph.edges}, {(edge.source, edge.target) for edge in graph.edges}
    ran = [node.id for node in graph.nodes if node.kind in ("module", "op")]
    ends = [node.id for node in graph.nodes if node.kind == "output" and node.id not in sources]
    return [(ran[-1], end) for end in ends if (ran[-1], end) not in joined] if ran else []


def _size(node: Node, many: str) -> Size:
    label, detail = _letters(shortened(node.label) + many), _letters(shortened(node.detail))
    if node.kind == "module":
        return max(84.0, 7.7 * label + 28, 5.8 * detail + 28), 38.0
    return max(38.0, 6.4 * label + 20), 22.0


def _node(node: Node, centre: tuple[float, float], size: Size, many: str) -> str:
    (x, y), (width, height) = centre, size
    left, top = x - width / 2, y - height / 2
    corner = 6 if node.kind == "module" else 3 if node.kind == "parameter" else height / 2
    name, detail = shortened(node.label, node.kind == "module"), shortened(node.detail)
    about = clean(node.path) if node.path is not None else node.label
    about = " ".join(filter(None, [about or node.label, node.detail, f"×{node.times:,}" if node.times > 1 else ""]))
    path = "" if node.path is None else f" data-path={quoteattr(clean(node.path))}"
    parts = [f'<g class="node {node.kind}"{path}>']
    if about != " ".join(filter(None, [name, detail, many.strip()])):
        parts.append(f"<title>{escape(about)}</title>")
    box = f'width="{width:.0f}" height="{height:.0f}" rx="{corner:.0f}"/>'
    if many:
        parts.append(f'<rect x="{left + 4:.0f}" y="{top + 4:.0f}" {box}')
    parts.append(f'<rect x="{left:.0f}" y="{top:.0f}" {box}')
    many = f' <tspan class="times">{many.strip()}</tspan>' if many else ""
    parts.append(f'<text x="{x:.0f}" y="{y - 3 if detail else y + 4:.0f}">{escape(name)}{many}</text>')
    if detail:
        parts.append(f'<text class="dim" x="{x:.0f}" y="{y + 12:.0f}">{escape(detail)}</text>')
    return "".join([*parts, "</g>"])


def _edge(edge: Edge, graph: Graph, placed: Layout) -> str:
    points = [(round(x), round(y)) for x, y in placed.curves[edge.source, edge.target]]
    steps: list[str] = []
    down = 0  # what follows straight below is one line
    for (x, y), *curve in zip(points[::3], points[1::3], points[2::3], points[3::3], strict=False):
        if all(to == x for to, _ in curve):
            down += curve[-1][1] - y
            continue
        steps.append((f"v{down}" if down else "") + "c" + " ".join(f"{to - x} {at - y}" for to, at in curve))
        down = 0
    way = "".join(steps).replace(" -", "-") + (f"v{down}" if down else "")
    about = f"{graph.nodes[edge.source].label} → {graph.nodes[edge.target].label}: {edge.tensor}"
    return f'<path d="M{points[0][0]} {points[0][1]}{way}m-3-5 3 5 3-5"><title>{escape(about)}</title></path>'


class _Around:
    """Where the nodes are, to draw what repeats within a band of its own."""

    def __init__(self, graph: Graph, placed: Layout, sizes: dict[int, Size]) -> None:
        self._boxes = boxes(placed, sizes)
        self._graph = graph
        self._curves = placed.curves

    def group(self, group: Group) -> Box | None:
        """The band around a group; None where another node would be in it."""
        within = [other for other in self._graph.groups if len(other.nodes) > 1 and set(other.nodes) < set(group.nodes)]
        space = _AROUND * (1 + min(len(within), 1))
        above = space + 6
        inner = [self._boxes[node] for node in group.nodes]
        left, top, right, bottom = (pick(box[side] for box in inner) for side, pick in enumerate((min, min, max, max)))
        ways = [self._curves[edge.source, edge.target] for edge in self._graph.edges if edge.target in group.nodes]
        across = [x for way in ways for x, y in way if top <= y <= bottom]
        left, right = min(left, *across), max(right, *across)
        label = left - space + 7 * _letters(_named(group)) + 16
        box = left - space, top - above, max(right + space, label), bottom + min(space, GAP / 2)
        others = [self._boxes[node.id] for node in self._graph.nodes if node.id not in set(group.nodes)]
        return None if any(overlap(box, other) for other in others) else box


def _band(group: Group, box: Box) -> str:
    left, top, right, bottom = box
    where = f'x="{left:.0f}" y="{top:.0f}" width="{right - left:.0f}" height="{bottom - top:.0f}" rx="10"'
    return (
        f'<g class="band"><rect {where}/><text class="times" text-anchor="start" x="{left + 8:.0f}" y="{top + 13:.0f}">'
        f"{escape(_named(group))}</text></g>"
    )


def _named(group: Group) -> str:
    return f"{group.label}{_repeated([group])}".strip()


def to_dot(graph: Graph) -> str:
    """The graph in graphviz's language."""

    def opened(number: int, label: str) -> str:
        return f"subgraph cluster_{number} {{ label={_quoted(label)};"

    def drawn(node: Node, lines: Sequence[str]) -> str:
        look = {"op": ", shape=ellipse", "module": "", "parameter": ", style=dashed"}.get(node.kind, ", shape=oval")
        return f"n{node.id} [label={_quoted(chr(10).join(lines))}{look}];"

    lines = ["digraph dataflow {", '  node [shape=box, style=rounded, fontname="sans-serif"];']
    lines += _nested(graph, opened, drawn, "}")
    lines += [f"  n{edge.source} -> n{edge.target} [label={_quoted(edge.tensor)}];" for edge in graph.edges]
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def to_mermaid(graph: Graph) -> str:
    """The graph as Mermaid, which GitHub and GitLab draw in Markdown."""

    def opened(number: int, label: str) -> str:
        return f"subgraph g{number}[{_entities(label)}]"

    def drawn(node: Node, lines: Sequence[str]) -> str:
        opens, closes = _AROUND_IN_MERMAID[node.kind]
        return f"n{node.id}{opens}{_entities(*lines)}{closes}"

    lines = ["flowchart TD", *_nested(graph, opened, drawn, "end")]
    lines += [f"  n{edge.source} -->|{_entities(edge.tensor)}| n{edge.target}" for edge in graph.edges]
    return "\n".join(lines) + "\n"


_AROUND_IN_MERMAID = {
    "module": ("[", "]"),
    "parameter": ("[", "]"),
    "op": ("(", ")"),
    "input": ("([", "])"),
    "output": ("([", "])"),
}


def _entities(*lines: str) -> str:
    """In quotes, with nothing that Mermaid or HTML would read but the line breaks."""
    return '"' + "<br>".join(re.sub(r'[#"<>&`\\|]', lambda found: f"#{ord(found[0])};", line) for line in lines) + '"'


def _nested(
    graph: Graph, opened: Callable[[int, str], str], drawn: Callable[[Node, Sequence[str]], str], closed: str
) -> Iterator[str]:
    """A line for each node; those of a group of several are between two lines of its own, and indented."""
    around: list[list[int]] = [[] for _ in graph.nodes]  # the groups of each, by number, the outermost first
    for number, group in sorted(enumerate(graph.groups), key=lambda one: -len(one[1].nodes)):
        if len(group.nodes) > 1:
            for place in group.nodes:
                around[place].append(number)
    begun: set[int] = set()

    def within(places: Iterable[int], depth: int) -> Iterator[str]:
        indent = "  " * (depth + 1)
        for place in places:
            if len(around[place]) == depth:
                node = graph.nodes[place]
                label = node.label + _many(node, graph, [graph.groups[number] for number in around[place]])
                yield indent + drawn(node, [label, node.detail] if node.detail else [label])
            elif (number := around[place][depth]) not in begun:
                begun.add(number)
                yield indent + opened(number, _named(graph.groups[number]))
                yield from within(graph.groups[number].nodes, depth + 1)
                yield indent + closed

    yield from within(range(len(graph.nodes)), 0)


def _drawn(graph: Graph) -> list[Group]:
    return [group for group in graph.groups if len(group.nodes) > 1]


def _letters(text: str) -> float:
    """How many letters of the mean width are as wide."""
    return sum([_FULL_WIDTH if east_asian_width(letter) in "WF" else 1 for letter in text])


def _many(node: Node, graph: Graph, drawn: Sequence[Group]) -> str:
    """How many it stands for each time that what is drawn around it runs."""
    around = [group for group in graph.groups if node.id in group.nodes]
    if node.kind in ("module", "op"):
        return _repeated([group for group in around if group not in drawn])
    times = node.times // prod(group.times for group in around if group in drawn)
    return f" ×{times:,}" if times > 1 else ""


def _repeated(groups: Sequence[Group]) -> str:
    """How often what is in all of them ran, the outermost first."""
    alike = groupby(groups, lambda group: group.in_a_row)
    return "".join([f" ×{prod(group.times for group in some):,}" + " in a row" * in_a_row for in_a_row, some in alike])
