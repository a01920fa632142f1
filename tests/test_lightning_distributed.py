"""ModelSummaryCallback on two processes of Lightning: DDP, fully_shard and tensor parallelism, over gloo.

The processes are those of ``tests/lightning_ranks.py``, started once: each trains every set-up without and with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from summarycb.tree import ModelSummary

pytestmark = pytest.mark.slow

WORLD = 2
TIMEOUT = 240
ROOT = Path(__file__).parent.parent
FLOAT = 4
FIRST, SECOND = 8 * 16 + 16, 16 * 6 + 6
WEIGHTS = FIRST + SECOND
# five rows through both layers; of each weight a gradient, and of the second layer's input
FORWARD = 5 * (8 * 16 + 16 * 6)
BACKWARD = 5 * (8 * 16 + 2 * 16 * 6)
LOSS = 3 * FLOAT
"""The loss, what Lightning divides it to for accumulation, and its copy of it."""

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What each process has found, by set-up."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    try:
        for rank in range(WORLD):
            environment = {
                **os.environ,
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            }
            command = [sys.executable, "-m", "tests.lightning_ranks", str(folder / f"{rank}.json")]
            with (folder / f"{rank}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder))
        with contextlib.suppress(subprocess.TimeoutExpired):  # then it is killed, and the logs are shown
            for process in processes:
                process.wait(TIMEOUT)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = "\n".join((folder / f"{rank}.log").read_text(errors="replace") for rank in range(WORLD))
    assert [process.returncode for process in processes] == [0] * WORLD, logs
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(WORLD)]


SETUPS = ["ddp", "ddp, parts", "fully_shard", "tensor parallel"]


@pytest.mark.parametrize("setup", SETUPS)
def test_nothing_changes(ranks: Ranks, setup: str) -> None:
    """On either rank: losses, weights, gradients, optimizer and random state, each bit of them; and nothing is left.

    Of sharded tensors the rank's parts are compared; hooks that a strategy puts on modules are there as without.
    """
    for found in (rank[setup] for rank in ranks):
        assert found["equal"] == {"all": True, "left": True}
        batches = 6 if setup == "tensor parallel" else 3  # there both ranks see all batches
        assert found["watched"] == [True] + [False] * (batches - 1)


@pytest.mark.parametrize("setup", SETUPS)
def test_no_collective_is_called_on_one_rank_only(ranks: Ranks, setup: str) -> None:
    assert ranks[0][setup]["collectives"] == ranks[1][setup]["collectives"]


@pytest.mark.parametrize("setup", SETUPS)
def test_it_is_printed_and_written_once(ranks: Ranks, setup: str) -> None:
    """By rank zero."""
    zero, one = (rank[setup] for rank in ranks)
    assert zero["printed"] == f"{ModelSummary.from_json(zero['summary']).to_text()}\n"
    assert one["printed"] == ""
    assert (zero["steps"], one["steps"]) == ([0], [])


@pytest.mark.parametrize("setup", SETUPS)
def test_figures_of_each_rank(ranks: Ranks, setup: str) -> None:
    """Global sizes in the totals, and what the rank holds beside them; the step is the rank's own."""
    # half of the first layer's outputs, half of the second's inputs and its whole bias
    parallel = FIRST // 2 + 16 * 6 // 2 + 6
    local = {"fully_shard": WEIGHTS // 2, "tensor parallel": parallel}.get(setup, WEIGHTS)
    # the ReLU's result, in parallel half of it, and the second layer's output
    saved = 5 * 16 // (2 if setup == "tensor parallel" else 1) + 5 * 6
    strategy = "DDPStrategy" if setup.startswith("ddp") else "ModelParallelStrategy"
    for summary in (ModelSummary.from_json(rank[setup]["summary"]) for rank in ranks):
        assert summary.incomplete == ()
        environment = summary.environment
        assert (environment.framework, environment.strategy, environment.world_size) == ("lightning", strategy, WORLD)
        # DDP runs training_step as the module's forward, and that is no call of it
        root = {"ddp": "Plain", "ddp, parts": "Parts", "fully_shard": "Sharded", "tensor parallel": "Parallel"}[setup]
        assert [(path, m.type_name, m.calls) for path, m in summary.modules.items()] == [
            ("", root, 0 if setup == "ddp, parts" else 1),
            ("net", "Sequential", 1), ("net.0", "Linear", 1), ("net.1", "ReLU", 1), ("net.2", "Linear", 1),
        ]  # fmt: skip
        assert (summary.total_params, summary.local_params) == (WEIGHTS, local)
        memory = summary.memory
        assert (memory.parameters, memory.gradients, memory.optimizer_state) == (local * FLOAT,) * 3
        assert (memory.batch, memory.saved_activations) == (5 * 8 * FLOAT, saved * FLOAT + LOSS)
        assert (summary.forward_macs, summary.backward_macs) == (FORWARD, BACKWARD)
        assert summary.outside.saved_activations == LOSS
        assert [note.kind for note in summary.notes] == (["global"] if setup == "tensor parallel" else [])


@pytest.mark.parametrize("setup", [*SETUPS, "ddp, late"])
def test_rank_zero_has_what_both_saw(ranks: Ranks, setup: str) -> None:
    """Also where rank 1 begins only after rank zero has run its batch, whose gradients nobody waits for."""
    zero, one = (ModelSummary.from_json(rank[setup]["summary"]) for rank in ranks)
    assert [(r.rank, r.memory.peak_at, r.incomplete) for r in zero.ranks] == [
        (0, zero.memory.peak_at, ()),
        (1, one.memory.peak_at, ()),
    ]
    assert one.ranks == ()
    together = None if setup == "tensor parallel" else WORLD * 2 * (FORWARD + BACKWARD)
    assert zero.all_ranks_flops == together


@pytest.mark.parametrize("setup", SETUPS)
def test_what_a_throughput_monitor_is_told(ranks: Ranks, setup: str) -> None:
    """One device's FLOPs, which it multiplies by the world size: unknown where products are shared among devices."""
    expected = [None] * 6 if setup == "tensor parallel" else [2 * (FORWARD + BACKWARD)] * 3
    assert [rank[setup]["said"] for rank in ranks] == [expected] * WORLD
