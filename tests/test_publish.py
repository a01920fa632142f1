"""Reports are written in the background, in bounded time, and what could not be written is a local file."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import summarycb
from summarycb import exits
from summarycb.errors import SummaryError, SummaryWarning
from summarycb.publish import Publisher
from summarycb.report import METRICS, PREFIX, Report, structure
from summarycb.step import Environment, Memory
from summarycb.testing import RecordingTracker
from summarycb.trackers import Unopened, reason
from summarycb.tree import ModelSummary, ModuleSummary, Work
from summarycb.view import Selection
from tests.literal import SUMMARY as WRITTEN_OUT
from tests.test_trackers import SUMMARY


class Blocked:
    def __init__(self) -> None:
        self.started, self.release, self.done = threading.Event(), threading.Event(), threading.Event()
        self.steps: list[int] = []

    def write(self, report: Report, *, step: int) -> None:
        self.started.set()
        assert self.release.wait(60)
        self.steps.append(step)
        self.done.set()


class Raises:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def write(self, report: Report, *, step: int) -> None:
        raise self.error


@pytest.fixture
def report() -> Report:
    return Report(SUMMARY)


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    blocked = Blocked()
    yield blocked
    blocked.release.set()
    assert blocked.done.wait(60)


def the_copy(folder: Path) -> tuple[Path, ModelSummary]:
    """The one file that was saved, as ``load`` reads it."""
    [path] = folder.iterdir()
    return path, summarycb.load(path)


def published(publisher: Publisher, report: Report, step: int = 0) -> list[str]:
    """What is warned of when all is over."""
    publisher.publish(report, step=step)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        publisher.flush()
    return [str(w.message) for w in warned]


def test_publish_does_not_wait_for_a_tracker(blocked: Blocked, report: Report, copies: Path) -> None:
    publisher = Publisher([blocked], timeout=60)
    publisher.publish(report, step=0)
    assert blocked.started.wait(60)  # it is being written, and the caller is here
    assert not blocked.done.is_set()
    blocked.release.set()
    publisher.flush()
    assert blocked.done.is_set()
    assert not copies.exists()


def test_flush_is_bounded_and_says_once_what_was_not_written(blocked: Blocked, report: Report, copies: Path) -> None:
    """Three of four fail: one file has what they did not take."""
    good = RecordingTracker()
    publisher = Publisher([Raises(OSError("no space left")), blocked, Raises(SystemExit(3)), good], timeout=0.2)
    begin = time.monotonic()
    warned = published(publisher, report, step=7)
    assert time.monotonic() - begin < 10
    path, saved = the_copy(copies)
    assert warned == [
        "the model summary was not written to Raises: OSError: no space left; Blocked: no answer within 0.2 s; "
        f"Raises: SystemExit: 3; it is saved in {path}; 'summarycb push --step 7 FILE TRACKER' writes it later"
    ]
    assert saved == SUMMARY
    assert good.reports == [(report, 7)]
    publisher.flush()  # has nothing left to say: a second warning would be an error here


def test_a_copy_is_saved_before_anybody_waits(report: Report, copies: Path) -> None:
    """The process may be killed in the training that follows."""
    publisher = Publisher([Raises(OSError("no space left"))])
    publisher.publish(report, step=0)
    for thread in threading.enumerate():
        if thread.name == "summarycb-Raises":
            thread.join(60)
    path, saved = the_copy(copies)
    assert saved == SUMMARY
    with pytest.warns(SummaryWarning, match=path.name):
        publisher.flush()


def _ours() -> list[threading.Thread]:
    """The oldest first."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("summarycb-")]


def test_reports_are_written_one_after_another(blocked: Blocked, report: Report, copies: Path) -> None:
    """In one thread, in order, and no more than eight wait; the ninth is saved."""
    publisher = Publisher([blocked], timeout=60)
    reports = [Report(SUMMARY) for _ in range(9)]
    for step, one in enumerate(reports):
        publisher.publish(one, step=step)
    for saves_the_ninth in _ours()[1:]:
        saves_the_ninth.join(30)
    assert [thread.name for thread in _ours()] == ["summarycb-Blocked"]
    blocked.release.set()
    with pytest.warns(SummaryWarning) as warned:
        publisher.flush()
    path, _ = the_copy(copies)
    assert [str(w.message) for w in warned] == [
        "the model summary was not written to Blocked: did not come to more than 8 reports; "
        f"it is saved in {path}; 'summarycb push --step 8 FILE TRACKER' writes it later"
    ]
    assert blocked.steps == list(range(8))


def test_where_no_more_threads_can_be_made_nothing_is_lost(
    blocked: Blocked, report: Report, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight wait for the thread there is, and the ninth has none: it is saved, and the eight are written."""
    publisher = Publisher([blocked], timeout=60)
    publisher.publish(Report(SUMMARY), step=0)
    assert blocked.started.wait(60)

    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        for step in range(1, 9):
            publisher.publish(Report(SUMMARY), step=step)
    blocked.release.set()
    with pytest.warns(
        SummaryWarning, match="not written to Blocked: RuntimeError: can't start new thread; it is saved"
    ):
        publisher.flush()
    assert the_copy(copies)[1] == SUMMARY
    assert blocked.steps == list(range(8))


def test_a_tracker_that_was_waited_for_is_not_again(blocked: Blocked, report: Report, copies: Path) -> None:
    publisher = Publisher([blocked], timeout=0.2)
    published(publisher, report)
    publisher._timeout = 60
    begin = time.monotonic()
    publisher.flush()
    assert time.monotonic() - begin < 30


def test_a_tracker_that_answers_late_is_not_given_the_next_report_before(
    blocked: Blocked, report: Report, copies: Path
) -> None:
    """The newest is written last, and nothing is said twice of the one that was given up."""
    publisher = Publisher([blocked], timeout=0.2)
    [warned] = published(publisher, report, step=0)
    publisher.publish(Report(SUMMARY), step=1)
    publisher.publish(Report(SUMMARY), step=2)
    assert [t.name for t in threading.enumerate() if t.name.startswith("summarycb-")] == ["summarycb-Blocked"]
    blocked.release.set()
    publisher._timeout = 60
    publisher.flush()  # a warning would be an error here
    assert blocked.steps == [0, 1, 2]
    assert "no answer within 0.2 s" in warned


def test_each_report_that_was_not_written_has_a_file(report: Report, copies: Path) -> None:
    publisher = Publisher([Raises(OSError("no space left")), Raises(OSError("gone"))])
    publisher.publish(report, step=0)
    publisher.publish(Report(SUMMARY), step=1)
    with pytest.warns(SummaryWarning) as warned:
        publisher.flush()
    saved = sorted(copies.iterdir())
    assert [summarycb.load(path) for path in saved] == [SUMMARY, SUMMARY]
    said = str(warned[0].message)
    assert said.startswith(
        "the model summary was not written to Raises: OSError: no space left; Raises: OSError: gone; it is saved in "
    )
    assert [path.name in said for path in saved] == [True, True]


@pytest.mark.parametrize("where", ["a file", "no room"])
def test_where_the_folder_cannot_be_written_the_temporary_one_is_taken(
    where: str, report: Report, copies: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(temporary))
    copies.write_text("not a folder")
    if where == "no room":
        temporary.rmdir()
        temporary.write_text("nor this")
    [warned] = published(Publisher([Raises(OSError("no space left"))]), report)
    if where == "no room":
        assert warned.startswith(
            "the model summary was not written to Raises: OSError: no space left; nor could it be saved: "
            f"FileExistsError: [Errno 17] File exists: '{copies}'; FileExistsError: "
        )
    else:
        path, saved = the_copy(temporary)
        assert warned.endswith(f"; it is saved in {path}; 'summarycb push --step 0 FILE TRACKER' writes it later")
        assert saved == SUMMARY


def test_a_disk_that_fills_leaves_no_half_of_a_file(report: Report, tmp_path: Path) -> None:
    """A limit on the size of files, of a process of its own: nothing is saved, and nothing is left that looks so."""
    (tmp_path / "summary.json").write_text(report.json, encoding="utf-8")
    done = run_python(
        "import resource, signal\n"
        "import tempfile; tempfile.tempdir = 'temporary'\n"
        "from summarycb import load\nfrom summarycb.publish import Publisher\nfrom summarycb.report import Report\n"
        "class Bad:\n    def write(self, report, step): raise OSError('gone')\n"
        "report = Report(load('summary.json'))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "publisher = Publisher([Bad()]); publisher.publish(report, step=0)\n",
        tmp_path,
    )
    assert "; nor could it be saved: OSError: [Errno 27] cannot write " in done.stderr
    assert done.stderr.count(": File too large") == 2
    assert list(tmp_path.rglob("*.json")) == [tmp_path / "summary.json"]


def test_flush_does_not_raise_where_warnings_are_errors(
    report: Report, copies: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher([Raises(ValueError("no")), SimpleNamespace(write=lambda report, step: None)])
    publisher.publish(report, step=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        publisher.flush()
    path, _ = the_copy(copies)
    message = (
        f"the model summary was not written to Raises: ValueError: no; it is saved in {path}; "
        "'summarycb push --step 0 FILE TRACKER' writes it later"
    )
    assert caplog.record_tuples == [("summarycb", logging.WARNING, message)]


def test_what_no_tracker_could_be_opened_for_is_saved(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real training: the tracker's own package is broken, which is no reason to stop or to lose anything."""

    def fail(reference: str) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("summarycb.trackers.open_reference", fail)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    hook = summarycb.watch(model, trackers=["mlflow"], verbose=False)
    model(torch.rand(1, 2)).sum().backward()
    optimizer.step()
    with pytest.warns(SummaryWarning) as warned:
        hook.flush()
    path, saved = the_copy(copies)
    assert [str(w.message) for w in warned] == [
        "the model summary was not written to 'mlflow': ConnectionError: no route to host; "
        f"it is saved in {path}; 'summarycb push --step 0 FILE TRACKER' writes it later"
    ]
    assert saved == hook.summary


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=folder, check=True
    )


def test_a_script_that_ends_at_once_has_written_everything(tmp_path: Path) -> None:
    """Nobody called ``flush``: the interpreter's exit does."""
    Path(tmp_path, "summary.json").write_text(Report(SUMMARY).json, encoding="utf-8")
    run_python(
        "from summarycb.serialize import load\nfrom summarycb.publish import Publisher\n"
        "from summarycb.report import Report\nfrom summarycb.trackers import resolve\n"
        "from torch.utils.tensorboard import SummaryWriter\n"
        "publisher = Publisher(resolve([SummaryWriter('runs')]))\n"
        "publisher.publish(Report(load('summary.json')), step=0)",
        tmp_path,
    )
    assert summarycb.load(f"tensorboard:{tmp_path / 'runs'}") == SUMMARY


# --- the report -----------------------------------------------------------------------------------------------------


SILENT = """
import os, signal, sys, threading, warnings
import summarycb
from summarycb.publish import Publisher
from summarycb.report import Report
from tests.literal import SUMMARY

class Silent:
    def __init__(self, begun=lambda: None):
        self.begun = begun
    def write(self, report, *, step):
        self.begun()
        threading.Event().wait()
"""


def test_a_wait_that_is_interrupted_loses_nothing(tmp_path: Path) -> None:
    """Ctrl-C is what one presses when nothing seems to go on; another publisher has its turn, too."""
    code = SILENT + (
        "interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "Publisher([Silent()], timeout=0.1).publish(Report(SUMMARY), step=1)\n"
        "publisher = Publisher([Silent(lambda: threading.Timer(0.2, interrupt).start())], timeout=60)\n"
        "publisher.publish(Report(SUMMARY), step=2)\n"
        "publisher.flush() if sys.argv[1] == 'flush' else None\n"
    )
    for when in ("flush", "exit"):
        folder = tmp_path / when
        done = subprocess.run(
            [sys.executable, "-c", code, when], capture_output=True, text=True, timeout=60,
            env=os.environ | {"SUMMARYCB_DIR": str(folder)},
        )  # fmt: skip
        assert "Silent: no answer before the wait was interrupted; it is saved in" in done.stderr
        assert "Silent: no answer within 0.1 s; it is saved in" in done.stderr
        assert [summarycb.load(path) for path in folder.iterdir()] == [WRITTEN_OUT] * 2


def test_an_exit_while_a_picture_is_drawn_is_not_a_crash(tmp_path: Path) -> None:
    """Matplotlib's C++ calls Python; a thread that the interpreter's end stopped in it would kill the process."""
    script = """
import io, sys, threading, time
from matplotlib import font_manager, ft2font
from summarycb.publish import Publisher
from summarycb.report import Report
from summarycb.testing import RecordingTracker
from summarycb.tree import ModelSummary
from tests.test_trackers import SUMMARY
drawing, ended = threading.Event(), threading.Event()
font = open(font_manager.findfont("DejaVu Sans"), "rb").read()
class Slow(io.BytesIO):
    def read(self, *size):
        if not drawing.is_set():
            drawing.set()
            ended.wait(1)
        return super().read(*size)
ModelSummary.plot_memory = lambda summary: ft2font.FT2Font(Slow(font))
class Draws(RecordingTracker):
    def write(self, report, *, step):
        report.images
class Last:  # what modules hold goes as the interpreter ends: it takes longer than the picture
    def __del__(self, wait=time.sleep):
        wait(2)
sys.last = Last()
Publisher([Draws()], timeout=0).publish(Report(SUMMARY), step=0)
drawing.wait(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "SUMMARYCB_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "no answer within 0 s" in done.stderr


def test_as_the_process_ends_the_main_thread_alone_may_still_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user's own exit handler asks for is there."""
    may: list[bool] = []

    def ask() -> None:
        with exits.native() as allowed:
            may.append(allowed)

    for over in (False, True):
        monkeypatch.setattr(exits, "_over", over)
        ask()
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert may == [True, True, True, False]


def test_a_forked_process_leaves_to_its_parent_what_that_is_writing(tmp_path: Path) -> None:
    """The fork is made while a writer holds the lock; the child ends with nothing to say, and can publish itself."""
    code = SILENT + (
        "publisher = Publisher([Silent()], timeout=0.2)\n"
        "publisher.publish(Report(SUMMARY), step=1)\n"
        "with publisher._lock:\n"
        "    child = os.fork()\n"
        "if not child and sys.argv[1] == 'silent':\n"
        "    sys.exit(7)\n"
        "if not child:\n"
        "    publisher.publish(Report(SUMMARY), step=2)\n"
        "    sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "os._exit(0)\n"
    )
    for what, copies in (("silent", 0), ("publishes", 1)):
        folder = tmp_path / what
        done = subprocess.run(
            [sys.executable, "-c", code, what], capture_output=True, text=True, timeout=60, check=True,
            env=os.environ | {"SUMMARYCB_DIR": str(folder)},
        )  # fmt: skip
        assert done.stderr.count("was not written") == copies
        assert len(list(folder.glob("*"))) == copies


def test_a_forked_process_does_not_wait_for_what_a_thread_of_its_parent_writes() -> None:
    code = (
        "import os, sys\n"
        "from summarycb.trackers import writing\n"
        "with writing('run'):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os._exit(0 if writing('run').acquire(timeout=5) else 1)\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_a_tracker_that_could_not_be_opened_keeps_nothing_of_the_training() -> None:
    """The error has the frames of all that was running, and what these hold."""

    class Held:
        pass

    def training() -> tuple[Unopened, weakref.ref[Held]]:
        held = Held()
        try:
            raise ConnectionError("no route to host")
        except ConnectionError as error:
            return Unopened("mlflow", error), weakref.ref(held)

    unopened, held = training()
    gc.collect()
    assert held() is None
    with pytest.raises(SummaryError, match=r"^ConnectionError: no route to host$"):
        unopened.write(Report(SUMMARY), step=0)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("on purpose")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("<html>\n" + "x" * 1_000_000), "OSError: <html> " + "x" * 493 + " …"),  # 500 characters and the mark
        (Unspeakable(), "Unspeakable: it cannot be told"),
        (SummaryError("what happened"), "what happened"),
        (KeyError(), "KeyError"),
    ],
)
def test_a_reason_can_be_read(error: BaseException, said: str) -> None:
    assert reason(error) == said


def test_a_reports_text_has_the_depth_and_columns_that_were_asked_for() -> None:
    report = Report(SUMMARY, Selection(depth=0, columns=["params", "calls"]))
    assert report.text == SUMMARY.to_text(depth=0, columns=["params", "calls"])
    assert "fwd MACs" not in report.text


def test_the_names_of_metrics_are_documented_and_do_not_change() -> None:
    """The table in integrations/README.md has each, with its unit and what it is, and no other."""
    lines = (Path(__file__).parents[1] / "integrations" / "README.md").read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if line.startswith(f"| `{PREFIX}/")]
    assert told == [f"| `{PREFIX}/{metric.name}` | {metric.unit} | {metric.text} |" for metric in METRICS]


class Net(nn.Module):
    def __init__(self, width: int, extra: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.first, self.act, self.last = nn.Linear(4, width), extra(), nn.Linear(width, 2, bias=False)
        self.last.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.act(self.first(x))) * self.scale  # type: ignore[no-any-return]


def test_the_lines_that_a_diff_of_runs_is_of() -> None:
    assert Report(summarycb.summarize(Net(3), (torch.rand(2, 4),))).leaves == {
        "": "Net() · scale [2] float32",
        "first": "Linear(in_features=4, out_features=3, bias=True) · weight [3, 4], bias [3] float32",
        "act": "ReLU()",
        "last": "Linear(in_features=3, out_features=2, bias=False) · weight [2, 3] float32 · frozen",
    }


class Many(nn.Module):
    """``count`` parameters of ``shape``, of which those from ``melted`` on are trained; the last is of ``dtype``."""

    def __init__(self, count: int = 10, last: int = 2, dtype: torch.dtype = torch.float32, melted: int = 0) -> None:
        super().__init__()
        for n in range(count):
            size, kind = (last, dtype) if n == count - 1 else (2, torch.float32)
            self.register_parameter(f"p{n}", nn.Parameter(torch.ones(size, dtype=kind), requires_grad=n >= melted))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def line(module: nn.Module) -> str:
    return Report(summarycb.summarize(nn.Sequential(module), (torch.rand(2),))).leaves["0"]


def test_lines_of_modules_that_differ_differ() -> None:
    """Where a line does not say all, it ends with the first digits of a hash of all."""
    many = [f"p{n} [2]" for n in range(10)]
    whole = f"Many() · {', '.join(many)} float32"
    assert line(Many()) == (
        f"Many() · {', '.join(many[:8])}, 2 more float32 · #{sha256(whole.encode()).hexdigest()[:8]}"
    )
    assert line(Many(2, dtype=torch.float64)) == "Many() · p0 [2] float32, p1 [2] float64"
    assert line(Many(2, melted=1)) == "Many() · p0 [2], p1 [2] float32 · frozen: p0"
    others = [Many(last=3), Many(dtype=torch.float64), Many(melted=9), Many(melted=8), Many(11)]
    assert len({line(Many()), *map(line, others)}) == 6


def test_what_is_cut_of_a_long_text_is_told_by_a_hash() -> None:
    """A line, and a text of the run, have 1,000 characters, the last 12 of which are `` · #`` and eight digits."""
    reports = [
        Report(
            ModelSummary(ModuleSummary("", "", "Net", config), Work(), Memory(), Environment("0.1.0", optimizer=config))
        )
        for config in ("x" * 2_000 + end for end in "ab")
    ]
    for texts, whole in (
        ([one.leaves[""] for one in reports], f"Net({'x' * 2_000}a)"),
        ([one.identity["model_summary/optimizer"] for one in reports], f"{'x' * 2_000}a"),
    ):
        assert texts[0] == f"{whole[:988]} · #{sha256(whole.encode()).hexdigest()[:8]}"
        assert texts[1][:-8] == texts[0][:-8]
        assert texts[1] != texts[0]


def test_equal_architectures_have_equal_structures() -> None:
    """Whatever they are given; another width, activation or frozen weight is another structure."""
    given = torch.rand(2, 4)
    same = [structure(summarycb.summarize(Net(3), (x,))) for x in (given, torch.rand(5, 4))]
    melted = Net(3).requires_grad_(True)
    others = [structure(summarycb.summarize(net, (given,))) for net in (Net(4), Net(3, nn.GELU), melted)]
    assert len({*same}) == 1
    assert len({*same, *others}) == 4
    assert all(len(one) == 16 and set(one) <= set("0123456789abcdef") for one in (*same, *others))


def test_what_is_said_of_a_run() -> None:
    summary = summarycb.summarize(Net(3), (torch.rand(2, 4),))
    assert Report(summary).identity == {
        "model_summary/model": "Net",
        "model_summary/structure": structure(summary),
        "model_summary/inputs": "([2, 4],)",
        "model_summary/device": "cpu",
        "model_summary/precision": "float32",
        "model_summary/torch": torch.__version__,
        "model_summary/summarycb": summarycb.__version__,
    }


def test_images_are_png_files_of_what_is_known() -> None:
    images = Report(summarycb.summarize(Net(3), (torch.rand(2, 4),))).images
    assert list(images) == ["memory", "forward_macs", "params"]  # of a forward alone nothing is saved
    assert {image[:8] for image in images.values()} == {b"\x89PNG\r\n\x1a\n"}


def test_without_matplotlib_there_are_no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert Report(SUMMARY).images == {}
