"""Columns are data: what a column shows of a module, and how it is written. Must not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from summarycb import units
from summarycb.specs import ParameterSpec, spec_text
from summarycb.tree import OUTSIDE, ModelSummary, ModuleSummary, flops


@dataclass(frozen=True)
class Column:
    """A column of the summary: its place in a list of columns is its place on screen.

    ``text`` gives the cell of a module (its whole subtree, unless the title says otherwise) within a summary; an
    unknown value is written ``?``.
    """

    key: str
    title: str
    text: Callable[[ModuleSummary, ModelSummary], str]
    justify: Literal["left", "right"] = "right"


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
    if which == "inputs" and isinstance(spec, tuple) and len(spec) == 1:
        spec = spec[0]
    others = len({(group.inputs, group.outputs) for group in module.call_groups}) - 1
    return spec_text(spec) + (f" +{others}" if others else "")


def _calls(module: ModuleSummary) -> str:
    return "" if module.shared_with is not None or module.path == OUTSIDE else units.exact(module.calls)


def _mode(module: ModuleSummary) -> str:
    return "" if module.training is None else "train" if module.training else "eval"


COLUMNS: dict[str, Column] = {
    column.key: column
    for column in (
        Column("type", "type", lambda m, s: m.type_name, "left"),
        Column("input", "input", lambda m, s: _shape(m, "inputs"), "left"),
        Column("output", "output", lambda m, s: _shape(m, "outputs"), "left"),
        Column("kernel", "kernel", lambda m, s: _kernel(m), "left"),
        Column("config", "config", lambda m, s: m.config, "left"),
        Column("calls", "calls", lambda m, s: _calls(m)),
        Column("mode", "mode", lambda m, s: _mode(m), "left"),
        Column("params", "params", lambda m, s: units.exact(m.total.params)),
        Column("percent", "params %", lambda m, s: units.percent(m.total.params, s.total_params)),
        Column("trainable", "trainable", lambda m, s: _trainable(m), "left"),
        Column("buffers", "buffers", lambda m, s: units.exact(m.total.buffers)),
        Column("dtype", "dtype", lambda m, s: _distinct(m, lambda p: p.dtype), "left"),
        Column("device", "device", lambda m, s: _distinct(m, lambda p: p.device), "left"),
        Column("local_params", "local params", lambda m, s: units.exact(m.total.local_params)),
        Column("parameter_bytes", "param bytes", lambda m, s: units.nbytes(m.total.parameter_bytes)),
        Column("buffer_bytes", "buffer bytes", lambda m, s: units.nbytes(m.total.buffer_bytes)),
        Column("gradients", "gradients", lambda m, s: units.nbytes(m.total.gradients)),
        Column("optimizer_state", "opt. state", lambda m, s: units.nbytes(m.total.optimizer_state)),
        Column("forward_macs", "fwd MACs", lambda m, s: units.count(m.total.forward_macs)),
        Column("macs_percent", "MACs %", lambda m, s: units.percent(m.total.forward_macs, s.forward_macs)),
        Column("forward_flops", "fwd FLOPs", lambda m, s: units.count(flops(m.total.forward_macs))),
        Column("backward_macs", "bwd MACs", lambda m, s: units.count(m.total.backward_macs)),
        Column("backward_flops", "bwd FLOPs", lambda m, s: units.count(flops(m.total.backward_macs))),
        Column("recompute_flops", "rec. FLOPs", lambda m, s: units.count(flops(m.total.recompute_macs))),
        Column("saved_activations", "saved act.", lambda m, s: units.nbytes(m.total.saved_activations)),
        Column("weight_copies", "weight copies", lambda m, s: units.nbytes(m.total.weight_copies)),
    )
}

DEFAULT = ("type", "output", "params", "forward_macs", "macs_percent", "saved_activations")
STRUCTURE = ("type", "config", "params", "percent", "trainable", "buffers")
"""What is shown where no step was observed."""
