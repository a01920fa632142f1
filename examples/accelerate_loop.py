"""A loop with Hugging Face accelerate: a CNN on scikit-learn's scanned digits, in bfloat16, two batches a step.

    python examples/accelerate_loop.py [FOLDER]

The summary is printed, and written beside the loss to TensorBoard's files in FOLDER (default: accelerate_output).
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from models import DigitsCNN, digits
from torch.nn import functional as F

import summarycb_accelerate


def main(folder: str) -> None:
    set_seed(0)
    accelerator = Accelerator(
        cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2, log_with="tensorboard", project_dir=folder
    )
    accelerator.init_trackers("digits")
    model = DigitsCNN(16)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3), digits())
    hook = summarycb_accelerate.watch(accelerator, model)
    for step, (images, labels) in zip(range(20), loader, strict=False):
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.log({"loss": loss.item()}, step=step)
    hook.flush()
    accelerator.end_training()
    print(f"now: tensorboard --logdir {folder}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "accelerate_output")
