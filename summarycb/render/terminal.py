"""View -> the terminal, with rich. The widths are known before anything is laid out, so a row is one line of text."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Sequence

from summarycb.errors import SummaryError
from summarycb.garbage import collection_paused
from summarycb.tree import ModelSummary
from summarycb.view import Row, View, clean, select

_numbers = random.getstate()
try:  # rich draws a random number when it is first imported, and the training's own must not change
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console
    from rich.text import Text
finally:
    random.setstate(_numbers)

LEAST_WIDTH = 20
_GAP = 1
_LEAST_NAME, _LEAST_TEXT = 24, 10
_ASCII = str.maketrans(
    {"│": "|", "├": "|", "└": "`", "─": "-", "━": "=", "·": "-", "→": ">", "×": "x", "…": "~", "Δ": "d"}
)


def to_text(view: View, *, width: int = 100, ascii_only: bool = False) -> str:
    """Plain text without colours, no line longer than ``width``."""
    if type(width) is not int or width < LEAST_WIDTH:
        raise SummaryError(f"width must be an integer from {LEAST_WIDTH} on, not {width!r}")
    text = "\n".join(line.plain for line in render(view, width))
    return text.translate(_ASCII) if ascii_only else text


def show(summary: ModelSummary, *, depth: int | None = 3, columns: Sequence[str] | None = None) -> None:
    """Print to standard output: in colour on a terminal, plain text elsewhere. Never raises."""
    from summarycb.trackers import warn

    try:
        console = Console(highlight=False)
        if console.is_terminal:
            lines = render(select(summary, depth=depth, columns=columns), max(console.width, LEAST_WIDTH))
            texts = encodable("\n".join(line.plain for line in lines), console.encoding).split("\n")
            for line, text in zip(lines, texts, strict=True):
                line.plain = text
            console.print(Text("\n").join(lines), soft_wrap=True)
        else:
            text = summary.to_text(depth=depth, columns=columns)
            print(encodable(text, getattr(sys.stdout, "encoding", None)), flush=True)
    except Exception as error:  # a closed or narrow stream must not end a training
        warn(f"the model summary could not be printed: {type(error).__name__}: {error}")


def show_failure(summary: ModelSummary) -> None:
    """Where the step failed, of a rank that shows nothing else."""
    if summary.failure is not None:
        show(summary, depth=0)


def encodable(text: str, encoding: str | None) -> str:
    """``text``, or where ``encoding`` lacks a character of it, its lines as ASCII and ``?`` for any other it lacks."""
    if encoding is None:  # a stream of text, as io.StringIO
        return text
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, errors="replace").decode(encoding)
    return text


@collection_paused()
def render(view: View, width: int) -> list[Text]:
    """The view's lines, none wider than ``width``."""
    console = Console(file=io.StringIO(), width=width)  # Text.wrap asks for one
    gutter = max([cell_len(heading) for heading, _ in view.headline], default=0) + _GAP
    lines = [*_wrapped(view.title, width, console, style="bold")]
    for heading, facts in view.headline:
        for text in _lines([clean(fact) for fact in facts], width - gutter):
            for line in _wrapped(text, width - gutter, console):
                lines.append(Text.assemble((set_cell_size(heading, gutter), "dim"), line))
                heading = ""
    lines.append(Text())
    if view.rows:
        table, dropped = _table(view, width)
        lines += [*table, Text()]
        if dropped:
            lines += _wrapped(f"no room for {', '.join(dropped)}", width, console, style="dim")
    for note in view.notes:
        lines += _wrapped(note, width, console, style="dim")
    return lines


def _wrapped(text: str, width: int, console: Console, style: str = "") -> list[Text]:
    lines = [*Text(clean(text), style=style).wrap(console, width)]
    for line in lines:
        line.rstrip()
    return lines


def _lines(facts: Sequence[str], width: int) -> list[str]:
    """The facts side by side, broken between them where they do not fit."""
    lines: list[str] = []
    for fact in facts:
        longer = f"{lines[-1]} · {fact}" if lines else fact
        if lines and cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(fact)
    return lines


def _table(view: View, width: int) -> tuple[list[Text], list[str]]:
    """The lines, and the titles of the columns for which there was no room."""
    header = ["module", *[column.title for column in view.columns]]
    guides = [_guides(row) for row in view.rows]
    cells = [[guide + clean(row.label), *map(clean, row.cells)] for guide, row in zip(guides, view.rows, strict=True)]
    right = [False, *[column.justify == "right" for column in view.columns]]
    widths = _fit([header, *cells], right, width)
    shown = [i for i, space in enumerate(widths) if space]

    def text(row: Sequence[str]) -> str:
        return (" " * _GAP).join([_cell(row[i], widths[i], right[i]) for i in shown]).rstrip()

    lines = [Text(text(header), style="bold")]
    for guide, row in zip(guides, cells, strict=True):
        line = Text(text(row))
        line.stylize("dim", 0, min(len(guide), widths[0])) if guide else line.stylize("bold", 0, len(row[0]))
        lines.append(line)
    return lines, [title for title, space in zip(header, widths, strict=True) if not space]


def _cell(text: str, space: int, right: bool) -> str:
    free = space - cell_len(text)
    if free < 0:
        return set_cell_size(text, space - 1) + "…"
    return " " * free + text if right else text + " " * free


def _fit(rows: Sequence[Sequence[str]], right: Sequence[bool], width: int) -> list[int]:
    """The width of each column; 0 drops one. Names and shapes (not ``right``) are shortened, numbers never are."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    least = [space if number else min(space, _LEAST_TEXT) for space, number in zip(widths, right, strict=True)]
    least[0] = min(widths[0], _LEAST_NAME)

    def excess() -> int:
        return sum(space + _GAP for space in widths if space) - _GAP - width

    while excess() > 0:
        slack = [space - bound for space, bound in zip(widths, least, strict=True)]
        if max(slack) > 0:
            widest = max((i for i, n in enumerate(slack) if n > 0), key=lambda i: widths[i])
            widths[widest] -= 1
        elif any(widths[1:]):  # no more to shorten: columns go, text before numbers, from the right
            shown = [i for i in range(1, len(widths)) if widths[i]]
            text = [i for i in shown if not right[i]]
            widths[(text or shown)[-1]] = 0
            least = [space and bound for space, bound in zip(widths, least, strict=True)]
        else:
            widths[0] = width
            break
    return widths


def _guides(row: Row) -> str:
    if not row.guides:
        return ""
    *above, last = row.guides
    return "".join("  " if closed else "│ " for closed in above) + ("└ " if last else "├ ")
