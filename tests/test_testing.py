"""The contract of a tracker: those that are shipped keep it, what does not keep it is told, and a stranger's can."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

import summarycb
from summarycb.cli import main
from summarycb.report import Report
from summarycb.serialize import loads, read
from summarycb.testing import RecordingTracker, check_tracker
from summarycb.trackers import kind
from summarycb.tree import ModelSummary
from tests.test_trackers import KINDS, SUMMARY, Store, mlflow, mlflow_uri, pytestmark, store, wandb, writer  # noqa: F401

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_the_trackers_that_are_shipped_keep_the_contract(store: Store) -> None:  # noqa: F811
    check_tracker(kind(store.reference.partition(":")[0]), store.native, store.reference)


class Keeps:
    """Keeps the contract, in a file; each other class breaks it in one way."""

    last: ClassVar[str] = ""
    released: ClassVar[threading.Event]

    def __init__(self, where: str) -> None:
        self.where = Path(where)

    @classmethod
    def wrap(cls, target: object) -> Self | None:
        return cls(target.decode()) if isinstance(target, bytes) else None

    @classmethod
    def open(cls, reference: str) -> Self:
        return cls(reference.partition(":")[2])

    def write(self, report: Report, *, step: int) -> None:
        type(self).last = str(self.where)
        self.where.write_text(report.json)

    def read(self) -> ModelSummary:
        return read(self.where)


class TakesAll(Keeps):
    @classmethod
    def wrap(cls, target: object) -> Self | None:
        return cls("here")


class WrapsByAttributes(Keeps):
    @classmethod
    def wrap(cls, target: Any) -> Self | None:
        return cls(str(target.decode())) if hasattr(target, "decode") else None


class WrapsUnasked(Keeps):
    @classmethod
    def wrap(cls, target: Any) -> Self | None:
        return cls(target.decode())


class NeedsAReference(Keeps):
    @classmethod
    def open(cls, reference: str) -> Self:
        return cls(reference.split(":")[1])


class FindsAlways(Keeps):
    def read(self) -> ModelSummary:
        return super().read() if self.where.exists() else SUMMARY


class FindsNoFile(Keeps):
    def read(self) -> ModelSummary:
        return loads(self.where.read_text())


class MakesWhatItReads(Keeps):
    def read(self) -> ModelSummary:
        self.where.touch()
        return super().read()


class HasNoStep(Keeps):
    def write(self, report: Report) -> None:  # type: ignore[override]
        super().write(report, step=0)


class WritesInTheMainThread(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("main thread only")


class NeverWrites(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        self.released.wait()


class NeverReads(Keeps):
    def read(self) -> ModelSummary:
        if self.where.exists():
            self.released.wait()
        return super().read()


class WritesNothing(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        pass


class WritesLater(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        threading.Thread(target=self.released.wait, daemon=False).start()


class ChangesTheReport(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        super().write(report, step=step)
        report.metrics.clear()


class ChangesTheFolder(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        super().write(report, step=step)
        os.chdir("/")


class ChangesTheEnvironment(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        super().write(report, step=step)
        os.environ["WRITTEN"] = "yes"


class Prints(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        super().write(report, step=step)
        print("written")


class KeepsTheFirst(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        if not self.where.exists():
            super().write(report, step=step)


class Finds(Keeps):
    @classmethod
    def find(cls, reference: str) -> Any:
        return [reference]

    def created(self) -> datetime | None:
        return datetime(2026, 11, 22, tzinfo=UTC)

    def run_name(self) -> Any:
        return "a run"


class FindFails(Finds):
    @classmethod
    def find(cls, reference: str) -> Any:
        raise KeyError("runs")


class FindsText(Finds):
    @classmethod
    def find(cls, reference: str) -> Any:
        return reference


class FindsFolders(Finds):
    @classmethod
    def find(cls, reference: str) -> Any:
        return [Path(reference)]


class FindsWhatHoldsNothing(Finds):
    @classmethod
    def find(cls, reference: str) -> Any:
        return [reference, "keeps:HERE/none"]


class FindsNone(Finds):
    @classmethod
    def find(cls, reference: str) -> Any:
        return []


class SaysNoTimeZone(Finds):
    def created(self) -> datetime | None:
        return datetime(2026, 11, 22)


class SaysNoName(Finds):
    def run_name(self) -> Any:
        return 1


class RefusesTwice(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        if self.where.exists():
            raise KeyError("there already")
        super().write(report, step=step)


class DropsNotes(Keeps):
    def read(self) -> ModelSummary:
        return replace(super().read(), notes=())


class NeedsMemory(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        super().write(report, step=step)
        report.metrics["model_summary/memory_peak_bytes"]


class Ascii(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        super().write(report, step=step)
        report.summary.root.children[0].path.encode("ascii")


class TakesLittle(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        if len(report.table) > 10:
            raise ValueError("too large")
        super().write(report, step=step)


class ForgetsItsReference(Keeps):
    @classmethod
    def open(cls, reference: str) -> Self:
        return cls(reference.partition(":")[2] if reference.endswith("there") else cls.last)


class NeverReadsElsewhere(Keeps):
    def read(self) -> ModelSummary:
        if self.where.exists() and not self.last:
            threading.Event().wait()
        return super().read()


ELSEWHERE = "a fresh process, which imports the class by its name, reads the newest summary; it raised "
FOUND = "find, if it is there, gives of a reference to one summary that alone"
PROMISES: dict[type[Any], str] = {
    dict: "it has wrap, open, write and read",
    RecordingTracker: "wrap takes bytes",
    TakesAll: "wrap gives None for what is not its kind, as object",
    WrapsByAttributes: "wrap gives None for what is not its kind, as _Everything; "
    "it raised TypeError: '_Everything' object is not callable",
    WrapsUnasked: "wrap gives None for what is not its kind, as object; "
    "it raised AttributeError: 'object' object has no attribute 'decode'",
    NeedsAReference: "open raises SummaryError, or gives what is active, for its bare name; "
    "it raised IndexError: list index out of range",
    FindsAlways: "read raises SummaryError where there is no summary",
    FindsNoFile: "read raises SummaryError where there is no summary; "
    "it raised FileNotFoundError: [Errno 2] No such file or directory: 'HERE-that-is-not-there'",
    MakesWhatItReads: "nothing is made where there is nothing to read, as HERE-that-is-not-there",
    HasNoStep: "write takes step by its name; it raised TypeError: got an unexpected keyword argument 'step'",
    WritesInTheMainThread: "write takes a summary, in a thread of its own; it raised RuntimeError: main thread only",
    NeverWrites: "write takes a summary, in a thread of its own; it raised TimeoutError: no answer within 0.5 s",
    ChangesTheReport: "the report, which others are given too, is not changed",
    ChangesTheFolder: "the working directory is not changed",
    ChangesTheEnvironment: "the environment variables are not changed",
    WritesLater: "no thread is left that the end of the process would wait for",
    WritesNothing: "read gives a summary, as it was written; it raised HERE: No such file or directory",
    NeverReads: "read gives a summary, as it was written; it raised TimeoutError: no answer within 0.5 s",
    DropsNotes: "read gives a summary, as it was written",
    RefusesTwice: "write takes the same summary again, as when a training is resumed, in a thread of its own; "
    "it raised KeyError: 'there already'",
    KeepsTheFirst: "read gives a newer summary, as it was written",
    NeedsMemory: "write takes a summary with a figure that is unknown, in a thread of its own; "
    "it raised KeyError: 'model_summary/memory_peak_bytes'",
    Ascii: "write takes a module of any name, in a thread of its own; it raised UnicodeEncodeError: "
    "'ascii' codec can't encode characters in position 2-3: ordinal not in range(128)",
    TakesLittle: "write takes 20 modules, in a thread of its own; it raised ValueError: too large",
    Prints: "nothing is printed",
    FindFails: f"{FOUND}; it raised FindFails could not be asked what is at 'keeps:HERE': KeyError: 'runs'",
    FindsText: f"{FOUND}; it raised find of FindsText must give a list of references, not 'keeps:HERE'",
    FindsFolders: f"{FOUND}; it raised find of FindsFolders must give a list of references, "
    "not [PosixPath('keeps:HERE')]",
    FindsWhatHoldsNothing: f"{FOUND}; it raised HERE/none: No such file or directory",
    FindsNone: FOUND,
    SaysNoTimeZone: "created, if it is there, gives a datetime with its time zone, or None",
    SaysNoName: "run_name, if it is there, gives a str, or None",
    ForgetsItsReference: f"{ELSEWHERE}ChildProcessError: summarycb.errors.SummaryError: .: not a regular file",
    NeverReadsElsewhere: f"{ELSEWHERE}TimeoutExpired: ",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)  # and back, whoever changes it
    monkeypatch.setenv("WRITTEN", "no")
    Keeps.released = threading.Event()
    yield tmp_path / "here"
    Keeps.released.set()


def check(tracker: type[Any], here: Path) -> None:
    timeout = 0.5 if tracker in (NeverWrites, NeverReads) else 5 if tracker is NeverReadsElsewhere else 60
    check_tracker(tracker, str(here).encode(), f"keeps:{here}", modules=20, timeout=timeout)


@pytest.mark.parametrize("kept", [Keeps, Finds])
def test_a_tracker_that_keeps_the_contract_passes(kept: type[Any], here: Path) -> None:
    check(kept, here)


@pytest.mark.parametrize("broken", PROMISES, ids=lambda one: one.__name__)
def test_what_does_not_keep_the_contract_is_told(broken: type[Any], here: Path) -> None:
    """By the promise, and by what was raised; in bounded time."""
    with pytest.raises(AssertionError) as raised:
        check(broken, here)
    told = str(raised.value).replace(str(here), "HERE")
    expected = f"a tracker must keep this: {PROMISES[broken]}"
    assert told == expected or (broken is NeverReadsElsewhere and told.startswith(expected))


@pytest.mark.slow
def test_a_tracker_of_another_package(tmp_path: Path) -> None:
    """The example is built, installed where nothing else is, checked, and used for real from the command line."""
    site = tmp_path / "site"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    pip = [sys.executable, "-m", "pip", "install", *options, str(ROOT / "examples" / "third_party_tracker")]
    subprocess.run(pip, check=True, timeout=120)
    inherited = os.environ.get("PYTHONPATH", "")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *([inherited] if inherited else [])])}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=tmp_path, timeout=120, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    run(
        "-c",
        "from pathlib import Path; from summarycb.testing import check_tracker; from summarycb.trackers import kind\n"
        "check_tracker(kind('csv'), Path('checked'), 'csv:checked')",
    )
    run(
        "-c",
        "import torch, summarycb\nmodel = torch.nn.Linear(2, 2)\n"
        "hook = summarycb.watch(model, trackers=['csv:runs/17'], verbose=False)\n"
        "optimizer = torch.optim.SGD(model.parameters(), 0.1)\nmodel(torch.rand(1, 2)).sum().backward()\n"
        "optimizer.step()",
    )
    shown = run("-m", "summarycb", "show", "csv:runs/17", "--format", "csv")
    assert shown.splitlines()[0] == (tmp_path / "runs" / "17" / "model_summary.csv").read_text().splitlines()[0]


# --- summarycb push -------------------------------------------------------------------------------------------------


def test_a_saved_summary_is_written_later(writer: Any, tmp_path: Path) -> None:  # noqa: F811
    """The local file of a run that reached no tracker goes where it was meant to go."""
    saved = SUMMARY.save(tmp_path / "saved.json")
    assert main(["push", str(saved), f"tensorboard:{tmp_path / 'later'}", "--step", "3"]) == 0
    assert summarycb.load(f"tensorboard:{tmp_path / 'later'}") == SUMMARY


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("nowhere:x", "'nowhere:x' names no tracker; allowed are mlflow:..., tensorboard:..., wandb:..."),
        ("tensorboard:", "'tensorboard:' names no run: give a SummaryWriter, or 'tensorboard:<logdir>'"),
    ],
)
def test_what_cannot_be_pushed_is_an_error(
    tracker: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = SUMMARY.save(tmp_path / "saved.json")
    assert main(["push", str(saved), tracker]) == 2
    assert capsys.readouterr().err == f"summarycb: {message}\n"
    assert summarycb.load(saved) == SUMMARY
