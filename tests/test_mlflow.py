"""The MLflow run holds totals, identity, table, page, text and JSON, once each, however often it is written.

A bare sqlite file with artifacts in a folder; servers are in ``test_mlflow_server.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from torch import nn

import summarycb
from summarycb.errors import SummaryError
from summarycb.report import Report
from summarycb.tree import ModelSummary
from summarycb_mlflow import MLflowTracker
from tests.pages import residual, step

# mlflow 3.17 uses an option that SQLAlchemy 2.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


class Calls(MlflowClient):
    """A client that notes which of its methods the adapter has called."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.names: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("get_run", "log_batch", "log_text", "set_tag"):
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
    assert client.names == ["get_run", "log_batch", *["log_text"] * 4, "set_tag"]
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


def test_a_run_that_is_resumed_is_written_once(client: Calls, run_id: str, summary: ModelSummary) -> None:
    """The table is not appended to, a total that is as it was gets no second point, and nothing is raised."""
    write(client, run_id, summary, at=0)
    client.set_terminated(run_id)
    before = client.get_run(run_id)
    client.names = []
    write(client, run_id, summary, at=100)
    assert client.names == ["get_run", "log_batch", *["log_text"] * 4]
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
    assert set(client.get_run(run_id).data.tags["model_summary/model"]) <= {"N", "…"}
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
