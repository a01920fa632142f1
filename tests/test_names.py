"""Names for places that do not take every name: told apart, and found again."""

from __future__ import annotations

import random
import re

import pytest

from summarycb.names import escape, unescape

PLAIN = "A-Za-z0-9_."
ODD = ["", "layers.0.weight", "[a](b)//c", "größe|`0`", "层 🙂", "50%", "%25", "%%", "\ud800", "a\nb", "x" * 5_000]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_any_name_comes_back(name: str) -> None:
    escaped = escape(name, PLAIN, 20_000)
    assert re.fullmatch(r"[A-Za-z0-9_.%]*", escaped)
    assert unescape(escaped) == name


def test_what_is_taken_stays_and_the_rest_is_in_bytes() -> None:
    assert escape("layers.0", PLAIN, 100) == "layers.0"
    assert escape("a/ü", PLAIN, 100) == "a%2F%C3%BC"  # UTF-8


def test_names_that_are_too_long_are_cut_and_still_differ() -> None:
    """Within the bound, in front what the name begins with, and no half of an escaped character."""
    names = ["ü" * 3_000 + end for end in ("a", "b")]
    cut = [escape(name, PLAIN, 250) for name in names]
    assert cut[0] != cut[1]
    assert [len(one) <= 250 for one in cut] == [True, True]
    assert all(re.fullmatch(r"(%C3%BC)+(%C3)?%%[0-9a-f]{16}", one) for one in cut)
    assert [unescape(one) for one in cut] == [None, None]


def test_no_two_names_are_the_same_afterwards() -> None:
    choice = random.Random(0)
    names = {"".join(choice.choices("ab%/ü2F5", k=choice.randint(0, 12))) for _ in range(5_000)}
    assert len({escape(name, PLAIN, 40) for name in names}) == len(names)
