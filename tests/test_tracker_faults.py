"""Trackers that fail as they fail in practice, each with its real parts, beside a real training.

Whatever happens to a tracker, the training is bit by bit what it is without, its end waits no longer than the timeout,
one warning in all names the tracker, the reason and the local copy, and the copy is the summary that should have been
written. Faults of the package itself are in ``test_fault_matrix.py``.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from logging import WARNING
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from torch.utils.tensorboard import SummaryWriter

import summarycb
import summarycb_mlflow.server
from summarycb.errors import SummaryWarning
from summarycb.tree import ModelSummary
from summarycb_mlflow import MLflowTracker
from tests.mlflow_server import SECONDS, Server, server
from tests.test_tensorboard import events_of
from tests.test_trackers import wandb  # noqa: F401
from tests.trainings import CASES, NOTHING, everything, left_behind, step

pytestmark = [
    pytest.mark.slow,
    # mlflow 3.17 uses an option that SQLAlchemy 2.1 deprecates
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
CASE = CASES["cnn"]
TIMEOUT = 10.0
"""What the package waits for by default."""


# --- the parts of a fault -------------------------------------------------------------------------------------------


@dataclass
class Place:
    """Where a fault is planted: a folder of its own, and what takes seconds to make."""

    folder: Path
    database: Path
    request: pytest.FixtureRequest
    at_end: ExitStack
    patch: pytest.MonkeyPatch

    def server(self) -> Server:
        """One that lives: started anew where the last one was killed."""
        started: Callable[[], Server] = self.request.getfixturevalue("servers")
        return started()

    def sqlite(self, database: Path, artifacts: Path) -> MLflowTracker:
        client = MlflowClient(f"sqlite:///{database}")
        experiment = client.create_experiment(str(self.folder), artifacts.as_uri())
        return MLflowTracker(client.create_run(experiment).info.run_id, client)

    def wandb(self) -> Any:
        """A run of the real SDK, offline."""
        return self.request.getfixturevalue("wandb").init(project="p", dir=self.folder)

    def writer(self) -> SummaryWriter:
        writer = self.at_end.enter_context(SummaryWriter(str(self.folder)))
        writer.flush()
        return writer


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database, whose migrations take seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Server]]:
    folder, started = tmp_path_factory.mktemp("server"), list[Server]()
    with ExitStack() as at_end:

        def alive() -> Server:
            if not started or started[-1].process.poll() is not None:
                started.append(at_end.enter_context(server(folder)))
                started[-1].wait()
            return started[-1]

        yield alive


class _Handler(BaseHTTPRequestHandler):
    server: Gate

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if not self.server.passes(self.command, self.path):
            return
        with closing(HTTPConnection("127.0.0.1", self.server.behind.port, timeout=SECONDS)) as connection:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
        self.send_response(answer.status)
        self.send_header("content-type", answer.headers["content-type"])
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass


class Gate(ThreadingHTTPServer):
    """Stands before a server, and sees each request before it: what does not pass is not answered."""

    def __init__(self, behind: Server, passes: Callable[[str, str], bool]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.passes = behind, passes

    @property
    def tracker(self) -> MLflowTracker:
        return MLflowTracker(self.behind.run(), MlflowClient(f"http://127.0.0.1:{self.server_port}"))


@contextmanager
def gate(behind: Server, passes: Callable[[str, str], bool]) -> Iterator[Gate]:
    with Gate(behind, passes) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            found.shutdown()
            thread.join()


@contextmanager
def hanging(behind: Server) -> Iterator[Gate]:
    """Says that it is well, and answers nothing else."""
    released = threading.Event()
    with gate(behind, lambda _, path: path == "/health" or released.wait(SECONDS)) as found:
        yield found
        released.set()  # what waits is then answered, and the next finds nobody


def mount(place: Place, *command: str) -> None:
    if subprocess.run(["mount", *command, str(place.folder)], capture_output=True).returncode:
        pytest.skip("a file system of one's own can be mounted by root alone, and not in every container")
    place.at_end.callback(subprocess.run, ["umount", "-l", str(place.folder)], check=True)


def fill(place: Place) -> None:
    """To the last byte."""
    with (place.folder / "rest").open("wb", buffering=0) as rest, suppress(OSError):
        while True:
            rest.write(bytes(4096))


# --- the faults -----------------------------------------------------------------------------------------------------


def killed_before(place: Place) -> MLflowTracker:
    doomed = place.server()
    tracker = MLflowTracker(doomed.run(), MlflowClient(doomed.uri))
    doomed.kill()
    return tracker


def killed_during(place: Place) -> MLflowTracker:
    """When the second artifact arrives: the totals and the JSON were written."""
    doomed, arrived = place.server(), list[str]()

    def passes(method: str, path: str) -> bool:
        if method == "PUT":
            arrived.append(path)
        if len(arrived) == 2:
            doomed.kill()
        return len(arrived) < 2

    return place.at_end.enter_context(gate(doomed, passes)).tracker


def silent(place: Place) -> MLflowTracker:
    assert summarycb_mlflow.server.ANSWER_SECONDS < TIMEOUT
    place.patch.setattr(summarycb_mlflow.server, "ANSWER_SECONDS", 0.5)
    listener = place.at_end.enter_context(socket.create_server(("127.0.0.1", 0)))
    return MLflowTracker("0" * 32, MlflowClient(f"http://me:secret@127.0.0.1:{listener.getsockname()[1]}"))


def hangs(place: Place) -> MLflowTracker:
    return place.at_end.enter_context(hanging(place.server())).tracker


def full(make: Callable[[Place], object]) -> Callable[[Place], object]:
    """Nothing more can be written where the tracker writes."""

    def plant(place: Place) -> object:
        mount(place, "-t", "tmpfs", "-o", "size=4m", "none")
        tracker = make(place)
        fill(place)
        return tracker

    return plant


def limited(make: Callable[[Place], object]) -> Callable[[Place], object]:
    """No file may grow beyond 30,000 bytes: the copy's 11,000 are fewer, the page's 53,000 and the database's more."""

    def plant(place: Place) -> object:
        tracker = make(place)
        assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN  # so Python begins: it would end the process
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
        place.at_end.callback(resource.setrlimit, resource.RLIMIT_FSIZE, before)
        return tracker

    return plant


def read_only(make: Callable[[Place], object]) -> Callable[[Place], object]:
    """After the tracker was made."""

    def plant(place: Place) -> object:
        tracker = make(place)
        place.folder = Path(getattr(tracker, "dir", place.folder))  # W&B has its own files open beside this one
        if os.geteuid():
            place.folder.chmod(0o500)
            place.at_end.callback(place.folder.chmod, 0o700)
        else:  # to whom modes say nothing
            mount(place, "--bind", str(place.folder))
            subprocess.run(["mount", "-o", "remount,bind,ro", str(place.folder)], check=True)
        return tracker

    return plant


def artifacts(place: Place) -> MLflowTracker:
    return place.sqlite(place.database, place.folder)


def database_too(place: Place) -> MLflowTracker:
    copy = Path(shutil.copy(place.database, place.folder))
    return place.sqlite(copy, place.folder / "artifacts")


def finished(place: Place) -> object:
    run = place.wandb()
    run.finish()
    return run


def removed(place: Place) -> SummaryWriter:
    writer = place.writer()
    shutil.rmtree(place.folder)
    return writer


def removed_during(place: Place) -> SummaryWriter:
    """When all is written, and only its name is not yet that of an event file."""
    rename = Path.rename

    def remove_first(path: Path, target: Path) -> Path:
        shutil.rmtree(place.folder)
        return rename(path, target)

    place.patch.setattr(Path, "rename", remove_first)
    return place.writer()


@dataclass(frozen=True)
class Fault:
    """How it is planted, which gives the tracker, and why it is said to have failed, as a regular expression."""

    plant: Callable[[Place], object]
    reason: str
    timeout: float = TIMEOUT


TRACKERS = {"MLflow": "MLflowTracker", "TensorBoard": "TensorBoardTracker", "W&B": "WandbTracker"}
MLFLOW = r"MLflow run '[0-9a-f]{32}' at (sqlite|http)://[^@\s]+: "  # and no password
LIMIT = r"OSError: \[Errno 27\] File too large"
REFUSED, FULL = r"\[Errno 111\] Connection refused", r"\[Errno 28\] No space left on device.*"
READ_ONLY = r".*\[Errno (30\] Read-only file system|13\] Permission denied).*"
TENSORBOARD, WANDB = Place.writer, Place.wandb
FAULTS = {
    "MLflow: is well, and hangs": Fault(hangs, r"no answer within 0\.5 s", timeout=0.5),
    "MLflow: killed during writing": Fault(
        killed_during, MLFLOW + r".*'Remote end closed connection without response'\)+"
    ),
    "MLflow: killed before writing": Fault(killed_before, MLFLOW + REFUSED),
    "MLflow: a port that never answers": Fault(silent, MLFLOW + "timed out"),
    "MLflow: artifacts on a full disk": Fault(full(artifacts), MLFLOW + FULL),
    "MLflow: database on a full disk": Fault(full(database_too), MLFLOW + "database or disk is full"),
    "MLflow: database at a limit": Fault(limited(artifacts), MLFLOW + "disk I/O error"),
    "MLflow: artifacts are read-only": Fault(read_only(artifacts), MLFLOW + READ_ONLY),
    "TensorBoard: full disk": Fault(full(TENSORBOARD), "OSError: " + FULL),
    "TensorBoard: file at a limit": Fault(limited(TENSORBOARD), LIMIT),
    "TensorBoard: folder removed before": Fault(removed, "FileNotFoundError: the log directory '.*' is gone"),
    "TensorBoard: folder removed during": Fault(
        removed_during, r"FileNotFoundError: \[Errno 2\] No such file or directory: .*"
    ),
    "TensorBoard: folder is read-only": Fault(read_only(TENSORBOARD), READ_ONLY),
    "W&B: run finished early": Fault(
        finished,
        r"the run is finished; once W&B's server has it, write to it with `summarycb push FILE wandb:<entity>/p/\w+`",
    ),
    "W&B: full disk": Fault(full(WANDB), "OSError: " + FULL),
    "W&B: file at a limit": Fault(limited(WANDB), LIMIT),
    "W&B: folder is read-only": Fault(read_only(WANDB), READ_ONLY),
}


@cache
def undisturbed() -> tuple[dict[str, Any], ModelSummary | None]:
    """All of the training without us, and the summary of it without a tracker."""
    model, optimizer = CASE.make()
    plain = everything(model, optimizer, CASE.train(model, optimizer))
    model, optimizer = CASE.make()
    hook = summarycb.watch(model, verbose=False)
    CASE.train(model, optimizer)
    return plain, hook.summary


SCRIPT = """
import sys, time
import summarycb
from mlflow import MlflowClient
from summarycb_mlflow import MLflowTracker
from tests.trainings import CASES

uri, run_id = sys.argv[1:]
model, optimizer = CASES["cnn"].make()
hook = summarycb.watch(model, trackers=[MLflowTracker(run_id, MlflowClient(uri))], verbose=False, timeout=0.5)
CASES["cnn"].train(model, optimizer)
print(time.time())
"""


def test_a_process_ends_though_its_server_hangs(servers: Callable[[], Server], copies: Path) -> None:
    """Nobody calls ``flush``: the exit waits for no longer, and says what is missing."""
    behind = servers()
    with hanging(behind) as found:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, f"http://127.0.0.1:{found.server_port}", behind.run()],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
        ended = time.time()
    (copy,) = copies.iterdir()
    assert ended - float(done.stdout) < 30  # where the server is waited for, it is minutes
    said = (
        "the model summary was not written to MLflowTracker: no answer within 0.5 s; "
        f"it is saved in {copy}; 'summarycb push --step 0 FILE TRACKER' writes it later"
    )
    assert done.stderr.count("Warning") == done.stderr.count(f"SummaryWarning: {said}\n") == 1
    assert summarycb.load(copy) == undisturbed()[1]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    database: Path,
    copies: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault, (plain, should_be) = FAULTS[name], undisturbed()
    (tmp_path / "there").mkdir()
    with ExitStack() as at_end:
        patch = at_end.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        tracker = fault.plant(Place(tmp_path / "there", database, request, at_end, patch))
        caplog.clear()
        model, optimizer = CASE.make()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", SummaryWarning)  # any other is an error
            hook = summarycb.watch(model, trackers=[tracker], verbose=False, timeout=fault.timeout)
            losses = CASE.train(model, optimizer)
            begin = time.monotonic()
            hook.close()
            took = time.monotonic() - begin
        assert everything(model, optimizer, losses) == plain
        # MLflow logs itself, and always, that its database cannot be written
        logged = [one for one in caplog.records if one.levelno >= WARNING and one.name != "mlflow.store.db.utils"]
    for thread in threading.enumerate():
        if thread.name.startswith("summarycb-"):
            thread.join(SECONDS)
            assert not thread.is_alive()
    assert took < fault.timeout + 10
    (copy,) = copies.iterdir()
    tracker_name = TRACKERS[name.partition(":")[0]]
    (message,) = [str(one.message) for one in warned]
    assert re.fullmatch(
        f"the model summary was not written to {tracker_name}: {fault.reason}; "
        f"it is saved in {re.escape(str(copy))}; 'summarycb push --step 0 FILE TRACKER' writes it later",
        message,
    ), message
    assert logged == []  # nor is it said again there, or each try
    assert summarycb.load(copy) == hook.summary == should_be
    assert left_behind(model) == NOTHING


def test_a_users_own_log_goes_on(tmp_path: Path, database: Path, request: pytest.FixtureRequest, copies: Path) -> None:
    """Where there is room for its few scalars and not for the report; of ours nothing is left beside them."""
    (tmp_path / "there").mkdir()
    with ExitStack() as at_end, pytest.MonkeyPatch.context() as patch:
        writer = limited(TENSORBOARD)(Place(tmp_path / "there", database, request, at_end, patch))
        assert isinstance(writer, SummaryWriter)
        model, optimizer = CASE.make()
        hook = summarycb.watch(model, trackers=[writer], verbose=False)
        for at, batch in enumerate(CASE.batches()):
            writer.add_scalar("loss", step(model, optimizer, *batch), at)
            writer.flush()
        with pytest.warns(SummaryWarning, match=LIMIT):
            hook.close()
        writer.add_scalar("loss", 0.0, 3)
    assert [event.step for event in events_of(tmp_path / "there").Scalars("loss")] == [0, 1, 2, 3]
    assert len(list((tmp_path / "there").iterdir())) == len(list(copies.iterdir())) == 1
