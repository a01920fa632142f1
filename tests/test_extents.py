"""Which bytes two views of one storage have in common, against the sets of their elements."""

from __future__ import annotations

import random

import pytest
import torch

from summarycb.collect.extents import Extent, common, extent, overlap, within, without


def view_of(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    """A view, made by up to four slices with steps, selections and transpositions."""
    choice = random.Random(seed)
    for _ in range(choice.randint(1, 4)):
        if tensor.dim() == 0:
            break
        dim = choice.randrange(tensor.dim())
        start = choice.randrange(tensor.shape[dim])
        stop = choice.randint(start + 1, tensor.shape[dim])
        kind = choice.random()
        if kind < 0.6:
            tensor = tensor[(slice(None),) * dim + (slice(start, stop, choice.choice([1, 1, 2, 3])),)]
        elif kind < 0.75:
            tensor = tensor.select(dim, start)
        elif kind < 0.9:
            tensor = tensor.transpose(0, dim)
        else:
            tensor = tensor.unsqueeze(0).expand(2, *tensor.shape)
    return tensor


@pytest.mark.parametrize("shape", [(24,), (4, 6), (3, 4, 5), (2, 3, 4, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16], ids=str)
def test_two_views_of_one_storage(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """``overlap`` and ``common`` are exact. ``within`` is never wrong, and seldom does not know."""
    base, places = torch.zeros(shape, dtype=dtype), torch.arange(torch.Size(shape).numel()).view(shape)
    inside = known = 0
    for seed in range(0, 2_000, 2):
        (a, b) = (set(view_of(places, seed + k).flatten().tolist()) for k in range(2))
        (of_a, of_b) = (extent(view_of(base, seed + k)) for k in range(2))
        assert (of_a.bytes, of_b.bytes) == (len(a) * dtype.itemsize, len(b) * dtype.itemsize)
        assert overlap(of_a, of_b) is not a.isdisjoint(b)
        assert common(of_a, of_b) == len(a & b) * dtype.itemsize
        left = without(of_a, of_b)
        assert left == [of_a] or sum(run.bytes or 0 for run in left) == len(a - b) * dtype.itemsize
        inside += a <= b
        known += within(of_a, of_b)
        assert a <= b or not within(of_a, of_b)
    assert known > 0.9 * inside > 0


def test_views_of_other_types_share_bytes() -> None:
    """Four floats, as 16 bytes: bytes 4 to 7 are the second float."""
    floats = torch.zeros(4)
    second = floats[1:2]
    assert extent(second) == Extent(4, 8, 4, ((1, 4),))
    assert [overlap(extent(second), extent(floats.view(torch.int8)[at : at + 1])) for at in (3, 4, 7, 8)] == [
        False, True, True, False
    ]  # fmt: skip


def test_steps_that_reach_a_byte_twice() -> None:
    """Windows of two floats at each of the first four: how many bytes they have is not said, and none are counted."""
    windows = extent(torch.zeros(6)[:5].unfold(0, 2, 1))
    assert windows == Extent(0, 20, None, ((4, 4), (1, 8)))
    assert common(windows, extent(torch.zeros(6))) == 0
    assert overlap(windows, extent(torch.zeros(6)[4:]))


def test_neighbours_are_one_dimension_and_nothing_overlaps_nothing() -> None:
    """The rows of a contiguous tensor follow each other; a column of it steps by a row of 3 floats, 12 bytes."""
    table = torch.zeros(2, 3)
    assert extent(table) == extent(table.T) == Extent(0, 24, 24, ((1, 24),))
    assert extent(table[:, 1]) == Extent(4, 20, 8, ((12, 2), (1, 4)))
    assert not overlap(extent(table[:0]), extent(table))
