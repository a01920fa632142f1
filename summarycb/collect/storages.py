"""The memory behind tensors: their storages, and the bytes of real objects, each storage once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from summarycb.collect.inputs import attributes_of, iter_tensors
from summarycb.collect.modules import Structure, TensorBytes

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def storages(tensor: torch.Tensor) -> Sequence[torch.UntypedStorage]:
    """The storages behind a tensor: one, or those of the parts of a sparse, nested, sharded or wrapped one."""
    if type(tensor) in _PLAIN:
        try:
            return (tensor.untyped_storage(),)
        except NotImplementedError:  # sparse or opaque, or within torch.func a wrapper around the tensor
            pass
    local = getattr(tensor, "_local_tensor", None)
    if isinstance(local, torch.Tensor):
        return storages(local)
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return storages(torch._C._functorch.get_unwrapped(tensor))
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
        try:
            return [s for p in _parts(tensor) for s in ([p.untyped_storage()] if p is tensor else storages(p))]
        except NotImplementedError:  # a subclass that keeps its values elsewhere
            return []


def in_one_storage(tensor: torch.Tensor) -> bool:
    """Whether its shape and strides say where in its only storage its elements are."""
    return (
        type(tensor) in _PLAIN
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _parts(tensor: Any) -> tuple[torch.Tensor, ...]:
    if hasattr(type(tensor), "__tensor_flatten__"):  # a wrapper: its own storage has a size, but no memory
        return tuple(part for _, part in attributes_of(tensor) if isinstance(part, torch.Tensor))
    if tensor.layout is torch.strided:
        return (tensor,)
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return ()  # opaque (mkldnn) memory has no storage to follow


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind ``tensors``."""
    return sum({s._cdata: s.nbytes() for tensor in tensors for s in storages(tensor)}.values())


def _own_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of distinct tensors; of one that is a view into a bucket that others share, its own part."""
    distinct = {id(tensor): getattr(tensor, "_local_tensor", tensor) for tensor in tensors}.values()
    return sum(
        min(storage_bytes([tensor]), tensor.numel() * tensor.element_size())
        if tensor.layout is torch.strided
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
