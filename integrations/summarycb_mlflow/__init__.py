"""MLflow: totals as metrics, identity as tags; table, page, text and JSON as artifacts at the run's root.

Imports mlflow only when a run is opened. Goes by run id with a client, never by the fluent functions: the active run
belongs to a thread, and ``mlflow.log_*`` in another one would start a new run. The table has the 1,000 modules that are
nearest to the root, and a tag says so where that is not all; the page and the JSON have every module.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self, cast

from summarycb import serialize
from summarycb.errors import SummaryError, missing
from summarycb.report import PREFIX, Report
from summarycb.trackers import LIGHTNING, is_kind, writing
from summarycb.tree import ModelSummary
from summarycb_mlflow.server import HTTP, Artifacts, Server, named

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

    from summarycb.render.exports import Cell

# at the root of the artifacts: the Compare page shows there alone what runs have in common
JSON, HTML, TEXT, TABLE = f"{PREFIX}.json", f"{PREFIX}.html", f"{PREFIX}.txt", f"{PREFIX}_table.json"
COMPARISON = f"{PREFIX}_comparison.md"
BASELINE = f"{PREFIX}/baseline"
TABLE_TAG, TABLES_TAG = f"{PREFIX}/table", "mlflow.loggedArtifacts"
MOST_ROWS = 1_000  # MLflow's page makes all at once: measured as 12 s and 0.5 GB, and 4,000 end its tab
EXPERIMENTS = "experiments/"
WITH_SUMMARY = f"tags.`{PREFIX}/structure` != ''"
PAGE = 1_000
"""So many runs are asked for at once."""
MOST_TAG = 8_000  # characters, after which MLflow cuts


class MLflowTracker:
    """Writes to and reads from an MLflow run: of ``client``'s server or file, or else of the current tracking URI's."""

    def __init__(self, run_id: str, client: MlflowClient | None = None) -> None:
        self._run_id = run_id
        self._client = _mlflow().MlflowClient() if client is None else client
        self._uri: str = self._client.tracking_uri
        self._store = _store(self._client)

    @classmethod
    def wrap(cls, target: object) -> Self | None:
        """Takes a run, a run id, or the Lightning logger of a run."""
        native: Any = target
        if is_kind(target, "Run", "mlflow"):
            return cls(native.info.run_id)
        if isinstance(target, str) and re.fullmatch("[0-9a-f]{32}", target):
            return cls(target)
        if is_kind(target, "MLFlowLogger", *LIGHTNING) and is_kind(native.experiment, "MlflowClient", "mlflow"):
            return cls(native.run_id, native.experiment)
        return None

    @classmethod
    def open(cls, reference: str) -> Self:
        """``mlflow:<run_id>`` at the current tracking URI, or the run that is active in this thread."""
        run_id = reference.partition(":")[2]
        if run_id.startswith(EXPERIMENTS):
            raise SummaryError(f"{reference!r} stands for several runs; give one of them, 'mlflow:<run_id>'")
        if run_id:
            return cls(run_id, _client(reference))
        active = _mlflow().active_run()  # before a client is made, which makes a database where there is none
        if active is None:
            raise SummaryError(f"{reference!r}: no MLflow run is active in this process; give 'mlflow:<run_id>'")
        return cls(active.info.run_id)

    @classmethod
    def find(cls, reference: str) -> list[str]:
        """Of ``mlflow:experiments/<name>`` the runs that have a summary, newest first."""
        scheme, _, where = reference.partition(":")
        if not where.startswith(EXPERIMENTS):
            return [reference]
        if where == EXPERIMENTS:
            raise SummaryError(f"{reference!r} names no experiment; give '{reference}<name>'")
        client = _client(reference)
        uri: str = client.tracking_uri
        store: Any = _store(client)
        name, found, token = where.removeprefix(EXPERIMENTS), [], None
        newest = ["attributes.start_time DESC"]
        with named(name, uri, kind="experiment"):
            experiment = store.get_experiment_by_name(name)
            if experiment is None:
                raise SummaryError("there is none of this name")
            ids = [experiment.experiment_id]
            while True:
                page = store.search_runs(ids, WITH_SUMMARY, max_results=PAGE, order_by=newest, page_token=token)
                found += [f"{scheme}:{run.info.run_id}" for run in page]
                if not (token := page.token):
                    return found

    def run_name(self) -> str | None:
        """As it was given, or as MLflow has made it up."""
        with named(self._run_id, self._uri):
            return self._run().info.run_name or None

    def created(self) -> datetime | None:
        """When the run began."""
        with named(self._run_id, self._uri):
            began = self._run().info.start_time
        return datetime.fromtimestamp(began // 1000, UTC) + timedelta(milliseconds=began % 1000) if began else None

    def write(self, report: Report, *, step: int) -> None:
        """Totals at ``step``, tags and artifacts; of a second report what is new takes the place of what was there."""
        from mlflow.entities import RunTag

        rows = _nearest(report.table)
        tags = dict(report.identity)
        if len(rows) < len(report.table):
            tags[TABLE_TAG] = f"the {len(rows)} of {len(report.table)} modules that are nearest to the root"
        with writing(f"mlflow:{self._run_id}"), named(self._run_id, self._uri):
            run = self._run()
            self._store.log_batch(
                self._run_id,
                metrics=self._points(run.data.metrics, report, step),
                tags=[RunTag(name, value) for name, value in tags.items()],
            )
            for name in run.data.tags:
                if name.startswith(f"{PREFIX}/") and name not in tags:
                    self._store.delete_tag(self._run_id, name)
            files = Artifacts(run.info.artifact_uri, self._uri)
            files.put(JSON, report.json)
            files.put(HTML, report.html)
            files.put(TEXT, report.text)
            files.put(TABLE, _table(rows))
            if report.comparison is not None or BASELINE in run.data.tags:
                files.put(COMPARISON, report.compared)
            tables = _with_ours(self._run().data.tags.get(TABLES_TAG, "[]"))  # the user may have logged one meanwhile
            if tables is not None:
                self._store.set_tag(self._run_id, TABLES_TAG, tables)

    def read(self) -> ModelSummary:
        """The summary in the run's artifacts."""
        with named(self._run_id, self._uri, f"no readable {JSON} in "), TemporaryDirectory() as folder:
            return serialize.read(Artifacts(self._run().info.artifact_uri, self._uri).get(JSON, folder))

    def _run(self) -> Run:
        from mlflow.exceptions import MlflowException

        try:
            return self._store.get_run(self._run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            elsewhere = "of another server or file, set MLFLOW_TRACKING_URI, or give summarycb_mlflow.MLflowTracker"
            given = f"{elsewhere}(run_id, MlflowClient(uri)), or as a summary what its read() gives"
            raise SummaryError(f"{error}; {given}") from None

    def _points(self, stored: Mapping[str, float], report: Report, step: int) -> list[Metric]:
        """The totals that are new. A metric cannot be taken back: what is unknown now is NaN."""
        from mlflow.entities import Metric

        ours = {name: value for name, value in stored.items() if name.startswith(f"{PREFIX}/")}
        known = {name: float(value) for name, value in report.metrics.items()}
        now = int(time.time() * 1000)
        points = []
        for name in {**ours, **known}:
            value = known.get(name, math.nan)
            if name not in ours:
                points.append(Metric(name, value, now, step))
            # one that is equal, in a training that is resumed, would only be a second point of its curve
            elif str(value) != str(ours[name]):
                # the run shows the point of the highest step, and of these the latest: another fit begins at step 0
                past = self._store.get_metric_history(self._run_id, name)
                time_, step_ = (max(p.timestamp + 1 for p in past), max(p.step for p in past))
                points.append(Metric(name, value, max(now, time_), max(step, step_)))
        return points


def _with_ours(tables: str) -> str | None:
    """The list of the run's tables with ours; None where it is there, or finds no room, or this is no such list."""
    try:
        listed = json.loads(tables)
    except (ValueError, RecursionError):
        return None
    entry = {"path": TABLE, "type": "table"}
    if not isinstance(listed, list) or entry in listed:
        return None
    text = json.dumps([*listed, entry])
    return text if len(text) <= MOST_TAG else None


def _table(rows: list[dict[str, Cell]]) -> str:
    # as client.log_table writes it, which would append to the table of an earlier report
    return json.dumps({"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}, ensure_ascii=False)


def _nearest(rows: list[dict[str, Cell]]) -> list[dict[str, Cell]]:
    """As many as MLflow can show, those nearest to the root, in the order of the model."""
    nearest = sorted(range(len(rows)), key=lambda at: cast(int, rows[at]["depth"]))[:MOST_ROWS]
    return [rows[at] for at in sorted(nearest)]


def _client(reference: str) -> MlflowClient:
    """Of the current tracking URI; a client would make its database where there is none, as for a mistyped name."""
    mlflow = _mlflow()
    uri: str = mlflow.get_tracking_uri()
    database = re.match("sqlite:///(?!:memory:|file:)([^?]+)", uri)
    if database and not Path(database[1]).exists():
        raise SummaryError(f"{reference!r}: there is no MLflow at {uri}; set MLFLOW_TRACKING_URI to where its runs are")
    return cast("MlflowClient", mlflow.MlflowClient())


def _store(client: MlflowClient) -> MlflowClient | Server:
    """What is asked for runs: of a server, each request once."""
    uri: str = client.tracking_uri
    return Server(uri) if uri.startswith(HTTP) else client


def _mlflow() -> ModuleType:
    try:
        import mlflow
    except ModuleNotFoundError:
        raise missing("mlflow", "mlflow") from None
    return mlflow
