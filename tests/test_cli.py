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
from summarycb.cli import main
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


@pytest.mark.parametrize("kind", ["text", "markdown", "json"])
def test_output_goes_to_a_file(stored: tuple[str, str], tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    assert (
        main(["show", stored[0], "--depth", "-1", "--columns", "type,params", "--format", kind, "-o", str(target)]) == 0
    )
    expected = {
        "text": SUMMARY.to_text(depth=None, columns=["type", "params"]),
        "markdown": SUMMARY.to_markdown(depth=None, columns=["type", "params"]),
        "json": SUMMARY.to_json(),
    }
    assert target.read_text() == expected[kind] + "\n"


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

    def planted(*_: object, **__: object) -> str:
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
