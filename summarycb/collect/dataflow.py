"""What flows where in the forward, until the first backward begins.

Of every storage the node that wrote it last is known, by a weak reference to the storage, so nothing is kept alive. A
view is of the same storage, hence data passes through it by itself, and what is written in place is read by all. Where
a module gives back no more than a view of what it was given, that tensor is known to come from the module.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from summarycb.collect.calls import OUTSIDE, Calls
from summarycb.collect.inputs import describe, iter_tensors
from summarycb.collect.modules import Structure, text
from summarycb.collect.storages import storages
from summarycb.dataflow import MOST_NODES, Dataflow, FlowCall, FlowEdge, FlowKind, FlowNode
from summarycb.specs import TensorSpec

_NOWHERE = -1
"""The node of what a module's forward made of nothing: zeros, positions, noise."""
_OPEN = -1
"""The owner of a call whose operations are nodes of their own."""


class TooManyNodes(Exception):
    """More than are kept."""


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

    ``held`` is the module and the name of a parameter or buffer that nothing has read yet.
    """

    __slots__ = ("held", "key", "node", "time")

    key: int
    node: int
    time: int
    held: tuple[int, str] | None


class Flow:
    """Follows the tensors of the step from node to node."""

    def __init__(self, structure: Structure, calls: Calls) -> None:
        self._calls = calls
        parents = {node.parent for node in structure.nodes} | {0}
        self._is_leaf = [slot not in parents for slot in range(len(structure.nodes))]
        self._nodes: list[_Node] = []
        self._tensors: dict[TensorSpec, int] = {}
        self._storages: dict[int, _Origin] = {}
        self._views: dict[int, _Origin] = {}
        self._kinds: dict[int, _Kind] = {}
        self._owners: dict[int, int] = {}
        self._given: dict[int, list[int | None]] = {}
        self._given_ids: set[int] = set()
        self._time = 0
        self._loss: tuple[list[int], int | None] | None = None
        self.until: int | None = None
        """How many module calls there were before the first backward, which ends this."""
        self.cut = False
        """That backward ran within a module's forward."""
        seen: set[int] = set()
        for slot, node in enumerate(structure.nodes):
            for module in node.modules if node.alias_of is None else ():
                for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                    if tensor is not None and not torch.nn.parameter.is_lazy(tensor) and id(tensor) not in seen:
                        seen.add(id(tensor))
                        self._hold(tensor, (slot, text(name)))

    def _hold(self, tensor: torch.Tensor, held: tuple[int, str]) -> None:
        for storage in storages(tensor):
            if storage._cdata not in self._storages:
                self._know(self._storages, storage, storage._cdata, _NOWHERE).held = held
            else:  # several in one storage, as an RNN's on an accelerator
                self._know(self._views, tensor, id(tensor), _NOWHERE).held = held

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
                for source in self._sources(tensor):
                    self._given.setdefault(source, []).append(self._spec(tensor))
        elif made.slot == 0 and made.caller == OUTSIDE:
            self._is_given(_named(args[0] if len(args) == 1 and not kwargs else [*args], "input"))
            self._is_given(_named(dict(kwargs), "input"))
        self._owners[call] = owner

    def _is_given(self, inputs: Iterable[tuple[str, Iterable[torch.Tensor]]]) -> None:
        """The model's own forward begins with these."""
        for name, tensors in inputs:
            for storage in [s for tensor in tensors for s in storages(tensor)]:
                known = self._storages.get(storage._cdata)
                if known is None or (known.node == _NOWHERE and known.held is None):
                    self._know(self._storages, storage, storage._cdata, self._add(_Node("input", name)))
                elif self._nodes[known.node].kind == "input":
                    self._nodes[known.node].name = self._nodes[known.node].name or name

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
                if sources == [owner] or id(tensor) in self._given_ids or isinstance(tensor, torch.nn.Parameter):
                    continue  # what it has not touched does not come from it
                self._read(owner, sources, tensor)
                self._know(self._views, tensor, id(tensor), owner)

    def _is_returned(self, outputs: Iterable[tuple[str, Iterable[torch.Tensor]]]) -> None:
        """The model's own forward returns these: what is then made of them is made of the output."""
        returned = []
        for name, tensors in outputs:
            found = [(tensor, sources) for tensor in tensors if (sources := self._sources(tensor))]
            if found:
                node = self._add(_Node("output", name))
                for tensor, sources in found:
                    self._read(node, sources, tensor)
                    if all(self._nodes[source].kind in ("module", "op") for source in sources):
                        returned.append((tensor, node))
        self._time += 1
        for tensor, node in returned:
            self._wrote(tensor, node)

    def op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """An operation has run, in no backward."""
        kind = self._kinds.get(id(func))
        if kind is None:
            kind = self._kinds[id(func)] = _Kind(func)
        if kind.views:
            if self._views and (known := self._views.get(id(args[0]))) is not None:
                for view in _operands(out):
                    self._know(self._views, view, id(view), known.node).time = known.time
            return
        call = self._calls.current
        owner = self._owners.get(call, _OPEN)
        read = [] if kind.makes else [*_operands(args), *(_operands(kwargs.values()) if kwargs else ())]
        if call == OUTSIDE:
            self._loss = None
            known_storages = self._storages
            if not any(s._cdata in known_storages for tensor in read for s in storages(tensor)):
                return  # how a batch is made: it is there, as an input, when the model gets it
            if kind.ones:  # backward() makes its first gradient like the loss
                self._loss = self._sources(args[0]), self._spec(args[0])
        results = list(_operands(out))
        self._time += 1
        if owner == _OPEN and kind.copies:
            passed = self._copied(kind.name, call, *read[::-1])
            for tensor in results:
                self._wrote(tensor, passed[0] if passed else _NOWHERE)
            return
        sources = [self._sources(tensor) for tensor in read]
        if owner == _OPEN and any(sources):
            made = self._spec(results[0]) if len(results) == 1 else None
            owner = self._add(_Node("op", kind.name, None if call == OUTSIDE else call, output=made))
        if owner != _OPEN:
            for found, tensor in zip(sources, read, strict=True):
                self._read(owner, found, tensor)
        results += _operands([args[p] if isinstance(p, int) else kwargs[p] for p in kind.writes(args, kwargs)])
        for tensor in results:
            self._wrote(tensor, _NOWHERE if owner == _OPEN else owner)

    def _copied(self, name: str, call: int, given: torch.Tensor, into: torch.Tensor | None = None) -> list[int]:
        """Data passes through a copy; one into a part of something joins the two."""
        sources = self._sources(given)
        if into is None or into.numel() * into.element_size() == sum(s.nbytes() for s in storages(into)):
            return sources
        before = self._sources(into)
        if not before or not sources or before == sources:
            return sources or before
        node = self._add(_Node("op", name, None if call == OUTSIDE else call))
        self._read(node, before, into)
        self._read(node, sources, given)
        return [node]

    def backward_begins(self) -> None:
        """What ran before is the dataflow."""
        self.until, self.cut = len(self._calls.made), self._calls.depth > 0
        if self._loss is not None and not self.cut:
            sources, loss = self._loss
            if any(self._nodes[source].kind != "output" for source in sources):
                node = self._nodes[self._add(_Node("output", "loss"))]
                node.inputs |= dict.fromkeys([(source, loss) for source in sources])
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
            raise TooManyNodes
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _know(self, table: dict[int, _Origin], what: Any, key: int, node: int) -> _Origin:
        known = table.get(key)
        if known is None:
            known = table[key] = _Origin(what, lambda gone: table.pop(key) if table.get(key) is gone else None)
        known.key, known.node, known.time, known.held = key, node, self._time, None
        return known

    def _sources(self, tensor: torch.Tensor) -> list[int]:
        """The nodes that a tensor comes from: one, or none, but for a tensor of several storages."""
        view = self._views.get(id(tensor)) if self._views else None
        found: list[int] = []
        for storage in storages(tensor):
            known = self._storages.get(storage._cdata)
            if known is None:  # from before the step
                known = self._know(self._storages, storage, storage._cdata, self._add(_Node("input")))
            if view is not None and view.time >= known.time:
                known = view
            if known.held is not None:
                slot, name = known.held
                known.node, known.held = self._add(_Node("parameter", name, module=slot)), None
            if known.node != _NOWHERE and known.node not in found:
                found.append(known.node)
        return found

    def _read(self, node: int, sources: Iterable[int], tensor: torch.Tensor) -> None:
        made = self._nodes[node]
        for source in sources:
            if source != node:
                # a module reads what it was given in the shape in which it was given
                given = self._given.get(source) if made.kind == "module" else None
                for spec in given or [self._spec(tensor)]:
                    made.inputs[source, spec] = None

    def _wrote(self, tensor: torch.Tensor, node: int) -> None:
        for storage in storages(tensor):
            known = self._storages.get(storage._cdata)
            if known is None:
                self._know(self._storages, storage, storage._cdata, node)
            elif not (node != _NOWHERE and self._nodes[node].kind == "module" and self._is_held(known)):
                known.node, known.time, known.held = node, self._time, None

    def _is_held(self, known: _Origin) -> bool:
        """A layer's own statistics, which it updates for later steps."""
        return known.held is not None or (known.node != _NOWHERE and self._nodes[known.node].kind == "parameter")

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


class _Kind:
    """What an operation does with data, by its schema."""

    def __init__(self, func: Any) -> None:
        self.func = func  # kept, so that its id remains its own
        schema = getattr(func, "_schema", None)
        arguments = [] if schema is None else schema.arguments
        self._writes = [
            argument.name if argument.kwarg_only else place
            for place, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        returns = [] if schema is None else schema.returns
        name = str(func) if schema is None else schema.name.partition("::")[2]
        self.name = _NAMES.get(name) or name.removeprefix("_").removeprefix("native_").removesuffix("_forward")
        if "scaled_dot_product" in name:
            self.name = "sdpa"
        aliases = bool(returns) and not self._writes and all(returned.alias_info is not None for returned in returns)
        lifts = name == "lift_fresh"  # of torch.tensor, whose own making is not seen
        self.views = (aliases and not lifts) or name in ("_unsafe_view", "_reshape_alias")
        self.copies = name in ("clone", "_to_copy", "copy_")
        self.ones = name == "ones_like"
        self.makes = not self.ones and (
            lifts
            or name.endswith("_like")
            or name.startswith("new_")
            or (schema is not None and not any("Tensor" in str(argument.type) for argument in arguments))
        )

    def writes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[int | str]:
        """What it writes to, of what it was called with."""
        return [p for p in self._writes if (p < len(args) if isinstance(p, int) else p in kwargs)]


_NAMES = {
    "constant_pad_nd": "pad",
    "addmm": "linear",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "nll_loss_forward": "nll_loss",
    "nll_loss2d_forward": "nll_loss",
    "convolution": "conv",
}


def _operands(values: Any) -> Iterator[torch.Tensor]:
    """The tensors among the arguments or results of an operation."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _operands(values.values())
    elif isinstance(values, Iterable) and not isinstance(values, (str, bytes)):
        for value in values:
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, (list, tuple, dict)):
                yield from _operands(value)


def _named(value: Any, kind: str) -> Iterator[tuple[str, Iterable[torch.Tensor]]]:
    """The tensors in what a model is given or gives, by key; by place where there are several without keys."""
    if issubclass(type(value), dict):  # a value's own ``__class__`` may be code
        items = [(text(k) if type(k) is str else kind, item) for k, item in dict.items(value)]
    elif type(value) in (list, tuple) and len(value) != 1:
        items = [(f"{kind} {place}", item) for place, item in enumerate(value)]
    else:
        items = [(kind, value)]
    return ((name, iter_tensors(item)) for name, item in items)
