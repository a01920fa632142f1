"""Which bytes of its storage a tensor has, and how many two tensors of one storage have in common."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple, TypeAlias

import torch

_Dims: TypeAlias = tuple[tuple[int, int], ...]
_MOST_TRIES = 10_000


class Extent(NamedTuple):
    """The bytes from ``start`` to ``stop`` that are reached by the steps of ``dims``, ``bytes`` in number.

    ``dims`` are (stride in bytes, count), the largest stride first; the last is a run of neighbouring bytes. What
    follows each other without a gap is one dimension, so of equal sets of bytes the dims are equal. ``bytes`` is None
    where the steps may reach one byte in several ways.
    """

    start: int
    stop: int
    bytes: int | None
    dims: _Dims


def extent(tensor: torch.Tensor) -> Extent:
    """The bytes of a strided tensor."""
    if tensor.numel() == 0:
        return Extent(0, 0, 0, ())
    size = tensor.element_size()
    dims, reach, apart = [(1, size)], size, True
    for stride, count in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if count > 1 and stride:
            inner, run = dims[-1]
            apart = apart and stride * size >= reach
            reach += stride * size * (count - 1)
            if stride * size == inner * run:
                dims[-1] = (inner, run * count)
            else:
                dims.append((stride * size, count))
    start = int(tensor.storage_offset()) * size
    return Extent(start, start + reach, prod(count for _, count in dims) if apart else None, tuple(reversed(dims)))


def within(part: Extent, whole: Extent) -> bool:
    """Whether all bytes of ``part`` are known to be among those of ``whole``."""
    if part.start < whole.start or part.stop > whole.stop:
        return False
    steps = dict(part.dims)
    offset = part.start - whole.start
    if len(whole.dims) > 1:
        for stride, count in whole.dims:
            at, offset = divmod(offset, stride)
            if at + steps.pop(stride, 1) > count:
                return False
        return not steps
    return True


def without(a: Extent, b: Extent) -> list[Extent]:
    """What ``b`` leaves of ``a``, as far as that can be said: all of it where steps of several bytes are cut."""
    if within(a, b):
        return []
    if len(a.dims) == len(b.dims) == 1 and a.start < b.stop and b.start < a.stop:
        runs = [(a.start, b.start), (b.stop, a.stop)]
        return [Extent(start, stop, stop - start, ((1, stop - start),)) for start, stop in runs if start < stop]
    return [a]


def overlap(a: Extent, b: Extent) -> bool:
    """Whether any byte is in both."""
    if a.stop <= b.start or b.stop <= a.start:
        return False
    return (len(a.dims) == len(b.dims) == 1) or _common(a.dims, b.dims, b.start - a.start, any_=True) > 0


def common(a: Extent, b: Extent) -> int:
    """How many bytes are known to be in both; 0 where either may reach one in several ways."""
    if a.bytes is None or b.bytes is None or a.stop <= b.start or b.stop <= a.start:
        return 0
    return a.bytes if within(a, b) else _common(a.dims, b.dims, b.start - a.start)


@lru_cache(maxsize=65_536)
def _common(a: _Dims, b: _Dims, apart: int, *, any_: bool = False) -> int:
    """In how many ways steps of ``a`` lead as far as ``apart`` and steps of ``b``; with ``any_``, whether in any.

    For 0 <= i < n and 0 <= j < m: sum(i * stride) - sum(j * stride) = apart; a stride is in either or in both. Where
    that is too long to tell, there is one way for ``any_``, and none is counted.
    """
    counts_a, counts_b = dict(a), dict(b)
    strides = sorted(counts_a.keys() | counts_b.keys(), reverse=True)
    terms = [(stride, counts_a.get(stride, 1), counts_b.get(stride, 1)) for stride in strides]
    most = [sum(stride * (n - 1) for stride, n, _ in terms[place:]) for place in range(len(terms) + 1)]
    least = [sum(stride * (1 - m) for stride, _, m in terms[place:]) for place in range(len(terms) + 1)]
    tries, found, stack = 0, 0, [(0, apart, 1)]
    while stack:
        tries += 1
        if tries > _MOST_TRIES:
            return int(any_)
        place, left, ways = stack.pop()
        if place == len(terms):
            found += ways if left == 0 else 0
            if found and any_:
                return 1
            continue
        stride, n, m = terms[place]
        first = max(1 - m, -((most[place + 1] - left) // stride))
        last = min(n - 1, (left - least[place + 1]) // stride)
        for step in range(first, last + 1):
            often = min(n, m + step) - max(0, step)  # i - j is that
            stack += [(place + 1, left - step * stride, ways * often)]
    return found
