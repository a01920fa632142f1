"""match(): which module of one tree is which of another, in the manner of GumTree. Must not import torch.

After J.-R. Falleri et al., "Fine-grained and accurate source code differencing", ASE 2014: top-down where names or
structures agree, then what is left by equal subtrees anywhere, then by likeness. Names count for more than in source
code, and the positions in a numbered container for less: a block that is inserted moves those after it, and these are
still the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from summarycb.alignment import align, common_subsequence
from summarycb.tree import ModuleSummary

_LIKE_HERE, _LIKE_ANYWHERE = 0.5, 0.6
_NEAR = 3
"""A single layer is looked for in what is at most so many levels above it: within two that are new, or gone."""
_MOST_LOOKED_AT = 10_000
"""So many pairs of subtrees are asked how much they are alike."""


class Tree:
    """A tree's modules in definition order, each by its place: its subtree is the ``size`` modules from there on."""

    def __init__(self, root: ModuleSummary) -> None:
        self.modules: list[ModuleSummary] = []
        self.parents: list[int] = []
        stack = [(root, -1)]
        while stack:
            module, parent = stack.pop()
            place = len(self.modules)
            self.modules.append(module)
            self.parents.append(parent)
            if module.children:
                stack += [(child, place) for child in reversed(module.children)]
        self.sizes = [1] * len(self.modules)
        self.types = [(module.type_name, bool(module.children)) for module in self.modules]
        """An adapter often has the name of the type that is now within it, which had no children."""
        self.children: list[list[int]] = [[] for _ in self.modules]
        for place in range(len(self.modules) - 1, 0, -1):
            self.sizes[self.parents[place]] += self.sizes[place]
        for place in range(1, len(self.modules)):
            self.children[self.parents[place]].append(place)
        self.counted = [
            bool(children) and all(self.modules[place].name == str(n) for n, place in enumerate(children))
            for children in self.children
        ]
        """Whether a module's children are numbered by their order, as those of a list are."""
        self.partner: list[int | None] = [None] * len(self.modules)
        """The place of the same module in the other tree."""

    def within(self, place: int) -> range:
        """The places of a subtree."""
        return range(place, place + self.sizes[place])

    def above(self, place: int) -> Iterator[int]:
        """The places of what a module is in, the nearest first; -1 is what the root is in."""
        while place >= 0:
            place = self.parents[place]
            yield place

    def anchor(self, place: int) -> int:
        """The nearest that it is in and that has a partner; -1, which are partners, when none has."""
        return next(above for above in self.above(place) if above < 0 or self.partner[above] is not None)

    def is_free(self, place: int) -> bool:
        """Whether nothing of a subtree has a partner."""
        size = self.sizes[place]
        return self.partner[place : place + size].count(None) == size

    def unmatched(self, start: int = 0) -> Iterator[int]:
        """The tops of the subtrees that have no partner, each once, whatever partners there are within."""
        for place in range(start, len(self.modules)):
            parent = self.parents[place]
            if self.partner[place] is None and (parent < 0 or self.partner[parent] is not None):
                yield place


@dataclass(frozen=True)
class Matching:
    """Two trees whose modules know their partners; equal subtrees of either have equal numbers in ``exact``.

    ``in_order`` is False where ``b`` is the one that comes first when it is told what is as good: see :func:`match`.
    """

    a: Tree
    b: Tree
    exact: tuple[list[int], list[int]]
    in_order: bool


def match(a: ModuleSummary, b: ModuleSummary) -> Matching:
    """Which is which. Of two readings that are as good one is taken, the same whichever of the trees is given first."""
    numbers: dict[Hashable, int] = {}
    sides = [(tree, _hashes(tree, numbers)) for tree in (Tree(a), Tree(b))]
    in_order = _precedes(*sides[0], *sides[1])
    _Matcher(*(sides if in_order else sides[::-1])).run()
    (tree_a, of_a), (tree_b, of_b) = sides
    return Matching(tree_a, tree_b, (of_a.exact, of_b.exact), in_order)


def _precedes(a: Tree, of_a: _Hashes, b: Tree, of_b: _Hashes) -> bool:
    """An order of trees, so that none is "the first" by being given first."""
    if len(a.modules) != len(b.modules):
        return len(a.modules) < len(b.modules)
    for x, y, one, other in zip(a.modules, b.modules, of_a.itself, of_b.itself, strict=True):
        if x.path != y.path:
            return x.path < y.path
        if one != other:
            return repr(_itself(x)) < repr(_itself(y))
    return True


def _itself(module: ModuleSummary) -> tuple[Hashable, ...]:
    """What makes a module the one that it is; whether it trains, in which precision and on which device does not."""
    return (
        module.type_name,
        module.config,
        tuple([(p.name, p.shape) for p in module.parameters]),
        tuple([(b.name, b.shape) for b in module.buffers]),
        module.shared_with is not None,
    )


@dataclass
class _Hashes:
    """For each module a number that equal ones have in common, and those of subtrees: without names, without sizes."""

    itself: list[int]
    exact: list[int]
    nameless: list[int]
    sizeless: list[int]


class _Matcher:
    def __init__(self, a: tuple[Tree, _Hashes], b: tuple[Tree, _Hashes]) -> None:
        (self._a, self.hashes_a), (self._b, self.hashes_b) = a, b
        self._open: list[tuple[int, int]] = []
        self._left: list[tuple[int, int]] = []

    def run(self) -> None:
        self._pair(*self._roots())
        while self._open:
            self._descend()
            self._find_elsewhere()
            self._replace()
            if not self._open:
                self._find_alike()

    def _roots(self) -> tuple[int, int]:
        """Both roots, unless one model was built around the other: then a root, and what it is within the other."""
        a, b = self._a, self._b
        if a.modules[0].type_name == b.modules[0].type_name:
            return 0, 0
        inner_a = [place for place, module in enumerate(a.modules) if module.type_name == b.modules[0].type_name]
        inner_b = [place for place, module in enumerate(b.modules) if module.type_name == a.modules[0].type_name]
        if len(inner_b) == 1 and a.sizes[0] > 1:
            return 0, inner_b[0]
        return (inner_a[0], 0) if len(inner_a) == 1 and b.sizes[0] > 1 else (0, 0)

    def _pair(self, x: int, y: int) -> None:
        """They are the same; equal subtrees are so throughout, of others the children are still to be told."""
        if self.hashes_a.exact[x] == self.hashes_b.exact[y] and self._a.is_free(x) and self._b.is_free(y):
            self._pair_all(x, y)
        else:
            self._a.partner[x], self._b.partner[y] = y, x
            if self._a.children[x] or self._b.children[y]:
                self._open.append((x, y))

    def _pair_all(self, x: int, y: int) -> None:
        size = self._a.sizes[x]
        self._a.partner[x : x + size] = range(y, y + size)
        self._b.partner[y : y + size] = range(x, x + size)

    def _descend(self) -> None:
        """From the top: children that are numbered by their order, others by their names."""
        while self._open:
            x, y = self._open.pop()
            free = self._free(x, y)
            if self._a.counted[x] and self._b.counted[y]:
                for one, other in self._numbered(*free):
                    self._pair(one, other)
            else:
                by_name = {self._b.modules[place].name: place for place in free[1]}
                for place in free[0]:
                    same = by_name.get(self._a.modules[place].name)
                    if same is not None and self._b.types[same] == self._a.types[place]:
                        self._pair(place, same)
                self._rename(x, y)
            self._left.append((x, y))

    def _free(self, x: int, y: int) -> tuple[list[int], list[int]]:
        """The children that have no partner yet."""
        return (
            [place for place in self._a.children[x] if self._a.partner[place] is None],
            [place for place in self._b.children[y] if self._b.partner[place] is None],
        )

    def _numbered(self, xs: list[int], ys: list[int]) -> list[tuple[int, int]]:
        """Pairs in order, and of equal ones that have changed places, unless fewer have a partner then."""
        in_order = self._aligned(xs, ys)
        exact_a, exact_b = [self.hashes_a.exact[x] for x in xs], [self.hashes_b.exact[y] for y in ys]
        kept = common_subsequence(exact_a, exact_b)
        left: dict[int, deque[int]] = defaultdict(deque)
        for j in sorted(set(range(len(ys))).difference([j for _, j in kept])):
            left[exact_b[j]].append(ys[j])
        moved = {
            xs[i]: left[exact_a[i]].popleft()
            for i in sorted(set(range(len(xs))).difference([i for i, _ in kept]))
            if left[exact_a[i]]
        }
        taken = set(moved.values())
        rest = self._aligned([x for x in xs if x not in moved], [y for y in ys if y not in taken]) if moved else []
        return [*moved.items(), *rest] if moved and len(moved) + len(rest) >= len(in_order) else in_order

    def _aligned(self, xs: list[int], ys: list[int]) -> list[tuple[int, int]]:
        """Pairs in order: equal ones first, unless more have a partner when they come after those of equal types."""
        kinds = [
            ([of_a[x] for x in xs], [of_b[y] for y in ys])
            for of_a, of_b in (
                (self.hashes_a.exact, self.hashes_b.exact),
                (self.hashes_a.nameless, self.hashes_b.nameless),
                (self.hashes_a.sizeless, self.hashes_b.sizeless),
                (self._a.types, self._b.types),
            )
        ]
        return [(xs[i], ys[j]) for i, j in max(align(kinds), align(kinds[2:]), key=len)]

    def _rename(self, x: int, y: int) -> None:
        """Children that are equal but for their names, in order; of larger ones, those that are so but for sizes."""
        for hashes, least in (("nameless", 1), ("sizeless", 3)):
            names: dict[int, deque[int]] = defaultdict(deque)
            free = self._free(x, y)
            for place in free[1]:
                names[getattr(self.hashes_b, hashes)[place]].append(place)
            for place in free[0]:
                same = names.get(getattr(self.hashes_a, hashes)[place])
                if same and self._a.sizes[place] >= least:
                    self._pair(place, same.popleft())

    def _find_elsewhere(self) -> None:
        """What holds parameters and is equal but for names: moved, or now within something new, or no longer so.

        One of the two has a place of its own to be looked for. A single layer that is within something that is new, or
        gone, has to be near: norms and projections of one size are everywhere.
        """
        tops_a, tops_b = list(self._a.unmatched()), list(self._b.unmatched())
        if tops_a and tops_b:
            self._find_equal(tops_a, _all_free(self._b, tops_b))
            self._find_equal(_all_free(self._a, tops_a), tops_b)

    def _find_equal(self, xs: Sequence[int], ys: Sequence[int]) -> None:
        """The largest first; of equal ones those nearby and of the same name before others, in order."""
        wanted: dict[Hashable, deque[int]] = defaultdict(deque)
        for y in ys:
            if self._b.partner[y] is None and _has_parameters(self._b.modules[y]):
                for key in self._keys(self._b, self.hashes_b, y, self._b.anchor(y)):
                    wanted[key].append(y)
        for x in sorted(xs, key=lambda place: -self._a.sizes[place]):
            if self._a.partner[x] is not None or not _has_parameters(self._a.modules[x]):
                continue
            anchor = self._a.anchor(x)
            for key in self._keys(self._a, self.hashes_a, x, anchor if anchor < 0 else self._a.partner[anchor]):
                found = wanted.get(key, deque())
                while found and not self._b.is_free(found[0]):
                    found.popleft()
                if found and self._a.is_free(x):
                    self._pair_all(x, found.popleft())
                    break

    def _keys(self, tree: Tree, hashes: _Hashes, place: int, anchor: int | None) -> Iterator[Hashable]:
        number, name = hashes.nameless[place], tree.modules[place].name
        if tree.sizes[place] > 1 or tree.anchor(place) in islice(tree.above(place), _NEAR):
            yield from ((number, anchor, name), (number, anchor))
        if tree.sizes[place] > 1 or tree.parents[place] == tree.anchor(place):
            yield from ((number, name), number)

    def _replace(self) -> None:
        """What is left of children: another type under the same name, or at the same place between the same two."""
        left, self._left = self._left, []
        for x, y in left:
            xs, ys = self._free(x, y)
            if self._a.counted[x] and self._b.counted[y]:
                for i, j in self._gaps(x, y):
                    self._pair(i, j)
            else:
                by_name = {self._b.modules[place].name: place for place in ys}
                for place in xs:
                    if (same := by_name.get(self._a.modules[place].name)) is not None:
                        self._pair(place, same)

    def _gaps(self, x: int, y: int) -> Iterator[tuple[int, int]]:
        """Of numbered children without partners, those of runs that are as long in both and follow partners."""
        runs = dict(_runs(self._b, y))
        for before, xs in _runs(self._a, x):
            ys = runs.get(None if before is None else self._a.partner[before], [])
            if len(xs) == len(ys):
                yield from zip(xs, ys, strict=True)

    def _find_alike(self) -> None:
        """Subtrees that have most of their modules in common: renamed, moved, and changed at once."""
        looked_at = 0
        tops_b = [top for top in self._b.unmatched() if self._b.sizes[top] > 1]
        bags: dict[tuple[int, int], Counter[Hashable]] = {}
        for x in [top for top in self._a.unmatched() if self._a.sizes[top] > 1]:
            best, found = 0.0, None
            for y in tops_b:
                looked_at += 1
                if looked_at > _MOST_LOOKED_AT:
                    return
                if self._b.partner[y] is not None:
                    continue
                here = self._a.partner[self._a.parents[x]] == self._b.parents[y] if self._a.parents[x] >= 0 else False
                like = _dice(self._bag(bags, 0, x), self._bag(bags, 1, y))
                if like >= (_LIKE_HERE if here else _LIKE_ANYWHERE) and like > best:
                    best, found = like, y
            if found is not None:
                self._pair(x, found)

    def _bag(self, bags: dict[tuple[int, int], Counter[Hashable]], side: int, top: int) -> Counter[Hashable]:
        if (side, top) not in bags:
            tree = (self._a, self._b)[side]
            bags[side, top] = Counter([_itself(tree.modules[place])[::2] for place in tree.within(top)])
        return bags[side, top]


def _has_parameters(module: ModuleSummary) -> bool:
    """Whether it holds any, its own or another's, or has them in it."""
    return bool(module.parameters or module.total.params)


def _all_free(tree: Tree, tops: Sequence[int]) -> list[int]:
    return [place for top in tops for place in tree.within(top) if tree.partner[place] is None]


def _runs(tree: Tree, parent: int) -> Iterator[tuple[int | None, list[int]]]:
    """Runs of children that have no partner, each with the place of the child before it."""
    before, run = None, []
    for place in tree.children[parent]:
        if tree.partner[place] is None:
            run.append(place)
            continue
        if run:
            yield before, run
        before, run = place, []
    if run:
        yield before, run


def _dice(a: Counter[Hashable], b: Counter[Hashable]) -> float:
    """The Sørensen-Dice coefficient of two bags: 1 when they are equal, 0 when they have nothing in common."""
    return 2 * (a & b).total() / (a.total() + b.total())


def _hashes(tree: Tree, numbers: dict[Hashable, int]) -> _Hashes:
    count = len(tree.modules)
    found = _Hashes([0] * count, [0] * count, [0] * count, [0] * count)
    exact, nameless, sizeless = found.exact, found.nameless, found.sizeless
    number = numbers.setdefault
    for place in range(count - 1, -1, -1):
        module, children = tree.modules[place], tree.children[place]
        itself = found.itself[place] = number(_itself(module), len(numbers))
        if not children:
            exact[place] = nameless[place] = itself
            sizeless[place] = number(module.type_name, len(numbers))
            continue
        names = tuple([tree.modules[child].name for child in children])
        exact[place] = number((itself, names, *[exact[child] for child in children]), len(numbers))
        nameless[place] = number((itself, *[nameless[child] for child in children]), len(numbers))
        sizeless[place] = number((module.type_name, names, *[sizeless[child] for child in children]), len(numbers))
    return found
