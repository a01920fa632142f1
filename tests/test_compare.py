"""What is told of two summaries: whole texts of literal trees and of real steps, and rows that sum to the totals.

``python -m tests.golden`` writes the texts of real steps anew; then look at ``git diff``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from summarycb import Comparison, ModelSummary, SummaryError, compare
from summarycb.changes import FIGURES, Delta, total
from summarycb.compared import Shown, percent
from summarycb.dataflow import Dataflow, FlowCall
from summarycb.specs import Nested, Spec, TensorSpec
from summarycb.step import Failure, Note
from summarycb.tree import ModuleSummary, Work
from tests.edited import MADE, made
from tests.golden import comparisons
from tests.literal import AGAIN, FC, HEAD, ROOT, SUMMARY, group, tensor, weight

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

# params: 12 + 3 + 5 = 20, and 24 + 6 + 6 = 36; forward: 48 + 24 + 6 = 78, and 96 + 12 = 108
# trainable: all but the head's 5 before, all after
# step: 2 x (78 + 48 + 24 + 12) = 324, and 2 x (108 + 96 + 24) = 456
TEXT = """\
Net
differs           precision: float32 → bfloat16 autocast
params            20 → 36 (+16, +80.0 %)
forward MACs      78 → 108 (+30, +38.5 %)
backward FLOPs    168 → 240 (+72, +42.9 %)
step FLOPs        324 → 456 (+132, +40.7 %)
saved activations 84 B → 200 B (+116 B, +138.1 %) *
peak              512 B *
trainable params  15 → 36 (+21, +140.0 %)

module            what               Δ params Δ fwd MACs Δ bwd FLOPs Δ saved act.*
──────────────────────────────────────────────────────────────────────────────────
~ fc              out_features=3 → 6      +15        +48         +96         +64 B
- head            Head                     -5        -24         -48          -8 B
+ norm            LayerNorm                +6          0           0         +48 B
· (outside)       loss, etc.                0         +6         +24         +12 B
= sum of the rows                         +16        +30         +72        +116 B

2 of 4 modules are unchanged; a row of + or - has all that is in it, another its modules without
their children
+ added, - removed, ~ resized, · did other work
* says nothing of the model alone, because it changes with: precision"""


def assert_closes(comparison: Comparison) -> None:
    """For every figure that adds up over modules, the rows' deltas sum to the delta of the totals, if it is known."""
    for name in FIGURES:
        delta = comparison.metrics[name].delta
        assert delta is None or total([row.figures[name].delta for row in comparison.rows]) == delta, name


def with_root(*children: ModuleSummary) -> ModelSummary:
    return replace(SUMMARY, root=replace(ROOT, children=children))


def said(a: ModelSummary, b: ModelSummary) -> list[tuple[str, str, str]]:
    comparison = compare(a, b)
    assert_closes(comparison)
    return [(row.kind, row.path, row.details) for row in comparison.rows]


def test_the_whole_text() -> None:
    assert compare(SUMMARY, OTHER).to_text() == TEXT
    assert_closes(compare(SUMMARY, OTHER))


@pytest.mark.parametrize("name", MADE)
def test_the_whole_text_of_a_real_step(name: str) -> None:
    expected, texts = comparisons()
    assert texts[name]() == expected[name]


@pytest.mark.parametrize("name", MADE)
def test_the_rows_sum_to_the_totals_of_a_real_step(name: str) -> None:
    for one, other in (("base", name), (name, "base")):
        assert_closes(compare(made(one), made(other)))


@pytest.mark.parametrize(
    ("name", "differences"),
    [("base", []), ("compiled", []), ("DDP", ["strategy: not known → DistributedDataParallel"])],
)
def test_wrappers_are_no_difference_of_the_model(name: str, differences: list[str]) -> None:
    """But the copies of gradients that DDP holds are in the peak, which is marked."""
    comparison = compare(made("base"), made(name))
    assert comparison.rows == ()
    assert list(map(str, comparison.differences)) == differences
    assert ("memory_peak" in comparison.incomparable) == bool(differences)


def test_blocks_out_of_stages_are_where_they_were() -> None:
    """3 x 4 blocks -> 12: the stages are gone, the blocks and all within are what they were."""
    assert said(made("in stages"), made("base")) == [
        ("removed", "h.0-2", "Stage (2 modules)"),
        ("regrouped", "h.*", ""),
    ]


@pytest.mark.parametrize(("per", "parts"), [("sample", (2, 4)), ("token", (2 * 8, 4 * 8))])
def test_twice_the_batch_is_the_same_work_for_each_part(per: str, parts: tuple[int, int]) -> None:
    a, b = made("base"), made("batch of 4")
    comparison = compare(a, b, per=per)  # type: ignore[arg-type]
    assert_closes(comparison)
    assert a.forward_macs is not None
    assert comparison.metrics["forward_macs"] == Delta(
        Fraction(a.forward_macs, parts[0]), Fraction(2 * a.forward_macs, parts[1])
    )
    assert comparison.metrics["forward_macs"].delta == comparison.metrics["backward_macs"].delta == 0
    # the loss alone, one number of 4 bytes for any batch, is not twice as large
    assert comparison.metrics["saved_activations"].delta == Fraction(4, parts[1]) - Fraction(4, parts[0])
    assert [(row.kind, row.path) for row in comparison.rows if row.figures["saved_activations"].delta] == [
        ("figures", "(outside)")
    ]
    assert "forward_macs" not in comparison.incomparable
    assert {"saved_activations", "memory_peak"} <= set(comparison.incomparable)


def test_what_does_the_same_for_any_batch_is_less_for_each_sample() -> None:
    """48 MACs for 2 samples are 24 for each, for 4 they are 12; and 6 outside are 3, and 1.5."""
    a, b = (
        replace(SUMMARY, root=replace(ROOT, call_groups=(group(1, (tensor(n, 4),), None, Work(0, 0, 0, 0, 0)),)))
        for n in (2, 4)
    )
    comparison = compare(a, b, per="sample")
    assert_closes(comparison)
    assert [(row.path, row.details, row.figures["forward_macs"].delta) for row in comparison.rows] == [
        ("", "input ([2, 4],) → ([4, 4],)", 0),
        ("fc", "the same in the whole step, divided by 2 → 4", 12 - 24),
        ("head", "the same in the whole step, divided by 2 → 4", 6 - 12),
        ("(outside)", "loss, etc.", Fraction(3, 2) - 3),
    ]


def uncalled(batch: int, *first: int) -> ModelSummary:
    """Of a step that calls the root's children, as a ``training_step`` does: by the dataflow those in ``first``."""
    fc = replace(FC, call_groups=(group(1, (tensor(batch, 4),), tensor(batch, 3), Work(48, 48, 0, 64, 0)),))
    head = replace(HEAD, call_groups=(group(1, (tensor(batch, 3),), tensor(batch, 5), Work(24, 24, 0, 8, 0)),))
    flow = Dataflow(tuple(FlowCall(module, None) for module in first), (), ())
    root = replace(ROOT, call_groups=(), children=(fc, head))
    return replace(SUMMARY, root=root, dataflow=flow if first else None)


def test_a_model_whose_own_forward_is_not_called_was_given_what_the_step_called_first() -> None:
    """A LightningModule's ``training_step`` calls a child: without a root's inputs its batch would go unnoticed."""
    assert [uncalled(2).entry.path, uncalled(2, 2, 1).entry.path, SUMMARY.entry.path] == ["fc", "head", ""]
    c = compare(uncalled(2), uncalled(8))
    assert list(map(str, c.differences)) == ["input: [2, 4] → [8, 4]"]
    assert "forward_macs" in c.incomparable
    c = compare(uncalled(2), uncalled(8), per="sample")
    # fc 48 and head 24 and outside 6 MACs
    assert c.metrics["forward_macs"] == Delta(Fraction(78, 2), Fraction(78, 8))


def test_of_several_that_a_step_calls_the_batch_is_that_of_all() -> None:
    """As of queries, which are as many for any batch, and images: what the first was given says nothing of the rest."""
    a, b = uncalled(2), uncalled(8)
    queries = a.root.children[0]
    b = replace(b, root=replace(b.root, children=(queries, b.root.children[1])), memory=replace(b.memory, batch=400))
    c = compare(replace(a, memory=replace(a.memory, batch=100)), b)
    assert list(map(str, c.differences)) == ["batch: 100 B → 400 B"]
    assert "forward_macs" in c.incomparable
    with pytest.raises(SummaryError, match="needs one number of samples; the step calls modules with 2, 8"):
        compare(a, b, per="sample")


def test_what_two_inputs_are_is_not_confused() -> None:
    """Texts of 32 and labels of 4 are not texts of 4 and labels of 32; a mask is one in integers, too."""
    ids, labels = tensor(2, 32, dtype="int64"), tensor(2, 4, dtype="int64")
    for one, other in (
        ((ids, labels), (labels, ids)),
        (
            Nested("arguments", (("ids", ids), ("labels", labels))),
            Nested("arguments", (("ids", labels), ("labels", ids))),
        ),
    ):
        assert "forward_macs" in compare(given((1, one)), given((1, other))).incomparable
    c = compare(given((1, (IDS, MASK))), given((1, (IDS, IDS))))
    assert [difference.condition for difference in c.differences] == ["input dtype"]


def given(*groups: tuple[int, object], **changed: Any) -> ModelSummary:
    """Of a step whose forwards were given so much, so often."""
    calls = tuple(group(n, inputs, None, Work(0, 0, 0, 0, 0)) for n, inputs in groups)  # type: ignore[arg-type]
    return replace(SUMMARY, root=replace(ROOT, call_groups=calls), **changed)


IDS, MASK = tensor(2, 8, dtype="int64"), tensor(2, 8, dtype="bool")
# what two steps were given, and what is said of it
GIVEN = {
    "in another container": (Nested("dict", (("x", tensor(2, 4)),)), Nested("UserDict", (("x", tensor(2, 4)),)), []),
    "by name": ((tensor(2, 4),), Nested("arguments", (("x", tensor(2, 4)), ("scale", None))), []),
    "in another order": (
        Nested("arguments", (("a", IDS), ("b", MASK))), Nested("arguments", (("b", MASK), ("a", IDS))), [],
    ),
    "with a count": ((IDS,), (IDS, tensor(dtype="int64")), []),
    "on another device": (tensor(2, 4), tensor(2, 4, device="cuda:1"), []),
    "of another integer type": (IDS, tensor(2, 8, dtype="int32"), ["input dtype: [2, 8] int64 → [2, 8] int32"]),
    "embedded": (IDS, tensor(2, 8), ["input: [2, 8] int64 → [2, 8] float32"]),
    "with a mask": ((IDS,), (IDS, MASK), ["input: [2, 8] → ([2, 8], [2, 8])"]),
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_what_a_step_was_given_differs_in_what_changes_its_work(name: str) -> None:
    """By the shapes and kinds of the tensors, in whatever they are; another dtype changes what is saved alone."""
    one, other, expected = GIVEN[name]
    c = compare(given((1, one)), given((1, other)))
    assert list(map(str, c.differences)) == expected
    assert ("forward_macs" in c.incomparable) == any(text.startswith("input:") for text in expected)
    assert ("saved_activations" in c.incomparable) == bool(expected)


def test_every_forward_counts() -> None:
    """A last batch that is smaller, of 3: 7 samples. Twice as many forwards with the same are no other input."""
    full, last = tensor(4, 4), tensor(3, 4)
    c = compare(given((2, full)), given((1, full), (1, last)))
    assert list(map(str, c.differences)) == ["input: [4, 4] → [4, 4] ×1, [3, 4] ×1"]
    # fc 48, head 24 and outside 6 are 78 MACs
    c = compare(given((2, full)), given((1, full), (1, last)), per="sample")
    assert c.metrics["forward_macs"] == Delta(Fraction(78, 8), Fraction(78, 7))
    assert "forward_macs" not in c.incomparable
    c = compare(given((1, full), (1, last)), given((2, full), (2, last)))
    assert list(map(str, c.differences)) == ["forwards in the step: 2 → 4"]


def test_what_several_backwards_left_is_of_no_number_of_samples() -> None:
    """Where batches are accumulated, what is saved is that of one of them: it is told as it is."""
    again = given((2, tensor(4, 4)), notes=(Note("backwards", "backward ran 2 times within the step"),))
    c = compare(given((1, tensor(8, 4))), again, per="sample")
    assert c.metrics["forward_macs"] == Delta(Fraction(78, 8), Fraction(78, 8))
    assert c.metrics["saved_activations"] == Delta(84, 84)
    assert "saved_activations" in c.incomparable
    assert "forward_macs" not in c.incomparable


def test_an_input_that_has_no_batch_hides_no_larger_one() -> None:
    c = compare(given((1, (tensor(1), tensor(8, 4)))), given((1, (tensor(1), tensor(16, 4)))), per="sample")
    assert "forward_macs" in c.incomparable


@pytest.mark.parametrize("ids", [tensor(8, 3, 4, 4, dtype="uint8"), tensor(8, 3, dtype="uint8"), tensor(8, 3)], ids=str)
def test_what_are_no_tokens_cannot_be_counted_as_such(ids: TensorSpec) -> None:
    with pytest.raises(SummaryError, match=r"token ids \[batch, length\] as its first input; Net had \[8, 3"):
        compare(given((1, ids)), given((1, ids)), per="token")


def test_a_step_that_failed_is_no_measure() -> None:
    """What it did before it raised is a part of the work."""
    broken = replace(SUMMARY, failure=Failure("RuntimeError", "backward"))
    c = compare(SUMMARY, broken)
    assert list(map(str, c.differences)) == ["failed: no → RuntimeError in the backward"]
    assert {"forward_macs", "backward_macs", "gradients", "memory_peak"} <= set(c.incomparable)
    assert "params" not in c.incomparable


ENVIRONMENTS = {
    "a plain loop and a Trainer, one process": ((None, None), ("SingleDeviceStrategy", 1), False),
    "two processes": ((None, None), ("DDPStrategy", 2), True),
    "a strategy in one process": (("SingleDeviceStrategy", 1), ("DeepSpeedStrategy", 1), True),
    "a plain loop of two": (("DistributedType.NO", 1), (None, 2), True),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_one_process_with_the_whole_model_is_one(name: str) -> None:
    one, other, changes = ENVIRONMENTS[name]
    a, b = (
        replace(SUMMARY, environment=replace(SUMMARY.environment, strategy=strategy, world_size=size))
        for strategy, size in (one, other)
    )
    assert ("optimizer_state" in compare(a, b).incomparable) == changes
    assert compare(a, b).differences  # they are told all the same


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (200, 201, "+0.5 %"),
        (1_000, 40_000, "+3,900.0 %"),
        (2_000, 2_001, "+0.1 %"),  # 0.05
        (124_439_808, 124_439_040, "<0.1 % less"),  # 768 less, 0.0006 %
        (7, 7, "+0.0 %"),
    ],
)
def test_a_change_is_never_said_to_be_nothing(a: int, b: int, said: str) -> None:
    assert percent(Delta(a, b)) == said


def test_what_reads_the_same_is_told_apart_by_types() -> None:
    """A dict -> a ModelOutput, or float32 -> bfloat16, where the shapes alone would show no difference."""
    given, half = (Nested("arguments", (("x", tensor(2)),)), tensor(2, dtype="bfloat16"))

    def answering(value: object, given: object = given) -> ModelSummary:
        return replace(SUMMARY, root=replace(ROOT, call_groups=(group(1, given, value, Work()),)))  # type: ignore[arg-type]

    one, other = Nested("dict", (("logits", tensor(2)),)), Nested("ModelOutput", (("logits", half),))
    (row,) = compare(answering(one), answering(other)).rows
    assert row.details == "output dict{logits: [2] float32 cpu} → ModelOutput{logits: [2] bfloat16 cpu}"
    (row,) = compare(answering(tensor(2)), answering(half)).rows
    assert row.details == "output float32 → bfloat16"
    (row,) = compare(answering((tensor(2), half)), answering((half, tensor(2)))).rows
    assert row.details == "output ([2] float32 cpu, [2] bfloat16 cpu) → ([2] bfloat16 cpu, [2] float32 cpu)"
    a, b = answering(None, (tensor(2),)), answering(None, (half,))
    assert [str(difference) for difference in compare(a, b).differences] == ["input dtype: [2] float32 → [2] bfloat16"]


def test_an_input_is_told_where_the_output_is_the_same() -> None:
    longer = replace(FC, call_groups=(group(2, (tensor(5, 4),), tensor(2, 3), Work(48, 48, 0, 64, 0)),))
    assert said(SUMMARY, with_root(longer, HEAD, AGAIN)) == [("shapes", "fc", "input ([2, 4],) → ([5, 4],)")]
    both = replace(FC, call_groups=(group(2, (tensor(5, 4),), tensor(5, 3), Work(48, 48, 0, 64, 0)),))
    assert said(SUMMARY, with_root(both, HEAD, AGAIN)) == [("shapes", "fc", "output [2, 3] → [5, 3]")]


def test_of_long_inputs_what_differs_is_told() -> None:
    """Each layer of a decoder is given the cache of those before it: more in each, and the same in words."""

    def layers(heads: int) -> ModelSummary:
        def given(count: int) -> Nested:
            pair = Nested("Layer", (("keys", tensor(2, heads, 16, 8)), ("values", tensor(2, heads, 16, 8))))
            return Nested("arguments", (("x", tensor(2)), ("cache", Nested("Cache", (("of", (pair,) * count),)))))

        calls = [(group(1, given(count), tensor(2), Work()),) for count in (1, 2)]
        blocks = [replace(FC, path=f"h.{n}", name=str(n), call_groups=called) for n, called in enumerate(calls)]
        return with_root(ModuleSummary("h", "h", "List", call_groups=(), children=tuple(blocks)))

    (row,) = compare(layers(4), layers(2)).rows
    assert (row.path, row.times) == ("h.*", 2)
    assert row.details == "input cache.of.0.keys [2, 4, 16, 8] → [2, 2, 16, 8], and others"
    above = compare(layers(4), layers(2)).view(Shown(depth=1, only=("shapes",))).rows[0]
    assert (above.label, above.cells[0]) == ("~ h", "2 did it on other shapes")

    def answering(value: Spec) -> ModelSummary:
        return with_root(replace(FC, call_groups=(group(1, (tensor(2, 4),), value, Work()),)), HEAD, AGAIN)

    many = tuple((f"state_{n}", tensor(2, 8, 32)) for n in range(8))
    whole = Nested("Output", many)
    for other, details in (
        (Nested("Output", many[1:]), "output without state_0"),
        (Nested("dict", many), "output Output → dict"),
        (Nested("Output", (*many[:7], ("state_7", None))), "output state_7 [2, 8, 32] → None"),
        (Nested("Output", (*many[:7], ("state_7", whole))), "output state_7 [2, 8, 32] → Output"),
        (None, "output Output → None"),
        (Nested("Output", ()), "output without state_0, and others"),
    ):
        assert said(answering(whole), answering(other)) == [("shapes", "fc", details)]
    (turned,) = said(answering(whole), answering(Nested("Output", many[::-1])))
    assert turned[2] == f"output {whole} → {Nested('Output', many[::-1])}"


@pytest.mark.parametrize(
    ("before", "after", "details"),
    [
        ("4, 3, kernel_size=(3, 3), bias=False", "4, 3, kernel_size=(3, 3), groups=4, bias=False", "with groups=4"),
        ("8, 8, padding=(1, 1)", "8, 2", "8 → 2, without padding=(1, 1)"),
        ("", "inplace=True", "with inplace=True"),
        ("4, 3", "4, 3, 2", "4, 3 → 4, 3, 2"),
        ("", "(4,)", "nothing set → (4,)"),
        ("a=1, a=2", "a=1, a=3", "a=2 → a=3"),
        ("a=1, b=2", "b=2, a=1", "a=1, b=2 → b=2, a=1"),
    ],
)
def test_of_the_settings_those_that_differ_are_said(before: str, after: str, details: str) -> None:
    """A convolution does not tell its default settings: one that has groups has one setting more."""
    a, b = (with_root(replace(FC, config=config), HEAD, AGAIN) for config in (before, after))
    assert said(a, b) == [("changed", "fc", details)]


def test_calls_that_had_other_figures_had_the_same_outputs() -> None:
    """Two calls alike are one group, of which one may save less than the other: nothing is said of their shapes."""
    given, gave = (tensor(2, 4),), tensor(2, 3)
    apart = (group(1, given, gave, Work(24, 24, 0, 32, 0)), group(1, given, gave, Work(24, 24, 0, 0, 0)))
    assert said(SUMMARY, with_root(replace(FC, call_groups=apart), HEAD, AGAIN)) == [("figures", "fc", "Linear")]


def test_what_runs_again_in_backward_is_said() -> None:
    again = replace(FC, call_groups=(group(2, (tensor(2, 4),), tensor(2, 3), Work(48, 48, 48, 0, 0)),))
    other = with_root(again, HEAD, AGAIN)
    assert said(SUMMARY, other) == [("figures", "fc", "runs again in backward")]
    assert said(other, SUMMARY) == [("figures", "fc", "no longer runs again in backward")]


def test_of_a_long_path_the_mark_and_the_end_are_shown() -> None:
    deep = replace(NORM, path="a.model.that.is.within.many.others.and.then.some.norm")
    (line,) = [
        line
        for line in compare(SUMMARY, with_root(FC, HEAD, AGAIN, deep)).to_text(width=70).splitlines()
        if "norm" in line
    ]
    assert line.startswith("+ …")
    assert ".and.then.some.norm " in line


def test_in_eighty_columns_what_changed_has_room() -> None:
    """Backward work, which is mostly as forward work is, goes before it."""
    deep = replace(FC, path="a.model.that.is.within.many.others.and.then.some.fc")
    wide = replace(deep, config=deep.config.replace("out_features=3", "out_features=6"))
    text = compare(with_root(deep, HEAD, AGAIN), with_root(wide, HEAD, AGAIN)).to_text(width=80)
    assert [line for line in text.splitlines() if "what" in line or ".fc" in line or "no room" in line] == [
        "module                       what               Δ params Δ fwd MACs Δ saved act.",
        "~ …y.others.and.then.some.fc out_features=3 → 6        0          0          0 B",
        "no room for Δ bwd FLOPs",
    ]


def test_work_that_runs_again_is_in_the_headline_where_no_other_total_has_it() -> None:
    """Checkpoints on: the model does the same work, and less is saved; what that costs is said beside it."""
    again = replace(FC, call_groups=(group(2, (tensor(2, 4),), tensor(2, 3), Work(48, 48, 48, 0, 0)),))
    c = compare(SUMMARY, with_root(again, HEAD, AGAIN))
    heading, (said_of_it,) = c.view().headline[-1]
    assert heading == "hardware FLOPs"
    assert "(+96, " in said_of_it  # 48 MACs x 2
    assert "hardware FLOPs" not in dict(compare(SUMMARY, with_root(HEAD, AGAIN)).view().headline)


def test_one_parameter_that_froze_is_named() -> None:
    part = replace(FC, parameters=(replace(FC.parameters[0], trainable=False), FC.parameters[1]))
    assert said(SUMMARY, with_root(part, HEAD, AGAIN)) == [("changed", "fc", "weight frozen")]
    whole = replace(FC, parameters=tuple(replace(p, trainable=False) for p in FC.parameters))
    assert said(SUMMARY, with_root(whole, HEAD, AGAIN)) == [("changed", "fc", "frozen")]
    assert said(with_root(whole, HEAD, AGAIN), SUMMARY) == [("changed", "fc", "unfrozen")]


def stack(**turned: str) -> ModelSummary:
    """h.0 and h.1, each of a Linear ``up`` and a ReLU ``act``; in lower case what is in eval, ``F`` is frozen."""

    def leaf(path: str, name: str, parameters: int) -> ModuleSummary:
        states = turned.get(path.replace(".", "_"), "")
        held = tuple(weight(f"p{number}", 3, trainable="F" not in states) for number in range(parameters))
        return ModuleSummary(f"{path}.{name}", name, name.title(), "", "e" not in states, held, call_groups=())

    def block(number: int) -> ModuleSummary:
        path = f"h.{number}"
        states = turned.get(path.replace(".", "_"), "")
        return ModuleSummary(
            path, str(number), "Block", training="e" not in states, call_groups=(),
            children=(leaf(path, "up", 1), leaf(path, "act", 0)),
        )  # fmt: skip

    blocks = ModuleSummary("h", "h", "List", training=True, call_groups=(), children=(block(0), block(1)))
    return replace(SUMMARY, root=replace(ROOT, children=(blocks, FC)))


@pytest.mark.parametrize(
    ("numbers", "path"),
    [
        ((0, 1, 2, 3, 4, 5, 6, 7), "*"),
        ((0, 1), "0-1"),
        ((0, 4), "0, 4"),
        ((0, 1, 4, 5, 6), "0-1, 4-6"),
        ((0, 2, 4, 6), "0, 2, 4, …"),
    ],
)
@pytest.mark.parametrize("name", ["{}", "{}.0", "0.{}.0"])
def test_which_of_equal_blocks_changed_is_said(name: str, numbers: Sequence[int], path: str) -> None:
    """A star stands for all that there are; of two of eight that were frozen it would not say which.

    Others are there that differ in another number, as the layers of each block do.
    """

    def blocks(*frozen: int) -> ModelSummary:
        paths = [f"h.{name.format(n)}" for n in range(8)]
        each = [
            replace(FC, path=path, name=path, parameters=(weight("weight", 3, 4, trainable=n not in frozen),))
            for n, path in enumerate(paths)
        ]
        each += [replace(FC, path=f"{path[:-1]}9", name=path) for path in paths if name != "{}"]
        return replace(SUMMARY, root=replace(ROOT, children=(replace(NORM, path="h", name="h", children=tuple(each)),)))

    assert [(row.path, row.details) for row in compare(blocks(), blocks(*numbers)).rows] == [
        (f"h.{name.format(path)}", "frozen")
    ]


def test_modules_may_nest_deeper_than_python_calls() -> None:
    """What is hashed, or asked for equality, with all that is in it, would be an error."""

    def nested(trainable: bool) -> ModelSummary:
        path = ".".join(["inner"] * 1_500)
        inside = [replace(FC, path=f"{path}.{name}", name=name, parameters=FC.parameters[:1]) for name in "012"]
        inside[1:] = [replace(one, parameters=(replace(one.parameters[0], trainable=trainable),)) for one in inside[1:]]
        children = tuple(inside)
        for _ in range(1_500):
            children = (replace(NORM, path=path, name="inner", type_name="Shell", parameters=(), children=children),)
            path = path.rpartition(".")[0]
        return replace(SUMMARY, root=replace(ROOT, children=children))

    comparison = compare(nested(True), nested(False))
    (row,) = comparison.rows
    assert (row.path[-9:], row.times, row.details) == ("inner.1-2", 2, "frozen")
    for write in (comparison.to_text, comparison.to_html, comparison.to_json):
        assert "inner.1-2" in write()


def test_what_turned_alike_throughout_a_subtree_is_one_row() -> None:
    base = stack()
    # the block, and the two in it
    assert said(base, stack(h_1="e")) == [("changed", "h.1", "train → eval (3 modules)")]
    # ``up`` alone has something that could freeze: there is nothing to gather
    assert said(base, stack(h_1="F")) == [("changed", "h.1.up", "frozen")]
    assert said(base, stack(h_0="F", h_1="F")) == [("changed", "h", "frozen (2 modules)")]
    # h itself still trains, so the blocks are told, in one row as they differ in a number
    assert said(base, stack(h_0="e", h_1="e")) == [("changed", "h.*", "train → eval (3 modules)")]
    # of two that turned at once: ``up`` did both, what has no parameters did one
    assert said(base, stack(h_1="eF")) == [
        ("changed", "h.1", "train → eval (2 modules)"),
        ("changed", "h.1.up", "train → eval; frozen"),
    ]


def test_what_was_so_before_is_not_gathered() -> None:
    """A block of which one module was frozen before is no block that froze: its other modules are rows."""
    base, both = stack(h_0="F"), stack(h_0="F", h_1="F")
    assert said(base, both) == [("changed", "h.1.up", "frozen")]
    assert said(both, base) == [("changed", "h.1.up", "unfrozen")]


def test_what_no_column_tells_is_said_in_words() -> None:
    """Momentum: one more state for each weight, of which the columns have none; and the headline has it then."""
    head = replace(
        HEAD, parameters=tuple(replace(p, optimizer_state=(p.optimizer_state or 0) + 64) for p in HEAD.parameters)
    )
    c = compare(SUMMARY, with_root(FC, head, AGAIN))
    assert_closes(c)
    assert [row.cells[0] for row in c.view().rows] == ["Head, optimizer state +64 B", ""]


def test_a_pattern_that_fits_nothing_is_an_error() -> None:
    c = compare(SUMMARY, OTHER)
    for wrong in ("fc", 3, None, [""]):
        with pytest.raises(SummaryError, match="only must be a list of kinds"):
            c.to_text(only=wrong)  # type: ignore[arg-type]
    assert c.to_text(only=(kind for kind in ["added"])) == c.to_text(only=["added"])  # type: ignore[arg-type]
    with pytest.raises(SummaryError, match="only='nrom' fits no module, and is no kind of change; these are added,"):
        c.to_text(only=["nrom"])
    assert "norm" in c.to_text(only=["norm"])
    assert "only the rows that were asked for are shown: fc*, moved" in c.to_text(only=["fc*", "moved"])


def test_ascii_tells_what_did_otherwise_from_what_was_removed() -> None:
    lines = compare(SUMMARY, OTHER).to_text(ascii_only=True).splitlines()
    assert "".join(lines).isascii()
    assert [line[:2] for line in lines if line[1:2] == " "] == ["~ ", "- ", "+ ", ". ", "= ", "2 ", "+ ", "* "]


def test_an_unknown_figure_has_no_delta() -> None:
    unknown = with_root(replace(FC, call_groups=None), HEAD, AGAIN)
    c = compare(SUMMARY, unknown)
    assert_closes(c)
    assert c.metrics["forward_macs"] == Delta(78, None)
    assert c.metrics["forward_macs"].delta is None
    assert "forward MACs      78 → ? (?)" in c.to_text()


NEW = {"type": "LayerNorm", "input": "([2, 6],)", "output": "[2, 6]"}
NEW |= {"dtype": "float32", "device": "cpu", "trainable": "yes", "mode": "train"}


def test_json_and_markdown() -> None:
    c = compare(SUMMARY, OTHER)
    document = json.loads(c.to_json())
    assert document["comparison_version"] == 1
    assert document["comparable"] is False
    assert [(d["condition"], d["a"], d["b"]) for d in document["differences"]] == [
        ("precision", "float32", "bfloat16 autocast")
    ]
    assert document["metrics"]["params"] == {"a": 20, "b": 36, "delta": 16}
    nothing = {"a": 0, "b": 0, "delta": 0}
    assert document["rows"][2] == {
        "kind": "added",
        "path": "norm",
        "before": None,
        "times": 1,
        "details": "LayerNorm",
        "places": [{"a": None, "b": "norm", "differs": {name: {"a": None, "b": fact} for name, fact in NEW.items()}}],
        **dict.fromkeys(FIGURES, nothing),
        "params": {"a": 0, "b": 6, "delta": 6},
        "trainable_params": {"a": 0, "b": 6, "delta": 6},
        # a weight of 6 x 4 = 24 bytes, a gradient as large, and twice of it in the optimizer
        "parameter_bytes": {"a": 0, "b": 24, "delta": 24},
        "gradients": {"a": 0, "b": 24, "delta": 24},
        "optimizer_state": {"a": 0, "b": 48, "delta": 48},
        "saved_activations": {"a": 0, "b": 48, "delta": 48},
    }
    assert "| `+ norm` | LayerNorm | +6 | 0 | 0 | +48 B |" in c.to_markdown().splitlines()


@pytest.mark.parametrize("name", ["deeper, mlp wider", "LoRA", "in stages", "tied"])
def test_what_was_stored_is_compared_the_same(name: str, tmp_path: Path) -> None:
    a, b = made("base"), made(name)
    stored = [ModelSummary.from_json(summary.to_json()) for summary in (a, b)]
    assert compare(*stored).to_json() == compare(a, b).to_json()


def test_references_are_loaded(tmp_path: Path) -> None:
    path = SUMMARY.save(tmp_path / "a.json")
    assert compare(path, str(path)).rows == ()
    with pytest.raises(SummaryError, match="compare takes ModelSummary objects and references, not int"):
        compare(SUMMARY, 3)  # type: ignore[arg-type]
