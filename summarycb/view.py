"""select(): what is shown of a summary, decided once for every renderer: rows, columns, headline, notes.

Must not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import accumulate, pairwise
from typing import Any, Literal

from summarycb.columns import COLUMNS, METRICS, Column, default_columns, main_metric, shares
from summarycb.errors import SummaryError
from summarycb.fold import Item, fold, path_of, path_within, paths
from summarycb.garbage import collection_paused
from summarycb.headline import CONVENTION, headline, notes
from summarycb.tree import OUTSIDE, ModelSummary, outside_row

MOST_ROWS = 30
"""Where repeats are folded, levels that would make more rows than this are closed."""
_MOST_SIBLINGS = 26
"""And of more children than this the rest are one row."""


@dataclass(frozen=True, slots=True)
class Heading:
    """The head of a column; ``least`` is to how many characters its texts may be shortened, where that is known."""

    title: str
    justify: Literal["left", "right"] = "right"
    key: str = ""
    least: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One line: ``guides`` says for each ancestor below the root, and itself, whether it is its parent's last.

    ``times`` is how many equal siblings it stands for. It is ``closed`` where it has children that are not shown, and
    ``context`` where it is shown only because of what is below it.
    """

    path: str
    label: str
    guides: tuple[bool, ...]
    cells: tuple[str, ...]
    times: int = 1
    closed: bool = False
    context: bool = False

    @property
    def suffix(self) -> str:
        """What follows the label: `` ×12 ▸``."""
        return (f" ×{self.times}" if self.times > 1 else "") + (" ▸" if self.closed else "")


@dataclass(frozen=True, slots=True)
class View:
    """Text that is ready to be laid out: ``headline`` is pairs of a heading and the facts under it."""

    title: str
    headline: tuple[tuple[str, tuple[str, ...]], ...]
    columns: tuple[Heading, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    label: str = "module"
    """The head of the rows' labels."""
    whole: bool = False
    """Whether labels are never shortened, though a line gets longer: they are to be copied."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows and columns are shown, and in which order. What is not allowed raises SummaryError as it is made.

    ``depth`` is how many levels below the root, after folding; None is every level. ``columns`` are keys of
    ``COLUMNS``, in order. ``sort`` is the key of the column that siblings are sorted by: figures descending, texts
    ascending. ``top`` shows only the so many modules, each without its children, that have most of it, or else of
    ``metric``, as a flat list. ``filter`` shows only the modules whose path or type it matches, as a shell does file
    names (``*attn*``), at any depth. ``metric`` is the column of figures that percentages and bars are of. ``fold``
    shows blocks that repeat once.
    """

    depth: int | None = 3
    columns: Sequence[str] | None = None
    sort: str | None = None
    top: int | None = None
    filter: str | None = None
    metric: str = "forward_macs"
    fold: bool = True

    def __post_init__(self) -> None:
        check_depth(self.depth)
        check_columns(self.columns)
        if self.sort is not None and (not isinstance(self.sort, str) or self.sort not in COLUMNS):
            raise SummaryError(f"sort must be None or a column, not {self.sort!r}; allowed: {', '.join(COLUMNS)}")
        if self.top is not None and (type(self.top) is not int or self.top < 1):
            raise SummaryError(f"top must be None (all rows) or an integer from 1 on, not {self.top!r}")
        if self.filter is not None and (not isinstance(self.filter, str) or not self.filter):
            raise SummaryError(f"filter must be None or a pattern such as '*attn*', not {self.filter!r}")
        if not isinstance(self.metric, str) or self.metric not in METRICS:
            raise SummaryError(f"there is no metric {self.metric!r}; allowed: {', '.join(METRICS)}")
        if type(self.fold) is not bool:
            raise SummaryError(f"fold must be True or False, not {self.fold!r}")


def check_depth(depth: object) -> int | None:
    """``depth``, or SummaryError when it is neither None (every level) nor a number from 0 (the root alone) on."""
    if depth is None or (isinstance(depth, int) and not isinstance(depth, bool) and depth >= 0):
        return depth
    raise SummaryError(f"depth must be None (every level) or an integer from 0 (the root alone) on, not {depth!r}")


def check_columns(columns: Sequence[str] | None) -> tuple[str, ...] | None:
    """The columns' keys, None for those that suit the summary, or SummaryError when one does not exist."""
    if columns is None:
        return None
    if isinstance(columns, str) or not isinstance(columns, Sequence):
        raise SummaryError(f"columns must be a list of names, not {columns!r}; allowed: {', '.join(COLUMNS)}")
    for key in columns:
        if not isinstance(key, str) or key not in COLUMNS:
            raise SummaryError(f"there is no column {key!r}; allowed: {', '.join(COLUMNS)}")
    return tuple(columns)


@collection_paused()
def select(summary: ModelSummary, selection: Selection = Selection()) -> View:
    """The rows that are asked for, each with its whole subtree's figures, and the row of what ran outside."""
    roots = roots_of(summary, selection.fold)
    if selection.filter is not None and any(0 < sum(hits) < len(hits) for hits in _hits(roots, selection.filter)):
        roots = roots_of(summary, folded=False)  # some of the copies alone are asked for
    metric = main_metric(summary) if selection.metric == "forward_macs" else selection.metric
    columns = {**COLUMNS, **shares(metric, summary)}
    keys = default_columns(summary, metric) if selection.columns is None else tuple(selection.columns)
    if (metric, "percent") in pairwise(keys):  # beside the figures themselves
        columns["percent"] = replace(columns["percent"], title="%")
    table = _Table(summary, selection, [columns[key] for key in keys])
    if selection.top is not None:
        rows, remarks = table.top(roots, columns[selection.sort or metric], selection.top)
    else:
        rows, remarks = table.tree(roots, columns[selection.sort] if selection.sort else None)
    return View(
        title=summary.root.type_name,
        headline=tuple(headline(summary, roots)),
        columns=tuple([Heading(columns[key].title, columns[key].justify, key) for key in keys]),
        rows=tuple(rows),
        notes=(*remarks, *([CONVENTION] if summary.observed != "structure" else []), *notes(summary)),
    )


def roots_of(summary: ModelSummary, folded: bool) -> list[Item]:
    """The model and, where a step was observed, what ran outside of it, so that rows sum to the step."""
    roots = [fold(summary.root, folded)]
    return roots if summary.observed == "structure" else [*roots, Item(OUTSIDE, (outside_row(summary.outside),))]


def _hits(roots: Sequence[Item], pattern: str) -> list[list[bool]]:
    """For each item in order, which of its copies match."""
    return [
        [fnmatchcase(copy.path, pattern) or fnmatchcase(copy.type_name, pattern) for copy in item.copies]
        for item, _ in paths(roots)
    ]


class _Table:
    """The rows of items."""

    def __init__(self, summary: ModelSummary, selection: Selection, columns: Sequence[Column]) -> None:
        self._summary, self._selection, self._columns = summary, selection, columns

    def tree(self, roots: Sequence[Item], by: Column | None) -> tuple[list[Row], list[str]]:
        """The rows, parents before their children, and what is to be said of them."""
        matched, kept = self._found(roots)
        depth = self._depth(roots)
        rows: list[Row] = []
        hidden = 0
        rest: dict[int, Item] = {}
        stack: list[tuple[Item, int, tuple[bool, ...], str]]
        stack = [(item, 0, (), "") for item in reversed(roots if depth != 0 else roots[:1])]
        while stack:
            item, level, guides, above = stack.pop()
            if kept is not None and id(item) not in kept:
                continue
            path, below = path_of(item, above), level + bool(item.copies)
            children = [child for child in item.children if kept is None or id(child) in kept]
            closed = bool(children) and depth is not None and (below > depth or id(item) in rest)
            rows.append(
                Row(
                    path,
                    _label(item),
                    guides,
                    self._cells(item),
                    item.times,
                    closed,
                    matched is not None and id(item) not in matched,
                )
            )
            if closed:
                hidden += sum([len(found.copies) for found in item.walk()]) - len(item.copies)
                continue
            if by is not None:
                children.sort(key=lambda child: self._order(child, by))
            if self._selection.fold and depth is not None and len(children) > _MOST_SIBLINGS:
                more = tuple(children[_MOST_SIBLINGS - 1 :])
                others = Item(f"… {len(more):,} more", (), 1, more)
                rest[id(others)] = others
                children[_MOST_SIBLINGS - 1 :] = [others]
            stack += [
                (child, below, (*guides, place == len(children) - 1), path_within(item, above))
                for place, child in reversed(list(enumerate(children)))
            ]
        return rows, list(self._remarks(rows, hidden, depth))

    def top(self, roots: Sequence[Item], by: Column, most: int) -> tuple[list[Row], list[str]]:
        """The modules that have most, as a flat list of what each has by itself."""
        matched, _ = self._found(roots)
        alone = [
            (
                Item(path or item.label, tuple([replace(copy, children=()) for copy in item.copies]), len(item.copies)),
                path,
            )
            for item, path in paths(roots)
            if item.copies and (matched is None or id(item) in matched)
        ]
        alone.sort(key=lambda pair: self._order(pair[0], by))
        rows = [Row(path, _label(item), (), self._cells(item), item.times) for item, path in alone[:most]]
        return rows, ["each row is a module without its children", *self._remarks(rows, 0, None)]

    def _found(self, roots: Sequence[Item]) -> tuple[set[int] | None, set[int] | None]:
        """The ids of the items that the filter matches, and of these and all above them; None without a filter."""
        if self._selection.filter is None:
            return None, None
        items = [item for item, _ in paths(roots)]
        matched = {
            id(item) for item, hits in zip(items, _hits(roots, self._selection.filter), strict=True) if any(hits)
        }
        kept = set(matched)
        for item in reversed(items):
            if any(id(child) in kept for child in item.children):
                kept.add(id(item))
        return matched, kept

    def _depth(self, roots: Sequence[Item]) -> int | None:
        """How many levels are open: those that are asked for, and of repeats that are folded, as many as fit."""
        depth = self._selection.depth
        if depth is None or self._selection.filter is not None:
            return None
        if not self._selection.fold:
            return depth
        levels: dict[int, int] = {}
        stack = [(item, 0) for item in roots]
        while stack:
            item, level = stack.pop()
            levels[level] = levels.get(level, 0) + 1
            if level <= depth:
                stack += [(child, level + bool(item.copies)) for child in item.children[:_MOST_SIBLINGS]]
        rows = accumulate([levels[level] for level in sorted(levels)])
        return min(depth, max(1, sum([count <= MOST_ROWS for count in rows]) - 1))

    def _remarks(self, rows: Sequence[Row], hidden: int, depth: int | None) -> Iterator[str]:
        if self._selection.filter is not None and not rows:
            yield f"no module's path or type is like {self._selection.filter!r}"
        yield from per_copy([row.times for row in rows], (cell for row in rows for cell in row.cells))
        if hidden:
            asked = self._selection.depth
            why = "" if depth == asked else f"; depth={asked} would be more than {MOST_ROWS} rows"
            yield f"▸ has more below: {hidden:,} modules{why}; depth=None (--depth -1) shows all"

    def _cells(self, item: Item) -> tuple[str, ...]:
        return tuple([cell(self._summary, item, column) for column in self._columns])

    def _order(self, item: Item, column: Column) -> tuple[int, Any]:
        """For sorting: figures descending, what has none last; texts ascending."""
        if column.write is None:
            return 0, cell(self._summary, item, column)
        values = values_of(self._summary, item, column)
        known = [value for value in values if value is not None and value != ""]
        return (0, -max(known)) if known and None not in values else (1, 0)


def per_copy(times: Iterable[int], cells: Iterable[str]) -> Iterator[str]:
    """What is to be said of rows where one stands for several."""
    if any(count > 1 for count in times):
        differ = any(".." in text for text in cells)
        yield "rows under ×N are per copy" + ("; least..most where copies differ" if differ else "")


def cell(summary: ModelSummary, item: Item, column: Column) -> str:
    """What a column says of a row."""
    if column.key == "type" and item.copies and item.copies[0] is summary.root:
        return ""  # it is the row's label
    if column.write is None and not item.copies:
        return ", ".join(dict.fromkeys([text for child in item.children if (text := cell(summary, child, column))]))
    return column.cell(values_of(summary, item, column))


def values_of(summary: ModelSummary, item: Item, column: Column) -> list[Any]:
    """What each module that shares the row has; of a repeated sequence, what the modules of a period have."""
    if item.copies:
        return [column.value(copy, summary) for copy in item.copies]
    if not column.adds:
        return [""]
    parts = [values_of(summary, child, column) for child in item.children]
    periods = len(parts[0]) // item.children[0].times
    return [
        _sum(
            [
                value
                for child, values in zip(item.children, parts, strict=True)
                for value in values[period * child.times : (period + 1) * child.times]
            ]
        )
        for period in range(periods)
    ]


def _sum(values: Sequence[Any]) -> Any:
    known = [value for value in values if value != ""]
    return None if None in known else sum(known) if known else ""


def _label(item: Item) -> str:
    owners = list(dict.fromkeys([copy.shared_with for copy in item.copies]))
    if owners in ([], [None]):
        return item.label
    return f"{item.label} = {owners[0] or 'the root'}{', …' if len(owners) > 1 else ''}"
