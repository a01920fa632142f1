"""What is told of three or more runs: a row for each module of the first, or pattern, and a column for each run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from summarycb import Comparison
from summarycb.compared import Shown
from summarycb.render.terminal import to_text
from tests.edited import made
from tests.literal import FC, ROOT, SUMMARY, tensor


def runs(*names: str) -> Comparison:
    return Comparison(tuple(map(made, names)), names)


FIVE = ("base", "attention renamed", "deeper, mlp wider", "removed", "LoRA")
# a block has 3,280 params: up 16 x 64 + 64, down 64 x 16 + 16, qkv 16 x 48 + 48, out 16 x 16 + 16, two norms of 32
# wider by half: 544 in up and 512 in down of each of 12, and the new block of 4,336
# LoRA: two small layers at each qkv alone learn, 12 x (16 x 2 + 2 x 48) = 1,536
TEXT = """\
GPT, 5 runs
[1] base
[2] attention renamed
[3] deeper, mlp wider
[4] removed
[5] LoRA

module            what               [1]       [2]       [3]       [4]       [5]
────────────────────────────────────────────────────────────────────────────────────────────────────
params                               40,992    40,992    58,000    37,712    42,528
forward MACs                         651.8 K   651.8 K   918.0 K   598.5 K   676.4 K
backward FLOPs                       2.607 M   2.607 M   3.672 M   2.394 M   1.475 M
step FLOPs                           3.911 M   3.911 M   5.508 M   3.591 M   2.827 M
saved activations                    227.1 KiB 227.1 KiB 297.9 KiB 208.4 KiB 154.5 KiB
peak                                 649.3 KiB 649.3 KiB 919.2 KiB 598.0 KiB 328.5 KiB
trainable params                     40,992    40,992    58,000    37,712    1,536
(root)                                         =         =         =         frozen (63 modules)
h.*.attn ×12                                   → mix     =         =         =
h.*.attn.qkv ×12                               =         =         =         ⊂ .base_layer; in Lora…
h.*.mlp.up ×12    out_features       64        =         96        =         frozen
h.*.mlp.down ×12  in_features        64        =         96        =         frozen
- h.11            Block (10 modules)           =         =         -1        =
+ h.12            Block (10 modules) -         =         +1        =         =

rows that are the same in all runs are not shown; = is as in [1], - is not there, +2 are two more"""


def test_five_runs_are_read_in_a_hundred_columns() -> None:
    """A module that is renamed, wrapped or within what is gone is in the row that it has in the first run."""
    assert str(runs(*FIVE)) == TEXT


def test_figures_are_never_cut_where_words_can_be() -> None:
    """At 80 columns five figures of nine characters have room beside a name of 17."""
    text = runs(*FIVE).to_text(width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "saved activations" in text
    assert "227.1 KiB 227.1 KiB 297.9 KiB 208.4 KiB 154.5 KiB" in text


def test_a_figure_is_marked_in_the_runs_in_which_the_steps_differ() -> None:
    view = runs("base", "mlp wider", "batch of 4", "bfloat16").view()
    rows = {row.label: row.cells for row in view.rows}
    assert rows["input"] == ("", "[2, 8]", "=", "[4, 8]", "=")
    assert rows["precision"] == ("", "float32", "=", "=", "bfloat16")
    assert rows["forward MACs"] == ("", "651.8 K", "848.4 K", "1.304 M *", "651.8 K")
    assert rows["saved activations"] == ("", "227.1 KiB", "275.1 KiB", "454.3 KiB *", "122.6 KiB *")
    assert view.notes[1] == "* says nothing of the model alone, because it changes with: input [3], precision [4]"


def test_what_has_several_changes_has_one_row() -> None:
    """Of the blocks that are regrouped, frozen or have another attention, those alike in all runs are one.

    What is new is behind all that is in what it is in.
    """
    view = runs("base", "in stages", "a block frozen", "attention replaced", "all blocks frozen").view()
    assert [(row.label, row.times, *row.cells) for row in view.rows[8:]] == [
        ("h", 1, "", "", "=", "=", "=", "frozen (72 modules)"),
        ("h.0-2, 4-11", 11, "", "", "⊞ h.*.blocks.*", "=", "=", "="),
        ("h.*.attn", 12, "type", "Attention", "=", "=", "Mean", "="),
        ("h.0-2, 4-11.attn.qkv", 11, "", "", "=", "=", "-", "frozen"),
        ("h.0-2, 4-11.attn.out", 11, "", "", "=", "=", "-", "frozen"),
        ("+ h.*.attn.mix", 1, "Linear", "-", "=", "=", "+12", "="),
        ("h.3", 1, "", "", "⊞ h.*.blocks.*", "frozen (6 modules)", "=", "="),
        ("h.3.attn.qkv", 1, "", "", "=", "frozen", "-", "frozen"),
        ("h.3.attn.out", 1, "", "", "=", "frozen", "-", "frozen"),
        ("+ h.0-2", 1, "Stage (2 modules)", "-", "+3", "=", "=", "="),
    ]


def test_what_is_asked_for_of_several_runs() -> None:
    """The rows with a change that is asked for, in any run; what the other runs have there is told as it is."""
    several = runs("base", "mlp wider", "appended", "attention renamed")

    def told(**asked: object) -> list[tuple[str, ...]]:
        return [(row.label, *row.cells[1:]) for row in several.view(Shown(**asked)).rows[6:]]  # type: ignore[arg-type]

    up, down = ("h.*.mlp.up", "64", "96", "=", "="), ("h.*.mlp.down", "64", "96", "=", "=")
    assert told() == [("h.*.attn", "", "=", "=", "→ mix"), up, down, ("+ h.12", "-", "=", "+1", "=")]
    assert told(only=["resized"]) == [up, down]
    assert told(only=["h.*.mlp.up"]) == [up]
    # params: up 12 x 544 = 6,528, down 12 x 512 = 6,144, the block 3,280, attn 0
    assert [row[0] for row in told(sort="params")] == ["h.*.mlp.up", "h.*.mlp.down", "+ h.12", "h.*.attn"]
    assert told(sort="params", most=2) == [up, ("… 3 more rows", "", "", "", "")]
    assert told(depth=1) == [("h", "", "24 resized", "1 added", "12 renamed")]
    assert several.view(Shown(depth=1)).notes[-1] == "rows below the depth are counted"


@pytest.mark.parametrize("names", [("base", "base", "base"), ("base", "compiled", "base")])
def test_nothing_is_told_of_runs_that_are_the_same(names: tuple[str, ...]) -> None:
    view = runs(*names).view()
    assert (view.rows, view.notes) == ((), ("nothing changed",))


def test_what_did_the_same_on_other_shapes_is_not_nothing() -> None:
    flat, nested = (
        replace(SUMMARY, root=replace(ROOT, children=(replace(FC, call_groups=(calls,)), *ROOT.children[1:])))
        for calls in [replace(FC.call_groups[0], inputs=(tensor(*shape),)) for shape in ((4, 4), (2, 2, 4))]
    )
    view = Comparison((flat, nested, flat), ("1", "2", "3")).view()
    assert view.rows == ()
    assert [note.partition(" are ")[0] for note in view.notes] == ["rows that"]


def test_a_sample_is_said() -> None:
    several = Comparison(tuple(map(made, ("base", "batch of 4", "batch of 4"))), ("1", "2", "3"), "sample")
    assert to_text(several.view()).splitlines()[1] == "per sample: work and saved activations"
