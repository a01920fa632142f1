"""merged(): two trees as one, the modules of b in their order, what was removed where it was. Must not import torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from summarycb.changes import FIGURES, Change, Delta, Edit, Scales, part, total
from summarycb.compare import Comparison
from summarycb.garbage import collection_paused
from summarycb.match import Tree
from summarycb.tree import OUTSIDE, ModuleSummary, add, outside_row, subtree


@dataclass(slots=True, eq=False)
class Place:
    """A module in both trees, or in one of them, and the change that has its figures; None where nothing changed.

    ``key`` is equal for places below which the trees are equal, and changed in the same way.
    """

    a: ModuleSummary | None
    b: ModuleSummary | None
    change: Change | None = None
    edit: Edit | None = None
    children: Sequence[Place] = ()
    key: Hashable = None

    @property
    def module(self) -> ModuleSummary:
        """As it is now, or was."""
        module = self.b or self.a
        assert module is not None
        return module

    @property
    def path(self) -> str:
        """Where it is, or was."""
        return self.module.path

    @property
    def name(self) -> str:
        """What it is called, or was."""
        return self.module.name


@dataclass(slots=True, eq=False)
class Item:
    """What one row stands for: a place, or neighbours that are numbered on and changed in the same way.

    ``copies`` are all that it stands for, ``times`` how many of each parent. ``own`` has the figures without those of
    the children, ``total`` with them, of all copies together.
    """

    label: str
    copies: Sequence[Place]
    times: int = 1
    children: list[Item] = field(default_factory=list)
    own: Mapping[str, Delta] = field(default_factory=dict)
    total: Mapping[str, Delta] = field(default_factory=dict)

    @property
    def told(self) -> Place:
        """The copy of which most is to be told: of some the shapes alone may be others."""
        return next((place for place in self.copies if place.change is not None), self.copies[0])

    @property
    def change(self) -> Change | None:
        """What happened to it."""
        return self.told.change

    def walk(self) -> Iterator[Item]:
        """This item and all below it, in order."""
        return subtree(self)


@collection_paused()
def merged(comparison: Comparison) -> list[Item]:
    """The roots, and ``(outside)``; their ``total`` sum to the totals of ``comparison``."""
    roots = _placed(comparison)
    top = Item("", roots)
    items, open_items = [top], [top]
    while open_items:
        item = open_items.pop()
        columns = [(root,) for root in roots] if item is top else zip(*[p.children for p in item.copies], strict=True)
        for run in _runs(columns):
            copies = [place for row in zip(*run, strict=True) for place in row]
            first, last = run[0][0], run[-1][0]
            label = first.name if len(run) == 1 else f"{first.name}-{last.name}"
            item.children.append(Item(label or first.module.type_name, copies, len(run)))
        items.extend(item.children)
        open_items.extend(item.children)
    for item in reversed(items[1:]):
        item.own = _figures(item.copies, comparison.scales)
        below = [child.total for child in item.children]
        item.total = _summed([item.own, *below]) if below else item.own
    return top.children


def _placed(comparison: Comparison) -> list[Place]:
    matching = comparison.matching
    a, b, exact = matching.a, matching.b, matching.exact
    of_b = [Place(None if x is None else a.modules[x], b.modules[y]) for y, x in enumerate(b.partner)]
    of_a = [Place(a.modules[x], None) if y is None else of_b[y] for x, y in enumerate(a.partner)]
    for y, place in enumerate(of_b):
        gone = defaultdict(list, _gone(a, b, y, of_a))
        place.children = [*gone[None], *[p for child in b.children[y] for p in (of_b[child], *gone[child])]]
    for x, place in enumerate(of_a):
        if place.b is None:
            place.children = [of_a[child] for child in a.children[x] if of_a[child].b is None]
    outside = Place(outside_row(comparison.a.outside), outside_row(comparison.b.outside))
    roots = [of_b[0], *([of_a[0]] if of_a[0].b is None else []), outside]
    _tell(roots, comparison.rows)
    alike = {
        id(module): number
        for tree, of in ((a, exact[0]), (b, exact[1]))
        for module, number in zip(tree.modules, of, strict=True)
    }
    numbers: dict[Hashable, int] = {}
    for place in reversed([place for root in roots for place in subtree(root)]):
        edit, change = place.edit, place.change
        # shapes differ with where a block is: a cache that is handed on grows
        said = edit and change and edit.kind != "shapes" and (edit.kind, edit.details, change.before)
        same = [alike.get(id(module)) for module in (place.a, place.b)]
        place.key = numbers.setdefault((*same, said or None, *[child.key for child in place.children]), len(numbers))
    return roots


def _gone(a: Tree, b: Tree, y: int, of_a: Sequence[Place]) -> Iterator[tuple[int | None, list[Place]]]:
    """What was removed from a module, by the child of ``b`` that it comes after."""
    last: int | None = None
    gone: list[Place] = []
    x = b.partner[y]
    for child in () if x is None else a.children[x]:
        partner = a.partner[child]
        if partner is None:
            gone.append(of_a[child])
        elif b.parents[partner] == y:
            yield last, gone
            last, gone = partner, []
    yield last, gone


def _tell(roots: Sequence[Place], changes: Sequence[Change]) -> None:
    """Each place gets the change that has its figures."""
    of_a, of_b = {}, {}
    for change in changes:
        for edit in change.edits:
            of_a.update(dict.fromkeys(map(id, edit.modules_a), (change, edit)))
            of_b.update(dict.fromkeys(map(id, edit.modules_b), (change, edit)))
            if edit.path == OUTSIDE:
                roots[-1].change, roots[-1].edit = change, edit
    for place in [place for root in roots[:-1] for place in subtree(root)]:
        told = of_a.get(id(place.a)) if place.b is None else of_b.get(id(place.b))
        place.change, place.edit = told or (None, None)


def _runs(columns: Iterable[Sequence[Place]]) -> Iterator[list[Sequence[Place]]]:
    """Neighbours that are numbered on and equal; a column is the same place below each copy of a parent."""
    run: list[Sequence[Place]] = []
    for column in columns:
        if run and not _follows(run[-1][0], column[0]):
            yield run
            run = []
        run.append(column)
    if run:
        yield run


def _follows(one: Place, other: Place) -> bool:
    numbers = one.name, other.name
    return one.key == other.key and all(map(str.isdecimal, numbers)) and int(numbers[1]) == int(numbers[0]) + 1


def _figures(copies: Sequence[Place], scales: Scales) -> dict[str, Delta]:
    sides = [[module.own for p in copies if (module := (p.a, p.b)[side]) is not None] for side in (0, 1)]
    sums = {name: [add(*[getattr(own, name) for own in owns]) for owns in sides] for name in FIGURES}
    return {name: Delta(*map(part, both, scales.get(name, (1, 1)))) for name, both in sums.items()}


def _summed(figures: Sequence[Mapping[str, Delta]]) -> dict[str, Delta]:
    return {name: Delta(total([f[name].a for f in figures]), total([f[name].b for f in figures])) for name in FIGURES}
