"""Gates: what is read of their text, and the whole verdict of each kind."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from summarycb import ModelSummary, ModuleSummary, SummaryError, compare, gates
from summarycb.changes import FIGURES
from summarycb.compare import TOTALS
from summarycb.tree import CallGroup, Work
from tests.literal import SUMMARY, weight


def layer(
    path: str, size: int, macs: int | None = 0, type_name: str = "Linear", *children: ModuleSummary
) -> ModuleSummary:
    work = Work(macs, 0, 0, 0, 0)
    return ModuleSummary(
        path, path.rpartition(".")[2], type_name, f"size={size}" if size else "", True,
        (weight("weight", size),) * bool(size), (), (CallGroup(1, None, None, work, work),), None, children,
    )  # fmt: skip


def net(*sizes: int, macs: int | None = 100, **changed: object) -> ModelSummary:
    """Blocks of these sizes in ``h``, each with a layer ``fc`` that has them, in 4 bytes each, and ``macs``."""
    blocks = [layer(f"h.{at}", 0, 0, "Block", layer(f"h.{at}.fc", size, macs)) for at, size in enumerate(sizes)]
    root = layer("", 0, 0, "Net", layer("h", 0, 0, "ModuleList", *blocks))
    return replace(SUMMARY, root=root, outside=Work(0, 0, 0, 0, 0), **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "limit", "of"),
    [
        ("params>+5%", 5, "percent"),
        ("params > 5 %", 5, "percent"),
        ("params<-2.5%", Fraction(-5, 2), "percent"),
        ("params>0", 0, "change"),
        ("params!=0", 0, "change"),
        ("params>=+1_000", 1_000, "change"),
        ("params>1,000,000", 10**6, "value"),
        ("forward_macs>1.5G", 15 * 10**8, "value"),
        ("forward_macs>-2M", -2 * 10**6, "change"),
        ("saved_activations>512MiB", 512 * 2**20, "value"),
        ("memory_peak>1.5 GiB", 3 * 2**29, "value"),
        ("memory_peak<=+16B", 16, "change"),
        ("memory_peak>2K", 2_000, "value"),
    ],
)
def test_what_a_limit_is_of(text: str, limit: Fraction, of: str) -> None:
    gate = gates.parse(text)
    assert (gate.limit, gate.of, str(gate)) == (limit, of, text)


FORM = (
    "{!r} is no gate: METRIC[:PATTERN] OP LIMIT, as in 'params>+5%' or 'saved_activations>512MiB'; OP is >, >=, <, <=, "
    "!=, LIMIT a number with K, M, G, T, B, KiB, MiB, GiB, TiB, %, or none of these"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("params", FORM.format("params")),
        ("params=5", FORM.format("params=5")),
        ("params>", FORM.format("params>")),
        ("params>five", FORM.format("params>five")),
        (f"params>{'9' * 31}", FORM.format(f"params>{'9' * 31}")),
        ("params>1,5", FORM.format("params>1,5")),
        ("params>5%%", "'params>5%%': '%%' is no unit of params; allowed: K, M, G, T, %, or none"),
        (7, "fail_on must be a list of gates such as 'params>+5%', not [7]"),
        ("parms>5", f"'parms>5': 'parms' is no metric of a gate; allowed: {', '.join(TOTALS)}"),
        (
            "step_flops:h.*>5",
            f"'step_flops:h.*>5': 'step_flops' is no metric of a gate of modules; allowed: {', '.join(FIGURES)}",
        ),
        ("params:>5", "'params:>5': the pattern is empty; give one that fits paths of modules, or leave the ':' out"),
        ("params>5MiB", "'params>5MiB': 'MiB' is no unit of params; allowed: K, M, G, T, %, or none"),
        (
            "memory_peak>5GB",
            "'memory_peak>5GB': 'GB' is no unit of memory_peak; allowed: K, M, G, T, B, KiB, MiB, GiB, TiB, %, or none",
        ),
        ("params:g.*>0", "'params:g.*>0': no module of 1, 2 fits 'g.*'"),
    ],
)
def test_what_is_no_gate(text: str, message: str) -> None:
    with pytest.raises(SummaryError) as caught:
        gates.check(compare(net(100), net(100)), [text])
    assert str(caught.value) == message


PRECISION = replace(SUMMARY.environment, precision="bfloat16")
UNKNOWN = replace(SUMMARY.memory, saved_activations=None)
LARGE = replace(SUMMARY.memory, saved_activations=2 * 2**20)
# name -> the two models, the gate, and the verdict
VERDICTS = {
    "equal": (net(100), net(100), "params>0", "passed: params>0: 100 → 100 (0, +0 %)"),
    "within": (net(100), net(105), "params>+5%", "passed: params>+5%: 100 → 105 (+5, +5 %)"),
    # 200 x 1.05 = 210 are allowed
    "over": (net(200), net(211), "params>+5%", "failed: params>+5%: 200 → 211 (+11, +5.5 %), 1 over the limit"),
    "at": (net(100), net(105), "params>=+5%", "failed: params>=+5%: 100 → 105 (+5, +5 %), at the limit"),
    # 100 x 0.9 = 90 at least
    "fewer": (net(100), net(80), "params<-10%", "failed: params<-10%: 100 → 80 (-20, -20 %), 10 under the limit"),
    "absolute": (net(100), net(130), "params>+20", "failed: params>+20: 100 → 130 (+30, +30 %), 10 over the limit"),
    "budget": (net(100), net(130), "params>120", "failed: params>120: 130, 10 over the limit"),
    "in the budget": (net(100), net(120), "params>120", "passed: params>120: 120"),
    "not so many": (net(100), net(130), "params!=100", "failed: params!=100: 130, 30 off the limit"),
    "other than before": (net(9), net(8), "params!=0", "failed: params!=0: 9 → 8 (-1, -11.11 %)"),
    "small of much": (
        net(1, macs=10**7), net(1, macs=10**7 + 1), "forward_macs>0",
        "failed: forward_macs>0: 10,000,000 → 10,000,001 (+1, +1e-05 %)",
    ),
    "bytes": (
        net(1), net(1, memory=LARGE), "memory_saved_activations>512KiB",
        "failed: memory_saved_activations>512KiB: 2.000 MiB, 1.500 MiB over the limit",
    ),
    "from nothing": (
        net(1, macs=0), net(1, macs=5), "forward_macs>+5%",
        "failed: forward_macs>+5%: 0 → 5 (+5), more than any percentage of 0",
    ),
    "no fall from nothing": (
        net(1, macs=0), net(1, macs=5), "forward_macs<-5%", "passed: forward_macs<-5%: 0 → 5 (+5)",
    ),
    "nothing still": (net(1, macs=0), net(1, macs=0), "forward_macs>+5%", "passed: forward_macs>+5%: 0 → 0 (0)"),
    "unknown before": (
        net(1, macs=None), net(1), "forward_macs>0", "undecided: forward_macs>0: it is unknown in the first",
    ),
    "unknown in both": (
        net(1, memory=UNKNOWN), net(1, memory=UNKNOWN), "memory_saved_activations>+5%",
        "undecided: memory_saved_activations>+5%: it is unknown in the first and the second",
    ),
    "unknown now": (
        net(1, memory=UNKNOWN), net(1, memory=UNKNOWN), "memory_saved_activations>1GiB",
        "undecided: memory_saved_activations>1GiB: it is unknown in the second",
    ),
    "unknown before is nothing to a budget": (
        net(1, macs=None), net(1), "forward_macs>200", "passed: forward_macs>200: 100",
    ),
    "other conditions": (
        net(1), net(1, environment=PRECISION), "memory_peak>0",
        "undecided: memory_peak>0: it may change with precision: float32 → bfloat16",
    ),
    "other conditions are nothing to a budget": (
        net(1), net(1, environment=PRECISION), "memory_peak>1KiB", "passed: memory_peak>1KiB: 512 B",
    ),
    "nor to parameters": (
        net(1), net(2, environment=PRECISION), "params>0", "failed: params>0: 1 → 2 (+1, +100 %)",
    ),
    # each by itself: 30 more and 30 fewer are as many in all
    "each module": (
        net(100, 100), net(130, 70), "params:h.?>0", "failed: params:h.?>0: 1 module: h.0 100 → 130 (+30, +30 %)",
    ),
    "the worst first, with all that is in them": (
        net(10, 20, 30), net(11, 25, 32), "params:h.*.fc>+1",
        "failed: params:h.*.fc>+1: 2 modules: h.1.fc 20 → 25 (+5, +25 %), 4 over the limit; "
        "h.2.fc 30 → 32 (+2, +6.667 %), 1 over the limit",
    ),
    "of many the first": (
        net(*[10] * 7), net(*range(11, 18)), "params:h.?>0",
        "failed: params:h.?>0: 7 modules: h.6 10 → 17 (+7, +70 %); h.5 10 → 16 (+6, +60 %); h.4 10 → 15 (+5, +50 %); "
        "h.3 10 → 14 (+4, +40 %); h.2 10 → 13 (+3, +30 %); and 2 more",
    ),
    "modules within": (net(10, 20), net(10, 20), "forward_macs:h.*>0", "passed: forward_macs:h.*>0: 4 modules"),
    "one that is new": (
        net(10), net(10, 20), "params:h.?>0", "failed: params:h.?>0: 1 module: h.1 0 → 20 (+20)",
    ),
    "one that is gone": (
        net(10, 20), net(10), "params:h.1<0", "failed: params:h.1<0: 1 module: h.1 20 → 0 (-20, -100 %)",
    ),
    "the root": (net(10), net(11), "params:*>0", "failed: params:*>0: 4 modules: (root) 10 → 11 (+1, +10 %); "
        "h 10 → 11 (+1, +10 %); h.0 10 → 11 (+1, +10 %); h.0.fc 10 → 11 (+1, +10 %)"),
    "a module that is unknown": (
        net(10, macs=None), net(10), "forward_macs:h.0>0",
        "undecided: forward_macs:h.0>0: 1 module: h.0 it is unknown in the first",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_the_whole_verdict(case: str) -> None:
    """What is undecided fails as well."""
    a, b, gate, text = VERDICTS[case]
    (verdict,) = gates.check(compare(a, b), [gate])
    assert str(verdict) == text
    assert verdict.failed == (verdict.outcome != "passed")


@pytest.mark.parametrize("pattern", ["h.*", "g.*"])
def test_what_was_renamed_is_held_by_either_path(pattern: str) -> None:
    """Or a new name alone would let a change pass: the block is another's by name, and its layer has 2 more."""
    named = {
        name: layer(name, 0, 0, "Block", layer(f"{name}.fc", 100), layer(f"{name}.mid", 50), layer(f"{name}.out", last))
        for name, last in {"h": 10, "g": 12}.items()
    }
    before, after = (replace(net(), root=layer("", 0, 0, "Net", block)) for block in named.values())
    (verdict,) = gates.check(compare(before, after), [f"params:{pattern}>0"])
    assert str(verdict) == f"failed: params:{pattern}>0: 1 module: g.out 10 → 12 (+2, +20 %)"


def test_what_a_wrapper_holds_was_there_before() -> None:
    """A layer of 100 within a new one that adds 8: it has 8 more, not 108; and so the other way round."""
    lora = layer("fc", 0, 0, "Lora", layer("fc.base", 100), layer("fc.low", 8))
    plain, wrapped = (
        replace(net(), root=layer("", 0, 0, "Net", layer("first", 3), held)) for held in (layer("fc", 100), lora)
    )
    (verdict,) = gates.check(compare(plain, wrapped), ["params:fc>+5%"])
    assert str(verdict) == "failed: params:fc>+5%: 1 module: fc 100 → 108 (+8, +8 %), 3 over the limit"
    (verdict,) = gates.check(compare(wrapped, plain), ["params:fc.*<0"])
    assert str(verdict) == "failed: params:fc.*<0: 1 module: fc.low 8 → 0 (-8, -100 %)"


def test_what_is_allowed() -> None:
    """The unknown no longer fails; what is not comparable is decided all the same, by its figures."""
    grown = replace(SUMMARY.memory, saved_activations=100)
    (unknown,) = gates.check(compare(net(1, macs=None), net(1)), ["forward_macs>0"], allow_unknown=True)
    assert str(unknown) == "undecided (allowed): forward_macs>0: it is unknown in the first"
    assert not unknown.failed
    other = compare(net(1), net(1, memory=grown, environment=PRECISION))
    (decided,) = gates.check(other, ["memory_saved_activations>0"], allow_incomparable=True)
    assert str(decided) == "failed: memory_saved_activations>0: 84 B → 100 B (+16 B, +19.05 %)"


def test_each_pair_of_runs_is_checked() -> None:
    comparison = compare(net(100), net(104), net(106))
    first, second = gates.check(comparison, ["params>+5%"])
    assert [(v.a, v.b, v.outcome) for v in (first, second)] == [("1", "2", "passed"), ("1", "3", "failed")]


def test_a_pattern_that_fits_in_one_run_alone_is_of_that_run() -> None:
    """In a sweep the deepest has blocks that the others have not."""
    other = replace(net(1), root=replace(net(1).root, children=(replace(net(5).root.children[0], path="g", name="g"),)))
    verdicts = gates.check(compare(net(1), net(1), other), ["params:g>3"])
    assert list(map(str, verdicts)) == [
        "passed: params:g>3: no module fits g",
        "failed: params:g>3: 1 module: g 5, 2 over the limit",
    ]
