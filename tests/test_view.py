"""What is shown: whole renderings of the hand-written summary, and what a wrong choice of rows or columns says."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest

from summarycb import SummaryError
from summarycb.columns import COLUMNS
from summarycb.render.terminal import show
from summarycb.specs import TensorSpec
from summarycb.step import Environment, Memory
from summarycb.tree import ModelSummary, ModuleSummary, Work
from summarycb.view import select
from tests.literal import FC, HEAD, ROOT, SUMMARY

TEXT = """\
Net
step    training · cpu · float32 · Adam · lightning · Single · in [2, 4] → out [2, 3] · 4 modules
params  20 (75.0 % trainable) · buffers 7
compute forward 78 MACs = 156 FLOPs · backward 168 FLOPs · step 324 FLOPs · recomputed 48 FLOPs
        all that ran 372 FLOPs
memory  measured: weights 80 B · buffers 28 B · gradients 80 B · optimizer state 160 B
        saved activations 84 B · weight copies 16 B · batch 32 B
peak    derived: 512 B of tensors in the backward of fc · of which weights 80 B · buffers 28 B
        gradients 80 B · optimizer state 160 B · weight copies 16 B · batch 32 B · activations 84 B
        temporaries 32 B

module       type             output                               params fwd MACs MACs % saved act.
Net          Net              [2, 3]                                   20       72   92.3       72 B
├ fc         Linear           [2, 3]                                   15       48   61.5       64 B
├ head       Head             {logits: [2, 3], states: ([], Cache…      5       24   30.8        8 B
├ again = fc Linear                                                     0        0    0.0        0 B
└ (outside)  loss, other code                                           0        6    7.7       12 B

1 MAC = 2 FLOPs, whole batch; MACs of matrix products, convolutions, attention (causal masks not
discounted) and RNN gates; biases, norms, activations, softmax and look-ups count 0; only what torch
dispatches is seen, no kernel that a custom autograd.Function runs by itself; ? is unknown
head.weight is fc.weight, counted there"""

NARROW_ASCII = """\
Net
step    training - cpu - float32 - Adam - lightning - Single
        in [2, 4] > out [2, 3] - 4 modules
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

module       type       params fwd MACs MACs % saved act.
Net          Net            20       72   92.3       72 B
| fc         Linear         15       48   61.5       64 B
| head       Head            5       24   30.8        8 B
| again = fc Linear          0        0    0.0        0 B
` (outside)  loss, oth~      0        6    7.7       12 B

no room for output
1 MAC = 2 FLOPs, whole batch; MACs of matrix products,
convolutions, attention (causal masks not discounted) and
RNN gates; biases, norms, activations, softmax and look-ups
count 0; only what torch dispatches is seen, no kernel that
a custom autograd.Function runs by itself; ? is unknown
head.weight is fc.weight, counted there"""

MARKDOWN = """\
### Net

- **structure**: 2 modules
- **params**: 15 (100.0 % trainable)
- **memory**: measured: weights 60 B

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
    "local_params": "5",
    "parameter_bytes": "20 B",
    "buffer_bytes": "28 B",
    "gradients": "20 B",
    "optimizer_state": "40 B",
    "forward_macs": "24",
    "macs_percent": "30.8",
    "forward_flops": "48",
    "backward_macs": "24",
    "backward_flops": "48",
    "recompute_flops": "48",
    "saved_activations": "8 B",
    "weight_copies": "16 B",
}


def test_every_column() -> None:
    assert list(CELLS) == list(COLUMNS)
    view = select(SUMMARY, columns=list(COLUMNS))
    assert dict(zip(COLUMNS, view.rows[2].cells, strict=True)) == CELLS


def test_unknown_is_a_question_mark() -> None:
    unknown = replace(FC, call_groups=None)
    view = select(
        replace(SUMMARY, root=replace(ROOT, children=(unknown,))),
        columns=["forward_macs", "macs_percent", "backward_flops", "saved_activations"],
    )
    assert view.rows[1].cells == ("?", "?", "?", "?")


@pytest.mark.parametrize("width", [19, 0, -1, True, 80.0, "80", None])
def test_a_wrong_width_says_what_is_allowed(width: object) -> None:
    with pytest.raises(SummaryError, match=f"^width must be an integer from 20 on, not {width!r}$"):
        SUMMARY.to_text(width=width)  # type: ignore[arg-type]


def test_what_went_in_and_came_out_does_not_fill_the_screen() -> None:
    """As the keys and values of every layer of a language model: 300 characters of each, of which the last says so."""
    tensors = (TensorSpec((2, 4), "float32", "cpu"),) * 99
    view = select(replace(SUMMARY, root=replace(ROOT, call_groups=(replace(ROOT.call_groups[0], outputs=tensors),))))
    (shown,) = [fact for fact in dict(view.headline)["step"] if " → out " in fact]
    assert shown == "in [2, 4] → out (" + "[2, 4], " * 37 + "[2…"


def test_names_and_facts_cannot_break_the_table() -> None:
    """One row a line, whatever a stored summary says: no line break, no terminal command, and wide characters fit."""
    odd = replace(FC, path="odd", name="a\nb\x1b[31m\u2028c\t", type_name="線形" * 20)
    text = replace(SUMMARY, root=replace(ROOT, children=(odd,))).to_text(columns=["type", "params"], width=40)
    (line,) = [line for line in text.split("\n") if "線形" in line]
    assert line == "├ a b [31m c  線形線形線形線形線…     15"


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
