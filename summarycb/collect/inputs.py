"""What goes into a call and comes out of it: shapes in their own nesting, and the tensors in there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import lru_cache

import torch

from summarycb.collect.modules import dtype_name
from summarycb.specs import Nested, Opaque, Spec, TensorSpec

_MAX_NESTING = 8
_MAX_ITEMS = 64
_MAX_KEY = 200
_PLAIN = (bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, slice, range)


@lru_cache(maxsize=4096)
def _tensor_spec(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> TensorSpec:
    return TensorSpec(tuple(map(int, shape)), dtype_name(dtype), str(device))


def describe_call(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Spec:
    """A tuple when all arguments are positional, else a mapping by position and keyword."""
    if not kwargs:
        return describe(args)
    named = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    return _nested("arguments", named.items(), 0)


def describe(value: object, nesting: int = 0) -> Spec:
    """The shapes in ``value``, in its own nesting; anything unknown is its type name. Never raises."""
    if value is None:
        return None
    kind = type(value)
    if isinstance(value, torch.Tensor):
        try:
            if value.is_nested:  # its ragged size is no number, that of its parts is
                parts = {"values": value._values, "offsets": value._offsets}  # type: ignore[attr-defined]
                return _nested(kind.__name__, parts.items(), nesting)
            return _tensor_spec(value.shape, value.dtype, value.device)
        except Exception:  # a subclass without a shape, a nested one without parts
            return Opaque(kind.__name__)
    if nesting >= _MAX_NESTING:
        return Opaque(kind.__name__)
    try:
        if isinstance(value, (list, tuple)):
            names = getattr(value, "_fields", None)
            if names is not None:
                return _nested(kind.__name__, zip(names, value, strict=True), nesting)
            items = [describe(item, nesting + 1) for item in value[:_MAX_ITEMS]]
            if len(value) > _MAX_ITEMS:
                items.append(Opaque(f"{len(value) - _MAX_ITEMS} more"))
            return tuple(items)
        if isinstance(value, Mapping):
            return _nested(kind.__name__, value.items(), nesting)
        if dataclasses.is_dataclass(value):
            fields = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
            return _nested(kind.__name__, fields, nesting)
    except Exception:  # a container of the user's whose own methods fail
        return Opaque(kind.__name__)
    return Opaque(kind.__name__)


def iter_tensors(value: object, nesting: int = 0) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples, mappings and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif nesting < _MAX_NESTING:
        for item in _items(value) or ():
            yield from iter_tensors(item, nesting + 1)


def hides_tensors(value: object, nesting: int = 0) -> bool:
    """Whether a value, or one nested in it, is an object that :func:`iter_tensors` cannot look into."""
    if value is None or isinstance(value, (torch.Tensor, *_PLAIN)):
        return False
    items = _items(value) if nesting < _MAX_NESTING else None
    return items is None or any(hides_tensors(item, nesting + 1) for item in items)


def _items(value: object) -> list[object] | None:
    """What a container holds; None when it is none, or its own methods fail."""
    try:
        if isinstance(value, Mapping):
            return list(value.values())
        if isinstance(value, (list, tuple)):
            return list(value)
        if dataclasses.is_dataclass(value):
            return [getattr(value, f.name) for f in dataclasses.fields(value)]
    except Exception:  # a container of the user's
        return None
    return None


def _nested(kind: str, items: object, nesting: int) -> Nested:
    found: list[tuple[str, Spec]] = []
    for name, value in items:  # type: ignore[attr-defined]
        if len(found) == _MAX_ITEMS:
            found.append(("…", Opaque("more")))
            break
        # a key may be a tensor, or any object whose text is data
        key = str(name) if isinstance(name, (str, int)) else type(name).__name__
        found.append((key[:_MAX_KEY], describe(value, nesting + 1)))
    return Nested(kind, tuple(found))
