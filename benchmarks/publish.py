"""What writing to trackers costs the training, that of trackers which fail too, as ratios within one interleaved run.

    python benchmarks/publish.py [RUNS]

The same small GPT-2 trains 60 steps each way, the first of them observed. Each repetition runs every way once, in an
order that rotates; the ratio to training that is observed and written nowhere is taken within the repetition. "publish"
is what the training thread itself pays, and "flush" how long the end of training waits, of at most 5 s.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}

import mlflow
import torch
import wandb
from torch.utils.tensorboard import SummaryWriter
from transformers import GPT2Config, GPT2LMHeadModel

import summarycb
from summarycb.publish import FOLDER, Publisher

STEPS, TIMEOUT = 60, 5.0
torch.set_num_threads(1)  # more would wait for each other, most of all beside the threads that write


@contextmanager
def nowhere(folder: Path) -> Iterator[list[Any]]:
    yield []


@contextmanager
def tensorboard(folder: Path) -> Iterator[list[Any]]:
    with SummaryWriter(str(folder / "tb")) as writer:
        yield [writer]


@contextmanager
def removed(folder: Path) -> Iterator[list[Any]]:
    writer = SummaryWriter(str(folder / "gone"))
    shutil.rmtree(folder / "gone")
    yield [writer]
    with suppress(OSError):
        writer.close()


@contextmanager
def disk_full(folder: Path) -> Iterator[list[Any]]:
    """No file may grow beyond 100,000 bytes: the copy has 76,000, the event file would have 350,000."""
    with SummaryWriter(str(folder / "full")) as writer:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            yield [writer]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def offline(folder: Path) -> Iterator[list[Any]]:
    with wandb.init(project="bench", dir=folder) as run:
        yield [run]


@contextmanager
def finished(folder: Path) -> Iterator[list[Any]]:
    run = wandb.init(project="bench", dir=folder)
    run.finish()
    yield [run]


@contextmanager
def sqlite(folder: Path) -> Iterator[list[Any]]:
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    experiment = mlflow.create_experiment("bench", (folder / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment) as run:
        yield [run]


@contextmanager
def no_server(folder: Path) -> Iterator[list[Any]]:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        mlflow.set_tracking_uri(f"http://127.0.0.1:{nobody.getsockname()[1]}")
    yield ["mlflow:" + "0" * 32]


@contextmanager
def breaking_server(folder: Path) -> Iterator[list[Any]]:
    """Takes each connection and ends it, as a server does that is killed meanwhile."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)

        def end_each() -> None:
            with suppress(OSError):
                while True:
                    server.accept()[0].close()

        threading.Thread(target=end_each, daemon=True).start()
        mlflow.set_tracking_uri(f"http://127.0.0.1:{server.getsockname()[1]}")
        yield ["mlflow:" + "0" * 32]
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def silent_server(folder: Path) -> Iterator[list[Any]]:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        mlflow.set_tracking_uri(f"http://127.0.0.1:{silent.getsockname()[1]}")
        yield ["mlflow:" + "0" * 32]


WAYS: dict[str, Callable[[Path], Any]] = {
    "nowhere": nowhere,
    "TensorBoard": tensorboard,
    "TensorBoard, folder removed": removed,
    "TensorBoard, disk full": disk_full,
    "W&B, offline": offline,
    "W&B, run finished early": finished,
    "MLflow, sqlite": sqlite,
    "MLflow, no server": no_server,
    "MLflow, a server that breaks off": breaking_server,
    "MLflow, a server that never answers": silent_server,
}


def train(trackers: list[Any]) -> tuple[float, float, float, int]:
    """Seconds of the steps, of ``publish`` and of ``flush``, and the number of warnings."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=1_000, n_embd=128, n_layer=4, n_head=4))
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(1_000, (2, 64))
    paid: list[float] = []
    publish = Publisher.publish

    def timed(self: Publisher, *args: Any, **kwargs: Any) -> None:
        began = time.perf_counter()
        publish(self, *args, **kwargs)
        paid.append(time.perf_counter() - began)

    Publisher.publish = timed  # type: ignore[method-assign]
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", summarycb.SummaryWarning)
            hook = summarycb.watch(model, trackers=trackers, timeout=TIMEOUT, verbose=False)
            began = time.perf_counter()
            for _ in range(STEPS):
                optimizer.zero_grad()
                model(input_ids=ids, labels=ids)["loss"].backward()
                optimizer.step()
            steps = time.perf_counter() - began
            began = time.perf_counter()
            hook.flush()
            return steps, sum(paid), time.perf_counter() - began, len(warned)
    finally:
        Publisher.publish = publish  # type: ignore[method-assign]


def main(runs: int) -> None:
    found: dict[str, list[tuple[float, float, float, int]]] = {way: [] for way in WAYS}
    order = list(WAYS)
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        os.environ[FOLDER] = str(Path(name, "copies"))
        for number in range(runs + 1):  # the first warms up
            for way in order:
                folder = Path(name, f"{number}-{order.index(way)}")
                folder.mkdir()
                with ExitStack() as stack:
                    result = train(stack.enter_context(WAYS[way](folder)))
                if number:
                    found[way].append(result)
            order = [*order[1:], order[0]]
    print(f"{STEPS} steps, medians of {runs} interleaved repetitions; load of the machine {os.getloadavg()[0]:.1f}\n")
    print("| written to | training, to nowhere's | publish, ms, at most | flush, s | warnings |\n|---|--:|--:|--:|--:|")
    for way, results in found.items():
        ratios = [result[0] / plain[0] for result, plain in zip(results, found["nowhere"], strict=True)]
        paid, waited = max(result[1] for result in results), statistics.median(result[2] for result in results)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        counts = "/".join(sorted({str(result[3]) for result in results}))
        print(f"| {way} | {spread} | {1000 * paid:.1f} | {waited:.2f} | {counts} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
