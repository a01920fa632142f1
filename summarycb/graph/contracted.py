"""contracted(): the dataflow cut at a depth into units, before anything is folded. Must not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from summarycb.dataflow import Dataflow, FlowKind, FlowNode
from summarycb.specs import TensorSpec
from summarycb.tree import ModuleSummary

Pair: TypeAlias = tuple[int, int]
"""Two units, by number: what flows from the first to the second."""
Tensors: TypeAlias = dict[TensorSpec | None, None]
"""Each once, in order; None is one that has no shape."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A call of ``module`` with all that ran in it, or a node of its own, of which a parameter has a ``module`` too."""

    kind: FlowKind
    name: str
    module: ModuleSummary | None

    @property
    def is_call(self) -> bool:
        """All that ran in a call, as one."""
        return self.kind == "module"

    @property
    def gives(self) -> bool:
        """It was there before the step."""
        return self.kind in ("parameter", "input")

    @property
    def path(self) -> str:
        """That of its module."""
        return "" if self.module is None else self.module.path


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A call that is taken apart: the units that ran in it, by number, and the calls that are taken apart too.

    ``module`` is None of what stands for all that ran outside of modules.
    """

    module: ModuleSummary | None
    parts: list[int | Opened]

    def walk(self) -> Iterator[Opened]:
        """This call and those in it, in order."""
        stack = [self]
        while stack:
            opened = stack.pop()
            yield opened
            stack.extend([part for part in reversed(opened.parts) if isinstance(part, Opened)])


@dataclass(frozen=True, slots=True)
class Contracted:
    """The units in the order in which they first ran, the calls that they ran in, and what flows between them."""

    units: Sequence[Unit]
    outermost: Opened
    edges: Mapping[Pair, Tensors]


def contracted(root: ModuleSummary, flow: Dataflow, depth: int | None, *, parameters: bool = False) -> Contracted:
    """The units of which ``depth`` calls within one another are told apart, or with None all."""
    modules, level = list(root.walk()), levels(flow)
    hidden = [False] * len(flow.nodes) if parameters else of_parameters(flow)
    units: list[Unit] = []
    calls: list[int | None] = []  # which each unit is
    unit_of_call: dict[int, int] = {}
    unit_of: list[int | None] = []  # by node
    opened: dict[int | None, Opened] = {None: Opened(None, [])}
    for node, is_hidden in zip(flow.nodes, hidden, strict=True):
        if is_hidden:
            unit_of.append(None)
            continue
        call, around = _cut(node, flow, level, depth)
        if call in unit_of_call:
            unit_of.append(unit_of_call[call])
            continue
        number = len(units)
        unit_of.append(number)
        calls.append(call)
        if call is None:
            units.append(Unit(node.kind, node.name, None if node.module is None else modules[node.module]))
        else:
            unit_of_call[call] = number
            units.append(Unit("module", "", modules[flow.calls[call].module]))
        if call is not None or node.kind == "op":
            part: int | Opened = number
            while around is not None and around not in opened:
                part = opened[around] = Opened(modules[flow.calls[around].module], [part])
                around = flow.calls[around].caller
            opened[around].parts.append(part)
    edges: dict[Pair, Tensors] = {}
    for node, target in zip(flow.nodes, unit_of, strict=True):
        for edge in node.inputs:
            source = unit_of[edge.source]
            if source is not None and target is not None and source != target:
                # what is inside of a call reads views of what the call was given
                made = flow.nodes[edge.source].output if calls[target] not in (None, node.call) else None
                tensor = edge.tensor if made is None else made
                edges.setdefault((source, target), {})[None if tensor is None else flow.tensors[tensor]] = None
    return Contracted(units, opened[None], edges)


def levels(flow: Dataflow) -> list[int]:
    """How deep each call is; that of the model itself is 0."""
    found: list[int] = []
    for call in flow.calls:
        found.append((0 if call.module == 0 else 1) if call.caller is None else found[call.caller] + 1)
    return found


def of_parameters(flow: Dataflow) -> list[bool]:
    """Whether each node is a parameter, or an operation on nothing but parameters."""
    found: list[bool] = []
    for place, node in enumerate(flow.nodes):
        alone = node.kind == "op" and all(edge.source < place and found[edge.source] for edge in node.inputs)
        found.append(node.kind == "parameter" or (alone and bool(node.inputs)))
    return found


def _cut(node: FlowNode, flow: Dataflow, level: Sequence[int], depth: int | None) -> tuple[int | None, int | None]:
    """The call that stands for a node, None where it stands for itself; and the call that this ran in."""
    call = node.call
    if call is None or (node.kind == "op" and (depth is None or level[call] < depth)):
        return None, call
    while depth is not None and level[call] > depth and (caller := flow.calls[call].caller) is not None:
        call = caller
    return call, flow.calls[call].caller
