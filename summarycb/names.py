"""Names in places that do not take any character or any length. Must not import torch."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote

_HASH = 16


def escape(name: str, allowed: str, most: int) -> str:
    """``name`` in ASCII, each byte that is not in the class ``allowed`` (``"A-Za-z0-9_."``) as ``%`` and its digits.

    Two names are never the same afterwards, and :func:`unescape` gives back what was not cut. What would be longer
    than ``most`` is cut, and ends in ``%%`` and a hash of the whole name.
    """
    escaped = re.sub(f"[^{allowed}]", _percent, name)
    if len(escaped) <= most:
        return escaped
    tail = "%%" + hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_HASH]
    return re.sub("%.?$", "", escaped[: most - len(tail)]) + tail


def unescape(escaped: str) -> str | None:
    """The name that :func:`escape` was given; None of one that was cut."""
    return None if "%%" in escaped else unquote(escaped, errors="surrogatepass")


def _percent(character: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in character[0].encode(errors="surrogatepass"))
