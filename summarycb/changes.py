"""One change, its kind and figures, and the same change in several places as a row. Must not import torch."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from summarycb.details import facts
from summarycb.tree import ModuleSummary, add

if TYPE_CHECKING:
    from fractions import Fraction

Kind: TypeAlias = Literal[
    "added", "removed", "moved", "wrapped", "unwrapped", "regrouped", "renamed", "replaced", "resized", "changed",
    "figures", "shapes",
]  # fmt: skip
"""The most that can be said of a change, in this order; ``figures`` is a module that is the same and did other work,
``shapes`` one that did the same work on other shapes.
"""
KINDS: tuple[Kind, ...] = get_args(Kind)
FIGURES = (
    "params", "trainable_params", "buffers", "parameter_bytes", "buffer_bytes", "gradients", "optimizer_state",
    "forward_macs", "backward_macs", "recompute_macs", "saved_activations", "weight_copies",
)  # fmt: skip
"""What adds up over modules; the names of :class:`summarycb.tree.Amounts`, of which local sizes are left out."""


Figure: TypeAlias = "int | Fraction | None"
"""An amount, None where it is unknown; a fraction where it is for one sample, or token, of several."""
Scales: TypeAlias = Mapping[str, tuple[int, int]]
"""By figure how many parts the steps had; of what is not there the whole is told."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A figure in both summaries; None where it is unknown."""

    a: Figure
    b: Figure

    @property
    def delta(self) -> Figure:
        """``b - a``; None where either is unknown."""
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True, eq=False)
class Edit:
    """One change in one place: of the module ``a``, to ``b``; None where there is none.

    ``modules_a`` and ``modules_b`` are all whose figures it has: of what is added or removed, the whole subtree but for
    what is elsewhere in the other tree.
    """

    kind: Kind
    a: ModuleSummary | None = field(repr=False)
    b: ModuleSummary | None = field(repr=False)
    details: str
    modules_a: tuple[ModuleSummary, ...] = field(repr=False)
    modules_b: tuple[ModuleSummary, ...] = field(repr=False)
    scales: Scales = field(default_factory=dict, repr=False)

    @property
    def path(self) -> str:
        """Where it is, or was."""
        module = self.b or self.a
        assert module is not None
        return module.path

    @property
    def differs(self) -> Mapping[str, tuple[str | None, str | None]]:
        """What is not the same in both: type, config, shapes, dtypes, and whether it trains; None where it is not."""
        a, b = ({} if module is None else facts(module) for module in (self.a, self.b))
        return {name: (a.get(name), b.get(name)) for name in (a or b) if a.get(name) != b.get(name)}

    @cached_property
    def figures(self) -> Mapping[str, Delta]:
        """The figures of both, by name."""
        sums = ({name: _sum(modules, name) for name in FIGURES} for modules in (self.modules_a, self.modules_b))
        a, b = sums
        for name, (of_a, of_b) in self.scales.items():
            a[name], b[name] = part(a[name], of_a), part(b[name], of_b)
        return {name: Delta(a[name], b[name]) for name in FIGURES}


@dataclass(frozen=True, eq=False)
class Change:
    """A row: the same edit in one place or in several, whose paths differ in numbers alone.

    ``path`` is where it is now, or was, ``before`` where it was, when that is another path; numbers in which the places
    differ are ``*``, ``transformer.h.*.mlp.c_fc``, or ranges, ``transformer.h.2-3.mlp.c_fc``: see :func:`pattern`.
    """

    path: str
    before: str | None
    edits: tuple[Edit, ...]

    @property
    def kind(self) -> Kind:
        """What happened."""
        return self.edits[0].kind

    @property
    def details(self) -> str:
        """What differs, in words."""
        return self.edits[0].details

    @property
    def times(self) -> int:
        """In how many places."""
        return len(self.edits)

    @cached_property
    def figures(self) -> Mapping[str, Delta]:
        """The figures of both, of all places together."""
        return {
            name: Delta(*[total([getattr(edit.figures[name], side) for edit in self.edits]) for side in "ab"])
            for name in FIGURES
        }


def total(figures: Sequence[Figure]) -> Figure:
    """The sum; None when one is unknown."""
    known = [figure for figure in figures if figure is not None]
    return sum(known) if len(known) == len(figures) else None


def _sum(modules: Sequence[ModuleSummary], name: str) -> Figure:
    return add(*[getattr(module.own, name) for module in modules])


def part(figure: Figure, of: int) -> Figure:
    """The figure for one of so many parts."""
    if figure is None or of == 1:
        return figure
    from fractions import Fraction

    return Fraction(figure, of)


def folded(edits: Sequence[Edit], a: ModuleSummary, b: ModuleSummary) -> Iterator[Change]:
    """A row for the same edit in several places of ``a`` and ``b``, in the order of the first."""
    form = cache(numberless)  # most paths are in both
    alike = fitting(a, form), fitting(b, form)
    groups: dict[tuple[object, ...], list[Edit]] = defaultdict(list)
    for edit in edits:
        paths = [None if module is None else module.path for module in (edit.a, edit.b)]
        if edit.kind != "moved" or len({tuple(_NUMBER.findall(path or "")) for path in paths}) == 1:
            # where a move is from one number to another, the numbers are what it is about
            paths = [path and form(path) for path in paths]
        groups[edit.kind, *paths, edit.details].append(edit)
    for same in groups.values():
        before = [edit.a.path for edit in same if edit.a is not None]
        after = [edit.b.path for edit in same if edit.b is not None]
        if len(same) == 1:
            whole = True
        elif before and after:
            whole = any(fit(paths) == len(same) for fit, paths in zip(alike, (before, after), strict=True))
        else:  # what is new beside ``h.*`` is not told in the same words
            whole = sum([fit(after or before) for fit in alike]) == len(same)
        path = pattern(after or before, whole)
        yield Change(path, pattern(before, whole) if same[0].kind in _FROM else None, tuple(same))


_MODULES = re.compile(r" \(\d+ modules\)$")
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_FROM = {"moved", "wrapped", "unwrapped", "regrouped", "renamed"}


def of_one(details: str) -> str:
    """What is said of a subtree, as of one module in it."""
    return _MODULES.sub("", details)


def numberless(path: str) -> str:
    """``path`` with ``*`` for each number: equal for what a pattern can stand for."""
    return _NUMBER.sub("*", path)


def fitting(root: ModuleSummary, form: Callable[[str], str]) -> Callable[[Sequence[str]], int]:
    """A function of paths: how many modules of ``root`` have their path but for the numbers in which they differ.

    ``form`` is :func:`numberless`, which the paths have in common.
    """

    @cache
    def alike() -> Mapping[str, Sequence[str]]:
        found = defaultdict(list)
        for module in root.walk():
            found[form(module.path)].append(module.path)
        return found

    @cache
    def counted(of: str, places: tuple[int, ...]) -> Counter[tuple[str, ...]]:
        return Counter([_at(path, places) for path in alike().get(of, ())])

    def fit(paths: Sequence[str]) -> int:
        of = form(paths[0])
        found = alike().get(of, ())
        if not found or (len(found) == len(paths) and set(found) == set(paths)):
            return len(found)
        columns = zip(*[path.split(".") for path in paths], strict=True)
        fixed = tuple([place for place, names in enumerate(columns) if len(set(names)) == 1])
        return counted(of, fixed)[_at(paths[0], fixed)]

    return fit


def _at(path: str, places: Sequence[int]) -> tuple[str, ...]:
    names = path.split(".")
    return tuple([names[place] for place in places])


def pattern(paths: Sequence[str], whole: bool) -> str:
    """The path of all: where they differ ``*``, or the numbers, as ``h.2-3`` and ``h.0, 4``, if others fit that, too.

    ``whole`` is whether none does. Where more than one number differs it is always ``*``.
    """
    parts = [list(dict.fromkeys(names)) for names in zip(*[path.split(".") for path in paths], strict=True)]
    several = [names for names in parts if len(names) > 1]
    if not whole and len(several) == 1 and all(map(_COUNTED.fullmatch, several[0])):
        several[0][:] = [_numbers(sorted(map(int, several[0])))]
    return ".".join([names[0] if len(names) == 1 else "*" for names in parts])


def _numbers(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    said = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join([*said[:_MOST_RUNS], *["…"] * (len(said) > _MOST_RUNS)])


_MOST_RUNS = 3
_COUNTED = re.compile("0|[1-9][0-9]{0,8}")
"""A number that is written as one counts: ``007`` is a name."""
