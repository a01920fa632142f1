"""The memory of the step -> what the page draws of it: an area for each kind, stacked. Must not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from summarycb import units
from summarycb.step import Memory, Moment

HEIGHT = 1000
_KINDS = {
    "parameters": "weights",
    "buffers": "buffers",
    "optimizer_state": "optimizer state",
    "gradients": "gradients",
    "weight_copies": "weight copies",
    "batch": "batch",
    "activations": "activations",
    "temporaries": "temporaries",
}
_COLOURS = {kind: place for place, kind in enumerate(("parameters", "gradients", "optimizer_state", "activations"))}
_COLOURS |= {"temporaries": 4, "weight_copies": 5, "batch": 6, "buffers": 7}


@dataclass(frozen=True, slots=True)
class Area:
    """One kind: the outline of it and of all below it, so that areas are drawn from the top one down."""

    title: str
    colour: int
    path: str
    at_peak: str


@dataclass(frozen=True, slots=True)
class Phase:
    """Neighbouring moments of one phase: where it begins and how long it is, in percent."""

    title: str
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The drawing: x in moments, y downwards from 0 to ``HEIGHT``; ``peak_x`` and what ``ticks`` are at in percent.

    ``stretches`` says of each moment how much was alive, and in which of its ``phases`` and ``modules``.
    """

    moments: int
    areas: tuple[Area, ...]
    stretches: Mapping[str, Sequence[object]]
    phases: tuple[Phase, ...]
    ticks: tuple[tuple[float, str], ...]
    peak: str
    peak_x: float
    peak_y: float


def timeline(memory: Memory, root: str) -> Timeline | None:
    """The timeline, where one was observed."""
    moments = memory.timeline
    totals = [moment.total for moment in moments]
    highest = max(totals, default=0)
    if not highest:
        return None
    phases = list(dict.fromkeys([moment.phase for moment in moments]))
    modules = list(dict.fromkeys([moment.module for moment in moments]))
    top = highest * 1.06
    at = totals.index(highest)
    peak = moments[at]
    return Timeline(
        moments=len(moments),
        areas=tuple(reversed([*_areas(moments, top, peak)])),
        stretches={
            "phases": phases,
            "modules": [root if module == "" else module for module in modules],
            "moments": [(units.nbytes(m.total), phases.index(m.phase), modules.index(m.module)) for m in moments],
        },
        phases=tuple(_phases(moments)),
        ticks=tuple([(100 - 100 * value / top, units.nbytes(value)) for value in _ticks(highest)]),
        peak=f"peak {_said(peak, root)}",
        peak_x=100 * (at + 0.5) / len(moments),
        peak_y=100 - 100 * highest / top,
    )


def _areas(moments: Sequence[Moment], top: float, peak: Moment) -> Iterator[Area]:
    heights = [0] * len(moments)
    for kind, title in _KINDS.items():
        sizes = [getattr(moment, kind) for moment in moments]
        if any(sizes):
            heights = [height + size for height, size in zip(heights, sizes, strict=True)]
            yield Area(title, _COLOURS[kind], _outline(heights, top), units.nbytes(getattr(peak, kind)))


def _outline(heights: Sequence[int], top: float) -> str:
    """Steps, not slopes: between two moments nothing is known."""
    parts = [f"M0 {HEIGHT}"]
    for height, same in groupby([HEIGHT - round(HEIGHT * height / top) for height in heights]):
        parts.append(f"V{height}h{len(list(same))}")
    return "".join(parts) + f"V{HEIGHT}z"


def _phases(moments: Sequence[Moment]) -> Iterator[Phase]:
    at = 0
    for title, group in groupby([moment.phase for moment in moments]):
        length = len(list(group))
        yield Phase(title, 100 * at / len(moments), 100 * length / len(moments))
        at += length


def _said(moment: Moment, root: str) -> str:
    place = "" if moment.module is None else f" · {moment.module or root}"
    return f"{units.nbytes(moment.total)} · {moment.phase}{place}"


def _ticks(highest: int) -> list[int]:
    """Three to six round sizes: 1, 2 or 5 times a power of two of the unit."""
    step = 1
    while highest // step > 6:
        step *= 2
    return list(range(0, highest + 1, step))
