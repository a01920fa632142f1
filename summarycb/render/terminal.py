"""View -> the terminal, with rich."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from summarycb.tree import ModelSummary
from summarycb.view import Row, View, select

_ASCII = str.maketrans({"│": "|", "├": "|", "└": "`", "─": "-", "━": "=", "·": "-", "→": ">", "×": "x", "…": "~"})


def to_text(view: View, *, width: int = 100, ascii_only: bool = False) -> str:
    """Plain text without colours, no line longer than ``width``."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(render(view))
    assert isinstance(console.file, io.StringIO)
    text = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
    return text.translate(_ASCII) if ascii_only else text


def show(summary: ModelSummary, *, depth: int | None = 3, columns: Sequence[str] | None = None) -> None:
    """Print to standard output: in colour on a terminal, plain text elsewhere. Never raises."""
    from summarycb.trackers import warn

    try:
        console = Console(highlight=False)
        if console.is_terminal:
            console.print(render(select(summary, depth=depth, columns=columns)))
        else:
            print(summary.to_text(depth=depth, columns=columns), flush=True)
    except Exception as error:  # a closed or narrow stream must not end a training
        warn(f"the model summary could not be printed: {type(error).__name__}: {error}")


def render(view: View) -> RenderableType:
    """The view as a rich renderable."""
    headline = Table.grid(padding=(0, 1))
    headline.add_column(style="dim", no_wrap=True)
    headline.add_column()
    for heading, line in view.headline:
        headline.add_row(heading, Text(line))
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", collapse_padding=True)
    table.add_column("module", no_wrap=True, overflow="ellipsis")
    for column in view.columns:
        # what is cut when space is short are names and shapes, never a number
        flexible = column.justify == "left"
        table.add_column(
            column.title,
            justify=column.justify,
            no_wrap=True,
            overflow="ellipsis",
            min_width=None if flexible else max(len(column.title), *_widths(view, column.key)),
        )
    for row in view.rows:
        table.add_row(_label(row), *[Text(cell) for cell in row.cells])
    notes = [Padding(Text(note, style="dim"), (0, 0, 0, 1)) for note in view.notes]
    return Group(Text(view.title, style="bold"), headline, Text(), table, Text(), *notes)


def _widths(view: View, key: str) -> list[int]:
    index = [column.key for column in view.columns].index(key)
    return [len(row.cells[index]) for row in view.rows] or [0]


def _label(row: Row) -> Text:
    if not row.guides:
        return Text(row.label, style="bold")
    *above, last = row.guides
    lines = "".join("  " if closed else "│ " for closed in above) + ("└ " if last else "├ ")
    return Text.assemble((lines, "dim"), row.label)
