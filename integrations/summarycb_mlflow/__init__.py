"""MLflow: totals as metrics, table, text and JSON as artifacts at the run's root.

Imports mlflow only when a run is opened. Goes by run id with a client, never by the fluent functions: the active run
belongs to a thread, and ``mlflow.log_*`` in another one would start a new run.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

from summarycb import serialize
from summarycb.errors import SummaryError, missing
from summarycb.trackers import LIGHTNING, PREFIX, Report, is_kind
from summarycb.tree import ModelSummary

if TYPE_CHECKING:
    from mlflow import MlflowClient

JSON, TEXT, TABLE = f"{PREFIX}.json", f"{PREFIX}.txt", f"{PREFIX}_table.json"
TABLES_TAG = "mlflow.loggedArtifacts"
PROGRESS_BAR = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"


class MLflowTracker:
    """Writes to and reads from an MLflow run."""

    def __init__(self, run_id: str, client: MlflowClient) -> None:
        self._run_id = run_id
        self._client = client

    @classmethod
    def wrap(cls, target: object) -> Self | None:
        """Takes a run, a run id, or the Lightning logger of a run."""
        native: Any = target
        if is_kind(target, "Run", "mlflow"):
            return cls(native.info.run_id, _client())
        if isinstance(target, str) and re.fullmatch("[0-9a-f]{32}", target):
            return cls(target, _client())
        if is_kind(target, "MLFlowLogger", *LIGHTNING) and is_kind(native.experiment, "MlflowClient", "mlflow"):
            return cls(native.run_id, native.experiment)
        return None

    @classmethod
    def open(cls, reference: str) -> Self:
        """``mlflow:<run_id>`` at the current tracking URI, or the run that is active in this thread."""
        client, run_id = _client(), reference.partition(":")[2]
        if run_id:
            return cls(run_id, client)
        import mlflow

        run = mlflow.active_run()
        if run is None:
            raise SummaryError(
                f"{reference!r}: no MLflow run is active; call mlflow.start_run() first, or give 'mlflow:<run_id>'"
            )
        return cls(run.info.run_id, client)

    def write(self, report: Report, *, step: int) -> None:
        """Artifacts and metrics at ``step``; a second report replaces the artifacts of the first."""
        from mlflow.entities import Metric

        self._client.log_text(self._run_id, report.json, JSON)
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in report.metrics.items()]
        self._client.log_batch(self._run_id, metrics=metrics)
        self._client.log_text(self._run_id, report.text, TEXT)
        self._write_table(report)

    def _write_table(self, report: Report) -> None:
        # as client.log_table does, which would append to the table of an earlier report
        rows = report.table
        table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
        self._client.log_text(self._run_id, json.dumps(table, ensure_ascii=False), TABLE)
        entry = {"path": TABLE, "type": "table"}
        tables = json.loads(self._client.get_run(self._run_id).data.tags.get(TABLES_TAG, "[]"))
        if entry not in tables:
            self._client.set_tag(self._run_id, TABLES_TAG, json.dumps([*tables, entry]))

    def read(self) -> ModelSummary:
        """The summary in the run's artifacts."""
        from mlflow.exceptions import MlflowException

        try:
            with TemporaryDirectory() as folder, _no_progress_bar():
                return serialize.read(self._client.download_artifacts(self._run_id, JSON, folder))
        except (MlflowException, OSError, SummaryError) as error:
            where = re.sub("//.*@", "//", self._client.tracking_uri)  # without a user and password
            raise SummaryError(f"no readable {JSON} in MLflow run {self._run_id!r} at {where}: {error}") from error


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    before = os.environ.get(PROGRESS_BAR)
    os.environ[PROGRESS_BAR] = "false"
    try:
        yield
    finally:
        del os.environ[PROGRESS_BAR]
        if before is not None:
            os.environ[PROGRESS_BAR] = before


def _client() -> MlflowClient:
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError:
        raise missing("mlflow", "mlflow") from None
    return MlflowClient()
