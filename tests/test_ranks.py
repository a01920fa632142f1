"""Several processes: each observes its own step, and rank zero's summary has what all of them saw."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import summarycb
from summarycb.report import Report
from summarycb.tree import ModelSummary
from tests.trainings import NOTHING, leave_group, left_behind

WORLD = 2
FLOAT = 4
FIRST, SECOND = 8 * 16 + 16, 16 * 6 + 6
WEIGHTS = (FIRST + SECOND) * FLOAT


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6))


def train(model: nn.Module, rows: int, width: int = 8) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.rand(rows, width)).square().mean().backward()
    optimizer.step()


def replicated(rank: int) -> ModelSummary | None:
    """Rank 1 has two rows more."""
    model = nn.parallel.DistributedDataParallel(net())
    hook = summarycb.watch(model, verbose=False)
    train(model, 5 + 2 * rank)
    assert left_behind(model) == NOTHING
    return hook.summary


def again(rank: int) -> ModelSummary | None:
    """The same model is observed once more."""
    return replicated(rank)


def sharded(rank: int) -> ModelSummary | None:
    model = net()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with summarycb.observe(model) as observation:
        train(model, 5)
    return observation.summary


def tensor_parallel(rank: int) -> ModelSummary | None:
    mesh = init_device_mesh("cpu", (WORLD,))
    model = parallelize_module(net(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    with summarycb.observe(model) as observation:
        train(model, 5)
    return observation.summary


def zero_alone(rank: int) -> ModelSummary | None:
    """``if rank == 0``: there is nobody to wait for, and it does not."""
    model = net()
    if rank != 0:
        train(model, 5)
        return None
    with summarycb.observe(model, timeout=1e6) as observation:
        train(model, 5)
    return observation.summary


def one_alone(rank: int) -> ModelSummary | None:
    """Neither does rank 1 wait for anybody."""
    model = net()
    if rank == 0:
        train(model, 5)
        return None
    with summarycb.observe(model, timeout=1e6) as observation:
        train(model, 5)
    return observation.summary


def other_models(rank: int) -> ModelSummary | None:
    """A pipeline: each rank trains a model of its own."""
    model = net() if rank == 0 else nn.Sequential(nn.Linear(8, 16))
    with summarycb.observe(model, timeout=1e6) as observation:
        train(model, 5)
    return observation.summary


def twins(rank: int) -> ModelSummary | None:
    """Modules of the same names and classes in other sizes: a generator and a critic."""
    model = net() if rank == 0 else nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 6))
    with summarycb.observe(model, timeout=1e6) as observation:
        train(model, 5)
    return observation.summary


def one_begins_anew(rank: int) -> ModelSummary | None:
    """Rank 1's first step comes to nothing while rank zero waits for it; its next one may wait for rank zero."""
    model = net()
    observation = summarycb.observe(model, timeout=1e6)
    observation.start()
    store, told = distributed.distributed_c10d._get_default_store(), observation._ranks._told  # type: ignore[union-attr]
    distributed.barrier()  # both have begun
    if rank == 1:
        store.wait(["rank zero waits"])
        observation.discard()
        observation = summarycb.observe(model)
        observation.start()
        distributed.barrier()  # rank zero is done
        observation.stop()
        return None

    def asked(rank: int) -> str:
        answer = told(rank)
        store.set("rank zero waits", "")
        return answer

    observation._ranks._told = asked  # type: ignore[union-attr,method-assign]
    train(model, 5)
    observation.stop()
    distributed.barrier()
    return observation.summary


def one_is_late(rank: int) -> ModelSummary | None:
    """Rank 1 has begun, and is not done before rank zero has given up."""
    model = net()
    observation = summarycb.observe(model, timeout=0.05)
    observation.start()
    distributed.barrier()  # both have begun
    if rank == 1:
        distributed.barrier()  # rank zero is done
    train(model, 5)
    observation.stop()
    if rank == 0:
        distributed.barrier()
    return observation.summary


def one_raises(rank: int) -> ModelSummary | None:
    model = net()
    expected = pytest.raises(RuntimeError) if rank == 1 else nullcontext()
    with expected, summarycb.observe(model, timeout=1e6) as observation:
        distributed.barrier()  # both have begun
        train(model, 5, width=8 + rank)
    return observation.summary


def an_error_waits_for_nobody_long(rank: int) -> ModelSummary | None:
    """Rank zero's step raises while rank 1's goes on: the user has the error within seconds."""
    model = net()
    observation = summarycb.observe(model, timeout=1e6)
    observation.start()
    distributed.barrier()
    if rank == 0:
        observation.stop(ValueError("the user's"))
    distributed.barrier()
    if rank == 1:
        observation.stop()
    return observation.summary


def a_store_that_fails(rank: int) -> ModelSummary | None:
    """One warning; the summary is there, and says what it lacks."""
    model = net()
    observation = summarycb.observe(model)
    observation.start()
    train(model, 5)
    observation._ranks._store = None  # type: ignore[union-attr,assignment]
    with pytest.warns(summarycb.SummaryWarning, match="what the other ranks saw could not be observed"):
        observation.stop()
    return observation.summary


SCENES = [
    replicated, again, sharded, tensor_parallel, zero_alone, one_alone, other_models, twins, one_begins_anew,
    one_is_late, one_raises, an_error_waits_for_nobody_long, a_store_that_fails,
]  # fmt: skip


def play(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    for scene in SCENES:
        summary = scene(rank)
        if summary is not None:
            summary.save(folder / f"{scene.__name__} {rank}.json")
        distributed.barrier()
    leave_group()


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(play, args=(port, folder), nprocs=WORLD)  # type: ignore[no-untyped-call]
    return folder


@pytest.fixture
def scene(played: Path) -> Callable[[Callable[[int], Any]], list[ModelSummary]]:
    def load(function: Callable[[int], Any]) -> list[ModelSummary]:
        files = [played / f"{function.__name__} {rank}.json" for rank in range(WORLD)]
        return [summarycb.load(file) for file in files if file.exists()]

    return load


Scene = Callable[[Callable[[int], Any]], list[ModelSummary]]


@pytest.mark.slow
@pytest.mark.parametrize("function", [replicated, again])
def test_each_rank_has_its_own_and_rank_zero_all(scene: Scene, function: Callable[[int], Any]) -> None:
    zero, one = scene(function)
    assert (zero.environment.rank, one.environment.rank) == (0, 1)
    assert (zero.environment.world_size, one.environment.world_size) == (2, 2)
    assert (zero.notes, zero.incomplete) == ((), ())
    assert one.ranks == ()
    macs = 8 * 16 + 16 * 6  # of one row
    backward = 8 * 16 + 2 * 16 * 6
    assert [(r.rank, r.device, r.local_params, r.forward_macs, r.backward_macs) for r in zero.ranks] == [
        (0, "cpu", FIRST + SECOND, 5 * macs, 5 * backward),
        (1, "cpu", FIRST + SECOND, 7 * macs, 7 * backward),
    ]
    for rank, summary in zip(zero.ranks, (zero, one), strict=True):
        assert rank.memory.timeline == ()
        assert (rank.memory.peak_at, rank.memory.batch) == (summary.memory.peak_at, summary.memory.batch)
        assert rank.memory.parameters == WEIGHTS
    assert zero.all_ranks_flops == 2 * (5 + 7) * (macs + backward)
    assert one.all_ranks_flops is None
    least, most = zero.over_ranks("batch")  # type: ignore[misc]
    assert [(r.rank, r.memory.batch) for r in (least, most)] == [(0, 5 * 8 * FLOAT), (1, 7 * 8 * FLOAT)]
    assert zero.over_ranks("allocator_peak") is None
    # 5 and 7 rows: the ReLU's result, the output and the loss
    saved = [(rows * (16 + 6) + 1) * FLOAT for rows in (5, 7)]
    text = " ".join(zero.to_text().split())
    assert f"ranks 2 of 2 observed · step {2 * 12 * (macs + backward) / 1000:.2f} KFLOPs on all · peak " in text
    assert f"saved activations {saved[0]} B to {saved[1]} B (rank 1) · batch 160 B to 224 B (rank 1)" in text
    assert "rank 1 of 2" in one.to_text()
    assert {name: value for name, value in Report(zero).metrics.items() if "rank" in name} == {
        "model_summary/all_ranks_flops": zero.all_ranks_flops,
        "model_summary/ranks_memory_peak_min_bytes": zero.memory.peak,
        "model_summary/ranks_memory_peak_max_bytes": one.memory.peak,
    }


@pytest.mark.slow
def test_sharded_weights(scene: Scene) -> None:
    """Global sizes once, local ones by rank; the ranks' work adds up, because each ran its own rows."""
    zero, _ = scene(sharded)
    assert zero.total_params == FIRST + SECOND
    assert [rank.local_params for rank in zero.ranks] == [(FIRST + SECOND) // 2] * 2
    assert zero.step_flops is not None
    assert zero.all_ranks_flops == 2 * zero.step_flops


@pytest.mark.slow
def test_products_in_parts_do_not_add_up(scene: Scene) -> None:
    """Each rank counts a tensor-parallel product at its global size: their sum would count it twice."""
    zero, _ = scene(tensor_parallel)
    assert len(zero.ranks) == 2
    assert zero.step_flops == 2 * 5 * (8 * 16 + 16 * 6 + 8 * 16 + 2 * 16 * 6)
    assert zero.all_ranks_flops is None


@pytest.mark.slow
@pytest.mark.parametrize("function", [zero_alone, other_models, twins, one_begins_anew])
def test_a_rank_that_does_not_observe_the_model_is_not_waited_for(scene: Scene, function: Callable[[int], Any]) -> None:
    zero = scene(function)[0]
    assert [rank.rank for rank in zero.ranks] == [0]
    assert [(note.kind, note.text) for note in zero.notes] == [("ranks", "not told what rank 1 saw")]
    assert (zero.all_ranks_flops, zero.incomplete) == (None, ())
    assert "ranks 1 of 2 observed" in " ".join(zero.to_text().split())


@pytest.mark.slow
def test_rank_one_waits_for_nobody(scene: Scene) -> None:
    [one] = scene(one_alone)
    assert (one.environment.rank, one.ranks, one.incomplete) == (1, (), ())


@pytest.mark.slow
def test_a_rank_that_is_late_is_given_up(scene: Scene) -> None:
    zero, one = scene(one_is_late)
    assert [rank.rank for rank in zero.ranks] == [0]
    assert [note.text for note in zero.notes] == ["not told what rank 1 saw"]
    assert one.observed == "step"


@pytest.mark.slow
def test_what_another_rank_raised_is_told(scene: Scene) -> None:
    zero, one = scene(one_raises)
    assert zero.failure is None
    assert one.failure is not None
    assert [rank.failure for rank in zero.ranks] == [None, one.failure]
    assert one.failure.module == "0"
    assert "rank 1: RuntimeError in 0" in " ".join(zero.to_text().split())
    assert zero.ranks[1].incomplete == ("the step raised RuntimeError in 0",)


@pytest.mark.slow
def test_an_error_is_not_held_up_by_other_ranks(scene: Scene) -> None:
    zero, _ = scene(an_error_waits_for_nobody_long)
    assert zero.failure is not None
    assert [rank.rank for rank in zero.ranks] == [0]


@pytest.mark.slow
def test_a_store_that_cannot_be_used(scene: Scene) -> None:
    for summary in scene(a_store_that_fails):
        assert summary.incomplete == ("what the other ranks saw could not be observed (AttributeError)",)
        assert (summary.ranks, summary.forward_macs) == ((), 5 * (8 * 16 + 16 * 6))
