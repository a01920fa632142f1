"""Columns are data: what a column shows of a module, and how it is written. Must not import torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from summarycb import units
from summarycb.specs import Nested, ParameterSpec, spec_text, tensors_of
from summarycb.tree import OUTSIDE, ModelSummary, ModuleSummary, add, flops, outside_row


@dataclass(frozen=True)
class Column:
    """A column of the summary: its place in a list of columns is its place on screen.

    ``value`` is what a module has (its whole subtree, unless the title says otherwise) within a summary: a text, or
    where there is ``write`` a figure, None when it is unknown and ``""`` when there can be none. ``adds``: the figures
    of all modules by themselves, and of what ran outside of them, sum to the step's. ``spread``: where modules that
    share a row differ, the least and the most are shown, else the most alone.
    """

    key: str
    title: str
    value: Callable[[ModuleSummary, ModelSummary], Any]
    write: Callable[[Any], str] | None = None
    justify: Literal["left", "right"] = "right"
    adds: bool = False
    spread: bool = True

    def text(self, module: ModuleSummary, summary: ModelSummary) -> str:
        """The cell of one module; an unknown figure is ``?``."""
        value = self.value(module, summary)
        if self.write is None or value == "":
            return value  # type: ignore[no-any-return]
        return units.UNKNOWN if value is None else self.write(value)

    def cell(self, values: Sequence[Any]) -> str:
        """The cell of all modules that share a row, by their values: ``1.500..1.625 MiB``."""
        if self.write is None:
            return _between(values)
        if None in values:
            return units.UNKNOWN
        figures = [value for value in values if value != ""]
        if not figures:
            return ""
        least, most = self.write(min(figures)), self.write(max(figures))
        if least == most or not self.spread:
            return most
        number, _, unit = least.partition(" ")
        return f"{number if unit and most.endswith(f' {unit}') else least}..{most}"

    def total(self, summary: ModelSummary) -> Any:
        """The step's figure, of a column that adds; None when it is unknown."""
        return add(self.value(summary.root, summary), self.value(outside_row(summary.outside), summary))


def shares(metric: str, summary: ModelSummary) -> dict[str, Column]:
    """The columns ``percent`` and ``bar``, of another column's figures."""
    of = COLUMNS[metric]
    total = of.total(summary)

    def share(module: ModuleSummary, _: ModelSummary) -> float | str | None:
        value = of.value(module, summary)
        return None if value is None or total is None else 100 * value / total if total else ""

    titles = {"percent": f"% {of.title}", "bar": ""}
    return {key: replace(COLUMNS[key], title=title, value=share) for key, title in titles.items()}


def main_metric(summary: ModelSummary) -> str:
    """What is looked at first: the forward's MACs, or where no step was observed the parameters."""
    return "params" if summary.observed == "structure" else "forward_macs"


def _between(texts: Sequence[str]) -> str:
    """``[3..9, 64]`` of texts that differ in numbers alone, else the first with ``…`` for the others."""
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 2:
        return "".join(distinct)
    parts = [re.split(r"(\d+)", text) for text in distinct]
    if len({tuple(part[::2]) for part in parts}) > 1:
        return f"{distinct[0]} …"
    places = [sorted(set(place), key=lambda text: (len(text), text)) for place in zip(*parts, strict=True)]
    return "".join([place[0] if len(place) == 1 else f"{place[0]}..{place[-1]}" for place in places])


def _kernel(module: ModuleSummary) -> str:
    weight = next((p for p in module.parameters if p.name == "weight"), None)
    return "×".join(map(str, weight.shape[2:])) if weight is not None and weight.shape is not None else ""


def _trainable(module: ModuleSummary) -> str:
    total, trainable = module.total.params, module.total.trainable_params
    if not total:
        return units.UNKNOWN if total is None else ""
    return "yes" if trainable == total else "no" if trainable == 0 else "partly"


def _distinct(module: ModuleSummary, field: Callable[[ParameterSpec], str]) -> str:
    return ", ".join(sorted({field(p) for m in module.walk() for p in m.parameters}))


def _shape(module: ModuleSummary, which: str) -> str:
    if not module.call_groups or module.path == OUTSIDE:
        return ""
    spec = getattr(module, which)
    if isinstance(spec, tuple | Nested) and len(tensors := list(tensors_of(spec))) == 1:
        spec = tensors[0]
    others = len({(group.inputs, group.outputs) for group in module.call_groups}) - 1
    return spec_text(spec) + (f" +{others}" if others else "")


def _calls(module: ModuleSummary) -> int | str | None:
    return "" if module.shared_with is not None or module.path == OUTSIDE else module.calls


def _mode(module: ModuleSummary) -> str:
    return "" if module.training is None else "train" if module.training else "eval"


def _percent(value: float) -> str:
    return units.share(value) if value else "0"


def _share(key: str) -> Callable[[ModuleSummary, ModelSummary], Any]:
    return lambda m, s: shares(main_metric(s), s)[key].value(m, s)


def _text(key: str, title: str, value: Callable[[ModuleSummary], str]) -> Column:
    return Column(key, title, lambda m, s: value(m), justify="left")


def _sum(key: str, title: str, write: units.Writer, value: Callable[[ModuleSummary], int | None]) -> Column:
    return Column(key, title, lambda m, s: value(m), write, adds=True)


COLUMNS: dict[str, Column] = {
    column.key: column
    for column in (
        _text("type", "type", lambda m: m.type_name),
        _text("input", "input", lambda m: _shape(m, "inputs")),
        _text("output", "output", lambda m: _shape(m, "outputs")),
        _text("kernel", "kernel", _kernel),
        _text("config", "config", lambda m: m.config),
        Column("calls", "calls", lambda m, s: _calls(m), units.exact),
        _text("mode", "mode", _mode),
        _sum("params", "params", units.exact, lambda m: m.total.params),
        _text("trainable", "trainable", _trainable),
        _sum("trainable_params", "trainable params", units.exact, lambda m: m.total.trainable_params),
        _sum("buffers", "buffers", units.exact, lambda m: m.total.buffers),
        _text("dtype", "dtype", lambda m: _distinct(m, lambda p: p.dtype)),
        _text("device", "device", lambda m: _distinct(m, lambda p: p.device)),
        _sum("local_params", "local params", units.exact, lambda m: m.total.local_params),
        _sum("parameter_bytes", "param bytes", units.nbytes, lambda m: m.total.parameter_bytes),
        _sum("buffer_bytes", "buffer bytes", units.nbytes, lambda m: m.total.buffer_bytes),
        _sum("gradients", "gradients", units.nbytes, lambda m: m.total.gradients),
        _sum("optimizer_state", "opt. state", units.nbytes, lambda m: m.total.optimizer_state),
        _sum("forward_macs", "fwd MACs", units.count, lambda m: m.total.forward_macs),
        _sum("forward_flops", "fwd FLOPs", units.count, lambda m: flops(m.total.forward_macs)),
        _sum("backward_macs", "bwd MACs", units.count, lambda m: m.total.backward_macs),
        _sum("backward_flops", "bwd FLOPs", units.count, lambda m: flops(m.total.backward_macs)),
        _sum("recompute_flops", "rec. FLOPs", units.count, lambda m: flops(m.total.recompute_macs)),
        Column("percent", "%", _share("percent"), _percent, adds=True),
        Column("bar", "", _share("bar"), units.bar, "left", adds=True, spread=False),
        _sum("saved_activations", "saved act.", units.nbytes, lambda m: m.total.saved_activations),
        _sum("weight_copies", "weight copies", units.nbytes, lambda m: m.total.weight_copies),
    )
}
METRICS = tuple(key for key, column in COLUMNS.items() if column.adds and key not in ("percent", "bar"))

_DEFAULTS = {
    "structure": ("type", "config", "params", "trainable", "buffers"),
    "forward": ("type", "output", "params", "forward_macs"),
    "step": ("type", "output", "params", "forward_macs", "saved_activations"),
}


def default_columns(summary: ModelSummary, metric: str) -> tuple[str, ...]:
    """What is shown by what was observed, and beside the metric its percentages and bars."""
    keys = _DEFAULTS[summary.observed]
    shown = keys if metric in keys else (*keys, metric)
    after = shown.index(metric) + 1
    return (*shown[:after], "percent", "bar", *shown[after:])
