"""What flows where in the forward, until the first backward begins.

Of every storage the node that wrote it last is known, by a weak reference to the storage, so nothing is kept alive, and
of parts that were written since, which bytes. A view is of the same storage, hence data passes through it by itself,
and what is written in place is read by all who read these bytes. Where a module gives back no more than a view of what
it was given, that tensor is known to come from the module.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from summarycb.collect.calls import OUTSIDE, Calls
from summarycb.collect.extents import Extent, extent, overlap, within
from summarycb.collect.inputs import describe, iter_tensors
from summarycb.collect.kinds import Kind, operands
from summarycb.collect.modules import Structure, text
from summarycb.collect.storages import in_one_storage, storages
from summarycb.dataflow import MOST_EDGES, MOST_NODES, Dataflow, FlowCall, FlowEdge, FlowKind, FlowNode
from summarycb.specs import TensorSpec

_NOWHERE = -1
"""The node of what a module's forward made of nothing: zeros, positions, noise."""
_HELD = -1
"""Below this are the nodes of the parameters and buffers that nothing has read yet."""
_OPEN = -1
"""The owner of a call whose operations are nodes of their own."""


_BEFORE = -1
"""The time of what was there before the step."""
MOST_PARTS = 1_000
"""Of one storage, that are told apart."""


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


class _Origin(weakref.ref[Any]):
    """A storage, or a tensor that comes from another node than its storage: the node and when it wrote.

    ``parts`` are those of a storage that were written since, the latest last.
    """

    __slots__ = ("key", "node", "parts", "time")

    key: int
    node: int
    time: int
    parts: list[_Part]


@dataclass(slots=True)
class _Part:
    node: int
    time: int
    extent: Extent
    spec: int | None


class Flow:
    """Follows the tensors of the step from node to node."""

    def __init__(self, structure: Structure, calls: Calls) -> None:
        self._calls = calls
        parents = {node.parent for node in structure.nodes} | {0}
        self._is_leaf = [slot not in parents for slot in range(len(structure.nodes))]
        self._nodes: list[_Node] = []
        self._edges = 0
        self._held: list[tuple[int, str]] = []
        self._tensors: dict[TensorSpec, int] = {}
        self._storages: dict[int, _Origin] = {}
        self._views: dict[int, _Origin] = {}
        self._kinds: dict[int, Kind] = {}
        self._owners: dict[int, int] = {}
        self._given: dict[int, list[int | None]] = {}
        self._given_ids: set[int] = set()
        self._time = 0
        self._loss: tuple[list[tuple[int, int | None]], int | None] | None = None
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
                        self._held.append((slot, text(name)))
                        self._wrote(tensor, _HELD - len(self._held))

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A module's forward has begun."""
        call = self._calls.current
        if call in self._owners:  # what is wrapped is called within its wrapper's call
            return
        made = self._calls.made[call]
        owner = self._owners.get(made.caller, _OPEN)
        if owner == _OPEN and self._is_leaf[made.slot]:
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
            for tensor in tensors:
                for storage in storages(tensor):
                    if id(tensor) in self._views:
                        continue
                    known = self._storages.get(storage._cdata)
                    if known is not None and known.node >= 0 and self._nodes[known.node].kind == "input":
                        self._nodes[known.node].name = self._nodes[known.node].name or name
                    elif known is None and _is_part(tensor, storage):  # another part may be the targets
                        self._know(self._views, tensor, id(tensor), self._add(_Node("input", name)))
                    elif known is None or known.node == _NOWHERE:
                        self._know(self._storages, storage, storage._cdata, self._add(_Node("input", name)))

    def exit(self, output: object) -> None:
        """A module's forward returns."""
        call = self._calls.current
        owner = self._owners.get(call, _OPEN)
        if owner == _OPEN:
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
                    self._know(self._views, tensor, id(tensor), owner)

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
        self._time += 1
        for tensor, node in returned:
            self._wrote(tensor, node)

    def op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """An operation has run, in no backward."""
        kind = self._kinds.get(id(func))
        if kind is None:
            kind = self._kinds[id(func)] = Kind(func)
        if kind.views:
            if self._views and (known := self._views.get(id(args[0]))) is not None:
                for view in operands((out,)):
                    self._know(self._views, view, id(view), known.node).time = known.time
            return
        call = self._calls.current
        owner = self._owners.get(call, _OPEN)
        self._time += 1
        if owner != _OPEN:
            for tensor in kind.reads(args, kwargs):
                if not self._is_of(owner, tensor):
                    self._read(owner, self._sources(tensor))
            for tensor in kind.writes(args, kwargs, out):
                self._wrote(tensor, owner)
            return
        read = kind.reads(args, kwargs)
        if call == OUTSIDE:
            self._loss = None
            if not any(s._cdata in self._storages for tensor in read for s in storages(tensor)):
                return  # how a batch is made: it is there, as an input, when the model gets it
            if kind.ones:  # backward() makes its first gradient like the loss
                self._loss = self._sources(args[0]), self._spec(args[0])
        sources = [source for tensor in read for source in self._sources(tensor)]
        made = kind.writes(args, kwargs, out)
        if not sources:
            node = _NOWHERE
        elif kind.copies and len(sources) == 1:
            node = sources[0][0]
        else:
            spec = self._spec(made[0]) if len(made) == 1 else None
            node = self._add(_Node("op", kind.name, None if call == OUTSIDE else call, output=spec))
            self._read(node, sources)
        for tensor in made:
            self._wrote(tensor, node)

    def backward_begins(self) -> None:
        """What ran before is the dataflow."""
        self.until, self.cut = len(self._calls.made), self._calls.depth > 0
        if self._loss is not None and not self.cut:
            sources, loss = self._loss
            if any(self._nodes[source].kind != "output" for source, _ in sources):
                self._read(self._add(_Node("output", "loss")), [(source, loss) for source, _ in sources])
        self.end()

    def ended_early(self, calls: Calls) -> bool:
        """Whether a forward went on after the first backward."""
        return self.cut or (self.until is not None and any(not call.missed for call in calls.made[self.until :]))

    def end(self) -> None:
        """Nothing more will be seen."""
        self._loss = None
        self._storages.clear()
        self._views.clear()

    def _add(self, node: _Node) -> int:
        if len(self._nodes) == MOST_NODES:
            raise TooLarge
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _know(self, table: dict[int, _Origin], what: Any, key: int, node: int) -> _Origin:
        known = table.get(key)
        if known is None:
            known = table[key] = _Origin(what, self._forget_storage if table is self._storages else self._forget_view)
        known.key, known.node, known.time, known.parts = key, node, self._time, []
        return known

    def _forget_storage(self, gone: _Origin) -> None:
        if self._storages.get(gone.key) is gone:
            del self._storages[gone.key]

    def _forget_view(self, gone: _Origin) -> None:
        if self._views.get(gone.key) is gone:
            del self._views[gone.key]

    def _is_of(self, node: int, tensor: torch.Tensor) -> bool:
        """Whether nothing but this node has written it, as most of what a module reads."""
        if id(tensor) in self._views:
            return False
        known = [self._storages.get(storage._cdata) for storage in storages(tensor)]
        return all(origin is not None and origin.node == node and not origin.parts for origin in known)

    def _sources(self, tensor: torch.Tensor) -> list[tuple[int, int | None]]:
        """The nodes that a tensor comes from, each with the shape in which it is there. Of most tensors it is one."""
        view = self._views.get(id(tensor)) if self._views else None
        found: dict[int, int | None] = {}
        for storage in storages(tensor):
            known = self._storages.get(storage._cdata)
            if known is None:
                if view is not None:
                    found.setdefault(view.node, self._spec(tensor))
                    continue
                known = self._know(self._storages, storage, storage._cdata, self._add(_Node("input")))
                known.time = _BEFORE
            whole = known if view is None or view.time < known.time else view
            for writer, spec in self._writers(tensor, known.parts, whole) if known.parts else ((whole, None),):
                if writer.node < _HELD:
                    slot, name = self._held[_HELD - 1 - writer.node]
                    writer.node = self._add(_Node("parameter", name, module=slot))
                if writer.node != _NOWHERE and writer.node not in found:
                    found[writer.node] = self._spec(tensor) if spec is None else spec
        return list(found.items())

    def _writers(
        self, tensor: torch.Tensor, parts: list[_Part], whole: _Origin
    ) -> list[tuple[_Origin | _Part, int | None]]:
        """Who wrote what a tensor reads, in order, and the shape of the parts that are smaller than it.

        ``whole`` is not among them if the parts that were written since are known to leave nothing of it; that is
        not known of parts that overlap in part.
        """
        if not in_one_storage(tensor):
            return [(whole, None), *[(part, part.spec) for part in parts]]
        read = extent(tensor)
        left = read.bytes
        found: list[tuple[_Origin | _Part, int | None]] = []
        seen: list[Extent] = []
        for part in reversed(parts):
            if left <= 0 or part.time <= whole.time:
                break
            if not overlap(part.extent, read):
                continue
            if within(read, part.extent):
                left = 0
                found.append((part, None))
            else:
                if within(part.extent, read) and not any(overlap(part.extent, later) for later in seen):
                    left -= part.extent.bytes
                seen.append(part.extent)
                found.append((part, part.spec))
        if left > 0:
            found.append((whole, None))
        return found[::-1]

    def _read(self, node: int, sources: Iterable[tuple[int, int | None]]) -> None:
        made = self._nodes[node]
        for source, spec in sources:
            if source != node and source >= 0:
                # a module reads what it was given in the shape in which it was given
                given = self._given.get(source) if made.kind == "module" else None
                for one in given or (spec,):
                    made.inputs[source, one] = None
                    self._edges += 1
        if self._edges > MOST_EDGES:
            raise TooLarge

    def _wrote(self, tensor: torch.Tensor, node: int) -> None:
        for storage in storages(tensor):
            known = self._storages.get(storage._cdata)
            if known is not None and node >= 0:
                if known.node == node and not known.parts:
                    continue
                if self._nodes[node].kind == "module" and self._holds(known.node):
                    continue
            if not _is_part(tensor, storage):
                self._know(self._storages, storage, storage._cdata, node)
                continue
            if known is None:  # the other parts are from before the step, or other parameters
                rest = _NOWHERE if node < _HELD else self._add(_Node("input"))
                known = self._know(self._storages, storage, storage._cdata, rest)
                known.time = _BEFORE
            written = extent(tensor)
            known.parts = [part for part in known.parts if not within(part.extent, written)]
            known.parts.append(_Part(node, self._time, written, self._spec(tensor)))
            if len(known.parts) > MOST_PARTS:
                self.joined = True
                join = self._add(_Node("op", "join"))
                self._read(join, [(known.node, None), *[(part.node, part.spec) for part in known.parts]])
                self._know(self._storages, storage, storage._cdata, join)

    def _holds(self, node: int) -> bool:
        """A layer's own statistics, which it updates for later steps."""
        return node < _HELD or (node != _NOWHERE and self._nodes[node].kind == "parameter")

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


def _is_part(tensor: torch.Tensor, storage: torch.UntypedStorage) -> bool:
    """Whether other tensors may be in the same storage."""
    return in_one_storage(tensor) and tensor.numel() * tensor.element_size() != storage.nbytes()


def _named(value: Any, kind: str) -> Iterator[tuple[str, Iterable[torch.Tensor]]]:
    """The tensors in what a model is given or gives, by key; by place where there are several without keys."""
    if issubclass(type(value), dict):  # a value's own ``__class__`` may be code
        items = [(text(k) if type(k) is str else kind, item) for k, item in dict.items(value)]
    elif type(value) in (list, tuple) and len(value) != 1:
        items = [(f"{kind} {place}", item) for place, item in enumerate(value)]
    else:
        items = [(kind, value)]
    return ((name, iter_tensors(item)) for name, item in items)
