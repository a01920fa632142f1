"""The Trainer of Hugging Face transformers: a small Llama on the bytes of the standard library's help topics.

    python examples/transformers_trainer.py [FOLDER]

Two batches make one step. The summary is printed, and written beside the loss to TensorBoard's files in FOLDER
(default: transformers_output).
"""

from __future__ import annotations

import pydoc_data.topics
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from summarycb_transformers import ModelSummaryCallback


def main(folder: str) -> None:
    set_seed(0)
    text = "\n".join(pydoc_data.topics.topics.values()).encode()
    windows = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().unfold(0, 64, 64)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    args = TrainingArguments(
        folder,
        max_steps=10,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        logging_steps=5,
        report_to="tensorboard",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        LlamaForCausalLM(config),
        args,
        train_dataset=[{"input_ids": window, "labels": window} for window in windows],
        callbacks=[ModelSummaryCallback(depth=3)],
    )
    trainer.train()
    print(f"now: tensorboard --logdir {folder}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "transformers_output")
