"""The examples for frameworks, each as a process of its own in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from summarycb import load

ROOT = Path(__file__).parent.parent

# 4 blocks of q, k, v and output, both products of attention, and the MLP, at 16 texts of 64 bytes; the tied head
GPT = 16 * 64 * (4 * (64 * 192 + 64 * 64 + 2 * 64 * 256 + 2 * 64 * 64) + 64 * 256)
# 2 layers of q, k, v and output, attention, and three products of the MLP, at twice 8 texts of 64 bytes; the head
LLAMA = 2 * 8 * 64 * (2 * (4 * 64 * 64 + 2 * 64 * 64 + 3 * 64 * 128) + 64 * 256)
# 3x3 convolutions on 8x8 and 4x4, and a linear layer on 32 maps of 4x4, for twice 64 images
DIGITS = 2 * 64 * (64 * 9 * 16 + 16 * 9 * 16 * 32 + 32 * 16 * 10)

EXAMPLES = {
    "fabric_gpt": ("gpt", GPT, "cpu · float32 · AdamW · fabric · SingleDeviceStrategy"),
    "transformers_trainer": ("runs/*", LLAMA, "cpu · float32 · AdamW · transformers · DistributedType.NO"),
    "accelerate_loop": ("digits", DIGITS, "cpu · bfloat16 autocast · AdamW · accelerate · DistributedType.NO"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_prints_its_summary_and_writes_it_beside_the_loss(name: str, tmp_path: Path) -> None:
    run, forward_macs, where = EXAMPLES[name]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), "out"],
        env=os.environ | {"COLUMNS": "100"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").glob(run)
    summary = load(f"tensorboard:{folder}")
    assert (summary.forward_macs, summary.incomplete) == (forward_macs, ())
    assert f"step    training · {where}" in done.stdout
    assert "\n(outside)" in done.stdout
    assert done.stdout.splitlines()[-1] == "now: tensorboard --logdir out"
