"""What is alive: every tensor storage from its making to its freeing, by kind and by the call and phase that made it.

A storage is known by a weak reference whose callback takes it off again, so nothing is kept alive. What the forward has
made and is alive as backward begins is what it saved. The largest sum of all that is alive is noted for each stretch of
the step within one call and phase: the timeline, whose largest is the peak.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Any

import torch

from summarycb.collect.calls import (
    ACCUMULATION,
    FORWARD,
    NO_TASK,
    OPTIMIZER,
    OUTSIDE,
    RECOMPUTE,
    Calls,
    graph_task,
)
from summarycb.collect.inputs import iter_tensors, look_into
from summarycb.collect.modules import Structure
from summarycb.collect.storages import storages
from summarycb.step import KINDS, Phase
from summarycb.tree import add

_PARAMETERS, _BUFFERS, _GRADIENTS, _STATE, _ACTIVATIONS, _COPIES, _BATCH, _TEMPORARIES = range(len(KINDS))
_MOST_STRETCHES = 256
_MOST_INPUTS = 250_000
"""Values that are looked at to find the tensors of a batch."""


class Makes(IntEnum):
    """What an operation does to storages."""

    NOTHING = 0
    NEW = auto()
    ONES = auto()
    """New, and perhaps the first gradient of a backward."""
    COPY = auto()
    """New, and where it is made of a parameter, a copy of a weight."""
    SUM = auto()
    """New, and as a gradient is accumulated, the sum or a copy: the parameter's own."""
    ALIAS = auto()
    """None is made, but this is how a gradient becomes a parameter's."""
    RESIZED = auto()


class _Alive(weakref.ref[torch.UntypedStorage]):
    """A weak reference to a live storage, with what is to be known of it when it goes."""

    __slots__ = ("bytes", "call", "here", "key", "kind", "phase", "since")

    key: int
    bytes: int
    here: bool
    """On the type of device whose timeline is kept."""
    kind: int
    call: int
    phase: Phase
    since: int


@dataclass(slots=True)
class Stretch:
    """A part of the step within one call and phase: the bytes of each kind at ``time``, when most was alive."""

    call: int
    phase: Phase
    high: int
    kinds: list[int]
    time: int
    merged: int = 1


class Memory:
    """Follows the storages of the step."""

    def __init__(self, structure: Structure, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self._structure = structure
        self._alive: dict[int, _Alive] = {}
        self._seed: int | None = None
        self._time = 0
        self._live = 0
        self._kinds = [0] * len(KINDS)
        self.saved: Counter[int] | None = None
        self.weight_copies: Counter[int] | None = None
        self._saved_total = -1
        self.backwards = 0
        self.batch: int | None = 0
        parameters = list(structure.parameters())
        self._device = parameters[0].device.type if parameters else "cpu"
        # sharded parameters are gathered into storages that are emptied and filled without an operation
        self._resizes = structure.flattened or any(hasattr(p, "_local_tensor") for p in parameters)
        self._lazy = any(map(torch.nn.parameter.is_lazy, parameters))
        self._allocator = Allocator(parameters)
        for parameter in parameters:
            if not torch.nn.parameter.is_lazy(parameter):
                self._follow(parameter, _PARAMETERS, OUTSIDE, FORWARD)
                if parameter.grad is not None:
                    self._follow(parameter.grad, _GRADIENTS, OUTSIDE, FORWARD)
        for buffer in structure.buffers():
            if not torch.nn.parameter.is_lazy(buffer):
                self._follow(buffer, _BUFFERS, OUTSIDE, FORWARD)
        for optimizer in optimizers:
            for tensor in iter_tensors(list(optimizer.state.values())):
                self._follow(tensor, _STATE, OUTSIDE, FORWARD)
        self.timeline: list[Stretch] = []
        self._stride = 1
        self._now = self._stretch(OUTSIDE, FORWARD)

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A call of an outermost module begins: what it is given and the step did not make is the batch.

        The batch is unknown when what cannot be looked into, or has no storage to follow, is among the inputs.
        """
        if graph_task() != NO_TASK:
            return
        found = 0
        tensors, whole = look_into((args, kwargs), _MOST_INPUTS)
        with torch._C.DisableTorchFunctionSubclass():  # a subclass may answer with code of its own
            for tensor in tensors:
                whole = whole and bool(storages(tensor))
                found += self._follow(tensor, _BATCH, OUTSIDE, FORWARD)
                if tensor.is_leaf:  # a batch may be made, or moved to its device, within the step
                    found += sum(self._turn(a, _BATCH) for a in self._made(tensor, _ACTIVATIONS) if a.call == OUTSIDE)
        self.batch = add(self.batch, found if whole else None)
        self._note(OUTSIDE, FORWARD)

    def existed(self, tensors: Iterable[torch.Tensor]) -> None:
        """Optimizer state that was alive all through the step, as is found only now."""
        before = self._live
        for tensor in tensors:
            self._follow(tensor, _STATE, OUTSIDE, FORWARD)
        for stretch in (*self.timeline, self._now):
            stretch.high += self._live - before
            stretch.kinds[_STATE] += self._live - before

    def steps(self) -> None:
        """An optimizer is about to step: what its parameters hold as gradients, put there by whatever, are these."""
        for parameter in self._structure.parameters():
            if parameter.grad is not None:
                for alive in self._made(parameter.grad, _TEMPORARIES):
                    self._turn(alive, _GRADIENTS)

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped: what it made and keeps is its state."""
        for tensor in iter_tensors(list(optimizer.state.values())):
            for alive in self._made(tensor, _TEMPORARIES):
                self._turn(alive, _STATE)
            self._follow(tensor, _STATE, OUTSIDE, OPTIMIZER)  # a counter, which no operation has made

    def op(self, makes: Makes, place: tuple[int, Phase], args: tuple[Any, ...], out: Any) -> None:
        """An operation that makes storages, or may, has run."""
        call, phase = place
        if makes is Makes.ALIAS:
            if call == ACCUMULATION:
                for alive in self._made(out, _TEMPORARIES):
                    self._turn(alive, _GRADIENTS)
            return
        if call == ACCUMULATION and makes is Makes.SUM:
            kind = _GRADIENTS
        elif phase in (FORWARD, RECOMPUTE):
            kind = _COPIES if makes is Makes.COPY and any(self._made(args[0], _PARAMETERS)) else _ACTIVATIONS
        else:
            kind = _TEMPORARIES
        added = 0
        for tensor in (out,) if isinstance(out, torch.Tensor) else iter_tensors(out):
            if makes is Makes.RESIZED:
                self._measure(a for s in storages(tensor) if (a := self._alive.get(s._cdata)) is not None)
            added += self._follow(tensor, kind, call, phase)
        # backward() makes its first gradient, ones like the loss, before it begins: not something the forward saved
        self._seed = out.untyped_storage()._cdata if makes is Makes.ONES and place == (OUTSIDE, FORWARD) else None
        if added or makes is Makes.RESIZED:
            self._note(call, phase)

    def backward_begins(self) -> None:
        """The autograd engine starts, on nothing that is running in it already."""
        self._claim()
        if self._seed in self._alive:
            self._turn(self._alive[self._seed], _TEMPORARIES)
        saved: Counter[int] = Counter()
        copies: Counter[int] = Counter()
        for alive in list(self._alive.values()):
            if alive.phase == FORWARD:
                if alive.kind == _ACTIVATIONS:
                    saved[alive.call] += alive.bytes
                elif alive.kind == _COPIES:
                    copies[alive.call] += alive.bytes
        # with several backwards in a step (accumulation, two losses) the largest holds
        self.backwards += 1
        total = saved.total() + copies.total()
        if total > self._saved_total:
            self._saved_total, self.saved, self.weight_copies = total, saved, copies

    def _claim(self) -> None:
        """What the modules hold now is theirs: lazy parameters, new buffers, weights that were gathered."""
        if self._resizes:
            self._measure(list(self._alive.values()))
        held = list(self._structure.parameters()) if self._resizes or self._lazy else []
        if self._resizes:
            held += [whole for p in held if (whole := getattr(p, "_full_param_padded", None)) is not None]  # of FSDP1
        for parameter in held:
            if not torch.nn.parameter.is_lazy(parameter):
                for alive in self._made(parameter, _ACTIVATIONS):
                    self._turn(alive, _COPIES if self._resizes else _PARAMETERS)
        for buffer in self._structure.buffers():
            if not torch.nn.parameter.is_lazy(buffer):
                for alive in self._made(buffer, _ACTIVATIONS):
                    self._turn(alive, _BUFFERS)

    @property
    def phase(self) -> Phase:
        """That of the last operation that has changed what is alive."""
        return self._now.phase

    def now(self) -> list[int]:
        """The bytes that are alive, by kind."""
        return self._kinds.copy()

    def holders(self, calls: Calls, optimizers: Sequence[torch.optim.Optimizer]) -> Counter[int]:
        """The bytes that are alive, by row: that which owns the weight or made the tensor."""
        owner: dict[int, int] = {}
        for slot, node in enumerate(self._structure.nodes):
            for tensor in node.tensors():
                state = [optimizer.state.get(tensor) for optimizer in optimizers]
                for held in (tensor, *iter_tensors([tensor.grad, *state])):
                    for storage in () if torch.nn.parameter.is_lazy(held) else storages(held):
                        owner.setdefault(storage._cdata, slot)
        held_bytes: Counter[int] = Counter()
        for alive in list(self._alive.values()):
            if alive.here:
                held_bytes[owner.get(alive.key, calls.slot(alive.call))] += alive.bytes
        return held_bytes

    def end(self) -> None:
        """The step is over: the timeline gets what is alive now, and the allocator is asked for its peak."""
        self._close()
        self._claim()
        self._now = self._stretch(OUTSIDE, self._now.phase)
        self._close()
        self.allocator_peak = self._allocator.peak()
        self._alive.clear()  # their callbacks hold this, and this the modules

    def _follow(self, tensor: torch.Tensor, kind: int, call: int, phase: Phase) -> int:
        """The bytes of what was not known yet behind a tensor."""
        added = 0
        for storage in storages(tensor):
            key = storage._cdata
            if key in self._alive:
                continue
            here = tensor.is_cpu if self._device == "cpu" else tensor.device.type == self._device
            alive = self._alive[key] = _Alive(storage, self._free)
            alive.key, alive.kind, alive.call, alive.phase = key, kind, call, phase
            alive.bytes = size = storage.nbytes()
            self._time += 1
            alive.since = self._time
            added += size
            alive.here = here
            if here:
                self._live += size
                self._kinds[kind] += size
        return added

    def _free(self, alive: _Alive) -> None:
        if self._alive.get(alive.key) is alive:
            del self._alive[alive.key]
            if alive.here:
                self._live -= alive.bytes
                self._kinds[alive.kind] -= alive.bytes

    def _made(self, tensor: torch.Tensor, kind: int) -> list[_Alive]:
        """The storages behind a tensor, those of one kind."""
        found = [self._alive.get(storage._cdata) for storage in storages(tensor)]
        return [alive for alive in found if alive is not None and alive.kind == kind]

    def _turn(self, alive: _Alive, kind: int) -> int:
        """A storage turns out to be of another kind. Returns its bytes."""
        if alive.here:
            for kinds in (self._kinds, self._now.kinds) if alive.since <= self._now.time else (self._kinds,):
                kinds[alive.kind] -= alive.bytes
                kinds[kind] += alive.bytes
        alive.kind = kind
        return alive.bytes

    def _measure(self, found: Iterable[_Alive]) -> None:
        """Storages may have another size than they had."""
        for alive in found:
            storage = alive()
            if storage is not None and storage.nbytes() != alive.bytes:
                self._time += 1
                alive.since = self._time
                change = storage.nbytes() - alive.bytes
                alive.bytes += change
                if alive.here:
                    self._live += change
                    self._kinds[alive.kind] += change

    def _stretch(self, call: int, phase: Phase) -> Stretch:
        return Stretch(call, phase, self._live, self._kinds.copy(), self._time)

    def _note(self, call: int, phase: Phase) -> None:
        now = self._now
        if now.call != call or now.phase != phase:
            self._close()
            if self._resizes:
                self._measure(list(self._alive.values()))
            self._now = self._stretch(call, phase)
        elif self._live > now.high:
            now.high, now.kinds, now.time = self._live, self._kinds.copy(), self._time

    def _close(self) -> None:
        """Keep the stretch that has ended, or merge it with its neighbour, so that there are never too many."""
        if self.timeline and self.timeline[-1].merged < self._stride:
            self.timeline[-1] = _merged(self.timeline[-1], self._now)
        else:
            self.timeline.append(self._now)
        if len(self.timeline) > _MOST_STRETCHES:
            pairs = iter(self.timeline[:-1])
            self.timeline = [*[_merged(a, b) for a, b in zip(pairs, pairs, strict=True)], self.timeline[-1]]
            self._stride *= 2


def _merged(first: Stretch, second: Stretch) -> Stretch:
    larger = second if second.high > first.high else first
    larger.merged = first.merged + second.merged
    return larger


class Allocator:
    """What the allocator of the one accelerator that holds the parameters says: its peak during the step."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        devices = {p.device for p in parameters}
        self._device = devices.pop() if len(devices) == 1 and {d.type for d in devices} == {"cuda"} else None
        self._before = self._stats()

    def peak(self) -> int | None:
        """Bytes, rounded as the allocator rounds; None without one, or when the peak was before the step.

        The peak is not reset as the step begins, because the training may ask for it too.
        """
        after = self._stats()
        return after if after is not None and self._before is not None and after > self._before else None

    def _stats(self) -> int | None:
        return None if self._device is None else int(torch.cuda.max_memory_allocated(self._device))


_MAKES = {
    torch.ops.aten.ones_like.default: Makes.ONES,
    torch.ops.aten._to_copy.default: Makes.COPY,
    torch.ops.aten.add.Tensor: Makes.SUM,
    torch.ops.aten.clone.default: Makes.SUM,
    torch.ops.aten.new_empty_strided.default: Makes.SUM,  # a copy in the layout of the parameter
    torch.ops.aten.detach.default: Makes.ALIAS,
    torch.ops.aten.lift_fresh.default: Makes.NEW,  # of torch.tensor, whose own making is not seen
    torch.ops.aten.resize_.default: Makes.RESIZED,
}


def makes(func: Any) -> Makes:
    """What an operation does to storages, by its schema."""
    schema = getattr(func, "_schema", None)
    new = schema is None or any(returned.alias_info is None for returned in schema.returns)
    if schema is not None and any(argument.is_out for argument in schema.arguments):
        return Makes.RESIZED
    return _MAKES.get(func, Makes.NEW if new else Makes.NOTHING)
