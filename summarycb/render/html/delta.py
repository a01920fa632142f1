"""Two trees as one -> the rows and boxes of a comparison's page, and what is said of each. Must not import torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from summarycb import units
from summarycb.changes import FIGURES, Change, Delta, Figure, of_one
from summarycb.compared import COLUMNS, MARKS, percent, title, whole, writer
from summarycb.fold import path_of
from summarycb.merged import Item
from summarycb.render.html.icicle import Amount, Box, Icicle, laid_out
from summarycb.render.html.rows import BAR, MOST_LEVELS, Share, copy_paths, cut
from summarycb.view import Heading

TREE_COLUMNS = ("params", "forward_macs", "saved_activations")
HEADINGS = (Heading("what", "left", "what"), *[Heading(COLUMNS[key], key=key) for key in TREE_COLUMNS])
METRICS = [Heading(COLUMNS[key].removeprefix("Δ "), key=key) for key in TREE_COLUMNS]
"""What bars and icicles can show."""
_STRONGER = (0.1, 0.5)
"""A change by so much of what there was has the next stronger colour."""
WORDS = {"figures": "the same module did other work", "shapes": "the same work on other shapes or dtypes"}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the tree, as :class:`summarycb.render.html.rows.Row`; ``values`` are the deltas of ``FIGURES``.

    ``mark`` is that of its change, ``title`` says what it means, and ``classes`` are the kind of change and ``same``,
    where there is none in it that is to be told.
    """

    number: int
    level: int
    item: Item
    path: str
    type_name: str
    paths: Sequence[str] | None
    names: Sequence[str] | None
    cells: Sequence[tuple[str, str]]
    values: Sequence[float | None]
    shares: Sequence[Share]
    mark: str
    title: str
    classes: str
    has_children: bool
    ends: int
    same_as: str = ""
    colour: None = None


def rows(roots: Sequence[Item], told: Sequence[Change], most: int) -> tuple[list[Row], str]:
    """The rows of the tree, parents before their children, and what is left out of more than ``most``.

    Those in which none of the changes is that are to be told are ``same``.
    """
    items = [item for root in roots for item in root.walk()]
    found, left_out = _walked(roots), ""
    if len(found) > most:
        changed = _around(items, [item for item in items if item.change is not None])
        found, left_out = _walked(roots, changed), "what did not change is one row with all in it"
    if len(found) > most:
        levels, deepest = Counter([level for _, level in found]), 0
        while sum([levels[level] for level in range(deepest + 2)]) <= most:
            deepest += 1
        found = [(item, level) for item, level in found if level <= deepest][:most]
        left_out += f", as is what is below level {deepest}"
    ids = set(map(id, told))
    within = _around(items, [item for item in items if id(item.change) in ids])
    largest = {metric.key: max([_size(item.total[metric.key].delta) for item in items]) for metric in METRICS}
    around: dict[int, Item] = {}
    above = {-1: ""}
    lines = []
    for number, (item, level) in enumerate(found):
        paths, names = copy_paths(item, around.get(level - 1))
        around[level], above[level] = item, path_of(item, above[level - 1])
        kind = None if item.change is None else item.change.kind
        below = found[number + 1][1] if number + 1 < len(found) else 0
        lines.append(
            Row(
                number=number,
                level=level,
                item=item,
                path=above[level] or item.label,
                type_name=item.copies[0].module.type_name,
                paths=paths,
                names=names,
                cells=tuple(_cells(item)),
                values=[None if (change := item.total[name].delta) is None else float(change) for name in FIGURES],
                shares=[
                    Share(place, relative(item, metric.key), _width(item.total[metric.key].delta, largest[metric.key]))
                    for place, metric in enumerate(METRICS)
                ],
                mark="" if kind is None else MARKS["added" if kind == "wrapped" and item.told.a is None else kind],
                title="" if kind is None else WORDS.get(kind, kind),
                classes=" ".join([*([kind] if kind else []), *([] if id(item) in within else ["same"])]),
                has_children=below > level,
                ends=max(0, level - below + 1),
            )
        )
    return lines, f"{len(items) - len(lines):,} rows are left out: {left_out}" if len(lines) < len(items) else ""


def _around(items: Sequence[Item], told: Sequence[Item]) -> set[int]:
    """The ids of what is told of, and of all that it is in."""
    found = set(map(id, told))
    for item in reversed(items):
        if any(id(child) in found for child in item.children):
            found.add(id(item))
    return found


def _walked(roots: Sequence[Item], opened: Collection[int] | None = None) -> list[tuple[Item, int]]:
    found, stack = [], [(item, 0) for item in reversed(roots)]
    while stack:
        item, level = stack.pop()
        found.append((item, min(level, MOST_LEVELS)))
        if opened is None or id(item) in opened:
            stack.extend([(child, level + 1) for child in reversed(item.children)])
    return found


def _cells(item: Item) -> Iterator[tuple[str, str]]:
    yield "what", cut(said(item))
    for name in TREE_COLUMNS:
        yield delta_cell(name, item.total[name].delta)


def said(item: Item) -> str:
    """What happened to it, in words; of what is within something new or removed, nothing."""
    place, change = item.told, item.change
    if change is None or place.edit is None:
        return ""
    if place.module is not (place.edit.b or place.edit.a):
        # of what is gathered at the top of a subtree each is told as it is
        return of_one(change.details) if change.kind == "changed" else ""
    if change.before is None:
        return change.details
    above = change.before.rpartition(".")[0]
    near = above and change.path.startswith(f"{above}.")
    before = f"was {change.before[len(above) + 1 :] if near else change.before or 'the root'}"
    return "; ".join(filter(None, (before, change.details)))


def delta_cell(name: str, change: Figure) -> tuple[str, str]:
    """A class and a text."""
    kind = "" if change is None else "zero" if not change else "up" if change > 0 else "down"
    return kind, units.signed(amount(name, change))


def title_of(name: str) -> str:
    """A figure's name as it is shown; backward work is shown in FLOPs."""
    return title("backward_flops" if name == "backward_macs" else name)


def amount(name: str, value: Figure) -> str:
    """A figure as the columns show it: backward work in FLOPs."""
    return writer(name)(whole(2 * value if value is not None and name == "backward_macs" else value))


def relative(item: Item, name: str) -> str:
    """By how much of what there was a figure changed."""
    one = item.copies[0]
    if one.a is None or one.b is None:
        return "" if not (item.total[name].a or item.total[name].b) else "new" if one.a is None else "removed"
    return change_of(item.total[name])


def change_of(figure: Delta) -> str:
    """In percent; empty where nothing changed."""
    if figure.delta is None:
        return units.UNKNOWN
    if not figure.delta:
        return ""
    return percent(figure) if figure.a else "from 0"


def _size(change: Figure) -> Amount:
    if change is None:
        return 0
    return change if change > 0 else -change


def _width(change: Figure, largest: Amount) -> int:
    if not change:
        return 0
    steps = max(1, round(float(BAR * _size(change) / largest)))
    return steps if change > 0 else -steps


def about(item: Item) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What is said of a row's modules besides its cells: pairs of a heading and the facts under it."""
    place = item.copies[0]
    if len(item.copies) > 1:
        yield f"{len(item.copies)} modules, figures are of all", (f"{place.path} … {item.copies[-1].path}",)
    if item.change is not None:
        yield WORDS.get(item.change.kind, item.change.kind), tuple(filter(None, (cut(said(item)),))) or ("",)
    if place.a is not None and place.b is not None and place.a.path != place.b.path:
        yield "was", (place.a.path or "the root",)
    if place.module.config:
        yield "settings", (cut(place.module.config),)
    for name in FIGURES:
        figure, own = item.total[name], item.own[name]
        if figure.delta == 0 or not (figure.a or figure.b):
            continue
        apart = bool(item.children) and own.delta
        yield (
            title_of(name),
            (
                f"{amount(name, figure.a)} → {amount(name, figure.b)}",
                delta_cell(name, figure.delta)[1],
                *([f"{delta_cell(name, own.delta)[1]} own"] if apart else []),
            ),
        )


def icicles(roots: Sequence[Item], lines: Sequence[Row]) -> list[tuple[Icicle, Icicle | None]]:
    """For each metric that of the second tree, and that with what was removed, where anything was."""
    return [(_icicle(roots, lines, metric, False), _with_removed(roots, lines, metric)) for metric in METRICS]


def _with_removed(roots: Sequence[Item], lines: Sequence[Row], metric: Heading) -> Icicle | None:
    removed = any(row.item.copies[0].b is None and row.item.total[metric.key].a for row in lines)
    return _icicle(roots, lines, metric, True) if removed else None


def _icicle(roots: Sequence[Item], lines: Sequence[Row], metric: Heading, with_removed: bool) -> Icicle:
    known, partial = _known(roots, metric.key, with_removed)
    row_of = {id(row.item): row for row in lines}
    boxes = []
    for item, x, width, level in laid_out(roots, known):
        if (row := row_of.get(id(item))) is not None:
            figure = item.total[metric.key]
            value = f"{amount(metric.key, figure.a)} → {amount(metric.key, figure.b)}"
            boxes.append(Box(x, width, level, row, value, relative(item, metric.key) or "=", _colour(item, metric.key)))
    boxes.sort(key=lambda box: box.row.number)
    whole_of = sum([known[id(root)] for root in roots])
    return Icicle(metric.title, boxes, amount(metric.key, whole_of), partial)


def _known(roots: Sequence[Item], name: str, with_removed: bool) -> tuple[Mapping[int, Amount], bool]:
    """By ``id`` of an item, all that is known of it in the second, or else of what was removed."""
    known: dict[int, Amount] = {}
    partial = False
    for item in reversed([item for root in roots for item in root.walk()]):
        own = item.own[name].a if with_removed and item.copies[0].b is None else item.own[name].b
        partial = partial or own is None
        known[id(item)] = (own or 0) + sum([known[id(child)] for child in item.children])
    return known, partial


def _colour(item: Item, name: str) -> str:
    """``new``, ``gone``, or more or less by how much."""
    place, figure = item.copies[0], item.total[name]
    if place.a is None or place.b is None:
        return "new" if place.a is None else "gone"
    if not figure.delta:
        return ""
    share = _size(figure.delta) / figure.a if figure.a else 1
    return f"{'up' if figure.delta > 0 else 'down'}{1 + sum([share >= step for step in _STRONGER])}"
