"""The examples for frameworks, each as a process of its own in an empty folder."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import summarycb
from summarycb import load
from summarycb.references import expand

ROOT = Path(__file__).parent.parent

# 4 blocks of q, k, v and output, both products of attention, and the MLP, at 16 texts of 64 bytes; the tied head
GPT = 16 * 64 * (4 * (64 * 192 + 64 * 64 + 2 * 64 * 256 + 2 * 64 * 64) + 64 * 256)
# 2 layers of q, k, v and output, attention, and three products of the MLP, at twice 8 texts of 64 bytes; the head
LLAMA = 2 * 8 * 64 * (2 * (4 * 64 * 64 + 2 * 64 * 64 + 3 * 64 * 128) + 64 * 256)
# 3x3 convolutions on 8x8 and 4x4, and a linear layer on 32 maps of 4x4, for twice 64 images
DIGITS = 2 * 64 * (64 * 9 * 16 + 16 * 9 * 16 * 32 + 32 * 16 * 10)

SWEPT = [(2, 32), (2, 64), (4, 32), (4, 64), (6, 48)]  # layers and width, the newest first

EXAMPLES = {
    "fabric_gpt": ("gpt", GPT, "cpu · float32 · AdamW · fabric · SingleDeviceStrategy"),
    "transformers_trainer": ("runs/*", LLAMA, "cpu · float32 · AdamW · transformers · DistributedType.NO"),
    "accelerate_loop": ("digits", DIGITS, "cpu · bfloat16 autocast · AdamW · accelerate · DistributedType.NO"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own, of its query
def test_the_sweep_compares_five_runs_from_each_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one reference each, with equal summaries in the same order, and the same table but for what the runs are
    called; each run's parameters are worked out by hand."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "sweep.py"), "out"],
        env=os.environ | {"COLUMNS": "100"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    references = ["mlflow:experiments/gpt-sweep", "tensorboard:out/tensorboard", "wandb:out/wandb"]
    said, *tables = re.split("\n━━ summarycb compare (?:.*) ━━\n", done.stdout)
    assert re.findall(r"(\S+): loss \d", said) == [f"{n}x{w}" for n, w in reversed(SWEPT)]
    assert re.findall("━━ summarycb compare (.*) ━━", done.stdout) == references
    # token and position embeddings and the last norm; a block's two norms, and its layers of 12 w x w and 9 w
    params = [(256 + 64 + 2) * w + n * (12 * w * w + 13 * w) for n, w in SWEPT]
    monkeypatch.chdir(tmp_path)
    mlflow: Any = importlib.import_module("mlflow")
    mlflow.set_tracking_uri("sqlite:///out/mlflow.db")  # what another test has set would count for more than a variable
    try:
        compared = [summarycb.compare(*expand(reference)) for reference in references]
    finally:
        mlflow.set_tracking_uri(None)
    for reference, comparison, table in zip(references, compared, tables, strict=True):
        assert comparison.summaries == compared[0].summaries
        assert [run.total_params for run in comparison.summaries] == params
        assert table.strip() == str(comparison).strip()
        assert all(name.startswith(reference.partition(":")[0]) for name in comparison.names)
    bodies = {table[table.index("\nmodule") :].rstrip() for table in tables}
    assert len(bodies) == 1


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
