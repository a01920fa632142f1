"""ModelSummary -> a page, one file that needs no network, and the fragment that notebooks show. Must not import torch.

The page is read without its script too, which is there to search, sort, zoom and select. All text goes through the
templates' escaping, and the page's policy allows the one style and the one script that it was written with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from markupsafe import Markup

from summarycb import __version__, units
from summarycb.columns import COLUMNS, Column, default_columns, main_metric
from summarycb.embed import embed
from summarycb.garbage import collection_paused
from summarycb.graph import Graph
from summarycb.headline import CONVENTION, headline, notes
from summarycb.render.graph import STYLE, drawings, graphs, is_small
from summarycb.render.html.icicle import icicle
from summarycb.render.html.page import asset, deepest_of, environment, policy_of, rendered, steps, switch, widths
from summarycb.render.html.rows import Row, facts, metrics, parameters, rows
from summarycb.render.html.timeline import timeline
from summarycb.tree import ModelSummary
from summarycb.view import Selection, per_copy, roots_of

_FRAGMENT_ROWS = 1000
_DRAWN_NODES = 30
"""The deepest drawing with at most so many is shown at first."""
_LISTED_DEPTH = 2
_LISTED_EDGES = 200


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
    style = (STYLE if flows else "") + asset("style.css")
    style += f".tree{{--columns:{widths(shown, lines)}}}" + steps(lines)
    style += "".join([*switch("m", len(figures)), *switch("g", len(flows))])
    script = asset("page.js")
    return rendered(
        "page.html.j2",
        policy=policy_of(style, script),
        style=Markup(style),
        script=Markup(script),
        embedded=Markup(embed(summary.to_json())),
        version=__version__,
        title=summary.root.type_name,
        headline=[*headline(summary, roots)],
        notes=_notes(summary, lines, "a box of the icicle is of all copies"),
        circumstances=[*circumstances(summary)],
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
    deepest = deepest_of(rows(summary, roots, (), ()), _FRAGMENT_ROWS)
    lines = rows(summary, roots, shown, figures, deepest)
    return (
        environment()
        .get_template("fragment.html.j2")
        .render(
            style=Markup(asset("fragment.css") + steps(lines, ".summarycb ")),
            widths=widths(shown, lines),
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


def circumstances(summary: ModelSummary) -> Iterator[str]:
    """Under what the step ran."""
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
