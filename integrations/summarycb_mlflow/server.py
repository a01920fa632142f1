"""Where a run lies: an MLflow server, asked over its REST API, and the store of its artifacts.

MLflow's client tries a server that is gone, or fails, for four minutes a call. That is set by environment variables
alone, which are the user's calls' too, so here each request is made once, and ends when the server is silent for long.
"""

from __future__ import annotations

import math
import re
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from summarycb.errors import SummaryError

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Metric, Run, RunTag
    from mlflow.store.entities import PagedList
    from requests import Response

HTTP = ("http://", "https://")
ANSWER_SECONDS, TRANSFER_SECONDS = 5, 60


class Server:
    """As much of an ``MlflowClient`` as a summary needs."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def get_run(self, run_id: str) -> Run:
        """With its totals and tags."""
        return _run(run_id, self._ask("GET", "runs/get", params={"run_id": run_id})["run"])

    def get_experiment_by_name(self, name: str) -> Experiment:
        """Without more than its id."""
        from mlflow.entities import Experiment

        found = self._ask("GET", "experiments/get-by-name", params={"experiment_name": name})["experiment"]
        return Experiment(found["experiment_id"], name, "", "active")

    def search_runs(
        self, ids: list[str], filter_string: str, *, max_results: int, order_by: list[str], page_token: str | None
    ) -> PagedList[Run]:
        """One page of runs."""
        from mlflow.store.entities import PagedList

        asked = {"experiment_ids": ids, "filter": filter_string, "order_by": order_by, "max_results": max_results}
        answer = self._ask("POST", "runs/search", json=asked | ({"page_token": page_token} if page_token else {}))
        return PagedList(
            [_run(one["info"]["run_id"], one) for one in answer.get("runs", [])], answer.get("next_page_token")
        )

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        """All points of a metric."""
        answer = self._ask("GET", "metrics/get-history", params={"run_id": run_id, "metric_key": key})
        return [_point(one) for one in answer.get("metrics", [])]

    def log_batch(self, run_id: str, metrics: Sequence[Metric], tags: Sequence[RunTag]) -> None:
        """Totals and tags at once."""
        points = [{"key": m.key, "value": _figure(m), "timestamp": m.timestamp, "step": m.step} for m in metrics]
        named = [{"key": tag.key, "value": tag.value} for tag in tags]
        self._ask("POST", "runs/log-batch", json={"run_id": run_id, "metrics": points, "tags": named})

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        """In the place of what it was."""
        self._ask("POST", "runs/set-tag", json={"run_id": run_id, "key": key, "value": value})

    def delete_tag(self, run_id: str, key: str) -> None:
        """One that is there."""
        self._ask("POST", "runs/delete-tag", json={"run_id": run_id, "key": key})

    def _ask(self, method: str, what: str, **content: Any) -> dict[str, Any]:
        answer = request(self._uri, f"/api/2.0/mlflow/{what}", method, timeout=ANSWER_SECONDS, **content)
        try:
            return cast("dict[str, Any]", answer.json())
        except ValueError:
            raise SummaryError(f"no MLflow server answers at {answer.url}") from None


def _run(run_id: str, run: dict[str, Any]) -> Run:
    from mlflow.entities import Run, RunData, RunInfo, RunTag

    info, data = run["info"], run["data"]
    said: dict[str, Any] = {name: info[name] for name in ("experiment_id", "status", "lifecycle_stage", "artifact_uri")}
    said["run_name"] = info.get("run_name")
    times: dict[str, Any] = {"start_time": int(info.get("start_time", 0)), "end_time": None}
    tags = [RunTag(tag["key"], tag["value"]) for tag in data.get("tags", [])]
    metrics = [_point(one) for one in data.get("metrics", [])]
    return Run(RunInfo(run_id=run_id, user_id="", **said, **times), RunData(metrics=metrics, tags=tags))


def _figure(metric: Metric) -> float | str:
    # JSON has no NaN; at a text that is spelled otherwise MLflow stops, and drops what follows without a word
    return "NaN" if math.isnan(metric.value) else metric.value


def _point(one: dict[str, Any]) -> Metric:
    from mlflow.entities import Metric

    return Metric(one["key"], float(one["value"]), int(one["timestamp"]), int(one["step"]))


class Artifacts:
    """The files at the root of a run's artifacts; one that is put takes the place of what was there."""

    def __init__(self, uri: str, tracking_uri: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self._store: Any = get_artifact_repository(uri, tracking_uri=tracking_uri)
        self._uri: str = self._store.artifact_uri  # of those that a server hands on, its URL

    def put(self, name: str, text: str) -> None:
        """Write a file."""
        if self._uri.startswith(HTTP):
            request(self._uri, f"/{name}", "PUT", timeout=TRANSFER_SECONDS, data=text.encode())
            return
        with TemporaryDirectory() as folder:
            file = Path(folder, name)
            file.write_bytes(text.encode())
            self._store.log_artifact(str(file))

    def get(self, name: str, folder: str) -> Path:
        """The file, where it lies, or as a copy in ``folder``."""
        if not self._uri.startswith(HTTP):
            local = urlsplit(self._uri).scheme in ("", "file")  # read in its place: a copy draws a progress bar
            return Path(self._store.download_artifacts(name, None if local else folder))
        file = Path(folder, name)
        file.write_bytes(request(self._uri, f"/{name}", "GET", timeout=TRANSFER_SECONDS).content)
        return file


def request(host: str, endpoint: str, method: str, **options: Any) -> Response:
    """What the server answers; raises what it says is wrong."""
    from mlflow.exceptions import RestException
    from mlflow.utils import credentials, rest_utils

    creds, send = cast(Any, credentials).get_default_host_creds(host), cast(Any, rest_utils).http_request
    once = {"max_retries": 0, "retry_codes": (), "extra_headers": {"Connection": "close"}}  # none that went stale
    answer = cast("Response", send(creds, endpoint, method, **once, **options))
    if not answer.ok:
        try:
            said = answer.json()
        except ValueError:  # it is not MLflow that says it
            said = None
        if isinstance(said, dict) and "error_code" in said:
            raise cast(Any, RestException)(said)
        answer.raise_for_status()
    return answer


@contextmanager
def named(name: str, uri: str, what: str = "", kind: str = "run") -> Iterator[None]:
    """Errors say which run, or what else, it was and where, without a user and password."""
    outer = sys.exception()  # what the caller is handling has nothing to do with it
    try:
        yield
    except Exception as error:
        where = f"MLflow {kind} {name!r} at {_public(uri)}"
        raise SummaryError(f"{what}{where}: {_public(str(_first_reason(error, outer)))}") from error


def _first_reason(error: BaseException, outer: BaseException | None) -> BaseException:
    """A refused connection, or a full disk, is raised again by three libraries, each with more words, one with all
    that was to be written: the first knew why. But what cannot be parsed is told with a part of it, a password's.
    """
    reason, link = error, error.__cause__ or error.__context__
    while link is not None and link is not outer:
        if isinstance(link, (OSError, sqlite3.Error)) and not isinstance(link, ValueError):
            reason = link
        link = link.__cause__ or link.__context__
    return reason


def _public(text: str) -> str:
    """Without the user, password and query of a URL; where a password has one of ``@/?``, rather too little is left."""
    text = re.sub(r"//\S*\?\S*@\S*", "//…", text)
    text = re.sub(r"//\S*@", "//", text)
    return re.sub(r"(//[^\s?]*)\?\S*", r"\1", text)
