"""The command line: ``summarycb show`` and ``summarycb compare``. Must not import torch.

Exit status: 0 done, 2 an error, of whatever kind, that is said on standard error; 1 is kept for a gate.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from summarycb import __version__
from summarycb.errors import SummaryError

_REFERENCE = "a .json or .html file, or a tracker's: tensorboard:<logdir>, mlflow:<run_id>, wandb:<offline run folder>"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        text = options.run(options)
        if options.output is None:
            print(_encodable(text, options.format), flush=True)
        else:
            Path(options.output).write_text(text + "\n", encoding="utf-8", errors="replace")
    except (SummaryError, OSError, ModuleNotFoundError) as error:
        print(f"summarycb: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        print(f"summarycb: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="summarycb", description="Show and compare stored model summaries.")
    parser.add_argument("--version", action="version", version=f"summarycb {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    show = commands.add_parser("show", help="show one summary")
    show.add_argument("reference", metavar="REF", help=_REFERENCE)
    show.add_argument("--depth", type=int, default=3, metavar="N", help="levels below the root; -1 is all (default: 3)")
    show.add_argument("--columns", metavar="A,B", help="the columns, in order")
    show.set_defaults(run=_show)

    compare = commands.add_parser("compare", help="say what changed from one summary to another")
    compare.add_argument("a", metavar="REF", help=_REFERENCE)
    compare.add_argument("b", metavar="REF")
    compare.set_defaults(run=_compare)

    for command in (show, compare):
        command.add_argument("--format", choices=("text", "markdown", "json"), default="text")
        command.add_argument("-o", "--output", metavar="FILE", help="write to a file instead of standard output")
    return parser


def _show(options: argparse.Namespace) -> str:
    from summarycb.serialize import load

    summary = load(options.reference)
    depth = None if options.depth == -1 else options.depth
    columns = options.columns.split(",") if options.columns else None
    if options.format == "json":
        return summary.to_json()
    if options.format == "markdown":
        return summary.to_markdown(depth=depth, columns=columns)
    return summary.to_text(depth=depth, columns=columns, width=_width())


def _compare(options: argparse.Namespace) -> str:
    from summarycb.compare import compare

    comparison = compare(options.a, options.b)
    if options.format == "json":
        return comparison.to_json()
    return comparison.to_markdown() if options.format == "markdown" else comparison.to_text(width=_width())


def _width() -> int:
    import shutil

    from summarycb.render.terminal import LEAST_WIDTH

    return max(LEAST_WIDTH, shutil.get_terminal_size((100, 24)).columns)


def _encodable(text: str, kind: str) -> str:
    """``text`` as standard output can take it; JSON says the same in its own escapes."""
    from summarycb.render.terminal import encodable

    written = encodable(text, sys.stdout.encoding)
    return json.dumps(json.loads(text)) if kind == "json" and written != text else written
