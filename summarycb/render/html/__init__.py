"""ModelSummary -> a page, one file that needs no network, and the fragment that notebooks show. Must not import torch.

The page is read without its script too, which is there to search, sort, zoom and select. All text goes through the
templates' escaping, and the page's policy allows the one style and the one script that it was written with.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from summarycb import __version__, units
from summarycb.columns import COLUMNS, Column, default_columns, main_metric
from summarycb.embed import embed
from summarycb.garbage import collection_paused
from summarycb.graph import Graph
from summarycb.headline import CONVENTION, headline, notes
from summarycb.render.graph import STYLE, drawings, graphs, is_small
from summarycb.render.html.icicle import icicle
from summarycb.render.html.rows import Row, facts, metrics, parameters, rows
from summarycb.render.html.timeline import timeline
from summarycb.tree import ModelSummary
from summarycb.units import clean
from summarycb.view import Selection, per_copy, roots_of

_FOLDER = Path(__file__).parent
_FRAGMENT_ROWS = 1000
_DRAWN_NODES = 30
"""The deepest drawing with at most so many is shown at first."""
_LISTED_DEPTH = 2
_LISTED_EDGES = 200
_MOST_INDENT = 24


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the figures that are read first."""

    title: str
    figure: str
    more: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """The first edges of a graph that is not drawn; ``sizes`` is how many nodes and edges are too many to draw."""

    depth: int
    sizes: tuple[int, int] | None
    edges: Sequence[str]
    more: int


@collection_paused()
def to_html(summary: ModelSummary, selection: Selection) -> str:
    """The page. Its tree has every level, ``selection.depth`` of them open at first, and sorts and filters itself."""
    metric = main_metric(summary) if selection.metric == Selection().metric else selection.metric
    shown = _columns(selection.columns or default_columns(summary, metric))
    figures = metrics(summary, metric)
    roots = roots_of(summary, selection.fold)
    lines = rows(summary, roots, shown, figures)
    found = graphs(summary)
    flows = drawings(found)
    style = (STYLE if flows else "") + _asset("style.css")
    style += f".tree{{--columns:{_widths(shown, lines)}}}" + _steps(lines)
    style += "".join([*_switch("m", len(figures)), *_switch("g", len(flows))])
    script = _asset("page.js")
    return _rendered(
        "page.html.j2",
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        embedded=Markup(embed(summary.to_json())),
        version=__version__,
        title=summary.root.type_name,
        headline=[*headline(summary, roots)],
        notes=_notes(summary, lines, "a box of the icicle is of all copies"),
        circumstances=[*_circumstances(summary)],
        tiles=[*_tiles(summary)],
        metrics=figures,
        chosen=[one.key for one in figures].index(metric),
        places={one.key: place for place, one in enumerate(figures)},
        icicles=[icicle(summary, one, roots, lines) for one in figures],
        colours={row.type_name: row.colour for row in lines if row.colour is not None},
        rows=lines,
        about=partial(facts, summary),
        held=partial(parameters, summary),
        has_parameters=any(copy.parameters for row in lines for copy in row.item.copies),
        columns=shown,
        opened=_opened(lines, selection.depth),
        drawings=flows,
        drawn=max([i for i, one in enumerate(flows) if one.svg.count('"node') <= _DRAWN_NODES], default=0),
        listed=None if flows or not found else _listed(found),
        timeline=timeline(summary.memory, summary.root.type_name),
    )


@collection_paused()
def to_fragment(summary: ModelSummary) -> str:
    """The headline and the tree for a notebook's cell: no script, and a style that no other cell sees."""
    metric, roots = main_metric(summary), roots_of(summary, True)
    shown, figures = _columns(default_columns(summary, metric)), [COLUMNS[metric]]
    deepest = _deepest(rows(summary, roots, (), ()), _FRAGMENT_ROWS)
    lines = rows(summary, roots, shown, figures, deepest)
    return (
        _environment()
        .get_template("fragment.html.j2")
        .render(
            style=Markup(_asset("fragment.css") + _steps(lines, ".summarycb ")),
            widths=_widths(shown, lines),
            title=summary.root.type_name,
            headline=[*headline(summary, roots)],
            notes=_notes(summary, lines),
            metric=figures[0],
            rows=lines,
            columns=shown,
            opened=_opened(lines, 2),
            shortened=deepest + 1 if len(lines) < sum([1 for root in roots for _ in root.walk()]) else None,
        )
    )


def _columns(keys: Sequence[str]) -> list[Column]:
    """Those that a row has beside its name, its type, and its share of the metric."""
    return [COLUMNS[key] for key in keys if key not in ("type", "percent", "bar")]


def _listed(graphs: Mapping[int, Graph]) -> Listed:
    """Of those that are not drawn the one that is read best."""
    small = [depth for depth, graph in graphs.items() if is_small(graph) and depth <= _LISTED_DEPTH]
    depth = max(small, default=min(graphs))
    graph = graphs[depth]
    edges = list(islice(_edges(graph), _LISTED_EDGES))
    sizes = None if small else (len(graph.nodes), len(graph.edges))
    return Listed(depth, sizes, edges, len(graph.edges) - len(edges))


def _edges(graph: Graph) -> Iterator[str]:
    """What a drawing shows, in words."""
    names = [node.label + (f" ×{node.times}" if node.times > 1 else "") for node in graph.nodes]
    for edge in graph.edges:
        yield f"{names[edge.source]} → {names[edge.target]}: {edge.tensor}"


def _notes(summary: ModelSummary, lines: Sequence[Row], *where_folded: str) -> list[str]:
    remarks = list(per_copy([row.item.times for row in lines], (text for row in lines for _, text in row.cells)))
    return [
        *remarks,
        *(where_folded if remarks else ()),
        *([CONVENTION] if summary.observed != "structure" else []),
        *notes(summary),
    ]


def _opened(lines: Iterable[Row], depth: int | None) -> set[int]:
    return {row.number for row in lines if row.item.children and (depth is None or row.level < depth)}


def _deepest(lines: Sequence[Row], most: int) -> int:
    """The level down to which there are at most so many rows."""
    found, count = 0, 0
    for level, size in sorted(Counter([row.level for row in lines]).items()):
        count += size
        if count > most:
            break
        found = level
    return found


def _circumstances(summary: ModelSummary) -> Iterator[str]:
    under = summary.environment
    yield {"structure": "structure, no step", "forward": "one forward", "step": "one training step"}[summary.observed]
    yield from filter(None, (under.device, under.precision, under.optimizer, under.strategy))


def _tiles(summary: ModelSummary) -> Iterator[Tile]:
    shares = f"{units.percent(summary.trainable_params, summary.total_params) or '0'} % trainable"
    short, exact = units.count(summary.total_params), units.exact(summary.total_params)
    yield Tile("Parameters", short, (shares,) if short == exact else (exact, shares))
    if summary.observed != "structure":
        yield Tile("Forward", units.work(summary.forward_macs, "MACs"), (units.work(summary.forward_flops, "FLOPs"),))
    if summary.observed == "step":
        yield Tile("Step", units.work(summary.step_flops, "FLOPs"), ("forward and backward",))
        yield Tile("Saved activations", units.nbytes(summary.memory.saved_activations), ("alive as backward begins",))
    if (moment := summary.memory.peak_at) is not None:
        place = "" if moment.module is None else f" of {moment.module or summary.root.type_name}"
        yield Tile("Peak memory", units.nbytes(moment.total), (f"in the {moment.phase}{place}",))


def _widths(columns: Sequence[Column], lines: Sequence[Row]) -> str:
    """The columns of every row's grid, each as wide as its longest cell: rows are nested, and align by that alone."""
    widths = ["minmax(15rem,1fr)"]
    for place, column in enumerate(columns):
        longest = max([len(row.cells[place][1]) for row in lines] + [len(column.title)])
        widths.append(f"minmax(4rem,{min(longest, 21)}ch)" if column.justify == "left" else f"{longest + 1}ch")
    return " ".join([*widths, "9.5rem"])


def _switch(kind: str, count: int) -> Iterator[str]:
    """Of elements of the classes ``m0``, ``m1`` ... those are shown whose radio button, with that id, is chosen."""
    for chosen in range(count):
        others = ",".join([f".{kind}{other}" for other in range(count) if other != chosen])
        if others:
            yield f"body:has(#{kind}{chosen}:checked) :is({others}){{display:none}}"


def _steps(lines: Sequence[Row], within: str = "") -> str:
    """The widths of bars and the indentation as classes, because the policy allows no style of a single element."""
    widths = sorted({share.width for row in lines for share in row.shares if share.width})
    levels = range(max([row.level for row in lines]) + 1)
    bars = [f"{within}.w{width}{{--w:{2 * width}%}}" for width in widths]
    return "".join(bars + [f"{within}.d{level}{{--d:{min(level, _MOST_INDENT)}}}" for level in levels])


def _policy(style: str, script: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'"
    ).format(*hashes)


def _rendered(template: str, **given: Any) -> str:
    """As UTF-8 can hold it: half of a surrogate pair is written out as an escape."""
    text = _environment().get_template(template).render(**given)
    return text.encode(errors="backslashreplace").decode()


@cache
def _asset(name: str) -> str:
    return re.sub(r"\n\s*", "\n", (_FOLDER / name).read_text(encoding="utf-8"))


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )


def _printable(value: Any) -> Any:
    return clean(value) if type(value) is str else value
