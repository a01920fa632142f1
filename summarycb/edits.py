"""changes(): what changed from one tree to another, module by module. Must not import torch.

Every module that has no partner, or is not the same as its partner, is in exactly one edit, whose figures are of these
modules without their children: so the edits' deltas, with those of the work outside, sum to those of the totals.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import Literal

from summarycb.alignment import align
from summarycb.changes import KINDS, Change, Edit, Kind, Scales, folded
from summarycb.details import Said, Turn, differences, sizes, turns
from summarycb.garbage import collection_paused
from summarycb.match import Matching, Tree, match
from summarycb.tree import ModelSummary, ModuleSummary, outside_row


@collection_paused()
def changes(
    a: ModelSummary, b: ModelSummary, scales: Scales = MappingProxyType({}), matching: Matching | None = None
) -> tuple[Change, ...]:
    """What changed from ``a`` to ``b``, in definition order; what was removed is where it was."""
    found = _Edits(a, b, matching or match(a.root, b.root), scales).find()
    rows = outside_row(a.outside), outside_row(b.outside)
    if a.outside != b.outside or _is_divided(rows[1], scales):
        found.append(Edit("figures", *rows, rows[1].type_name, rows[:1], rows[1:]))
    found = [replace(edit, scales=scales) for edit in found] if scales else found
    return tuple(folded(found, a.root, b.root))


def _is_divided(module: ModuleSummary, scales: Scales) -> bool:
    """Whether what a module did is another figure in each run though the amount is the same."""
    return any(a != b and getattr(module.own, name) for name, (a, b) in scales.items())


class _Edits:
    def __init__(self, a: ModelSummary, b: ModelSummary, matching: Matching, scales: Scales) -> None:
        self._scales = scales
        self._a, self._b = matching.a, matching.b
        self._exact = matching.exact
        self._crossing = set(_crossing(matching))
        self._turned: dict[int, dict[Turn, list[str]]] = {}
        self._sized: dict[tuple[int, int], list[Said]] = {}
        # what is another in the whole model is said of the model
        self._mode = Turn("training", a.root.training, b.root.training)
        self._same_device = a.environment.device == b.environment.device

    def _is_told(self, turn: Turn) -> bool:
        return turn != self._mode and (turn.what != "device" or self._same_device)

    @cached_property
    def _equal(self) -> list[dict[tuple[int, int], tuple[int, int]]]:
        return [_equal(tree, exact) for tree, exact in zip((self._a, self._b), self._exact, strict=True)]

    @cached_property
    def _held(self) -> list[Counter[int]]:
        """Of each tree, by the top of what has no partner how many there are below it, the nearest, that have one."""
        found = []
        for tree in (self._a, self._b):
            tops: dict[int, int] = {}
            for place, parent in enumerate(tree.parents):
                if tree.partner[place] is None:
                    tops[place] = tops.get(parent, place)
            inside = [p for p, y in zip(tree.parents, tree.partner, strict=True) if y is not None and p in tops]
            found.append(Counter([tops[parent] for parent in inside]))
        return found

    def find(self) -> list[Edit]:
        a, b = self._a, self._b
        found: list[tuple[float, Edit]] = []
        around: set[tuple[int, int]] = set()
        for y, x in enumerate(b.partner):
            if x is not None:
                kind, shell = self._placed(x, y)
                if shell is not None:
                    around.add(shell)
                if (edit := self._pair(x, y, kind, shell)) is not None:
                    found.append((y, edit))
        found += [(top, self._alone(b, top, "added")) for top in b.unmatched() if (1, top) not in around]
        found += [(at, self._alone(a, top, "removed")) for at, top in self._gone() if (0, top) not in around]
        return [edit for _, edit in sorted(self._gathered(found), key=lambda pair: pair[0])]

    def _gone(self) -> Iterator[tuple[float, int]]:
        """The tops that have no partner, each where it was in its parent: after all of the child before it."""
        a, b = self._a, self._b
        if a.partner[0] is None:
            yield -0.5, 0
        for children, y in zip(a.children, a.partner, strict=True):
            if y is not None:
                at = y + 0.5
                for child in children:
                    partner = a.partner[child]
                    if partner is None:
                        yield at, child
                    elif b.parents[partner] == y:
                        at = partner + b.sizes[partner] - 0.5

    def _gathered(self, found: Sequence[tuple[float, Edit]]) -> Iterator[tuple[float, Edit]]:
        """Of modules that turned alike throughout a subtree, as all that are now frozen, one edit at its top."""
        alike: dict[str, dict[int, Edit]] = defaultdict(dict)
        for place, edit in found:
            if edit.kind == "changed" and edit.a is not None and edit.b is not None:
                told = self._turned.get(int(place), {})
                if not any(told.values()) and "; ".join(map(str, told)) == edit.details:
                    alike[edit.details][int(place)] = edit
                    continue
            yield place, edit
        for edits in alike.values():
            for top in self._tops(edits) if len(edits) > 1 else ():
                within = [edits.pop(place) for place in self._b.within(top) if place in edits]
                of_a, of_b = zip(*[(*edit.modules_a, *edit.modules_b) for edit in within], strict=True)
                a, b = self._a.modules[self._b.partner[top] or 0], self._b.modules[top]
                yield top, Edit("changed", a, b, f"{within[0].details} ({len(within)} modules)", of_a, of_b)
            yield from edits.items()

    def _tops(self, edits: Mapping[int, Edit]) -> Iterator[int]:
        """The places of the largest subtrees that have two or more of the edits, and no module that did not turn."""
        a, b = self._a, self._b
        told = self._turned[next(iter(edits))]

        def hinders(y: int, x: int | None) -> bool:
            # what is an edit has turned throughout
            return (
                x is not None
                and y not in edits
                and not all(turn.is_throughout(a.modules[x], b.modules[y]) for turn in told)
            )

        hindered = [0, *accumulate(map(hinders, range(len(b.modules)), b.partner))]
        edited = [0, *accumulate(place in edits for place in range(len(b.modules)))]
        place = 0
        while place < len(b.modules):
            end = place + b.sizes[place]
            if hindered[end] == hindered[place] and edited[end] > edited[place] + 1 and self._is_same(place):
                yield place
                place = end
            else:
                place += 1

    def _is_same(self, y: int) -> bool:
        """Whether the modules of a subtree that have a partner are those of its partner's."""
        x = self._b.partner[y]
        if x is None:
            return False
        of_a, of_b = self._a.within(x), self._b.within(y)
        return all(
            partner is None or partner in others
            for tree, places, others in ((self._a, of_a, of_b), (self._b, of_b, of_a))
            for partner in tree.partner[places.start : places.stop]
        )

    def _alone(self, tree: Tree, top: int, kind: Literal["added", "removed"]) -> Edit:
        module = tree.modules[top]
        modules = tuple(_free(tree, top))
        details = module.type_name + (f" ({len(modules)} modules)" if len(modules) > 1 else "")
        exact = self._exact[tree is self._b]
        if top and module.name.isdecimal():
            side = self._equal[tree is self._b]
            count, known = side[tree.parents[top], exact[top]]
            details += f", any of {count} equal" if known else ""
        if kind == "added":
            return Edit(kind, None, module, details, (), modules)
        return Edit(kind, module, None, details, modules, ())

    def _placed(self, x: int, y: int) -> tuple[Kind | None, tuple[int, int] | None]:
        """How a module's place has changed, and what is around it alone: whether in the second tree, and its place."""
        a, b = self._a, self._b
        inside_a, inside_b = a.parents[x], b.parents[y]
        if self._partners(inside_a, inside_b):
            if y in self._crossing:
                return "moved", None
            counted = inside_a >= 0 and a.counted[inside_a] and b.counted[inside_b]
            return (None if counted or a.modules[x].name == b.modules[y].name else "renamed"), None
        above_a, above_b = a.anchor(x), b.anchor(y)
        if self._partners(above_a, above_b):
            if inside_a == above_a:
                return self._around(1, b, y, above_b)
            if inside_b == above_b:
                return self._around(0, a, x, above_a)
        return "moved", None

    def _around(self, side: int, tree: Tree, place: int, above: int) -> tuple[Kind, tuple[int, int] | None]:
        shell = next(p for p in [place, *tree.above(place)] if tree.parents[p] == above)
        numbered = tree.modules[shell].name.isdecimal() and tree.modules[place].name.isdecimal()
        if self._held[side][shell] > 1 or numbered:
            return "regrouped", None
        return ("wrapped", "unwrapped")[1 - side], (side, shell)

    def _partners(self, x: int, y: int) -> bool:
        return (x < 0 and y < 0) or (x >= 0 and y >= 0 and self._a.partner[x] == y)

    def _sizes(self, x: int, y: int) -> Sequence[Said]:
        """What differs in settings and sizes; of modules without children the same for all that are equal to these."""
        if max(self._a.sizes[x], self._b.sizes[y]) > 1:
            return list(sizes(self._a.modules[x], self._b.modules[y]))
        kinds = self._exact[0][x], self._exact[1][y]
        if kinds not in self._sized:
            self._sized[kinds] = list(sizes(self._a.modules[x], self._b.modules[y]))
        return self._sized[kinds]

    def _pair(self, x: int, y: int, placed: Kind | None, shell: tuple[int, int] | None) -> Edit | None:
        before, after = self._a.modules[x], self._b.modules[y]
        if turned := {turn: names for turn, names in turns(before, after).items() if self._is_told(turn)}:
            self._turned[y] = turned
        differs = list(differences(before, after, self._sizes(x, y), turned))
        if not differs and _is_divided(after, self._scales):
            of_a, of_b = next(iter(self._scales.values()))
            differs = [("figures", f"the same in the whole step, divided by {of_a:,} → {of_b:,}")]
        if placed is None and not differs:
            return None
        kinds = [*([placed] if placed else []), *[kind for kind, _ in differs]]
        kind = min(kinds, key=KINDS.index)
        said = [after.type_name] if kind == "figures" and not any(text for _, text in differs) else []
        said += [text for k, text in differs if text and (k not in ("figures", "shapes") or k == kind)]
        modules: tuple[list[ModuleSummary], list[ModuleSummary]] = ([before], [after])
        if shell is not None:
            side, place = shell
            tree = (self._a, self._b)[side]
            modules[side].extend(_free(tree, place))
            outer = tree.modules[place].type_name
            said.insert(0, f"in {outer}" if side else f"out of {outer}")
        return Edit(kind, before, after, "; ".join(said), tuple(modules[0]), tuple(modules[1]))


def _crossing(matching: Matching) -> Iterator[int]:
    """The places of numbered children that are no longer in order with the others: as few as can be.

    Of as few, those that have another number.
    """
    a, b = matching.a, matching.b
    for y, x in enumerate(b.partner):
        if x is None or not (a.counted[x] and b.counted[y]) or matching.exact[0][x] == matching.exact[1][y]:
            continue
        by_b = [(before, child) for child in b.children[y] if (before := b.partner[child]) is not None]
        by_b = [pair for pair in by_b if a.parents[pair[0]] == x]
        by_a = sorted(by_b)
        if by_a != by_b:
            ways = (by_a, by_b) if matching.in_order else (by_b, by_a)
            same = {pair for pair in by_b if a.modules[pair[0]].name == b.modules[pair[1]].name}
            numbers = (
                [pair if pair in same else 0 for pair in ways[0]],
                [pair if pair in same else 1 for pair in ways[1]],
            )
            kept = {ways[0][place] for place, _ in max(align([numbers, ways]), align([ways]), key=len)}
            yield from [child for before, child in by_b if (before, child) not in kept]


def _equal(tree: Tree, exact: Sequence[int]) -> dict[tuple[int, int], tuple[int, int]]:
    """By parent and structure how many children there are, and how many of them have a partner."""
    found: dict[tuple[int, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for place, parent in enumerate(tree.parents):
        count, known = found[parent, exact[place]]
        found[parent, exact[place]] = count + 1, known + (tree.partner[place] is not None)
    return found


def _free(tree: Tree, top: int) -> Iterator[ModuleSummary]:
    """What has no partner in the subtree of a module that has none; what is below one that has, is changed there."""
    place = top
    while place < top + tree.sizes[top]:
        if tree.partner[place] is None:
            yield tree.modules[place]
            place += 1
        else:
            place += tree.sizes[place]
