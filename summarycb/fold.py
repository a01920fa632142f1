"""fold(): siblings that repeat become one item of what is shown, told by a structural hash. Must not import torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from summarycb.specs import BufferSpec, Nested, Opaque, ParameterSpec, Spec, TensorSpec
from summarycb.tree import CallGroup, ModuleSummary, subtree


class Named(Protocol):
    """A module, or one in two trees."""

    @property
    def path(self) -> str:
        """Where it is."""

    @property
    def name(self) -> str:
        """The last part of the path."""


class Copied(Protocol):
    """What stands for several of them."""

    @property
    def label(self) -> str:
        """What it is called."""

    @property
    def copies(self) -> Sequence[Named]:
        """All of them, those below one copy of the parent after each other."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """What one row stands for: a module, several of equal structure, or a repeated sequence of those.

    ``copies`` is the module, or all that the row stands for, in definition order; it is empty for a sequence, whose
    ``children`` are then the modules of one period, each with its own copies. ``times`` is how many siblings, or
    periods, of its parent it stands for. The children of a folded item are those of all its copies, side by side.
    """

    label: str
    copies: tuple[ModuleSummary, ...]
    times: int = 1
    children: tuple[Item, ...] = ()

    def walk(self) -> Iterator[Item]:
        """This item and all below it, in order."""
        return subtree(self)


def fold(root: ModuleSummary, enabled: bool = True) -> Item:
    """The tree of what is shown; with ``enabled=False`` each module is an item of its own.

    Folded are neighbours whose names count on (``0``, ``1``, ``2``; in a container ``layer_0``, ``layer_1`` too) and
    that are equal in all but what was measured: type, settings, mode, parameters and buffers with their dtypes and
    ties, everything below, and the shapes and MACs of each call, for a call's number of rows: experts that were given
    more tokens than others are folded too. A sequence that repeats is folded as a whole: where several do, that which
    covers most.
    """
    structures = _structures(root) if enabled else {}
    top = _Plan(root.type_name, (root,), 1, [])
    plans = [top]  # parents before their children: a tree may be deeper than Python's stack
    open_plans = [top]
    while open_plans:
        plan = open_plans.pop()
        columns = list(zip(*[module.children for module in plan.copies], strict=True))
        for child in _planned(plan.copies[0], columns, structures) if enabled else _each(columns):
            plan.children.append(child)
            for below in _within(child):
                plans.append(below)
                if below.copies:
                    open_plans.append(below)
    items: dict[int, Item] = {}
    for plan in reversed(plans):
        children = tuple([items.pop(id(child)) for child in plan.children])
        items[id(plan)] = Item(plan.label, plan.copies, plan.times, children)
    return items[id(top)]


def paths(roots: Sequence[Item]) -> Iterator[tuple[Item, str]]:
    """All items in order, with their paths: ``transformer.h.0-11.ln_1`` for what stands for several modules."""
    stack = [(item, "") for item in reversed(roots)]
    while stack:
        item, above = stack.pop()
        yield item, path_of(item, above)
        stack.extend([(child, path_within(item, above)) for child in reversed(item.children)])


def path_of(item: Copied, above: str) -> str:
    """The path of an item below the path of its parent: the module's own, or a pattern for several."""
    if len(item.copies) == 1:
        return item.copies[0].path
    return f"{above}.{item.label}" if above else item.label


def path_within(item: Item, above: str) -> str:
    """The parent's path for an item's children: a sequence has a row, but no name in the paths of its modules."""
    return path_of(item, above) if item.copies else above


class _Plan(NamedTuple):
    """An item whose children are still being found."""

    label: str
    copies: tuple[ModuleSummary, ...]
    times: int
    children: list[_Plan]


_Column = tuple[ModuleSummary, ...]
"""The modules at one place below each of the copies of their parent."""


def _within(plan: _Plan) -> Iterator[_Plan]:
    """The plan, and where it is a repeated sequence, those of its period."""
    yield plan
    for child in plan.children:
        yield from _within(child)


def _each(columns: Sequence[_Column]) -> Iterator[_Plan]:
    for column in columns:
        yield _Plan(column[0].name, column, 1, [])


def _planned(parent: ModuleSummary, columns: Sequence[_Column], structures: dict[int, int]) -> Iterator[_Plan]:
    for stretch in _stretches(columns, parent.type_name in _CONTAINERS):
        yield from _folded(stretch, structures)


def _folded(columns: Sequence[_Column], structures: dict[int, int]) -> Iterator[_Plan]:
    """The columns, whose names count on, with what repeats in them as one plan."""
    kinds = [structures[id(column[0])] for column in columns]
    start = 0
    while start < len(columns):
        period, times, over = _repeated(kinds, start)
        if start and over:  # the first of the repetitions differs in its first part: all of it stays open
            yield from _each(columns[start : start + over])
            start += over
        end = start + period * times
        if times == 1:
            yield from _each(columns[start:end])
        else:
            one = [_merged(columns[start + place : end : period]) for place in range(period)]
            label = _label(columns[start:end])
            if period == 1:
                yield _Plan(label, one[0], times, [])
            else:
                yield _Plan(label, (), times, [_in_each(child, times) for child in _folded(one, structures)])
        start = end


def _merged(columns: Sequence[_Column]) -> _Column:
    """One column of all of them, in definition order: those below one copy of the parent follow each other."""
    return tuple([module for row in zip(*columns, strict=True) for module in row])


def _label(columns: Sequence[_Column]) -> str:
    return _span([column[0] for column in columns])


def _span(modules: Sequence[ModuleSummary]) -> str:
    """``0-11``, or ``layer_0-11``; the name alone of one."""
    first, last = modules[0].name, modules[-1].name
    return first if len(modules) == 1 else f"{first}-{last[len(_counted(last)[0]) :]}"


def _in_each(plan: _Plan, periods: int) -> _Plan:
    """The plan, part of a repeated sequence, with where it is in the first two periods: ``0, 2, …``."""
    if not plan.copies:
        return plan
    again = _span(plan.copies[plan.times : 2 * plan.times])
    return plan._replace(label=f"{plan.label}, {again}{', …' if periods > 2 else ''}")


_MOST_PERIOD = 32


def _repeated(kinds: Sequence[int], start: int) -> tuple[int, int, int]:
    """The period of the repetition that begins at ``start`` and covers most, how often it is there, and what is over.

    That is how many of a further period follow.
    """
    left = len(kinds) - start
    best = (1, 1, 0)
    for period in range(1, min(left // 2, _MOST_PERIOD) + 1):
        end = start + period
        while end < len(kinds) and kinds[end] == kinds[end - period]:
            end += 1
        times = (end - start) // period
        if times > 1 and times * period > best[0] * best[1]:
            best = (period, times, (end - start) % period)
            if end == len(kinds) and times * period == left:
                break
    return best


_CONTAINERS = {"Sequential", "ModuleList", "ModuleDict"}
_MOST_DIGITS = 18


def _stretches(columns: Sequence[_Column], prefixes: bool) -> Iterator[Sequence[_Column]]:
    """The columns in stretches in which the names count on by one."""
    start, before = 0, ("", -2)
    for place, column in enumerate(columns):
        name = _counted(column[0].name)
        counts_on = name[1] == before[1] + 1 > 0 and name[0] == before[0] and (prefixes or not name[0])
        if place > start and not counts_on:
            yield columns[start:place]
            start = place
        before = name
    if columns:
        yield columns[start:]


def _counted(name: str) -> tuple[str, int]:
    """``("layer_", 3)`` of ``layer_3``; -2 where there is no number that can be counted on."""
    prefix = name.rstrip("0123456789")
    digits = name[len(prefix) :]
    if not digits or len(digits) > _MOST_DIGITS or (digits[0] == "0" and digits != "0"):
        return name, -2
    return prefix, int(digits)


def _structures(root: ModuleSummary) -> dict[int, int]:
    """By ``id`` of a module, a number that it has in common with those that are equal in all but what was measured."""
    modules = list(root.walk())
    ties = _ties(modules)
    numbers: dict[Hashable, int] = {}
    found: dict[int, int] = {}
    for module in reversed(modules):
        tied = ties.get(module.path, ())
        key = (
            module.type_name,
            module.config,
            module.training,
            tuple([(p.name, p.shape, p.dtype, p.device, p.trainable, p.local_shape) for p in module.parameters]),
            tuple([(b.name, b.shape, b.dtype, b.device, b.persistent, b.local_shape) for b in module.buffers]),
            None if module.call_groups is None else tuple([_called(group) for group in module.call_groups]),
            tuple(sorted([(name, _relative(module.path, other)) for name, other in tied])),
            tuple([(child.name, found[id(child)]) for child in module.children]),
        )
        found[id(module)] = numbers.setdefault(key, len(numbers))
    return found


def _ties(modules: Sequence[ModuleSummary]) -> dict[str, list[tuple[str, str]]]:
    """By path, what of a module is the same as what another module has, on both sides: own name and full other name."""
    ties: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for module in modules:
        tensors: tuple[ParameterSpec | BufferSpec, ...] = (*module.parameters, *module.buffers)
        for held in tensors:
            if held.shared_with is not None:
                owner, _, name = held.shared_with.rpartition(".")
                ties[module.path].append((held.name, held.shared_with))
                ties[owner].append((name, f"{module.path}.{held.name}"))
        if module.shared_with is not None:
            ties[module.path].append(("", module.shared_with))
            ties[module.shared_with].append(("", module.path))
    return ties


def _relative(path: str, other: str) -> tuple[int, str]:
    """How to go from ``path`` to ``other``: so many names up, and down from there."""
    here, there = path.split("."), other.split(".")
    same = 0
    while same < min(len(here), len(there)) and here[same] == there[same]:
        same += 1
    return len(here) - same, ".".join(there[same:])


def _called(group: CallGroup) -> Hashable:
    """What a group of calls was given and gave back, and its MACs, each for one of its rows."""
    rows = _rows(group.inputs)
    work = (group.own.forward_macs, group.own.backward_macs, group.own.recompute_macs)
    if not rows:
        return group.calls, group.inputs, group.outputs, work
    return (
        group.calls,
        _by_row(group.inputs, rows),
        _by_row(group.outputs, rows),
        tuple([None if macs is None else (macs // rows, macs % rows) for macs in work]),
    )


def _rows(spec: Spec) -> int:
    """The first dimension of the first tensor; 0 where there is none."""
    while not isinstance(spec, TensorSpec):
        parts = tuple(spec.values()) if isinstance(spec, Nested) else spec if isinstance(spec, tuple) else ()
        if not parts:
            return 0
        spec = parts[0]
    return spec.shape[0] if spec.shape else 0


_MAPPINGS = {"arguments", "dict", "OrderedDict"}


def _by_row(spec: Spec, rows: int) -> Hashable:
    """The spec with ``rows`` as a tensor's first dimension left out."""
    if isinstance(spec, TensorSpec):
        first = spec.shape[1:] if spec.shape[:1] == (rows,) else None
        return spec if first is None else (first, spec.dtype, spec.device)
    if isinstance(spec, Nested | Opaque) and spec.type_name not in _MAPPINGS:
        return spec.type_name  # a cache that is handed on holds more in each block, and the first is given an empty one
    if isinstance(spec, Nested):
        return spec.type_name, tuple([(name, _by_row(value, rows)) for name, value in spec.items_])
    return tuple([_by_row(part, rows) for part in spec]) if isinstance(spec, tuple) else spec
