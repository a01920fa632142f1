"""Comparison -> a page, one file that needs no network and holds the summaries. Must not import torch.

Of each pair the tree of both, with what changed marked, and an icicle of the second; of more than two runs first the
table of what is not the same in all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from markupsafe import Markup

from summarycb import __version__
from summarycb.changes import FIGURES, KINDS
from summarycb.compare import Comparison
from summarycb.compared import MARKS, Shown, chosen, headline_names, view, whole, writer
from summarycb.embed import embed
from summarycb.garbage import collection_paused
from summarycb.headline import CONVENTION
from summarycb.merged import merged
from summarycb.render.html import circumstances
from summarycb.render.html.delta import (
    HEADINGS,
    METRICS,
    TREE_COLUMNS,
    WORDS,
    Row,
    about,
    change_of,
    delta_cell,
    icicles,
    rows,
    title_of,
)
from summarycb.render.html.icicle import Icicle
from summarycb.render.html.page import asset, deepest_of, policy_of, rendered, steps, switch, widths
from summarycb.render.html.rows import cut
from summarycb.specs import sole, spec_text
from summarycb.tree import ModelSummary
from summarycb.view import Heading, View

if TYPE_CHECKING:
    from summarycb.gates import Verdict

MOST_ROWS = 2000
"""Of all trees of a page together."""
_OPENED = 100
_NOTHING_ASKED = "Of what was asked for, nothing changed."
_SHAPES_ALONE = "Nothing changed but shapes and dtypes."
_LONGEST_TEXT = 36
_LEAST_SHARE = 8


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two summaries."""

    name: str
    title: str
    facts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure in both, once where they read the same.

    ``why`` is what else it changes with; then it says nothing of the model alone.
    """

    title: str
    values: Sequence[str]
    delta: str
    relative: str
    kind: str
    why: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Everything that is drawn of two summaries; ``key`` begins the ids of its elements.

    ``opens`` is the place of the metric that is drawn at first.
    """

    key: str
    sides: tuple[Side, Side]
    differences: Sequence[tuple[str, str, str, str]]
    per: str | None
    tiles: Sequence[Tile]
    changes: View
    nothing: str
    headings: Sequence[Heading]
    rows: Sequence[Row]
    opened: set[int]
    kinds: Sequence[tuple[str, str, int, str]]
    filtered: bool
    totals: Sequence[tuple[str, str]]
    shares: Sequence[str]
    opens: int
    removes: bool
    icicles: Sequence[tuple[Icicle, Icicle | None]]
    notes: Sequence[str]


@collection_paused()
def to_html(comparison: Comparison, shown: Shown, verdicts: Sequence[Verdict] = ()) -> str:
    """The page; ``verdicts`` are those of gates that were asked for."""
    against = comparison.against
    many = len(against) > 1
    pairs = [
        _pair(pair, shown, f"x{place}-" if many else "", MOST_ROWS // len(against))
        for place, pair in enumerate(against)
    ]
    style = asset("style.css") + asset("comparison.css")
    style += steps([row for pair in pairs for row in pair.rows])
    style += "".join(switch("p", len(pairs)))
    for pair in pairs:
        section = f"#{pair.key}modules"
        columns = widths(pair.headings, pair.rows, _LONGEST_TEXT, _room(pair.rows))
        longest = max([len(share.percent) for row in pair.rows for share in row.shares])
        style += f"{section} .tree{{--columns:{columns};--share:{max(longest, _LEAST_SHARE)}ch}}"
        style += "".join(switch("m", len(METRICS), pair.key, section))
    runs = view(comparison, shown) if many else None
    script = asset("page.js")
    embedded = [embed(summary.to_json(), place) for place, summary in enumerate(comparison.summaries, start=1)]
    return rendered(
        "comparison.html.j2",
        policy=policy_of(style, script),
        style=Markup(style),
        script=Markup(script),
        embedded=Markup("\n".join(embedded)),
        version=__version__,
        title=runs.title if runs else f"{pairs[0].changes.title}{_compared(comparison)}",
        runs=runs,
        names=[] if comparison.names == tuple(map(str, range(1, len(pairs) + 2))) else comparison.names,
        verdicts=verdicts,
        pairs=pairs,
        metrics=METRICS,
        places={name: place for place, name in enumerate(FIGURES)},
        figures=[(place, title_of(name)) for place, name in enumerate(FIGURES)],
        about=about,
        only=", ".join(shown.only) or "what changed",
        sort=None if shown.sort is None else FIGURES.index(shown.sort),
    )


@collection_paused()
def to_fragment(comparison: Comparison) -> str:
    """What is said in text, for a notebook's cell: no script, and a style that no other cell sees."""
    return rendered("changes.html.j2", style=Markup(asset("fragment.css")), view=view(comparison))


def _pair(pair: Comparison, shown: Shown, key: str, most: int) -> Pair:
    roots = merged(pair)
    asked = chosen(pair.rows, shown)
    lines, left_out = rows(roots, [row for row in asked if shown.only or row.kind != "shapes"], most)
    told = view(pair, shown)
    drawn = icicles(roots, lines)
    kinds: Counter[str] = Counter()
    for row in asked:
        kinds[row.kind] += row.times
    return Pair(
        key=key,
        sides=(_side(pair.names[0], pair.a), _side(pair.names[1], pair.b)),
        differences=list(_differences(pair)),
        per=pair.per,
        tiles=list(_tiles(pair)),
        changes=told,
        nothing=_NOTHING_ASKED if pair.rows and shown.only else _SHAPES_ALONE if pair.rows else "Nothing changed.",
        headings=[replace(one, title=f"{one.title} *") if one.key in pair.incomparable else one for one in HEADINGS],
        rows=lines,
        opened=_opened(lines, shown.depth),
        kinds=[(kind, MARKS[kind], kinds[kind], WORDS.get(kind, kind)) for kind in KINDS if kind in kinds],
        filtered=any("same" not in row.classes.split() for row in lines),
        totals=[delta_cell(name, pair.metrics[name].delta) for name in TREE_COLUMNS],
        shares=[change_of(pair.metrics[metric.key]) for metric in METRICS],
        opens=next((place for place, metric in enumerate(METRICS) if pair.metrics[metric.key].delta), 0),
        icicles=drawn,
        removes=any(union is not None for _, union in drawn),
        notes=[*([left_out] if left_out else []), *told.notes, CONVENTION],
    )


def _compared(pair: Comparison) -> str:
    """What the two are called, where they are."""
    a, b = pair.names
    return "" if (a, b) == ("1", "2") else f": {a} → {b}"


def _side(name: str, summary: ModelSummary) -> Side:
    facts = [*circumstances(summary), f"torch {summary.environment.torch}" if summary.environment.torch else ""]
    modules = f"{len(summary.modules):,} modules"
    given = f"in {cut(spec_text(sole(summary.entry.inputs)))}" if summary.entry.call_groups else ""
    return Side(name, summary.root.type_name, [fact for fact in (*facts, modules, given) if fact])


def _differences(pair: Comparison) -> Iterator[tuple[str, str, str, str]]:
    for one in pair.differences:
        names = dict.fromkeys([title_of(name) for name in one.affects if name in headline_names(pair)])
        yield one.condition, cut(one.a), cut(one.b), ", ".join(names)


def _tiles(pair: Comparison) -> Iterator[Tile]:
    for name in headline_names(pair):
        figure, write = pair.metrics[name], writer(name)
        if figure.a is None and figure.b is None:
            continue
        kind, delta = delta_cell(name, figure.delta)
        yield Tile(
            title_of(name),
            tuple(dict.fromkeys([write(whole(figure.a)), write(whole(figure.b))])),
            delta,
            change_of(figure) or "same",
            kind or "unknown",
            ", ".join(pair.incomparable.get(name, ())),
        )


def _room(lines: Sequence[Row]) -> float:
    """For the names, in rem: what the longest needs, within bounds, and its type where that fits the least."""
    names = [(row, 0.75 * row.level + 0.56 * len(row.item.label)) for row in lines]
    typed = max([name + 0.5 * len(f" ×{row.item.times} {row.type_name}") for row, name in names])
    return round(min(typed + 1.5, max(15, min(max([name for _, name in names]) + 4, 18))), 1)


def _opened(lines: Sequence[Row], depth: int | None) -> set[int]:
    """What holds a change, unless it is all new or gone; to ``depth``, or else while not too many rows are open."""
    changed = [row for row in lines if "same" not in row.classes.split()]
    deepest = deepest_of(changed, _OPENED) if depth is None else depth
    return {
        row.number
        for row in lines
        if row.has_children and row.level < deepest and not {"same", "added", "removed"} & set(row.classes.split())
    }
