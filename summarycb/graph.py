"""contract(): the dataflow as a graph to be drawn, at a depth, with what repeats drawn once. Must not import torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TypeAlias

from summarycb.dataflow import Dataflow, FlowKind
from summarycb.errors import SummaryError
from summarycb.fold import fold as fold_modules
from summarycb.tree import ModelSummary
from summarycb.units import clean

Alike: TypeAlias = Mapping[str, Hashable]
_MOST_PERIOD = 32
_MOST_WORK = 64
"""How often each item is looked at, in the mean, before what is left is drawn as it is."""
_FEWEST_OPS = 4
"""How often operations alone repeat, each on the result of the one before, to be drawn as one."""
_MOST_TENSORS = 3


@dataclass(frozen=True, slots=True)
class Node:
    """What is drawn: the call of a module, all that ran in it, or ``times`` of them; an operation; an end of the flow.

    ``path`` is the module's, that of the first where it is several; ``detail`` is its type.
    """

    id: int
    label: str
    kind: FlowKind
    path: str | None = None
    detail: str = ""
    times: int = 1


@dataclass(frozen=True, slots=True)
class Edge:
    """What flows from one node to another: the tensors' shapes and dtypes as text."""

    source: int
    target: int
    tensor: str


@dataclass(frozen=True, slots=True)
class Group:
    """A sequence that ran ``times`` times and is drawn once; what goes from one to the next is left out."""

    label: str
    times: int
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in the order in which they first ran, the edges between them, and which of them repeat together."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    groups: tuple[Group, ...] = ()


def contract(summary: ModelSummary, *, depth: int | None = 2, fold: bool = True, parameters: bool = False) -> Graph:
    """The graph of ``summary.dataflow``.

    ``depth`` is how many calls within one another are told apart: 0 is the model as one node, 1 what it calls and
    computes itself, and ``None`` all. With ``fold`` what repeats is drawn once: modules that are folded in the table
    too, and were used alike. With ``parameters`` they are nodes too, and what is computed of nothing else.
    """
    if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or depth < 0):
        raise SummaryError(f"depth must be a whole number from 0, or None for all, not {depth!r}")
    if summary.dataflow is None:
        raise SummaryError("the summary has no dataflow: " + _why(summary))
    [graph] = contractions(summary, [depth], fold=fold, parameters=parameters)
    return graph


def contractions(
    summary: ModelSummary, at: Iterable[int | None], *, fold: bool = True, parameters: bool = False
) -> Iterator[Graph]:
    """The graph at each of several depths."""
    if summary.dataflow is not None:
        alike = _alike(summary) if fold else {}
        for depth in at:
            yield _Contraction(summary, summary.dataflow, depth, alike, parameters).graph()


def depths(summary: ModelSummary) -> range:
    """The depths at which the graph differs."""
    flow = summary.dataflow
    if flow is None:
        return range(0)
    levels = _levels(flow)
    found = [levels[n.call] + (n.kind == "op") for n in flow.nodes if n.call is not None]
    return range(1, max(found, default=0) + 1)


def _why(summary: ModelSummary) -> str:
    if summary.observed == "structure":
        return "no step was observed"
    reasons = [note.text for note in summary.notes if note.kind == "dataflow"]
    return "; ".join([*reasons, *summary.incomplete]) or "it was not stored"


def _levels(flow: Dataflow) -> list[int]:
    """How deep each call is; that of the model itself is 0."""
    levels: list[int] = []
    for call in flow.calls:
        levels.append((0 if call.module == 0 else 1) if call.caller is None else levels[call.caller] + 1)
    return levels


class _Contraction:
    """A *unit* is what is drawn before anything is folded: a call, with all that ran in it, or a node of its own.

    Units and calls that are taken apart are the *items* of the call that they ran in: a tree of execution, in order.
    """

    def __init__(
        self, summary: ModelSummary, flow: Dataflow, depth: int | None, alike: Alike, parameters: bool
    ) -> None:
        self._flow = flow
        self._modules = list(summary.root.walk())
        self._levels = _levels(flow)
        self._units: list[int] = []  # the node of each, the first of a call's
        self._calls: list[int | None] = []  # the call of each, where it is one
        self._items: dict[int | None, list[tuple[bool, int]]] = defaultdict(list)  # is it a call, and which
        self._kinds: list[int] = []
        self._same: dict[int, int] = {}
        self._steps: set[tuple[int, int]] = set()
        self._groups: list[tuple[str, int, list[int]]] = []
        self._unit_of = self._contracted(depth, parameters)
        self._edges: dict[tuple[int, int], dict[int | None, None]] = {}
        self._sources: dict[int, set[int]] = defaultdict(set)
        self._targets: dict[int, set[int]] = defaultdict(set)
        for target, node in enumerate(flow.nodes):
            b = self._unit_of[target]
            for edge in node.inputs:
                a = self._unit_of[edge.source]
                if a is not None and b is not None and a != b:
                    # what is inside of a call reads views of what the call was given
                    made = flow.nodes[edge.source].output if self._calls[b] not in (None, node.call) else None
                    self._edges.setdefault((a, b), {})[edge.tensor if made is None else made] = None
                    self._sources[b].add(a)
                    self._targets[a].add(b)
        if alike:
            self._fold(alike)

    def graph(self) -> Graph:
        edges: dict[tuple[int, int], dict[int | None, None]] = {}
        several: set[tuple[int, int]] = set()
        for (source, target), tensors in self._edges.items():
            pair = self._drawn(source, target)
            if pair is not None:
                edges.setdefault(pair, {}).update(tensors)
                if len(tensors) > 1:
                    several.add(pair)
        copies: dict[int, list[int]] = defaultdict(list)
        for unit in range(len(self._units)):
            copies[self._first(unit)].append(unit)
        place = {unit: number for number, unit in enumerate(copies)}
        spans = {unit: _span(list(dict.fromkeys(map(self._path, found)))) for unit, found in copies.items()}
        labels = _labels({unit: span for unit, span in spans.items() if self._calls[unit] is not None})
        reached: dict[int, set[int]] = defaultdict(set)
        for a, b in edges:
            reached[a].add(b)
        groups = []
        for label, times, units in self._groups:
            within = {self._first(unit) for unit in units}
            within |= {a for a, found in reached.items() if len(copies[a]) > 1 and self._gives(a) and found <= within}
            groups.append(Group(clean(label), times, tuple(sorted(place[unit] for unit in within))))
        return Graph(
            nodes=tuple([self._node(place[unit], unit, len(found), labels) for unit, found in copies.items()]),
            edges=tuple(
                [
                    Edge(place[a], place[b], self._text(list(tensors), (a, b) not in several))
                    for (a, b), tensors in edges.items()
                ]
            ),
            groups=tuple(groups),
        )

    def _node(self, number: int, unit: int, times: int, labels: dict[int, str]) -> Node:
        node, call = self._flow.nodes[self._units[unit]], self._calls[unit]
        if call is not None:
            module = self._modules[self._flow.calls[call].module]
            label, kind = clean(labels[unit] or module.type_name), clean(module.type_name)
            return Node(number, label, "module", module.path, kind, times)
        if node.kind == "parameter":
            path = self._path(unit)
            label = f"{path.rpartition('.')[2]}.{node.name}" if path else node.name
            return Node(number, clean(label), "parameter", path, "", times)
        return Node(number, clean(node.name) or "tensor", node.kind, None, "", times)

    def _contracted(self, depth: int | None, parameters: bool) -> list[int | None]:
        """The unit of each node; None where it is not drawn. Fills the items."""
        flow = self._flow
        hidden: list[bool] = []
        for place, node in enumerate(flow.nodes):
            alone = node.kind == "op" and all(e.source < place and hidden[e.source] for e in node.inputs)
            hidden.append(not parameters and (node.kind == "parameter" or (alone and bool(node.inputs))))
        found: dict[tuple[bool, int], int] = {}
        listed: set[int] = set()
        unit_of: list[int | None] = []
        for place, node in enumerate(flow.nodes):
            if hidden[place]:
                unit_of.append(None)
                continue
            call, inside = node.call, node.kind == "op"
            while call is not None and depth is not None and self._levels[call] + inside > depth:
                if not inside and flow.calls[call].caller is None:
                    break
                call, inside = (call, False) if inside else (flow.calls[call].caller, False)
            is_call = call is not None and not inside
            key = (True, call) if is_call and call is not None else (False, place)
            if key not in found:
                found[key] = len(self._units)
                self._units.append(place)
                self._calls.append(call if is_call else None)
                item, above = (False, found[key]), self._above(call, is_call)
                if node.kind in ("module", "op"):
                    self._items[above].append(item)
                    while above is not None and above not in listed:
                        listed.add(above)
                        self._items[flow.calls[above].caller].append((True, above))
                        above = flow.calls[above].caller
            unit_of.append(found[key])
        return unit_of

    def _above(self, call: int | None, is_call: bool) -> int | None:
        return self._flow.calls[call].caller if is_call and call is not None else call

    def _fold(self, alike: Alike) -> None:
        numbers: dict[Hashable, int] = {}
        kind_of_call: dict[int, int] = {}
        for unit, place in enumerate(self._units):
            node = self._flow.nodes[place]
            key = (node.kind, node.name) if self._calls[unit] is None else alike[self._path(unit)]
            self._kinds.append(numbers.setdefault(key, len(numbers)))

        def kind(item: tuple[bool, int]) -> int:
            is_call, which = item
            return kind_of_call[which] if is_call else self._kinds[which]

        kinds: dict[int | None, list[int]] = {}
        for number in sorted((n for n in self._items if n is not None), reverse=True):
            kinds[number] = list(map(kind, self._items[number]))
            module = alike[self._modules[self._flow.calls[number].module].path]
            kind_of_call[number] = numbers.setdefault((module, *kinds[number]), len(numbers))
        kinds[None] = list(map(kind, self._items[None]))
        done: set[int | None] = set()
        for caller in sorted(self._items, key=lambda number: -1 if number is None else number):
            if caller in done:
                done |= {which for is_call, which in self._items[caller] if is_call}
            else:
                done |= self._fold_items(self._items[caller], kinds[caller])
        self._fold_givers(alike)

    def _fold_givers(self, alike: Alike) -> None:
        """The same parameter of each copy, and what each copy was given from before the step."""
        seen: dict[Hashable, int] = {}
        for unit, reached in self._targets.items():
            node = self._flow.nodes[self._units[unit]]
            if self._gives(unit):
                first = frozenset(map(self._first, reached))
                key = (node.kind, node.name, node.module and alike[self._path(unit)], first)
                other = seen.setdefault(key, unit)
                if not self._targets[other] & reached:
                    self._same[unit] = other

    def _fold_items(self, items: Sequence[tuple[bool, int]], kinds: Sequence[int]) -> set[int]:
        """What repeats among the items is drawn as the first; returns the calls that are not drawn."""
        done: set[int] = set()
        start = 0
        work = _MOST_WORK * len(items)
        while start < len(items) and work > 0:
            for period, times in _repetitions(kinds, start):
                work -= period * times
                rounds = [items[start + period * k : start + period * (k + 1)] for k in range(times)]
                units = [list(chain.from_iterable(map(self._within, one))) for one in rounds]
                steps = self._steps_between(units)
                modules = any(is_call or self._calls[which] is not None for is_call, which in rounds[0])
                if steps is None or (not modules and (times < _FEWEST_OPS or not steps)):
                    continue
                for copy in units[1:]:
                    self._same |= dict(zip(copy, units[0], strict=True))
                self._steps |= steps
                done |= {which for one in rounds[1:] for is_call, which in one if is_call}
                self._groups.append((self._label(rounds), times, units[0]))
                start += period * times
                break
            else:
                start += 1
        return done

    def _steps_between(self, rounds: Sequence[Sequence[int]]) -> set[tuple[int, int]] | None:
        """The edges from each round to the next; None where to draw one round would not tell what the others do."""
        places = {unit: (k, place) for k, units in enumerate(rounds) for place, unit in enumerate(units)}
        inner, between, given, giving = ([set[tuple[int, int]]() for _ in rounds] for _ in range(4))
        steps: set[tuple[int, int]] = set()
        reached: dict[int, set[int]] = defaultdict(set)
        first_given: dict[int, set[int]] = defaultdict(set)  # what the first round is given, by what gives it
        for unit, (k, place) in places.items():
            for source in self._sources[unit]:
                before, source_place = places.get(source, (None, self._kinds[source]))
                if before is None:
                    given[k].add((source_place, place))
                    if k == 0:
                        first_given[source].add(place)
                elif before == k:
                    inner[k].add((source_place, place))
                elif before == k - 1:
                    between[k].add((source_place, place))
                    steps.add((source, unit))
                else:
                    return None
            for target in self._targets[unit] - places.keys():
                giving[k].add((place, self._kinds[target]))
                if self._flow.nodes[self._units[target]].kind != "output":
                    reached[target].add(k)
        # the first of those that follow each other is given what the others have from the one before, and the last
        # gives what the others give to the next; what skips some of them would not be seen
        skips = steps and any(len(by) > 1 for by in reached.values())
        first, last = (1, len(rounds) - 1) if steps else (0, len(rounds))
        alike = all(all(one == sets[0] for one in sets) for sets in (inner, between[1:], given[first:], giving[:last]))
        if not alike or skips or not (given[first] <= given[0] and giving[0] <= giving[-1]):
            return None
        if steps:
            handed: dict[int, set[int]] = defaultdict(set)
            for source_place, place in between[1]:
                handed[source_place].add(place)
            in_place = [
                {place for place in found if (self._kinds[source], place) not in given[1]}
                for source, found in first_given.items()
            ]
            entered = Counter(frozenset(found) for found in in_place if found)
            left = {place for place, _ in giving[-1] - giving[0]}
            if entered - Counter(map(frozenset, handed.values())) or left - handed.keys():
                return None
        return steps

    def _within(self, item: tuple[bool, int]) -> Iterator[int]:
        stack = [item]
        while stack:
            is_call, which = stack.pop()
            if is_call:
                stack.extend(reversed(self._items[which]))
            else:
                yield which

    def _gives(self, unit: int) -> bool:
        return self._flow.nodes[self._units[unit]].kind in ("parameter", "input")

    def _label(self, rounds: Sequence[Sequence[tuple[bool, int]]]) -> str:
        calls = [which if is_call else self._calls[which] for one in rounds for is_call, which in one]
        paths = [self._modules[self._flow.calls[call].module].path for call in calls if call is not None]
        if not paths:
            return ""
        if len({path.count(".") for path in paths}) > 1:
            return " … ".join(".".join(path.split(".")[-2:]) for path in (paths[0], paths[-1]))
        return ".".join(_span(list(dict.fromkeys(paths)))[-2:])

    def _first(self, unit: int) -> int:
        while unit in self._same:
            unit = self._same[unit]
        return unit

    def _drawn(self, source: int, target: int) -> tuple[int, int] | None:
        """The edge among those that are drawn; None where it leads from one round of what is folded to the next."""
        while (source, target) not in self._steps:
            drawn = self._same.get(source, source), self._same.get(target, target)
            if drawn == (source, target):
                return None if source == target else drawn
            source, target = drawn
        return None

    def _text(self, tensors: Sequence[int | None], one: bool) -> str:
        """The shapes, each once; of ``one`` tensor that copies have in different sizes, what each is from and to."""
        specs = [self._flow.tensors[tensor] for tensor in tensors if tensor is not None]
        alike = len({(len(spec.shape), spec.dtype) for spec in specs}) == 1
        if one and alike and len(specs) == len(tensors):
            sizes = [
                f"{min(size)}-{max(size)}" if len(set(size)) > 1 else f"{size[0]}"
                for size in zip(*[spec.shape for spec in specs], strict=True)
            ]
            return f"[{', '.join(sizes)}] {specs[0].dtype}"
        texts = dict.fromkeys([*[f"{spec} {spec.dtype}" for spec in specs], *["?"] * (None in tensors)])
        return ", ".join(list(texts)[:_MOST_TENSORS]) + (", …" if len(texts) > _MOST_TENSORS else "")

    def _path(self, unit: int) -> str:
        call = self._calls[unit]
        module = self._flow.nodes[self._units[unit]].module if call is None else self._flow.calls[call].module
        return "" if module is None else self._modules[module].path


def _alike(summary: ModelSummary) -> Alike:
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
    for item in fold_modules(summary.root).walk():
        for module in item.copies:
            names = ("#" if name.isdecimal() else name for name in item.copies[0].path.split("."))
            found[module.path] = (".".join(names), number[module.path])
    return found


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


def _span(paths: Sequence[str]) -> list[str]:
    """The names in a path; where there are several paths, the names in which they differ as a range."""
    rows = [path.split(".") for path in paths]
    if len({len(row) for row in rows}) > 1:
        return [*rows[0], "…"]
    return [_range(list(dict.fromkeys(names))) for names in zip(*rows, strict=True)]


def _range(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    numbers = [int(name) if name.isdecimal() and len(name) < 10 else None for name in names]
    counts_on = all(a is not None and b == a + 1 for a, b in pairwise(numbers))
    return f"{names[0]}-{names[-1]}" if counts_on else f"{names[0]}, {names[1]}" + (", …" if len(names) > 2 else "")


def _to_a_name(span: Sequence[str]) -> int:
    """How many of the last names there are up to one that is no number."""
    return next((n for n, name in enumerate(reversed(span), 1) if not name[:1].isdecimal()), len(span))


def _labels(spans: dict[int, list[str]]) -> dict[int, str]:
    """The last names of each path, as many as tell it from the others, and a number for calls of the same module."""
    many = {unit: _to_a_name(span) for unit, span in spans.items()}
    longest = max(map(len, spans.values()), default=0)
    for _ in range(longest):
        meant: dict[str, set[str]] = defaultdict(set)
        for unit, span in spans.items():
            meant[".".join(span[-many[unit] :])].add(".".join(span))
        for unit, span in spans.items():
            many[unit] += len(meant[".".join(span[-many[unit] :])]) > 1
    labels = {unit: ".".join(span[-many[unit] :]) for unit, span in spans.items()}
    count, seen = Counter(labels.values()), Counter[str]()
    for unit, label in labels.items():
        if count[label] > 1:
            seen[label] += 1
            labels[unit] = f"{label} #{seen[label]}"
    return labels
