"""A real MLflow server on loopback: what is written there, and what its pages show.

What becomes of us when it dies is in ``test_tracker_faults.py``.
"""

from __future__ import annotations

import importlib
import json
import urllib.request
from collections.abc import Iterator
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
from summarycb.cli import main
from summarycb.errors import SummaryError
from summarycb.report import Report
from summarycb.trackers import resolve
from summarycb.tree import ModelSummary
from summarycb.watch import Watch
from summarycb_mlflow import MLflowTracker
from tests.chromium import chromium, needs_chromium
from tests.mlflow_server import SECONDS, Server, server
from tests.pages import Residual, residual

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("alive")) as alive:
        alive.wait()
        yield alive


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

    tracker.write(report, step=9)
    newer = Report(summarycb.summarize(nn.Linear(2, 1), (torch.ones(4, 2),)))  # which knows of no backward
    assert "model_summary/backward_flops" not in newer.metrics
    for _ in range(2):
        tracker.write(newer, step=1)
    data = client.get_run(run_id).data
    now = {name: str(value) for name, value in data.metrics.items()}
    assert now == {**dict.fromkeys(report.metrics, "nan"), **{n: str(float(v)) for n, v in newer.metrics.items()}}
    assert {name: tag for name, tag in data.tags.items() if not name.startswith("mlflow.")} == newer.identity
    history = client.get_metric_history(run_id, "model_summary/total_params")
    assert [(m.step, m.value) for m in history] == [(0, summary.total_params), (1, 3)]  # 2 weights, 1 bias
    assert tracker.read() == newer.summary


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


@pytest.fixture
def here(alive: Server, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """The server is the one that references are of."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", alive.uri)
    return MlflowClient(alive.uri)


def refused(reference: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said where there is nothing to list or to compare: the same, and nothing else."""
    said = []
    for command in ("runs", "compare"):
        assert main([command, reference]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        said.append(err)
    assert said[0] == said[1]
    return said[0]


@pytest.mark.parametrize("name", ["gpt", "team a/gpt 2", "experiments/100 %? 'it' #1"])
def test_all_runs_of_an_experiment(
    here: MlflowClient,
    summary: ModelSummary,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Five with a summary, by when they began and not when they were written, in three pages; one without, one deleted,
    and one of another experiment are none of them."""
    monkeypatch.setattr(summarycb_mlflow, "PAGE", 2)
    began = [3_000, 1_767_225_600_123, 1_000, 5_000, 4_000]  # 2026-01-01, 123 ms
    at = here.create_experiment(name)
    ids = [here.create_run(at, start_time=t, run_name=f"run {t}").info.run_id for t in [*began, 9_000, 8_000]]
    for run_id in [*ids[:5], ids[6], here.create_run("0").info.run_id]:
        MLflowTracker(run_id, here).write(Report(summary), step=0)
    here.delete_run(ids[6])
    newest_first = [f"mlflow:{ids[place]}" for place in (1, 3, 4, 0, 2)]
    reference = f"mlflow:experiments/{name}"

    assert main(["runs", reference, "--format", "json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [one["reference"] for one in records] == newest_first
    figures = {
        "params": 320 + 12 * 296 + 432 + 360,  # as in test_the_pages, of twelve blocks
        "forward_macs": summary.forward_macs,
        "step_flops": summary.step_flops,
        "saved_activations": summary.memory.saved_activations,
        "memory_peak": summary.memory.peak,
    }
    assert records[0] == {
        "reference": newest_first[0],
        "name": "run 1767225600123",
        "created": "2026-01-01T00:00:00.123000+00:00",
        "model": "Residual",
        **figures,
        "failed": None,
        "error": None,
    }
    assert [one["created"] for one in records[1:]] == [f"1970-01-01T00:00:0{s}+00:00" for s in (5, 4, 3, 1)]
    assert main(["compare", reference, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    pairs = [told, *told.pop("others")]
    assert [(pair["a"], pair["b"]) for pair in pairs] == [(newest_first[0], other) for other in newest_first[1:]]
    assert [pair["rows"] for pair in pairs] == [[]] * 4


def test_experiments_with_nothing_to_compare(
    alive: Server, here: MlflowClient, summary: ModelSummary, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is not there, has no name, no runs, none with a summary, or is deleted, or has one summary alone."""
    one, bare, gone = (here.create_experiment(name) for name in ("one", "bare", "gone"))
    here.create_experiment("empty")
    here.create_run(bare)
    run_id, deleted = (here.create_run(at).info.run_id for at in (one, gone))
    for run in (run_id, deleted):
        MLflowTracker(run, here).write(Report(summary), step=0)
    here.delete_experiment(gone)
    for name in ("empty", "bare", "gone"):
        assert refused(f"mlflow:experiments/{name}", capsys) == (
            f"summarycb: no summaries were found at 'mlflow:experiments/{name}'\n"
        )
    assert refused("mlflow:experiments/none", capsys) == (
        f"summarycb: MLflow experiment 'none' at {alive.uri}: RESOURCE_DOES_NOT_EXIST: "
        "Could not find experiment with name 'none'\n"
    )
    assert refused("mlflow:experiments/", capsys) == (
        "summarycb: 'mlflow:experiments/' names no experiment; give 'mlflow:experiments/<name>'\n"
    )
    assert main(["compare", "mlflow:experiments/one"]) == 2
    assert capsys.readouterr().err == (
        f"summarycb: compare needs two summaries, and 'mlflow:experiments/one' is one: mlflow:{run_id}\n"
    )


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


def test_a_server_whose_disk_refuses_artifacts(alive: Server, summary: ModelSummary) -> None:
    """Is named with its answer; the totals are there, and the run does not claim to have a table."""
    run_id, artifacts = alive.run(), alive.folder / "artifacts" / "0"
    artifacts.mkdir(parents=True, exist_ok=True)
    (artifacts / run_id).touch()  # a file, where there is to be a folder
    with pytest.raises(
        SummaryError,
        match=f"^MLflow run '{run_id}' at {alive.uri}: 500 Server Error: Internal Server Error for url: ",
    ):
        MLflowTracker(run_id, MlflowClient(alive.uri)).write(Report(summary), step=0)
    data = MlflowClient(alive.uri).get_run(run_id).data
    assert data.metrics["model_summary/total_params"] == summary.total_params
    assert "mlflow.loggedArtifacts" not in data.tags


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
            frame(at + 1)  # of 150 pixels: what is seen without scrolling is the figures
            wait.until(visibility_of_element_located((By.TAG_NAME, "strong")))
            figures = driver.find_element(By.CSS_SELECTOR, ".tile strong")
            assert figures.text == f"{shown:,}"
            assert driver.execute_script("return arguments[0].getBoundingClientRect().bottom <= innerHeight", figures)
        driver.switch_to.default_content()
        shoot("compare_pages")
        see("model_summary.txt").click()
        for shown in params:
            see(f"params {shown:,} (100.0 % trainable)")
        shoot("compare_texts")
