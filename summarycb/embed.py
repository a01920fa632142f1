"""The summary inside a page: written by ``embed``, read back by ``extract``. Must not import torch.

It is compressed, because a page of a usual model is to be small enough to be mailed; a browser never runs it.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import re
import zlib

from summarycb.errors import SummaryError

_OPENING, _CLOSING = '<script type="application/json+gzip+base64" id="summarycb{}">', "</script>"
_TITLE = " · summarycb</title>"
"""In the head of every page that is written."""
_EMBEDDED = re.compile(
    re.escape(_OPENING).replace(r"\{\}", r"(?:-\d+)?") + r"\s*([A-Za-z0-9+/=\s]*)" + re.escape(_CLOSING)
)


def embed(json: str, number: int | None = None) -> str:
    """An HTML element that holds ``json``: the same for the same text. Several in a page are numbered from 1 on."""
    # half of a surrogate pair becomes its escape, which in JSON says the same
    packed = gzip.compress(json.encode("utf-8", "backslashreplace"), compresslevel=6, mtime=0)
    return (
        f"{_OPENING.format('' if number is None else f'-{number}')}{base64.b64encode(packed).decode('ascii')}{_CLOSING}"
    )


def count(page: str) -> int:
    """How many are in a page."""
    return len(_EMBEDDED.findall(page))


def extract(page: str, most_bytes: int, number: int | None = None) -> str:
    """The JSON that :func:`embed` put into ``page``, of several that with the ``number``.

    Raises :class:`SummaryError` where there is none that it wrote, or where it is not said which of several.
    """
    all_found = list(_EMBEDDED.finditer(page))
    if len(all_found) > 1 and number is None:
        raise SummaryError(
            f"it holds {len(all_found)} summaries; add #1 to #{len(all_found)} to its name for one of them"
        )
    if number is not None and all_found and not 1 <= number <= len(all_found):
        raise SummaryError(f"it holds {len(all_found)} summaries, none with the number {number}")
    found = all_found[(number or 1) - 1] if all_found else None
    if found is None and _TITLE in page and not page.rstrip().endswith("</html>"):
        raise SummaryError("the page is cut short: it ends before the summary that a page of summarycb holds")
    if found is None:
        raise SummaryError("it holds no summary: not a page that summarycb wrote, or only the first bytes of one")
    try:
        packed = base64.b64decode("".join(found[1].split()), validate=True)
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise SummaryError(f"the summary in it is over the bound of {most_bytes:,} bytes")
        return content.decode("utf-8")
    except (binascii.Error, EOFError, OSError, zlib.error, UnicodeDecodeError) as error:
        raise SummaryError(f"the summary in it is damaged: {error}") from None
