"""Counts, bytes and names as text. Must not import torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

UNKNOWN = "?"
Writer: TypeAlias = Callable[[int | None], str]


def exact(value: int | None) -> str:
    """All digits: ``1,234,567``."""
    return UNKNOWN if value is None else f"{value:,}"


def count(value: int | None) -> str:
    """Decimal prefixes, four significant digits: ``1.235 M``; all digits below 10,000."""
    if value is None:
        return UNKNOWN
    return _scaled(value, 1000, ("", "K", "M", "G", "T", "P", "E"), f"{value:,}" if abs(value) < 10_000 else None)


def nbytes(value: int | None) -> str:
    """Binary prefixes, four significant digits: ``1.500 MiB``."""
    if value is None:
        return UNKNOWN
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), f"{value} B" if abs(value) < 1024 else None)


def percent(value: int | None, total: int | None) -> str:
    """The share of ``total``: ``12.3``; empty when the total is 0."""
    if value is None or total is None:
        return UNKNOWN
    return share(100 * value / total) if total else ""


def share(percent: float) -> str:
    """A percentage: ``12.3``; 100.0 is of all alone."""
    text = f"{percent:.1f}"
    return "99.9" if text == "100.0" and percent < 100 else text


_BAR = 10
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(percent: float) -> str:
    """The percentage as a bar of at most ten characters, to the nearest eighth of one, and not nothing above 0."""
    eighths = max(round(percent / 100 * 8 * _BAR), percent > 0)
    return (_EIGHTHS[-1] * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def signed(text: str) -> str:
    """``text`` with an explicit plus."""
    return text if text.startswith("-") or text in {"0", "0 B", UNKNOWN} else f"+{text}"


def _scaled(value: int, base: int, prefixes: tuple[str, ...], plain: str | None) -> str:
    if plain is not None:
        return plain
    scaled, power = float(value), 0
    while round(abs(scaled), 1) >= base and power < len(prefixes) - 1:
        scaled, power = scaled / base, power + 1
    digits = 3 if abs(scaled) < 9.9995 else 2 if abs(scaled) < 99.995 else 1
    return f"{scaled:.{digits}f} {prefixes[power]}"


def work(value: int | None, unit: str) -> str:
    """A count with its unit, ``MACs`` or ``FLOPs``: ``1.235 MMACs``, ``512 MACs``."""
    text = count(value)
    return f"{text}{unit}" if text[-1].isalpha() else f"{text} {unit}"


_DIRECTIONS = (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *_DIRECTIONS], " ")


def cut(text: str, most: int) -> str:
    """``text``, or its beginning in ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def clean(text: str) -> str:
    """``text`` on one line, without what a terminal would obey."""
    return text if text.isprintable() else text.translate(_CONTROLS)
