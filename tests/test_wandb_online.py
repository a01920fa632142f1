"""The real SDK before a server that stands in for W&B's: what is written to it, pushed to it and read from it.

What W&B's own server makes of the same requests cannot be tried here, nor its page.
"""

# ruff: noqa: F811  (a test's arguments are fixtures that are imported)
from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from summarycb.cli import main
from summarycb.errors import SummaryError, SummaryWarning
from summarycb.references import expand
from summarycb.report import Report
from summarycb.serialize import load
from summarycb_wandb import WandbTracker
from summarycb_wandb import server as on_server
from summarycb_wandb.contents import architecture
from tests.test_trackers import METRICS, SUMMARY, wandb, write  # noqa: F401
from tests.test_wandb import of, train
from tests.wandb_server import WandbServer, wandb_server

OLD = "wandb:team/project/old"
WHERE = {"entity": "team", "project": "project"}


@pytest.fixture
def server(wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    wandb.teardown()  # the SDK reads its settings once
    with wandb_server() as server:
        for name, value in {"BASE_URL": server.url, "API_KEY": "0" * 40, "DIR": str(tmp_path)}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        monkeypatch.chdir(tmp_path)  # where the SDK leaves a folder with the name of a run that is read
        yield server
        wandb.teardown()


@pytest.fixture(params=["nobody listens", "nobody answers"])
def nobody(
    request: pytest.FixtureRequest, wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The address of a server that is not there, or has stopped."""
    wandb.teardown()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if request.param == "nobody listens":
            listener.close()
        for name, value in {"BASE_URL": address, "API_KEY": "0" * 40, "DIR": str(tmp_path)}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        monkeypatch.setattr(on_server, "SECONDS", 2)
        yield address
        wandb.teardown()


def holds(server: WandbServer, report: Report) -> None:
    assert {name: server.summary[name] for name in report.metrics} == report.metrics
    assert server.config["model_summary"] == architecture(report)
    assert server.files["model_summary.json"] == report.json.encode()
    assert server.files["model_summary.txt"] == report.text.encode()
    assert server.files[server.summary["model_summary/page"]["path"]] == report.html.encode()
    table = json.loads(server.files[server.summary["model_summary/table"]["path"]])
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == report.table
    ((name, artifact),) = [(n, a) for n, a in server.artifacts.items() if a["artifactTypeName"] == "model-summary"]
    assert name == "model_summary-old"
    assert json.loads(artifact["metadata"]) == {**report.identity, **report.metrics}


def test_an_online_run_is_written_while_it_trains(wandb: Any, server: WandbServer) -> None:
    """Twice, of two architectures: of the first nothing is left; the run's own config, losses and steps are its own."""
    first, second = Report(SUMMARY), of(__import__("torch").nn.Linear(4, 2))
    run = wandb.init(mode="online", id="old", resume="must", **WHERE)
    for one in (first, second):
        WandbTracker(run).write(one, step=0)
        run.log({"loss": 0.25})
    run.finish()
    holds(server, second)
    unknown = METRICS.keys() - second.metrics.keys()  # it had no optimizer
    assert "model_summary/memory_optimizer_state_bytes" in unknown
    assert not unknown & server.summary.keys()
    assert (server.config["lr"], server.summary["loss"]) == (0.1, 0.25)
    assert server.steps == [3, 4]  # after the three that were there
    assert load(OLD) == second.summary


def test_what_was_saved_is_pushed_to_a_run_that_has_ended(
    wandb: Any,
    server: WandbServer,
    tmp_path: Path,
) -> None:
    """Beside a run that is active here, though W&B is offline by default; it has its own again, and has ended well."""
    server.config["model_summary"] = {"modules": {"gone": "Linear()"}}
    saved = SUMMARY.save(tmp_path / "saved.json")
    with wandb.init(project="mine", dir=tmp_path) as mine:
        assert main(["push", str(saved), OLD]) == 0
        assert wandb.run is mine
        mine.log({"loss": 1.0})
        assert mine.step == 1
    holds(server, Report(SUMMARY))
    assert (server.config["lr"], server.summary["loss"]) == (0.1, 0.5)
    assert server.exit_codes == [0]
    assert server.streamed == {"wandb-summary.json"}  # no step, no output, no measurement of this machine
    assert server.files.keys() >= {"model_summary.json"}
    assert not [name for name in server.files if "model_summary" not in name]
    assert "e" not in server.config["_wandb"]  # which machine and program it is
    assert load(OLD) == SUMMARY
    assert load(OLD) == SUMMARY  # whatever the SDK has left in the folder


def test_a_run_that_is_still_running_is_not_opened_again(server: WandbServer) -> None:
    server.state = "running"
    hook, _ = train(2, OLD, timeout=60)
    with pytest.warns(SummaryWarning, match="'team/project/old' is still running; write to it where it runs: give the"):
        hook.flush()
    assert (server.files, server.exit_codes) == ({}, [])


def test_the_artifact_is_read_where_the_file_is_gone(server: WandbServer) -> None:
    write(OLD)
    server.artifact_file = server.files.pop("model_summary.json")
    assert load(OLD) == SUMMARY
    server.artifacts.clear()
    with pytest.raises(SummaryError, match=r"no model_summary\.json in a W&B run, 'team/project/old': artifact"):
        load(OLD)
    with pytest.raises(SummaryError, match="a W&B run, 'team/project/none': Could not find run"):
        load("wandb:team/project/none")


def test_a_run_that_cannot_be_opened_is_named(server: WandbServer, wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not there, and one for which there is no key: not with the SDK's words alone."""
    saved = SUMMARY.save("saved.json")
    with pytest.raises(SummaryError, match=r"^the W&B run 'team/project/none' cannot be opened: Could not find run"):
        write("wandb:team/project/none")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", "none")
    wandb.teardown()
    with pytest.raises(SummaryError, match=r"^the W&B run 'team/project/old' cannot be opened: .*API key"):
        write(OLD)
    assert main(["push", str(saved), OLD]) == 2


def test_all_runs_of_a_project(server: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Four with a summary, the newest first, in three pages; one that has other figures alone is none of them."""
    report = Report(SUMMARY)
    for run_id, day in {"may": "2026-05-01", "july": "2026-07-01", "june": "2026-06-01"}.items():
        server.others[run_id] = (f"{day}T10:00:00Z", {**report.metrics, "loss": 1.0}, report.json.encode())
    server.others["without"] = ("2026-08-01T10:00:00Z", {"loss": 1.0}, b"")
    write(OLD)
    project = "wandb:team/project"
    newest_first = [f"{project}/{run_id}" for run_id in ("july", "june", "may", "old")]

    assert main(["runs", project, "--format", "json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [(one["reference"], one["params"], one["error"]) for one in records] == [
        (one, METRICS["model_summary/total_params"], None) for one in newest_first
    ]
    assert [one["name"] for one in records] == ["july-1", "june-1", "may-1", "old-1"]
    assert [one["created"] for one in records] == [
        *(f"2026-{month}-01T10:00:00+00:00" for month in ("07", "06", "05")),
        "2026-01-01T00:00:00+00:00",
    ]
    assert main(["compare", project, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    pairs = [told, *told.pop("others")]
    assert [(pair["a"], pair["b"]) for pair in pairs] == [(newest_first[0], other) for other in newest_first[1:]]
    assert main(["runs", f"{project}/june", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [records[1]]


def test_projects_with_nothing_to_list(server: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
    """One whose only run has no summary, and one that is not there."""
    said = {
        "wandb:team/project": "no summaries were found at 'wandb:team/project'",
        "wandb:team/none": "no folder, and no W&B project, 'team/none': Could not find project none",
    }
    for reference, message in said.items():
        for command in ("runs", "compare"):
            assert main([command, reference]) == 2
            assert capsys.readouterr() == ("", f"summarycb: {message}\n")


@pytest.mark.slow
def test_a_project_on_a_server_that_does_not_answer_is_named_in_bounded_time(nobody: str) -> None:
    begin = time.monotonic()
    with pytest.raises(SummaryError, match=f"^no folder, and no W&B project, 'team/project': .*{nobody}"):
        expand("wandb:team/project")
    assert time.monotonic() - begin < 60


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_named_in_bounded_time(nobody: str) -> None:
    """Neither reading nor writing waits for ever, and what was not written is said and saved."""
    begin = time.monotonic()
    with pytest.raises(SummaryError, match=f"a W&B run, 'team/project/old': .*{nobody}"):
        load(OLD)
    hook, _ = train(2, OLD, timeout=60)
    with pytest.warns(SummaryWarning, match=r"not written to WandbTracker: .*; it is saved in"):
        hook.flush()
    assert time.monotonic() - begin < 60


@pytest.mark.slow
def test_a_server_that_stops_while_a_run_is_active(
    wandb: Any, server: WandbServer, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training has its weights, what needs no answer waits in the run's files, and a warning says where all is."""
    monkeypatch.setattr(wandb.Api, "_HTTP_TIMEOUT", 2)  # 19 seconds otherwise
    run = wandb.init(mode="online", id="old", resume="must", settings=wandb.Settings(finish_timeout=2), **WHERE)
    server.shutdown()
    server.server_close()
    hook, weights = train(3, run, timeout=60)
    with pytest.warns(SummaryWarning) as warned:
        hook.flush()
    run.finish()
    (path,) = copies.iterdir()
    (message,) = [str(w.message) for w in warned]
    assert message.startswith(
        "the model summary was not written to WandbTracker: AuthenticationError: Failed to verify"
    )
    assert message.endswith(f"; it is saved in {path}; 'summarycb push --step 0 FILE TRACKER' writes it later")
    assert load(path) == hook.summary == load(f"wandb:{run.dir}")
    assert all(torch.equal(a, b) for a, b in zip(weights, train(3)[1], strict=True))
