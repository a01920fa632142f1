"""The tree's own arithmetic, on a summary written out by hand."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from summarycb.specs import Nested, Opaque, ParameterSpec, Spec, spec_text
from summarycb.tree import Amounts, ModuleSummary, Work, add
from tests.literal import FC, HEAD, ROOT, SUMMARY, group, tensor


def test_totals_are_the_own_amounts_of_the_subtree() -> None:
    assert FC.own == FC.total
    assert ROOT.own == Amounts(*[0] * 14)
    assert ROOT.total == Amounts(
        params=12 + 3 + 5,  # the head's weight is fc's
        trainable_params=12 + 3,
        buffers=7,
        parameter_bytes=4 * 20,
        buffer_bytes=4 * 7,
        local_params=20,
        local_parameter_bytes=4 * 20,
        gradients=4 * 20,
        optimizer_state=8 * 20,
        forward_macs=48 + 24,
        backward_macs=48 + 24,
        recompute_macs=24,
        saved_activations=64 + 8,
        weight_copies=16,
    )


def test_the_step_is_the_modules_and_what_ran_outside() -> None:
    s = SUMMARY
    assert (s.total_params, s.trainable_params, s.total_buffers) == (20, 15, 7)
    assert s.forward_macs == 72 + 6
    assert s.forward_flops == 2 * (72 + 6)
    assert s.backward_flops == 2 * (72 + 12)
    assert s.step_flops == 2 * (72 + 6) + 2 * (72 + 12)
    assert s.hardware_flops == s.step_flops + 2 * 24


def test_unknown_is_never_zero() -> None:
    """One unknown makes every sum that it is part of unknown, and no other."""
    unknown = replace(FC, call_groups=(group(2, None, None, Work(48, None, 0, 64, 0)),))
    s = replace(SUMMARY, root=replace(ROOT, children=(unknown, HEAD)))
    assert s["fc"].backward_flops is None
    assert (s.backward_macs, s.step_flops, s.hardware_flops) == (None, None, None)
    assert s.forward_macs == 78
    assert s["head"].backward_macs == 24
    assert add(1, None, 2) is None


def test_a_lazy_parameter_has_no_known_size() -> None:
    lazy = ParameterSpec("weight", None, "float32", "cpu", True, None)
    assert ModuleSummary("", "", "LazyLinear", parameters=(lazy,)).total_params is None


def test_modules_are_found_by_path_in_definition_order() -> None:
    assert list(SUMMARY.modules) == ["", "fc", "head", "again"]
    assert SUMMARY["head"] is HEAD
    assert SUMMARY["again"] is FC, "a shared module is its owner"
    with pytest.raises(KeyError, match=r"no module at 'hed'; there are 4: '', 'fc', 'head', 'again'\"$"):
        SUMMARY["hed"]


def test_nested_values_read_and_compare_as_mappings() -> None:
    assert HEAD.inputs == {"0": tensor(2, 3), "mask": None}
    assert HEAD.outputs == {"logits": tensor(2, 3), "states": (tensor(), Opaque("Cache"))}
    assert str(HEAD.outputs) == "{logits: [2, 3], states: ([], Cache)}"


def test_two_nested_values_are_equal_with_their_type_and_order() -> None:
    """So that equal ones have equal hashes, and a model that returns a ModelOutput for a dict has changed."""
    items = (("logits", tensor(2)), ("loss", tensor()))
    output = Nested("ModelOutput", items)
    assert output == Nested("ModelOutput", items)
    assert hash(output) == hash(Nested("ModelOutput", items))
    assert output != Nested("dict", items)
    assert output != Nested("ModelOutput", items[::-1])
    assert output == dict(items) == Nested("dict", items)
    assert output != items


def test_the_tree_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        FC.call_groups = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ((), "()"),
        ((tensor(2, 3),), "([2, 3],)"),
        ((tensor(2, 3), tensor(2, 3)), "([2, 3], [2, 3])"),
        ((tensor(2, 3),) * 3, "([2, 3] ×3)"),
        ((tensor(4), *[(tensor(2), None)] * 12, tensor(4), tensor(4)), "([4], ([2], None) ×12, [4], [4])"),
        (Nested("Cache", (("layers", (tensor(2),) * 4),)), "{layers: ([2] ×4)}"),
    ],
)
def test_what_is_there_often_is_told_once(spec: Spec, text: str) -> None:
    """As the keys and values of each layer, which otherwise fill the screen."""
    assert spec_text(spec) == text
