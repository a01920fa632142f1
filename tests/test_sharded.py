"""Parameters in parts, on two processes: global sizes in the totals, local ones beside them."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import summarycb
from summarycb.tree import ModelSummary
from tests.trainings import leave_group

FLOAT = 4
WORLD = 2
FIRST, SECOND = 8 * 16 + 16, 16 * 6 + 6
WEIGHTS = FIRST + SECOND


def sharded(model: nn.Module, keep: bool = False) -> nn.Module:
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in (model[0], model[2]):  # type: ignore[index]
        fully_shard(layer, mesh=mesh, reshard_after_forward=not keep)
    return fully_shard(model, mesh=mesh)


def kept(model: nn.Module) -> nn.Module:
    return sharded(model, keep=True)


def tensor_parallel(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (WORLD,))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def replicated(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def step(rank: int, port: int, folder: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with summarycb.observe(model) as observation:
        loss = model(torch.rand(5, 8)).square().mean()
        gc.collect()  # FSDP may leave what it gathered in a cycle, which is alive until then
        loss.backward()
        optimizer.step()
    assert observation.summary is not None
    observation.summary.save(folder / f"{rank}.json")
    leave_group()


@pytest.fixture
def run_any(tmp_path: Path) -> Callable[[Callable[[nn.Module], nn.Module]], list[ModelSummary]]:
    def run(wrap: Callable[[nn.Module], nn.Module]) -> list[ModelSummary]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        multiprocessing.spawn(step, args=(port, tmp_path, wrap), nprocs=WORLD)  # type: ignore[no-untyped-call]
        return [summarycb.load(tmp_path / f"{rank}.json") for rank in range(WORLD)]

    return run


@pytest.fixture
def run(run_any: Callable[..., list[ModelSummary]]) -> Callable[[Callable[[nn.Module], nn.Module]], list[ModelSummary]]:
    def run(wrap: Callable[[nn.Module], nn.Module]) -> list[ModelSummary]:
        summaries = run_any(wrap)
        for summary in summaries:
            assert summary.incomplete == ()
            assert (summary.total_params, summary.trainable_params) == (WEIGHTS, WEIGHTS)
            assert summary.root.total.parameter_bytes == WEIGHTS * FLOAT
            # 5 rows through both layers; of each weight a gradient, and of the second layer's input
            assert summary.forward_macs == 5 * (8 * 16 + 16 * 6)
            assert summary.backward_macs == 5 * (8 * 16 + 2 * 16 * 6)
            assert [summary[path].type_name for path in ("", "0", "1", "2")] == [
                "Sequential",
                "Linear",
                "ReLU",
                "Linear",
            ]
        return summaries

    return run


def local_figures(summary: ModelSummary) -> dict[str, int | None]:
    memory, total = summary.memory, summary.root.total
    last = memory.timeline[-1]
    # rows sum to what the process holds, and the timeline ends with it
    assert total.local_parameter_bytes == memory.parameters == last.parameters
    assert total.gradients == memory.gradients == last.gradients
    assert total.optimizer_state == memory.optimizer_state == last.optimizer_state
    return {
        "params": summary.local_params,
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "state": memory.optimizer_state,
        "saved": memory.saved_activations,
        "copies": memory.weight_copies,
    }


# the ReLU's result, the second layer's output, and the loss
SAVED = (5 * 16 + 5 * 6 + 1) * FLOAT


@pytest.mark.slow
def test_fully_sharded(run: Callable[..., list[ModelSummary]]) -> None:
    half = WEIGHTS // 2
    for summary in run(sharded):
        assert summary.environment.strategy == "FSDPModule"
        assert local_figures(summary) == {
            "params": half,
            "parameters": half * FLOAT,
            "gradients": half * FLOAT,
            "state": half * FLOAT,
            "saved": SAVED,
            "copies": 0,  # let go as each layer's forward ends
        }
        assert summary["0"].parameters[0].shape == (16, 8)
        assert summary["0"].parameters[0].local_shape == (8, 8)
        assert summary["0"].parameters[0].gradient == 8 * 8 * FLOAT
        assert summary["0"].total.local_params == FIRST // 2
        assert summary.notes == ()


@pytest.mark.slow
def test_fully_sharded_and_gathered_until_backward(run: Callable[..., list[ModelSummary]]) -> None:
    for summary in run(kept):
        figures = local_figures(summary)
        assert figures["saved"] == SAVED
        assert figures["copies"] == WEIGHTS * FLOAT  # whole weights, which the layers made in their forward
        assert summary["2"].own.weight_copies == SECOND * FLOAT


@pytest.mark.slow
def test_tensor_parallel(run: Callable[..., list[ModelSummary]]) -> None:
    # half of the first layer's outputs, half of the second's inputs and its whole bias
    local = FIRST // 2 + 16 * 6 // 2 + 6
    for summary in run(tensor_parallel):
        figures = local_figures(summary)
        assert (figures["params"], figures["parameters"]) == (local, local * FLOAT)
        assert (figures["gradients"], figures["state"]) == (local * FLOAT, local * FLOAT)
        assert [note.text for note in summary.notes] == [
            "products of DTensors count at their global size; this rank ran a part of them"
        ]
        assert f"{WEIGHTS} (100.0 % trainable) · {local} on this rank" in summary.to_text()


@pytest.mark.slow
def test_replicated(run: Callable[..., list[ModelSummary]]) -> None:
    for summary in run(replicated):
        assert summary.environment.strategy == "DistributedDataParallel"
        assert local_figures(summary) == {
            "params": WEIGHTS,
            "parameters": WEIGHTS * FLOAT,
            "gradients": WEIGHTS * FLOAT,
            "state": WEIGHTS * FLOAT,
            "saved": SAVED,
            "copies": 0,
        }
        assert "on this rank" not in summary.to_text()


def flattened(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


@pytest.mark.slow
def test_flattened_parameters_are_unknown_and_not_a_part(run_any: Callable[..., list[ModelSummary]]) -> None:
    """FSDP1 keeps one flat parameter, in parts: what each layer has of it is not told."""
    for summary in run_any(flattened):
        assert summary.incomplete == ()
        assert (summary.total_params, summary.root.total.parameter_bytes) == (None, None)
        assert summary.local_params == WEIGHTS // 2
        assert summary.memory.parameters == WEIGHTS // 2 * FLOAT
        assert (summary.memory.saved_activations, summary.memory.weight_copies) == (SAVED, WEIGHTS * FLOAT)
        assert summary.forward_macs == 5 * (8 * 16 + 16 * 6)
        assert [note.kind for note in summary.notes if note.kind != "never called"] == ["flattened"]
