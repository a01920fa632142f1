"""told(): what repeats, folded as far as the edges tell which copy gives to which. Must not import torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import compress, product
from math import prod
from typing import TypeAlias

from summarycb.graph.contracted import Contracted, Opened, Pair
from summarycb.graph.folded import Alike, Folded, Repeat, folded

Rounds: TypeAlias = tuple[int, ...]
_MOST_TRIES = 32


@dataclass(frozen=True, slots=True)
class Told:
    """What is drawn as what, and the edges, as they are drawn, on which round i gives to round i."""

    folded: Folded = field(default_factory=Folded)
    of_each: Set[Pair] = frozenset()


@dataclass(frozen=True, slots=True)
class _Between:
    """The edges that are drawn as one: from which rounds of the repeats that the source alone is in, to which."""

    pair: Pair
    givers: Sequence[Repeat]
    readers: Sequence[Repeat]
    links: Set[tuple[Rounds, Rounds]]

    def without_ends(self) -> _Between:
        """Without a word, what ran in a row gives of its last, and is given to its first."""
        sources, targets = zip(*self.links, strict=True)
        a = [
            not r.in_a_row or set(at) != {r.times - 1}
            for r, at in zip(self.givers, zip(*sources, strict=True), strict=True)
        ]
        b = [not r.in_a_row or set(at) != {0} for r, at in zip(self.readers, zip(*targets, strict=True), strict=True)]
        return _Between(
            self.pair,
            list(compress(self.givers, a)),
            list(compress(self.readers, b)),
            {(tuple(compress(source, a)), tuple(compress(target, b))) for source, target in self.links},
        )


def told(contracted: Contracted, alike: Alike) -> Told:
    """What repeats is drawn once where each edge tells what it stands for: all give to all, or round i to round i.

    Of what ran in a row that may be the last alone, and the first to be given something. Else all rounds are drawn.
    """
    alone: set[int | Opened] = set()
    for _ in range(_MOST_TRIES):
        found, known = folded(contracted, alike, alone), len(alone)
        of_each: set[Pair] = set()
        for between in map(_Between.without_ends, _between(contracted, found)):
            gives, reads = ([r.times for r in some] for some in (between.givers, between.readers))
            if len(between.links) == prod(gives + reads):
                continue
            if gives == reads and between.links == {(at, at) for at in product(*map(range, gives))}:
                of_each.add(between.pair)
            # how many of them the step gives is said
            elif reads or len(between.links) == 1 or contracted.units[between.pair[1]].kind != "output":
                alone.update(*[r.parts for r in (*between.givers, *between.readers)])
        if len(alone) == known:
            return Told(found, of_each)
    return Told()


def _between(contracted: Contracted, folded: Folded) -> Iterator[_Between]:
    around: dict[int, list[int]] = defaultdict(list)  # the repeats in which each unit is drawn, the outermost first
    for number, repeat in enumerate(folded.repeats):
        for first in set(map(folded.first, repeat.units)):
            around[first].append(number)
    rounds = [folded.rounds(unit) for unit in range(len(contracted.units))]
    found: dict[tuple[Pair, Rounds], set[tuple[Rounds, Rounds]]] = defaultdict(set)
    for source, target in contracted.edges:
        pair = folded.pair(source, target)
        if pair is not None and not contracted.units[source].gives:
            a, b = (around[unit] for unit in pair)
            together = tuple([rounds[target].get(n, 0) for n in b if n in a])
            link = (
                tuple([rounds[source].get(n, 0) for n in a if n not in b]),
                tuple([rounds[target].get(n, 0) for n in b if n not in a]),
            )
            found[pair, together].add(link)
    for (pair, _), links in found.items():
        a, b = (around[unit] for unit in pair)
        givers, readers = [n for n in a if n not in b], [n for n in b if n not in a]
        yield _Between(pair, [folded.repeats[n] for n in givers], [folded.repeats[n] for n in readers], links)
