"""The structure: which modules there are, under which path, and which tensors they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod

import torch
from torch import nn

from summarycb.specs import BufferSpec, ParameterSpec

_DISTRIBUTED = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
}
# A wrapper's type name -> the attribute that holds the user's module. The wrapper and what it wraps are one row, at the
# wrapper's path, so that a path is what it would be without it.
WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    **_DISTRIBUTED,
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
    "_FabricModule": "_forward_module",
}
_MAX_CONFIG = 200


@dataclass
class Node:
    """A row of the summary in the making. ``modules``: the wrappers, outermost first, then the user's module."""

    path: str
    name: str
    parent: int | None
    modules: list[nn.Module]
    alias_of: int | None = None

    @property
    def module(self) -> nn.Module:
        """The user's module."""
        return self.modules[-1]

    def tensors(self) -> list[torch.Tensor]:
        """The parameters and buffers that are held here, and in no other row before."""
        modules = self.modules if self.alias_of is None else []
        held = [tensor for m in modules for tensor in (*m._parameters.values(), *m._buffers.values())]
        return [tensor for tensor in held if tensor is not None]


@dataclass
class Structure:
    """Nodes in definition order, and the row of every module object."""

    nodes: list[Node] = field(default_factory=list)
    slot_of: dict[int, int] = field(default_factory=dict)
    children: int = 0

    def modules(self) -> Iterator[nn.Module]:
        """Every module object once, wrappers too."""
        for node in self.nodes:
            if node.alias_of is None:
                yield from node.modules

    @property
    def flattened(self) -> bool:
        """Whether parameters are parts of flat ones, as FSDP1 makes them: their own sizes are not to be had."""
        wrappers = (wrapper for node in self.nodes for wrapper in node.modules[:-1])
        return any("FullyShardedDataParallel" in _names(type(wrapper)) for wrapper in wrappers)

    @property
    def strategy(self) -> str | None:
        """What makes the model a distributed one, as far as its modules tell."""
        kinds = {name for kind in {type(module) for module in self.modules()} for name in _names(kind)}
        return next((name for name in (*_DISTRIBUTED, "FSDPModule") if name in kinds), None)

    def changed(self) -> bool:
        """Whether modules were added or taken away since."""
        children = [child for module in self.modules() for child in module._modules.values() if child is not None]
        return len(children) != self.children or any(id(child) not in self.slot_of for child in children)

    def parameters(self) -> Iterator[torch.Tensor]:
        """Every parameter, as often as a module holds it."""
        return (p for module in self.modules() for p in module._parameters.values() if p is not None)

    def buffers(self) -> Iterator[torch.Tensor]:
        """Every buffer, as often as a module holds it."""
        return (b for module in self.modules() for b in module._buffers.values() if b is not None)


def every(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` and the modules in it, each once: not ``model.modules()``, which a model may have overridden."""
    seen: set[int] = set()
    stack = [model]
    while stack:
        module = stack.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield module
            stack.extend(child for child in reversed(module._modules.values()) if child is not None)


def walk(model: nn.Module) -> Structure:
    """The structure of ``model``; a module registered twice is a leaf in the second place, so cycles end."""
    structure = Structure()
    stack: list[tuple[nn.Module, str, str, int | None]] = [(model, "", "", None)]
    while stack:
        module, path, name, parent = stack.pop()
        slot = len(structure.nodes)
        owner = structure.slot_of.get(id(module))
        structure.nodes.append(Node(path, name, parent, [module], owner))
        if owner is not None:
            continue
        chain = structure.nodes[slot].modules
        structure.slot_of[id(module)] = slot
        while (inner := _wrapped(chain[-1])) is not None and id(inner) not in structure.slot_of:
            chain.append(inner)
            structure.slot_of[id(inner)] = slot
        stack.extend(
            (child, f"{path}.{child_name}" if path else child_name, child_name, slot)
            for child_name, child in ((text(name), child) for name, child in reversed(chain[-1]._modules.items()))
            if child is not None
        )
    structure.children = sum(child is not None for m in structure.modules() for child in m._modules.values())
    return structure


def _wrapped(module: nn.Module) -> nn.Module | None:
    for kind in type(module).__mro__:
        if (name := class_name(kind)) in WRAPPERS:
            return module._modules.get(WRAPPERS[name])
    return None


@dataclass
class Held:
    """What one node holds, read from the live objects."""

    type_name: str
    config: str
    training: bool | None
    parameters: tuple[ParameterSpec, ...]
    buffers: tuple[BufferSpec, ...]


class TensorBytes:
    """Bytes of gradients and optimizer state by ``id`` of the parameter; the parameters are alive while it is used."""

    def __init__(self) -> None:
        self.gradients: dict[int, int] = {}
        self.optimizer_state: dict[int, int | None] | None = None


def describe(structure: Structure, tensor_bytes: TensorBytes | None) -> list[Held]:
    """What each node holds; shared tensors belong to the first node in definition order."""
    owners: dict[int, str] = {}
    held = [_held(node, owners, tensor_bytes) for node in structure.nodes]
    if structure.flattened:
        for facts in held:
            parts = [replace(p, shape=None, bytes=None, local_shape=p.shape) for p in facts.parameters]
            facts.parameters = tuple(parts)
    return held


def _held(node: Node, owners: dict[int, str], tensor_bytes: TensorBytes | None) -> Held:
    parameters: list[ParameterSpec] = []
    buffers: list[BufferSpec] = []
    # an alias shows no tensors: they are its owner's
    for module in node.modules if node.alias_of is None else ():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                shared = _shared(parameter, node, name, owners)
                parameters.append(_parameter(text(name), parameter, shared, tensor_bytes))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                shared = _shared(buffer, node, name, owners)
                persistent = name not in module._non_persistent_buffers_set
                size = _bytes(buffer)
                buffers.append(BufferSpec(text(name), *_where(buffer), persistent, size, _local_shape(buffer), shared))
    return Held(
        type_name(node.module),
        config(node.module),
        training(node.module),
        tuple(parameters),
        tuple(buffers),
    )


def _shared(tensor: torch.Tensor, node: Node, name: str, owners: dict[int, str]) -> str | None:
    full_name = f"{node.path}.{text(name)}" if node.path else text(name)
    owner = owners.setdefault(id(tensor), full_name)
    return None if owner == full_name else owner


def _parameter(
    name: str, parameter: torch.Tensor, shared: str | None, tensor_bytes: TensorBytes | None
) -> ParameterSpec:
    gradient = state = None
    if tensor_bytes is not None:
        gradient = tensor_bytes.gradients.get(id(parameter), 0)
        if tensor_bytes.optimizer_state is not None:
            state = tensor_bytes.optimizer_state.get(id(parameter), 0)
    return ParameterSpec(
        name,
        *_where(parameter),
        parameter.requires_grad,
        _bytes(parameter),
        _local_shape(parameter),
        shared,
        gradient,
        state,
    )


def _where(tensor: torch.Tensor) -> tuple[tuple[int, ...] | None, str, str]:
    shape = None if nn.parameter.is_lazy(tensor) else tuple(tensor.shape)
    return shape, dtype_name(tensor.dtype), _device_name(tensor.device)


_device_name = cache(str)


def _bytes(tensor: torch.Tensor) -> int | None:
    # not ``numel()`` and ``element_size()``, which a subclass may have overridden
    return None if nn.parameter.is_lazy(tensor) else prod(tensor.shape) * tensor.dtype.itemsize


def _local_shape(tensor: torch.Tensor) -> tuple[int, ...] | None:
    local = getattr(tensor, "_local_tensor", None)  # a DTensor's part on this rank
    return tuple(local.shape) if isinstance(local, torch.Tensor) else None


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def type_name(module: nn.Module) -> str:
    """The class name; the user's own where FSDP2 or a parametrization has made a class for this one module."""
    own, *bases = _names(type(module))
    if "FSDPModule" in bases or "parametrizations" in module._modules:
        return next(name for name in bases if name != "FSDPModule")
    return own


def _names(kind: type) -> list[str]:
    return [class_name(base) for base in kind.__mro__]


class_name: Callable[[type], str] = type.__dict__["__name__"].__get__
"""``cls.__name__``, whatever a metaclass has made of that."""


def text(name: object) -> str:
    """``name`` as UTF-8 can hold it: half of a surrogate pair is written out as an escape."""
    return str(name).encode(errors="backslashreplace").decode()


def training(module: nn.Module) -> bool | None:
    """The flag, None where a module of the user's has made something else of it."""
    try:
        flag = module.training
    except Exception:  # user code
        return None
    return flag if isinstance(flag, bool) else None


def config(module: nn.Module) -> str:
    """The module's ``extra_repr`` on one line, without what may be a path, and nothing of one that writes out tensors.

    Whatever it raises, the summary goes on without it.
    """
    try:
        settings = " ".join(module.extra_repr().split())
    except Exception:  # user code
        return ""
    if "tensor(" in settings or "containing:" in settings:
        return ""
    settings = ", ".join(setting for setting in settings.split(", ") if "/" not in setting and "\\" not in setting)
    return text(settings if len(settings) <= _MAX_CONFIG else settings[: _MAX_CONFIG - 1] + "…")
