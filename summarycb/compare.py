"""compare(): what changed between two summaries, path by path. Must not import torch.

Every row holds what a module itself, without its children, has gained or lost, and work outside any module is a row, so
the rows' deltas sum to the deltas of the totals.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from summarycb import units
from summarycb.errors import SummaryError
from summarycb.serialize import load
from summarycb.specs import Nested, Spec, TensorSpec, spec_text
from summarycb.step import Environment
from summarycb.tree import OUTSIDE, ModelSummary, ModuleSummary, flops, outside_row
from summarycb.view import Heading, Row, View


@dataclass(frozen=True, slots=True)
class Delta:
    """A figure in both summaries; None where it is unknown."""

    a: int | None
    b: int | None

    @property
    def delta(self) -> int | None:
        """``b - a``; None where either is unknown."""
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True)
class Change:
    """One module that is not the same in both; ``a`` or ``b`` is None where it is not there.

    ``details`` says what differs in words; the deltas are those of the module itself, without its children.
    """

    path: str
    kind: Literal["added", "removed", "changed"]
    details: str
    params: Delta
    forward_macs: Delta
    backward_macs: Delta
    saved_activations: Delta


@dataclass(frozen=True)
class Comparison:
    """Two summaries and their differences, in definition order, what was removed last."""

    a: ModelSummary
    b: ModelSummary

    @cached_property
    def metrics(self) -> Mapping[str, Delta]:
        """The totals of both, by name."""
        return {name: Delta(_total(self.a, name), _total(self.b, name)) for name in _TOTALS}

    @cached_property
    def rows(self) -> tuple[Change, ...]:
        """The modules that differ, and ``(outside)``; their deltas sum to those of the totals."""
        return tuple(_changes(self.a, self.b))

    @cached_property
    def differences(self) -> tuple[str, ...]:
        """Under what the two steps differed: batch, device, precision, optimizer, torch ..."""
        found = []
        for field in fields(Environment):
            before, after = getattr(self.a.environment, field.name), getattr(self.b.environment, field.name)
            if before != after:
                found.append(f"{field.name}: {before} → {after}")
        if self.a.observed != self.b.observed:
            found.append(f"observed: {self.a.observed} → {self.b.observed}")
        if self.a.root.inputs != self.b.root.inputs:
            found.append("input: " + " → ".join(_specs(self.a.root.inputs, self.b.root.inputs)))
        if self.a.root.calls != self.b.root.calls:
            found.append(f"forwards in the step: {self.a.root.calls} → {self.b.root.calls}")
        return tuple(found)

    @property
    def comparable(self) -> bool:
        """Both steps ran under the same conditions."""
        return not self.differences

    def view(self) -> View:
        """What is shown of it."""
        return _view(self)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, *, width: int = 100, ascii_only: bool = False) -> str:
        """The comparison as plain text."""
        from summarycb.render.terminal import to_text

        return to_text(self.view(), width=width, ascii_only=ascii_only)

    def to_markdown(self) -> str:
        """The comparison as a Markdown table."""
        from summarycb.render.markdown import to_markdown

        return to_markdown(self.view())

    def to_json(self) -> str:
        """Metrics, differences and rows as JSON."""
        document = {
            "comparable": self.comparable,
            "differences": self.differences,
            "metrics": {name: _delta_json(delta) for name, delta in self.metrics.items()},
            "rows": [
                {
                    "path": row.path,
                    "kind": row.kind,
                    "details": row.details,
                    **{name: _delta_json(getattr(row, name)) for name in _ROW_FIGURES},
                }
                for row in self.rows
            ],
        }
        return json.dumps(document, ensure_ascii=False)


def compare(a: ModelSummary | str | Path, b: ModelSummary | str | Path) -> Comparison:
    """What changed from ``a`` to ``b``: summaries, or references that :func:`summarycb.load` takes.

    Raises :class:`SummaryError` when a reference holds no summary.
    """
    return Comparison(_summary(a), _summary(b))


_TOTALS = {
    "params": "total_params",
    "trainable_params": "trainable_params",
    "buffers": "total_buffers",
    "forward_macs": "forward_macs",
    "backward_flops": "backward_flops",
    "step_flops": "step_flops",
    "hardware_flops": "hardware_flops",
}
_MEMORY = ("parameters", "gradients", "optimizer_state", "saved_activations", "weight_copies", "peak")
_TOTALS |= {f"memory_{name}": name for name in _MEMORY}
_ROW_FIGURES = ("params", "forward_macs", "backward_macs", "saved_activations")


def _summary(given: ModelSummary | str | Path) -> ModelSummary:
    if isinstance(given, ModelSummary):
        return given
    if isinstance(given, (str, Path)):
        return load(given)
    raise SummaryError(f"compare takes ModelSummary objects and references, not {type(given).__name__}")


def _total(summary: ModelSummary, name: str) -> int | None:
    value = getattr(summary.memory if name.startswith("memory_") else summary, _TOTALS[name])
    assert value is None or isinstance(value, int)
    return value


def _changes(a: ModelSummary, b: ModelSummary) -> Iterator[Change]:
    for path, after in b.modules.items():
        before = a.modules.get(path)
        if before is None:
            yield _change(path, "added", after.type_name, None, after)
        elif details := _details(before, after):
            yield _change(path, "changed", details, before, after)
    for path, before in a.modules.items():
        if path not in b.modules:
            yield _change(path, "removed", before.type_name, before, None)
    if a.outside != b.outside:
        rows = [outside_row(summary.outside) for summary in (a, b)]
        yield _change(OUTSIDE, "changed", rows[0].type_name, *rows)


def _change(
    path: str,
    kind: Literal["added", "removed", "changed"],
    details: str,
    before: ModuleSummary | None,
    after: ModuleSummary | None,
) -> Change:
    absent = ModuleSummary(path, path, "", call_groups=())
    first, second = before or absent, after or absent
    return Change(path, kind, details, *[Delta(getattr(first.own, n), getattr(second.own, n)) for n in _ROW_FIGURES])


def _details(before: ModuleSummary, after: ModuleSummary) -> str:
    """What differs in a module without its children; empty when nothing does."""
    if _itself(before) == _itself(after):
        return ""
    pairs = {
        "": (before.type_name, after.type_name),
        "config": _config(before.config, after.config),
        "output": _specs(before.outputs, after.outputs),
        "input": _specs(before.inputs, after.inputs),
        "calls": (str(before.calls), str(after.calls)),
        "training": (str(before.training), str(after.training)),
        "trainable": (_frozen(before), _frozen(after)),
        "dtype": (_dtypes(before), _dtypes(after)),
        "tied": (_tied(before), _tied(after)),
    }
    said = [f"{name} {x} → {y}".strip() for name, (x, y) in pairs.items() if x != y]
    return "; ".join(said) or "figures"


def _itself(module: ModuleSummary) -> ModuleSummary:
    groups = module.call_groups and tuple([replace(group, total=group.own) for group in module.call_groups])
    return replace(module, children=(), call_groups=groups)


def _specs(before: Spec, after: Spec) -> tuple[str, str]:
    """Both by their shapes; with every type, dtype and device where the shapes alone do not tell them apart."""
    texts = spec_text(before), spec_text(after)
    return texts if before == after or texts[0] != texts[1] else (_typed(before), _typed(after))


def _typed(spec: Spec) -> str:
    if isinstance(spec, tuple):
        return "(" + ", ".join(map(_typed, spec)) + ("," if len(spec) == 1 else "") + ")"
    if isinstance(spec, Nested):
        return spec.type_name + "{" + ", ".join(f"{name}: {_typed(item)}" for name, item in spec.items_) + "}"
    return f"{spec} {spec.dtype} {spec.device}" if isinstance(spec, TensorSpec) else str(spec)


def _config(before: str, after: str) -> tuple[str, str]:
    """The settings that differ, where both have the same ones."""
    a, b = before.split(", "), after.split(", ")
    if len(a) != len(b):
        return before, after
    changed = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
    return ", ".join(x for x, _ in changed), ", ".join(y.partition("=")[2] or y for _, y in changed)


def _frozen(module: ModuleSummary) -> str:
    return ", ".join(f"{p.name} {'yes' if p.trainable else 'no'}" for p in module.parameters)


def _dtypes(module: ModuleSummary) -> str:
    return ", ".join(sorted({p.dtype for p in module.parameters}))


def _tied(module: ModuleSummary) -> str:
    return ", ".join(f"{p.name} = {p.shared_with}" for p in module.parameters if p.shared_with) or "no"


_MARKS = {"added": "+", "removed": "-", "changed": "~"}


def _view(comparison: Comparison) -> View:
    a, b = comparison.a, comparison.b
    names = dict.fromkeys((a.root.type_name, b.root.type_name))
    headline = [("differs", comparison.differences)] if comparison.differences else []
    writers: dict[str, units.Writer] = {"params": units.exact, "forward_macs": units.count, "step_flops": units.count}
    writers |= {f"memory_{kind}": units.nbytes for kind in ("saved_activations", "peak")}
    for name, write in writers.items():
        figure = comparison.metrics[name]
        headline.append((name.removeprefix("memory_").replace("_", " "), (_figures(figure, write),)))
    rows = [
        Row(row.path, f"{_MARKS[row.kind]} {row.path or '(root)'}", (), (row.details, *_cells(row)))
        for row in comparison.rows
    ]
    if rows:
        total = Change("", "changed", "", *[_sum(comparison.rows, name) for name in _ROW_FIGURES])
        rows.append(Row("", "= sum of the rows", (), ("", *_cells(total))))
    same = len(b.modules) - sum(row.kind != "removed" and row.path != OUTSIDE for row in comparison.rows)
    return View(
        title=" → ".join(names),
        headline=tuple(headline),
        columns=(
            Heading("what", "left"),
            Heading("Δ params"),
            Heading("Δ fwd MACs"),
            Heading("Δ bwd FLOPs"),
            Heading("Δ saved act."),
        ),
        rows=tuple(rows),
        notes=(f"{same:,} of {len(b.modules):,} modules are unchanged; each row is its module without its children",),
    )


def _cells(row: Change) -> tuple[str, ...]:
    return (
        units.signed(units.exact(row.params.delta)),
        units.signed(units.count(row.forward_macs.delta)),
        units.signed(units.count(flops(row.backward_macs.delta))),
        units.signed(units.nbytes(row.saved_activations.delta)),
    )


def _sum(rows: tuple[Change, ...], name: str) -> Delta:
    deltas = [getattr(row, name).delta for row in rows]
    return Delta(0, None if None in deltas else sum(deltas))


def _figures(figure: Delta, write: units.Writer) -> str:
    change = figure.delta
    relative = f" ({100 * change / figure.a:+.1f} %)" if change and figure.a else ""
    return f"{write(figure.a)} → {write(figure.b)}   {units.signed(write(change))}{relative}"


def _delta_json(delta: Delta) -> dict[str, int | None]:
    return {"a": delta.a, "b": delta.b, "delta": delta.delta}
