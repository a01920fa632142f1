"""View -> Markdown, for a pull request, an issue or a model card."""

from __future__ import annotations

import re

from summarycb.units import clean, cut
from summarycb.view import View

_INDENT = "&nbsp;&nbsp;"
_NOTHING = "\u200b"
"""A space of no width."""


def to_markdown(view: View) -> str:
    """The headline as a list, the rows as a table indented by depth, the notes as a list."""
    lines = [f"### {_escape(view.title)}", ""]
    lines += [f"- **{heading}**: {_escape(' · '.join(facts))}" for heading, facts in view.headline]
    header = [view.label, *[column.title for column in view.columns]]
    ruler = ["---", *["---:" if column.justify == "right" else "---" for column in view.columns]]
    lines += ["", _row(header), _row(ruler)] if view.rows else []
    for row in view.rows:
        lines.append(_row([_INDENT * len(row.guides) + f"`{_code(row.label)}`{row.suffix}", *map(_escape, row.cells)]))
    lines += ["", *[f"- {_escape(note)}" for note in view.notes], ""]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_MOST_TEXT = 300
"""A comment on a pull request has a limit; the JSON and the page have all of it."""


def _code(text: str) -> str:
    return clean(cut(text, _MOST_TEXT)).replace("`", "'").replace("|", "\\|")


_ESCAPES = str.maketrans({character: f"\\{character}" for character in "\\`*_{}<>|#"})


def _escape(text: str) -> str:
    """Nothing that a summary says, which a stranger may have written, is a link, an image or calls somebody."""
    escaped = clean(cut(text, _MOST_TEXT).translate(_ESCAPES)).replace("](", "]\\(")
    return re.sub("@|(?<=:)(?=//)|(?<=www)(?=[.])", lambda found: f"{found[0]}{_NOTHING}", escaped)
