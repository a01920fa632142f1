"""Run by torchrun: trainings that a gate stops, or does not, on each of the processes.

Each rank writes to the folder it is given how many steps were made, and what was raised.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

import summarycb
from summarycb_lightning import ModelSummaryCallback
from tests.trainings import leave_group


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 6))


def loop(width: int, rows: int, **settings: Any) -> dict[str, Any]:
    model = nn.parallel.DistributedDataParallel(network(width))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    summarycb.watch(model, verbose=False, **settings)
    steps = 0

    def train() -> None:
        nonlocal steps
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.rand(rows, 8)).square().mean().backward()
            steps += 1
            optimizer.step()

    return {"raised": raised(train), "steps": steps}


def raised(train: Callable[[], None]) -> str | None:
    try:
        train()
    except summarycb.SummaryError as error:
        return f"{type(error).__name__}: {error}"
    return None


def one_that_raises(rank: int, **settings: Any) -> dict[str, Any]:
    """Rank one, in its first step, by itself: the models are no DDP's, so that rank zero's step is made."""
    model = network(32)
    try:
        with summarycb.watch(model, verbose=False, timeout=60, **settings):
            loss = model(torch.rand(5, 8)).square().mean()
            if rank == 1:
                raise KeyError("the user's own")
            loss.backward()
    except (KeyError, summarycb.GateError) as error:
        return {"raised": type(error).__name__, "rank": rank}
    return {}


def lightning(folder: Path, **settings: Any) -> dict[str, Any]:
    import lightning.pytorch as L
    from lightning.pytorch.strategies import DDPStrategy

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.steps = network(32), 0

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            self.steps += 1
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model, data = Module(), torch.utils.data.DataLoader(torch.rand(30, 8), batch_size=5)  # type: ignore[arg-type]
    runner = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=folder,
        callbacks=[ModelSummaryCallback(verbose=False, **settings)],
    )  # fmt: skip
    return {"raised": raised(lambda: runner.fit(model, data)), "steps": model.steps}


def main(folder: Path) -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = distributed.get_rank()
    base, params, macs = folder / "base.json", ["params>+50%"], ["forward_macs>+50%"]
    found = {
        "narrow": loop(16, 5, baseline=base, fail_on=params),
        "wide": loop(32, 5, baseline=base, fail_on=params),
        # twice as many rows on one rank alone; the gate is told that this does not make the figures incomparable
        "the batch of rank zero": loop(16, 10 if rank == 0 else 5, baseline=base, fail_on=macs),
        "the batch of rank one": loop(16, 10 if rank == 1 else 5, baseline=base, fail_on=macs),
    }
    nowhere = folder / "none.json"
    # by the one that compares, and by the other, which has no use for it
    found["unreadable"] = loop(16, 5, baseline=nowhere if rank == 0 else base, fail_on=params)
    found["unreadable elsewhere"] = loop(16, 5, baseline=nowhere if rank == 1 else base, fail_on=params)
    found["a rank that raises"] = one_that_raises(rank, baseline=base, fail_on=params)
    found["lightning"] = lightning(folder, baseline=base, fail_on=params)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    leave_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
