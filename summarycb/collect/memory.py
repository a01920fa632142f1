"""What is alive: every tensor storage from its making to its freeing, by the row and phase that made it.

A storage is known by a weak reference whose callback takes it off again, so nothing is kept alive. What the forward has
made and is alive as backward begins is what it saved; the largest sum of all that is alive is the peak.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from summarycb.collect.calls import FORWARD, NO_TASK, OUTSIDE, Calls, graph_task, hides_tensors, iter_tensors
from summarycb.collect.modules import Structure, TensorBytes
from summarycb.tree import Phase, add

_STATIC, _PARAMETER, _BATCH, _MADE, _WEIGHT_COPY = "static", "parameter", "batch", "made", "weight copy"


class _Alive(weakref.ref[torch.UntypedStorage]):
    """A weak reference to a live storage, with what is to be known of it when it goes."""

    __slots__ = ("bytes", "key", "kind", "phase", "slot")

    key: int
    bytes: int
    kind: str
    phase: Phase
    slot: int


class Memory:
    """Follows the storages of the step."""

    def __init__(self, structure: Structure, calls: Calls, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self._calls = calls
        self._alive: dict[int, _Alive] = {}
        self._fresh: dict[Any, bool] = {}
        self._task = NO_TASK
        self._seed: int | None = None
        self._live = 0
        self.saved: Counter[int] | None = None
        self.weight_copies: Counter[int] | None = None
        self._saved_total = -1
        self.batch: int | None = 0
        self.peak = 0
        self.peak_at: tuple[int, Phase] = (OUTSIDE, FORWARD)
        for parameter in structure.parameters():
            if not torch.nn.parameter.is_lazy(parameter):
                self._add(parameter, _PARAMETER, OUTSIDE, FORWARD)
                if parameter.grad is not None:
                    self._add(parameter.grad, _STATIC, OUTSIDE, FORWARD)
        for buffer in structure.buffers():
            if not torch.nn.parameter.is_lazy(buffer):
                self._add(buffer, _STATIC, OUTSIDE, FORWARD)
        for optimizer in optimizers:
            for tensor in iter_tensors(list(optimizer.state.values())):
                self._add(tensor, _STATIC, OUTSIDE, FORWARD)

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of an outermost module begins: what it is given and the step did not make is the batch.

        The batch is unknown when an object that cannot be looked into is among the inputs.
        """
        if graph_task() == NO_TASK:
            found = 0
            for tensor in iter_tensors((args, kwargs)):
                found += self._add(tensor, _BATCH, OUTSIDE, FORWARD)
                if not tensor.requires_grad:  # a batch may be made, or moved to its device, within the step
                    found += self._turn_into_batch(tensor)
            self.batch = add(self.batch, None if hides_tensors((args, kwargs)) else found)

    def existed(self, tensors: Iterable[torch.Tensor]) -> None:
        """Tensors that were alive all through the step, as is found only now: they were part of the peak."""
        peak, at = self.peak, self.peak_at
        added = sum(self._add(tensor, _STATIC, OUTSIDE, FORWARD) for tensor in tensors)
        self.peak, self.peak_at = max(self.peak, peak + added), at

    def op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """One operation has run."""
        task = graph_task()
        if task != self._task:
            # a task within a task (a reentrant checkpoint's) is no new backward
            if self._task == NO_TASK:
                self._backward_begins()
            self._task = task
        fresh = self._fresh.get(func)
        if fresh is None:
            fresh = self._fresh[func] = _makes_storage(func)
        if not fresh:
            return
        place: tuple[int, Phase] | None = None
        for tensor in (out,) if isinstance(out, torch.Tensor) else iter_tensors(out):
            if place is None:
                place = self._calls.where()
            kind = _WEIGHT_COPY if func is _TO_COPY and self._is_parameter(args[0]) else _MADE
            self._add(tensor, kind, *place)
        # backward() makes its first gradient, ones like the loss, before it begins: not something the forward saved
        self._seed = out.untyped_storage()._cdata if func is _ONES_LIKE and place == (OUTSIDE, FORWARD) else None

    def _add(self, tensor: torch.Tensor, kind: str, slot: int, phase: Phase) -> int:
        added = 0
        for storage in _storages(tensor):
            key = storage._cdata
            if key in self._alive:
                continue
            alive = _Alive(storage, self._free)
            alive.key, alive.kind, alive.slot, alive.phase = key, kind, slot, phase
            alive.bytes = storage.nbytes()
            self._alive[key] = alive
            self._live += alive.bytes
            added += alive.bytes
        if self._live > self.peak:
            self.peak, self.peak_at = self._live, (slot, phase)
        return added

    def _turn_into_batch(self, tensor: torch.Tensor) -> int:
        turned = 0
        for storage in _storages(tensor):
            alive = self._alive[storage._cdata]
            if alive.kind is _MADE and alive.slot == OUTSIDE:
                alive.kind = _BATCH
                turned += alive.bytes
        return turned

    def _free(self, alive: _Alive) -> None:
        if self._alive.get(alive.key) is alive:
            del self._alive[alive.key]
            self._live -= alive.bytes

    def _is_parameter(self, tensor: torch.Tensor) -> bool:
        return any(
            (alive := self._alive.get(s._cdata)) is not None and alive.kind == _PARAMETER for s in _storages(tensor)
        )

    def _backward_begins(self) -> None:
        saved: Counter[int] = Counter()
        copies: Counter[int] = Counter()
        for alive in list(self._alive.values()):
            if alive.phase == FORWARD and alive.key != self._seed:
                if alive.kind is _MADE:
                    saved[alive.slot] += alive.bytes
                elif alive.kind is _WEIGHT_COPY:
                    copies[alive.slot] += alive.bytes
        # with several backwards in a step (accumulation, two losses) the largest holds
        total = saved.total() + copies.total()
        if total > self._saved_total:
            self._saved_total, self.saved, self.weight_copies = total, saved, copies


_TO_COPY = torch.ops.aten._to_copy.default
_ONES_LIKE = torch.ops.aten.ones_like.default


def _makes_storage(func: Any) -> bool:
    schema = getattr(func, "_schema", None)
    return schema is None or any(returned.alias_info is None for returned in schema.returns)


def _storages(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    """The storages behind a tensor: one, or those of the parts of a sparse, nested or sharded one."""
    local = getattr(tensor, "_local_tensor", None)
    if isinstance(local, torch.Tensor):
        return _storages(local)
    if tensor.layout is torch.strided:
        try:
            return [tensor.untyped_storage()]
        except NotImplementedError:  # within torch.func, a wrapper around the tensor
            wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
            return _storages(torch._C._functorch.get_unwrapped(tensor)) if wrapped else []
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices().untyped_storage(), tensor._values().untyped_storage()]
    if tensor.layout is torch.jagged:
        return [tensor._values.untyped_storage(), tensor._offsets.untyped_storage()]  # type: ignore[attr-defined]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
        return [part.untyped_storage() for part in parts]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
        return [part.untyped_storage() for part in parts]
    return []  # opaque (mkldnn) memory has no storage to follow


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind ``tensors``."""
    return sum({s._cdata: s.nbytes() for tensor in tensors for s in _storages(tensor)}.values())


def _own_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of distinct tensors; of one that is a view into a bucket that others share, its own part."""
    distinct = {id(tensor): tensor for tensor in tensors}.values()
    return sum(
        min(storage_bytes([tensor]), tensor.numel() * tensor.element_size())
        if tensor.layout is torch.strided and not hasattr(tensor, "_local_tensor")
        else storage_bytes([tensor])
        for tensor in distinct
    )


def tensor_bytes(
    structure: Structure,
    optimizers: Sequence[torch.optim.Optimizer] | None,
    idle: Sequence[torch.optim.Optimizer] = (),
) -> TensorBytes:
    """Bytes of each parameter's gradient and optimizer state, from the real objects; ``None`` is no optimizer seen.

    The state is unknown for the parameters of an ``idle`` optimizer, which has not made it yet, and for trainable ones
    that no optimizer seen so far holds.
    """
    found = TensorBytes()
    if optimizers is not None:
        held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
        loose = (p for p in structure.parameters() if p.requires_grad and id(p) not in held)
        found.optimizer_state = {id(p): None for p in loose}
        found.optimizer_state |= {id(p): None for o in idle for group in o.param_groups for p in group["params"]}
    for parameter in structure.parameters():
        if parameter.grad is not None:
            found.gradients[id(parameter)] = _own_bytes([parameter.grad])
        for optimizer in optimizers or ():
            state = optimizer.state.get(parameter)
            if state and found.optimizer_state is not None:
                found.optimizer_state[id(parameter)] = _own_bytes(iter_tensors(state))
    return found
