"""The main job, end to end: three real trainings, summarized, logged to three trackers, read back, and compared.

    python examples/demo.py FOLDER

Needs no network and no account. Everything it writes is in FOLDER.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from pathlib import Path

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import lightning.pytorch as L
import mlflow
import torch
import wandb
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from models import DigitsCNN, TopicsGPT, digits, topics
from torch.utils.data import DataLoader

import summarycb
from summarycb import ModelSummaryCallback


def main(folder: Path) -> None:
    for name in ("lightning.pytorch", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("summarycb-demo", artifact_location=(folder / "mlflow-artifacts").resolve().as_uri())

    runs = {
        "cnn-width-16": (DigitsCNN(16), digits()),
        "cnn-width-32": (DigitsCNN(32), digits()),
        "gpt": (TopicsGPT(), topics()),
    }
    opened: list[str] = []
    for name, (model, data) in runs.items():
        print(f"\n━━ {name} ━━\n")
        opened = train(name, model, data, folder)

    print("\n━━ cnn-width-16 → cnn-width-32 ━━\n")
    print(summarycb.compare(folder / "cnn-width-16.json", folder / "cnn-width-32.json"))

    bin = f"{os.path.relpath(sys.prefix)}/bin/" if sys.prefix != sys.base_prefix else ""
    print(f"""
━━ what there is now ━━

The summaries are saved in {", ".join(f"{folder}/{name}.json" for name in runs)}.
Each was read back from TensorBoard, MLflow and W&B and is equal to what was observed. Look at them with

  {bin}tensorboard --logdir {folder}/tensorboard
  {bin}mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db
  {bin}summarycb show {opened[-1]}
""")


def train(name: str, model: L.LightningModule, data: DataLoader, folder: Path) -> list[str]:
    """Train for 20 steps, then read the summary back from every tracker; returns the references."""
    torch.manual_seed(0)
    boards = TensorBoardLogger(folder, name="tensorboard", version=name)
    flow = MLFlowLogger("summarycb-demo", run_name=name, tracking_uri=f"sqlite:///{folder}/mlflow.db")
    weights = WandbLogger(name=name, project="summarycb-demo", save_dir=folder, offline=True)
    callback = ModelSummaryCallback(depth=3)

    trainer = L.Trainer(
        max_steps=20,
        log_every_n_steps=5,
        accelerator="cpu",
        callbacks=[callback],
        logger=[boards, flow, weights],
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(model, data)

    summary = callback.summary
    assert summary is not None
    summary.save(folder / f"{name}.json")
    offline_run = os.path.relpath(Path(weights.experiment.dir).parent)
    references = [f"tensorboard:{boards.log_dir}", f"mlflow:{flow.run_id}", f"wandb:{offline_run}"]
    wandb.finish()
    for reference in references:
        if summarycb.load(reference) != summary:
            raise SystemExit(f"what came back from {reference} is not what was observed")
        print(f"read back from {reference}: equal")
    return references


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output"))
