"""Stands in for W&B's server, which no test can have: keeps one run, and answers what the real SDK asks for."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JSON = "model_summary.json"
DAY = "2026-01-01T00:00:00Z"
PROJECT = {"id": "1", "internalId": "1", "name": "project", "entity": {"id": "1", "name": "team"}}
LAST_PAGE = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}


class WandbServer(ThreadingHTTPServer):
    """``team/project/old`` is a run that has ended, with a learning rate and a loss after three steps.

    ``others`` are more runs, which can only be read: when each was made, its summary's figures, and its file.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.config: dict[str, Any] = {"lr": 0.1}
        self.summary: dict[str, Any] = {"loss": 0.5}
        self.files: dict[str, bytes] = {}
        self.others: dict[str, tuple[str, dict[str, Any], bytes]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.artifact_file: bytes | None = None
        self.state = "finished"
        self.streamed: set[str] = set()
        self.steps: list[int] = []
        self.exit_codes: list[int] = []

    def answer(self, query: str, given: dict[str, Any]) -> Any:
        """What the query of each name is answered; others, which the SDK can do without, get nothing."""
        name = re.findall(r"(?:query|mutation) (\w+)", query)[0]
        run = self._run(given["name"]) if given.get("name") in ("old", *self.others) else None
        match name:
            case "Viewer" | "GetDefaultEntity":
                return {
                    "viewer": {"id": "1", "entity": "team", "username": "me", "flags": "{}", "teams": {"edges": []}}
                }
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "Run":
                return {"project": {"run": run}}
            case "Runs":
                if (given["entity"], given["project"]) != ("team", "project"):
                    return {"project": None}
                return {"project": {"runCount": 1 + len(self.others), "runs": self._page(given)}}
            case "RunResumeStatus":
                return {"model": {**PROJECT, "bucket": run}}
            case "UpsertBucket":
                if given["config"]:
                    self.config = {key: value["value"] for key, value in json.loads(given["config"]).items()}
                return {"upsertBucket": {"bucket": self._run(), "inserted": False}}
            case "CreateRunFiles":
                files = [{"name": file, "uploadUrl": f"{self.url}/{file}"} for file in given["files"]]
                return {"createRunFiles": {"runID": "old", "uploadHeaders": [], "files": files}}
            case "RunFiles":
                stored = {JSON: self.others[given["name"]][2]} if given["name"] in self.others else self.files
                edges = [
                    {"node": self._file(given["name"], file, len(stored[file])), "cursor": file}
                    for file in given["fileNames"]
                    if file in stored
                ]
                return {"project": {"run": {"fileCount": 1, "files": {"edges": edges, "pageInfo": LAST_PAGE}}}}
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "CreateArtifact":  # as if its content were here already: the SDK then does not send it
                made = given["input"]
                self.artifacts[made["artifactCollectionName"]] = made
                sequence = {"latestArtifact": {"id": "1"}}
                return {"createArtifact": {"artifact": {"id": "1", "state": "COMMITTED", "artifactSequence": sequence}}}
            case "ArtifactMembershipByName":
                return {"project": {"artifactCollectionMembership": self._membership(given["name"].partition(":")[0])}}
            case "FetchArtifactManifest":
                return {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.url}/manifest"}}}}
            case "GetArtifactMembershipFileUrls":
                node = {"__typename": "File", "name": JSON, "directUrl": f"{self.url}/artifact"}
                files = {"pageInfo": LAST_PAGE, "edges": [{"node": node}]}
                collection = {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}
                return {"project": {"artifactCollection": collection}}
        return {}

    def _page(self, given: dict[str, Any]) -> dict[str, Any]:
        """Two runs after the cursor, in the order that is asked for."""
        assert given["order"] in ("+created_at", "-created_at")
        runs = [self._run(name) for name in ("old", *self.others)]
        runs.sort(key=lambda run: run["createdAt"], reverse=given["order"][0] == "-")
        begin = int(given.get("cursor") or 0)
        edges = [{"node": run, "cursor": str(begin + at)} for at, run in enumerate(runs[begin : begin + 2], start=1)]
        return {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": begin + 2 < len(runs)}}

    def _run(self, name: str = "old") -> dict[str, Any]:
        created, figures, _ = self.others.get(name, (DAY, self.summary, b""))
        config = {key: {"value": value} for key, value in self.config.items()}
        return {
            "id": "UnVuOjE=",
            "name": name,
            "displayName": f"{name}-1",
            "state": self.state,
            "project": PROJECT,
            "config": json.dumps(config),
            "summaryMetrics": json.dumps(figures),
            "systemMetrics": "{}",
            "historyLineCount": 3,
            "historyTail": '["{\\"_step\\": 2}"]',
            "historyKeys": {},
            "eventsTail": "[]",
            "eventsLineCount": 0,
            "logLineCount": 0,
            "wandbConfig": '{"t": {"value": {}}}',
            "tags": [],
            "notes": None,
            "projectId": "1",
            "group": None,
            "jobType": None,
            "commit": None,
            "readOnly": False,
            "createdAt": created,
            "heartbeatAt": DAY,
            "description": None,
            "sweepName": None,
            "user": {"name": "me", "username": "me"},
        }

    def _file(self, run: str, name: str, size: int) -> dict[str, Any]:
        url = f"{self.url}/{run}/{name}" if run in self.others else f"{self.url}/{name}"
        return {"id": "1", "name": name, "url": url, "directUrl": url, "sizeBytes": size, "updatedAt": DAY, "md5": ""}

    def _membership(self, name: str) -> dict[str, Any] | None:
        if name not in self.artifacts or self.artifact_file is None:
            return None
        made = self.artifacts[name]
        source = {"__typename": "ArtifactSequence", "name": name, "project": PROJECT}
        artifact = {
            "__typename": "Artifact",
            "id": "1",
            "artifactSequence": source,
            "versionIndex": 0,
            "state": "COMMITTED",
            "artifactType": {"name": made["artifactTypeName"]},
            "digest": made["digest"],
            "commitHash": "1",
            "metadata": made["metadata"],
            "description": None,
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "aliases": [],
            "historyStep": None,
            "size": 1,
            "fileCount": 1,
            "createdAt": DAY,
            "updatedAt": None,
        }
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": "1",
            "versionIndex": 0,
            "aliases": [],
            "artifactCollection": source,
            "artifact": artifact,
            "createdAt": DAY,
        }

    def fetch(self, path: str) -> bytes | None:
        """The content of a URL that was given before."""
        if path not in ("manifest", "artifact"):
            run, _, name = path.partition("/")
            return self.others[run][2] if name == JSON and run in self.others else self.files.get(path)
        stored = self.artifact_file or b""
        if path == "artifact":
            return stored
        digest = base64.b64encode(hashlib.md5(stored).digest()).decode()
        layout = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
        content = {JSON: {"digest": digest, "size": len(stored), "birthArtifactID": "1"}}
        return json.dumps({"version": 1, **layout, "contents": content}).encode()

    def stream(self, sent: dict[str, Any]) -> None:
        """What a run sends as it goes."""
        for name, part in sent.get("files", {}).items():
            self.streamed.add(name)
            if name == "wandb-history.jsonl":
                self.steps += [json.loads(line)["_step"] for line in part["content"]]
            if name == "wandb-summary.json":
                self.summary = json.loads(part["content"][-1])
        if sent.get("complete"):
            self.exit_codes.append(sent["exitcode"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _given(self) -> bytes:
        given = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(given) if self.headers.get("content-encoding") == "gzip" else given

    def _reply(self, content: bytes | None) -> None:
        self.send_response(404 if content is None else 200)
        self.send_header("content-length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def do_GET(self) -> None:
        self._reply(self.server.fetch(self.path[1:]))

    def do_PUT(self) -> None:
        self.server.files[self.path[1:]] = self._given()
        self._reply(b"")

    def do_POST(self) -> None:
        given = json.loads(self._given())
        if self.path == "/graphql":
            self._reply(json.dumps({"data": self.server.answer(given["query"], given.get("variables") or {})}).encode())
        else:
            self.server.stream(given)
            self._reply(b"{}")


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """One that listens on a loopback port until the end."""
    with WandbServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
