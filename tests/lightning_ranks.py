"""One of the processes of a distributed Lightning training: each strategy without the callback, and with it.

A launcher's LOCAL_RANK, MASTER_ADDR and MASTER_PORT are given; what was found is written to the path in the argument.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader

from summarycb.collect.ranks import Ranks
from summarycb.errors import SummaryWarning
from summarycb_lightning import ModelSummaryCallback
from tests.lightning_trainings import Recording, all_of, is_watched, trainer
from tests.trainings import leave_group, left_behind

WORLD = 2


class Plain(L.LightningModule):
    """Three batches of five rows for each process that has its own; ``forward`` is what the training step calls."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6))
        self.losses: list[torch.Tensor] = []
        self.evaluated: list[Any] = []
        self.watched: list[bool] = []
        self.said: list[int | None] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.watched.append(is_watched())
        loss = self(batch).square().mean()
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train_dataloader(self) -> DataLoader[Any]:
        rows: Any = torch.rand(WORLD * 3 * 5, 8, generator=torch.Generator().manual_seed(1))
        return DataLoader(rows, batch_size=5)

    def on_train_batch_end(self, *args: Any) -> None:
        self.said.append(getattr(self, "flops_per_batch", None))


class Parts(Plain):
    """The training step calls the network, not the module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.watched.append(is_watched())
        loss = self.net(batch).square().mean()
        self.losses.append(loss.detach())
        return loss


class Late(Plain):
    """Rank 1 begins when rank zero is done with its first batch, after which no gradients are exchanged yet."""

    fits = 0

    def on_train_start(self) -> None:
        Late.fits += 1
        self.begun = f"fit {Late.fits}"

    def on_before_batch_transfer(self, batch: torch.Tensor, dataloader_idx: int) -> torch.Tensor:
        if self.global_rank == 1:
            distributed.distributed_c10d._get_default_store().wait([self.begun], timedelta(seconds=20))
        return batch

    def on_after_backward(self) -> None:
        if self.global_rank == 0 and not is_watched():
            distributed.distributed_c10d._get_default_store().set(self.begun, "")


def hear(ranks: Ranks, timeout: float) -> dict[int, str]:
    """Rank zero asks what the others saw."""
    if Late.fits:
        distributed.distributed_c10d._get_default_store().set(f"fit {Late.fits}", "")
    return hear_them(ranks, timeout)


hear_them, Ranks._hear = Ranks._hear, hear  # type: ignore[method-assign]


class Sharded(Plain):
    def on_before_backward(self, loss: torch.Tensor) -> None:
        gc.collect()  # FSDP may leave what it gathered in a cycle, which is alive until then

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for layer in (self.net[0], self.net[2], self.net):
            fully_shard(layer, mesh=mesh)


class Parallel(Plain):
    def configure_model(self) -> None:
        mesh = self.device_mesh["tensor_parallel"]  # type: ignore[index]
        parallelize_module(self.net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


SETUPS: dict[str, tuple[type[Plain], Callable[[], Any]]] = {
    "ddp": (Plain, lambda: DDPStrategy(process_group_backend="gloo")),
    "ddp, parts": (Parts, lambda: DDPStrategy(process_group_backend="gloo")),
    "ddp, late": (Late, lambda: DDPStrategy(process_group_backend="gloo")),
    "fully_shard": (Sharded, lambda: ModelParallelStrategy(data_parallel_size=WORLD, tensor_parallel_size=1)),
    "tensor parallel": (Parallel, lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=WORLD)),
}


def collectives() -> int:
    """How many this process has taken part in, in all groups."""
    return sum(group._get_sequence_number_for_group() for group in distributed.distributed_c10d._world.pg_map)


def fit(name: str, folder: Path, *callbacks: Any) -> dict[str, Any]:
    kind, strategy = SETUPS[name]
    torch.manual_seed(0)
    model = kind()
    monitor = L.callbacks.ThroughputMonitor(batch_size_fn=len)
    batches = 2 if kind is Late else 1
    arguments = {"strategy": strategy(), "devices": WORLD, "accumulate_grad_batches": batches}
    runner = trainer(L, folder, monitor, *callbacks, **arguments)
    before = collectives() if distributed.is_initialized() else 0
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runner.fit(model)
    return {
        "all": all_of(runner, model),
        "left": left_behind(model),
        "collectives": collectives() - before,
        "watched": model.watched,
        "said": model.said,
        "printed": printed.getvalue(),
    }


def main(path: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", SummaryWarning)
    found = {}
    for name in SETUPS:
        fit(name, path.parent)  # the first one makes the groups
        plain = fit(name, path.parent)
        tracker = Recording()
        callback = ModelSummaryCallback(trackers=[tracker])
        observed = fit(name, path.parent, callback)
        assert callback.summary is not None
        found[name] = {
            "equal": {key: observed.pop(key) == plain[key] for key in ("all", "left")},
            "collectives": observed.pop("collectives") - plain["collectives"],
            "summary": callback.summary.to_json(),
            "steps": [step for _, step in tracker.written],
            **observed,
        }
    path.write_text(json.dumps(found), encoding="utf-8")
    leave_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
