"""align(): which items of two lists are the same, in order: the most that can be. Must not import torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence


def align(kinds: Sequence[tuple[Sequence[Hashable], Sequence[Hashable]]]) -> list[tuple[int, int]]:
    """The places of what two sequences have in common, in order, of the first kinds, between these of the next ..."""
    if not kinds:
        return []
    (a, b), *others = kinds
    found: list[tuple[int, int]] = []
    at_a = at_b = 0
    for i, j in [*common_subsequence(a, b), (len(a), len(b))]:
        if at_a < i and at_b < j:
            between = align([(x[at_a:i], y[at_b:j]) for x, y in others])
            found += [(at_a + x, at_b + y) for x, y in between]
        if i < len(a):
            found.append((i, j))
        at_a, at_b = i + 1, j + 1
    return found


def common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    """The places of a longest common subsequence in both, in order; what both begin and end with is in it.

    Rows of the dynamic programme are the bits of an integer: M. Crochemore et al., "A fast and practical bit-vector
    algorithm for the longest common subsequence problem", Information Processing Letters 80 (2001).
    """
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    end = 0
    while end < min(len(a), len(b)) - start and a[-1 - end] == b[-1 - end]:
        end += 1
    middle_a, middle_b = a[start : len(a) - end], b[start : len(b) - end]
    masks: dict[Hashable, int] = defaultdict(int)
    for place, kind in enumerate(middle_b):
        masks[kind] |= 1 << place
    full = (1 << len(middle_b)) - 1
    row, rows = full, [full]
    for kind in middle_a:
        common = row & masks.get(kind, 0)
        row = ((row + common) | (row - common)) & full
        rows.append(row)
    # a bit that is 0 is where the length grows by one: go back from the last corner along the lengths
    found = []
    i, j = len(middle_a), len(middle_b)
    while i and j:
        if not rows[i] >> (j - 1) & 1 and rows[i - 1] >> (j - 1) & 1 and middle_a[i - 1] == middle_b[j - 1]:
            found.append((start + i - 1, start + j - 1))
            i, j = i - 1, j - 1
        elif rows[i] >> (j - 1) & 1:
            j -= 1
        else:
            i -= 1
    return [
        *[(place, place) for place in range(start)],
        *reversed(found),
        *[(len(a) - place, len(b) - place) for place in range(end, 0, -1)],
    ]
