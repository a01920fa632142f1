"""The contract of a tracker: those that are shipped keep it, what does not keep it is told, and a stranger's can."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

import summarycb
from summarycb.cli import main
from summarycb.errors import SummaryError
from summarycb.report import Report
from summarycb.testing import RecordingTracker, check_tracker
from summarycb.trackers import kind
from summarycb.tree import ModelSummary
from tests.test_trackers import KINDS, SUMMARY, Store, mlflow, mlflow_uri, pytestmark, store, wandb, writer  # noqa: F401

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_the_trackers_that_are_shipped_keep_the_contract(store: Store) -> None:  # noqa: F811
    check_tracker(kind(store.reference.partition(":")[0]), store.native, store.reference)


class Keeps:
    """Keeps the contract, in memory; each other class breaks it in one way."""

    stored: ClassVar[dict[str, str]] = {}

    def __init__(self, where: str) -> None:
        self.where = where

    @classmethod
    def wrap(cls, target: object) -> Self | None:
        return cls(target.decode()) if isinstance(target, bytes) else None

    @classmethod
    def open(cls, reference: str) -> Self:
        return cls(reference.partition(":")[2])

    def write(self, report: Report, *, step: int) -> None:
        self.stored[self.where] = report.json

    def read(self) -> ModelSummary:
        if self.where not in self.stored:
            raise SummaryError(f"nothing in {self.where!r}")
        return ModelSummary.from_json(self.stored[self.where])


class TakesAll(Keeps):
    @classmethod
    def wrap(cls, target: object) -> Self | None:
        return cls("here")


class GoesByAttributes(Keeps):
    @classmethod
    def wrap(cls, target: object) -> Self | None:
        return cls("here") if hasattr(target, "decode") else None


class KeepsTheFirst(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        self.stored.setdefault(self.where, report.json)


class RefusesTwice(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        if self.stored.get(self.where) == report.json:
            raise KeyError("there already")
        super().write(report, step=step)


class DropsNotes(Keeps):
    def read(self) -> ModelSummary:
        from dataclasses import replace

        return replace(super().read(), notes=())


class Ascii(Keeps):
    def write(self, report: Report, *, step: int) -> None:
        report.text.replace("█", "").encode("ascii", errors="strict" if "größe" in report.text else "ignore")
        super().write(report, step=step)


class FindsNothing(Keeps):
    def read(self) -> ModelSummary:
        return super().read() if self.where in self.stored else SUMMARY


PROMISES: dict[type[Any], str | None] = {
    Keeps: None,
    RecordingTracker: "wrap takes bytes",
    TakesAll: "wrap gives None for what is not its kind, as object",
    GoesByAttributes: "wrap gives None for what is not its kind, as _Everything",
    KeepsTheFirst: "the newest summary is read",
    RefusesTwice: "write can be called in another thread",
    DropsNotes: "what is read is equal to what was written",
    Ascii: "write can be called in another thread",
    FindsNothing: "SummaryError is raised where there is no summary, as at 'keeps:here-that-is-not-there'",
    dict: "it has wrap, open, write and read, not wrap, open, write, read",
}


@pytest.mark.parametrize("broken", PROMISES, ids=lambda one: one.__name__)
def test_what_does_not_keep_the_contract_is_told(broken: type[Any]) -> None:
    Keeps.stored = {}
    promise = PROMISES[broken]
    if promise is None:
        check_tracker(broken, b"here", "keeps:here", modules=20)
    else:
        with pytest.raises(AssertionError) as raised:
            check_tracker(broken, b"here", "keeps:here", modules=20)
        assert str(raised.value) == f"a tracker must keep this: {promise}"


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
