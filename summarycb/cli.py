"""The command line: ``summarycb show``, ``compare`` and ``push``. Must not import torch.

Exit status: 0 done, 2 an error, of whatever kind, that is said on standard error; 1 is kept for a gate.
"""

from __future__ import annotations

import argparse
import inspect
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from summarycb import __version__
from summarycb.errors import SummaryError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except BrokenPipeError:  # whoever reads has enough, as ``head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (SummaryError, ModuleNotFoundError) as error:
        print(f"summarycb: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"summarycb: {error.strerror if error.filename is None else error}", file=sys.stderr)
        return 2
    except Exception as error:
        print(f"summarycb: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    from summarycb.forms import FORMATS
    from summarycb.trackers import READ_ONLY, REFERENCES

    reference = f"a .json or .html file, or a tracker's: {', '.join(REFERENCES + READ_ONLY)}"
    parser = argparse.ArgumentParser(prog="summarycb", description="Show and compare stored model summaries.")
    parser.add_argument("--version", action="version", version=f"summarycb {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    show = commands.add_parser("show", help="show one summary")
    show.add_argument("reference", metavar="REF", help=reference)
    show.add_argument("--format", choices=FORMATS, help="default: what the suffix of FILE says, else text")
    show.add_argument("--open", action="store_true", help="open the HTML page in the web browser")
    show.set_defaults(run=_show)
    chosen = show.add_argument_group("what is shown, where the format has a choice")
    for name, (keyword, settings) in _CHOICES.items():
        chosen.add_argument(name, dest=keyword, default=argparse.SUPPRESS, **settings)

    compare = commands.add_parser("compare", help="say what changed from one summary to another")
    compare.add_argument("a", metavar="REF", help=reference)
    compare.add_argument("b", metavar="REF")
    compare.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    compare.set_defaults(run=_compare)

    push = commands.add_parser("push", help="write a stored summary to a tracker")
    push.add_argument("reference", metavar="REF", help=reference)
    push.add_argument("tracker", metavar="TRACKER", help=f"what to write to: {', '.join(REFERENCES)}")
    push.add_argument("--step", type=int, default=0, metavar="N", help="the training step that it is of (default: 0)")
    push.set_defaults(run=_push)

    for command in (show, compare):
        command.add_argument("-o", "--output", metavar="FILE", help="write to a file instead of standard output")
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _depth(text: str) -> int | None:
    if text == "-1":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number from 0 on, or -1 for all levels, not {text!r}")
    return int(text)


_CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "--depth": (
        "depth",
        {"type": _depth, "metavar": "N", "help": "levels below the root; -1 is all (default: 3, of a graph 2)"},
    ),
    "--columns": ("columns", {"type": _names, "metavar": "A,B", "help": "the columns, in order"}),
    "--sort": ("sort", {"metavar": "COLUMN", "help": "children of a module by this column"}),
    "--top": ("top", {"type": int, "metavar": "N", "help": "the N rows with most of the sort column or the metric"}),
    "--filter": ("filter", {"metavar": "GLOB", "help": "the modules whose path or type fits"}),
    "--metric": ("metric", {"metavar": "COLUMN", "help": "what bars and shares are of"}),
    "--no-fold": ("fold", {"action": "store_false", "help": "blocks that repeat are shown each"}),
    "--parameters": ("parameters", {"action": "store_true", "help": "a graph with its parameters"}),
    "--layout": ("layout", {"choices": ("fast-sugiyama", "dot"), "help": "what lays out the graph"}),
    "--ascii": ("ascii_only", {"action": "store_true", "help": "draw with ASCII alone"}),
    "--width": ("width", {"type": int, "metavar": "N", "help": "no longer lines (default: the terminal's, up to 100)"}),
    "--outside": ("outside", {"action": "store_true", "help": "a row for what the step did outside any module"}),
}
"""Each option -> the argument that it is of the summary's methods ``to_<format>``, and how argparse reads it."""


def _show(options: argparse.Namespace) -> None:
    from summarycb.forms import form_of, method
    from summarycb.serialize import load

    form = options.format or ("html" if options.open else "text")
    if options.output and not options.format:
        form = form_of(Path(options.output))
    choices = {keyword: getattr(options, keyword) for keyword, _ in _CHOICES.values() if hasattr(options, keyword)}
    made = inspect.signature(method(form)).parameters
    for name, (keyword, _) in _CHOICES.items():
        if keyword in choices and keyword not in made:
            fitting = [name for name, (keyword, _) in _CHOICES.items() if keyword in made]
            raise SummaryError(f"{name} is not for the format {form}, which takes {', '.join(fitting) or 'no choice'}")
    summary = load(options.reference)
    if options.open:
        _open(method(form)(summary, **choices), form, options.output)
    elif form == "text" and options.output is None:
        from summarycb.render.terminal import draw
        from summarycb.view import Selection, select

        layout = {"width": choices.pop("width", _width()), "ascii_only": choices.pop("ascii_only", False)}
        with _standard_output():
            draw(select(summary, Selection(**choices)), **layout)
    else:
        _put(method(form)(summary, **choices), form, options.output)


def _open(text: str, form: str, output: str | None) -> None:
    import tempfile
    import webbrowser

    from summarycb.forms import FORMATS, write

    if form not in ("html", "svg"):
        raise SummaryError(f"--open is for the formats html and svg, not {form}")
    if output is None:
        with tempfile.NamedTemporaryFile(prefix="summarycb-", suffix=FORMATS[form], delete=False) as file:
            output = file.name
    page = write(text, Path(output)).resolve()
    if not webbrowser.open(page.as_uri()):
        raise SummaryError(f"no web browser was found to open {page}")


def _compare(options: argparse.Namespace) -> None:
    from summarycb.compare import compare

    comparison = compare(options.a, options.b)
    if options.format == "text" and options.output is None:
        from summarycb.render.terminal import draw

        with _standard_output():
            draw(comparison.view(), width=_width())
    else:
        made = {"text": comparison.to_text, "markdown": comparison.to_markdown, "json": comparison.to_json}
        _put(made[options.format](), options.format, options.output)


def _push(options: argparse.Namespace) -> None:
    from summarycb.report import Report
    from summarycb.serialize import load
    from summarycb.trackers import forms, open_reference

    tracker = open_reference(options.tracker)
    if tracker is None:
        raise SummaryError(f"{options.tracker!r} names no tracker; allowed are {forms()}")
    tracker.write(Report(load(options.reference)), step=options.step)


def _put(text: str, form: str, output: str | None) -> None:
    from summarycb.forms import write

    if output is not None:
        write(text, Path(output))
        return
    with _standard_output():
        if form in _UTF8 and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        print(_encodable(text, form), end="" if text.endswith("\n") else "\n", flush=True)


@contextmanager
def _standard_output() -> Iterator[None]:
    """Where it is written to: what it cannot take is said of it."""
    if sys.stdout is None:  # as after >&-
        raise SummaryError("cannot write to standard output: it is closed")
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"cannot write to standard output: {error.strerror}") from None


_UTF8 = ("html", "svg")  # they say so of themselves


def _width() -> int:
    import shutil

    from summarycb.render.terminal import LEAST_WIDTH, MOST_WIDTH

    return max(LEAST_WIDTH, min(shutil.get_terminal_size((MOST_WIDTH, 24)).columns, MOST_WIDTH))


def _encodable(text: str, kind: str) -> str:
    """``text`` as standard output can take it; JSON says the same in its own escapes."""
    from summarycb.render.terminal import encodable

    written = encodable(text, sys.stdout.encoding)
    return json.dumps(json.loads(text)) if kind in ("json", "speedscope") and written != text else written
