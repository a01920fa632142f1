"""What is known of one tensor, parameter or buffer, and of the inputs and outputs of a call. Must not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What is known of a tensor without its values: shape, dtype (``"float32"``) and device (``"cuda:0"``)."""

    shape: tuple[int, ...]
    dtype: str
    device: str

    def __str__(self) -> str:
        return f"{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value that is neither a tensor nor a container of any, shown by its type name alone."""

    type_name: str

    def __str__(self) -> str:
        return self.type_name


@dataclass(frozen=True, slots=True, eq=False)
class Nested(Mapping[str, "Spec"]):
    """Named values: a dict, a dataclass, a namedtuple, a ``ModelOutput``, or the arguments of a call with keywords.

    It reads as a mapping, ``m.outputs["logits"].shape``, and equals a dict with the same items. Two of them are equal
    when their types and the order of their items are too.
    """

    type_name: str
    items_: tuple[tuple[str, Spec], ...]

    def __getitem__(self, key: str) -> Spec:
        for name, value in self.items_:
            if name == key:
                return value
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.items_)

    def __len__(self) -> int:
        return len(self.items_)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Nested):
            return (self.type_name, self.items_) == (other.type_name, other.items_)
        return Mapping.__eq__(self, other)

    def __hash__(self) -> int:
        return hash((self.type_name, self.items_))

    def __str__(self) -> str:
        return "{" + ", ".join(f"{name}: {spec_text(value)}" for name, value in self.items_) + "}"


Spec: TypeAlias = TensorSpec | Nested | Opaque | tuple["Spec", ...] | None
"""The real nesting of a call's inputs or outputs, tensors as :class:`TensorSpec`; lists and tuples are tuples."""


def spec_text(spec: Spec) -> str:
    """A spec on one line: ``[2, 3]``, ``([2, 3], None)``, ``{logits: [2, 10]}``, ``([2, 3] ×12)``."""
    if not isinstance(spec, tuple):
        return str(spec)
    said: list[str] = []
    for text, same in groupby(map(spec_text, spec)):
        times = len(list(same))
        said += [text] * times if times < _MANY else [f"{text} ×{times}"]
    return f"({', '.join(said)}{',' * (len(spec) == 1)})"


_MANY = 3
"""So many equal items beside each other are told once: the keys and values of each layer, the states of each step."""


def sole(inputs: Spec) -> Spec:
    """The one thing that was given, where it was given by its position; else all of it."""
    return inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs


def tensors_of(spec: Spec) -> Iterator[TensorSpec]:
    """The tensors in a spec, in order."""
    if isinstance(spec, TensorSpec):
        yield spec
    elif isinstance(spec, tuple | Nested):
        for part in spec.values() if isinstance(spec, Nested) else spec:
            yield from tensors_of(part)


class _Held:
    __slots__ = ()
    shape: tuple[int, ...] | None
    local_shape: tuple[int, ...] | None
    bytes: int | None

    @property
    def shape_text(self) -> str:
        """``[2, 3]``, or ``?`` of a lazy parameter."""
        return "?" if self.shape is None else str(list(self.shape))

    @property
    def numel(self) -> int | None:
        """Elements, globally."""
        return None if self.shape is None else prod(self.shape)

    @property
    def local_numel(self) -> int | None:
        """Elements on this rank."""
        return self.numel if self.local_shape is None else prod(self.local_shape)

    @property
    def local_bytes(self) -> int | None:
        """Bytes on this rank."""
        if self.local_shape is None or not self.bytes or not self.numel:
            return self.bytes
        return self.bytes // self.numel * prod(self.local_shape)


@dataclass(frozen=True, slots=True)
class ParameterSpec(_Held):
    """A parameter as its module holds it.

    ``shape`` and ``bytes`` are global; ``local_shape`` is set only where a rank holds a part. ``shape`` is None while a
    lazy parameter has none. ``shared_with`` is the full name of the same tensor in the module that owns it: it counts
    there, not here. ``gradient`` and ``optimizer_state`` are the bytes of the real objects, on this rank.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    device: str
    trainable: bool
    bytes: int | None
    local_shape: tuple[int, ...] | None = None
    shared_with: str | None = None
    gradient: int | None = None
    optimizer_state: int | None = None


@dataclass(frozen=True, slots=True)
class BufferSpec(_Held):
    """A buffer as its module holds it; the fields mean what they mean in :class:`ParameterSpec`."""

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    device: str
    persistent: bool
    bytes: int | None
    local_shape: tuple[int, ...] | None = None
    shared_with: str | None = None
