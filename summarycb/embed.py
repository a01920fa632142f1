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

_OPENING, _CLOSING = '<script type="application/json+gzip+base64" id="summarycb">', "</script>"
_TITLE = " · summarycb</title>"
"""In the head of every page that is written."""
_EMBEDDED = re.compile(re.escape(_OPENING) + r"\s*([A-Za-z0-9+/=\s]*)" + re.escape(_CLOSING))


def embed(json: str) -> str:
    """An HTML element that holds ``json``: the same for the same text."""
    # half of a surrogate pair becomes its escape, which in JSON says the same
    packed = gzip.compress(json.encode("utf-8", "backslashreplace"), compresslevel=6, mtime=0)
    return f"{_OPENING}{base64.b64encode(packed).decode('ascii')}{_CLOSING}"


def extract(page: str, most_bytes: int) -> str:
    """The JSON that :func:`embed` put into ``page``. Raises :class:`SummaryError` where there is none that it wrote."""
    found = _EMBEDDED.search(page)
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
