"""A sweep over the depth and width of a byte-level GPT: five runs in three trackers, compared from each of them.

    python examples/sweep.py [FOLDER]

Trains on the standard library's help topics, for seconds. Needs no network and no account; everything it writes is in
FOLDER (default: sweep_output).
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import torch
import wandb
from models import TopicsGPT, topics
from torch.nn import functional as F

import summarycb
from summarycb.references import expand

RUNS = [(6, 48), (4, 64), (4, 32), (2, 64), (2, 32)]
"""Layers and width. The newest run is what the others are compared with, so the smallest comes last."""


def main(folder: Path) -> None:
    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("gpt-sweep", artifact_location=(folder / "artifacts").resolve().as_uri())
    mlflow.set_experiment("gpt-sweep")
    torch.set_num_threads(1)  # the models are tiny: several threads would wait for each other

    for layers, width in RUNS:
        train(layers, width, folder)
    for runs in ("mlflow:experiments/gpt-sweep", f"tensorboard:{folder}/tensorboard", f"wandb:{folder}/wandb"):
        print(f"\n━━ summarycb compare {runs} ━━\n")
        print(summarycb.compare(*expand(runs)))


def train(layers: int, width: int, folder: Path) -> None:
    """A few steps, logged to each tracker."""
    name = f"{layers}x{width}"
    torch.manual_seed(0)
    model = TopicsGPT(layers, width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with mlflow.start_run(run_name=name) as flow, wandb.init(project="gpt-sweep", name=name, dir=folder) as run:
        trackers = [flow, run, f"tensorboard:{folder}/tensorboard/{name}"]
        with summarycb.watch(model, optimizer, trackers=trackers, verbose=False, timeout=60):
            for step, tokens in zip(range(5), topics(batch_size=4), strict=False):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
                loss.backward()
                optimizer.step()
                mlflow.log_metric("loss", loss.item(), step)
                run.log({"loss": loss.item()})
    print(f"{name}: loss {loss.item():.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "sweep_output"))
