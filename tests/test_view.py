"""What is shown: whole renderings of the hand-written summary, and what a wrong choice of rows or columns says."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from markdown_it import MarkdownIt
from torch import nn

from summarycb import SummaryError, summarize
from summarycb.columns import COLUMNS
from summarycb.render.terminal import show
from summarycb.specs import TensorSpec
from summarycb.step import Environment, Memory
from summarycb.tree import ModelSummary, ModuleSummary, Work
from summarycb.view import Selection, select
from tests.literal import FC, HEAD, ROOT, SUMMARY, group, tensor, weight

TEXT = """\
Net
params  20 (75.0 % trainable) · buffers 7
compute forward 78 MACs = 156 FLOPs · backward 168 FLOPs · step 324 FLOPs · recomputed 48 FLOPs
        all that ran 372 FLOPs
memory  measured: weights 80 B · buffers 28 B · gradients 80 B · optimizer state 160 B
        saved activations 84 B · weight copies 16 B · batch 32 B
peak    derived: 512 B of tensors in the backward of fc · of which weights 80 B · buffers 28 B
        gradients 80 B · optimizer state 160 B · weight copies 16 B · batch 32 B · activations 84 B
        temporaries 32 B
step    training · cpu · float32 · Adam · lightning · Single · 4 modules · in [2, 4] float32
        out [2, 3] float32
biggest params fc 75.0 % · MACs fc 61.5 % · saved act. fc 76.2 %

module       type       output                            params fwd MACs    %            saved act.
────────────────────────────────────────────────────────────────────────────────────────────────────
Net                     [2, 3]                                20       72 92.3 █████████▎       72 B
├ fc         Linear     [2, 3]                                15       48 61.5 ██████▏          64 B
├ head       Head       {logits: [2, 3], states: ([], Ca…      5       24 30.8 ███▏              8 B
└ again = fc Linear                                            0        0    0                   0 B
(outside)    loss, etc.                                        0        6  7.7 ▊                12 B

1 MAC = 2 FLOPs, whole batch; MACs of matrix products, convolutions, attention (causal masks not
discounted) and RNN gates; biases, norms, activations, softmax and look-ups count 0; only what torch
dispatches is seen, no kernel that a custom autograd.Function runs by itself; ? is unknown
head.weight is fc.weight, counted there"""

NARROW_ASCII = """\
Net
params  20 (75.0 % trainable) - buffers 7
compute forward 78 MACs = 156 FLOPs - backward 168 FLOPs
        step 324 FLOPs - recomputed 48 FLOPs
        all that ran 372 FLOPs
memory  measured: weights 80 B - buffers 28 B
        gradients 80 B - optimizer state 160 B
        saved activations 84 B - weight copies 16 B
        batch 32 B
peak    derived: 512 B of tensors in the backward of fc
        of which weights 80 B - buffers 28 B
        gradients 80 B - optimizer state 160 B
        weight copies 16 B - batch 32 B - activations 84 B
        temporaries 32 B
step    training - cpu - float32 - Adam - lightning - Single
        4 modules - in [2, 4] float32 - out [2, 3] float32
biggest params fc 75.0 % - MACs fc 61.5 %
        saved act. fc 76.2 %

module       type       params fwd MACs    % saved act.
-------------------------------------------------------
Net                         20       72 92.3       72 B
| fc         Linear         15       48 61.5       64 B
| head       Head            5       24 30.8        8 B
` again = fc Linear          0        0    0        0 B
(outside)    loss, etc.      0        6  7.7       12 B

no room for output
1 MAC = 2 FLOPs, whole batch; MACs of matrix products,
convolutions, attention (causal masks not discounted) and
RNN gates; biases, norms, activations, softmax and look-ups
count 0; only what torch dispatches is seen, no kernel that
a custom autograd.Function runs by itself; ? is unknown
head.weight is fc.weight, counted there"""

MARKDOWN = """\
### Net

- **params**: 15 (100.0 % trainable)
- **memory**: measured: weights 60 B
- **structure**: 2 modules
- **biggest**: params a\\`b\\|c 100.0 %

| module | type | config | params | % |  | trainable | buffers |
| --- | --- | --- | ---: | ---: | --- | --- | ---: |
| `Net` |  |  | 15 | 100.0 | ██████████ | yes | 0 |
| &nbsp;&nbsp;`a'b\\|c` | Linear | in\\_features=4, out\\_features=3, bias=True | 15 | 100.0 | ██████████ | yes | 0 |

"""


def test_the_whole_text() -> None:
    assert SUMMARY.to_text() == TEXT
    assert str(SUMMARY) == TEXT


def test_a_narrow_terminal_shortens_names_and_drops_shapes_but_cuts_no_number() -> None:
    assert SUMMARY.to_text(width=60, ascii_only=True) == NARROW_ASCII
    assert NARROW_ASCII.isascii()


@pytest.mark.parametrize("width", [20, 40, 80, 100, 200])
def test_no_line_is_wider_than_asked(width: int) -> None:
    assert max(map(len, SUMMARY.to_text(width=width).splitlines())) <= width


def test_the_whole_markdown_of_a_structure_alone() -> None:
    """Nothing of a step is shown where none was observed, and names cannot break the table."""
    odd = replace(FC, path="a`b|c", name="a`b|c", call_groups=None)
    root = ModuleSummary("", "", "Net", children=(odd,))
    structure = ModelSummary(root, Work(), Memory(parameters=60), Environment("0.1.0"))
    assert structure.to_markdown() == MARKDOWN


def headline(summary: ModelSummary) -> dict[str, tuple[str, ...]]:
    return dict(select(summary).headline)


def test_each_kind_of_memory_says_how_it_is_known_and_a_zero_is_not_shown() -> None:
    memory = Memory(80, 0, 80, None, None, 0, 32)
    measured = ("measured: weights 80 B", "gradients 80 B", "batch 32 B")
    unknown = ("unavailable: optimizer state", "saved activations")
    assert headline(replace(SUMMARY, memory=memory))["memory"] == measured + unknown
    assert "peak" not in headline(replace(SUMMARY, memory=memory))
    # what no step was observed for is not missed
    assert headline(replace(SUMMARY, memory=memory, observed="structure"))["memory"] == measured
    # on the meta device nothing is allocated
    simulated = headline(replace(SUMMARY, memory=replace(memory, simulated=True)))["memory"]
    assert simulated == ("derived: weights 80 B", "gradients 80 B", "batch 32 B", *unknown)


def test_an_allocator_that_was_asked_is_told_beside_the_sum_of_tensors() -> None:
    memory = replace(SUMMARY.memory, allocator_peak=600)
    assert memory.unexplained == 600 - 512
    assert headline(replace(SUMMARY, memory=memory))["peak"][-2:] == (
        "measured: 600 B by the allocator",
        "88 B of it no tensor of the step",
    )


def test_a_model_without_parameters_has_no_line_of_memory() -> None:
    alone = ModelSummary(ModuleSummary("", "", "ReLU"), Work(), Memory(0, 0), Environment("0.1.0"))
    assert headline(alone) == {"structure": ("1 module",), "params": ("0 (0 % trainable)",)}


@pytest.mark.parametrize(
    ("recomputed", "optimizer", "more"),
    [
        (0, 0, ()),
        (3, 0, ("recomputed 6 FLOPs", "all that ran 198 FLOPs")),  # 192 + 6
        (0, 5, ("optimizer 10 FLOPs", "all that ran 202 FLOPs")),  # as Muon's and Shampoo's matrix products
        (3, 5, ("recomputed 6 FLOPs", "optimizer 10 FLOPs", "all that ran 208 FLOPs")),
        (None, None, ("recomputed ? FLOPs", "optimizer ? FLOPs", "all that ran ? FLOPs")),
    ],
)
def test_recomputation_and_the_optimizer_are_facts_of_their_own(
    recomputed: int | None, optimizer: int | None, more: tuple[str, ...]
) -> None:
    step = replace(SUMMARY, root=FC, outside=Work(0, 0, recomputed, 0, 0), optimizer_macs=optimizer)
    assert headline(step)["compute"] == (
        "forward 48 MACs = 96 FLOPs",
        "backward 96 FLOPs",
        "step 192 FLOPs",
        *more,
    )


def test_depth_hides_rows_whose_figures_their_parents_hold() -> None:
    inner = replace(HEAD, path="block.head", children=())
    block = ModuleSummary("block", "block", "Block", call_groups=(), children=(inner,))
    deep = replace(SUMMARY, root=replace(ROOT, children=(FC, block)))
    shown = {depth: [row.label for row in select(deep, Selection(depth=depth)).rows] for depth in (0, 1, 2, None)}
    assert shown == {
        0: ["Net"],
        1: ["Net", "fc", "block", "(outside)"],
        2: ["Net", "fc", "block", "head", "(outside)"],
        None: ["Net", "fc", "block", "head", "(outside)"],
    }
    params = [row.cells for row in select(deep, Selection(depth=1, columns=["params"])).rows]
    assert params == [("20",), ("15",), ("5",), ("0",)]


CELLS = {
    "type": "Head",
    "input": "[2, 3]",  # of {0: [2, 3], mask: None}, the one tensor
    "output": "{logits: [2, 3], states: ([], Cache)}",
    "kernel": "",
    "config": "",
    "calls": "1",
    "mode": "eval",
    "params": "5",
    "trainable": "no",
    "trainable_params": "0",
    "buffers": "7",
    "dtype": "float32",
    "device": "cpu",
    "local_params": "5",
    "parameter_bytes": "20 B",
    "buffer_bytes": "28 B",
    "gradients": "20 B",
    "optimizer_state": "40 B",
    "forward_macs": "24",
    "forward_flops": "48",
    "backward_macs": "24",
    "backward_flops": "48",
    "recompute_flops": "48",
    "percent": "30.8",  # 24 of 78
    "bar": "███▏",  # of 80 eighths 24.6: 3 blocks and 1 eighth
    "saved_activations": "8 B",
    "weight_copies": "16 B",
}


def test_every_column() -> None:
    assert list(CELLS) == list(COLUMNS)
    view = select(SUMMARY, Selection(columns=list(COLUMNS)))
    assert dict(zip(COLUMNS, view.rows[2].cells, strict=True)) == CELLS


def test_unknown_is_a_question_mark() -> None:
    unknown = replace(FC, call_groups=None)
    view = select(
        replace(SUMMARY, root=replace(ROOT, children=(unknown,))),
        Selection(columns=["forward_macs", "percent", "bar", "backward_flops", "saved_activations"]),
    )
    assert view.rows[1].cells == ("?", "?", "?", "?", "?")


def expert(i: int, rows: int, tied: bool = False) -> ModuleSummary:
    """An expert that was given so many rows: 4 x 3 MACs and 8 bytes for each."""
    work = Work(12 * rows, 24 * rows, 0, 8 * rows, 0)
    return replace(
        FC,
        path=f"experts.{i}",
        name=str(i),
        parameters=(weight("weight", 3, 4),),
        call_groups=(group(1, (tensor(rows, 4),), tensor(rows, 3), work),),
    )


def mixture(*rows: int) -> ModelSummary:
    """A router and experts, and outside of them 40 MACs: of 3, 5 and 2 rows, 12 x 10 + 30 + 40 = 190 MACs."""
    experts = [expert(i, n) for i, n in enumerate(rows)]
    router = replace(
        HEAD,
        path="router",
        name="router",
        type_name="Router",
        call_groups=(group(1, None, tensor(8), Work(30, 30, 0, 0, 0)),),
    )
    root = replace(
        ROOT,
        children=(router, ModuleSummary("experts", "experts", "ModuleList", call_groups=(), children=tuple(experts))),
    )
    return replace(SUMMARY, root=root, outside=Work(40, 0, 0, 0, 0))


def shown(summary: ModelSummary, **selection: Any) -> list[tuple[str, ...]]:
    return [(row.label + row.suffix, *row.cells) for row in select(summary, Selection(**selection)).rows]


FIGURES = ["type", "output", "params", "forward_macs", "percent", "saved_activations"]


def test_a_folded_row_is_of_one_copy_with_the_least_and_the_most_where_they_differ() -> None:
    assert shown(mixture(3, 5, 2), columns=FIGURES) == [
        ("Net", "", "[2, 3]", "41", "150", "78.9", "80 B"),  # 150 of 190
        ("router", "Router", "[8]", "5", "30", "15.8", "0 B"),
        ("experts", "ModuleList", "", "36", "120", "63.2", "80 B"),
        ("0-2 ×3", "Linear", "[2..5, 3]", "12", "24..60", "12.6..31.6", "16..40 B"),
        ("(outside)", "loss, etc.", "", "0", "40", "21.1", "0 B"),
    ]
    assert shown(mixture(3, 5, 2), columns=["forward_macs"], fold=False)[3:6] == [("0", "36"), ("1", "60"), ("2", "24")]
    # of 12, the bar is of the most: 144 of 274, which is 42 of 80 eighths
    assert shown(mixture(3, 12, 2), columns=["output", "bar"])[3] == ("0-2 ×3", "[2..12, 3]", "█████▎")
    said = "rows under ×N are per copy"
    assert select(mixture(3, 5, 2)).notes[0] == f"{said}; least..most where copies differ"
    assert select(mixture(3, 3, 3)).notes[0] == said
    assert select(SUMMARY).notes[0].startswith("1 MAC = 2 FLOPs")


def test_a_repeated_sequence_is_of_one_period() -> None:
    """Two of (3 x 4 weights, 3 x 4 and 5 more): 12 + 17 parameters each; 12 x (2 + 1) and 12 x (4 + 1) MACs."""

    def wide(i: int, rows: int) -> ModuleSummary:
        module = expert(i, rows)
        return replace(module, type_name="Wide", parameters=(*module.parameters, weight("bias", 5)))

    layers = (expert(0, 2), wide(1, 1), expert(2, 4), wide(3, 1))
    listed = ModuleSummary("experts", "experts", "ModuleList", call_groups=(), children=layers)
    made = replace(SUMMARY, root=replace(ROOT, children=(listed,)))
    rows = shown(made, columns=["type", "params", "forward_macs", "calls"])
    assert rows[1:5] == [
        ("experts", "ModuleList", "58", "96", "0"),
        ("0-3 ×2", "Linear, Wide", "29", "36..60", ""),
        ("0, 2", "Linear", "12", "24..48", "1"),
        ("1, 3", "Wide", "17", "12", "1"),
    ]
    # a sequence is no level of its own: what is in it are children of the list
    assert [row[0] for row in shown(made, depth=2)][2:5] == ["0-3 ×2", "0, 2", "1, 3"]


def test_children_are_sorted_within_their_parent() -> None:
    def labels(key: str) -> list[str]:
        return [row[0] for row in shown(mixture(3, 5, 2), sort=key, fold=False)]

    assert labels("forward_macs") == ["Net", "experts", "1", "0", "2", "router", "(outside)"]
    assert labels("type") == ["Net", "experts", "0", "1", "2", "router", "(outside)"]
    unknown = replace(mixture(3, 5, 2), root=replace(ROOT, children=(replace(FC, call_groups=None), expert(0, 1))))
    assert [row[0] for row in shown(unknown, sort="forward_macs")] == ["Net", "0", "fc", "(outside)"]


def test_top_is_flat_and_of_what_each_module_has_by_itself() -> None:
    view = select(mixture(3, 5, 2), Selection(top=3, columns=["forward_macs", "percent"], fold=False))
    assert [(row.label, row.guides, row.cells) for row in view.rows] == [
        ("experts.1", (), ("60", "31.6")),
        ("(outside)", (), ("40", "21.1")),
        ("experts.0", (), ("36", "18.9")),
    ]
    assert view.notes[0] == "each row is a module without its children"
    assert [row[0] for row in shown(mixture(3, 5, 2), top=2)] == ["experts.0-2 ×3", "(outside)"]
    assert [row[0] for row in shown(mixture(3, 5, 2), top=1, metric="params")] == ["experts.0-2 ×3"]
    assert [row[0] for row in shown(mixture(3, 5, 2), top=1, sort="buffers")] == ["router"]
    assert shown(mixture(3, 5, 2), top=99, columns=["params"])[-2:] == [("Net", "0"), ("experts", "0")]


def test_a_filter_shows_what_it_matches_and_the_way_there() -> None:
    def found(pattern: str) -> list[tuple[str, bool]]:
        rows = select(mixture(3, 5, 2), Selection(filter=pattern, depth=1)).rows
        return [(row.label + row.suffix, row.context) for row in rows]

    assert found("experts.*") == [("Net", True), ("experts", True), ("0-2 ×3", False)]
    assert found("Linear") == found("experts.*"), "a type"
    assert found("experts.[12]") == [("Net", True), ("experts", True), ("1", False), ("2", False)], "some of the copies"
    assert found("router") == [("Net", True), ("router", False)]
    assert found("(outside)") == [("(outside)", False)]
    assert found("linear") == []
    view = select(mixture(3, 5, 2), Selection(filter="linear"))
    assert view.notes[0] == "no module's path or type is like 'linear'"


def test_a_percentage_is_100_of_all_alone() -> None:
    """As in the headline: 500,000 of 500,100 are 99.98 %."""
    model = nn.Sequential(nn.Linear(5000, 100, bias=False), nn.Linear(100, 1, bias=False))
    view = select(summarize(model), Selection(metric="params", columns=["percent"]))
    assert [row.cells for row in view.rows] == [("100.0",), ("99.9",), ("0.0",)]
    assert ("biggest", ("params 0 99.9 %",)) in view.headline


def test_a_percentage_is_of_the_metric_and_stands_beside_it() -> None:
    columns = [heading.title for heading in select(SUMMARY, Selection(metric="saved_activations")).columns]
    assert columns == ["type", "output", "params", "fwd MACs", "saved act.", "%", ""]
    columns = [heading.title for heading in select(SUMMARY, Selection(metric="backward_flops")).columns]
    assert columns == ["type", "output", "params", "fwd MACs", "saved act.", "bwd FLOPs", "%", ""]
    columns = [
        heading.title
        for heading in select(SUMMARY, Selection(metric="params", columns=["local_params", "percent"])).columns
    ]
    assert columns == ["local params", "% params"]
    view = select(SUMMARY, Selection(metric="params", columns=["percent", "type"]))
    assert [heading.title for heading in view.columns] == ["% params", "type"]
    assert [row.cells[0] for row in view.rows] == ["100.0", "75.0", "25.0", "0", "0"]


def test_levels_that_would_be_more_than_thirty_rows_are_closed() -> None:
    """30 rows: the root, outside and 4 stages with 6 layers each; with one layer more it would be 31."""

    def net(layers: int) -> ModelSummary:
        stages = []
        for i in range(4):
            inside = [replace(FC, path=f"s{i}.l{j}", name=f"l{j}") for j in range(6 if i else layers)]
            stages.append(ModuleSummary(f"s{i}", f"s{i}", "Stage", call_groups=(), children=tuple(inside)))
        return replace(SUMMARY, root=replace(ROOT, children=tuple(stages)))

    assert len(shown(net(6))) == 2 + 4 + 4 * 6 == 30
    assert [row[0] for row in shown(net(7))] == ["Net", "s0 ▸", "s1 ▸", "s2 ▸", "s3 ▸", "(outside)"]
    assert select(net(7)).notes[0] == (
        "▸ has more below: 25 modules; depth=3 would be more than 30 rows; depth=None (--depth -1) shows all"
    )
    assert len(shown(net(7), depth=None)) == len(shown(net(7), fold=False)) == 31
    assert (
        select(net(6), Selection(depth=1)).notes[0] == "▸ has more below: 24 modules; depth=None (--depth -1) shows all"
    )


def test_of_more_children_than_rows_the_rest_are_one() -> None:
    """25 of 60 are shown, those that have most where they are sorted, and what the others have together."""
    layers = tuple(replace(FC, path=f"l{i}", name=f"l{i}", config=f"number {i}") for i in range(60))
    summary = replace(SUMMARY, root=replace(ROOT, children=layers))
    rows = shown(summary, columns=["params", "type"])
    assert len(rows) == 2 + 26
    # FC has 3 x 4 weights and 3 biases
    assert rows[-3:] == [
        ("l24", "15", "Linear"),
        ("… 35 more ▸", f"{35 * 15:,}", "Linear"),
        ("(outside)", "0", "loss, etc."),
    ]
    assert (
        select(summary, Selection(depth=1)).notes[0]
        == "▸ has more below: 35 modules; depth=None (--depth -1) shows all"
    )
    for every in (shown(summary, depth=None), shown(summary, fold=False), shown(summary, filter="l*")):
        assert len(every) == 2 + 60
    grown = tuple(
        replace(layer, children=(replace(FC, path=f"l{i}.x", name="x"),) * (i % 30)) for i, layer in enumerate(layers)
    )
    most = shown(replace(SUMMARY, root=replace(ROOT, children=grown)), columns=["params"], sort="params", depth=1)
    assert [label for label, _ in most[1:4]] == ["l29 ▸", "l59 ▸", "l28 ▸"]


def test_a_long_name_keeps_how_often_it_is_there_and_a_long_path_its_end() -> None:
    odd = [replace(FC, path=f"layer_of_a_very_long_name_{i}", name=f"layer_of_a_very_long_name_{i}") for i in range(2)]
    held = ModuleSummary("seq", "seq", "Sequential", call_groups=(), children=tuple(odd))
    summary = replace(SUMMARY, root=replace(ROOT, children=(held,)))
    lines = summary.to_text(columns=["params"], width=33).splitlines()
    assert "  └ layer_of_a_very_lo… ×2     15" in lines
    lines = summary.to_text(columns=["params"], width=39, top=1).splitlines()
    assert "…ayer_of_a_very_long_name_0-1 ×2     15" in lines


@pytest.mark.parametrize("width", [19, 0, -1, True, 80.0, "80", None])
def test_a_wrong_width_says_what_is_allowed(width: object) -> None:
    with pytest.raises(SummaryError, match=f"^width must be an integer from 20 on, not {width!r}$"):
        SUMMARY.to_text(width=width)  # type: ignore[arg-type]


def test_what_went_in_and_came_out_does_not_fill_the_screen() -> None:
    """As the caches of layers that are not alike: 300 characters of each, of which the last says so."""
    tensors = tuple([TensorSpec((2, 4 + layer % 2), "float32", "cpu") for layer in range(99)])
    view = select(replace(SUMMARY, root=replace(ROOT, call_groups=(replace(ROOT.call_groups[0], outputs=tensors),))))
    (shown,) = [fact for fact in dict(view.headline)["step"] if fact.startswith("out ")]
    assert shown == "out (" + "[2, 4], [2, 5], " * 18 + "[2, 4], [2… float32"


def test_names_and_facts_cannot_break_the_table() -> None:
    """One row a line, whatever a stored summary says: no line break, no terminal command, and wide characters fit."""
    odd = replace(FC, path="odd", name="a\nb\x1b[31m\u2028c\t", type_name="線形" * 20)
    text = replace(SUMMARY, root=replace(ROOT, children=(odd,))).to_text(columns=["type", "params"], width=40)
    (line,) = [line for line in text.split("\n") if "線形" in line]
    assert line == "└ a b [31m c  線形線形線形線形線…     15"


class Stream(io.TextIOWrapper):
    """A standard output of an encoding, on a terminal or not."""

    def __init__(self, encoding: str, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="\n")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def written(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_standard_output_cannot_encode(monkeypatch: pytest.MonkeyPatch, encoding: str, terminal: bool) -> None:
    """The lines of the tree become ASCII, a name that is still not encodable gets ``?``, and nothing is raised."""
    stream = Stream(encoding, terminal)
    monkeypatch.setattr("sys.stdout", stream)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    odd = replace(SUMMARY, root=replace(ROOT, children=(replace(FC, path="层", name="层"), *ROOT.children[1:])))
    show(odd)
    written = stream.written()
    assert ("\x1b[" in written) == terminal
    plain = "\n".join(line.rstrip() for line in re.sub("\x1b\\[[0-9;]*m", "", written).split("\n"))
    expected = odd.to_text() if encoding == "utf-8" else odd.to_text(ascii_only=True).replace("层", "?")
    assert plain == expected + "\n"


@pytest.mark.parametrize("depth", [-1, True, 1.5, "3"])
def test_a_wrong_depth_says_what_is_allowed(depth: object) -> None:
    with pytest.raises(SummaryError, match=r"depth must be None \(every level\) or an integer from 0 .* on, not "):
        SUMMARY.to_text(depth=depth)  # type: ignore[arg-type]


WRONG = [
    ({"sort": "flops"}, r"sort must be None or a column, not 'flops'; allowed: type, input, .*, weight_copies"),
    ({"top": 0}, r"top must be None \(all rows\) or an integer from 1 on, not 0"),
    ({"top": True}, "top must be .*, not True"),
    ({"filter": ""}, r"filter must be None or a pattern such as '\*attn\*', not ''"),
    ({"filter": ["a"]}, r"filter must be .*, not \['a'\]"),
    ({"metric": "type"}, "there is no metric 'type'; allowed: params, .*, weight_copies"),
    ({"metric": "percent"}, "there is no metric 'percent'"),
    ({"fold": 1}, "fold must be True or False, not 1"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=[str(given) for given, _ in WRONG])
def test_a_wrong_selection_says_what_is_allowed(given: dict[str, Any], said: str) -> None:
    for render in (SUMMARY.to_text, SUMMARY.to_markdown):
        with pytest.raises(SummaryError, match=f"^{said}"):
            render(**given)


def test_a_wrong_column_says_which_there_are() -> None:
    with pytest.raises(
        SummaryError, match=r"there is no column 'flops'; allowed: type, input, output, .*, weight_copies"
    ):
        SUMMARY.to_text(columns=["type", "flops"])
    with pytest.raises(SummaryError, match="columns must be a list of names, not 'params'"):
        SUMMARY.to_text(columns="params")


def test_the_dataframe_has_a_row_a_module_and_real_dtypes() -> None:
    frame = SUMMARY.to_dataframe()
    assert list(frame.index) == ["", "fc", "head", "again"]
    assert frame.loc["fc", "total_params"] == 15
    assert frame.loc["head", "own_recompute_macs"] == 24
    assert frame.loc["again", "shared_with"] == "fc"
    assert str(frame["calls"].dtype) == "Int64"
    assert frame["calls"].isna().tolist() == [False, False, False, True]


def test_markdown_of_a_stranger_links_to_nothing_and_calls_nobody() -> None:
    """As the comment of a bot on a pull request is made of what the pull request's own summary says."""
    name = "![p](https://evil.example/p.png) @octocat www.evil.example " + "long" * 100
    root = replace(ROOT, type_name=name, children=(replace(FC, path="x@y", name="x@y"),))
    html = MarkdownIt().enable("table").render(replace(SUMMARY, root=root).to_markdown())
    assert not re.search(r"<img|href|://|www[.]|@\w", re.sub("<code>.*?</code>", "", html))  # in code nothing is read
    assert max(map(len, re.findall("[^<>]+", html))) == 300 + len("\u200b" * 3)  # cut, and three that nobody sees
