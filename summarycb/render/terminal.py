"""View -> the terminal, with rich."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence

from summarycb.tree import ModelSummary
from summarycb.view import Row, View, select

_numbers = random.getstate()
try:  # rich draws a random number when it is first imported, and the training's own must not change
    from rich.cells import cell_len
    from rich.console import Console, Group, RenderableType
    from rich.table import Table
    from rich.text import Text
finally:
    random.setstate(_numbers)

_GAP = 1
_LEAST_NAME, _LEAST_TEXT = 24, 10
_ASCII = str.maketrans({"│": "|", "├": "|", "└": "`", "─": "-", "━": "=", "·": "-", "→": ">", "×": "x", "…": "~"})


def to_text(view: View, *, width: int = 100, ascii_only: bool = False) -> str:
    """Plain text without colours, no line longer than ``width``."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(render(view, width))
    assert isinstance(console.file, io.StringIO)
    text = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
    return text.translate(_ASCII) if ascii_only else text


def show(summary: ModelSummary, *, depth: int | None = 3, columns: Sequence[str] | None = None) -> None:
    """Print to standard output: in colour on a terminal, plain text elsewhere. Never raises."""
    from summarycb.trackers import warn

    try:
        console = Console(highlight=False)
        if console.is_terminal:
            console.print(render(select(summary, depth=depth, columns=columns), console.width))
        else:
            print(summary.to_text(depth=depth, columns=columns), flush=True)
    except Exception as error:  # a closed or narrow stream must not end a training
        warn(f"the model summary could not be printed: {type(error).__name__}: {error}")


def render(view: View, width: int) -> RenderableType:
    """The view as a rich renderable that is at most ``width`` columns wide."""
    headline = Table.grid(padding=(0, _GAP))
    headline.add_column(style="dim", no_wrap=True)
    headline.add_column()
    space = width - max([cell_len(heading) for heading, _ in view.headline], default=0) - _GAP
    for heading, facts in view.headline:
        headline.add_row(heading, Text("\n".join(_lines(facts, space))))
    names, widths = [_label(row) for row in view.rows], _fit(view, width)
    table = Table(box=None, padding=(0, _GAP, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("module", no_wrap=True, overflow="ellipsis", width=widths[0])
    for column, space in zip(view.columns, widths[1:], strict=True):
        if space:
            table.add_column(column.title, justify=column.justify, no_wrap=True, overflow="ellipsis", width=space)
    for name, row in zip(names, view.rows, strict=True):
        table.add_row(name, *[Text(cell) for cell, space in zip(row.cells, widths[1:], strict=True) if space])
    notes = [Text(note, style="dim") for note in view.notes]
    body: list[RenderableType] = [table, Text()] if view.rows else []
    return Group(Text(view.title, style="bold"), headline, Text(), *body, *notes)


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


def _fit(view: View, width: int) -> list[int]:
    """The width of the name and of each column; 0 drops one. Names and shapes are shortened, numbers never are."""
    names = [cell_len(_label(row).plain) for row in view.rows]
    widths = [max([cell_len("module"), *names])]
    for index, column in enumerate(view.columns):
        widths.append(max([cell_len(column.title), *[cell_len(row.cells[index]) for row in view.rows]]))
    least = [min(widths[0], _LEAST_NAME)]
    for column, space in zip(view.columns, widths[1:], strict=True):
        least.append(min(space, _LEAST_TEXT) if column.justify == "left" else space)

    def excess() -> int:
        return sum(space + _GAP for space in widths if space) - _GAP - width

    while excess() > 0:
        slack = [space - bound for space, bound in zip(widths, least, strict=True)]
        if max(slack) > 0:
            widest = max((i for i, n in enumerate(slack) if n > 0), key=lambda i: widths[i])
            widths[widest] -= 1
        elif any(widths[1:]):  # no more to shorten: columns go, text before numbers, from the right
            shown = [i for i in range(1, len(widths)) if widths[i]]
            text = [i for i in shown if view.columns[i - 1].justify == "left"]
            widths[(text or shown)[-1]] = 0
            least = [space and bound for space, bound in zip(widths, least, strict=True)]
        else:
            widths[0] = max(1, width)
            break
    return widths


def _label(row: Row) -> Text:
    if not row.guides:
        return Text(row.label, style="bold")
    *above, last = row.guides
    lines = "".join("  " if closed else "│ " for closed in above) + ("└ " if last else "├ ")
    return Text.assemble((lines, "dim"), row.label)
