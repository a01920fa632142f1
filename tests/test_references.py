"""References to several summaries, in real stores, and the list of what is there."""

# ruff: noqa: F811  (a test's argument is a fixture that is imported)
from __future__ import annotations

import csv
import io
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from summarycb import SummaryError, compare, load, references
from summarycb.cli import main
from summarycb.references import expand
from summarycb.report import Report
from summarycb.step import Failure, Memory
from summarycb.trackers import open_reference
from summarycb_mlflow import server
from tests.literal import ROOT, SUMMARY
from tests.test_trackers import GOOD, install  # noqa: F401

NARROW, MIDDLE, WIDE = (replace(SUMMARY, root=replace(ROOT, type_name=name)) for name in ("Narrow", "Middle", "Wide"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files, of which the last in the alphabet is the oldest, and a note."""
    for age, (name, summary) in enumerate({"a.json": WIDE, "b.html": MIDDLE, "c.json": NARROW}.items()):
        os.utime(summary.save(tmp_path / name), (1e9 - age, 1e9 - age))
    (tmp_path / "notes.txt").write_text("not a summary")
    return tmp_path


def test_files(folder: Path) -> None:
    """Of a folder and of a glob the newest first; a file is itself, also one that is not there."""
    a, b, c = (str(folder / name) for name in ("a.json", "b.html", "c.json"))
    assert expand(str(folder)) == [a, b, c]
    assert expand(str(folder / "*.json")) == [a, c]
    assert expand(a) == [a]
    assert expand(f"{folder}/none.json") == [f"{folder}/none.json"]
    SUMMARY.save(folder / "a.speedscope.json")  # a flame graph, beside what it is of
    compare(a, b).save(folder / "ab.json")
    (folder / "cut.html").write_text(Path(b).read_text()[:500])  # it is told of when it is read
    os.utime(folder / "cut.html", (1, 1))
    assert [expand(folder), expand(f"{folder}/*.json")] == [[a, b, c, str(folder / "cut.html")], [a, c]]
    os.rename(a, folder / "[a].json")
    assert expand(str(folder / "[a].json")) == [str(folder / "[a].json")]


def test_a_page_of_several_stands_for_all_of_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By itself; beside what it compares it is passed over, so that nothing is there twice."""
    monkeypatch.chdir(folder)
    compare = ["compare", ".", "-o", "page.html"]
    assert main(compare) == main(compare) == 0  # the page of the first is there at the second
    assert expand("page.html") == ["page.html#1", "page.html#2", "page.html#3"]
    assert [load(one).root.type_name for one in expand("page.html")] == ["Wide", "Middle", "Narrow"]
    assert expand(".") == ["a.json", "b.html", "c.json"]
    assert expand("*.html") == ["b.html"]
    capsys.readouterr()
    assert main(["compare", "page.html", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [told["a"], told["b"], told["others"][0]["b"]] == expand("page.html")
    assert main(["runs", "page.html", "--format", "json"]) == 0
    assert [one["model"] for one in json.loads(capsys.readouterr().out)] == ["Wide", "Middle", "Narrow"]


@pytest.mark.parametrize("nothing", ["", 3, None], ids=repr)
def test_what_is_no_reference(nothing: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one, as of a variable that a script has not set, does not stand for the folder that it runs in."""
    monkeypatch.chdir(folder)
    with pytest.raises(SummaryError) as caught:
        expand(nothing)
    said = "a reference is a text such as 'runs/base.json' or 'mlflow:<run_id>', not "
    assert str(caught.value) == f"{said}{nothing!r}"


def test_where_there_is_none(tmp_path: Path) -> None:
    for nothing in (str(tmp_path), f"{tmp_path}/*.json"):
        with pytest.raises(SummaryError) as caught:
            expand(nothing)
        assert str(caught.value) == f"no summaries were found at {nothing!r}"


def write(reference: str, *summaries: Any) -> None:
    tracker = open_reference(reference)
    assert tracker is not None
    for summary in summaries:
        tracker.write(Report(summary), step=0)


def names(reference: str) -> list[str]:
    """The models at a reference, in their order, read from where each of its references says."""
    found = []
    for one in expand(reference):
        tracker = open_reference(one)
        assert tracker is not None
        found.append(tracker.read().root.type_name)
    return found


def test_a_folder_of_tensorboard_runs(tmp_path: Path) -> None:
    """In event files; the newest is the one that was written to last, and a folder without a summary is none."""
    from torch.utils.tensorboard import SummaryWriter

    for at, summary in {"sweep/narrow": NARROW, "wide": WIDE, "sweep/middle": MIDDLE, "wide ": WIDE}.items():
        write(f"tensorboard:{tmp_path / at}", summary)
    write(f"tensorboard:{tmp_path}/sweep/narrow", NARROW)
    with SummaryWriter(str(tmp_path / "other")) as writer:
        writer.add_scalar("loss", 1.0)
    assert names(f"tensorboard:{tmp_path}") == ["Narrow", "Wide", "Middle", "Wide"]
    assert expand(f"tensorboard:{tmp_path}/sweep/narrow") == [f"tensorboard:{tmp_path}/sweep/narrow"]


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield mlflow
    mlflow.set_tracking_uri(None)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own, of its query
def test_an_mlflow_experiment(mlflow: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All runs that have a summary, by when they began; compared with one another where it alone is given."""
    client = mlflow.MlflowClient()
    at = client.create_experiment("team/gpt", artifact_location=str(tmp_path / "artifacts"))
    began = {"narrow": (NARROW, 2_000), "none": (None, 3_000), "wide": (WIDE, 4_000), "middle": (MIDDLE, 1_000)}
    ids = {}
    for name, (summary, when) in began.items():
        ids[name] = client.create_run(at, start_time=when).info.run_id
        if summary is not None:
            write(f"mlflow:{ids[name]}", summary)
    reference = "mlflow:experiments/team/gpt"
    assert expand(reference) == [f"mlflow:{ids[name]}" for name in ("wide", "narrow", "middle")]
    assert names(reference) == ["Wide", "Narrow", "Middle"]
    assert expand(f"mlflow:{ids['wide']}") == [f"mlflow:{ids['wide']}"]
    assert main(["compare", reference, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [told["b"], told["others"][0]["b"]] == [f"mlflow:{ids['narrow']}", f"mlflow:{ids['middle']}"]

    with pytest.raises(SummaryError) as caught:
        expand("mlflow:experiments/none")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert str(caught.value) == f"MLflow experiment 'none' at {uri}: there is none of this name"
    client.create_experiment("empty")
    with pytest.raises(SummaryError, match=r"^no summaries were found at 'mlflow:experiments/empty'$"):
        expand("mlflow:experiments/empty")


@pytest.mark.parametrize("silent", [False, True], ids=["nobody listens", "nobody answers"])
def test_an_mlflow_server_that_is_not_there(
    silent: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Is named with the reason, by the time that one answer may take."""
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if not silent:
            listener.close()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
        for command in ("runs", "compare"):
            begin = time.monotonic()
            assert main([command, "mlflow:experiments/gpt"]) == 2
            assert time.monotonic() - begin < 10
            out, err = capsys.readouterr()
            assert out == ""
            reason = "timed out" if silent else "[Errno 111] Connection refused"
            assert err == f"summarycb: MLflow experiment 'gpt' at http://127.0.0.1:{port}: {reason}\n"


def test_a_folder_of_offline_wandb_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run in ``wandb/``; those of one second in the order of their ids."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    from summarycb_wandb import WandbTracker

    folders = []
    for run_id, summary in {"a": NARROW, "b": WIDE, "c": None}.items():
        with wandb.init(project="p", id=run_id, dir=tmp_path, settings=wandb.Settings(x_disable_stats=True)) as run:
            folders.append(str(Path(run.dir).parent))
            if summary is not None:
                WandbTracker(run).write(Report(summary), step=0)
    for folder in (tmp_path, tmp_path / "wandb"):
        assert expand(f"wandb:{folder}") == [f"wandb:{folders[1]}", f"wandb:{folders[0]}"]
        assert names(f"wandb:{folder}") == ["Wide", "Narrow"]
    assert expand(f"wandb:{folders[0]}") == [f"wandb:{folders[0]}"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("1 / 0", "Tracker could not be asked what is at 'bad:all': ZeroDivisionError: division by zero"),
        ("'bad:1'", "find of Tracker must give a list of references, not 'bad:1'"),
        ("None", "find of Tracker must give a list of references, not None"),
        ("[1, 2]", "find of Tracker must give a list of references, not [1, 2]"),
        ("[]", "no summaries were found at 'bad:all'"),
    ],
)
def test_a_tracker_whose_find_is_broken_is_told(
    install: Any, found: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install("bad_plugin", "bad", f"{GOOD}    @classmethod\n    def find(cls, reference): return {found}\n")
    for command in ("runs", "compare"):
        assert main([command, "bad:all"]) == 2
        assert capsys.readouterr() == ("", f"summarycb: {message}\n")


def test_references_that_hold_nothing_are_told(install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """In a list each with its reason, and the others with their figures; a comparison names the first."""
    install(
        "bad_plugin", "bad", f"{GOOD}    @classmethod\n    def find(cls, reference): return ['bad:1', 'nowhere:2']\n"
    )
    assert main(["runs", "bad:all", "--format", "json"]) == 2  # none could be read
    out, err = capsys.readouterr()
    assert err == "summarycb: no summary could be read; AttributeError: 'Tracker' object has no attribute 'written'\n"
    records = json.loads(out)
    assert [one["error"] for one in records] == [
        "AttributeError: 'Tracker' object has no attribute 'written'",
        "'nowhere:2' is no file, and names no tracker; allowed are bad:..., mlflow:..., tensorboard:..., wandb:...",
    ]
    assert main(["compare", "bad:all"]) == 2
    assert capsys.readouterr() == ("", "summarycb: AttributeError: 'Tracker' object has no attribute 'written'\n")


def created(reference: str) -> datetime:
    """When the list says that the one run began."""
    (record,) = references.runs([reference])
    return datetime.fromisoformat(record["created"])


def named(reference: str) -> str | None:
    """What the list calls the one run."""
    (record,) = references.runs([reference])
    assert record["error"] is None
    name: str | None = record["name"]
    return name


def test_when_a_tensorboard_run_was_created(tmp_path: Path) -> None:
    """As its first event file, whose name has seconds; without a writer's, as the summary was written."""
    from torch.utils.tensorboard import SummaryWriter

    begin = datetime.now(UTC)
    write(f"tensorboard:{tmp_path}/alone", SUMMARY)
    end = datetime.now(UTC)
    assert begin <= created(f"tensorboard:{tmp_path}/alone") <= end
    folder = tmp_path / "trained"
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("loss", 1.0)
    (file,) = folder.iterdir()
    began = int(file.name.split(".")[3])
    file.rename(folder / file.name.replace(str(began), str(began - 3600)))  # a training that was begun an hour ago
    write(f"tensorboard:{folder}", SUMMARY)
    assert created(f"tensorboard:{folder}") == datetime.fromtimestamp(began - 3600, UTC)
    assert named(f"tensorboard:{folder}/") == "trained"


def test_when_an_offline_wandb_run_was_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its log says; one whose log is gone has a summary, and no time: its folder's name is of an unknown zone."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    from summarycb_wandb import WandbTracker

    begin = datetime.now(UTC)
    settings = wandb.Settings(x_disable_stats=True)
    with wandb.init(mode="offline", project="p", name="2x32", dir=tmp_path, settings=settings) as run:
        WandbTracker(run).write(Report(SUMMARY), step=0)
    end, folder = datetime.now(UTC), Path(run.dir).parent
    for where in (folder, folder / "files", tmp_path / "wandb"):
        assert begin <= created(f"wandb:{where}") <= end
        assert named(f"wandb:{where}") == "2x32"
    (log,) = folder.glob("*.wandb")
    log.unlink()
    (record,) = references.runs([f"wandb:{folder}"])
    assert (record["name"], record["created"], record["params"], record["error"]) == (None, None, 20, None)


LONG = "tensorboard:runs/with-a-name-as-long-as-many-are/"
PIPED = """\
tensorboard:runs, base.json
summaries 3

reference                                          name created (UTC)       model params fwd MACs step FLOPs saved act.  peak
─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
tensorboard:runs/with-a-name-as-long-as-many-are/2 2    2026-01-02 03:04:05 Net       20       78        324       84 B 512 B
tensorboard:runs/with-a-name-as-long-as-many-are/1 1    2026-01-02 03:04:05 Net       20       78        324       84 B 512 B
base.json                                          ?    ?                   Net       20       78        324        ?     ?

"""  # noqa: E501
AT_100 = """\
reference                                          model params fwd MACs step FLOPs saved act.  peak
────────────────────────────────────────────────────────────────────────────────────────────────────
"""
AT_80 = """\
reference                                          params fwd MACs step FLOPs
─────────────────────────────────────────────────────────────────────────────
"""
AT_40 = f"""\
reference
{"─" * 50}
"""


def test_a_list_keeps_its_references_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe nothing is left out; in a terminal figures are, and each first word is still a reference. All digits
    are in JSON and CSV."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    for number in (1, 2):
        write(f"{LONG}{number}", SUMMARY)
        (file,) = Path(f"{LONG}{number}".removeprefix("tensorboard:")).iterdir()
        began = file.name.split(".")[3]  # 2026-01-02 03:04:05, and a millisecond for each
        file.rename(file.with_name(file.name.replace(began, f"01767323045{number:03}000000")))
    replace(SUMMARY, memory=Memory()).save("base.json")
    asked = ["runs", "tensorboard:runs", "base.json"]
    assert main(asked) == 0
    assert capsys.readouterr() == (PIPED, "")
    for columns, head in {100: AT_100, 80: AT_80, 40: AT_40}.items():
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(asked) == 0
        shown = capsys.readouterr().out
        assert head in shown
        rows = shown.partition(head)[2].splitlines()[:3]
        assert [row.split()[0] for row in rows] == [f"{LONG}2", f"{LONG}1", "base.json"]
        assert all(load(row.split()[0]).total_params == 20 for row in rows)
        assert "no room for " in shown

    for column in references.SORTS:
        assert main([*asked, "--sort", column, "--format", "json"]) == 0
        records = json.loads(capsys.readouterr().out)
        last = LONG if column == "reference" else "base.json"
        assert records[2]["reference"].startswith(last), column
    assert [one["created"] for one in references.runs(["tensorboard:runs"], "created")] == [
        f"2026-01-02T03:04:05.00{number}000+00:00" for number in (2, 1)
    ]


RUNS = """\
bad.json, b.html, a.json
summaries 2 · 1 not read

reference created (UTC) model    params fwd MACs step FLOPs saved act.  peak
────────────────────────────────────────────────────────────────────────────
a.json    ?             Wide         20       78        324       84 B 512 B
b.html    ?             Middle       20       78        324       84 B 512 B
bad.json                not read

bad.json: bad.json: not a model summary in JSON: it is empty
"""


def test_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each; one that cannot be read says why, and is last."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    (folder / "c.json").rename("bad.json")
    (folder / "bad.json").write_text("")
    asked = ["runs", "bad.json", "b.html", "a.json"]
    assert main([*asked, "--sort", "reference"]) == 0
    assert capsys.readouterr() == (RUNS, "")
    assert main([*asked, "--sort", "params", "--format", "json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert records[0] == {
        "reference": "b.html", "name": None, "created": None, "model": "Middle", "params": 20, "forward_macs": 78,
        "step_flops": 324, "saved_activations": 84, "memory_peak": 512, "failed": None, "error": None,
    }  # fmt: skip
    assert [one["reference"] for one in records] == ["b.html", "a.json", "bad.json"]
    assert main([*asked, "--format", "csv"]) == 0
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(one["reference"], one["params"]) for one in read] == [("bad.json", ""), ("b.html", "20"), ("a.json", "20")]
    assert main([*asked, "--sort", "size"]) == 2
    assert capsys.readouterr().err == (
        "summarycb: sort must be None or a column, not 'size'; allowed: reference, name, created, model, params, "
        "forward_macs, step_flops, saved_activations, memory_peak\n"
    )


def test_a_step_that_failed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its figures are of what ran until then."""
    replace(SUMMARY, failure=Failure("RuntimeError", "forward")).save(tmp_path / "a.json")
    assert main(["runs", str(tmp_path / "a.json"), "--format", "json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["failed"] == "RuntimeError"
    (row,) = references.view("a.json", [record]).rows
    assert row.cells[:3] == ("?", "Net, failed", "20")
