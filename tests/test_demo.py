"""``make demo``, as a process of its own in an empty folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from summarycb import load

ROOT = Path(__file__).parent.parent
DEMO, README = ROOT / "examples" / "demo.py", ROOT / "README.md"
RUNS = ("cnn-width-16", "cnn-width-32", "gpt")


@pytest.mark.slow
def test_the_demo_ends_with_every_summary_read_back_and_says_what_to_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO), "out"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for name in RUNS:
        assert f"━━ {name} ━━" in done.stdout
        assert (tmp_path / "out" / f"{name}.json").is_file()
    references = re.findall(r"read back from (\S+): equal", done.stdout)
    assert [reference.partition(":")[0] for reference in references] == ["tensorboard", "mlflow", "wandb"] * 3
    monkeypatch.chdir(tmp_path)
    for name, reference in zip(RUNS, references[::3], strict=True):
        assert load(reference) == load(f"out/{name}.json")

    cnn, gpt = load("out/cnn-width-16.json"), load("out/gpt.json")
    # 3x3 convolutions on 8x8 and 4x4, two affine batch norms, a linear layer on 32 maps of 4x4
    assert cnn.total_params == 9 * 16 + 9 * 16 * 32 + 2 * 16 + 2 * 32 + (32 * 16 * 10 + 10)
    assert cnn.forward_macs == 64 * (64 * 9 * 16 + 16 * 9 * 16 * 32 + 32 * 16 * 10)
    # the head is the embedding; per block q, k, v and output projections, the MLP, and two layer norms
    block = (64 * 192 + 192) + (64 * 64 + 64) + (64 * 256 + 256) + (256 * 64 + 64) + 2 * 128
    assert gpt.total_params == 256 * 64 + 64 * 64 + 4 * block + 128
    # linear layers and both products of attention over 16 texts of 64 bytes, and the head
    assert gpt.forward_macs == 16 * 64 * (4 * (64 * 192 + 64 * 64 + 2 * 64 * 256 + 2 * 64 * 64) + 64 * 256)
    for summary in (cnn, gpt):
        assert summary.incomplete == ()
        assert summary.hardware_flops is not None

    # what the README shows is what the demo makes
    shown, *_ = re.findall(r"```text\n(.*?)\n```", README.read_text(), re.DOTALL)
    assert gpt.to_text().startswith(shown + "\n")

    assert "params            9,978 → 29,162 (+19,184, +192.3 %)" in done.stdout
    for command in ("tensorboard --logdir out/tensorboard", "mlflow ui --backend-store-uri sqlite:///out/mlflow.db"):
        assert command in done.stdout
    assert re.search(r"summarycb show wandb:out/wandb/offline-run-\S+", done.stdout)
