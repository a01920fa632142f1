"""What a reader does with a page in Chromium, and sees of it; the fixture ``browser`` is in conftest.py."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome


@dataclass
class Browser:
    driver: Chrome
    folder: Path

    def open(self, page: str) -> None:
        """The page, from disk; what was logged before is forgotten."""
        path = self.folder / "page.html"
        path.write_text(page, encoding="utf-8")
        self.messages(), self.requests()
        self.driver.get(path.as_uri())

    def messages(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        found = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [one["params"]["request"]["url"] for one in found if one["method"] == "Network.requestWillBeSent"]

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def shown(self) -> list[str]:
        """The names of the rows that can be seen."""
        return self.run(
            "return [...document.querySelectorAll('.tree details > .row')]"
            ".filter(row => row.checkVisibility()).map(row => row.querySelector('bdi').textContent)"
        )

    def emulate(self, command: str, **arguments: object) -> None:
        self.driver.execute_cdp_cmd(command, arguments)

    def colours(self) -> Counter[bytes]:
        """How many pixels of the screen have each colour."""
        return Counter(_pixels(base64.b64decode(self.driver.get_screenshot_as_base64())))


def _pixels(png: bytes) -> Iterator[bytes]:
    """The colours of a screenshot, as Chromium writes it: eight bits a channel, not interlaced."""
    file, parts = io.BytesIO(png[8:]), []
    while length := file.read(4):
        kind, data = file.read(4), file.read(int.from_bytes(length, "big"))
        file.read(4)
        if kind == b"IHDR":
            width, channels = int.from_bytes(data[:4], "big"), {2: 3, 6: 4}[data[9]]
        parts += [data] if kind == b"IDAT" else []
    raw, stride = zlib.decompress(b"".join(parts)), width * channels
    above = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        line = _unfiltered(raw[start], bytearray(raw[start + 1 : start + 1 + stride]), above, channels)
        yield from [bytes(line[i : i + 3]) for i in range(0, stride, 4 * channels)]
        above = line


def _unfiltered(kind: int, line: bytearray, above: bytearray, size: int) -> bytearray:
    predict: Callable[[int, int, int], int] = [
        lambda a, b, c: 0,
        lambda a, b, c: a,
        lambda a, b, c: b,
        lambda a, b, c: (a + b) // 2,
        lambda a, b, c: min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2],
    ][kind]
    for i in range(len(line)) if kind else ():
        a, c = (line[i - size], above[i - size]) if i >= size else (0, 0)
        line[i] = (line[i] + predict(a, above[i], c)) & 255
    return line
