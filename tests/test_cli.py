"""The command line, as a process of its own and on stored files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import summarycb
from summarycb import ModelSummary
from summarycb.cli import main
from summarycb.render.exports import FORMATS
from tests.literal import ROOT, SUMMARY
from tests.test_compare import OTHER
from tests.test_compare import TEXT as COMPARED
from tests.test_view import TEXT as SHOWN


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def stored(tmp_path: Path) -> tuple[str, str]:
    return str(SUMMARY.save(tmp_path / "a.json")), str(OTHER.save(tmp_path / "b.json"))


def test_show(stored: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", stored[0]]) == 0
    assert capsys.readouterr().out == SHOWN + "\n"


def test_compare(stored: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *stored]) == 0
    assert capsys.readouterr().out == COMPARED + "\n"


CHOICES = {
    "text": (["--depth", "-1", "--columns", "type,params", "--width", "60", "--ascii"], "tree.txt"),
    "markdown": (["--depth", "1", "--columns", "type,params"], "tree.md"),
    "json": ([], "tree.json"),
    "csv": (["--outside"], "tree.csv"),
    "speedscope": ([], "tree.speedscope.json"),
}
WRITTEN = {
    "text": lambda: SUMMARY.to_text(depth=None, columns=["type", "params"], width=60, ascii_only=True),
    "markdown": lambda: SUMMARY.to_markdown(depth=1, columns=["type", "params"]),
    "json": SUMMARY.to_json,
    "csv": lambda: SUMMARY.to_csv(outside=True),
    "speedscope": SUMMARY.to_speedscope,
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_to_a_file_and_to_standard_output(
    stored: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """What the suffix says, unless ``--format`` says otherwise, with one line break at the end."""
    choices, name = CHOICES[form]
    expected = WRITTEN[form]().rstrip("\n") + "\n"
    assert main(["show", stored[0], *choices, "-o", str(tmp_path / name)]) == 0
    assert main(["show", stored[0], *choices, "--format", form, "-o", str(tmp_path / "out")]) == 0
    assert main(["show", stored[0], *choices, "--format", form, "-o", str(tmp_path / "out.md")]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["show", stored[0], *choices, "--format", form]) == 0
    assert capsys.readouterr() == (expected, "")
    assert [(tmp_path / file).read_bytes().decode() for file in (name, "out", "out.md")] == [expected] * 3


def test_a_file_of_another_suffix_is_text(stored: tuple[str, str], tmp_path: Path) -> None:
    assert main(["show", stored[0], "-o", str(tmp_path / "out.log")]) == 0
    assert (tmp_path / "out.log").read_text() == SHOWN + "\n"


def test_a_choice_that_a_format_does_not_have(stored: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", stored[0], "--format", "json", "--depth", "1"]) == 2
    assert main(["show", stored[0], "--format", "csv", "--width", "60"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "summarycb: --depth is not for the format json, which takes no choice",
        "summarycb: --width is not for the format csv, which takes --outside",
    ]


def test_an_error_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tmp_path / "none.json")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"summarycb: {tmp_path}/none.json: No such file or directory\n"


def test_a_depth_or_column_that_does_not_exist(stored: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", stored[0], "--depth", "-2"]) == 2
    assert main(["show", stored[0], "--columns", "flops"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "summarycb: depth must be None (every level) or an integer from 0 (the root alone) on, not -2"
    assert second.startswith("summarycb: there is no column 'flops'; allowed: type, input")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"summarycb {summarycb.__version__}\n"


def test_an_error_that_nobody_foresaw_is_status_2_too(
    stored: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never 1, which says that a comparison is over a gate."""

    def planted(summary: ModelSummary, *, width: int) -> str:
        raise OverflowError("on purpose")

    monkeypatch.setattr("summarycb.ModelSummary.to_text", planted)
    assert main(["show", stored[0]]) == 2
    assert capsys.readouterr().err == "summarycb: OverflowError: on purpose\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_output_that_cannot_encode_the_table(stored: tuple[str, str], encoding: str) -> None:
    """As a process: ``python -m summarycb`` into a pipe, in ASCII, and JSON with its own escapes."""
    named = replace(SUMMARY, root=replace(ROOT, type_name="网"))
    named.save(stored[1])

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "summarycb", *arguments],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert (done.stderr, done.returncode) == (b"", 0)
        return done.stdout.decode(encoding)

    assert run("show", stored[0]) == SUMMARY.to_text(ascii_only=True) + "\n"
    assert run("compare", *stored).startswith("Net > ?\n")
    assert json.loads(run("show", stored[1], "--format", "json")) == json.loads(named.to_json())


@pytest.mark.parametrize("columns", ["1", "0"])
def test_a_terminal_that_is_too_narrow_gets_lines_that_are_too_long(
    stored: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["show", stored[0]]) == 0
    assert capsys.readouterr().err == ""


def test_it_works_where_nothing_but_rich_is_installed(stored: tuple[str, str]) -> None:
    """Two stored summaries are compared without importing torch, a framework, a tracker or pandas."""
    code = (
        "import sys\n"
        "for name in 'torch lightning pytorch_lightning tensorboard wandb mlflow pandas numpy'.split():\n"
        "    sys.modules[name] = None\n"  # an import of it raises
        "from summarycb.cli import main\n"
        f"sys.exit(main(['compare', {stored[0]!r}, {stored[1]!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout == COMPARED + "\n"
