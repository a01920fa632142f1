"""ModelSummary -> matplotlib figures for papers: what each block costs, and memory through the step.

A figure is made without pyplot: it needs no display and is in no global list; ``figure.savefig("costs.pdf")`` writes
it. Colours are those of Okabe and Ito (Color Universal Design, 2008), which the colour-blind can tell apart.

Must not import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from summarycb import units
from summarycb.columns import COLUMNS, METRICS
from summarycb.errors import SummaryError, missing
from summarycb.step import Moment
from summarycb.tree import ModelSummary, ModuleSummary, add, flops, outside_row
from summarycb.view import check_depth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {  # of what the terminal has no room for
    "params": "parameters",
    "trainable_params": "trainable parameters",
    "local_params": "parameters on this rank",
    "parameter_bytes": "weights",
    "optimizer_state": "optimizer state",
    "forward_macs": "forward MACs",
    "forward_flops": "forward FLOPs",
    "backward_macs": "backward MACs",
    "backward_flops": "backward FLOPs",
    "recompute_flops": "recomputed FLOPs",
    "saved_activations": "saved activations",
}
_KINDS = {  # from below: what stays, then what comes and goes
    "parameters": ("weights", "#0072B2"),
    "buffers": ("buffers", "#999999"),
    "optimizer_state": ("optimizer state", "#56B4E9"),
    "batch": ("batch", "#D55E00"),
    "gradients": ("gradients", "#009E73"),
    "weight_copies": ("weight copies", "#F0E442"),
    "activations": ("activations", "#E69F00"),
    "temporaries": ("temporaries", "#CC79A7"),
}
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_REST = "#BBBBBB"
_WIDTH = 6.5  # inches: a page's text
_FONT = 8  # points
_FEWEST_BARS, _MOST_BARS, _DEEPEST = 4, 40, 8
_MOST_TEXT = 36


@dataclass(frozen=True, slots=True)
class _Bar:
    """What ``modules`` have of their own, all together."""

    label: str
    modules: Sequence[ModuleSummary]

    def parts(self, metric: str) -> Counter[str]:
        """What is known of it, by the type of the module that has it."""
        found: Counter[str] = Counter()
        for module in self.modules:
            found[module.type_name] += _own(module, metric) or 0
        return +found

    def total(self, metric: str) -> int | None:
        return add(*[_own(module, metric) for module in self.modules])


def _own(module: ModuleSummary, metric: str) -> int | None:
    if metric.endswith("_flops"):
        return flops(getattr(module.own, metric.replace("_flops", "_macs")))
    return getattr(module.own, metric)  # type: ignore[no-any-return]


def plot_costs(summary: ModelSummary, *, metric: str = "forward_macs", depth: int | None = None) -> Figure:
    """A bar for each block, ``depth`` levels below the root, in the colours of the types of module that are in it."""
    if metric not in METRICS:
        raise SummaryError(f"there is no metric {metric!r}; allowed: {', '.join(METRICS)}")
    bars = _shown(summary, metric, check_depth(depth))
    parts, totals = [bar.parts(metric) for bar in bars], [bar.total(metric) for bar in bars]
    sums = sum(parts, Counter[str]())
    if not sums:
        raise SummaryError(f"nothing to plot: {metric} is unknown, or 0, in every module")
    whole, in_bytes = add(*totals), COLUMNS[metric].write is units.nbytes
    text = units.nbytes if in_bytes else units.count
    scale, prefix = _scale(max(part.total() for part in parts), in_bytes)
    title = _TITLES.get(metric, COLUMNS[metric].title)
    colours: dict[str | None, str] = dict(zip((name for name, _ in sums.most_common()), _COLOURS, strict=False))

    with _figure(0.75 + 0.19 * len(bars)) as figure:
        axes = figure.add_subplot()
        left = [0.0] * len(bars)
        for name in [*colours, None] if len(sums) > len(colours) else colours:
            colour = colours.get(name)
            widths = [sum(n for kind, n in part.items() if colours.get(kind) == colour) / scale for part in parts]
            axes.barh(
                range(len(bars)),
                widths,
                0.74,
                left,
                label=_short(name or "other types"),
                color=colour or _REST,
                edgecolor="white",
                linewidth=0.3,
            )
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for place, (part, total) in enumerate(zip(parts, totals, strict=True)):
            value = f"≥ {text(part.total())}" if total is None else text(total)
            share = "" if whole is None else f"{units.percent(total, whole)} %"
            for written, offset in ((share, 36), (value, 88)):  # two columns at the right, aligned at their ends
                axes.annotate(
                    written,
                    (1, place),
                    xycoords=("axes fraction", "data"),
                    xytext=(offset, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center_baseline",
                    fontsize=_FONT,
                )
        axes.set_xlim(0, 1.01 * max(left))
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_yticks(range(len(bars)), [_short(bar.label) for bar in bars])
        axes.set_xlabel(f"{title} [{prefix}]" if prefix else title, fontsize=_FONT)
        _finish(figure, axes, "x")
    return figure


def _shown(summary: ModelSummary, metric: str, depth: int | None) -> list[_Bar]:
    """The bars that are not 0. Where no depth is asked for, the first that has some of them."""
    for level in range(1, _DEEPEST) if depth is None else (depth,):
        bars = [bar for bar in _blocks(summary, level) if bar.total(metric) != 0]
        if len(bars) >= _FEWEST_BARS:
            break
    if len(bars) > _MOST_BARS:
        bars = [_joined(list(run)) for _, run in groupby(bars, lambda bar: (bar.parts(metric), bar.total(metric)))]
    if len(bars) > _MOST_BARS:
        order = sorted(range(len(bars)), key=lambda i: bars[i].parts(metric).total(), reverse=True)
        rest = [bars[i] for i in sorted(order[_MOST_BARS - 1 :])]
        bars = [bars[i] for i in sorted(order[: _MOST_BARS - 1])]
        bars.append(_Bar(f"{len(rest)} others", [module for bar in rest for module in bar.modules]))
    return bars


def _joined(bars: list[_Bar]) -> _Bar:
    """Neighbours of equal figures as one."""
    if len(bars) == 1:
        return bars[0]
    first, last = bars[0].label, bars[-1].label
    within = first.rpartition(".")[0] == last.rpartition(".")[0]
    label = f"{first}–{last.rpartition('.')[2] if within else last} ({len(bars)} ×)"
    return _Bar(label, [module for bar in bars for module in bar.modules])


def _blocks(summary: ModelSummary, depth: int) -> Iterator[_Bar]:
    """The tree cut ``depth`` levels below the root: each module is in one bar. What only holds others is no level."""
    stack = [(summary.root, 0)]
    while stack:
        module, level = stack.pop()
        holder = module.calls == 0 or module.type_name in ("ModuleList", "ModuleDict")
        name = module.path or module.type_name
        if module.children and (level < depth or holder):
            yield _Bar(f"{name} itself", [module])
            stack += [(child, level + (not holder)) for child in reversed(module.children)]
        else:
            yield _Bar(name, list(module.walk()))
    if summary.observed != "structure":
        outside = outside_row(summary.outside)
        yield _Bar(outside.path, [outside])


def plot_memory(summary: ModelSummary) -> Figure:
    """Bytes that were alive through the step, by kind, with the peak and what ran then.

    From left to right are the stretches of the step, each within one module and phase, in order and not to scale.
    """
    timeline = summary.memory.timeline
    if not timeline:
        raise SummaryError("nothing to plot: the summary has no memory through the step")
    peak = max(range(len(timeline)), key=lambda i: timeline[i].total)
    most = timeline[peak].total
    scale, prefix = _scale(most, in_bytes=True)

    blocks = [run for run in _runs(_block_names(summary, timeline)) if run[0] and _room(run, timeline) > 1.4 * _FONT]
    with _figure(2.7 + 0.065 * max([len(_short(name)) for name, _, _ in blocks], default=0)) as figure:
        axes = figure.add_subplot()
        edges = range(len(timeline) + 1)
        below = [0.0] * len(edges)
        for kind, (title, colour) in _KINDS.items():
            amounts = [getattr(moment, kind) / scale for moment in timeline]
            if any(amounts):
                above = [a + b for a, b in zip(below, [*amounts, amounts[-1]], strict=True)]
                axes.fill_between(edges, below, above, step="post", color=colour, linewidth=0, label=title)
                below = above
        axes.set_xlim(0, len(timeline))
        axes.set_ylim(0, 1.15 * most / scale)
        axes.set_xlabel("modules, in the order in which they ran", fontsize=_FONT)
        axes.set_ylabel(f"alive [{prefix}]", fontsize=_FONT)

        axes.set_xticks([(start + end) / 2 for _, start, end in blocks], [_short(n) for n, _, _ in blocks], rotation=90)
        for run in _runs(["backward" if moment.phase == "recompute" else moment.phase for moment in timeline]):
            phase, start, end = run
            if any(moment.phase == "recompute" for moment in timeline[start:end]):
                phase = "backward and recomputation"
            fits = _room(run, timeline) > 0.6 * _FONT * len(phase)
            if fits or end == len(timeline):  # the optimizer's is short, and the last
                axes.axvline(start, color="#444444", linewidth=0.6 if start else 0)
                axes.text(
                    (start + end) / 2 if fits else end,
                    1.02,
                    phase,
                    ha="center" if fits else "right",
                    fontsize=_FONT,
                    transform=axes.get_xaxis_transform(),
                )
        at = timeline[peak]
        place = "" if at.module is None else f" of {_short(at.module or summary.root.type_name)}"
        right = peak > len(timeline) / 2
        axes.plot([peak + 0.5], [most / scale], "v", color="black", markersize=4)
        axes.annotate(
            f"peak {units.nbytes(most)}, {at.phase}{place}",
            (peak + 0.5, most / scale),
            xytext=(-6 if right else 6, 5),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=_FONT,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "linewidth": 0},
        )
        _finish(figure, axes, "y")
    return figure


_Run: TypeAlias = tuple[str, int, int]
"""What a run of stretches has in common, the first of them, and the one after the last."""


def _runs(names: Sequence[str]) -> Iterator[_Run]:
    start = 0
    for name, run in groupby(names):
        end = start + len(list(run))
        yield name, start, end
        start = end


def _room(run: _Run, timeline: Sequence[Moment]) -> float:
    """How wide it is drawn, in points."""
    return (run[2] - run[1]) / len(timeline) * 0.9 * _WIDTH * 72


def _block_names(summary: ModelSummary, timeline: Sequence[Moment]) -> list[str]:
    """The block that ran in each stretch, at the first depth at which there are some."""
    for depth in range(1, _DEEPEST):
        blocks = {module.path: bar.label for bar in _blocks(summary, depth) for module in bar.modules}
        names = ["" if moment.module is None else blocks.get(moment.module, "") for moment in timeline]
        if len(set(names)) > _FEWEST_BARS:
            break
    return names


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    """An empty figure, of which all that is put in is drawn as it is written, whatever TeX would make of names.

    Not by ``rc_context``, which puts back what another thread has set meanwhile.
    """
    layout = _matplotlib("layout_engine").ConstrainedLayoutEngine(rect=(0.01, 0.01, 0.98, 0.98))
    figure: Figure = _matplotlib("figure").Figure(figsize=(_WIDTH, height), layout=layout)
    yield figure
    for written in figure.findobj(_matplotlib("text").Text):
        written.set_usetex(False)
        written.set_parse_math(False)


def _finish(figure: Figure, axes: Axes, grid: Literal["x", "y"]) -> None:
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    getattr(axes, f"{grid}axis").set_major_formatter("{x:g}")  # the default one writes TeX where that is on
    axes.grid(axis=grid, color="#DDDDDD", linewidth=0.5)
    axes.tick_params(length=0, labelsize=_FONT)
    drawn = [*axes.containers, *axes.collections]  # said, because a type's name may begin with "_", which else hides it
    figure.legend(handles=drawn, loc="outside upper left", ncols=4, frameon=False, fontsize=_FONT, handlelength=1)


def _scale(most: int, in_bytes: bool) -> tuple[int, str]:
    """By what the axis' numbers are divided, and the prefix that says so."""
    base, prefixes = (
        (1024, ("B", "KiB", "MiB", "GiB", "TiB")) if in_bytes else (1000, ("", "K", "M", "G", "T", "P", "E"))
    )
    power = 0
    while most >= base ** (power + 1) and power < len(prefixes) - 1:
        power += 1
    return base**power, prefixes[power]


def _short(name: str) -> str:
    """The name on one line, and of a long one the end: there its module is."""
    name = _drawable(units.clean(name))
    return name if len(name) <= _MOST_TEXT else f"…{name[1 - _MOST_TEXT :]}"


def _drawable(name: str) -> str:
    """``name`` with escapes for what the user's fonts lack: matplotlib would warn, in the thread that draws."""
    if name.isascii():
        return name
    manager = _matplotlib("font_manager")
    paths = manager.fontManager._find_fonts_by_props(manager.FontProperties())  # as it does when it draws
    fonts = [manager.get_font(path) for path in paths]
    drawn = [any(font.get_char_index(ord(sign)) for font in fonts) for sign in name]
    return "".join(
        sign if has else sign.encode("ascii", "backslashreplace").decode()
        for sign, has in zip(name, drawn, strict=True)
    )


def _matplotlib(module: str) -> Any:
    try:
        import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise missing("plot", "matplotlib") from error
    return import_module(f"matplotlib.{module}")
