"""MLflow's own server on a loopback port, which takes seconds to start."""

from __future__ import annotations

import errno
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

from mlflow import MlflowClient

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
