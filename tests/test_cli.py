"""The command line, as a process of its own and on stored files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

import summarycb
from summarycb import ModelSummary
from summarycb.cli import main
from summarycb.forms import FORMATS
from summarycb.trackers import READ_ONLY, REFERENCES, SEVERAL
from tests.literal import FC, ROOT, SUMMARY
from tests.pages import residual
from tests.test_view import TEXT as SHOWN
from tests.test_view import Stream

OTHER = replace(SUMMARY, root=replace(ROOT, children=(replace(FC, type_name="Layer"), *ROOT.children[1:])))


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def compared(a: str, b: str) -> str:
    return summarycb.compare(a, b).to_text()


@pytest.fixture
def stored(tmp_path: Path) -> tuple[str, str]:
    return str(SUMMARY.save(tmp_path / "a.json")), str(OTHER.save(tmp_path / "b.json"))


def test_show(stored: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", stored[0]]) == 0
    assert capsys.readouterr().out == SHOWN + "\n"


def test_a_terminal_is_written_to_in_colour(stored: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same characters; but not in ASCII, which is for what takes no more."""
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for arguments, plain in ((["show", stored[0]], SHOWN), (["compare", *stored], compared(*stored))):
        stream = Stream("utf-8", terminal=True)
        monkeypatch.setattr("sys.stdout", stream)
        assert main(arguments) == 0
        assert "\x1b[1m" in stream.written()
        text = re.sub("\x1b\\[[0-9;]*m", "", stream.written())
        assert "\n".join(line.rstrip() for line in text.split("\n")) == plain + "\n"
    monkeypatch.setattr("sys.stdout", stream := Stream("utf-8", terminal=True))
    assert main(["show", stored[0], "--ascii", "--width", "60"]) == 0
    assert stream.written() == SUMMARY.to_text(width=60, ascii_only=True) + "\n"


def test_compare(stored: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *stored]) == 0
    assert capsys.readouterr().out == compared(*stored) + "\n"


FORMS = {  # the choices that are made of each, and the same in Python
    "json": ([], {}),
    "html": (
        ["--depth", "1", "--columns", "type,params", "--metric", "params", "--no-fold"],
        {"depth": 1, "columns": ["type", "params"], "metric": "params", "fold": False},
    ),
    "text": (
        ["--depth", "-1", "--sort", "params", "--filter", "*l*", "--metric", "params", "--width", "60", "--ascii"],
        {"depth": None, "sort": "params", "filter": "*l*", "metric": "params", "width": 60, "ascii_only": True},
    ),
    "markdown": (["--columns", "type,params", "--top", "2"], {"columns": ["type", "params"], "top": 2}),
    "csv": (["--outside"], {"outside": True}),
    "svg": (["--depth", "1", "--parameters", "--layout", "fast-sugiyama"], {"depth": 1, "parameters": True}),
    "dot": (["--depth", "1", "--no-fold"], {"depth": 1, "fold": False}),
    "mermaid": (["--depth", "-1"], {"depth": None}),
    "speedscope": ([], {}),
}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSummary, str]:
    summary = residual()
    return summary, str(summary.save(tmp_path_factory.mktemp("stored") / "net.json"))


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_to_a_file_and_to_standard_output(
    observed: tuple[ModelSummary, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """What the suffix says, unless ``--format`` says otherwise, with one line break at the end."""
    summary, stored = observed
    options, keywords = FORMS[form]
    expected = getattr(summary, f"to_{form}")(**keywords).rstrip("\n") + "\n"
    files = {f"net{FORMATS[form]}": [], "out": ["--format", form], "out.md": ["--format", form]}
    for name, asked in files.items():
        assert main(["show", stored, *options, *asked, "-o", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes().decode() == expected
    assert capsys.readouterr() == ("", "")
    assert main(["show", stored, *options, "--format", form]) == 0
    assert capsys.readouterr() == (expected, "")


def test_a_file_of_another_suffix_needs_a_format(
    stored: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its text is as wide as text is in a file, whatever the terminal is."""
    monkeypatch.setenv("COLUMNS", "60")
    target = tmp_path / "out.log"
    assert main(["show", stored[0], "-o", str(target)]) == 2
    assert not target.exists()
    assert capsys.readouterr().err.startswith("summarycb: cannot save to 'out.log': the file name must end in .json, ")
    assert main(["show", stored[0], "--format", "text", "-o", str(target)]) == 0
    assert target.read_text() == SHOWN + "\n"


@pytest.mark.slow
def test_a_reader_that_has_enough(stored: tuple[str, str]) -> None:
    """As ``head -1``: nothing is said of it."""
    command = f"{sys.executable} -m summarycb show {stored[0]} --depth -1 | (exec <&-; true)"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_choice_that_a_format_does_not_have(stored: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", stored[0], "--format", "json", "--depth", "1"]) == 2
    assert main(["show", stored[0], "--format", "csv", "--width", "60"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "summarycb: --depth is not for the format json, which takes no choice",
        "summarycb: --width is not for the format csv, which takes --outside",
    ]


def browser(folder: Path, status: int = 0) -> tuple[dict[str, str], Path]:
    """A program in place of the browser that notes what it is asked to open, and the environment that names it."""
    program, noted = folder / "browser.py", folder / "noted"
    program.write_text(
        f"import pathlib, sys\npathlib.Path({str(noted)!r}).write_text(sys.argv[1])\nsys.exit({status})\n"
    )
    # webbrowser asks what BROWSER names, and takes another when that fails: there is none on this PATH
    return {"BROWSER": f"{sys.executable} {program} %s", "PATH": str(folder), "TMPDIR": str(folder)}, noted


@pytest.mark.parametrize("output", [None, "page.html", "graph.svg"])
def test_open_hands_the_page_to_the_web_browser(
    observed: tuple[ModelSummary, str], tmp_path: Path, output: str | None
) -> None:
    environment, noted = browser(tmp_path)
    form = "svg" if output == "graph.svg" else "html"
    arguments = ["show", observed[1], "--open"] + (["-o", str(tmp_path / output)] if output else [])
    done = run(*arguments, env=environment)
    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)
    opened = Path(unquote(noted.read_text().removeprefix("file://")))
    assert opened == tmp_path / output if output else opened.parent == tmp_path and opened.suffix == ".html"
    assert opened.read_text().rstrip("\n") == getattr(observed[0], f"to_{form}")().rstrip("\n")


def test_open_where_there_is_no_web_browser(observed: tuple[ModelSummary, str], tmp_path: Path) -> None:
    environment, _ = browser(tmp_path, status=1)
    done = run("show", observed[1], "--open", "-o", str(tmp_path / "page.html"), env=environment)
    assert (done.stdout, done.returncode) == (b"", 2)
    assert done.stderr.decode() == f"summarycb: no web browser was found to open {tmp_path}/page.html\n"
    done = run("show", observed[1], "--open", "--format", "csv", env=environment)
    assert done.stderr.decode() == "summarycb: --open is for the formats html and svg, not csv\n"


def run(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """As a process of its own."""
    command = [sys.executable, "-m", "summarycb", *arguments]
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, **env}, timeout=60)


def test_an_error_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tmp_path / "none.json")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"summarycb: {tmp_path}/none.json: No such file or directory\n"


@pytest.mark.parametrize("command", [["show", "nosuch:x"], ["compare", "nosuch:x", "nosuch:y"]], ids=lambda c: c[0])
def test_a_tracker_that_is_not_there_is_answered_with_those_that_are(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``push`` answers; a file may have a colon in its name."""
    assert main(command) == 2
    assert capsys.readouterr().err == (
        "summarycb: 'nosuch:x' is no file, and names no tracker; allowed are mlflow:..., tensorboard:..., wandb:...\n"
    )


def test_a_file_with_a_colon_in_its_name_is_read(
    stored: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nosuch:x.json").write_bytes(Path(stored[0]).read_bytes())
    assert main(["show", "nosuch:x.json"]) == 0


def test_a_file_that_cannot_be_written_says_what_and_why(
    stored: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``summary.save`` says the same, in an OSError of the kind that it is."""
    (tmp_path / "folder.txt").mkdir()
    for target, kind, said in (
        (tmp_path / "none" / "a.txt", FileNotFoundError, f"the folder {tmp_path}/none does not exist"),
        (tmp_path / "a.json" / "a.txt", NotADirectoryError, "Not a directory"),
        (tmp_path / "folder.txt", IsADirectoryError, "Is a directory"),
    ):
        assert main(["show", stored[0], "-o", str(target)]) == 2
        assert capsys.readouterr() == ("", f"summarycb: cannot write {target}: {said}\n")
        with pytest.raises(kind) as caught:
            SUMMARY.save(target)
        assert str(caught.value) == f"[Errno {caught.value.errno}] cannot write {target}: {said}"


@pytest.mark.parametrize(("where", "why"), [(">&-", "it is closed"), (">/dev/full", "No space left on device")])
def test_a_standard_output_that_takes_nothing(stored: tuple[str, str], where: str, why: str) -> None:
    """Said of each way to write to it, with status 2; a file is still written."""
    a, b = stored
    asked = [f"show {a}", f"show {a} --format json", f"compare {a} {b}", f"compare {a} {b} -o {a}.txt"]
    commands = [f"{sys.executable} -m summarycb {arguments} {where}; echo $? >&2" for arguments in asked]
    done = subprocess.run(["sh", "-c", "\n".join(commands)], capture_output=True, text=True, check=False, timeout=60)
    said = f"summarycb: cannot write to standard output: {why}\n2\n"
    assert (done.stdout, done.stderr) == ("", f"{said * 3}0\n")
    assert Path(f"{a}.txt").read_text() == compared(a, b) + "\n"


def test_a_depth_or_column_that_does_not_exist(stored: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["show", stored[0], "--depth", "-2"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("argument --depth: a number from 0 on, or -1 for all, not '-2'")
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["compare", *stored, "--rows", "-2"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("argument --rows: a number from 0 on, or -1 for all, not '-2'")
    assert main(["show", stored[0], "--columns", "type, flops"]) == 2
    assert capsys.readouterr().err.startswith("summarycb: there is no column 'flops'; allowed: type, input")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"summarycb {summarycb.__version__}\n"


def test_an_error_that_nobody_foresaw_is_status_2_too(
    stored: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never 1, which says that a comparison is over a gate."""

    def planted(*_: object) -> ModelSummary:
        raise OverflowError("on purpose")

    monkeypatch.setattr("summarycb.serialize.load", planted)
    assert main(["show", stored[0]]) == 2
    assert capsys.readouterr().err == "summarycb: OverflowError: on purpose\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_output_that_cannot_encode_the_table(stored: tuple[str, str], encoding: str) -> None:
    """As a process: ``python -m summarycb`` into a pipe, in ASCII, and JSON with its own escapes."""
    named = replace(SUMMARY, root=replace(ROOT, type_name="网"))
    named.save(stored[1])

    def written(*arguments: str) -> str:
        done = run(*arguments, env={"PYTHONIOENCODING": encoding})
        assert (done.stderr, done.returncode) == (b"", 0)
        return done.stdout.decode(encoding)

    assert written("show", stored[0]) == SUMMARY.to_text(ascii_only=True) + "\n"
    assert written("compare", *stored).startswith("Net > ?\n")
    assert json.loads(written("show", stored[1], "--format", "json")) == json.loads(named.to_json())


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
    assert done.stdout == compared(*stored) + "\n"


def test_references_are_written_in_one_way(capsys: pytest.CaptureFixture[str]) -> None:
    """In the help of each command, and in every page and source, where none is told that is not in the list."""
    one = {*REFERENCES, *READ_ONLY}
    every = one | {reference for reference in SEVERAL if reference != "mlflow:experiments/<name>"}
    pattern = re.compile(r"\b(?:tensorboard|mlflow|wandb):<[^>`'\"]+>(?:/<[^>`'\"]+>)*")
    for command, told in {"show": one, "compare": every, "runs": every, "push": one}.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert set(pattern.findall(" ".join(capsys.readouterr().out.split()))) == told
    root = Path(__file__).parents[1]
    pages = [root / "README.md", root / "CHANGELOG.md"]
    pages += [path for folder in ("summarycb", "integrations") for path in (root / folder).rglob("*.py")]
    said = {path: set(pattern.findall(path.read_text(encoding="utf-8"))) for path in pages}
    assert said[root / "README.md"] == every
    assert set().union(*said.values()) == every


GATES = ["--fail-on", "params>+5%", "--fail-on", "params>0"]


def test_gates(stored: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1 over a gate, after the whole output; what a file or page does not say is said beside it."""
    a, b = stored
    over = ["--fail-on", "params>10"]
    said = "failed: params>10: 20, 10 over the limit"
    assert main(["compare", a, b, *GATES]) == 0
    passed = [f"passed: {gate}: 20 → 20 (0, +0 %)" for gate in GATES[1::2]]
    assert capsys.readouterr() == ("\n".join([compared(a, b), *passed, ""]), "")
    assert main(["compare", a, b, *over]) == 1
    assert capsys.readouterr() == (f"{compared(a, b)}\n{said}\n", "")
    assert main(["compare", a, b, *over, "--format", "markdown"]) == 1
    *_, gate = capsys.readouterr().out.partition("- **compared**")[0].splitlines()
    assert gate == f"- **gate**: {said.replace('>', chr(92) + '>')}"
    assert main(["compare", a, b, *over, "--format", "json"]) == 1
    (verdict,) = json.loads(capsys.readouterr().out)["gates"]
    assert verdict == {
        "gate": "params>10", "a": a, "b": b, "outcome": "failed", "failed": True, "text": said,
        "findings": [{"path": None, "a": 20, "b": 20, "delta": 0, "beyond": 10.0, "reason": None}],
    }  # fmt: skip
    for name in ("c.md", "c.html", "c.json", "c.txt"):
        assert main(["compare", a, b, *over, "-o", str(tmp_path / name)]) == 1
        assert capsys.readouterr() == ("", f"summarycb: {said}\n")
    assert (tmp_path / "c.txt").read_text() == f"{compared(a, b)}\n{said}\n"
    assert f'<li class="failed">{said.replace(">", "&gt;")}</li>' in (tmp_path / "c.html").read_text()
    assert main(["compare", a, b, "--fail-on", "params>ten", "-o", str(tmp_path / "d.txt")]) == 2
    assert not (tmp_path / "d.txt").exists()


def test_a_gate_that_cannot_be_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = replace(SUMMARY, memory=replace(SUMMARY.memory, gradients=None))
    other = replace(unknown, environment=replace(SUMMARY.environment, precision="float64"))
    a, b = str(unknown.save(tmp_path / "a.json")), str(other.save(tmp_path / "b.json"))
    gates = ["--fail-on", "memory_gradients>0", "--fail-on", "memory_peak>0"]
    for allowed, status in (
        ([], 1),
        (["--allow-unknown"], 1),
        (["--allow-incomparable"], 1),
        (["--allow-unknown", "--allow-incomparable"], 0),
    ):
        assert main(["compare", a, b, *gates, *allowed]) == status
    assert capsys.readouterr().out.endswith(
        "\nundecided (allowed): memory_gradients>0: it is unknown in the first and the second\n"
        "passed: memory_peak>0: 512 B → 512 B (0 B, +0 %)\n"
    )


def test_a_gate_fails_though_the_reader_has_enough(stored: tuple[str, str]) -> None:
    a, b = stored
    command = f"{sys.executable} -m summarycb compare {a} {b} --fail-on 'params>10'"
    piped = f"{command} | (exec <&-; true); exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")


def test_what_is_shown_of_a_comparison(stored: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    from summarycb.compared import Shown, view
    from summarycb.render.terminal import to_text

    comparison = summarycb.compare(*stored)
    options = ["--sort", "params", "--depth", "0", "--only", "replaced", "--only", "f*", "--rows", "1"]
    assert main(["compare", *stored, *options]) == 0
    shown = Shown(depth=0, sort="params", only=("replaced", "f*"), most=1)
    assert capsys.readouterr().out == to_text(view(comparison, shown)) + "\n"
    assert main(["compare", *stored, "--per", "sample"]) == 0
    assert capsys.readouterr().out == summarycb.compare(*stored, per="sample").to_text() + "\n"
    assert main(["compare", *stored, "--format", "json", "--depth", "1"]) == 2
    assert main(["compare", stored[0]]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "summarycb: --sort, --depth, --only, --rows are not for the format json, which has all rows",
        f"summarycb: compare needs two summaries, and {stored[0]!r} is one: {stored[0]}",
    ]
