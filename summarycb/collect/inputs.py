"""What goes into a call and comes out of it: shapes in their own nesting, and the tensors in there.

A value is looked into without running a word of its own code: the items that Python's containers hold, and the
``__dict__`` and slots of an object. No property, ``__getattr__`` or ``__iter__`` is called, no iterator is consumed.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import re
import types
import weakref
from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain, islice
from typing import Any, NamedTuple

import torch

from summarycb.collect.modules import class_name, dtype_name, text
from summarycb.specs import Nested, Opaque, Spec, TensorSpec, spec_text

_MAX_NESTING = 8
_MAX_ITEMS = 64
_MAX_VALUES = 1_000
"""Values that one description looks at, those in every nesting together."""
_MAX_KEY = 200

_END = object()
_POINTER = tuple.__itemsize__


def _ids(*kinds: Any) -> frozenset[int]:
    """Types are looked up by id: a set of them would call the ``__hash__`` and ``__eq__`` of a user's metaclass."""
    return frozenset(map(id, kinds))


_PLAIN = _ids(
    *(types.NoneType, bool, int, float, complex, str, bytes, bytearray, range, type, types.ModuleType),
    *(datetime.date, datetime.time, datetime.datetime, datetime.timedelta, datetime.timezone),
    *(decimal.Decimal, re.Pattern, weakref.ref, *weakref.ProxyTypes),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator),
)
"""Types of values that hold no tensor. A weak reference holds nothing."""
_SEQUENCES = (list, tuple, torch.Size, set, frozenset, deque)
_KNOWN = _PLAIN | _ids(object, dict, OrderedDict, defaultdict, *_SEQUENCES)
"""Types all of whose state is looked into, or is no tensor."""
_FOREIGN = {("tokenizers", "Encoding")}
"""Types that are known by name to hold no tensor: of a ``BatchEncoding``."""

_Named = Iterable[tuple[object, object]]
_Specs = tuple[tuple[str, Spec], ...]


class _Held(NamedTuple):
    """What a value holds."""

    items: _Named | None = None
    """By key, field or position; None where it is no container."""
    positions: int | None = None
    """How many items there are, where they have no names."""
    attributes: _Named = ()
    whole: bool = True
    """Nothing else is in there that could be a tensor."""


@lru_cache(maxsize=4096)
def _tensor_spec(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> TensorSpec:
    return TensorSpec(tuple(map(int, shape)), dtype_name(dtype), str(device))


def _tensor(value: torch.Tensor) -> Spec:
    kind = type(value)
    if (kind is torch.Tensor or kind is torch.nn.Parameter) and not value.is_nested:
        return _tensor_spec(value.shape, value.dtype, value.device)
    with torch._C.DisableTorchFunctionSubclass():  # a subclass may answer with code of its own
        if not value.is_nested:
            return _tensor_spec(value.shape, value.dtype, value.device)
        # its ragged size is no number, that of its parts is
        if value.layout is torch.jagged:
            parts = {"values": value._values, "offsets": value._offsets}  # type: ignore[attr-defined]
        else:
            parts = {"values": value.detach().values(), "sizes": value._nested_tensor_size()}
        return Nested("NestedTensor", tuple((name, _tensor(part)) for name, part in parts.items()))


def describe_call(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Spec:
    """A tuple when all arguments are positional, else a mapping by position and keyword."""
    if not kwargs:
        return describe(args)
    return Nested("arguments", _Description().named(chain(enumerate(args), kwargs.items())))


def describe(value: Any) -> Spec:
    """The shapes in ``value``, in its own nesting; anything unknown is its type name. Never raises, always bounded.

    Of an object the fields of a dataclass and the attributes that hold tensors are shown; of one without tensors the
    type name. Where a private attribute alone holds any, as ``_store`` of a ``torch_geometric.data.Data``, what it
    holds is shown in its place.
    """
    kind = type(value)
    try:  # tensors alone, as in nearly all calls, need no walk
        if kind is torch.Tensor and not value.is_nested:
            return _tensor_spec(value.shape, value.dtype, value.device)
        if kind is tuple and len(value) <= _MAX_ITEMS:
            plain = [t for t in value if type(t) is torch.Tensor and not t.is_nested]
            if len(plain) == len(value):
                return tuple([_tensor_spec(t.shape, t.dtype, t.device) for t in plain])
    except Exception:  # a mode of the user's answers for the tensor
        return Opaque(class_name(kind))
    return _Description().spec(value)


def look_into(value: object, most: int | None = None) -> tuple[list[torch.Tensor], bool]:
    """The tensors that are reached from ``value``, and whether there can be no others.

    All of them are known where only tensors, Python's containers and plain values, and objects of classes that are
    written in Python are reached, by items and attributes: an object without tensors, as a configuration, is no
    obstacle. Classes, Python modules and functions without a closure are code, which holds no data. There may be others
    in all else: a ``torch.nn.Module``, a generator or iterator, a closure, an object with state that Python does not
    see, such as a NumPy array; and where there are more than ``most`` values.
    """
    tensors: list[torch.Tensor] = []
    whole = True
    looked_into: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind is torch.Tensor or issubclass(kind, torch.Tensor):
            tensors.append(value)  # type: ignore[arg-type]
            continue
        if id(kind) in _PLAIN or id(value) in looked_into:
            continue
        looked_into.add(id(value))
        try:
            found: list[object]
            if kind is tuple or kind is list:
                found = value[:most]  # type: ignore[index]
                whole = whole and len(found) == len(value)  # type: ignore[arg-type]
            else:
                held = _look(value, kind)
                values = (item for _, item in chain(held.items or (), held.attributes))
                found = list(islice(values, most))
                whole = whole and held.whole and next(values, _END) is _END
        except Exception:  # a container that another thread writes to
            whole = False
            continue
        if most is not None:
            most -= len(found)
        waiting.extend(reversed(found))
    return tensors, whole


def iter_tensors(value: object) -> Iterable[torch.Tensor]:
    """The tensors that are reached from ``value``."""
    return look_into(value)[0]


class _Description:
    """One walk over a value, and how far it has come."""

    left = _MAX_VALUES
    tensors = 0
    around: tuple[int, ...] = ()
    """The ids of the values around the one that is looked at."""

    def spec(self, value: Any) -> Spec:
        if value is None:
            return None
        kind = type(value)
        self.left -= 1
        around = self.around
        try:
            if issubclass(kind, torch.Tensor):
                spec = _tensor(value)
                self.tensors += 1
                return spec
            if id(kind) not in _PLAIN and len(around) < _MAX_NESTING and id(value) not in around:
                self.around = (*around, id(value))
                spec = self._row(value, len(value)) if kind is tuple or kind is list else self._held(value, kind)
                self.around = around
                return spec
        except Exception:  # a subclass of Tensor without a shape, a container that another thread writes to
            self.around = around
        return Opaque(class_name(kind)[:_MAX_KEY])

    def named(self, items: _Named, tensors_only: bool = False) -> _Specs:
        found: list[tuple[str, Spec]] = []
        for name, value in items:
            if len(found) == _MAX_ITEMS or self.left <= 0:
                return (*found, ("…", Opaque("more"))) if found or not tensors_only else ()
            before = self.tensors
            spec = self.spec(value)
            if self.tensors > before or not tensors_only:
                found.append((_key(name), spec))
        return tuple(found)

    def _row(self, items: Iterable[object], length: int) -> tuple[Spec, ...]:
        found: list[Spec] = []
        for item in items:
            if len(found) == _MAX_ITEMS or self.left <= 0:
                return (*found, Opaque(f"{length - len(found)} more"))
            found.append(self.spec(item))
        return tuple(found)

    def _held(self, value: object, kind: type) -> Spec:
        held, before = _look(value, kind), self.tensors
        type_name = class_name(kind)[:_MAX_KEY]
        if held.positions is not None:
            row = self._row((item for _, item in held.items or ()), held.positions)
            if issubclass(kind, (set, frozenset)):  # in no order of its own
                row = (*sorted(row[:_MAX_ITEMS], key=spec_text), *row[_MAX_ITEMS:])
            attributes = self.named(held.attributes, tensors_only=True)
            return Nested(type_name, (*((str(i), s) for i, s in enumerate(row)), *attributes)) if attributes else row
        items = self.named(held.items or ())
        attributes = self.named(held.attributes, tensors_only=True)
        if issubclass(kind, (dict, tuple)):
            return Nested(type_name, (*items, *attributes))
        if self.tensors == before:
            return Opaque(type_name)
        if held.items is not None:
            return Nested(type_name, (*items, *attributes))
        (name, only), *others = attributes
        inner = name.startswith("_") or (name == "data" and any(base is UserDict for base in kind.__mro__))
        return Nested(type_name, only.items_ if inner and not others and isinstance(only, Nested) else attributes)


def _look(value: Any, kind: type) -> _Held:
    """What a value holds, as Python itself keeps it."""
    if kind is dict:
        return _Held(value.items())
    if issubclass(kind, type):
        return _Held()
    if issubclass(kind, torch.nn.Module):
        return _Held(whole=False)
    if kind is slice:
        return _Held(attributes=[("start", value.start), ("stop", value.stop), ("step", value.step)])
    if kind is types.FunctionType:
        return _Held(whole=value.__closure__ is None)
    state = _state(kind)
    whole = id(state) in _KNOWN or (state.__module__, state.__qualname__) in _FOREIGN
    whole = whole and (_dict(kind) is not None or not kind.__dictoffset__)
    attributes = attributes_of(value)
    if issubclass(state, dict):
        shown = set(map(id, dict.values(value)))  # a ModelOutput has its items as attributes too
        others = [(name, held) for name, held in attributes if id(held) not in shown]
        return _Held(dict.items(value), None, others, whole)
    if issubclass(state, _SEQUENCES):
        length = state.__len__(value)
        names = next(_of_class(kind, "_fields"), None) if state is tuple else None
        if names is not None and len(names) == length:
            return _Held(zip(names, tuple.__iter__(value), strict=True), None, attributes, whole)
        return _Held(enumerate(state.__iter__(value)), length, attributes, whole)
    fields = next(_of_class(kind, "__dataclass_fields__"), None)
    if fields is not None:
        own = dict(attributes)
        items = [(name, own.pop(name)) for name in fields if name in own]
        return _Held(items, None, own.items(), whole)
    return _Held(attributes=attributes, whole=whole)


def _state(kind: type) -> type:
    """The type whose state an object has besides its ``__dict__`` and slots: ``object`` where there is none."""
    while id(kind) not in _KNOWN:
        base = kind.__base__
        assert base is not None
        added = len(_slots(kind))
        added += kind.__dictoffset__ != 0 == base.__dictoffset__
        added += kind.__weakrefoffset__ != 0 == base.__weakrefoffset__
        if kind.__basicsize__ > base.__basicsize__ + added * _POINTER:
            break
        kind = base
    return kind


def _slots(kind: type) -> list[types.MemberDescriptorType]:
    """Those that a class adds itself."""
    own = kind.__dict__
    return [m for m in own.values() if type(m) is types.MemberDescriptorType] if "__slots__" in own else []


def attributes_of(value: object) -> Iterator[tuple[object, object]]:
    """The slots of an object and what is in its ``__dict__``."""
    kind = type(value)
    for base in reversed(kind.__mro__):
        for slot in _slots(base):
            with contextlib.suppress(AttributeError):  # it has not been set
                yield slot.__name__, slot.__get__(value)
    held = _dict(kind)
    if held is not None:
        yield from dict.items(held.__get__(value))


def _dict(kind: type) -> Any:
    """What reads the ``__dict__`` of an object, and is not a property of that name."""
    descriptors = (types.GetSetDescriptorType, types.MemberDescriptorType)
    return next((held for held in _of_class(kind, "__dict__") if type(held) in descriptors), None)


def _of_class(kind: type, name: str) -> Iterator[Any]:
    """What a class and its bases have by a name, the nearest first."""
    return (base.__dict__[name] for base in kind.__mro__ if name in base.__dict__)


def _key(name: Any) -> str:
    """A name or a number; any other key may be a tensor, or an object whose text is data."""
    kind = type(name)
    if issubclass(kind, str):
        return text(str.__str__(name)[:_MAX_KEY])
    if kind is bool or (issubclass(kind, int) and int.bit_length(name) <= 64):
        return repr(name) if kind is bool else int.__repr__(name)
    return class_name(kind)[:_MAX_KEY]
