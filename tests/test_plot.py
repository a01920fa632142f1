"""Figures for papers: what is drawn is what the summary says, and no text is cut off."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text

import summarycb
from summarycb import ModelSummary, SummaryError
from summarycb.columns import METRICS
from summarycb.errors import missing
from summarycb.report import Report
from summarycb.step import Environment, Memory, Moment
from summarycb.tree import ModuleSummary, Work
from tests.literal import FC, HEAD, ROOT, SUMMARY
from tests.trainings import CASES


def bars(figure: Figure) -> dict[str, dict[str, float]]:
    """Each bar from the top by its label: the width of each of its parts by the legend's name."""
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    drawn: dict[str, dict[str, float]] = {label: {} for label in labels}
    for part in axes.containers:
        for label, box in zip(labels, part, strict=True):
            assert isinstance(box, Rectangle)
            if box.get_width():
                assert box.get_x() == pytest.approx(sum(drawn[label].values()))  # each begins where the last one ends
                drawn[label][str(part.get_label())] = box.get_width()
    return drawn


def notes(axes: Axes) -> list[str]:
    return [child.get_text() for child in axes.get_children() if isinstance(child, Annotation)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def assert_whole(figure: Figure) -> None:
    """Every text that is drawn is within the figure, and none is over another."""
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    (left, right), (low, high) = axes.get_xlim(), sorted(axes.get_ylim())
    hidden = [t for t in axes.get_xticklabels() if not left <= t.get_position()[0] <= right]
    hidden += [t for t in axes.get_yticklabels() if not low <= t.get_position()[1] <= high]
    found = [t for t in figure.findobj(Text) if isinstance(t, Text) and t not in hidden]
    boxes = [(text.get_text(), text.get_window_extent()) for text in found if text.get_text() and text.get_visible()]
    width, height = figure.bbox.width, figure.bbox.height
    assert [text for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height] == []
    assert [(a, b) for i, (a, one) in enumerate(boxes) for b, other in boxes[:i] if one.overlaps(other)] == []


def test_a_bar_for_each_block_divided_by_types() -> None:
    figure = SUMMARY.plot_costs()
    assert bars(figure) == {"fc": {"Linear": 48}, "head": {"Head": 24}, "(outside)": {"loss, etc.": 6}}
    # 48, 24 and 6 of 78
    assert notes(figure.axes[0]) == ["61.5 %", "48", "30.8 %", "24", "7.7 %", "6"]
    assert figure.axes[0].get_xlabel() == "forward MACs"
    assert legend(figure) == ["Linear", "Head", "loss, etc."]
    assert_whole(figure)


BY_METRIC = {
    "params": {"fc": 15, "head": 5},
    "trainable_params": {"fc": 15},
    "buffers": {"head": 7},
    "parameter_bytes": {"fc": 60, "head": 20},
    "gradients": {"fc": 60, "head": 20},
    "optimizer_state": {"fc": 120, "head": 40},
    "forward_macs": {"fc": 48, "head": 24, "(outside)": 6},
    "backward_macs": {"fc": 48, "head": 24, "(outside)": 12},
    "forward_flops": {"fc": 2 * 48, "head": 2 * 24, "(outside)": 2 * 6},
    "backward_flops": {"fc": 2 * 48, "head": 2 * 24, "(outside)": 2 * 12},
    "recompute_flops": {"head": 2 * 24},
    "local_params": {"fc": 15, "head": 5},
    "buffer_bytes": {"head": 28},
    "saved_activations": {"fc": 64, "head": 8, "(outside)": 12},
    "weight_copies": {"head": 16},
}


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric(metric: str) -> None:
    drawn = bars(SUMMARY.plot_costs(metric=metric))
    assert {label: sum(parts.values()) for label, parts in drawn.items()} == BY_METRIC[metric]


def test_the_axis_is_in_the_largest_unit_that_fits() -> None:
    step = replace(FC.call_groups[0], own=Work(3_000_000, 1, 0, 3 * 2**20, 0))  # type: ignore[index]
    large = replace(SUMMARY, root=replace(ROOT, children=(replace(FC, call_groups=(step,)),)))
    macs, memory = large.plot_costs(), large.plot_costs(metric="saved_activations")
    assert (bars(macs)["fc"], macs.axes[0].get_xlabel()) == ({"Linear": 3.0}, "forward MACs [M]")
    assert (bars(memory)["fc"], memory.axes[0].get_xlabel()) == ({"Linear": 3.0}, "saved activations [MiB]")


def test_what_is_unknown_is_a_bound_and_no_share_is_given() -> None:
    half = replace(HEAD, children=(replace(FC, path="head.fc", name="fc", call_groups=None),))
    figure = replace(SUMMARY, root=replace(ROOT, children=(FC, half))).plot_costs(depth=1)
    assert bars(figure) == {"fc": {"Linear": 48}, "head": {"Head": 24}, "(outside)": {"loss, etc.": 6}}
    assert notes(figure.axes[0]) == ["", "48", "", "≥ 24", "", "6"]


def blocks(count: int, macs: Any = lambda i: 10) -> ModelSummary:
    """``count`` linear layers in a list in a body, and a head; the body adds 4 of its own."""
    group = FC.call_groups[0]  # type: ignore[index]
    layers = tuple(
        replace(FC, path=f"body.h.{i}", name=str(i), call_groups=(replace(group, own=Work(macs(i), 0, 0, 0, 0)),))
        for i in range(count)
    )
    held = ModuleSummary("body.h", "h", "ModuleList", call_groups=(), children=layers)
    body = ModuleSummary(
        "body", "body", "Body", call_groups=(replace(group, own=Work(4, 0, 0, 0, 0)),), children=(held,)
    )
    return replace(SUMMARY, root=replace(ROOT, children=(body, HEAD)), outside=Work(0, 0, 0, 0, 0))


def test_the_depth_is_the_first_that_shows_some_blocks() -> None:
    """What is never called is no level. What an opened module has of its own is a bar, so that bars sum to the step."""
    layered = blocks(3)
    inside = {"body itself": 4, "body.h.0": 10, "body.h.1": 10, "body.h.2": 10}
    drawn = {
        depth: {label: sum(parts.values()) for label, parts in bars(layered.plot_costs(depth=depth)).items()}
        for depth in (None, 0, 1, 2)
    }
    assert drawn == {
        0: {"Net": 58},
        1: {"body": 34, "head": 24},
        2: {**inside, "head": 24},
        None: {**inside, "head": 24},
    }


def test_what_is_never_called_is_no_level() -> None:
    """Layers in a list are one level below the root, and what is in them two."""
    layers = tuple(
        ModuleSummary(f"h.{i}", i, "Layer", call_groups=HEAD.call_groups, children=(replace(FC, path=f"h.{i}.fc"),))
        for i in "01"
    )
    held = ModuleSummary("h", "h", "Layers", call_groups=(), children=layers)
    listed = replace(SUMMARY, root=replace(ROOT, children=(held,)))
    assert list(bars(listed.plot_costs(depth=1))) == ["h.0", "h.1", "(outside)"]
    assert list(bars(listed.plot_costs(depth=2))) == ["h.0 itself", "h.0.fc", "h.1 itself", "h.1.fc", "(outside)"]


def test_neighbours_of_equal_figures_are_one_bar_where_there_are_many() -> None:
    figure = blocks(96).plot_costs()
    assert {label: sum(parts.values()) for label, parts in bars(figure).items()} == {
        "body itself": 4,
        "body.h.0–95 (96 ×)": 960,
        "head": 24,
    }


def test_what_costs_least_is_one_bar_where_there_are_too_many() -> None:
    """97 bars, of 96 layers that all differ and the body; the head has 24. At most 40 are shown."""
    figure = blocks(96, lambda i: 1000 + i).plot_costs()
    drawn = {label: sum(parts.values()) * 1000 for label, parts in bars(figure).items()}
    # 39 layers from 57 to 95; the rest are 57 layers, the body and the head
    assert list(drawn) == [*[f"body.h.{i}" for i in range(57, 96)], "59 others"]
    assert drawn["59 others"] == pytest.approx(57 * 1000 + sum(range(57)) + 4 + 24)


def test_types_without_a_colour_of_their_own_are_together() -> None:
    group = FC.call_groups[0]  # type: ignore[index]
    children = tuple(
        replace(
            FC, path=name, name=name, type_name=name.upper(), call_groups=(replace(group, own=Work(9 - i, 0, 0, 0, 0)),)
        )
        for i, name in enumerate("abcdefghi")
    )
    figure = replace(SUMMARY, root=replace(ROOT, children=children), outside=Work(0, 0, 0, 0, 0)).plot_costs(depth=0)
    # 9 + 8 + ... + 1: the two smallest have no colour
    assert bars(figure) == {"Net": {"A": 9, "B": 8, "C": 7, "D": 6, "E": 5, "F": 4, "G": 3, "other types": 2 + 1}}


def test_a_type_whose_name_begins_with_an_underscore_is_in_the_legend() -> None:
    private = replace(FC, type_name="_Linear")
    figure = replace(SUMMARY, root=replace(ROOT, children=(private, HEAD))).plot_costs()
    assert legend(figure) == ["_Linear", "Head", "loss, etc."]


def test_wrong_arguments_say_what_is_allowed() -> None:
    with pytest.raises(SummaryError, match=r"^there is no metric 'flops'; allowed: params, .*, weight_copies$"):
        SUMMARY.plot_costs(metric="flops")
    with pytest.raises(SummaryError, match=r"^depth must be None"):
        SUMMARY.plot_costs(depth=-1)
    structure = ModelSummary(ROOT, Work(), Memory(), Environment("0.1.0"))
    with pytest.raises(SummaryError, match=r"^nothing to plot: recompute_flops is unknown, or 0, in every module$"):
        replace(structure, root=FC).plot_costs(metric="recompute_flops")
    with pytest.raises(SummaryError, match=r"^nothing to plot: the summary has no memory through the step$"):
        structure.plot_memory()


def test_memory_through_the_step() -> None:
    """Kinds are stacked, what stays below what comes and goes; the peak says how much, when and where."""
    figure = SUMMARY.plot_memory()
    (axes,) = figure.axes
    heights = {
        str(part.get_label()): [float(v) for v in sorted({round(y, 6) for y in part.get_paths()[0].vertices[:, 1]})]
        for part in axes.collections
    }
    # first stretch: 80 28 160 32 0 16 24 0, second: 80 28 160 32 80 16 84 32; each is on top of those before it
    assert heights == {
        "weights": [0, 80],
        "buffers": [80, 108],
        "optimizer state": [108, 268],
        "batch": [268, 300],
        "gradients": [300, 380],
        "weight copies": [300, 316, 380, 396],
        "activations": [316, 340, 396, 480],
        "temporaries": [340, 480, 512],
    }
    assert notes(axes) == ["peak 512 B, backward of fc"]
    assert axes.get_ylabel() == "alive [B]"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["head", "fc"]
    assert [text.get_text() for text in axes.texts if not isinstance(text, Annotation)] == ["forward", "backward"]
    assert_whole(figure)


def test_phases_and_blocks_of_a_step_with_recomputation() -> None:
    def moment(phase: Any, module: str | None) -> Moment:
        return Moment(phase, module, 1, 0, 0, 0, 1, 0, 0, 0)

    def named(repeats: int) -> tuple[list[str], list[str]]:
        ran = [("forward", "fc"), ("forward", "head"), ("backward", "head"), ("recompute", "fc"), ("backward", "fc")]
        timeline = (*[moment(phase, module) for phase, module in ran * repeats], moment("optimizer", None))
        figure = replace(SUMMARY, memory=Memory(timeline=timeline)).plot_memory()
        assert_whole(figure)
        (axes,) = figure.axes
        phases = [text.get_text() for text in axes.texts if not isinstance(text, Annotation)]
        return phases, [label.get_text() for label in axes.get_xticklabels()]

    assert named(1) == (["forward", "backward and recomputation", "optimizer"], ["fc", "head", "fc"])
    # batches that accumulate: there is no room for the longer name, and the head of each runs into its backward
    assert named(4) == (["forward"] * 4 + ["optimizer"], ["fc", "head"] * 4 + ["fc"])
    assert named(40) == (["optimizer"], [])


@pytest.mark.parametrize("name", ["cnn", "gpt", "lstm"])
def test_figures_of_real_steps_hold_every_figure_and_cut_no_text(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model, optimizer = case.make()
    with summarycb.observe(model, optimizer) as observation:
        case.train(model, optimizer, 1)
    summary = observation.summary
    assert summary is not None
    for metric in ("params", "forward_macs", "saved_activations"):
        figure = summary.plot_costs(metric=metric)
        assert_whole(figure)
        scale = {"": 1, "K": 10**3, "M": 10**6, "B": 1, "KiB": 2**10, "MiB": 2**20}
        unit = figure.axes[0].get_xlabel().partition(" [")[2].rstrip("]")
        step = getattr(summary.root.total, metric) + getattr(summary.outside, metric, 0)
        assert sum(sum(parts.values()) for parts in bars(figure).values()) * scale[unit] == pytest.approx(step)
    figure = summary.plot_memory()
    assert_whole(figure)
    for suffix, head in {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}.items():
        figure.savefig(tmp_path / f"memory.{suffix}")
        assert (tmp_path / f"memory.{suffix}").read_bytes().startswith(head)


def test_names_are_drawn_as_they_are_written() -> None:
    """Whatever TeX would make of them, and however long they are."""
    odd = replace(FC, path="a$_1$b_c%", name="a$_1$b_c%", type_name="T" * 200)
    long = replace(HEAD, path="x" * 300, name="x" * 300)
    with matplotlib.rc_context({"text.usetex": True}):
        summary = replace(SUMMARY, root=replace(ROOT, children=(odd, long)))
        costs, memory = summary.plot_costs(), summary.plot_memory()
    assert list(bars(costs)) == ["a$_1$b_c%", "…" + "x" * 35, "(outside)"]
    named = [
        label for figure in (costs, memory) for label in (*figure.axes[0].get_yticklabels(), *figure.axes[0].texts)
    ]
    assert {(label.get_parse_math(), label.get_usetex()) for label in named if "$" in label.get_text()} == {
        (False, False)
    }
    assert_whole(costs)
    assert_whole(memory)


def test_names_cannot_break_a_figure() -> None:
    """Neither a line break, nor what turns the direction of text, nor what no font has, nor half a surrogate pair."""
    first = replace(FC, path="\u202eevil", name="\u202eevil", type_name="T\x1b[31m")
    second = replace(HEAD, path="two\nlines\t", name="two\nlines\t", type_name="Head\u2066\ud800")
    timeline = tuple(
        [Moment("forward", module.path, 1, 0, 0, 0, at, 0, 0, 0) for at, module in enumerate((first, second))]
    )
    summary = replace(SUMMARY, root=replace(ROOT, children=(first, second)), memory=Memory(timeline=timeline))
    costs, memory = summary.plot_costs(), summary.plot_memory()
    assert list(bars(costs)) == [" evil", "two lines ", "(outside)"]
    assert legend(costs) == ["T [31m", "Head \\ud800", "loss, etc."]
    assert [label.get_text() for label in memory.axes[0].get_xticklabels()] == [" evil", "two lines "]
    assert notes(memory.axes[0]) == ["peak 2 B, forward of two lines "]
    assert_whole(costs)  # matplotlib warns where a font lacks a character, and here a warning is an error
    assert_whole(memory)


def test_what_no_font_has_is_escaped_and_nothing_warns() -> None:
    """Also in the pictures for trackers, which are drawn in a thread of their own."""
    first = replace(FC, path="编码器", name="编码器", type_name="层é😀")
    summary = replace(SUMMARY, root=replace(ROOT, children=(first, HEAD)))
    costs = summary.plot_costs()
    assert list(bars(costs)) == ["\\u7f16\\u7801\\u5668", "head", "(outside)"]
    assert legend(costs) == ["\\u5c42é😀", "Head", "loss, etc."]
    assert_whole(costs)
    with ThreadPoolExecutor(1) as thread:  # a warning would be an error, and the picture left out
        assert list(thread.submit(lambda: Report(summary).images).result(60)) == [
            "memory", "forward_macs", "params", "saved_activations",
        ]  # fmt: skip


def test_a_font_that_the_user_has_chosen_is_asked() -> None:
    """DejaVu Sans Mono has no ``😀``; after it another one is looked into that does."""
    named = replace(SUMMARY, root=replace(ROOT, children=(replace(FC, path="😀", name="😀"), HEAD)))
    with matplotlib.rc_context({"font.family": ["DejaVu Sans Mono"]}):
        assert next(iter(bars(named.plot_costs()))) == "\\U0001f600"
    with matplotlib.rc_context({"font.family": ["DejaVu Sans Mono", "DejaVu Sans"]}):
        assert next(iter(bars(named.plot_costs()))) == "😀"


def test_a_figure_needs_no_display_and_changes_nothing() -> None:
    """Made without pyplot or torch, and matplotlib's settings stay as they were."""
    code = (
        "import sys, matplotlib\n"
        "def settings():\n"  # but the backend, which asking chooses
        "    return [(k, matplotlib.rcParams[k]) for k in matplotlib.rcParams if k != 'backend']\n"
        "before = settings()\n"
        "from tests.literal import SUMMARY\n"
        "SUMMARY.plot_costs(); SUMMARY.plot_memory()\n"
        "print(settings() == before, 'matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stderr, done.stdout) == ("", "True False False\n")


def test_matplotlib_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    named = replace(SUMMARY, root=replace(ROOT, children=(replace(FC, path="层", name="层"),)))
    for plot in (SUMMARY.plot_costs, SUMMARY.plot_memory, named.plot_costs, named.plot_memory):
        with pytest.raises(ModuleNotFoundError) as raised:
            plot()
        assert str(raised.value) == str(missing("plot", "matplotlib"))
