"""A real MLflow server on loopback: what is written there, what its pages show, and what becomes of us when it dies.

Servers take seconds to start: one lives through all tests of this file, and one is killed.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import (
    frame_to_be_available_and_switch_to_it,
    visibility_of_element_located,
)
from selenium.webdriver.support.wait import WebDriverWait
from torch import nn

import summarycb
import summarycb_mlflow
from summarycb.errors import SummaryError, SummaryWarning
from summarycb.report import Report
from summarycb.trackers import resolve
from summarycb.tree import ModelSummary
from summarycb.watch import Watch
from summarycb_mlflow import MLflowTracker
from tests.chromium import chromium, needs_chromium
from tests.pages import Residual, residual

pytestmark = pytest.mark.slow
SECONDS = 120


@dataclass
class Server:
    """MLflow's own, on sqlite; in a session of its own, so that its workers end with it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=SECONDS).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
            try:
                self.process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError((self.folder / "log").read_text())

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS)
        deadline = time.monotonic() + SECONDS
        while self._listens():
            assert time.monotonic() < deadline

    def _listens(self) -> bool:
        with socket.socket() as one:  # its workers may die a little later
            return one.connect_ex(("127.0.0.1", self.port)) != errno.ECONNREFUSED

    def run(self) -> str:
        """A new run."""
        return MlflowClient(self.uri).create_run("0").info.run_id


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Being started."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"),
    ]
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    started = Server(folder, port, process)
    try:
        yield started
    finally:
        started.kill()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two, started side by side."""
    with server(tmp_path_factory.mktemp("alive")) as alive, server(tmp_path_factory.mktemp("doomed")) as doomed:
        alive.wait()
        doomed.wait()
        yield [alive, doomed]


@pytest.fixture
def alive(servers: list[Server]) -> Server:
    return servers[0]


@pytest.fixture
def doomed(servers: list[Server]) -> Server:
    return servers[1]


@pytest.fixture(scope="module")
def summary() -> ModelSummary:
    return residual()


def test_what_is_read_equals_what_was_written(alive: Server, summary: ModelSummary) -> None:
    """Into the same artifacts as the client's own, also by a second process's run and after its end."""
    run_id, client = alive.run(), MlflowClient(alive.uri)
    client.set_terminated(run_id)
    tracker, report = MLflowTracker(run_id, client), Report(summary)
    for step in (0, 100):
        tracker.write(report, step=step)
    assert tracker.read() == summary
    client.log_text(run_id, "by the client", "theirs.txt")
    files = {"html": report.html, "json": report.json, "txt": report.text}
    assert [f.path for f in client.list_artifacts(run_id)] == [
        *(f"model_summary.{end}" for end in files),
        "model_summary_table.json",
        "theirs.txt",
    ]
    for end, text in files.items():
        assert urllib.request.urlopen(
            f"{alive.uri}/get-artifact?path=model_summary.{end}&run_uuid={run_id}", timeout=SECONDS
        ).read() == (text.encode())
    data = client.get_run(run_id).data
    assert data.metrics == {name: float(value) for name, value in report.metrics.items()}
    assert {name: tag for name, tag in data.tags.items() if not name.startswith("mlflow.")} == report.identity
    assert [m.step for m in client.get_metric_history(run_id, "model_summary/total_params")] == [0]


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightnings_logger(alive: Server, package: str, summary: ModelSummary) -> None:
    logger = importlib.import_module(f"{package}.loggers").MLFlowLogger(package, tracking_uri=alive.uri)
    (tracker,) = resolve([logger])
    tracker.write(Report(summary), step=0)
    logger.finalize("success")
    tracker.write(Report(summary), step=5)
    assert MLflowTracker(logger.run_id, MlflowClient(alive.uri)).read() == summary


def test_runs_that_are_not_there(alive: Server, summary: ModelSummary) -> None:
    client, deleted, missing = MlflowClient(alive.uri), alive.run(), "0" * 32
    client.delete_run(deleted)
    for run_id, reason in ((deleted, "must be in the 'active' state"), (missing, "not found")):
        with pytest.raises(SummaryError, match=f"^MLflow run '{run_id}' at {alive.uri}: .*{reason}"):
            MLflowTracker(run_id, client).write(Report(summary), step=0)


def train(model: nn.Module, batch: torch.Tensor, tracker: object) -> Watch:
    optimizer = torch.optim.Adam(model.parameters())
    losses = []
    with summarycb.watch(model, optimizer, trackers=[tracker], verbose=False, timeout=SECONDS) as hook:
        for _ in range(3):
            losses.append(model(batch).square().sum())
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
    assert losses[2] < losses[0]
    return hook


class KillsTheServer(Report):
    """The server dies between two artifacts."""

    server: Server

    @property
    def html(self) -> str:  # type: ignore[override]
        self.server.kill()
        return ""


def test_a_server_that_fails_and_dies(
    doomed: Server, summary: ModelSummary, copies: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its disk refuses artifacts; then it is killed while we write, and was killed before we write.

    Each is told in seconds, with the cause, where MLflow's client tries for four minutes a call; the training goes on
    and what was to be written is in a file.
    """
    run_id, artifacts = doomed.run(), doomed.folder / "artifacts"
    tracker = MLflowTracker(run_id, MlflowClient(doomed.uri))
    named = f"^MLflow run '{run_id}' at {doomed.uri}: "
    begin = time.monotonic()
    artifacts.touch()  # a file, where there is to be a folder
    with pytest.raises(SummaryError, match=f"{named}500 Server Error: Internal Server Error for url: "):
        tracker.write(Report(summary), step=0)
    artifacts.unlink()
    report = KillsTheServer(summary)
    object.__setattr__(report, "server", doomed)  # it is frozen
    with pytest.raises(SummaryError, match=rf"{named}\[Errno 111\] Connection refused$"):
        tracker.write(report, step=0)
    assert len(list(artifacts.rglob("model_summary.json"))) == 1
    with pytest.raises(SummaryError, match=rf"{named}\[Errno 111\] Connection refused$"):
        tracker.write(Report(summary), step=0)
    with pytest.raises(SummaryError, match=rf"^no readable model_summary.json in {named[1:]}\[Errno 111\]"):
        tracker.read()

    with pytest.warns(SummaryWarning) as warned:
        hook = train(nn.Linear(2, 1), torch.ones(1, 2), tracker)
    (copy,) = copies.iterdir()
    assert [str(w.message) for w in warned] == [
        f"the model summary was not written to MLflowTracker: SummaryError: {named[1:]}[Errno 111] Connection refused; "
        f"it is saved in {copy}"
    ]
    assert summarycb.load(copy) == hook.summary
    assert time.monotonic() - begin < 30
    assert caplog.messages == []  # nor is each try said in the log


def test_a_port_that_accepts_and_never_answers(summary: ModelSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    assert summarycb_mlflow.ANSWER_SECONDS == 5
    monkeypatch.setattr(summarycb_mlflow, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        tracker = MLflowTracker("0" * 32, MlflowClient(f"http://me:secret@{where}"))
        begin = time.monotonic()
        with pytest.raises(SummaryError) as caught:
            tracker.write(Report(summary), step=0)
        assert time.monotonic() - begin < 5
    assert str(caught.value) == f"MLflow run '{'0' * 32}' at http://{where}: timed out"


@needs_chromium
def test_the_pages(alive: Server, tmp_path: Path) -> None:
    """Two trainings as a reader sees them: the run, its table and its page, and both side by side."""
    client = MlflowClient(alive.uri)
    runs, batch = [alive.run(), alive.run()], torch.arange(10).reshape(2, 5)
    hooks = [train(Residual(4 + 2 * at), batch, MLflowTracker(runs[at], client)) for at in range(2)]
    # 40 x 8, blocks of 2 x 8, 8 x 16 + 16 and 16 x 8 + 8, one of 2 x 8, 8 x 24 + 24 and 24 x 8 + 8, and 8 x 40 + 40
    params = [hook.summary.total_params for hook in hooks if hook.summary]
    assert params == [320 + blocks * 296 + 432 + 360 for blocks in (4, 6)] == [2296, 2888]
    with chromium(tmp_path / "profile", "127.0.0.1", size=(1700, 1000)) as driver:
        wait = WebDriverWait(driver, SECONDS)

        def see(text: str) -> WebElement:
            """Wait until it is shown, and bring it into view."""
            where = (By.XPATH, f"//*[text()[contains(normalize-space(.), {text!r})]]")
            found = wait.until(visibility_of_element_located(where), text)
            driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
            return found

        def frame(at: int) -> None:
            driver.switch_to.default_content()
            wait.until(frame_to_be_available_and_switch_to_it((By.XPATH, f"(//iframe)[{at}]")))

        def shoot(name: str) -> None:
            assert driver.save_screenshot(str(tmp_path / f"{name}.png"))

        base = f"{alive.uri}/#/experiments/0/runs/{runs[0]}"
        driver.get(base)
        see("model_summary/structure")
        shoot("run")
        driver.get(f"{base}/model-metrics")
        see("17280")  # forward_macs, in its chart
        shoot("metrics")
        driver.get(f"{base}/artifacts")
        see("model_summary_table.json").click()
        see("LayerNorm")
        assert driver.find_element(By.XPATH, "//*[text()='h.0.norm']").is_displayed()
        shoot("table")
        see("model_summary.html").click()
        frame(1)
        see("2,296")
        driver.find_element(By.ID, "open").click()
        rows = driver.find_elements(By.CSS_SELECTOR, "#tree summary.row")
        assert [row.is_displayed() for row in rows] == [True] * 15
        driver.find_element(By.ID, "search").send_keys("h.3.up")
        assert driver.find_element(By.ID, "found").text == "1 of 15 rows"
        driver.find_element(By.ID, "theme").click()
        assert driver.find_element(By.TAG_NAME, "html").get_attribute("data-theme") == "dark"
        shoot("page")

        driver.switch_to.default_content()
        driver.get(f'{alive.uri}/#/compare-runs?runs=["{runs[0]}","{runs[1]}"]&experiments=["0"]')
        see("Comparing 2 Runs from 1 Experiment")
        driver.find_element(By.CSS_SELECTOR, "[aria-label='Tags - Show diff only']").click()
        tags = see("model_summary/structure").find_element(By.XPATH, "ancestor::table")
        assert [line.split()[0] for line in tags.text.splitlines()] == ["model_summary/structure"]
        shoot("compare_tags")
        see("Artifacts")
        see("model_summary.html").click()
        for at, shown in enumerate(params):
            frame(at + 1)
            see(f"{shown:,}")
        driver.switch_to.default_content()
        shoot("compare_pages")
        see("model_summary.txt").click()
        for shown in params:
            see(f"params {shown:,} (100.0 % trainable)")
        shoot("compare_texts")
