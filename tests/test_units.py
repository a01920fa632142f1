"""Counts and bytes as text: four significant digits, rounded once."""

from __future__ import annotations

import pytest

from summarycb import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "?"),
        (0, "0"),
        (9_999, "9,999"),
        (10_000, "10.00 K"),
        (99_994, "99.99 K"),
        (99_996, "100.0 K"),
        (999_949, "999.9 K"),
        (999_999, "1.000 M"),
        (9_999_400, "9.999 M"),
        (9_999_999, "10.00 M"),
        (10**21, "1000.0 E"),
    ],
)
def test_a_count(value: int | None, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1023, "1023 B"),
        (1024, "1.000 KiB"),
        (1000 * 1024, "1000.0 KiB"),  # a prefix is worth 1024: it may take five digits
        (1024**2 - 1, "1.000 MiB"),
        (100 * 1024 - 1, "100.0 KiB"),
    ],
)
def test_bytes(value: int, text: str) -> None:
    assert units.nbytes(value) == text


@pytest.mark.parametrize(
    ("value", "total", "text"),
    [(0, 0, ""), (None, 3, "?"), (3, 3, "100.0"), (9_999, 10_000, "99.9"), (1, 3, "33.3"), (0, 3, "0.0")],
)
def test_a_percentage_is_100_of_all_alone(value: int | None, total: int, text: str) -> None:
    assert units.percent(value, total) == text
