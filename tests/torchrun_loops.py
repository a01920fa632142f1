"""Run by torchrun: a plain loop on each way to spread a model over processes, with and without ``watch``.

Each rank writes to the folder it is given what differs, which is to be nothing, and the summaries.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import summarycb
from tests.trainings import NOTHING, bits, hooks_of, leave_group, left_behind


def replicated(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def flattened(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in (model[0], model[2]):  # type: ignore[index]
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def local(value: Any) -> Any:
    """This process's part of it, as bits."""
    if isinstance(value, dict):
        return {key: local(item) for key, item in value.items()}
    return bits(value.to_local() if isinstance(value, DTensor) else value)


def train(wrap: Callable[[nn.Module], nn.Module], watched: str) -> tuple[dict[str, Any], Any]:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6))
    model = wrap(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    hook = summarycb.watch(model if watched == "wrapper" else inner, columns=["params"]) if watched else None
    same = wrap is tensor_parallel  # each rank of a tensor-parallel group is given the same batch
    generator = torch.Generator().manual_seed(0 if same else distributed.get_rank())
    with torch.no_grad():
        losses = [model(torch.rand(3, 8, generator=generator)).square().mean()]
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(torch.rand(5, 8, generator=generator)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert {**left_behind(), "hooks": []} == NOTHING
    left = {
        "losses": [local(loss) for loss in losses],
        "parameters": {name: local(p) for name, p in model.named_parameters()},
        "gradients": {name: local(p.grad) for name, p in model.named_parameters()},
        "optimizer": {name: local(optimizer.state[p]) for name, p in model.named_parameters()},
        "hooks": {kind: len(found) for kind, found in hooks_of(model).items()},  # FSDP's own
        "random state": bits(torch.get_rng_state()),
    }
    return left, hook


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    found = {}
    for wrap in (replicated, flattened, sharded, tensor_parallel):
        plain, _ = train(wrap, "")
        for watched in ("wrapper", "inner") if wrap in (replicated, flattened) else ("wrapper",):
            observed, hook = train(wrap, watched)
            found[f"{wrap.__name__} {watched}"] = {
                "differs": [key for key in plain if plain[key] != observed[key]],
                "summary": hook.summary.to_json(),
            }
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    leave_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
