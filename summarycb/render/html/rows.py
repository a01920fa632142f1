"""Items -> the rows of the page's tree, with everything that is said of each. Must not import torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from summarycb import units
from summarycb.columns import Column
from summarycb.fold import Item, fold
from summarycb.specs import ParameterSpec, spec_text
from summarycb.tree import OUTSIDE, ModelSummary, ModuleSummary, flops, outside_row

MOST_LEVELS = 100
"""Browsers stop nesting at a few hundred elements; what is deeper is shown at this level."""
COLOURS = 8
_BAR = 50
_MOST_TEXT, _MOST_WAYS, _MOST_COPIES = 400, 4, 8


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that bars and icicles can show: ``own`` of a module, ``total`` of its subtree."""

    key: str
    title: str
    own: Callable[[ModuleSummary], int | None]
    total: Callable[[ModuleSummary], int | None]
    whole: Callable[[ModelSummary], int | None]
    text: Callable[[int | None], str]


METRICS = (
    Metric("params", "params", lambda m: m.own.params, lambda m: m.total.params, lambda s: s.total_params, units.count),
    Metric(
        "forward_macs",
        "forward MACs",
        lambda m: m.own.forward_macs,
        lambda m: m.total.forward_macs,
        lambda s: s.forward_macs,
        units.count,
    ),
    Metric(
        "backward_flops",
        "backward FLOPs",
        lambda m: flops(m.own.backward_macs),
        lambda m: flops(m.total.backward_macs),
        lambda s: s.backward_flops,
        units.count,
    ),
    Metric(
        "saved_activations",
        "saved activations",
        lambda m: m.own.saved_activations,
        lambda m: m.total.saved_activations,
        lambda s: s.memory.saved_activations,
        units.nbytes,
    ),
)


@dataclass(frozen=True, slots=True)
class Share:
    """A row's part of a metric: the percentage, and the width of its bar in steps of two percent."""

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
    """A line of the tree; ``ends`` is how many of the nested elements are closed after it."""

    number: int
    level: int
    item: Item
    path: str
    type_name: str
    paths: tuple[str, ...]
    cells: tuple[str, ...]
    values: tuple[int | None, ...]
    shares: tuple[Share, ...]
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    parameters: tuple[Held, ...]
    colour: int | None
    ends: int = 0


def metrics(summary: ModelSummary) -> tuple[Metric, ...]:
    """Those that there are figures of."""
    step = {"structure": 0, "forward": 1, "step": 2}[summary.observed]
    return METRICS[: (1, 2, 4)[step]]


def items(summary: ModelSummary, folded: bool) -> tuple[Item, ...]:
    """The model as a tree of items, and beside it what ran outside of it."""
    root = fold(summary.root, folded)
    if summary.observed == "structure":
        return (root,)
    outside = outside_row(summary.outside)
    return root, Item(OUTSIDE, (outside,))


def rows(summary: ModelSummary, roots: Sequence[Item], columns: Sequence[Column]) -> list[Row]:
    """The rows of the tree, parents before their children."""
    shown = metrics(summary)
    wholes = [metric.whole(summary) for metric in shown]
    colours = _colours(roots)
    notes: dict[str, list[str]] = {}
    for note in summary.notes:
        if note.path is not None:
            notes.setdefault(note.path, []).append(note.text)
    found: list[Row] = []
    stack = [(item, 0, "") for item in reversed(roots)]
    while stack:
        item, level, above = stack.pop()
        path = item.copies[0].path if len(item.copies) == 1 else f"{above}.{item.label}" if above else item.label
        values = tuple([most(item, metric.total) for metric in shown])
        found.append(
            Row(
                number=len(found),
                level=min(level, MOST_LEVELS),
                item=item,
                path=path or item.label,
                type_name=type_name(item),
                paths=tuple([copy.path for copy in item.copies]),
                cells=tuple([_cell(column, item, summary) for column in columns]),
                values=values,
                shares=tuple([_share(value, whole) for value, whole in zip(values, wholes, strict=True)]),
                facts=tuple(_facts(item, summary, notes)) if item.copies else (),
                parameters=tuple(_held(item)) if item.copies else (),
                colour=None if item.children else colours.get(type_name(item)),
            )
        )
        stack.extend([(child, level + 1, path) for child in reversed(item.children)])
    after = [*[row.level for row in found[1:]], 0]
    return [replace(row, ends=max(0, row.level - below + 1)) for row, below in zip(found, after, strict=True)]


def type_name(item: Item) -> str:
    """The type of the modules that an item stands for; of a sequence, those in it."""
    if item.copies:
        return item.copies[0].type_name
    return ", ".join(dict.fromkeys([type_name(child) for child in item.children]))


def most(item: Item, value: Callable[[ModuleSummary], int | None]) -> int | None:
    """The largest of the copies' figures; of a sequence, the sum over one period."""
    parts = [value(copy) for copy in item.copies] or [most(child, value) for child in item.children]
    known = [part for part in parts if part is not None]
    return None if len(known) < len(parts) else max(known) if item.copies else sum(known)


def _share(value: int | None, whole: int | None) -> Share:
    text = units.percent(value, whole)
    return Share(text, min(_BAR, -(-_BAR * value // whole)) if value and whole else 0)


def _colours(roots: Sequence[Item]) -> dict[str, int]:
    """The types that have a colour: the leaves' with the largest shares of all metrics."""
    weights: Counter[str] = Counter()
    for metric in METRICS:
        totals: Counter[str] = Counter()
        for root in roots:
            for item in root.walk():
                if not item.children and item.copies[0].path != OUTSIDE:
                    totals[type_name(item)] += sum([metric.own(copy) or 0 for copy in item.copies])
        for name, total in totals.items():
            weights[name] += total / (totals.total() or 1)
    return {name: place for place, (name, weight) in enumerate(weights.most_common(COLOURS)) if weight}


def _cell(column: Column, item: Item, summary: ModelSummary) -> str:
    texts = dict.fromkeys([column.text(copy, summary) for copy in item.copies])
    return next(iter(texts), "")


def _between(item: Item, value: Callable[[ModuleSummary], int | None], text: Callable[[int | None], str]) -> str:
    """The figure of each copy: one text where they are equal."""
    values = [value(copy) for copy in item.copies]
    known = [part for part in values if part is not None]
    if len(known) < len(values):
        return units.UNKNOWN
    low, high = text(min(known)), text(max(known))
    return low if low == high else f"{low}..{high}"


def _facts(item: Item, summary: ModelSummary, notes: dict[str, list[str]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    module = item.copies[0]
    if len(item.copies) > 1:
        paths = [copy.path for copy in item.copies]
        shown = paths if len(paths) <= _MOST_COPIES else [*paths[: _MOST_COPIES - 1], "…", paths[-1]]
        yield f"{len(paths)} modules, figures are of each", tuple(shown)
    if module.shared_with is not None:
        yield "the same module as", (module.shared_with or "the root",)
    if module.config:
        yield "settings", (_cut(module.config),)
    for group in (module.call_groups or ())[:_MOST_WAYS] if module.path != OUTSIDE else ():
        given = group.inputs[0] if isinstance(group.inputs, tuple) and len(group.inputs) == 1 else group.inputs
        times = "called" if group.calls == 1 else f"called {group.calls} times"
        yield times, (f"{_cut(spec_text(given))} → {_cut(spec_text(group.outputs))}",)
    if module.call_groups is not None and not module.call_groups:
        yield "called", ("never",)
    circumstances = [{None: "", True: "training", False: "eval mode"}[module.training]]
    circumstances += sorted({f"{p.dtype} on {p.device}" for p in module.parameters})
    if any(circumstances):
        yield "state", tuple(filter(None, circumstances))
    if module.total.params or module.total.buffers or module.total.params is None:
        yield "params", tuple(_sizes(item))
    if any(value is None or value for value in (module.total.forward_macs, module.total.backward_macs)):
        yield "compute", tuple(_work(item))
    if summary.observed == "step":
        facts = []
        for title, field in _BYTES.items():
            text = _between(item, lambda m, field=field: getattr(m.total, field), units.nbytes)  # type: ignore[misc]  # mypy takes the default for an argument
            own = _between(item, lambda m, field=field: getattr(m.own, field), units.nbytes)  # type: ignore[misc]
            if text != "0 B":
                facts.append(
                    f"{title} {text}" + (f" ({own} own)" if item.children and own not in ("0 B", text) else "")
                )
        if facts:
            yield "memory", tuple(facts)
    for copy in item.copies[:_MOST_COPIES]:
        for text in notes.get(copy.path, ()):
            yield "note", (text,)


_BYTES = {
    "weights": "parameter_bytes",
    "gradients": "gradients",
    "optimizer state": "optimizer_state",
    "buffers": "buffer_bytes",
    "saved activations": "saved_activations",
    "weight copies": "weight_copies",
}


def _sizes(item: Item) -> Iterator[str]:
    module = item.copies[0]
    yield units.exact(module.total.params)
    if item.children and module.own.params:
        yield f"{units.exact(module.own.params)} own"
    if module.total.trainable_params != module.total.params:
        yield f"{units.exact(module.total.trainable_params)} trainable"
    if module.total.buffers:
        yield f"{units.exact(module.total.buffers)} in buffers"


def _work(item: Item) -> Iterator[str]:
    for title, metric in (("forward", METRICS[1]), ("backward", METRICS[2])):
        total, own = _between(item, metric.total, metric.text), _between(item, metric.own, metric.text)
        unit = metric.title.split()[1]
        if total not in ("0", ""):
            yield f"{title} {total}{'' if total[-1].isalpha() else ' '}{unit}" + (
                f" ({own} own)" if item.children and own not in ("0", total) else ""
            )


def _held(item: Item) -> Iterator[Held]:
    for parameter in item.copies[0].parameters:
        yield Held(
            parameter.name,
            "?" if parameter.shape is None else str(list(parameter.shape)),
            units.exact(parameter.numel),
            parameter.dtype,
            units.nbytes(parameter.bytes),
            " · ".join(_remarks(parameter)),
        )


def _remarks(parameter: ParameterSpec) -> Iterator[str]:
    if parameter.shared_with is not None:
        yield f"= {parameter.shared_with}"
    if not parameter.trainable:
        yield "frozen"
    elif parameter.gradient == 0 and parameter.shared_with is None:
        yield "no gradient"
    if parameter.local_shape is not None:
        yield f"{list(parameter.local_shape)} on this rank"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 1]}…"
