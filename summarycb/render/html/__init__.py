"""ModelSummary -> a page, one file that needs no network, and the fragment that notebooks show. Must not import torch.

The page is readable without its script: what a script does here is to sort, search, zoom and select. All text goes
through the templates' escaping, and the page's policy allows the one style and the one script that it was written with.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from summarycb import __version__, units
from summarycb.columns import COLUMNS, Column
from summarycb.embed import embed
from summarycb.errors import SummaryError
from summarycb.garbage import collection_paused
from summarycb.render.html.icicle import icicle
from summarycb.render.html.rows import METRICS, Row, items, metrics, rows
from summarycb.render.html.timeline import timeline
from summarycb.tree import ModelSummary
from summarycb.view import check_columns, check_depth, clean, select

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the figures that are read first."""

    title: str
    figure: str
    more: tuple[str, ...]


@collection_paused()
def to_html(
    summary: ModelSummary,
    *,
    depth: int | None = 2,
    columns: Sequence[str] | None = None,
    metric: str = "params",
    fold: bool = True,
) -> str:
    """The page. ``depth`` is how many levels of the tree are open at first; all are there."""
    depth = check_depth(depth)
    view = select(summary, depth=0, columns=columns)
    shown = [column for column in _columns(summary, columns) if column.key != "type"]
    figures = metrics(summary)
    roots = items(summary, fold)
    lines = rows(summary, roots, shown)
    style = _style(shown, lines)
    script = _asset("page.js")
    places = {one.key: place for place, one in enumerate(figures)}
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            policy=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            version=__version__,
            view=view,
            subtitle=[fact for fact in dict(view.headline).get(summary.observed, ()) if fact],
            headline=[
                (heading, facts) for heading, facts in view.headline if heading not in ("failed", summary.observed)
            ],
            tiles=[*_tiles(summary)],
            metrics=figures,
            chosen=places.get(metric, 0),
            places=places,
            icicles=[
                {
                    "place": place,
                    "drawing": icicle(summary, one, roots, lines),
                    "title": one.title,
                    "whole": one.text(one.whole(summary)),
                }
                for place, one in enumerate(figures)
            ],
            colours=list({row.type_name: row.colour for row in lines if row.colour is not None}.items()),
            rows=lines,
            columns=shown,
            opened={row.number for row in lines if row.item.children and (depth is None or row.level < depth)},
            drawings=[],
            edges=[],
            timeline=timeline(summary.memory, summary.root.type_name),
            has_parameters=any(row.parameters for row in lines),
            embedded=Markup(embed(summary.to_json())),
        )
    )
    return page


def to_fragment(summary: ModelSummary) -> str:
    """The headline and the tree for a notebook's cell: no script, nothing but inline style."""
    return ""


def _columns(summary: ModelSummary, columns: Sequence[str] | None) -> list[Column]:
    from summarycb.view import _DEFAULTS

    keys = _DEFAULTS[summary.observed] if columns is None else check_columns(columns)
    return [COLUMNS[key] for key in keys if key != "macs_percent"]


def _tiles(summary: ModelSummary) -> Iterator[Tile]:
    shares = f"{units.percent(summary.trainable_params, summary.total_params) or '0'} % trainable"
    yield Tile("Parameters", units.count(summary.total_params), (f"{units.exact(summary.total_params)}", shares))
    if summary.observed != "structure":
        yield Tile("Forward", units.work(summary.forward_macs, "MACs"), (units.work(summary.forward_flops, "FLOPs"),))
    if summary.observed == "step":
        yield Tile("Step", units.work(summary.step_flops, "FLOPs"), ("forward and backward",))
    if summary.observed == "step":
        yield Tile("Saved activations", units.nbytes(summary.memory.saved_activations), ("alive as backward begins",))
    if summary.memory.peak_at is not None:
        moment = summary.memory.peak_at
        place = "" if moment.module is None else f" of {moment.module or summary.root.type_name}"
        yield Tile("Peak memory", units.nbytes(summary.memory.peak), (f"in the {moment.phase}{place}",))


def _style(columns: Sequence[Column], lines: Sequence[Row]) -> str:
    """The style with the widths that depend on what is shown: columns as wide as their longest cell."""
    longest = [max([len(row.cells[place]) for row in lines] + [len(c.title)]) for place, c in enumerate(columns)]
    widths = [
        f"minmax(4rem,{min(size, 24)}ch)" if column.justify == "left" else f"{size + 1}ch"
        for column, size in zip(columns, longest, strict=True)
    ]
    levels = max([row.level for row in lines])
    return "".join(
        [
            _asset("style.css"),
            f".tree{{--columns:minmax(17rem,1fr) {' '.join(widths)} 11rem;--narrow:minmax(0,1fr) 7rem}}",
            *[f".w{size}{{width:{2 * size}%}}" for size in range(51)],
            *[f".d{level}{{--d:{min(level, 24)}}}" for level in range(levels + 1)],
            *[f"body:has(#m{place}:checked) .m:not(.m{place}){{display:none}}" for place in range(len(METRICS))],
        ]
    )


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _asset(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )


def _finalize(value: Any) -> Any:
    return clean(value) if type(value) is str else value
