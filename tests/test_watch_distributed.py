"""watch() under torchrun: each way to spread a model over two processes trains bitwise as without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from summarycb import ModelSummary

ROOT = Path(__file__).parent.parent
WORLD = 2
FIRST, SECOND = 8 * 16 + 16, 16 * 6 + 6
# what a process holds: all of it; half of it; half of it, FSDP1's flat parameter; half of the first layer, half of the
# second's weight and its whole bias
LOCAL = {
    "replicated wrapper": FIRST + SECOND,
    "replicated inner": FIRST + SECOND,
    "flattened wrapper": (FIRST + SECOND) // 2,
    "flattened inner": (FIRST + SECOND) // 2,
    "sharded wrapper": (FIRST + SECOND) // 2,
    "tensor_parallel wrapper": FIRST // 2 + 16 * 6 // 2 + 6,
}


@pytest.mark.slow
def test_every_way_to_spread_a_model(tmp_path: Path) -> None:
    """An evaluation, then the step, which is observed; only the first process prints."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(WORLD)]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    torchrun += ["-m", "tests.torchrun_loops", str(tmp_path)]
    done = subprocess.run(torchrun, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    printed = ""
    for rank in range(WORLD):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert list(found) == list(LOCAL)
        for name, result in found.items():
            assert result["differs"] == [], name
            summary = ModelSummary.from_json(result["summary"])
            assert (summary.observed, summary.incomplete) == ("step", ()), name
            assert [(path, module.type_name, module.calls) for path, module in summary.modules.items()] == [
                ("", "Sequential", 1),
                ("0", "Linear", 1),
                ("1", "ReLU", 1),
                ("2", "Linear", 1),
            ], name
            # 5 rows through both layers; of each weight a gradient, and of the second layer's input
            assert summary.forward_macs == 5 * (8 * 16 + 16 * 6), name
            assert summary.backward_macs == 5 * (8 * 16 + 2 * 16 * 6), name
            memory = summary.memory
            held = [memory.parameters, memory.gradients, memory.optimizer_state]
            assert held == [4 * LOCAL[name]] * 3, name
            if rank == 0:
                printed += summary.to_text(columns=["params"]) + "\n"
    assert done.stdout == printed
