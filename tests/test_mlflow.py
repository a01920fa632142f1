"""The MLflow run holds totals, identity, table, page, text and JSON, once each, however often it is written.

A bare sqlite file with artifacts in a folder; servers are in ``test_mlflow_server.py``.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Metric
from torch import nn

import summarycb
import summarycb_mlflow
from summarycb.cli import main
from summarycb.errors import SummaryError
from summarycb.report import Report
from summarycb.tree import ModelSummary
from summarycb_mlflow import MLflowTracker, server
from tests.pages import residual, step

# mlflow 3.17 uses an option that SQLAlchemy 2.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


class Calls(MlflowClient):
    """A client that notes which of its methods the adapter has called."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.names: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("get_run", "get_metric_history", "log_batch", "delete_tag", "set_tag"):
            self.names.append(name)
        return super().__getattribute__(name)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        return Calls(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")  # once: its migrations take seconds


@pytest.fixture
def run_id(client: Calls, tmp_path: Path) -> str:
    experiment = client.create_experiment(str(tmp_path), (tmp_path / "artifacts").as_uri())
    return client.create_run(experiment).info.run_id


@pytest.fixture(scope="module")
def summary() -> ModelSummary:
    return residual()


def write(client: Calls, run_id: str, summary: ModelSummary, at: int = 0) -> Report:
    report = Report(summary)
    MLflowTracker(run_id, client).write(report, step=at)
    return report


def artifact(client: Calls, run_id: str, name: str) -> str:
    folder = client.get_run(run_id).info.artifact_uri.removeprefix("file://")
    return (Path(folder) / name).read_text("utf-8")


def table(client: Calls, run_id: str) -> list[dict[str, Any]]:
    stored = json.loads(artifact(client, run_id, "model_summary_table.json"))
    return [dict(zip(stored["columns"], row, strict=True)) for row in stored["data"]]


def test_everything_is_in_the_run(client: Calls, run_id: str, summary: ModelSummary) -> None:
    """Totals and tags in one call; what people look at lies at the root, which is what the Compare page shows."""
    client.names = []
    report = write(client, run_id, summary, at=7)
    assert client.names == ["get_run", "log_batch", "get_run", "set_tag"]
    run = client.get_run(run_id)
    assert run.data.metrics == {name: float(value) for name, value in report.metrics.items()}
    assert {m.step for name in report.metrics for m in client.get_metric_history(run_id, name)} == {7}
    assert {name: tag for name, tag in run.data.tags.items() if "model_summary/" in name} == report.identity
    assert run.data.tags["model_summary/model"] == "Residual"
    assert run.data.params == {}
    files = {"html": report.html, "json": report.json, "txt": report.text}
    assert [f.path for f in client.list_artifacts(run_id)] == [
        *(f"model_summary.{end}" for end in files),
        "model_summary_table.json",
    ]
    assert {end: artifact(client, run_id, f"model_summary.{end}") for end in files} == files
    assert table(client, run_id) == report.table


def test_the_run_shows_the_newest_report(client: Calls, run_id: str, summary: ModelSummary) -> None:
    """Also where it comes at a lower step, in the same millisecond, or after a clock that was ahead.

    MLflow shows the point of the highest step, and of these the latest. A figure that is unknown now is NaN.
    """
    backward = "model_summary/backward_flops"
    ahead = int(time.time() * 1000) + 3_600_000
    client.log_batch(run_id, metrics=[Metric("model_summary/total_params", 10**9, ahead, 60), Metric("loss", 1, 0, 0)])
    forward_only = summarycb.summarize(nn.Linear(2, 1), (torch.ones(4, 2),))
    for newest, at in ((summary, 50), (forward_only, 0), (summary, 0)):
        for _ in range(2):  # the second says nothing new
            report = write(client, run_id, newest, at=at)
        shown = {name: str(value) for name, value in client.get_run(run_id).data.metrics.items()}
        known = {name: str(float(value)) for name, value in report.metrics.items()}
        assert (backward in known) == (newest is summary)
        assert shown == {**dict.fromkeys(shown, "nan"), **known, "loss": "1.0"}
    points = client.get_metric_history(run_id, backward)
    flops = str(float(summary.backward_flops or 0))
    assert [(m.step, str(m.value)) for m in points] == [(50, flops), (50, "nan"), (50, flops)]


def test_a_run_that_is_resumed_is_written_once(client: Calls, run_id: str, summary: ModelSummary) -> None:
    """The table is not appended to, a total that is as it was gets no second point, and nothing is raised."""
    write(client, run_id, summary, at=0)
    client.set_terminated(run_id)
    before = client.get_run(run_id)
    client.names = []
    write(client, run_id, summary, at=100)
    assert client.names == ["get_run", "log_batch", "get_run"]
    assert client.get_run(run_id).to_dictionary() == before.to_dictionary()
    assert {m.step for name in before.data.metrics for m in client.get_metric_history(run_id, name)} == {0}
    assert len(table(client, run_id)) == len(summary.modules)

    report = write(client, run_id, step(nn.Linear(2, 1), torch.ones(4, 2)), at=200)
    after = client.get_run(run_id).data
    assert after.tags["model_summary/model"] == "Linear"
    assert {name: after.metrics[name] for name in report.metrics} == report.metrics
    history = client.get_metric_history(run_id, "model_summary/total_params")
    assert [(m.step, m.value) for m in history] == [(0, summary.total_params), (200, 3)]  # 2 weights, 1 bias
    assert table(client, run_id) == report.table
    assert MLflowTracker(run_id, client).read() == report.summary


HARD = {
    "brackets": "a[0](b)//c",
    "long": "x" * 5_000,
    "unicode": "größe|`0` 层 🙂\u2028\"'<&>%25",
    "blank": " ",
}


def test_names_that_mlflow_refuses(client: Calls, run_id: str) -> None:
    """As a metric's or a tag's name they would be; they are in the files alone, as they are."""
    model = nn.Sequential()
    for name in HARD.values():
        model.add_module(name, type(name, (nn.Linear,), {})(2, 2))
    summary = step(model, torch.ones(1, 2))
    report = write(client, run_id, summary)
    assert MLflowTracker(run_id, client).read() == summary
    assert table(client, run_id) == report.table
    assert [row["path"] for row in report.table] == ["", *HARD.values()]


def test_a_model_whose_class_has_a_long_name(
    client: Calls, run_id: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A tag has a bound, and MLflow cuts with a warning in the log: ours are short enough, and nothing is said."""
    model = type("N" * 9_000, (nn.Linear,), {})(1, 1)
    write(client, run_id, step(model, torch.ones(1, 1)))
    hashed = sha256(b"N" * 9_000).hexdigest()[:8]
    assert client.get_run(run_id).data.tags["model_summary/model"] == f"{'N' * 988} · #{hashed}"  # 1,000 characters
    assert MLflowTracker(run_id, client).read().root.type_name == "N" * 9_000
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []


class Wide(nn.Module):
    def __init__(self, leaves: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*[nn.Identity() for _ in range(leaves)])
        self.last = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x)


def test_ten_thousand_modules(client: Calls, run_id: str) -> None:
    """Are written whole, but for the table, which MLflow's page could not show: it says so."""
    summary = summarycb.summarize(Wide(9_997), (torch.ones(1, 1),))
    assert len(summary.modules) == 10_000  # the root, first, its 9,997, and last
    report = write(client, run_id, summary)
    assert MLflowTracker(run_id, client).read() == summary
    paths = ["", "first", *(f"first.{at}" for at in range(997)), "last"]
    assert [row["path"] for row in table(client, run_id)] == paths
    told = {"model_summary/table": "the 1000 of 10000 modules that are nearest to the root"}
    tags = client.get_run(run_id).data.tags
    assert {name: tag for name, tag in tags.items() if "model_summary/" in name} == {**report.identity, **told}

    report = write(client, run_id, step(nn.Linear(2, 1), torch.ones(4, 2)))
    tags = client.get_run(run_id).data.tags
    assert {name: tag for name, tag in tags.items() if "model_summary/" in name} == report.identity


def test_a_deleted_run_and_one_that_never_was(client: Calls, run_id: str, summary: ModelSummary) -> None:
    client.delete_run(run_id)
    with pytest.raises(
        SummaryError, match=f"^MLflow run '{run_id}' at sqlite:.*: The run {run_id} must be in the 'act"
    ):
        write(client, run_id, summary)
    assert client.list_artifacts(run_id) == []
    with pytest.raises(SummaryError, match=r"^MLflow run 'nope' at sqlite:.*: Run with id=nope not found"):
        write(client, "nope", summary)


def test_reading_beside_one_another(
    client: Calls, run_id: str, summary: ModelSummary, capfd: pytest.CaptureFixture[str]
) -> None:
    """In many threads; nothing is set in the environment, nothing is shown, and no copy stays."""
    write(client, run_id, summary)
    environment = dict(os.environ)
    before = set(Path(tempfile.gettempdir()).glob("tmp*"))
    with ThreadPoolExecutor(12) as pool:
        read = [pool.submit(MLflowTracker(run_id, client).read) for _ in range(12)]
    assert [one.result() for one in read] == [summary] * 12
    assert dict(os.environ) == environment
    assert set(Path(tempfile.gettempdir()).glob("tmp*")) == before
    assert capfd.readouterr() == ("", "")


def test_the_reason_is_ours(client: Calls) -> None:
    """Not the error that the caller is handling as he reads."""
    try:
        raise ConnectionRefusedError("the user's own")
    except ConnectionRefusedError:
        with pytest.raises(
            SummaryError, match=r": Run with id=nope not found; of another server or file, set MLFLOW_TRACKING_URI"
        ):
            MLflowTracker("nope", client).read()


@pytest.mark.parametrize("secret", ["me:se@cret@{}", "me:p/w@{}", "me:p?w@{}", "{}/?token=abc", "{}/?token=a@bc", "{}"])
def test_no_secret_is_told(secret: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = MlflowClient(f"http://{secret.format(f'127.0.0.1:{port}')}")
    with pytest.raises(SummaryError) as caught:
        MLflowTracker("0" * 32, client).read()
    told = str(caught.value)
    assert told.startswith(f"no readable model_summary.json in MLflow run '{'0' * 32}' at http://")
    for part in ("me:", "se@", "cret", "p/w", "p?w", "w@", "token", "abc", "a@b", "bc"):
        assert part not in told.removeprefix("no readable model_summary.json in "), told


class Faulty(BaseHTTPRequestHandler):
    """A server of one run, which answers with ``status`` where ``fault`` is asked for; with none, it does not."""

    fault, status, over = "", 0, threading.Event()

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.fault in self.path and not self.status:
            self.over.wait(60)
            return
        info = {"experiment_id": "0", "status": "RUNNING", "lifecycle_stage": "active"}
        info["artifact_uri"] = "mlflow-artifacts:/0/1/artifacts"
        body = json.dumps({"run": {"info": info, "data": {}}}).encode()
        self.send_response(self.status if self.fault in self.path else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


READING = ("runs/get", "model_summary.json")


@pytest.mark.parametrize("status", [403, 429, 500, 503, 0])
@pytest.mark.parametrize("fault", [*READING, "runs/log-batch", "runs/set-tag"])
def test_a_server_that_fails(fault: str, status: int, summary: ModelSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it fails at, writing and reading end at once, or where it is silent as soon as that has been long.

    MLflow's own client tries again what may be temporary, for minutes. The run says what the server has answered.
    """
    assert (server.ANSWER_SECONDS, server.TRANSFER_SECONDS) == (5, 60)
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(server, "TRANSFER_SECONDS", 0.5)
    handler = type("Handler", (Faulty,), {"fault": fault, "status": status, "over": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        tracker = MLflowTracker("0" * 32, MlflowClient(f"http://127.0.0.1:{found.server_port}"))
        reason = f"{status} (Client|Server) Error: .*{fault}" if status else "timed out"
        begin = time.monotonic()
        try:
            with pytest.raises(SummaryError, match=f"^MLflow run '0+' at http://127.0.0.1:[0-9]+: {reason}"):
                tracker.write(Report(summary), step=0)
            if fault in READING:
                with pytest.raises(SummaryError, match=f"^no readable model_summary.json in MLflow run .*: {reason}"):
                    tracker.read()
        finally:
            handler.over.set()  # type: ignore[attr-defined]
            found.shutdown()
            thread.join()
    assert time.monotonic() - begin < 10


def test_what_is_no_mlflow_server(summary: ModelSummary, tmp_path: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    (tmp_path / "api/2.0/mlflow/runs/get").mkdir(parents=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        uri = f"http://127.0.0.1:{found.server_port}"
        try:
            with pytest.raises(SummaryError, match=f"at {uri}: no MLflow server answers at {uri}/api/"):
                MLflowTracker("0" * 32, MlflowClient(uri)).write(Report(summary), step=0)
        finally:
            found.shutdown()
            thread.join()


def test_a_run_that_is_not_active(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is asked for before a client, which would make a database in the working folder."""
    monkeypatch.chdir(tmp_path)
    for reference in ("mlflow", "mlflow:"):
        with pytest.raises(SummaryError, match=f"^'{reference}': no MLflow run is active in this process; give "):
            MLflowTracker.open(reference)
    assert list(tmp_path.iterdir()) == []


ENTRY = {"path": "model_summary_table.json", "type": "table"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[]", json.dumps([ENTRY])),
        ('[{"path": "mine.json", "type": "table"}]', json.dumps([{"path": "mine.json", "type": "table"}, ENTRY])),
        ("no JSON", None),
        ('{"a": 1}', None),
        ("[" * 5_000, None),
        (json.dumps(["x" * 7_941]), json.dumps(["x" * 7_941, ENTRY])),  # 8,000 = 7,941, its 2 quotes, 2 [], ", " and 53
        (json.dumps(["x" * 7_942]), None),
    ],
    ids=lambda value: None if value is None else f"{value[:8]}, {len(value)}",
)
def test_the_users_tables(client: Calls, run_id: str, summary: ModelSummary, before: str, after: str | None) -> None:
    """Ours is listed with them; where that cannot be read, or there is no room, it stays as it is."""
    client.set_tag(run_id, "mlflow.loggedArtifacts", before)
    write(client, run_id, summary)
    assert client.get_run(run_id).data.tags["mlflow.loggedArtifacts"] == (before if after is None else after)


def test_what_is_used_of_mlflow_that_it_does_not_document() -> None:
    """If this fails, MLflow has changed inside, and ``summarycb_mlflow.server`` has to follow."""
    import inspect

    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request
    from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

    def parameters(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert parameters(get_default_host_creds) == ["store_uri"]
    assert parameters(http_request)[:3] == ["host_creds", "endpoint", "method"]
    assert {"max_retries", "retry_codes", "extra_headers", "timeout", "kwargs"} <= set(parameters(http_request))
    assert parameters(get_artifact_repository)[:2] == ["artifact_uri", "tracking_uri"]
    served = get_artifact_repository("mlflow-artifacts:/0/1/artifacts", tracking_uri="http://127.0.0.1:9")
    assert served.artifact_uri == "http://127.0.0.1:9/api/2.0/mlflow-artifacts/artifacts/0/1/artifacts"
    assert summarycb_mlflow.MOST_TAG == MAX_TAG_VAL_LENGTH


def test_artifacts_that_cannot_be_written(client: Calls, tmp_path: Path, summary: ModelSummary) -> None:
    """The totals are there; the run does not claim to have a table."""
    (tmp_path / "file").touch()
    experiment = client.create_experiment(str(tmp_path), (tmp_path / "file" / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    with pytest.raises(SummaryError, match=f"^MLflow run '{run_id}' at sqlite:.*: .*Not a directory: "):
        write(client, run_id, summary)
    data = client.get_run(run_id).data
    assert data.metrics["model_summary/total_params"] == summary.total_params
    assert "mlflow.loggedArtifacts" not in data.tags


@pytest.mark.parametrize("reference", ["mlflow:nope", "mlflow:experiments/nope"])
def test_a_reference_where_there_is_no_database_makes_none(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow's default, a file in the working directory, and one that is named: each is said not to be there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for uri in (f"sqlite:///{tmp_path}/mlflow.db", "sqlite:///other.db?timeout=1"):
        if "other" in uri:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert main(["compare", reference, reference]) == 2
        why = f"there is no MLflow at {uri}; set MLFLOW_TRACKING_URI to where its runs are"
        assert capsys.readouterr() == ("", f"summarycb: {reference!r}: {why}\n")
        assert not list(tmp_path.iterdir())
