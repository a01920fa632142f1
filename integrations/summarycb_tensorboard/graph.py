"""What TensorBoard's Graphs page shows of a summary: the calls of the modules, operations, and what flows between them.

A node is a call of a module, an operation, an input or an output. It is named by the module's path with ``/``, and
``#2`` is the second call; what TensorBoard's names cannot have is escaped. What a module computed itself, and its
settings, are at the node in it that has its name. No module's name is ``(outside)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from summarycb.dataflow import Dataflow
from summarycb.graph.contracted import of_parameters
from summarycb.names import escape
from summarycb.specs import Opaque, Spec, TensorSpec, spec_text, tensors_of
from summarycb.tree import OUTSIDE, Amounts, CallGroup, ModelSummary, ModuleSummary, Work, flops

MOST_MODULES = 20_000
"""Of a larger tree the upper levels are drawn, each module with all that is in it, and without the dataflow."""
_MOST_NAME = 200
"""Bytes of one name in a path."""
_IN_NAMES = "A-Za-z0-9_.-"


class Cost(NamedTuple):
    """FLOPs and bytes; None is unknown."""

    forward_flops: int | None
    backward_flops: int | None
    saved_activations: int | None
    gradients: int | None


@dataclass(slots=True, eq=False)
class Node:
    """What is drawn as one. ``cost`` is None of what has none of its own, as an operation, ``ran`` whether it did.

    ``outputs`` are the tensors that others read, None where one has no shape, ``made`` those that it is known to have
    made. ``reads`` are nodes, and which of their ``outputs``.
    """

    name: str
    op: str
    ran: bool = True
    cost: Cost | None = None
    about: dict[str, str] = field(default_factory=dict)
    made: tuple[TensorSpec, ...] = ()
    outputs: dict[TensorSpec | None, int] = field(default_factory=dict)
    reads: list[tuple[Node, int]] = field(default_factory=list)


def drawn(summary: ModelSummary) -> list[Node]:
    """The calls in the order in which they began, the rest of the dataflow, and the modules that are not in it."""
    modules = list(summary.root.walk())
    rows, flow = [(module, module.own) for module in modules], summary.dataflow
    lacks = [note.text for note in summary.notes if note.kind == "dataflow"]
    if len(modules) > MOST_MODULES:
        rows, flow = _upper(summary.root), None
        lacks = [f"of more than {MOST_MODULES:,} modules the upper levels are drawn, without the dataflow"]
    names = _Names()
    nodes: list[Node] = []
    called: dict[int, Sequence[CallGroup | None]] = {}
    if flow is not None:
        nodes, called = _flow(flow, modules, names)
    for place, (module, own) in enumerate(rows):
        nodes += _rest(module, own, called.get(place, ()), names)
    if summary.observed != "structure":
        nodes.append(Node(names.new(OUTSIDE), "outside", cost=_cost(summary.outside, gradients=0)))
    if lacks:
        nodes[0].about["dataflow"] = "; ".join(lacks)
    return nodes


def _upper(root: ModuleSummary) -> list[tuple[ModuleSummary, Amounts]]:
    """The levels that are few enough, the modules of the last with all that is in them."""
    level, rows = [root], list[tuple[ModuleSummary, Amounts]]()
    while level:
        below = [child for module in level for child in module.children]
        if len(rows) + len(level) + len(below) > MOST_MODULES:
            return rows + [(module, module.total) for module in level]
        rows += [(module, module.own) for module in level]
        level = below
    return rows


def _flow(
    flow: Dataflow, modules: Sequence[ModuleSummary], names: _Names
) -> tuple[list[Node], dict[int, Sequence[CallGroup | None]]]:
    """The nodes of the dataflow; and by place of the module the calls that are in it, each with what it is one of."""
    counts = Counter([call.module for call in flow.calls])
    called = {place: _groups(modules[place], count) for place, count in counts.items()}
    groups = {place: iter(found) for place, found in called.items()}
    gradients = {place: modules[place].own.gradients for place in counts}  # at the first call
    calls: list[Node] = []
    scopes: list[str] = []
    for call in flow.calls:
        module = modules[call.module]
        scope, relative = "", module.path
        if call.caller is not None:
            around = modules[flow.calls[call.caller].module].path
            if module.path.startswith(f"{around}." if around else "") and module.path != around:
                scope, relative = scopes[call.caller], module.path[len(around) + bool(around) :]
        name = names.new("/".join(filter(None, [scope, _scoped(relative)])) or escaped(module.type_name))
        scopes.append(name if module.path or "" in scopes else "")
        node = Node(name, module.type_name, about=_about(module))
        if (group := next(groups[call.module])) is not None:
            first = call.module in gradients
            node.cost = _cost(group.own, gradients.pop(call.module) if first else 0, part=(1, group.calls))
            _tell_tensors(node, group.inputs, group.outputs)
            if not first:
                node.about["gradients"] = "at the first call"
        calls.append(node)
    nodes = [*calls]
    place_of: list[Node | None] = []
    for entry, hidden in zip(flow.nodes, of_parameters(flow), strict=True):
        if hidden:
            place_of.append(None)
        elif entry.kind == "module" and entry.call is not None:
            place_of.append(calls[entry.call])
        else:
            scope = scopes[entry.call] if entry.call is not None else OUTSIDE if entry.kind == "op" else ""
            label = entry.name or "tensor"
            node = Node(names.new("/".join(filter(None, [scope, escaped(label)]))), label)
            made = entry.inputs[0].tensor if entry.kind == "output" and entry.inputs else entry.output
            node.made = () if made is None else (flow.tensors[made],)
            nodes.append(node)
            place_of.append(node)
    for entry, target in zip(flow.nodes, place_of, strict=True):
        for edge in entry.inputs:
            source = place_of[edge.source]
            if source is not None and target is not None:
                tensor = None if edge.tensor is None else flow.tensors[edge.tensor]
                target.reads.append((source, source.outputs.setdefault(tensor, len(source.outputs))))
    return nodes, called


def _groups(module: ModuleSummary, drawn: int) -> Sequence[CallGroup | None]:
    """What each of the calls that are drawn is one of; None where the order of unlike calls cannot be told."""
    groups = module.call_groups or ()  # in the order of the first call of each
    in_order = len(groups) == 1 or (drawn == module.calls and all(group.calls == 1 for group in groups[:-1]))
    if not in_order or isinstance(groups[-1].inputs, Opaque):  # that of all that are not kept apart
        return [None] * drawn
    return [group for group in groups for _ in range(group.calls)][:drawn]


def _rest(module: ModuleSummary, own: Amounts, drawn: Sequence[CallGroup | None], names: _Names) -> Iterator[Node]:
    """A node for the calls that are not drawn, with what the drawn ones have not; or for a module without any."""
    if module.shared_with is not None:
        return  # a second name
    told = any(group is not None for group in drawn)
    calls, left = module.calls, None if module.calls is None else module.calls - len(drawn)
    if told and not left:
        return
    if not calls and module.children and not module.parameters and own is not module.total:
        return  # only a list of others
    cost = _cost(own, gradients=0, part=(left, calls)) if told and left and calls else _cost(own, own.gradients)
    node = Node(names.new(_scoped(module.path) or escaped(module.type_name)), module.type_name, cost=cost)
    node.ran = bool(calls) or any(cost)
    node.about = _about(module) | {"calls": "?" if calls is None else str(left if told else calls)}
    _tell_tensors(node, module.inputs, module.outputs)
    yield node


def _cost(work: Work | Amounts, gradients: int | None, part: tuple[int, int] = (1, 1)) -> Cost:
    """That of so many of so many equal calls."""
    forward, backward, saved = (
        None if amount is None else amount * part[0] // part[1]
        for amount in (work.forward_macs, work.backward_macs, work.saved_activations)
    )
    return Cost(flops(forward), flops(backward), saved, gradients)


def _about(module: ModuleSummary) -> dict[str, str]:
    """What the node's card says of it."""
    held = [f"{p.name} {p.shape_text} {p.dtype}{'' if p.trainable else ' frozen'}" for p in module.parameters]
    return {"path": module.path, "config": module.config, "parameters": ", ".join(held)}


def _tell_tensors(node: Node, inputs: Spec, outputs: Spec) -> None:
    node.about |= {"inputs": spec_text(inputs), "outputs": spec_text(outputs)}
    node.made = tuple(tensors_of(outputs))


class _Names:
    """Gives each name once; with a number where it is wanted again."""

    def __init__(self) -> None:
        self._given: Counter[str] = Counter()

    def new(self, wanted: str) -> str:
        """``wanted``, or ``wanted#2``, ``wanted#3`` ...: ``#`` is in no other name."""
        self._given[wanted] += 1
        return wanted if self._given[wanted] == 1 else f"{wanted}#{self._given[wanted]}"


def _scoped(path: str) -> str:
    return "/".join([escaped(name) for name in path.split(".")]) if path else ""


def escaped(name: str) -> str:
    """A name as TensorBoard takes it, one part of a path."""
    return escape(name, _IN_NAMES, _MOST_NAME)
