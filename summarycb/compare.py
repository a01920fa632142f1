"""compare(): what changed from one summary to others. Must not import torch.

The rows hold each module that is not the same once, without its children, and the work outside any module is a row, so
the rows' deltas sum to the deltas of the totals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from summarycb.changes import FIGURES, Change, Delta, Figure, part
from summarycb.conditions import Difference, Per, differences, parts, scales
from summarycb.edits import changes
from summarycb.errors import SummaryError
from summarycb.garbage import collection_paused
from summarycb.match import Matching, match
from summarycb.serialize import load
from summarycb.tree import ModelSummary, add

if TYPE_CHECKING:
    from pandas import DataFrame

    from summarycb.compared import Shown
    from summarycb.view import View

TOTALS = {
    **dict.fromkeys(FIGURES),
    "forward_flops": "forward_flops",
    "backward_flops": "backward_flops",
    "step_flops": "step_flops",
    "hardware_flops": "hardware_flops",
    **{f"memory_{kind}": kind for kind in ("parameters", "gradients", "optimizer_state", "saved_activations")},
    **{f"memory_{kind}": kind for kind in ("weight_copies", "peak", "allocator_peak")},
}
"""The totals that are compared: those that sum over modules, and those that are of the step as a whole.

Some of the memory is there twice: ``gradients`` is a sum over modules, as for a pattern of modules, and
``memory_gradients`` is of the distinct storages of the step.
"""

MOST_ON_PAGE = 200
"""Rows of changes."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Summaries and their differences, each from the first one; ``names`` are their references, or "1", "2" ...

    ``metrics``, ``rows``, ``differences`` and ``incomparable`` are of the first two; ``against`` has the first with
    each of the others, in pairs. ``per`` is what the amounts of work and of saved activations are for, None for the
    whole step; they are fractions then.
    """

    summaries: tuple[ModelSummary, ...]
    names: tuple[str, ...]
    per: Per | None = None

    @property
    def a(self) -> ModelSummary:
        """The first, to which the others are compared."""
        return self.summaries[0]

    @property
    def b(self) -> ModelSummary:
        """The second."""
        return self.summaries[1]

    @cached_property
    def against(self) -> tuple[Comparison, ...]:
        """The first with each of the others, in pairs."""
        if len(self.summaries) == 2:
            return (self,)
        return tuple(
            Comparison((self.a, other), (self.names[0], name), self.per)
            for other, name in zip(self.summaries[1:], self.names[1:], strict=True)
        )

    @cached_property
    def metrics(self) -> Mapping[str, Delta]:
        """The totals of both, by name."""
        return {
            name: Delta(
                *[
                    part(total(run, name), of)
                    for run, of in zip((self.a, self.b), self.scales.get(name, (1, 1)), strict=True)
                ]
            )
            for name in TOTALS
        }

    @cached_property
    def rows(self) -> tuple[Change, ...]:
        """What changed in the modules, and ``(outside)``; the deltas of ``FIGURES`` sum to those of ``metrics``."""
        return changes(self.a, self.b, {name: of for name, of in self.scales.items() if name in FIGURES}, self.matching)

    @cached_property
    def matching(self) -> Matching:
        """Which module of the first is which of the second."""
        with collection_paused():
            return match(self.a.root, self.b.root)

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """Under what the two steps differed: batch, device, precision, optimizer, torch ..."""
        return tuple(differences(self.a, self.b, self.per))

    @cached_property
    def incomparable(self) -> Mapping[str, tuple[str, ...]]:
        """The figures that a difference of the steps changes, by name, each with the conditions."""
        found: dict[str, tuple[str, ...]] = {}
        for difference in self.differences:
            for name in difference.affects:
                found[name] = (*found.get(name, ()), difference.condition)
        return found

    @property
    def comparable(self) -> bool:
        """Whether all steps ran under conditions that change no figure."""
        return not any(pair.incomparable for pair in self.against)

    @property
    def unchanged(self) -> int:
        """How many modules of ``a`` are the same in ``b``, and have the same figures."""
        changed = {id(module) for row in self.rows for edit in row.edits for module in edit.modules_a}
        return sum(id(module) not in changed for module in self.a.root.walk())

    @cached_property
    def scales(self) -> Mapping[str, tuple[int, int]]:
        """By figure that is divided, by how many samples or tokens in each."""
        return scales(self.a, self.b, self.per)

    def view(self, shown: Shown | None = None) -> View:
        """What is shown of it."""
        from summarycb.compared import Shown, view

        return view(self, shown or Shown())

    def __repr__(self) -> str:
        return f"<Comparison of {self.a.root.type_name}: {', '.join(self.names)}>"

    def __str__(self) -> str:
        return self.to_text()

    def to_text(
        self,
        *,
        depth: int | None = None,
        sort: str | None = None,
        only: Sequence[str] = (),
        most: int | None = 30,
        width: int = 100,
        ascii_only: bool = False,
    ) -> str:
        """The comparison as plain text, at most ``width`` columns wide.

        What the other arguments mean is in :class:`~summarycb.compared.Shown`.
        """
        from summarycb.compared import Shown
        from summarycb.render.terminal import to_text

        return to_text(self.view(Shown(depth, sort, only, most)), width=width, ascii_only=ascii_only)

    def to_markdown(
        self,
        *,
        depth: int | None = None,
        sort: str | None = None,
        only: Sequence[str] = (),
        most: int | None = 30,
    ) -> str:
        """The comparison as a Markdown table; the arguments are those of :meth:`to_text`."""
        from summarycb.compared import Shown
        from summarycb.render.markdown import to_markdown

        return to_markdown(self.view(Shown(depth, sort, only, most)))

    def to_html(
        self,
        *,
        depth: int | None = None,
        sort: str | None = None,
        only: Sequence[str] = (),
        most: int | None = MOST_ON_PAGE,
    ) -> str:
        """The comparison as a page in one file, which holds the summaries: ``page.html#1`` refers to the first.

        The arguments are those of :meth:`to_text`. Its tree has all modules of both, and at first of ``depth`` levels
        those in which there is a change that is asked for, in the order of ``sort``; its icicle is of all of them.
        """
        from summarycb.compared import Shown
        from summarycb.render.html.comparison import to_html

        return to_html(self, Shown(depth, sort, only, most))

    def _repr_html_(self) -> str:
        """What a notebook shows: what changed, without a script."""
        from summarycb.render.html.comparison import to_fragment

        return to_fragment(self)

    def save(self, path: str | Path) -> Path:
        """Write to ``path`` what its suffix says, ``.html``, ``.md``, ``.txt`` or ``.json``, and return it."""
        from summarycb.forms import COMPARED, form_of, write

        target = Path(path)
        form = form_of(target, COMPARED)
        text: str = getattr(self, f"to_{form}")()
        return write(text, target)

    def to_json(self) -> str:
        """Everything of it as JSON; see :func:`document`."""
        return json.dumps(document(self), ensure_ascii=False)

    def to_dataframe(self) -> DataFrame:
        """One row a change and run, with its figures in both runs and their deltas. Needs pandas."""
        from summarycb.render.frame import changes_to_dataframe

        return changes_to_dataframe(self)


def compare(
    a: ModelSummary | str | Path,
    b: ModelSummary | str | Path,
    *more: ModelSummary | str | Path,
    per: Per | None = None,
) -> Comparison:
    """What changed from ``a`` to ``b``, and to each of ``more``: summaries, or references for :func:`summarycb.load`.

    ``per="sample"`` divides the work and the saved activations of a step by its samples, ``"token"`` by its tokens: the
    first dimension of the first input, or both where it is ``[batch, length]`` of token ids, of all forwards in the
    step together. Saved activations are not divided where backward ran more than once.

    Raises :class:`SummaryError` when a reference holds no summary, or it cannot be told how many samples or tokens.
    """
    if per not in (None, "sample", "token"):
        raise SummaryError(f"per must be None (the whole step), 'sample' or 'token', not {per!r}")
    given = (a, b, *more)
    names = [str(one) if isinstance(one, (str, Path)) else str(place) for place, one in enumerate(given, start=1)]
    comparison = Comparison(tuple([_summary(one) for one in given]), tuple(names), per)
    if per is not None:
        for summary in comparison.summaries:
            parts(summary, per)
    return comparison


def _summary(given: ModelSummary | str | Path) -> ModelSummary:
    if isinstance(given, ModelSummary):
        return given
    if isinstance(given, (str, Path)):
        return load(given)
    raise SummaryError(f"compare takes ModelSummary objects and references, not {type(given).__name__}")


def total(summary: ModelSummary, name: str) -> int | None:
    """A total by its name in ``TOTALS``."""
    if name.startswith("memory_"):
        value = getattr(summary.memory, name.removeprefix("memory_"))
    elif name in ("forward_macs", "backward_macs") or name not in FIGURES:
        value = getattr(summary, name)
    else:
        value = add(getattr(summary.root.total, name), getattr(summary.outside, name, 0))
    assert value is None or isinstance(value, int)
    return value


def document(comparison: Comparison) -> dict[str, object]:
    """What :meth:`Comparison.to_json` writes: for each pair the conditions, totals, and rows, the first pair on top."""
    first, *others = [
        {
            "a": pair.names[0],
            "b": pair.names[1],
            "per": pair.per,
            "comparable": pair.comparable,
            "differences": [
                {"condition": d.condition, "a": d.a, "b": d.b, "affects": d.affects} for d in pair.differences
            ],
            "incomparable": pair.incomparable,
            "metrics": {name: delta_json(delta) for name, delta in pair.metrics.items()},
            "unchanged": pair.unchanged,
            "rows": [row_json(row) for row in pair.rows],
        }
        for pair in comparison.against
    ]
    return {"comparison_version": 1} | first | ({"others": others} if others else {})


def row_json(row: Change) -> dict[str, object]:
    """One change: its places, and its figures."""
    return {
        "kind": row.kind,
        "path": row.path,
        "before": row.before,
        "times": row.times,
        "details": row.details,
        "places": [
            {
                "a": None if edit.a is None else edit.a.path,
                "b": None if edit.b is None else edit.b.path,
                "differs": {name: {"a": a, "b": b} for name, (a, b) in edit.differs.items()},
            }
            for edit in row.edits
        ],
        **{name: delta_json(delta) for name, delta in row.figures.items()},
    }


def delta_json(delta: Delta) -> dict[str, int | float | None]:
    """A figure in both; what is not whole, which only a figure for one sample or token is, as a float."""
    return {"a": _number(delta.a), "b": _number(delta.b), "delta": _number(delta.delta)}


def _number(value: Figure) -> int | float | None:
    if value is None:
        return None
    return int(value) if value.denominator == 1 else float(value)
