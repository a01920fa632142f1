"""The command line: ``summarycb show``, ``compare``, ``runs`` and ``push``. Must not import torch.

Exit status: 0 done, 1 a gate has failed, 2 an error, of whatever kind, that is said on standard error.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from summarycb import __version__
from summarycb.errors import SummaryError

if TYPE_CHECKING:
    from summarycb.view import View


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
    return 1 if options.failed else 0


def _parser() -> argparse.ArgumentParser:
    from summarycb.forms import COMPARED, FORMATS
    from summarycb.trackers import READ_ONLY, REFERENCES, SEVERAL

    reference = f"a .json or .html file, or a tracker's: {', '.join(REFERENCES + READ_ONLY)}"
    parser = argparse.ArgumentParser(prog="summarycb", description="Show and compare stored model summaries.")
    several = f"what stands for several: a folder or glob of files, {', '.join(SEVERAL)}"
    parser.set_defaults(failed=False)
    parser.add_argument("--version", action="version", version=f"summarycb {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)

    show = commands.add_parser("show", help="show one summary")
    show.add_argument("reference", metavar="REF", help=reference)
    show.add_argument("--format", choices=FORMATS, help="default: what the suffix of FILE says, else text")
    show.add_argument("--open", action="store_true", help="open the HTML page in the web browser")
    show.set_defaults(run=_show)
    chosen = show.add_argument_group("what is shown, where the format has a choice")
    for name, (keyword, settings) in _CHOICES.items():
        chosen.add_argument(name, dest=keyword, default=argparse.SUPPRESS, **settings)

    compare = commands.add_parser("compare", help="say what changed from the first summary to the others")
    compare.add_argument("references", metavar="REF", nargs="+", help=f"{reference}, or {several}")
    compare.add_argument("--format", choices=COMPARED, help="default: what the suffix of FILE says, else text")
    compare.add_argument("--per", choices=("sample", "token"), help="work and saved activations for one of these")
    for name, (keyword, settings) in _SHOWN.items():
        compare.add_argument(name, dest=keyword, default=argparse.SUPPRESS, **settings)
    for name in _DRAWN:
        keyword, settings = _CHOICES[name]
        compare.add_argument(name, dest=keyword, default=argparse.SUPPRESS, **settings)
    compare.says_last = _figures
    gates = compare.add_argument_group("gates", "limits; where one is passed the exit status is 1")
    gates.add_argument(
        "--fail-on", action="append", default=[], metavar="GATE",
        help="METRIC[:PATTERN] OP LIMIT, as params>+5%%, forward_macs:transformer.h.*>0 or saved_activations>512MiB: "
        "a METRIC is one of those below, PATTERN fits paths of modules; a LIMIT with "
        "a sign or in percent, and 0, is of the change; may be repeated",
    )  # fmt: skip
    gates.add_argument("--allow-unknown", action="store_true", help="a gate of what is unknown does not fail")
    gates.add_argument("--allow-incomparable", action="store_true", help="gates though the steps had other conditions")
    compare.set_defaults(run=_compare)

    runs = commands.add_parser("runs", help="list the summaries at a reference")
    runs.add_argument("references", metavar="REF", nargs="+", help=f"{reference}, or {several}")
    runs.add_argument("--sort", metavar="COLUMN", help="a column, as created or params; of figures the largest first")
    runs.add_argument("--format", choices=("text", "markdown", "json", "csv"), default="text")
    runs.set_defaults(run=_runs)

    push = commands.add_parser("push", help="write a stored summary to a tracker")
    push.add_argument("reference", metavar="REF", help=reference)
    push.add_argument("tracker", metavar="TRACKER", help=f"what to write to: {', '.join(REFERENCES)}")
    push.add_argument("--step", type=int, default=0, metavar="N", help="the training step that it is of (default: 0)")
    push.set_defaults(run=_push)

    for command in (show, compare, runs):
        command.add_argument("-o", "--output", metavar="FILE", help="write to a file instead of standard output")
    return parser


class _Command(argparse.ArgumentParser):
    """Says last what it takes an import to know."""

    says_last: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.says_last is not None:
            self.epilog = self.says_last()
        return super().format_help()


def _figures() -> str:
    from summarycb.changes import FIGURES, KINDS
    from summarycb.compare import TOTALS

    totals = [name for name in TOTALS if name not in FIGURES]
    return (
        f"Metrics of modules, for gates with a PATTERN and --sort: {', '.join(FIGURES)}. Of the whole step also: "
        f"{', '.join(totals)}. Kinds of change, for --only: {', '.join(KINDS)}."
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _count(text: str) -> int | None:
    if text == "-1":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number from 0 on, or -1 for all, not {text!r}")
    return int(text)


_CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "--depth": (
        "depth",
        {"type": _count, "metavar": "N", "help": "levels below the root; -1 is all (default: 3, of a graph 2)"},
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
_DRAWN = ("--width", "--ascii")
"""Those that ``compare`` has too."""


def _show(options: argparse.Namespace) -> None:
    import inspect

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


_SHOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "--sort": ("sort", {"metavar": "FIGURE", "help": "rows by the change of this figure, the largest first"}),
    "--depth": ("depth", {"type": _count, "metavar": "N", "help": "rows below N levels are summed; -1 is all levels"}),
    "--only": (
        "only",
        {"action": "append", "metavar": "KIND|GLOB", "help": "rows of this kind, or whose path fits; may be repeated"},
    ),
    "--rows": (
        "most",
        {
            "type": _count,
            "metavar": "N",
            "help": "the first rows, the rest in one; -1 is all (default: 30, of a page 200)",
        },
    ),
}
"""Each option of a comparison's table -> the field of :class:`summarycb.compared.Shown` that it is."""


def _compare(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from summarycb.compare import MOST_ON_PAGE, compare, document
    from summarycb.compared import Shown, view
    from summarycb.forms import COMPARED, form_of
    from summarycb.references import expand

    form = options.format or ("text" if options.output is None else form_of(Path(options.output), COMPARED))
    choices = {keyword: getattr(options, keyword) for keyword, _ in _SHOWN.values() if hasattr(options, keyword)}
    if choices and form == "json":
        raise SummaryError(f"{', '.join(_SHOWN)} are not for the format json, which has all rows")
    drawn = {keyword: getattr(options, keyword) for keyword in ("width", "ascii_only") if hasattr(options, keyword)}
    if drawn and form != "text":
        raise SummaryError(f"{', '.join(_DRAWN)} are for the format text, not {form}")
    shown, limits = Shown(**choices), []
    if options.fail_on:
        from summarycb import gates

        limits = [gates.parse(gate) for gate in options.fail_on]
    references = [one for reference in options.references for one in expand(reference)]
    if len(references) < 2:
        raise SummaryError(f"compare needs two summaries, and {options.references[0]!r} is one: {references[0]}")
    comparison = compare(*references, per=options.per)
    allowed = {"allow_unknown": options.allow_unknown, "allow_incomparable": options.allow_incomparable}
    verdicts = gates.check(comparison, limits, **allowed) if limits else ()
    options.failed = any(verdict.failed for verdict in verdicts)
    several = len(comparison.against) > 1
    said = [f"{verdict} [{verdict.b}]" if several else str(verdict) for verdict in verdicts]
    if form == "json":
        told = document(comparison) | {"gates": [gates.document(verdict) for verdict in verdicts]}
        _put(json.dumps(told, ensure_ascii=False), form, options.output)
    elif form == "html":
        from summarycb.render.html.comparison import to_html

        _put(to_html(comparison, Shown(**{"most": MOST_ON_PAGE} | choices), verdicts), form, options.output)
    else:
        made = view(comparison, shown)
        if form == "markdown" and said:  # a comment is read from its beginning, a terminal at its end
            made = replace(made, headline=(*[("gate", (line,)) for line in said], *made.headline))
        else:
            made = replace(made, notes=(*made.notes, *said))
        _put_view(made, form, options.output, **drawn)
    if options.output is not None or form == "html":
        for line, verdict in zip(said, verdicts, strict=True):
            if verdict.failed:
                print(f"summarycb: {line}", file=sys.stderr)


def _runs(options: argparse.Namespace) -> None:
    from summarycb import references

    records = references.runs(options.references, options.sort)
    if options.format == "json":
        _put(json.dumps(records, ensure_ascii=False), "json", options.output)
    elif options.format == "csv":
        from summarycb.render.exports import csv_of

        _put(csv_of(records), "csv", options.output)
    else:
        view = references.view(", ".join(options.references), records)
        _put_view(view, options.format, options.output, _width(_ANY_WIDTH))
    if all(record["error"] for record in records):
        raise SummaryError(f"no summary could be read; {records[0]['error']}")


def _put_view(view: View, form: str, output: str | None, width: int | None = None, *, ascii_only: bool = False) -> None:
    from summarycb.render.markdown import to_markdown
    from summarycb.render.terminal import MOST_WIDTH, draw, to_text

    if form == "text" and output is None:
        with _standard_output():
            draw(view, width=_width() if width is None else width, ascii_only=ascii_only)
    elif form == "text":
        _put(to_text(view, width=MOST_WIDTH if width is None else width, ascii_only=ascii_only), form, output)
    else:
        _put(to_markdown(view), form, output)


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


_ANY_WIDTH = 10_000
"""Of a list, which has no lines as long as this: in a pipe or a file nothing is left out."""


def _width(most: int | None = None) -> int:
    """The terminal's, or where there is none ``most``, by default what is easily read."""
    import shutil

    from summarycb.render.terminal import LEAST_WIDTH, MOST_WIDTH

    most = MOST_WIDTH if most is None else most
    return max(LEAST_WIDTH, min(shutil.get_terminal_size((most, 24)).columns, most))


def _encodable(text: str, kind: str) -> str:
    """``text`` as standard output can take it; JSON says the same in its own escapes."""
    from summarycb.render.terminal import encodable

    written = encodable(text, sys.stdout.encoding)
    return json.dumps(json.loads(text)) if kind in ("json", "speedscope") and written != text else written
