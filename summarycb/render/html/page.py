"""What the pages have in common: the policy, the templates, and the style that depends on what is shown. No torch."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from summarycb.units import clean


class Heading(Protocol):
    """A column: its title, and on which side it begins."""

    @property
    def title(self) -> str:
        """As it is shown."""

    @property
    def justify(self) -> str:
        """``left`` or ``right``."""


class Share(Protocol):
    """The width of a bar in steps of two percent; of a decrease it is negative."""

    @property
    def width(self) -> int:
        """0 is no bar."""


class Row(Protocol):
    """A row of a tree, as far as the style depends on it."""

    @property
    def level(self) -> int:
        """How deep it is."""

    @property
    def cells(self) -> Sequence[tuple[str, str]]:
        """Kinds and texts."""

    @property
    def shares(self) -> Sequence[Share]:
        """Its bars."""


_FOLDER = Path(__file__).parent
_MOST_INDENT = 24


def deepest_of(lines: Sequence[Row], most: int) -> int:
    """The level down to which there are at most so many rows."""
    found, count = 0, 0
    for level, size in sorted(Counter([row.level for row in lines]).items()):
        count += size
        if count > most:
            break
        found = level
    return found


def widths(columns: Sequence[Heading], lines: Sequence[Row], longest_text: int = 21, names: float = 15) -> str:
    """The columns of every row's grid, each as wide as its longest cell: rows are nested, and align by that alone.

    ``longest_text`` is how many characters a column of texts has at most, ``names`` the least room for names, in rem.
    """
    widths = [f"minmax({names:g}rem,1fr)"]
    for place, column in enumerate(columns):
        longest = max([len(row.cells[place][1]) for row in lines] + [len(column.title)])
        widths.append(
            f"minmax(4rem,{min(longest, longest_text)}ch)" if column.justify == "left" else f"{longest + 1}ch"
        )
    return " ".join([*widths, "9.5rem"])


def switch(kind: str, count: int, key: str = "", within: str = "body") -> Iterator[str]:
    """Of elements of the classes ``m0``, ``m1`` ... those are shown whose radio button, with that id, is chosen.

    ``key`` begins the ids, and ``within`` is where the elements are.
    """
    for chosen in range(count):
        others = ",".join([f".{kind}{other}" for other in range(count) if other != chosen])
        if others:
            yield f"{within}:has(#{key}{kind}{chosen}:checked) :is({others}){{display:none}}"


def steps(lines: Sequence[Row], within: str = "") -> str:
    """The widths of bars and the indentation as classes, because the policy allows no style of a single element."""
    widths = sorted({share.width for row in lines for share in row.shares if share.width})
    levels = range(max([row.level for row in lines]) + 1)
    bars = [f"{within}.w{width}{{--w:{2 * abs(width)}%}}" for width in widths]
    return "".join(bars + [f"{within}.d{level}{{--d:{min(level, _MOST_INDENT)}}}" for level in levels])


def policy_of(style: str, script: str) -> str:
    """No request, and no other style or script than these."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'"
    ).format(*hashes)


def rendered(template: str, **given: Any) -> str:
    """As UTF-8 can hold it: half of a surrogate pair is written out as an escape."""
    text = environment().get_template(template).render(**given)
    return text.encode(errors="backslashreplace").decode()


@cache
def asset(name: str) -> str:
    """A file beside this one, without its indentation."""
    return re.sub(r"\n\s*", "\n", (_FOLDER / name).read_text(encoding="utf-8"))


@cache
def environment() -> Environment:
    """The templates."""
    return Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )


def _printable(value: Any) -> Any:
    return clean(value) if type(value) is str else value
