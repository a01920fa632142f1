"""Two summaries side by side: whole texts, and rows that sum to the totals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from summarycb import SummaryError, compare
from summarycb.compare import Delta
from summarycb.specs import Nested
from summarycb.tree import ModuleSummary, Work
from tests.literal import AGAIN, FC, ROOT, SUMMARY, group, tensor, weight

WIDER = replace(
    FC,
    config="in_features=4, out_features=6, bias=True",
    parameters=(weight("weight", 6, 4), weight("bias", 6)),
    call_groups=(group(2, (tensor(2, 4),), tensor(2, 6), Work(96, 96, 0, 128, 0)),),
)
NORM = ModuleSummary(
    path="norm",
    name="norm",
    type_name="LayerNorm",
    training=True,
    parameters=(weight("weight", 6),),
    call_groups=(group(1, (tensor(2, 6),), tensor(2, 6), Work(0, 0, 0, 48, 0)),),
)
OTHER = replace(
    SUMMARY,
    root=replace(ROOT, children=(WIDER, NORM, AGAIN)),
    outside=Work(12, 24, 0, 24, 0),
    memory=replace(SUMMARY.memory, saved_activations=128 + 48 + 24),
    environment=replace(SUMMARY.environment, precision="bfloat16 autocast"),
)

TEXT = """\
Net
differs           precision: float32 → bfloat16 autocast
params            20 → 36   +16 (+80.0 %)
forward macs      78 → 108   +30 (+38.5 %)
step flops        324 → 456   +132 (+40.7 %)
saved activations 84 B → 200 B   +116 B (+138.1 %)
peak              512 B → 512 B   0 B

module            what                                  Δ params Δ fwd MACs Δ bwd FLOPs Δ saved act.
────────────────────────────────────────────────────────────────────────────────────────────────────
~ fc              config out_features=3 → 6; output [2…      +15        +48         +96        +64 B
+ norm            LayerNorm                                   +6          0           0        +48 B
- head            Head                                        -5        -24         -48         -8 B
~ (outside)       loss, etc.                                   0         +6         +24        +12 B
= sum of the rows                                            +16        +30         +72       +116 B

2 of 4 modules are unchanged; each row is its module without its children"""


def test_the_whole_text() -> None:
    assert compare(SUMMARY, OTHER).to_text() == TEXT


def test_the_rows_sum_to_the_totals() -> None:
    c = compare(SUMMARY, OTHER)
    sums = {
        name: sum(getattr(row, name).delta for row in c.rows) for name in ("params", "forward_macs", "backward_macs")
    }
    assert sums["params"] == c.metrics["params"].delta == 16
    assert sums["forward_macs"] == c.metrics["forward_macs"].delta == 30
    assert 2 * sums["backward_macs"] == c.metrics["backward_flops"].delta == 72
    assert sum(row.saved_activations.delta or 0 for row in c.rows) == c.metrics["memory_saved_activations"].delta == 116


def test_rows_are_in_definition_order_and_say_what_differs() -> None:
    assert [(row.path, row.kind, row.details) for row in compare(SUMMARY, OTHER).rows] == [
        ("fc", "changed", "config out_features=3 → 6; output [2, 3] → [2, 6]"),
        ("norm", "added", "LayerNorm"),
        ("head", "removed", "Head"),
        ("(outside)", "changed", "loss, etc."),
    ]


def test_what_reads_the_same_is_told_apart_by_types() -> None:
    """A dict -> a ModelOutput, or float32 -> bfloat16, where the shapes alone would show no difference."""
    given, half = (Nested("arguments", (("x", tensor(2)),)), tensor(2, dtype="bfloat16"))
    spoken = {"dict": tensor(2), "ModelOutput": half}
    a, b = (
        replace(SUMMARY, root=replace(ROOT, call_groups=(group(1, given, Nested(name, (("logits", value),)), Work()),)))
        for name, value in spoken.items()
    )
    (row,) = compare(a, b).rows
    assert row.details == "output dict{logits: [2] float32 cpu} → ModelOutput{logits: [2] bfloat16 cpu}"
    a, b = (replace(SUMMARY, root=replace(ROOT, call_groups=(group(1, (v,), None, Work()),))) for v in spoken.values())
    assert compare(a, b).differences == ("input: ([2] float32 cpu,) → ([2] bfloat16 cpu,)",)


def test_the_same_has_no_rows() -> None:
    c = compare(SUMMARY, SUMMARY)
    assert c.rows == ()
    assert c.comparable
    assert all(delta.delta == 0 for delta in c.metrics.values())


def test_frozen_and_untied_are_said() -> None:
    frozen = replace(FC, parameters=(replace(FC.parameters[0], trainable=False), FC.parameters[1]))
    c = compare(SUMMARY, replace(SUMMARY, root=replace(ROOT, children=(frozen, *ROOT.children[1:]))))
    assert [row.details for row in c.rows] == ["trainable weight yes, bias yes → weight no, bias yes"]


def test_an_unknown_figure_has_no_delta() -> None:
    unknown = replace(SUMMARY, root=replace(ROOT, children=(replace(FC, call_groups=None), *ROOT.children[1:])))
    c = compare(SUMMARY, unknown)
    assert c.metrics["forward_macs"] == Delta(78, None)
    assert c.metrics["forward_macs"].delta is None
    assert "forward macs      78 → ?   ?" in c.to_text()


def test_json_and_markdown() -> None:
    c = compare(SUMMARY, OTHER)
    document = json.loads(c.to_json())
    assert document["comparable"] is False
    assert document["differences"] == ["precision: float32 → bfloat16 autocast"]
    assert document["metrics"]["params"] == {"a": 20, "b": 36, "delta": 16}
    assert document["rows"][1] == {
        "path": "norm",
        "kind": "added",
        "details": "LayerNorm",
        "params": {"a": 0, "b": 6, "delta": 6},
        "forward_macs": {"a": 0, "b": 0, "delta": 0},
        "backward_macs": {"a": 0, "b": 0, "delta": 0},
        "saved_activations": {"a": 0, "b": 48, "delta": 48},
    }
    assert "| `+ norm` | LayerNorm | +6 | 0 | 0 | +48 B |" in c.to_markdown().splitlines()


def test_references_are_loaded(tmp_path: Path) -> None:
    path = SUMMARY.save(tmp_path / "a.json")
    assert compare(path, str(path)).rows == ()
    with pytest.raises(SummaryError, match="compare takes ModelSummary objects and references, not int"):
        compare(SUMMARY, 3)  # type: ignore[arg-type]
