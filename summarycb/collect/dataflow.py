"""What flows where in the forward, until the first backward begins: the nodes, and what each has read.

Data passes through views, copies and writes in place, since of each storage it is known who wrote which bytes
(:mod:`summarycb.collect.origins`). Where a module gives back no more than a view of what it was given, that tensor is
known to come from the module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from summarycb.collect.calls import OUTSIDE, Calls
from summarycb.collect.inputs import describe, iter_tensors
from summarycb.collect.kinds import Kind
from summarycb.collect.modules import Structure, text
from summarycb.collect.origins import NOWHERE, Origins, Source
from summarycb.dataflow import MOST_EDGES, MOST_NODES, Dataflow, FlowCall, FlowEdge, FlowKind, FlowNode
from summarycb.specs import TensorSpec

_MOST_NAMED = 64
_HELD = NOWHERE - 1
"""From here downwards are the nodes of the parameters and buffers that nothing has read yet."""


class TooLarge(Exception):
    """More nodes or edges than are kept."""


@dataclass(slots=True)
class _Node:
    kind: FlowKind
    name: str = ""
    call: int | None = None
    module: int | None = None
    output: int | None = None
    inputs: dict[tuple[int, int | None], None] = field(default_factory=dict)


class Flow:
    """Follows the tensors of the step from node to node."""

    def __init__(self, structure: Structure, calls: Calls) -> None:
        self._calls = calls
        parents = {node.parent for node in structure.nodes} | {0}
        self._is_leaf = [slot not in parents for slot in range(len(structure.nodes))]
        self._nodes: list[_Node] = []
        self._edges = 0
        self._held: list[tuple[int, str]] = []
        self._read_held: dict[int, int] = {}
        self._tensors: dict[TensorSpec, int] = {}
        self._origins = Origins(lambda: self._add(_Node("input")), self._joined, self._spec)
        self._kinds: dict[int, Kind] = {}
        self._owners: dict[int, int | None] = {}
        self._given: dict[int, list[int | None]] = {}
        self._given_ids: set[int] = set()
        self._losses: list[list[Source]] = []
        self.until: int | None = None
        """How many module calls there were before the first backward, which ends this."""
        self.cut = False
        """That backward ran within a module's forward."""
        self.joined = False
        """A storage was written in more parts than are told apart."""
        seen: set[int] = set()
        for slot, node in enumerate(structure.nodes):
            for module in node.modules if node.alias_of is None else ():
                for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                    if tensor is not None and not torch.nn.parameter.is_lazy(tensor) and id(tensor) not in seen:
                        seen.add(id(tensor))
                        self._origins.hold(tensor, _HELD - len(self._held), slot)
                        self._held.append((slot, text(name)))

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A module's forward has begun."""
        call = self._calls.current
        if call in self._owners:  # what is wrapped is called within its wrapper's call
            return
        made = self._calls.made[call]
        owner = self._owners.get(made.caller)
        if owner is None and self._is_leaf[made.slot]:
            owner = self._add(_Node("module", call=call))
            given = iter_tensors((args, kwargs))
            self._given, self._given_ids = {}, set(map(id, given))
            for tensor in given:
                for source, spec in self._sources(tensor):
                    self._given.setdefault(source, []).append(spec)
        elif made.slot == 0 and made.caller == OUTSIDE:
            self._is_given(_named(args[0] if len(args) == 1 and not kwargs else [*args], "input"))
            self._is_given(_named(dict(kwargs), "input"))
        self._owners[call] = owner

    def _is_given(self, inputs: Iterable[tuple[str, Iterable[torch.Tensor]]]) -> None:
        """The model's own forward begins with these."""
        for name, tensors in inputs:
            for node in [node for tensor in tensors for node in self._origins.given(tensor)]:
                if node >= 0 and self._nodes[node].kind == "input":
                    self._nodes[node].name = self._nodes[node].name or name

    def exit(self, output: object) -> None:
        """A module's forward returns."""
        call = self._calls.current
        owner = self._owners.get(call)
        if owner is None:
            if self._calls.depth == 1 and self._calls.made[call].slot == 0:
                self._is_returned(_named(output, "output"))
        elif self._nodes[owner].call == call:
            if issubclass(type(output), torch.Tensor):  # its own ``__class__`` may be code
                self._nodes[owner].output = self._spec(cast(torch.Tensor, output))
            for tensor in iter_tensors(output):
                sources = self._sources(tensor)
                touched = id(tensor) not in self._given_ids and not isinstance(tensor, torch.nn.Parameter)
                if touched and [node for node, _ in sources] != [owner]:
                    self._read(owner, sources)
                    self._origins.stands_for(tensor, owner)

    def _is_returned(self, outputs: Iterable[tuple[str, Iterable[torch.Tensor]]]) -> None:
        """The model's own forward returns these: what is then made of them is made of the output."""
        returned = []
        for name, tensors in outputs:
            found = [(tensor, sources) for tensor in tensors if (sources := self._sources(tensor))]
            if found:
                node = self._add(_Node("output", name))
                for tensor, sources in found:
                    self._read(node, sources)
                    if all(self._nodes[source].kind in ("module", "op") for source, _ in sources):
                        returned.append((tensor, node))
        self._origins.tick()
        for tensor, node in reversed(returned):  # of several in one storage the first is known by it
            self._origins.wrote(tensor, node)
            self._origins.stands_for(tensor, node)

    def op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """An operation has run, in no backward."""
        kind = self._kinds.get(id(func))
        if kind is None:
            kind = self._kinds[id(func)] = Kind(func)
        if kind.views:
            self._origins.view(args[0], out)
            return
        call = self._calls.current
        owner = self._owners.get(call)
        read = kind.reads(args, kwargs)
        self._origins.tick()
        if owner is not None:
            slot = self._calls.made[call].slot
            for tensor in read:
                found = self._origins.sources(tensor, slot)
                if found != [(owner, None)]:  # most of what a layer reads it has made
                    self._read(owner, self._told(tensor, found))
            for tensor in kind.writes(args, kwargs, out):
                self._origins.wrote(tensor, owner, slot)
            return
        if call == OUTSIDE:
            if kind.ones and self._origins.knows(args[0]):  # backward() makes its first gradient like the loss
                self._losses.append(self._sources(args[0]))
                return
            self._losses = []
            if not any(map(self._origins.knows, read)):
                return  # how a batch is made: it is there, as an input, when the model gets it
        sources = [source for tensor in read for source in self._sources(tensor)]
        made = kind.writes(args, kwargs, out)
        if not sources:
            node = NOWHERE
        elif kind.copies and len(sources) == 1:
            node = sources[0][0]
        else:
            spec = self._spec(made[0]) if len(made) == 1 else None
            node = self._add(_Node("op", kind.name, None if call == OUTSIDE else call, output=spec))
            self._read(node, sources)
        for tensor in made:
            self._origins.wrote(tensor, node)

    def backward_begins(self) -> None:
        """What ran before is the dataflow."""
        self.until, self.cut = len(self._calls.made), self._calls.depth > 0
        for number, sources in enumerate([] if self.cut else self._losses):
            if any(self._nodes[source].kind != "output" for source, _ in sources):
                name = "loss" if len(self._losses) == 1 else f"loss {number}"
                self._read(self._add(_Node("output", name)), sources)
        self.end()

    def ended_early(self, calls: Calls) -> bool:
        """Whether a forward went on after the first backward."""
        return self.cut or (self.until is not None and any(not call.missed for call in calls.made[self.until :]))

    def end(self) -> None:
        """Nothing more will be seen."""
        self._losses = []
        self._origins.forget()

    def _add(self, node: _Node) -> int:
        if len(self._nodes) == MOST_NODES:
            raise TooLarge
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _sources(self, tensor: torch.Tensor) -> list[Source]:
        """The nodes that a tensor comes from, each with the shape in which it is there."""
        return self._told(tensor, self._origins.sources(tensor))

    def _told(self, tensor: torch.Tensor, found: list[Source]) -> list[Source]:
        return [(self._node(node), self._spec(tensor) if like is None else like) for node, like in found]

    def _node(self, node: int) -> int:
        """That of a parameter is made when it is first read."""
        if node > _HELD:
            return node
        if node not in self._read_held:
            slot, name = self._held[_HELD - node]
            self._read_held[node] = self._add(_Node("parameter", name, module=slot))
        return self._read_held[node]

    def _joined(self, sources: list[Source]) -> int:
        """A node that stands for all of them, which are more than are told apart."""
        self.joined = True
        node = self._add(_Node("op", "join"))
        self._read(node, [(self._node(source), spec) for source, spec in sources if source != NOWHERE])
        return node

    def _read(self, node: int, sources: Iterable[Source]) -> None:
        made = self._nodes[node]
        for source, spec in sources:
            if source != node:
                # a module reads what it was given in the shape in which it was given
                given = self._given.get(source) if made.kind == "module" else None
                for one in given or (spec,):
                    made.inputs[source, one] = None
                    self._edges += 1
        if self._edges > MOST_EDGES:
            raise TooLarge

    def _spec(self, tensor: torch.Tensor) -> int | None:
        spec = describe(tensor)
        return self._tensors.setdefault(spec, len(self._tensors)) if isinstance(spec, TensorSpec) else None

    def dataflow(self) -> Dataflow:
        """What was seen, without what leads nowhere."""
        kept = self._kept()
        new = {old: place for place, old in enumerate(kept)}
        calls = sorted({c for old in kept for c in self._path(self._nodes[old].call)})
        call_of: dict[int | None, int | None] = {call: place for place, call in enumerate(calls)}
        made = self._calls.made
        return Dataflow(
            calls=tuple([FlowCall(made[c].slot, call_of.get(made[c].caller)) for c in calls]),
            tensors=tuple(self._tensors),
            nodes=tuple(
                [
                    FlowNode(
                        node.kind,
                        node.name,
                        call_of.get(node.call),
                        node.module,
                        node.output,
                        tuple([FlowEdge(new[source], spec) for source, spec in node.inputs if source in new]),
                    )
                    for node in (self._nodes[old] for old in kept)
                ]
            ),
        )

    def _path(self, call: int | None) -> Iterator[int]:
        while call is not None and call != OUTSIDE:
            yield call
            call = self._calls.made[call].caller

    def _kept(self) -> list[int]:
        """The outputs, the modules that data reaches or leaves, and all that flows to them."""
        read = {source for node in self._nodes for source, _ in node.inputs}
        ends = [place for place, node in enumerate(self._nodes) if node.kind == "output"]
        ends += [p for p, node in enumerate(self._nodes) if node.kind == "module" and (node.inputs or p in read)]
        if all(self._nodes[place].kind == "module" for place in ends):  # it has raised
            ends += [place for place, node in enumerate(self._nodes) if node.kind == "op"]
        kept = set(ends)
        while ends:
            for source, _ in self._nodes[ends.pop()].inputs:
                if source not in kept:
                    kept.add(source)
                    ends.append(source)
        return sorted(kept)


def _named(value: Any, kind: str) -> Iterator[tuple[str, Iterable[torch.Tensor]]]:
    """The tensors in what a model is given or gives, by key; by place where there are several without keys.

    Those of very many have one name: each would be looked into anew, and all may lead to the same.
    """
    if issubclass(type(value), dict) and dict.__len__(value) <= _MOST_NAMED:  # its own ``__class__`` may be code
        items = [(text(k) if type(k) is str else kind, item) for k, item in dict.items(value)]
    elif type(value) in (list, tuple) and 1 != len(value) <= _MOST_NAMED:
        items = [(f"{kind} {place}", item) for place, item in enumerate(value)]
    else:
        items = [(kind, value)]
    return ((name, iter_tensors(item)) for name, item in items)
