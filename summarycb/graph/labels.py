"""What nodes and groups are called: the last names of a path, and ranges for several. Must not import torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise


def span(paths: Sequence[str]) -> list[str]:
    """The names in a path; where there are several paths, the names in which they differ as a range."""
    rows = [path.split(".") for path in dict.fromkeys(paths)]
    if len({len(row) for row in rows}) > 1:
        return [*rows[0], "…"]
    return [_range(list(dict.fromkeys(names))) for names in zip(*rows, strict=True)]


def of_several(paths: Sequence[str]) -> str:
    """What a sequence is called in which the modules at these paths ran."""
    if len({path.count(".") for path in paths}) > 1:
        return " … ".join(".".join(path.split(".")[-2:]) for path in (paths[0], paths[-1]))
    return ".".join(span(paths)[-2:])


def apart(spans: Mapping[int, list[str]], call: Mapping[int, int]) -> dict[int, str]:
    """The last names of each, as many as tell it from the others; those of one module by which ``call`` of it it is."""
    many = {unit: _to_a_name(names) for unit, names in spans.items()}
    for _ in range(max(map(len, spans.values()), default=0)):
        meant: dict[str, set[str]] = defaultdict(set)
        for unit, names in spans.items():
            meant[".".join(names[-many[unit] :])].add(".".join(names))
        for unit, names in spans.items():
            many[unit] += len(meant[".".join(names[-many[unit] :])]) > 1
    labels = {unit: ".".join(names[-many[unit] :]) for unit, names in spans.items()}
    count = Counter(labels.values())
    return {unit: f"{label} #{call[unit]}" if count[label] > 1 else label for unit, label in labels.items()}


def _range(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    numbers = [int(name) if name.isdecimal() and len(name) < 10 else None for name in names]
    counts_on = all(a is not None and b == a + 1 for a, b in pairwise(numbers))
    return f"{names[0]}-{names[-1]}" if counts_on else f"{names[0]}, {names[1]}" + (", …" if len(names) > 2 else "")


def _to_a_name(names: Sequence[str]) -> int:
    """How many of the last there are up to one that is no number."""
    return next((n for n, name in enumerate(reversed(names), 1) if not name[:1].isdecimal()), len(names))
