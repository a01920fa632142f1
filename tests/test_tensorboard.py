"""What a TensorBoard run holds after a report, and that writing it harms neither the training nor its own log."""

from __future__ import annotations

import importlib
import io
import json
import string
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.image
import pytest
import torch
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as tensorboards
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import summarycb
import summarycb.collect.dataflow
import summarycb_tensorboard.graph
from summarycb.names import unescape
from summarycb.report import Report, structure
from summarycb.serialize import load
from summarycb.testing import check_tracker
from summarycb.trackers import open_reference, resolve
from summarycb.tree import CallGroup, ModelSummary, Work
from summarycb_lightning import ModelSummaryCallback
from summarycb_tensorboard import TensorBoardTracker
from summarycb_tensorboard.crc32c import masked_crc32c
from summarycb_tensorboard.graph import drawn
from tests.lightning_trainings import MARKS, lit, trainer
from tests.pages import Block, step
from tests.tensorboards import serving
from tests.trainings import Case, loss_of


def written(folder: Path, summary: ModelSummary, step: int = 0) -> Any:
    open_reference(f"tensorboard:{folder}").write(Report(summary), step=step)
    return events_of(folder)


def events_of(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def run_metadata(events: Any, phase: str) -> Any:
    """The only graph of that phase."""
    from tensorboard.compat.proto.config_pb2 import RunMetadata

    [tag] = [tag for tag in graph_tags(events) if f"/{phase}." in tag]
    [event] = events.Tensors(tag)
    return RunMetadata.FromString(event.tensor_proto.string_val[0])


def graph_tags(events: Any) -> list[str]:
    return sorted(events.PluginTagToContent("graph_run_metadata"))


def graph_tag(summary: ModelSummary, phase: str) -> str:
    return f"model_summary/{summary.root.type_name}/{phase}.{structure(summary)[:8]}"


def stats_of(metadata: Any) -> dict[str, tuple[int, int]]:
    """Time and memory by node."""
    return {
        node.node_name: (node.all_end_rel_micros, sum(memory.total_bytes for memory in node.memory))
        for device in metadata.step_stats.dev_stats
        for node in device.node_stats
    }


pytestmark = MARKS
TAKEN = string.ascii_letters + string.digits + "_.-%"


class Net(nn.Module):
    """Two rows of 4 through a block, twice through one layer, and never through another."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(4, 8)])
        self.twice = nn.Linear(4, 4, bias=False)
        self.never = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(self.twice(self.blocks[0](x)))


@pytest.fixture(scope="module")
def net() -> ModelSummary:
    return step(Net(), torch.ones(2, 4))


# --- the graph ------------------------------------------------------------------------------------------------------


def test_the_graph_is_that_of_the_calls(net: ModelSummary, tmp_path: Path) -> None:
    graph = run_metadata(written(tmp_path, net), "forward").function_graphs[0].pre_optimization_graph
    assert {node.name: (node.op, list(node.input)) for node in graph.node} == {
        "input": ("input", []),
        "blocks/0": ("Block", []),
        "blocks/0/norm": ("LayerNorm", ["input"]),
        "blocks/0/up": ("Linear", ["blocks/0/norm"]),
        "blocks/0/act": ("GELU", ["blocks/0/up"]),
        "blocks/0/down": ("Linear", ["blocks/0/act"]),
        "blocks/0/add": ("add", ["input", "blocks/0/down"]),
        "twice": ("Linear", ["blocks/0/add"]),
        "twice#2": ("Linear", ["twice"]),
        "output": ("output", ["twice#2"]),
        "(outside)/sum": ("sum", ["output"]),
        "loss": ("loss", ["(outside)/sum"]),
        "Net": ("Net", []),
        "(outside)": ("outside", []),
        "never": ("Linear", []),
    }
    up = next(node for node in graph.node if node.name == "blocks/0/up")
    assert [[dim.size for dim in shape.dim] for shape in up.attr["_output_shapes"].list.shape] == [[2, 8]]
    assert {key: value.s.decode() for key, value in up.attr.items() if value.s} == {
        "path": "blocks.0.up",
        "config": "in_features=4, out_features=8, bias=True",
        "parameters": "weight [8, 4] float32, bias [8] float32",
        "inputs": "([2, 4],)",
        "outputs": "[2, 8]",
        "forward_flops": "128",  # 2 x (2 x 4 x 8)
        "backward_flops": "256",  # for the input and for the weight
        "saved_activations": "64",  # its result, for GELU: 2 x 8 x 4
        "gradients": "160",  # (8 x 4 + 8) x 4
        "compute_time": "1 us is 1 FLOP",
    }


def test_time_is_work_and_memory_is_what_is_kept(net: ModelSummary, tmp_path: Path) -> None:
    """What has neither is there too; but not what never ran, which TensorBoard draws as unused."""
    events = written(tmp_path, net)
    linear, twice = 2 * (2 * 4 * 8), 2 * (2 * 4 * 4)  # FLOPs of a forward
    result = 2 * 4 * 4
    nothing = dict.fromkeys(["Net", "input", "output", "loss", "(outside)/sum", "blocks/0/add"], (0, 0))
    assert stats_of(run_metadata(events, "forward")) == nothing | {
        "blocks/0": (0, result),  # the sum, for ``twice``
        "blocks/0/norm": (0, result + 2 * 2 * 4),  # with mean and deviation
        "blocks/0/up": (linear, 2 * 8 * 4),
        "blocks/0/act": (0, 2 * 8 * 4),
        "blocks/0/down": (linear, 0),
        "twice": (twice, result),
        "twice#2": (twice, 0),
        "(outside)": (0, 4),  # the loss
    }
    assert stats_of(run_metadata(events, "backward")) == nothing | {
        "blocks/0": (0, 0),
        "blocks/0/norm": (0, (4 + 4) * 4),
        "blocks/0/up": (2 * linear, (32 + 8) * 4),
        "blocks/0/act": (0, 0),
        "blocks/0/down": (2 * linear, (32 + 4) * 4),
        "twice": (2 * twice, 16 * 4),  # the gradient is one
        "twice#2": (2 * twice, 0),
        "(outside)": (0, 0),
    }


def totals(nodes: list[Any]) -> list[int]:
    return [sum(column) for column in zip(*[node.cost for node in nodes if node.cost is not None], strict=True)]


@pytest.mark.parametrize("drop", [False, True], ids=["calls", "modules"])
def test_the_nodes_have_together_what_the_step_has(case: Case, drop: bool) -> None:
    """Also where the dataflow was too large to be kept: then a module is one node."""
    model, optimizer = case.make()
    x, y = case.batches(1)[0]
    with summarycb.observe(model, optimizer) as observation:
        loss_of(model(x), y).backward()
        optimizer.step()
    summary = observation.summary
    assert summary is not None
    nodes = drawn(replace(summary, dataflow=None) if drop else summary)
    memory = summary.memory
    assert totals(nodes) == [
        summary.forward_flops, summary.backward_flops, memory.saved_activations, memory.gradients,
    ]  # fmt: skip
    assert len({node.name for node in nodes}) == len(nodes)


class Interleaved(nn.Module):
    """Calls the layers of two modules in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for first, second in zip(self.a, self.b, strict=True):
            x = second(first(x))
        return x


@pytest.mark.parametrize("make", [Interleaved, lambda: Block(4, 8)], ids=["interleaved", "in order"])
def test_a_module_has_the_time_of_all_that_is_in_it(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """TensorBoard takes the first start and the last end of what is under a name."""
    summary = step(make(), torch.ones(2, 4))
    metadata = run_metadata(written(tmp_path, summary), "backward")
    spans = {node.node_name: node for device in metadata.step_stats.dev_stats for node in device.node_stats}
    for module in list(summary.root.walk())[1:]:
        name = module.path.replace(".", "/")
        inside = [node for key, node in spans.items() if f"{key}/".startswith(f"{name}/") and node.all_end_rel_micros]
        ends = [node.all_start_micros + node.all_end_rel_micros for node in inside]
        assert max(ends, default=0) - min([n.all_start_micros for n in inside], default=0) == module.backward_flops


class Lengths(nn.Module):
    """One layer on 1, 2 and 2 rows; another on 1, 1, 2 and 1, of which nobody can say later which was which."""

    def __init__(self) -> None:
        super().__init__()
        self.told, self.mixed = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.told(x[:1]).sum() + self.told(x).sum() + self.told(x).sum()
        return first + sum(self.mixed(x[:rows]).sum() for rows in (1, 1, 2, 1))


def test_unlike_calls_have_each_its_own_cost_or_all_of_them_one_together() -> None:
    row = 2 * 4 * 4
    nodes = {node.name: node for node in drawn(step(Lengths(), torch.ones(2, 4)))}
    costs = {name: None if node.cost is None else node.cost.forward_flops for name, node in nodes.items()}
    told = {name: cost for name, cost in costs.items() if name.startswith(("told", "mixed"))}
    assert told == {
        "told": row, "told#2": 2 * row, "told#3": 2 * row,
        "mixed": None, "mixed#2": None, "mixed#3": None, "mixed#4": None, "mixed#5": 5 * row,
    }  # fmt: skip
    assert nodes["mixed#5"].about["calls"] == "4"


def test_an_unknown_cost_is_no_time(net: ModelSummary, tmp_path: Path) -> None:
    """Neither of the layer, which TensorBoard would show as free, nor a guess; its card says ``?``."""
    layer = net["twice"]
    unknown = replace(
        layer, call_groups=tuple(replace(g, own=replace(g.own, forward_macs=None)) for g in layer.call_groups)
    )
    root = replace(net.root, children=tuple(unknown if m is layer else m for m in net.root.children))
    metadata = run_metadata(written(tmp_path, replace(net, root=root)), "forward")
    times = {name: time for name, (time, _) in stats_of(metadata).items() if time}
    assert times == {"blocks/0/up": 128, "blocks/0/down": 128}
    [node] = [n for n in metadata.function_graphs[0].pre_optimization_graph.node if n.name == "twice"]
    assert (node.attr["forward_flops"].s, node.attr["backward_flops"].s) == (b"?", b"128")


ODD = ["größe [层] 🙂", "//(a) b:1", "%23", "a#2", "x" * 5_000, "y" * 5_000, "z" * 4_999 + "é"]


def test_names_are_those_that_tensorflow_takes_and_can_be_read_back(tmp_path: Path) -> None:
    model = nn.Sequential()
    for name in ODD:
        model.add_module(name, nn.Linear(4, 4))
    events = written(tmp_path, step(model, torch.ones(2, 4)))
    graph = run_metadata(events, "forward").function_graphs[0].pre_optimization_graph
    names = [node.name for node in graph.node if node.op == "Linear"]
    assert [unescape(name) for name in names] == [*ODD[:4], None, None, None]
    assert len(set(names)) == len(ODD)
    assert all(len(name) <= 200 and set(name) <= set(TAKEN) for name in names)
    [output] = [node for node in graph.node if node.name == "output"]
    assert output.input == [names[-1]]


class Outside(nn.Module):
    """Has a layer that is called as what is outside of the model is."""

    def __init__(self) -> None:
        super().__init__()
        self.outside = nn.Sequential(nn.Linear(4, 4), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outside(x)


def test_a_module_called_outside_holds_nothing_of_what_is_outside_of_the_model() -> None:
    nodes = drawn(step(Outside(), torch.ones(2, 4)))
    assert {node.name: [source.name for source, _ in node.reads] for node in nodes} == {
        "Outside": [], "input": [],
        "outside": [], "outside/0": ["input"], "outside/1": ["outside/0"],
        "output": ["outside/1"], "(outside)/sum": ["output"], "loss": ["(outside)/sum"], "(outside)": [],
    }  # fmt: skip


def test_a_models_name_in_a_tag_is_escaped_and_bounded(net: ModelSummary, tmp_path: Path) -> None:
    """A part of a tag of its own; what is too long ends in a hash of the whole."""
    names = {}
    for name in ("My/Net [v2]", "N" * 5_000):
        folder = tmp_path / name[:2]
        [tag, _] = graph_tags(written(folder, replace(net, root=replace(net.root, type_name=name))))
        [_, names[name], phase] = tag.split("/")
        assert phase.startswith("backward.")
    short, long = names.values()
    assert short == "My%2FNet%20%5Bv2%5D"
    assert (len(long), long[:182]) == (200, "N" * 182)  # 200 - len("%%" and 16 digits)


def test_the_card_of_the_model_says_why_no_edges_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataflow of more than 20,000 nodes is not kept: here one of more than two."""
    monkeypatch.setattr(summarycb.collect.dataflow, "MOST_NODES", 2)
    summary = step(Block(4, 8), torch.ones(2, 4))
    monkeypatch.setattr(summarycb_tensorboard.graph, "MOST_MODULES", 4)  # one less than there are
    [small] = [node for node in drawn(step(Outside(), torch.ones(2, 4))) if "dataflow" in node.about]
    [large] = [node for node in drawn(summary) if "dataflow" in node.about]
    assert (small.name, small.about["dataflow"]) == (
        "Outside", "a dataflow of more than 20,000 nodes or 100,000 edges is not kept",
    )  # fmt: skip
    assert (large.name, large.about["dataflow"]) == (
        "Block", "of more than 4 modules the upper levels are drawn, without the dataflow",
    )  # fmt: skip


def test_a_structure_alone_is_a_graph_without_costs(tmp_path: Path) -> None:
    events = written(tmp_path, summarycb.summarize(Net()))
    metadata = run_metadata(events, "structure")
    assert [node.name for node in metadata.function_graphs[0].pre_optimization_graph.node] == [
        "blocks/0/norm", "blocks/0/up", "blocks/0/act", "blocks/0/down", "twice", "never",
    ]  # fmt: skip
    assert not metadata.step_stats.dev_stats


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_a_parameter_without_dimensions() -> None:
    told = [node.about.get("parameters") for node in drawn(step(Scaled(), torch.ones(2)))]
    assert [parameters for parameters in told if parameters] == ["scale [] float32"]


def test_of_very_large_trees_the_upper_levels_are_drawn(net: ModelSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is below them: eight modules in all, the root, three below it, one, and four."""
    monkeypatch.setattr(summarycb_tensorboard.graph, "MOST_MODULES", 5)
    nodes = drawn(net)
    assert [node.name for node in nodes] == ["Net", "twice", "never", "blocks/0", "(outside)"]
    assert totals(nodes)[:2] == [net.forward_flops, net.backward_flops]


@pytest.mark.parametrize(
    ("macs", "unit", "time"),
    [(30_000_000, "FLOP", 60_000_000), (30_000_001, "KFLOP", 60_000), (2**60, "TFLOP", 2_305_843)],
)
def test_time_stays_below_a_minute_by_larger_units(
    net: ModelSummary, tmp_path: Path, macs: int, unit: str, time: int
) -> None:
    """2 x 2**60 FLOPs are 2,305,843.009 TFLOPs; the card has all digits."""
    work = Work(macs, 0, 0, 0, 0)
    root = replace(net.root, children=(), call_groups=(CallGroup(1, None, None, work, work),))
    metadata = run_metadata(written(tmp_path, replace(net, root=root, dataflow=None)), "forward")
    [node] = [n for n in metadata.function_graphs[0].pre_optimization_graph.node if n.name == "Net"]
    assert node.attr["compute_time"].s == f"1 us is 1 {unit}".encode()
    assert node.attr["forward_flops"].s == f"{2 * macs:,}".encode()
    assert stats_of(metadata)["Net"][0] == time


# --- the file ---------------------------------------------------------------------------------------------------------


def test_checksums_are_those_of_crc_32c() -> None:
    """The check value of the catalogues; and tensorboard's own at every length."""
    check = 0xE3069283  # of "123456789"
    assert masked_crc32c(b"123456789") == ((check >> 15 | check << 17) + 0xA282EAD8) % 2**32
    data = bytes(byte * byte % 251 for byte in range(1_000))
    assert [masked_crc32c(data[:n]) for n in range(4, 300)] == [tensorboards(data[:n]) for n in range(4, 300)]


def test_checksums_of_large_reports_take_no_time_from_the_training() -> None:
    """tensorboard's own holds the interpreter for a tenth of a second a megabyte; ours, measured, a fifteenth of it."""
    data = bytes(range(256)) * 8_000
    times = []
    for checksum in (masked_crc32c, tensorboards):
        began = time.thread_time()
        found = checksum(data)
        times.append((time.thread_time() - began, found))
    (ours, first), (theirs, second) = times
    assert first == second
    assert ours < theirs / 3


# --- the run --------------------------------------------------------------------------------------------------------


def test_it_keeps_what_every_tracker_has_to(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        check_tracker(TensorBoardTracker, writer, f"tensorboard:{tmp_path}")


def test_the_run_holds_all_of_the_report(net: ModelSummary, tmp_path: Path) -> None:
    report = Report(net)
    events = written(tmp_path, net, step=7)
    tags = events.Tags()
    assert tags["scalars"] == list(report.metrics)
    assert [events.Scalars(name)[0].value for name in report.metrics] == list(report.metrics.values())
    assert {events.Scalars(name)[0].step for name in report.metrics} == {7}
    assert tags["tensors"] == [
        "model_summary/json", "model_summary/text/text_summary",
        graph_tag(net, "forward"), graph_tag(net, "backward"),
    ]  # fmt: skip
    assert events.PluginTagToContent("summarycb") == {"model_summary/json": b""}
    graphs = events.PluginTagToContent("graph_run_metadata")  # TensorBoard passes over those of another version
    assert graphs == {graph_tag(net, phase): b"1" for phase in ("forward", "backward")}
    [stored] = events.Tensors("model_summary/json")
    assert stored.tensor_proto.string_val[0] == report.json.encode()
    [text] = events.Tensors("model_summary/text/text_summary")
    assert text.tensor_proto.string_val[0].decode() == f"```\n{report.text}\n```"
    images = {tag.removeprefix("model_summary/plots/"): events.Images(tag)[0] for tag in tags["images"]}
    assert {name: image.encoded_image_string for name, image in images.items()} == report.images
    assert images
    for image in images.values():
        figure = matplotlib.image.imread(io.BytesIO(image.encoded_image_string), format="png")
        assert figure.shape[:2] == (image.height, image.width)


def test_a_report_takes_the_place_of_an_earlier_one_of_the_same_architecture(net: ModelSummary, tmp_path: Path) -> None:
    """A resumed training: nothing is there twice, and no file is left of the first."""
    written(tmp_path, net, step=3)
    events = written(tmp_path, replace(net, optimizer_macs=7), step=90)
    assert [(e.step, e.value) for e in events.Scalars("model_summary/total_params")] == [(90, net.total_params)]
    assert {tag: len(events.Tensors(tag)) for tag in events.Tags()["tensors"]} == dict.fromkeys(
        events.Tags()["tensors"], 1
    )
    assert len(list(tmp_path.iterdir())) == 1


def test_two_models_in_one_run_have_a_graph_each(tmp_path: Path) -> None:
    """As the two of a GAN, each with its own ``watch`` and the same writer, although of one class; the newest is what
    is read.
    """
    summaries = []
    with SummaryWriter(str(tmp_path)) as writer:
        for model in (nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Sequential(nn.Linear(4, 1))):
            with summarycb.watch(model, trackers=[writer], verbose=False) as hook:
                model(torch.ones(2, 4)).sum().backward()
            assert hook.summary is not None
            summaries.append(hook.summary)
    events = events_of(tmp_path)
    of_each = {graph_tag(summary, phase): 1 for summary in summaries for phase in ("forward", "backward")}
    assert len(of_each) == 4
    assert {tag: len(events.Tensors(tag)) for tag in graph_tags(events)} == of_each
    assert load(f"tensorboard:{tmp_path}") == summaries[-1]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_users_own_graph_stays_the_default_one(net: ModelSummary, tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(nn.Linear(4, 4), torch.ones(2, 4))
    before = events_of(tmp_path).Graph()
    assert written(tmp_path, net).Graph() == before


# --- beside the user's writer ---------------------------------------------------------------------------------------


def test_the_users_log_is_one_run_with_ours_and_goes_on(net: ModelSummary, tmp_path: Path) -> None:
    """Also for the loader that reads file by file: it never goes back to one when there is a later one."""
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("loss", 1.0, 0)
        writer.flush()
        watching = events_of(tmp_path)
        [tracker] = resolve([writer])
        tracker.write(Report(net), step=0)
        watching.Reload()
        writer.add_scalar("loss", 0.5, 1)
        writer.flush()
        for events in (watching.Reload(), events_of(tmp_path)):
            assert [event.value for event in events.Scalars("loss")] == [1.0, 0.5]
        assert set(events.Tags()["scalars"]) == {"loss", *Report(net).metrics}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [[], ["--load_fast=false", "--reload_multifile=true"]], ids=["data server", "python"]
)
def test_a_tensorboard_that_is_open_already_shows_the_report(
    options: list[str], net: ModelSummary, tmp_path: Path
) -> None:
    """Its default loader does; the one in Python only where it reads several files of a run."""
    with SummaryWriter(str(tmp_path)) as writer, serving(tmp_path, "--reload_interval=1", *options) as url:
        writer.add_scalar("loss", 1.0, 0)
        writer.flush()
        served(url, "loss")
        [tracker] = resolve([writer])
        tracker.write(Report(net), step=0)
        served(url, "model_summary/total_params")


def served(url: str, tag: str) -> None:
    """Wait until the server knows the scalar."""
    deadline = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"{url}data/plugin/scalars/tags", timeout=60) as answer:
            if tag in json.load(answer).get(".", {}):
                return
        assert time.monotonic() < deadline, f"no {tag}"
        time.sleep(0.2)  # it tells nobody when it has read


def logs(self: Any, outputs: Any, batch: Any, index: int) -> None:
    self.log("loss", 1.0)


def test_lightnings_log_is_one_run_with_ours_also_after_a_second_fit(L: ModuleType, tmp_path: Path) -> None:

    loggers = importlib.import_module(f"{L.__name__}.loggers")
    callback = ModelSummaryCallback(verbose=False)
    for _ in range(2):
        logger = loggers.TensorBoardLogger(str(tmp_path), name="", version="run")
        trainer(L, tmp_path, callback, logger=logger, log_every_n_steps=1).fit(lit(L, on_train_batch_end=logs))
    events = events_of(tmp_path / "run")
    assert len(events.Scalars("loss")) == 2 * 3
    assert len(events.Scalars("model_summary/total_params")) == 1
    assert load(f"tensorboard:{tmp_path / 'run'}") == callback.summary


def test_tensorboardx_writers_are_not_touched(net: ModelSummary, tmp_path: Path) -> None:
    library = pytest.importorskip("tensorboardX")
    with library.SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("loss", 1.0, 0)
        [tracker] = resolve([writer])
        tracker.write(Report(net), step=0)
        assert tracker.read() == net
    assert set(events_of(tmp_path).Tags()["scalars"]) == {"loss", *Report(net).metrics}


def test_nothing_is_written_for_a_tensorboardx_writer_that_writes_nothing(net: ModelSummary, tmp_path: Path) -> None:
    """Also where its directory is there, from a training before."""
    library = pytest.importorskip("tensorboardX")
    with library.SummaryWriter(str(tmp_path), write_to_disk=False) as writer:
        [tracker] = resolve([writer])
        tracker.write(Report(net), step=0)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_directory_is_where_it_was_when_the_writer_was_given(
    net: ModelSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra and others change the directory later."""
    monkeypatch.chdir(tmp_path)
    with SummaryWriter("run") as writer:
        trackers = resolve([writer, "tensorboard:named"])
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        for tracker in trackers:
            tracker.write(Report(net), step=0)
    assert list(Path().iterdir()) == []
    assert [load(f"tensorboard:{tmp_path / name}") for name in ("run", "named")] == [net, net]


WITHOUT_TENSORBOARD = """
import sys
sys.modules["tensorboard"] = None
from pathlib import Path
from tensorboardX import SummaryWriter
from summarycb.errors import missing
from summarycb.report import Report, structure
from summarycb.serialize import load
from summarycb.trackers import open_reference, resolve

summary, folder = load(sys.argv[1]), sys.argv[2]
with SummaryWriter(folder) as writer:
    writer.add_scalar("loss", 1.0, 0)
    [tracker] = resolve([writer])
    tracker.write(Report(summary), step=3)
for what in (tracker.read, lambda: open_reference("tensorboard:memory://run").write(Report(summary), step=3)):
    try:
        what()
    except ModuleNotFoundError as error:
        assert str(error) == str(missing("tensorboard", "tensorboard"))
    else:
        raise AssertionError("tensorboard is not there")
"""


def contents(events: Any) -> dict[str, Any]:
    """By tag, but for the time of writing; messages as what is in them, since maps have no order."""
    tags = events.Tags()
    found: dict[str, Any] = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    found |= {tag: [(e.step, e.width, e.encoded_image_string) for e in events.Images(tag)] for tag in tags["images"]}
    for tag in tags["tensors"]:
        graph = events.SummaryMetadata(tag).plugin_data.plugin_name == "graph_run_metadata"
        metadata = run_metadata(events, tag.rpartition("/")[2].partition(".")[0]) if graph else None
        held = [(e.step, metadata or e.tensor_proto.string_val[:]) for e in events.Tensors(tag)]
        found[tag] = [events.SummaryMetadata(tag), held]
    return found


def test_tensorboardx_is_enough_to_write_all_of_it(net: ModelSummary, tmp_path: Path) -> None:
    """Where tensorboard is not installed: the same scalars, texts, images and graphs with their costs."""
    pytest.importorskip("tensorboardX")
    net.save(tmp_path / "net.json")
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        WITHOUT_TENSORBOARD,
        str(tmp_path / "net.json"),
        str(tmp_path / "x"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    found = contents(events_of(tmp_path / "x"))
    assert found.pop("loss") == [(0, 1.0)]
    assert found == contents(written(tmp_path / "own", net, step=3))
    assert load(f"tensorboard:{tmp_path / 'x'}") == net


def test_other_file_systems_are_written_to_through_tensorboards_own_way(net: ModelSummary) -> None:
    pytest.importorskip("fsspec")
    tracker = open_reference("tensorboard:memory://bucket/run")
    tracker.write(Report(net), step=0)
    assert tracker.read() == net
