"""drawn(): the graph of what is left when what repeats is folded. Must not import torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from summarycb.dataflow import FlowKind
from summarycb.graph import labels
from summarycb.graph.contracted import Contracted, Pair, Tensors, Unit
from summarycb.graph.told import Told
from summarycb.specs import TensorSpec
from summarycb.units import clean

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
    """What flows from one node to another: the tensors' shapes and dtypes as text.

    It begins with ``many``: how many each target reads, or that they are of each.
    """

    source: int
    target: int
    tensor: str
    many: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """A sequence that ran ``times`` times and is drawn once, the outermost first.

    ``in_a_row`` is that each round was given something by the one before it, which is left out; else they stand side by
    side.
    """

    label: str
    times: int
    nodes: tuple[int, ...]
    in_a_row: bool


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in the order in which they first ran, the edges between them, and which of them repeat together."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    groups: tuple[Group, ...] = ()


def drawn(contracted: Contracted, told: Told) -> Graph:
    """The units that nothing else is drawn as, with names that tell them apart, and what flows between them."""
    units, folded = contracted.units, told.folded
    copies: dict[int, list[int]] = defaultdict(list)
    for number in range(len(units)):
        copies[folded.first(number)].append(number)
    place = {first: id for id, first in enumerate(copies)}
    spans = {first: labels.span([units[number].path for number in found]) for first, found in copies.items()}
    seen: Counter[str] = Counter()
    call = {}  # of its module, which one each unit is; not those that are drawn, or the one after five would be "#2"
    for number, unit in enumerate(units):
        seen[unit.path] += unit.is_call
        call[number] = seen[unit.path]
    names = labels.apart({first: names for first, names in spans.items() if units[first].is_call}, call)
    flows: dict[Pair, Tensors] = {}
    several: set[Pair] = set()  # in which more than one tensor flows at a time
    read: dict[Pair, Counter[int]] = defaultdict(Counter)  # by each target that is drawn as one, of how many sources
    for (source, target), tensors in contracted.edges.items():
        if (pair := folded.pair(source, target)) is not None:
            flows.setdefault(pair, {}).update(tensors)
            read[pair][target] += 1
            if len(tensors) > 1:
                several.add(pair)
    readers: dict[int, set[int]] = defaultdict(set)  # of what was there before the step, of each copy its own
    for source, target in flows:
        if units[source].gives and len(copies[source]) > 1:
            readers[source].add(target)
    edges = []
    for pair, tensors in flows.items():
        many = "of each " if pair in told.of_each else _times(read[pair])
        edges.append(Edge(place[pair[0]], place[pair[1]], many + _text(list(tensors), pair not in several), many))
    groups = []
    for repeat in folded.repeats:
        within = {folded.first(number) for number in repeat.units}
        within |= {giver for giver, found in readers.items() if found <= within}
        nodes = tuple(sorted([place[first] for first in within]))
        groups.append(Group(clean(repeat.label), repeat.times, nodes, repeat.in_a_row))
    return Graph(
        nodes=tuple(
            [_node(place[first], units[first], len(found), names.get(first)) for first, found in copies.items()]
        ),
        edges=tuple(edges),
        groups=tuple(groups),
    )


def _node(id: int, unit: Unit, times: int, name: str | None) -> Node:
    if unit.kind == "parameter":
        owner = unit.path.rpartition(".")[2]
        return Node(id, clean(f"{owner}.{unit.name}" if owner else unit.name), "parameter", unit.path, "", times)
    if unit.module is None or not unit.is_call:
        return Node(id, clean(unit.name) or "tensor", unit.kind, None, "", times)
    return Node(id, clean(name or unit.module.type_name), "module", unit.path, clean(unit.module.type_name), times)


def _times(read: Mapping[int, int]) -> str:
    fewest, most = min(read.values()), max(read.values())
    return "" if most == 1 else f"{most} × " if fewest == most else f"{fewest}-{most} × "


def _text(tensors: Sequence[TensorSpec | None], one: bool) -> str:
    """The shapes, each once; of ``one`` tensor that copies have in different sizes, what each is from and to."""
    specs = [spec for spec in tensors if spec is not None]
    alike = len({(len(spec.shape), spec.dtype) for spec in specs}) == 1
    if one and alike and len(specs) == len(tensors):
        sizes = [
            f"{min(size)}-{max(size)}" if len(set(size)) > 1 else f"{size[0]}"
            for size in zip(*[spec.shape for spec in specs], strict=True)
        ]
        return f"[{', '.join(sizes)}] {specs[0].dtype}"
    texts = dict.fromkeys([*[f"{spec} {spec.dtype}" for spec in specs], *["?"] * (None in tensors)])
    return ", ".join(list(texts)[:_MOST_TENSORS]) + (", …" if len(texts) > _MOST_TENSORS else "")
