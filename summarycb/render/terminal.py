"""View -> the terminal, with rich. The widths are known before anything is laid out, so a row is one line of text.

Of rich what measures texts is imported, the rest where colours are asked for: it takes longer than a comparison.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len, chop_cells, set_cell_size

from summarycb.errors import SummaryError
from summarycb.garbage import collection_paused
from summarycb.tree import ModelSummary
from summarycb.units import clean
from summarycb.view import Row, Selection, View, select

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from summarycb.compare import Comparison

LEAST_WIDTH = 20
_GAP = 1
_LEAST_NAME, _LEAST_PATH = 24, 48
MOST_WIDTH = 100
"""In a wider terminal figures would be far from their names."""
_ASCII = str.maketrans(
    {"│": "|", "├": "|", "└": "`", "─": "-", "━": "=", "·": "-", "→": ">", "×": "x", "…": "~", "Δ": "d", "▸": "+"}
    | {"≠": "!", "⊂": "(", "⊃": ")", "⊞": "#", "↷": "^"}
    | dict.fromkeys("▏▎▍▌", "-")
    | dict.fromkeys("▋▊▉█", "#")
)


def to_text(view: View, *, width: int = 100, ascii_only: bool = False) -> str:
    """Plain text without colours, no line longer than ``width``."""
    text = "\n".join([text for text, _ in _layout(view, _checked(width), styled=False)])
    return _ascii(text) if ascii_only else text


def _checked(width: int) -> int:
    if type(width) is not int or width < LEAST_WIDTH:
        raise SummaryError(f"width must be an integer from {LEAST_WIDTH} on, not {width!r}")
    return width


def draw(view: View, *, width: int | None = None, ascii_only: bool = False) -> None:
    """Print to standard output: in colour on a terminal, as wide as it is up to 100, and plain text elsewhere."""
    console = None if ascii_only else _terminal()
    if console is not None:
        from rich.text import Text

        lines = render(view, max(min(console.width, MOST_WIDTH), LEAST_WIDTH) if width is None else _checked(width))
        texts = encodable("\n".join(line.plain for line in lines), console.encoding).split("\n")
        for line, text in zip(lines, texts, strict=True):
            line.plain = text
        console.print(Text("\n").join(lines), soft_wrap=True)
    else:
        text = to_text(view, width=MOST_WIDTH if width is None else width, ascii_only=ascii_only)
        print(encodable(text, getattr(sys.stdout, "encoding", None)), flush=True)


def _terminal() -> Console | None:
    """Standard output as a terminal, where it is one to rich, which is asked only if it could be."""
    isatty = getattr(sys.stdout, "isatty", None)
    if not (isatty and isatty()) and not _ENFORCED & os.environ.keys():
        return None
    import random

    numbers = random.getstate()
    try:  # rich draws a random number when it is first imported, and the training's own must not change
        from rich.console import Console
    finally:
        random.setstate(numbers)
    console = Console(highlight=False)
    return console if console.is_terminal else None


_ENFORCED = {"FORCE_COLOR", "TTY_COMPATIBLE"}
"""Variables of the environment with which rich takes for a terminal what is none."""


def show(summary: ModelSummary, selection: Selection = Selection(), comparison: Comparison | None = None) -> None:
    """Print to standard output, as :func:`draw` does, and below it the comparison. Never raises."""
    from summarycb.trackers import warn

    try:
        draw(select(summary, selection))
        if comparison is not None:
            print()
            draw(comparison.view())
    except Exception as error:  # a closed or narrow stream must not end a training
        warn(f"the model summary could not be printed: {type(error).__name__}: {error}")


def encodable(text: str, encoding: str | None) -> str:
    """``text``, or where ``encoding`` lacks a character of it, its lines as ASCII and ``?`` for any other it lacks."""
    if encoding is None:  # a stream of text, as io.StringIO
        return text
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return _ascii(text).encode(encoding, errors="replace").decode(encoding)
    return text


def _ascii(text: str) -> str:
    """As wide as it is; the mark of a row that begins with a dot is no minus, which is the mark of what was removed."""
    return re.sub("(?m)^·", ".", text).translate(_ASCII)


def render(view: View, width: int) -> list[Text]:
    """The view's lines, none wider than ``width``."""
    from rich.text import Span, Text

    lines = _layout(view, width, styled=True)
    return [Text(text, spans=[Span(*span) for span in spans]) for text, spans in lines]


_Span = tuple[int, int, str]
"""From where to where a line has which style."""
_Line = tuple[str, list[_Span]]


@collection_paused()
def _layout(view: View, width: int, styled: bool) -> list[_Line]:
    gutter = max([cell_len(heading) for heading, _ in view.headline], default=0) + _GAP
    lines = [_styled(text, "bold") for text in _wrapped(view.title, width)]
    for heading, facts in view.headline:
        for together in _together([clean(fact) for fact in facts], width - gutter):
            for text in _wrapped(together, width - gutter):
                lines.append((set_cell_size(heading, gutter) + text, [(0, gutter, "dim")]))
                heading = ""
    lines.append(("", []))
    notes = list(view.notes)
    if view.rows:
        table, dropped = _table(view, width, styled)
        lines += [*table, ("", [])]
        if dropped:
            notes.insert(0, f"no room for {', '.join(dropped)}")
    return lines + [_styled(text, "dim") for note in notes for text in _wrapped(note, width)]


def _styled(text: str, style: str) -> _Line:
    return text, [(0, len(text), style)]


def _wrapped(text: str, width: int) -> list[str]:
    """Lines that are broken between words, and within what is wider than a line."""
    lines: list[str] = []
    for word in re.findall(r"\s*\S+\s*", clean(text)):
        if lines and cell_len(lines[-1]) + cell_len(word.rstrip()) <= width:
            lines[-1] += word
        else:
            lines += [word] if cell_len(word.rstrip()) <= width else chop_cells(word, width)
    return [line.rstrip() for line in lines] or [""]


def _together(facts: Sequence[str], width: int) -> list[str]:
    """The facts side by side, broken between them where they do not fit."""
    lines: list[str] = []
    for fact in facts:
        longer = f"{lines[-1]} · {fact}" if lines else fact
        if lines and cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(fact)
    return lines


def _table(view: View, width: int, styled: bool) -> tuple[list[_Line], list[str]]:
    """The lines, and the titles of the columns for which there was no room."""
    right = [False, *[column.justify == "right" for column in view.columns]]
    header = [view.label, *[column.title for column in view.columns]]
    styles = ["", *[_STYLES.get(column.key, "") for column in view.columns]]
    columns = [
        [_name(row) for row in view.rows],
        *[[clean(row.cells[i]) for row in view.rows] for i in range(len(view.columns))],
    ]
    columns = [_aligned(cells) if figures else cells for cells, figures in zip(columns, right, strict=True)]
    natural = [max(map(cell_len, [title, *cells])) for title, cells in zip(header, columns, strict=True)]
    worth = [
        _WORTH.get(column.key, 3 if figures else 0) for column, figures in zip(view.columns, right[1:], strict=True)
    ]
    narrow = any(row.guides for row in view.rows) or any(column.least for column in view.columns)
    least = [min(natural[0], _LEAST_NAME if narrow else min(max(_LEAST_NAME, width // 2), _LEAST_PATH))]
    for column, space, rank in zip(view.columns, natural[1:], worth, strict=True):
        least.append(min(space, column.least or _LEAST.get(rank, space)))
    if view.whole:
        least[0], width = natural[0], max(natural[0], width)
    widths = _fit(natural, worth, least, width)
    shown = [i for i, space in enumerate(widths) if space]

    def line(cells: Sequence[str]) -> Iterator[str]:
        return (_cell(cells[i], widths[i], right[i]) for i in shown)

    lines = [_styled((" " * _GAP).join(line(header)).rstrip(), "bold")]
    lines.append(_styled("─" * (sum([widths[i] + _GAP for i in shown]) - _GAP), "dim"))
    for row, (_, *cells) in zip(view.rows, zip(*columns, strict=True), strict=True):
        parts = list(line([_name(row, widths[0]), *cells]))
        spans = list(_spans(row, parts, [styles[i] for i in shown])) if styled else []
        lines.append(((" " * _GAP).join(parts).rstrip(), spans))
    return lines, [title for title, space in zip(header, widths, strict=True) if title and not space]


_WORTH = {"bar": 1, "delta_backward_macs": 1, "type": 2, "input": 2, "output": 2, "what": 2}
"""What goes later than other columns where there is no room; figures, worth 3, go last, but for one: backward work is
mostly as forward work is, and says less than what a change is.
"""
_LEAST = {0: 16, 2: 10}
"""To how many characters a column is shortened before one goes, by its worth; figures and bars never are."""
_STYLES = {"type": "dim", "config": "dim", "bar": "cyan"}


def _spans(row: Row, parts: Sequence[str], styles: Sequence[str]) -> Iterator[_Span]:
    """What is not plain text: the guides, the name of a root, how often a row is there, and figures that are 0."""
    if row.context:
        yield 0, sum(map(len, parts)) + _GAP * len(parts), "dim"
    guide, named = len(_guides(row)), len(parts[0].rstrip())
    yield 0, min(guide, named), "dim"
    if not row.guides:
        yield 0, named, "bold"
    if row.times > 1 and (start := parts[0].rfind(" ×")) >= 0:
        yield start, named, "cyan"
    start = 0
    for part, style in zip(parts, styles, strict=True):
        style = "dim" if part.strip() in _ZEROS else style
        if style:
            yield start, start + len(part), style
        start += len(part) + _GAP


_ZEROS = {"0", "0 B", "0.0"}


def _name(row: Row, space: int | None = None) -> str:
    """The first cell; where there is not the space for it, without the end of the label, or the beginning of a path."""
    guides, label = _guides(row), clean(row.label)
    whole = guides + label + row.suffix
    if space is None or cell_len(whole) <= space:
        return whole
    left = space - cell_len(guides + row.suffix) - 1
    if left < 1:
        return set_cell_size(whole, space - 1) + "…"
    if row.guides:
        return f"{guides}{set_cell_size(label, left)}…{row.suffix}"
    mark = label[:2] if label[1:2] == " " else ""  # of what changed, which stays
    label = label[len(mark) :][len(mark) - left :]
    while cell_len(mark + label) > left:
        label = label[1:]
    return f"{mark}…{label}{row.suffix}"


def _aligned(cells: Sequence[str]) -> list[str]:
    """Figures with units of equal width, so that their digits are below each other."""
    units = [len(cell) - len(cell.rstrip(_LETTERS)) for cell in cells]
    most = max(units, default=0)
    return [cell and cell + " " * (most - unit) for cell, unit in zip(cells, units, strict=True)]


_LETTERS = " KMGTPEiB"


def _cell(text: str, space: int, right: bool) -> str:
    free = space - cell_len(text)
    if free < 0:
        return set_cell_size(text, space - 1) + "…"
    return " " * free + text if right else text + " " * free


def _fit(natural: Sequence[int], worth: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """The width of each column; 0 drops one. Names and texts are shortened, to ``least``."""
    shown = list(range(len(natural)))
    while len(shown) > 1 and sum([least[i] + _GAP for i in shown]) - _GAP > width:
        # no more to shorten: columns go, those of least worth first, from the right
        shown.remove(min(shown[1:], key=lambda i: (worth[i - 1], -i)))
    widths = [space if i in shown else 0 for i, space in enumerate(natural)]
    if len(shown) == 1:
        return [min(natural[0], width), *widths[1:]]
    for _ in range(sum([widths[i] + _GAP for i in shown]) - _GAP - width):
        widest = max([i for i in shown if widths[i] > least[i]], key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def _guides(row: Row) -> str:
    if not row.guides:
        return ""
    *above, last = row.guides
    return "".join("  " if closed else "│ " for closed in above) + ("└ " if last else "├ ")
