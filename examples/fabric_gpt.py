"""Lightning Fabric: a byte-level GPT on the standard library's help topics.

    python examples/fabric_gpt.py [FOLDER]

The summary is printed, and written beside the loss to TensorBoard's files in FOLDER (default: fabric_output).
"""

from __future__ import annotations

import sys

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from models import TopicsGPT, topics
from torch.nn import functional as F

from summarycb_fabric import ModelSummaryCallback


def main(folder: str) -> None:
    summary = ModelSummaryCallback(depth=2)
    logger = TensorBoardLogger(folder, name="", version="gpt")
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[summary], loggers=logger)
    fabric.seed_everything(0)
    model = TopicsGPT()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=3e-4))
    for step, tokens in zip(range(10), fabric.setup_dataloaders(topics()), strict=False):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        fabric.log("loss", loss, step=step)
    summary.flush()
    print(f"now: tensorboard --logdir {folder}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "fabric_output")
