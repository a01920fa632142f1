"""What is shown: whole renderings of the hand-written summary, and what a wrong choice of rows or columns says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from summarycb import SummaryError
from summarycb.columns import COLUMNS
from summarycb.tree import Environment, Memory, ModelSummary, ModuleSummary, Work
from summarycb.view import select
from tests.literal import FC, HEAD, ROOT, SUMMARY

TEXT = """\
Net
step    training · cpu · float32 · Adam · lightning · Single · in [2, 4] → out [2, 3] · 4 modules
params  20 (75.0 % trainable) · buffers 7
compute forward 78 MACs = 156 FLOPs · backward 168 FLOPs · step 324 FLOPs
        with recomputation 372 FLOPs
memory  weights 80 B · buffers 28 B · gradients 80 B · optimizer state 160 B
        saved activations 84 B · weight copies 16 B · batch 32 B
peak    512 B of tensors, reached in the backward phase in fc

module       type             output                               params fwd MACs MACs % saved act.
Net          Net              [2, 3]                                   20       72   92.3       72 B
├ fc         Linear           [2, 3]                                   15       48   61.5       64 B
├ head       Head             {logits: [2, 3], states: ([], Cache…      5       24   30.8        8 B
├ again = fc Linear                                                     0        0    0.0        0 B
└ (outside)  loss, other code                                           0        6    7.7       12 B

1 MAC = 2 FLOPs, whole batch; MACs of matrix products, convolutions, attention (causal masks not
discounted) and RNN gates; biases, norms, activations, softmax and look-ups count 0; ? is unknown
head.weight is fc.weight, counted there"""

NARROW_ASCII = """\
Net
step    training - cpu - float32 - Adam - lightning - Single
        in [2, 4] > out [2, 3] - 4 modules
params  20 (75.0 % trainable) - buffers 7
compute forward 78 MACs = 156 FLOPs - backward 168 FLOPs
        step 324 FLOPs - with recomputation 372 FLOPs
memory  weights 80 B - buffers 28 B - gradients 80 B
        optimizer state 160 B - saved activations 84 B
        weight copies 16 B - batch 32 B
peak    512 B of tensors, reached in the backward phase in
        fc

module       type       params fwd MACs MACs % saved act.
Net          Net            20       72   92.3       72 B
| fc         Linear         15       48   61.5       64 B
| head       Head            5       24   30.8        8 B
| again = fc Linear          0        0    0.0        0 B
` (outside)  loss, oth~      0        6    7.7       12 B

1 MAC = 2 FLOPs, whole batch; MACs of matrix products,
convolutions, attention (causal masks not discounted) and
RNN gates; biases, norms, activations, softmax and look-ups
count 0; ? is unknown
head.weight is fc.weight, counted there"""

MARKDOWN = """\
### Net

- **structure**: 2 modules
- **params**: 15 (100.0 % trainable)
- **memory**: weights 60 B

| module | type | config | params | params % | trainable | buffers |
| --- | --- | --- | ---: | ---: | --- | ---: |
| `Net` | Net |  | 15 | 100.0 | yes | 0 |
| &nbsp;&nbsp;`a'b\\|c` | Linear | in\\_features=4, out\\_features=3, bias=True | 15 | 100.0 | yes | 0 |

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
    odd = replace(FC, path="a`b|c", name="a`b|c", calls=None, signatures=(), work=Work())
    root = ModuleSummary("", "", "Net", children=(odd,))
    structure = ModelSummary(root, Work(), Memory(parameters=60), Environment("0.1.0"))
    assert structure.to_markdown() == MARKDOWN


def test_depth_hides_rows_whose_figures_their_parents_hold() -> None:
    inner = replace(HEAD, path="block.head", children=())
    block = ModuleSummary("block", "block", "Block", calls=1, work=Work(0, 0, 0, 0, 0), children=(inner,))
    deep = replace(SUMMARY, root=replace(ROOT, children=(FC, block)))
    shown = {depth: [row.label for row in select(deep, depth=depth).rows] for depth in (0, 1, 2, None)}
    assert shown == {
        0: ["Net"],
        1: ["Net", "fc", "block", "(outside)"],
        2: ["Net", "fc", "block", "head", "(outside)"],
        None: ["Net", "fc", "block", "head", "(outside)"],
    }
    params = [row.cells for row in select(deep, depth=1, columns=["params"]).rows]
    assert params == [("20",), ("15",), ("5",), ("0",)]


CELLS = {
    "type": "Head",
    "input": "{0: [2, 3], mask: None}",
    "output": "{logits: [2, 3], states: ([], Cache)}",
    "kernel": "",
    "config": "",
    "calls": "1",
    "mode": "eval",
    "params": "5",
    "percent": "25.0",
    "trainable": "no",
    "buffers": "7",
    "dtype": "float32",
    "device": "cpu",
    "parameter_bytes": "20 B",
    "forward_macs": "24",
    "macs_percent": "30.8",
    "backward_flops": "48",
    "saved_activations": "8 B",
}


def test_every_column() -> None:
    assert list(CELLS) == list(COLUMNS)
    view = select(SUMMARY, columns=list(COLUMNS))
    assert dict(zip(COLUMNS, view.rows[2].cells, strict=True)) == CELLS


def test_unknown_is_a_question_mark() -> None:
    unknown = replace(FC, work=Work())
    view = select(
        replace(SUMMARY, root=replace(ROOT, children=(unknown,))),
        columns=["forward_macs", "macs_percent", "backward_flops", "saved_activations"],
    )
    assert view.rows[1].cells == ("?", "?", "?", "?")


@pytest.mark.parametrize("depth", [-1, True, 1.5, "3"])
def test_a_wrong_depth_says_what_is_allowed(depth: object) -> None:
    with pytest.raises(SummaryError, match=r"depth must be None \(every level\) or an integer from 0 .* on, not "):
        SUMMARY.to_text(depth=depth)  # type: ignore[arg-type]


def test_a_wrong_column_says_which_there_are() -> None:
    with pytest.raises(
        SummaryError, match=r"there is no column 'flops'; allowed: type, input, output, .*, saved_activations"
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
