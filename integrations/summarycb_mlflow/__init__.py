"""MLflow: totals as metrics, identity as tags; table, page, text and JSON as artifacts at the run's root.

Imports mlflow only when a run is opened. Goes by run id with a client, never by the fluent functions: the active run
belongs to a thread, and ``mlflow.log_*`` in another one would start a new run. The table has the 1,000 modules that are
nearest to the root, and a tag says so where that is not all; the page and the JSON have every module.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self, cast

from summarycb import serialize
from summarycb.errors import SummaryError, missing
from summarycb.report import PREFIX, Report
from summarycb.trackers import LIGHTNING, is_kind
from summarycb.tree import ModelSummary

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from requests import Response

    from summarycb.render.exports import Cell

# at the root of the artifacts: the Compare page shows there alone what runs have in common
JSON, HTML, TEXT, TABLE = f"{PREFIX}.json", f"{PREFIX}.html", f"{PREFIX}.txt", f"{PREFIX}_table.json"
TABLE_TAG, TABLES_TAG = f"{PREFIX}/table", "mlflow.loggedArtifacts"
MOST_ROWS = 1_000  # MLflow's page makes all at once: measured as 12 s and 0.5 GB, and 4,000 end its tab
HTTP = ("http://", "https://")
ANSWER_SECONDS, UPLOAD_SECONDS = 5, 60
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
        """Totals at ``step``, tags and artifacts; of a second report what is new takes the place of what was there."""
        from mlflow.entities import Metric, RunTag

        rows = _nearest(report.table)
        tags = dict(report.identity)
        if len(rows) < len(report.table):
            tags[TABLE_TAG] = f"the {len(rows)} of {len(report.table)} modules that are nearest to the root"
        with self._named(""):
            run = self._answering.get_run(self._run_id)
            now = int(time.time() * 1000)
            # one that is equal, in a training that is resumed, would only be a second point of its curve
            new = {name: value for name, value in report.metrics.items() if run.data.metrics.get(name) != float(value)}
            self._answering.log_batch(
                self._run_id,
                metrics=[Metric(name, value, now, step) for name, value in new.items()],
                tags=[RunTag(name, value) for name, value in tags.items()],
            )
            for name in run.data.tags:
                if name.startswith(f"{PREFIX}/") and name not in tags:
                    self._answering.delete_tag(self._run_id, name)
            put = self._putter(run.info.artifact_uri)
            put(JSON, report.json)
            put(HTML, report.html)
            put(TEXT, report.text)
            put(TABLE, _table(rows))
            tables, entry = json.loads(run.data.tags.get(TABLES_TAG, "[]")), {"path": TABLE, "type": "table"}
            if entry not in tables:
                self._answering.set_tag(self._run_id, TABLES_TAG, json.dumps([*tables, entry]))

    def read(self) -> ModelSummary:
        """The summary in the run's artifacts."""
        with self._named(f"no readable {JSON} in "), TemporaryDirectory() as folder, _no_progress_bar():
            return serialize.read(self._answering.download_artifacts(self._run_id, JSON, folder))

    @property
    def _answering(self) -> MlflowClient:
        """The client, once its server has answered.

        It tries a server that is gone for four minutes a call. That is set by environment variables alone, which are
        the user's calls' too, so the server is asked before each of ours.
        """
        if (uri := self._client.tracking_uri).startswith(HTTP):
            _request(uri, "/health", "GET", timeout=ANSWER_SECONDS)  # whatever it says is an answer
        return self._client

    def _putter(self, store: str) -> Callable[[str, str], object]:
        """What puts a text at the root of the run's artifacts, through a server as the client does, but tried once."""
        if not store.startswith(("mlflow-artifacts:", *HTTP)):
            return lambda name, text: self._client.log_text(self._run_id, text, name)
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        url = get_artifact_repository(store, tracking_uri=self._client.tracking_uri).artifact_uri
        return lambda name, text: _request(
            url, f"/{name}", "PUT", timeout=UPLOAD_SECONDS, data=text.encode()
        ).raise_for_status()

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Errors say which run it was and where, without a user and password."""
        try:
            yield
        except Exception as error:
            # a refused connection is raised again by three libraries, each with more words: the first knew why
            reason: BaseException = error
            link: BaseException | None = error
            while link is not None:
                reason = link if isinstance(link, OSError) else reason
                link = link.__cause__ or link.__context__
            text = f"{what}MLflow run {self._run_id!r} at {self._client.tracking_uri}: {reason}"
            raise SummaryError(re.sub("//[^/@]*@", "//", text)) from error


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


def _request(host: str, endpoint: str, method: str, **options: Any) -> Response:
    from mlflow.utils import credentials, rest_utils

    creds, send = cast(Any, credentials).get_default_host_creds(host), cast(Any, rest_utils).http_request
    once = {"max_retries": 0, "retry_codes": (), "extra_headers": {"Connection": "close"}}  # none that went stale
    return cast("Response", send(creds, endpoint, method, **once, **options))


def _table(rows: list[dict[str, Cell]]) -> str:
    # as client.log_table writes it, which would append to the table of an earlier report
    return json.dumps({"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}, ensure_ascii=False)


def _nearest(rows: list[dict[str, Cell]]) -> list[dict[str, Cell]]:
    """As many as MLflow can show, those nearest to the root, in the order of the model."""
    nearest = sorted(range(len(rows)), key=lambda at: cast(int, rows[at]["depth"]))[:MOST_ROWS]
    return [rows[at] for at in sorted(nearest)]


def _client() -> MlflowClient:
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError:
        raise missing("mlflow", "mlflow") from None
    return MlflowClient()
