"""Items -> the rows of the page's tree, with everything that is said of each. Must not import torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from summarycb import units
from summarycb.columns import COLUMNS, Column
from summarycb.fold import Copied, Item, path_of, path_within
from summarycb.specs import ParameterSpec, sole, spec_text
from summarycb.tree import OUTSIDE, ModelSummary, ModuleSummary
from summarycb.units import clean
from summarycb.view import cell, values_of

MOST_LEVELS = 100
"""Browsers stop nesting at a few hundred elements; what is deeper is shown at this level."""
COLOURS = 8
BAR = 50
"""The width of the longest bar, in steps of two percent."""
_MOST_TEXT, _MOST_WAYS, _MOST_COPIES = 240, 4, 8


SHOWN = {
    "structure": ("params",),
    "forward": ("params", "forward_macs"),
    "step": ("params", "forward_macs", "backward_flops", "saved_activations"),
}
"""The columns that bars and icicles can show, by what was observed."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a row has of the metric at ``place``, in percent, and the width of its bar in steps of two percent.

    In a comparison it is by how much that changed, and the width is negative for less.
    """

    place: int
    percent: str
    width: int


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter of a row's module, or the one of each of its copies."""

    name: str
    shape: str
    elements: str
    dtype: str
    bytes: str
    remarks: str


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the tree: ``cells`` are kinds and texts, and ``ends`` is how many nested elements end after it.

    ``paths`` are those of its copies, and None where ``names`` below each path of the row around it say the same; the
    label is the name where there are no ``names``.
    """

    number: int
    level: int
    item: Item
    path: str
    type_name: str
    same_as: str
    paths: tuple[str, ...] | None
    names: tuple[str, ...] | None
    cells: tuple[tuple[str, str], ...]
    values: tuple[int | None, ...]
    shares: tuple[Share, ...]
    colour: int | None
    ends: int = 0


def metrics(summary: ModelSummary, chosen: str) -> list[Column]:
    """What bars and icicles show; ``chosen`` is one of them."""
    return [COLUMNS[key] for key in dict.fromkeys([*SHOWN[summary.observed], chosen])]


def rows(
    summary: ModelSummary,
    roots: Sequence[Item],
    columns: Sequence[Column],
    metrics: Sequence[Column],
    deepest: int | None = None,
) -> list[Row]:
    """The rows of the tree down to the level ``deepest``, parents before their children."""
    wholes = [metric.total(summary) for metric in metrics]
    colours = _colours(summary, roots, metrics)
    found: list[Row] = []
    around: dict[int, Item] = {}  # by level, what was shown last
    stack = [(item, 0, "") for item in reversed(roots)]
    while stack:
        item, level, above = stack.pop()
        path = path_of(item, above)
        values = tuple([_most(values_of(summary, item, metric)) for metric in metrics])
        shown = min(level, MOST_LEVELS)
        paths, names = copy_paths(item, around.get(shown - 1))
        around[shown] = item
        found.append(
            Row(
                number=len(found),
                level=shown,
                item=item,
                path=path or item.label,
                type_name=type_name(item),
                same_as=_same_as(item),
                paths=paths,
                names=names,
                cells=tuple([_cell(summary, item, column) for column in columns]),
                values=values,
                shares=tuple(map(_share, range(len(wholes)), values, wholes)),
                colour=None if item.children else colours.get(type_name(item)),
            )
        )
        if deepest is None or level < deepest:
            within = path_within(item, above)
            stack.extend([(child, level + 1, within) for child in reversed(item.children)])
    after = [*[row.level for row in found[1:]], 0]
    return [replace(row, ends=max(0, row.level - below + 1)) for row, below in zip(found, after, strict=True)]


def copy_paths(item: Copied, around: Copied | None) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """What a row says of the paths of its copies."""
    paths = tuple([copy.path for copy in item.copies])
    if around is None or not around.copies:
        return paths, None
    names = tuple([copy.name for copy in item.copies[: len(paths) // len(around.copies)]])
    if paths != tuple([f"{copy.path}.{name}" if copy.path else name for copy in around.copies for name in names]):
        return paths, None
    return None, None if names == (clean(item.label),) else names


def type_name(item: Item) -> str:
    """The type of the modules that an item stands for; of a sequence, those in it."""
    if item.copies:
        return item.copies[0].type_name
    return ", ".join(dict.fromkeys([type_name(child) for child in item.children]))


def _same_as(item: Item) -> str:
    """Of a module in a second place, the path of its first."""
    shared = item.copies[0].shared_with if item.copies else None
    return "" if shared is None else shared or "the root"


def _most(values: Sequence[int | None]) -> int | None:
    """The figure of the copy that has most."""
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _share(place: int, value: int | None, whole: int | None) -> Share:
    return Share(place, units.percent(value, whole), min(BAR, -(-BAR * value // whole)) if value and whole else 0)


def _colours(summary: ModelSummary, roots: Sequence[Item], metrics: Sequence[Column]) -> dict[str, int]:
    """The types that have a colour: those of the leaves that have the largest parts of all metrics."""
    leaves = [item.copies for root in roots[:1] for item in root.walk() if not item.children]
    weights: dict[str, float] = defaultdict(float)
    for metric in metrics:
        sums: Counter[str] = Counter()
        for copies in leaves:
            sums[copies[0].type_name] += sum([metric.value(copy, summary) or 0 for copy in copies])
        for name, part in sums.items():
            weights[name] += part / (sums.total() or 1)
    heaviest = sorted([name for name in weights if weights[name]], key=lambda name: -weights[name])
    return {name: place for place, name in enumerate(heaviest[:COLOURS])}


def _cell(summary: ModelSummary, item: Item, column: Column) -> tuple[str, str]:
    text = cell(summary, item, column)
    return "shape" if column.justify == "left" else "zero" if text in ("0", "0 B") else "", text


def facts(summary: ModelSummary, item: Item) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What is said of a row's modules besides its cells: pairs of a heading and the facts under it."""
    if not item.copies:
        return
    module = item.copies[0]
    if len(item.copies) > 1:
        yield f"{len(item.copies)} modules, figures are of each", (f"{module.path} … {item.copies[-1].path}",)
    if same := _same_as(item):
        yield "the same module as", (same,)
    if module.config:
        yield "settings", (cut(module.config),)
    if module.path != OUTSIDE:
        yield from _calls(module)
    circumstances = [{None: "", True: "training", False: "eval mode"}[module.training]]
    circumstances += sorted({f"{p.dtype} on {p.device}" for p in module.parameters})
    circumstances += [_FROZEN.get(COLUMNS["trainable"].text(module, summary), "")]
    if any(circumstances):
        yield "state", tuple(filter(None, circumstances))
    for heading, columns in _FIGURES.items():
        if told := tuple(_told(item, columns, summary)):
            yield heading, told
    here = {copy.path for copy in item.copies[:_MOST_COPIES]}
    for note in summary.notes:
        if note.path in here:
            yield "note", (note.text,)


def _calls(module: ModuleSummary) -> Iterator[tuple[str, tuple[str, ...]]]:
    for group in (module.call_groups or ())[:_MOST_WAYS]:
        times = "called" if group.calls == 1 else f"called {group.calls} times"
        yield times, (f"{cut(spec_text(sole(group.inputs)))} → {cut(spec_text(group.outputs))}",)
    if module.call_groups is not None and not module.call_groups:
        yield "called", ("never",)


_FROZEN = {"no": "frozen", "partly": "partly frozen"}
_FIGURES = {
    "elements": {"params": "params", "buffers": "in buffers"},
    "compute": {
        "forward_macs": "forward MACs",
        "backward_flops": "backward FLOPs",
        "recompute_flops": "recomputed FLOPs",
    },
    "memory": {
        "parameter_bytes": "weights",
        "gradients": "gradients",
        "optimizer_state": "optimizer state",
        "buffer_bytes": "buffers",
        "saved_activations": "saved activations",
        "weight_copies": "weight copies",
    },
}


def _told(item: Item, titles: Mapping[str, str], summary: ModelSummary) -> Iterator[str]:
    """The figures that are not 0, with the part that is in no child; what was observed of no module is left out."""
    for key, title in titles.items():
        column = COLUMNS[key]
        figures = [column.value(copy, summary) for copy in item.copies]
        if any(figures) or (None in figures and column.total(summary) is not None):
            own = [column.value(replace(copy, children=()), summary) for copy in item.copies if copy.children]
            apart = any(own) and own != figures
            yield f"{column.cell(figures)} {title}" + (f" ({column.cell(own)} own)" if apart else "")


def parameters(summary: ModelSummary, item: Item) -> Iterator[Held]:
    """Those of a row's module, or of each of its copies."""
    for parameter in item.copies[0].parameters if item.copies else ():
        yield Held(
            parameter.name,
            parameter.shape_text,
            units.exact(parameter.numel),
            parameter.dtype,
            units.nbytes(parameter.bytes),
            " · ".join(_remarks(parameter, summary)),
        )


def _remarks(parameter: ParameterSpec, summary: ModelSummary) -> Iterator[str]:
    if parameter.shared_with is not None:
        yield f"= {parameter.shared_with}"
    if not parameter.trainable:
        yield "frozen"
    elif summary.observed == "step" and parameter.gradient == 0 and parameter.shared_with is None:
        yield "no gradient"
    if parameter.local_shape is not None:
        yield f"{list(parameter.local_shape)} on this rank"


def cut(text: str) -> str:
    """Only the beginning of a long text."""
    return units.cut(text, _MOST_TEXT)
