"""The graph of a dataflow: what is drawn at a depth, what is drawn once, and how."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import summarycb
from summarycb import ModelSummary, SummaryError
from summarycb.cli import main
from summarycb.dataflow import Dataflow, FlowCall, FlowEdge, FlowNode
from summarycb.graph import Graph, contract, depths
from summarycb.render.graph import drawings, graphs, to_dot, to_mermaid, to_svg
from summarycb.render.layout import LAYOUTS
from tests.literal import SUMMARY
from tests.test_dataflow import lines, observed

HOSTILE = '</script><img src=x onerror=alert(1)>"&\\'


class Stack(nn.Module):
    """Layers whose results are added to what they were given, by the model itself."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(x)
        return x


class Branches(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return torch.cat([layer(x) for layer in self.layers])


class Dense(Stack):
    """The third layer reads what the first gave, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.layers[0](x)
        second = self.layers[1](first)
        return self.layers[2](second + first)


class Alternating(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(F.relu(self.first(x)))
        return x


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, slot = (chosen == number).nonzero(as_tuple=True)
            out.index_add_(0, rows, expert(x[rows]) * weights[rows, slot, None])
        return out


LOSS = ["output <- {}", "sum <- output", "loss <- sum"]


def ends(last: str) -> list[str]:
    return [line.format(last) for line in LOSS]


def repeats(graph: Graph) -> list[tuple[str, int, list[str]]]:
    return [(group.label, group.times, [graph.nodes[node].label for node in group.nodes]) for group in graph.groups]


def test_a_residual_around_each_layer_is_drawn_once() -> None:
    summary = observed(Stack(5), torch.rand(2, 4))
    graph = contract(summary, depth=1)
    assert lines(summary, 1, fold=True) == [
        "input", "first <- input", "layers.0-4 <- first", "add <- first, layers.0-4", *ends("add")
    ]  # fmt: skip
    assert repeats(graph) == [("layers.0-4", 5, ["layers.0-4", "add"])]
    assert [node.times for node in graph.nodes] == [1, 1, 5, 5, 1, 1, 1]
    assert len(contract(summary, depth=1, fold=False).nodes) == 2 + 5 + 5 + 3


def test_branches_are_drawn_once_with_what_they_read_and_give() -> None:
    assert lines(observed(Branches(4), torch.rand(2, 4)), 1, fold=True) == [
        "input", "first <- input", "layers.0-3 <- first", "cat <- layers.0-3", *ends("cat")
    ]  # fmt: skip


class Joined(Stack):
    """All layers are joined; each reads the one before, or all read the same."""

    def __init__(self, in_a_row: bool) -> None:
        super().__init__(12)
        self.in_a_row = in_a_row

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        outs = []
        for layer in self.layers:
            outs.append(layer(x))
            x = outs[-1] if self.in_a_row else x
        return torch.cat(outs, 1)


class Scan(nn.Module):
    """Each step has a result of its own; what is handed on is the state alone."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, outs = x[:, 0], []
        for step in range(5):
            state = self.mix(x[:, step]) * state
            outs.append(self.head(state))
        return torch.stack(outs, 1)


def test_what_follows_each_other_is_told_from_what_stands_side_by_side() -> None:
    """In all forms, where it is one node and where it is several; of several it says so once."""
    chain, branches = (observed(Joined(in_a_row), torch.rand(2, 4)) for in_a_row in (True, False))
    for to in (to_svg, to_dot, to_mermaid):
        assert [to(contract(one)).count("in a row") for one in (chain, branches)] == [1, 0]
    labels = [[line for line in one.to_mermaid().splitlines() if "layers" in line] for one in (chain, branches)]
    assert labels == [
        ['  n2["layers.0-11 ×12 in a row<br>Linear"]'], ['  n2["layers.0-11 ×12<br>Linear"]']
    ]  # fmt: skip
    scan = observed(Scan(), torch.rand(2, 5, 4))
    assert [(group.in_a_row, len(group.nodes)) for group in contract(scan).groups] == [(True, 3)]
    assert [form.count("×5 in a row") for form in (scan.to_svg(), scan.to_dot(), scan.to_mermaid())] == [1, 1, 1]


class Recurrent(nn.Module):
    """The states of all steps are joined, by a stack or in the slices of one tensor; or of the first three alone."""

    def __init__(self, joined: str) -> None:
        super().__init__()
        self.cell, self.head, self.joined = nn.GRUCell(4, 4), nn.Linear(4, 2), joined

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, states, slices = x[:, 0], [], torch.empty(2, 5, 4)
        for step in range(5):
            state = self.cell(x[:, step], state)
            states.append(state)
            slices[:, step] = state
        last = len(states) if self.joined == "stack" else 3
        return self.head(slices if self.joined == "slices" else torch.stack(states[:last], 1))


def test_the_states_of_all_steps_are_read_by_what_joins_them() -> None:
    """Five steps are one node that gives five tensors; were it three of the five, they would all be drawn."""

    def edges(joined: str) -> list[tuple[str, str, str]]:
        graph = contract(observed(Recurrent(joined), torch.rand(2, 5, 4)))
        labels = [node.label for node in graph.nodes]
        return [(labels[edge.source], labels[edge.target], edge.tensor) for edge in graph.edges][:3]

    given = ("input", "cell", "[2, 4] float32")
    assert edges("stack") == [
        given, ("cell", "stack", "5 × [2, 4] float32"), ("stack", "head", "[2, 5, 4] float32")
    ]  # fmt: skip
    assert edges("slices") == [
        given, ("cell", "head", "5 × [2, 4] float32"), ("head", "output", "[2, 5, 2] float32")
    ]  # fmt: skip
    assert edges("three") == [
        ("input", "cell #1", "[2, 4] float32"), ("input", "cell #2", "[2, 4] float32"),
        ("cell #1", "cell #2", "[2, 4] float32"),
    ]  # fmt: skip


def test_a_call_of_a_module_that_is_called_again_is_told_by_its_number() -> None:
    """Of all its calls, also where five of them are drawn as one."""

    class Again(Recurrent):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.cell((super().forward(x) @ self.head.weight).sum(1))

    summary = observed(Again("stack"), torch.rand(2, 5, 4))
    labels = [node.label for node in contract(summary).nodes if node.detail == "GRUCell"]
    assert labels == ["cell #1", "cell #6"]
    labels = [node.label for node in contract(summary, fold=False).nodes if node.detail == "GRUCell"]
    assert labels == [f"cell #{number}" for number in (1, 2, 3, 4, 5, 6)]


class Counted(Stack):
    """A head on the last of twelve layers in a row, a sum of all, and two that join some."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outs = [self.first(x)]
        for layer in self.layers:
            outs.append(layer(outs[-1]))
        return torch.cat(outs[1:], 1).sum() + self.first(outs[-1]).sum() + torch.stack(outs[1:]).sum()


def test_how_many_flow_stands_at_the_edge_that_they_flow_on() -> None:
    """Below a node is the shape of one; a count is nearest to what reads so many."""
    svg = observed(Counted(12), torch.rand(2, 4)).to_svg()
    boxes, texts = {}, []
    for element in elements(svg):
        if "node" in element.get("class", ""):
            rect, text = element.find("{*}rect"), element.find("{*}text")
            assert rect is not None
            assert text is not None
            boxes[text.text] = [float(rect.get(key, "")) for key in ("x", "y", "width")]
        if element.get("class") == "shapes":
            texts = [(float(text.get("x", "")), float(text.get("y", "")), text.text) for text in element]
    assert [text for *_, text in texts].count("[2, 4]") == 1 + 2 + 1  # of the input, of two calls, of the layers
    counts = [(x, y) for x, y, text in texts if text == "12 ×"]
    for (x, y), target in zip(counts, ("cat", "stack"), strict=True):
        left, top, width = boxes[target]
        assert left < x < left + width + 10
        assert 0 < top - y < 17  # within half of the 34 above it


def test_what_is_not_wired_alike_is_drawn_apart() -> None:
    """Were the three drawn as one, what skips the second would not be seen."""
    assert lines(observed(Dense(3), torch.rand(2, 4)), 1, fold=True) == [
        "input", "layers.0 <- input", "layers.1 <- layers.0", "add <- layers.1, layers.0", "layers.2 <- add",
        *ends("layers.2"),
    ]  # fmt: skip


def test_a_sequence_that_repeats_with_a_shared_module_is_drawn_once() -> None:
    summary = observed(Alternating(3), torch.rand(2, 4))
    assert lines(summary, 1, fold=True) == [
        "input", "first <- input", "relu <- first", "layers.0-2 <- relu", *ends("layers.0-2")
    ]  # fmt: skip
    assert repeats(contract(summary, depth=1)) == [("first … layers.2", 3, ["first", "relu", "layers.0-2"])]


class Supervised(nn.Module):
    """Four layers in a row or side by side, and a head for each that reads the layer of the number in ``reads``."""

    def __init__(self, reads: list[int], in_a_row: bool = True) -> None:
        super().__init__()
        self.bl = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.hd = nn.ModuleList(nn.Linear(8, 3) for _ in range(4))
        self.reads, self.in_a_row = reads, in_a_row

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outs = []
        for layer in self.bl:
            outs.append(layer(x))
            x = outs[-1] if self.in_a_row else x
        return torch.cat([head(outs[read]) for head, read in zip(self.hd, self.reads, strict=True)])


@pytest.mark.parametrize(
    ("reads", "in_a_row", "expected"),
    [
        ([0, 1, 2, 3], True, ["hd.0-3 <- bl.0-3: of each [2, 8]"]),
        ([0, 1, 2, 3], False, ["hd.0-3 <- bl.0-3: of each [2, 8]"]),
        ([3, 3, 3, 3], True, ["hd.0-3 <- bl.0-3: [2, 8]"]),  # what runs in a row gives of its last
        ([3, 3, 3, 3], False, ["hd.0-3 <- bl.3: [2, 8]"]),
        ([3, 2, 1, 0], True, [*[f"bl.{n + 1} <- bl.{n}: [2, 8]" for n in range(3)],
                              *[f"hd.{3 - n} <- bl.{n}: [2, 8]" for n in range(4)]]),
        ([3, 2, 1, 0], False, [f"hd.{3 - n} <- bl.{n}: [2, 8]" for n in range(4)]),
    ],
)  # fmt: skip
def test_which_copy_gives_to_which_is_told(reads: list[int], in_a_row: bool, expected: list[str]) -> None:
    """Round i to round i, the last to all, or, where it is something else, each by itself."""
    graph = contract(observed(Supervised(reads, in_a_row), torch.rand(2, 8)))
    labels = [node.label for node in graph.nodes]
    edges = [(labels[edge.source], labels[edge.target], edge.tensor.removesuffix(" float32")) for edge in graph.edges]
    between = [f"{target} <- {source}: {tensor}" for source, target, tensor in edges if "bl" in source]
    assert sorted(between) == sorted(expected)
    joined = {tensor for _, target, tensor in edges if target == "cat"}
    assert joined == ({"4 × [2, 3]"} if any("hd.0-3" in label for label in labels) else {"[2, 3]"})


def test_experts_are_drawn_once_with_the_operations_around_each() -> None:
    """The rows that the experts were given differ in number: the shapes say from how many to how many."""
    torch.manual_seed(0)
    summary = observed(Experts(), torch.rand(8, 4))
    assert lines(summary, fold=True) == [
        "input", "router <- input", "softmax <- router", "topk <- softmax", "eq <- topk", "nonzero <- eq",
        "index.1 <- input, nonzero", "experts.0-2.0 <- index.1", "experts.0-2.1 <- experts.0-2.0",
        "experts.0-2.2 <- experts.0-2.1", "index.2 <- topk, nonzero", "mul <- experts.0-2.2, index.2",
        "index_add_ <- nonzero, mul", *ends("index_add_"),
    ]  # fmt: skip
    rows = [group.inputs[0].shape[0] for n in range(3) for group in summary[f"experts.{n}"].call_groups or ()]  # type: ignore[union-attr,index]
    graph = contract(summary)
    (edge,) = [e for e in graph.edges if graph.nodes[e.target].label == "experts.0-2.0"]
    assert sum(rows) == 2 * 8
    assert edge.tensor == f"[{min(rows)}-{max(rows)}, 4] float32"


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (0, ["input", "Sequential <- input", *ends("Sequential")]),
        (1, ["input", "0 <- input", "1 <- 0", *ends("1")]),
        (2, ["input", "0.0 <- input", "0.1 <- 0.0", "1 <- 0.1", *ends("1")]),
        (None, ["input", "0.0 <- input", "0.1 <- 0.0", "1 <- 0.1", *ends("1")]),
    ],
)
def test_the_depth_is_that_of_calls(depth: int | None, expected: list[str]) -> None:
    summary = observed(nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4)), torch.rand(2, 4))
    assert lines(summary, depth) == expected
    assert depths(summary) == range(1, 3)


@pytest.mark.parametrize("depth", [-1, 1.0, True, "2"])
def test_a_wrong_depth_is_refused(depth: Any) -> None:
    with pytest.raises(SummaryError, match="depth must be a whole number from 0, or None for all, not "):
        replace(SUMMARY, dataflow=Dataflow((), (), ())).to_dot(depth=depth)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_of_which_nothing_ran_is_an_empty_drawing(layout: Any, tmp_path: Path) -> None:
    """As it is no line of DOT and Mermaid but the first and the last; also in files, and from the command line."""
    if layout == "dot" and shutil.which("dot") is None:
        pytest.skip("graphviz is not installed")
    with summarycb.observe(nn.Linear(2, 2)) as observation:
        pass
    made = observation.summary
    assert made is not None
    svg = made.to_svg(layout=layout)
    root = ElementTree.fromstring(svg)
    assert root.get("viewBox") == "-20 -20 40 40"  # the margin alone
    assert [desc.text for desc in root.findall("{*}desc")] == ["From top to bottom: 0 nodes, 0 edges"]
    assert made.to_mermaid() == "flowchart TD\n"
    made.save(tmp_path / "x.svg")
    made.save(tmp_path / "x.json")
    assert main(["show", str(tmp_path / "x.json"), "--format", "svg", "-o", str(tmp_path / "y.svg")]) == 0
    assert (tmp_path / "x.svg").read_text() == (tmp_path / "y.svg").read_text() == made.to_svg()


def test_a_wrong_layout_is_refused() -> None:
    with pytest.raises(SummaryError, match="layout must be one of fast-sugiyama, dot, not 'elk'"):
        replace(SUMMARY, dataflow=Dataflow((), (), ())).to_svg(layout="elk")  # type: ignore[arg-type]


def test_a_structure_has_no_dataflow_and_says_why() -> None:
    summary = summarycb.summarize(nn.Linear(4, 4))
    assert drawings(graphs(summary)) == []
    with pytest.raises(SummaryError, match="the summary has no dataflow: no step was observed"):
        summary.to_mermaid()


def gpt2(layers: int = 12) -> ModelSummary:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=layers, n_head=2, bos_token_id=None, eos_token_id=None
    )
    model, ids = transformers.GPT2LMHeadModel(config), torch.randint(50, (2, 7))
    with summarycb.observe(model) as observation:
        model(input_ids=ids, labels=ids)["loss"].backward()
    assert observation.summary is not None
    return observation.summary


@pytest.fixture(scope="module")
def twelve() -> ModelSummary:
    return gpt2()


def test_twelve_blocks_are_as_large_as_two(twelve: ModelSummary) -> None:
    """All drawings of GPT-2 together take less than 60 KB, and as much as those of two blocks, but for digits."""
    sizes = [sum(len(drawing.svg.encode()) for drawing in drawings(graphs(summary))) for summary in (twelve, gpt2(2))]
    assert [drawing.depth for drawing in drawings(graphs(twelve))] == [1, 2, 3, 4]
    assert max(sizes) < 60_000
    assert abs(sizes[0] - sizes[1]) < 100


def elements(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{"depth": 3}, {"depth": None, "parameters": True}, {"depth": 2, "fold": False}])
def test_no_two_boxes_overlap(layout: str, options: dict[str, Any], twelve: ModelSummary) -> None:
    if layout == "dot" and shutil.which("dot") is None:
        pytest.skip("graphviz is not installed")
    graph = contract(twelve, **options)
    sizes = {node.id: (90.0 + 10 * (node.id % 4), 30.0) for node in graph.nodes}
    placed = LAYOUTS[layout](sizes, [(e.source, e.target) for e in graph.edges], [])
    boxes = [(*placed.centres[node], *size) for node, size in sizes.items()]
    for number, (x, y, w, h) in enumerate(boxes):
        assert -0.1 <= x - w / 2 <= x + w / 2 <= placed.size[0] + 1
        for other_x, other_y, other_w, other_h in boxes[:number]:
            assert abs(x - other_x) >= (w + other_w) / 2 - 0.1 or abs(y - other_y) >= (h + other_h) / 2 - 0.1
    for edge in graph.edges:
        curve = placed.curves[edge.source, edge.target]
        assert curve[0][1] < curve[-1][1]  # from top to bottom


def test_the_drawing_is_inert_and_says_what_it_shows(twelve: ModelSummary) -> None:
    """No script, no style attribute, no address; what a page's policy forbids is not needed for it."""
    svg = twelve.to_svg(depth=3)
    found = elements(svg)
    assert {e.tag.rpartition("}")[2] for e in found} == {
        "svg",
        "title",
        "desc",
        "style",
        "g",
        "rect",
        "text",
        "path",
    }
    assert not any(name == "style" or name.startswith("on") or "href" in name for e in found for name in e.attrib)
    assert "url(" not in svg
    assert svg.count("http") == 1  # the namespace
    nodes = [e for e in found if e.get("class", "").startswith("node")]
    assert [e.get("data-path") for e in nodes if "module" in e.get("class", "")] == [
        "transformer.wte", "transformer.wpe", "transformer.drop", "transformer.h.0.ln_1", "transformer.h.0.attn",
        "transformer.h.0.ln_2", "transformer.h.0.mlp", "transformer.ln_f", "lm_head",
    ]  # fmt: skip
    # the whole path is said wherever the drawing has less of it; "lm_head" and its type are all there is to say
    assert [e.get("data-path") for e in nodes if e.find("{*}title") is None and e.get("data-path")] == ["lm_head"]
    assert [drawing.svg.count("<style>") for drawing in drawings(graphs(twelve))] == [0, 0, 0, 0]


def hostile() -> ModelSummary:
    model = nn.Sequential()
    model.add_module(HOSTILE.replace(".", ""), nn.Linear(4, 4))
    return observed(model, torch.rand(2, 4))


def test_a_hostile_name_is_text() -> None:
    svg = hostile().to_svg(depth=1)
    (node,) = [e for e in elements(svg) if e.get("data-path")]
    assert node.get("data-path") == HOSTILE
    assert "<img" not in svg
    assert hostile().to_mermaid(depth=1).splitlines()[2] == (
        '  n1["#60;/script#62;#60;img src=x onerror=alert(1)#62;#34;#38;#92;<br>Linear"]'
    )


MERMAID = """\
flowchart TD
  n0(["input"])
  n1["first<br>Linear"]
  subgraph g0["layers.0-4 ×5 in a row"]
    n2["layers.0-4<br>Linear"]
    n3("add")
  end
  n4(["output"])
  n5("sum")
  n6(["loss"])
  n0 -->|"[2, 4] float32"| n1
  n1 -->|"[2, 4] float32"| n2
  n1 -->|"[2, 4] float32"| n3
  n2 -->|"[2, 4] float32"| n3
  n3 -->|"[2, 4] float32"| n4
  n4 -->|"[2, 4] float32"| n5
  n5 -->|"[] float32"| n6
"""


def test_the_whole_of_a_mermaid() -> None:
    assert observed(Stack(5), torch.rand(2, 4)).to_mermaid(depth=1) == MERMAID


def test_graphviz_reads_the_dot(twelve: ModelSummary) -> None:
    program = shutil.which("dot")
    if program is None:
        pytest.skip("graphviz is not installed")
    for summary in (twelve, hostile()):
        graph = contract(summary, depth=None)
        done = subprocess.run([program, "-Tplain"], input=to_dot(graph), capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(re.findall(r"^node ", done.stdout, re.MULTILINE)) == len(graph.nodes)
        assert len(re.findall(r"^edge ", done.stdout, re.MULTILINE)) == len(graph.edges)


def test_without_the_extra_there_are_no_drawings_and_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, twelve: ModelSummary
) -> None:
    monkeypatch.setitem(sys.modules, "fast_sugiyama", None)
    assert drawings(graphs(twelve)) == []
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'summarycb\[report\]'"):
        twelve.to_svg()
    assert to_mermaid(contract(twelve)).startswith("flowchart TD\n")


def test_a_stored_dataflow_that_goes_in_a_circle_is_drawn() -> None:
    """A file may hold anything that its schema allows; no step makes one."""
    nodes = (FlowNode("op", "a", 0, inputs=(FlowEdge(1, None),)), FlowNode("op", "b", 0, inputs=(FlowEdge(0, None),)))
    summary = replace(SUMMARY, dataflow=Dataflow((FlowCall(0, None),), (), nodes))
    loaded = ModelSummary.from_json(summary.to_json())
    assert [(edge.source, edge.target) for edge in contract(loaded).edges] == [(1, 0), (0, 1)]
    assert "<svg" in to_svg(contract(loaded))


def test_deep_nesting_is_contracted() -> None:
    model: nn.Module = nn.Linear(4, 4)
    for _ in range(100):
        model = nn.Sequential(model)
    summary = observed(model, torch.rand(2, 4))
    assert len(contract(summary, depth=None).nodes) == 5
    assert [drawing.depth for drawing in drawings(graphs(summary))] == [1]


class OneWithout(Stack):
    """The last of two layers has nothing added to it: both as one would give it what it has not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](x) + x
        return self.layers[1](x) + 1.0


def test_many_operations_of_which_nothing_repeats_are_contracted_in_time() -> None:
    """3,000 of one name. Which read the input too is the Thue-Morse sequence: nothing is in it three times on end.

    That took 10 s when each was compared with all others, and takes a tenth of one.
    """
    reads = [{n - 1, 0} if n.bit_count() % 2 else {n - 1} for n in range(1, 3001)]
    operations = [FlowNode("op", "mul", 0, inputs=tuple([FlowEdge(n, None) for n in sorted(found)])) for found in reads]
    flow = Dataflow((FlowCall(0, None),), (), (FlowNode("input", "x"), *operations))
    began = time.process_time()
    graph = contract(replace(SUMMARY, dataflow=flow))
    assert time.process_time() - began < 3
    # of each two numbers 2n and 2n + 1 one has an odd number of ones, and so has 3,000; the first reads the input once
    assert (len(graph.nodes), len(graph.edges)) == (1 + 3000, 3000 + 1500 + 1 - 1)


def test_a_residual_that_one_copy_lacks_is_drawn_of_none() -> None:
    assert lines(observed(OneWithout(2), torch.rand(3, 4)), 1, fold=True) == [
        "input",
        "layers.0 <- input",
        "add.1 <- layers.0, input",
        "layers.1 <- add.1",
        "add.2 <- layers.1",
        "output <- add.2",
        "sum <- output",
        "loss <- sum",
    ]


class Pairs(nn.Module):
    """Hands two tensors of equal rank and unequal size from layer to layer."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.inner(x) + y.sum(0), y * 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Pairs.Layer() for _ in range(3))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x, y = layer(x, y)
        return x


def test_two_tensors_on_one_edge_are_not_one_of_two_sizes() -> None:
    graph = contract(observed(Pairs(), torch.rand(3, 4), torch.rand(7, 4)), depth=1)
    between = {edge.tensor for edge in graph.edges if graph.nodes[edge.source].kind == "module"}
    assert between == {"[3, 4] float32, [7, 4] float32", "[3, 4] float32"}


@pytest.mark.parametrize(("letter", "em"), [("a", 0.675), ("漢", 1.0)])
def test_a_long_name_is_within_its_box(letter: str, em: float) -> None:
    """Of sixty letters 29 are shown, bold and of 12 px; a full-width letter is 1 em, an "a" of DejaVu Sans 0.675."""
    svg = observed(nn.Sequential(OrderedDict({60 * letter: nn.Linear(4, 4)})), torch.rand(3, 4)).to_svg()
    (node,) = [e for e in elements(svg) if e.get("data-path")]
    text, rect = node.find("{*}text"), node.find("{*}rect")
    assert text is not None
    assert rect is not None
    assert text.text == "…" + 29 * letter
    assert float(rect.get("width", "")) > 30 * 12 * em + 12


def test_names_that_a_terminal_or_a_reader_would_obey() -> None:
    """In none of the forms: the SVG is well-formed, and ``dot`` reads the other."""
    summary = observed(nn.Sequential(OrderedDict({"a\x1b\x00b\u202ec": nn.Linear(4, 4)})), torch.rand(3, 4))
    for form in (summary.to_svg(), summary.to_dot(), summary.to_mermaid()):
        assert not set(form) & set("\x1b\x00\u202e")
        assert "a  b c" in form
    ElementTree.fromstring(summary.to_svg())
