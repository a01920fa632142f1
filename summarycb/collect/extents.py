"""Which bytes of its storage a tensor has, and whether two tensors of one storage have any in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple, TypeAlias

import torch

_Dims: TypeAlias = tuple[tuple[int, int], ...]
_MOST_TRIES = 10_000


class Extent(NamedTuple):
    """The bytes from ``start`` to ``stop`` that are reached by the steps of ``dims``, ``bytes`` in number.

    ``dims`` are (stride in bytes, count), the largest stride first; the last is a run of neighbouring bytes. What
    follows each other without a gap is one dimension, so of equal sets of bytes the dims are equal.
    """

    start: int
    stop: int
    bytes: int
    dims: _Dims


def extent(tensor: torch.Tensor) -> Extent:
    """The bytes of a strided tensor."""
    if tensor.numel() == 0:
        return Extent(0, 0, 0, ())
    size = tensor.element_size()
    dims = [(1, size)]
    for stride, count in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if count > 1 and stride:
            inner, run = dims[-1]
            if stride * size == inner * run:
                dims[-1] = (inner, run * count)
            else:
                dims.append((stride * size, count))
    start = int(tensor.storage_offset()) * size
    stop = start + 1 + sum(stride * (count - 1) for stride, count in dims)
    return Extent(start, stop, prod(count for _, count in dims), tuple(reversed(dims)))


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


def overlap(a: Extent, b: Extent) -> bool:
    """Whether any byte is in both."""
    if a.stop <= b.start or b.stop <= a.start:
        return False
    return (len(a.dims) == len(b.dims) == 1) or _meet(a.dims, b.dims, b.start - a.start)


@lru_cache(maxsize=65_536)
def _meet(a: _Dims, b: _Dims, apart: int) -> bool:
    """Whether steps of ``a`` lead as far as ``apart`` and steps of ``b``: for 0 <= i < n and 0 <= j < m,

    sum(i * stride) - sum(j * stride) = apart; with m - 1 - j for j it is a sum of positive terms alone.
    """
    most: Counter[int] = Counter()
    for stride, count in (*a, *b):
        most[stride] += count - 1
    terms = sorted(most.items(), reverse=True)
    return _reaches(terms, apart + sum(stride * (count - 1) for stride, count in b))


def _reaches(terms: Sequence[tuple[int, int]], target: int) -> bool:
    """Whether multiples of the terms, each up to its most, sum to ``target``; so where that is too long to tell."""
    rest = [sum(stride * most for stride, most in terms[place:]) for place in range(len(terms) + 1)]
    tries, stack = 0, [(0, target)]
    while stack and tries < _MOST_TRIES:
        tries += 1
        place, left = stack.pop()
        if left == 0:
            return True
        if place < len(terms):
            stride, most = terms[place]
            fewest = max(0, -((rest[place + 1] - left) // stride))
            stack += [(place + 1, left - n * stride) for n in range(fewest, min(most, left // stride) + 1)]
    return bool(stack)
