"""View -> Markdown, for a pull request, an issue or a model card."""

from __future__ import annotations

from summarycb.units import clean
from summarycb.view import View

_INDENT = "&nbsp;&nbsp;"


def to_markdown(view: View) -> str:
    """The headline as a list, the rows as a table indented by depth, the notes as a list."""
    lines = [f"### {_escape(view.title)}", ""]
    lines += [f"- **{heading}**: {_escape(' · '.join(facts))}" for heading, facts in view.headline]
    header = ["module", *[column.title for column in view.columns]]
    ruler = ["---", *["---:" if column.justify == "right" else "---" for column in view.columns]]
    lines += ["", _row(header), _row(ruler)]
    for row in view.rows:
        lines.append(_row([_INDENT * len(row.guides) + f"`{_code(row.label)}`{row.suffix}", *map(_escape, row.cells)]))
    lines += ["", *[f"- {_escape(note)}" for note in view.notes], ""]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _code(text: str) -> str:
    return clean(text).replace("`", "'").replace("|", "\\|")


_ESCAPES = str.maketrans({character: f"\\{character}" for character in "\\`*_{}<>|#"})


def _escape(text: str) -> str:
    return clean(text.translate(_ESCAPES))
