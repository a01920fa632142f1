"""folded(): what repeats among the units of a dataflow, each as the first of its kind. Must not import torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from summarycb.fold import fold
from summarycb.graph.contracted import Contracted, Opened, Pair
from summarycb.graph.labels import of_several
from summarycb.tree import ModelSummary

Alike: TypeAlias = Mapping[str, Hashable]
_MOST_PERIOD = 32
_MOST_WORK = 64
"""How often each part is looked at, in the mean, before what is left is drawn as it is."""
_FEWEST_OPS = 4
"""How often operations alone repeat, each on the result of the one before, to be drawn as one."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """A sequence that ran ``times`` times, and the units of the first.

    ``in_a_row`` is that each round was given something by the one before it; else they stand side by side.
    """

    label: str
    times: int
    units: Sequence[int]
    in_a_row: bool
    parts: Sequence[int | Opened]
    """Of all rounds."""


@dataclass(frozen=True, slots=True)
class Folded:
    """What is drawn as what: a unit as another, which may be drawn as a third where repeats are within one another.

    ``steps`` are the edges from one round of what repeats to the next, between the units as they are drawn there.
    ``round_of`` says of a unit that is drawn as another of which repeat, by number, it is in which round.
    """

    drawn_as: dict[int, int] = field(default_factory=dict)
    steps: set[Pair] = field(default_factory=set)
    repeats: list[Repeat] = field(default_factory=list)
    round_of: dict[int, Pair] = field(default_factory=dict)

    def first(self, unit: int) -> int:
        """The unit that it is drawn as in the end."""
        while unit in self.drawn_as:
            unit = self.drawn_as[unit]
        return unit

    def rounds(self, unit: int) -> dict[int, int]:
        """By the number of each repeat that it is in, in which round, where that is not the first."""
        found = {}
        while unit in self.drawn_as:
            if unit in self.round_of:
                repeat, its_round = self.round_of[unit]
                found[repeat] = its_round
            unit = self.drawn_as[unit]
        return found

    def pair(self, source: int, target: int) -> Pair | None:
        """What an edge is drawn as; None where it leads from one round to the next."""
        while (source, target) not in self.steps:
            pair = self.drawn_as.get(source, source), self.drawn_as.get(target, target)
            if pair == (source, target):
                return None if source == target else pair
            source, target = pair
        return None


def likenesses(summary: ModelSummary) -> Alike:
    """By path, what a module has in common with those that it may be drawn with.

    They are folded in the table, or differ there in what their calls were given: here it is asked how they were used.
    """
    found: dict[str, Hashable] = {}
    numbers: dict[Hashable, int] = {}
    number: dict[str, int] = {}
    for module in reversed(list(summary.root.walk())):
        held = tuple([(p.name, p.shape, p.dtype, p.trainable) for p in module.parameters])
        below = tuple([(child.name, number[child.path]) for child in module.children])
        key = (module.type_name, module.config, module.training, held, below)
        number[module.path] = numbers.setdefault(key, len(numbers))
    for item in fold(summary.root).walk():
        for module in item.copies:
            names = ("#" if name.isdecimal() else name for name in item.copies[0].path.split("."))
            found[module.path] = (".".join(names), number[module.path])
    return found


def folded(contracted: Contracted, alike: Alike, alone: Collection[int | Opened] = ()) -> Folded:
    """What follows each other in one call, is of equal structure and is wired alike is drawn as the first of it.

    But not the parts of a call that are ``alone``.
    """
    return _Fold(contracted, alike, alone).folded


class _Fold:
    """Parts of a call repeat where their *kinds* do: numbers that are the same for what may be drawn as one."""

    def __init__(self, contracted: Contracted, alike: Alike, alone: Collection[int | Opened]) -> None:
        self.folded = Folded()
        self._alone = alone
        self._units = contracted.units
        self._sources: dict[int, set[int]] = defaultdict(set)
        self._targets: dict[int, set[int]] = defaultdict(set)
        for source, target in contracted.edges:
            self._sources[target].add(source)
            self._targets[source].add(target)
        numbers: dict[Hashable, int] = {}
        self._kinds: list[int] = []
        for unit in self._units:
            key = alike[unit.path] if unit.is_call else (unit.kind, unit.name)
            self._kinds.append(numbers.setdefault(key, len(numbers)))
        self._kinds_of_calls: dict[Opened, int] = {}
        for opened in reversed(list(contracted.outermost.walk())):
            module = None if opened.module is None else alike[opened.module.path]
            key = (module, *map(self._kind, opened.parts))
            self._kinds_of_calls[opened] = numbers.setdefault(key, len(numbers))
        todo = [contracted.outermost]
        while todo:
            parts = self._fold_parts(todo.pop().parts)
            todo.extend([part for part in reversed(parts) if isinstance(part, Opened)])
        self._fold_givers(alike)

    def _kind(self, part: int | Opened) -> int:
        return self._kinds_of_calls[part] if isinstance(part, Opened) else self._kinds[part]

    def _fold_parts(self, parts: Sequence[int | Opened]) -> list[int | Opened]:
        """What repeats among the parts is drawn as the first; returns the parts that are drawn."""
        kept: list[int | Opened] = []
        kinds = [-place - 1 if part in self._alone else self._kind(part) for place, part in enumerate(parts)]
        start, work = 0, _MOST_WORK * len(parts)
        while start < len(parts) and work > 0:
            for period, times in _repetitions(kinds, start):
                end = start + period * times
                work -= end - start
                rounds = [list(_units(parts[at : at + period])) for at in range(start, end, period)]
                steps = self._steps_between(rounds)
                if steps is None:
                    continue
                paths = [path for part in parts[start:end] if (path := self._path(part)) is not None]
                if paths or (steps and times >= _FEWEST_OPS):
                    for k, copy in enumerate(rounds[1:], 1):
                        self.folded.drawn_as.update(zip(copy, rounds[0], strict=True))
                        self.folded.round_of.update(dict.fromkeys(copy, (len(self.folded.repeats), k)))
                    self.folded.steps.update(steps)
                    label = of_several(paths)
                    self.folded.repeats.append(Repeat(label, times, rounds[0], bool(steps), parts[start:end]))
                    kept += parts[start : start + period]
                    start = end
                    break
            else:
                kept.append(parts[start])
                start += 1
        return [*kept, *parts[start:]]

    def _path(self, part: int | Opened) -> str | None:
        """Of the module that was called; None of an operation."""
        if isinstance(part, Opened):
            return None if part.module is None else part.module.path
        return self._units[part].path if self._units[part].is_call else None

    def _steps_between(self, rounds: Sequence[Sequence[int]]) -> set[Pair] | None:
        """The edges from each round to the next; None where to draw one round would not tell what the others do."""
        places = {unit: (k, place) for k, units in enumerate(rounds) for place, unit in enumerate(units)}
        wired: list[_Wiring] = []
        for k, units in enumerate(rounds):
            one = self._wiring(k, units, places)
            if one is None:
                return None
            wired.append(one)
            # of those that follow each other the first is given something else than what is handed on to the others,
            # and the last gives something else than to the next
            if one.inner != wired[0].inner or (k < len(rounds) - 1 and one.giving != wired[0].giving):
                return None
            if k > 1 and (one.given != wired[1].given or one.handed != wired[1].handed):
                return None
        first, second, last = wired[0], wired[1], wired[-1]
        if not second.handed:
            return set() if first.given == second.given and first.giving == last.giving else None
        # what reads some of the rounds would seem to read them all; and of two, one is skipped
        readers = Counter(reader for one in wired for reader in one.readers)
        skipping = any(1 < count < max(len(rounds), 3) for count in readers.values())
        if skipping or not (second.given <= first.given and first.giving <= last.giving):
            return None
        handed: dict[int, set[int]] = defaultdict(set)
        for source, target in second.handed:
            handed[source].add(target)
        instead: dict[int, set[int]] = defaultdict(set)
        for place, unit in enumerate(rounds[0]):
            for source in self._sources[unit] - places.keys():
                if (self._kinds[source], place) not in second.given:
                    instead[source].add(place)
        entered = Counter(map(frozenset, instead.values())) - Counter(map(frozenset, handed.values()))
        left = {place for place, _ in last.giving - first.giving} - handed.keys()
        return None if entered or left else set().union(*[one.steps for one in wired])

    def _wiring(self, k: int, units: Sequence[int], places: Mapping[int, Pair]) -> _Wiring | None:
        """Of the round of number ``k``; None where it reads what is neither of this round nor of the one before."""
        one = _Wiring()
        for place, unit in enumerate(units):
            for source in self._sources[unit]:
                if source not in places:
                    one.given.add((self._kinds[source], place))
                    continue
                its_round, its_place = places[source]
                if its_round == k:
                    one.inner.add((its_place, place))
                elif its_round == k - 1:
                    one.handed.add((its_place, place))
                    one.steps.add((source, unit))
                else:
                    return None
            for target in self._targets[unit]:
                if target not in places:
                    one.giving.add((place, self._kinds[target]))
                    if self._units[target].kind != "output":
                        one.readers.add(target)
        return one

    def _fold_givers(self, alike: Alike) -> None:
        """The same parameter of each copy, and what each copy was given from before the step."""
        seen: dict[Hashable, int] = {}
        for number, reached in self._targets.items():
            unit = self._units[number]
            if unit.gives:
                readers = frozenset(map(self.folded.first, reached))
                key = (unit.kind, unit.name, unit.module and alike[unit.path], readers)
                other = seen.setdefault(key, number)
                if not self._targets[other] & reached:
                    self.folded.drawn_as[number] = other


@dataclass(frozen=True, slots=True)
class _Wiring:
    """The edges of one round, its units told by their places in it, and those outside by their kinds.

    Those within it, from the round before it, from outside of all rounds, and to there; then the second of these
    between the units themselves, and the units outside that read it.
    """

    inner: set[Pair] = field(default_factory=set)
    handed: set[Pair] = field(default_factory=set)
    given: set[Pair] = field(default_factory=set)
    giving: set[Pair] = field(default_factory=set)
    steps: set[Pair] = field(default_factory=set)
    readers: set[int] = field(default_factory=set)


def _units(parts: Sequence[int | Opened]) -> Iterator[int]:
    """All that ran in them, in order."""
    stack = list(reversed(parts))
    while stack:
        part = stack.pop()
        if isinstance(part, Opened):
            stack.extend(reversed(part.parts))
        else:
            yield part


def _repetitions(kinds: Sequence[int], start: int) -> list[tuple[int, int]]:
    """Period and times of each repetition that begins at ``start``, that which covers most first."""
    found = []
    for period in range(1, min((len(kinds) - start) // 2, _MOST_PERIOD) + 1):
        end = start + period
        while end < len(kinds) and kinds[end] == kinds[end - period]:
            end += 1
        times = (end - start) // period
        if times > 1:
            found.append((period, times))
    return sorted(found, key=lambda one: (-one[0] * one[1], one[0]))
