"""On a CUDA device: the figures of the CPU, the allocator's peak beside them, and a capture that is let alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read as the first product runs; without it sums differ

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import summarycb
from tests.trainings import NOTHING, Case, everything, left_behind, loss_of, saved_by_autograd, step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(autouse=True)
def _bitwise() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make(case: Case) -> tuple[nn.Module, torch.optim.Optimizer, list[tuple[torch.Tensor, torch.Tensor]]]:
    model, _ = case.make()
    model.cuda()
    return model, case.optimizer(model.parameters()), [(x.cuda(), y.cuda()) for x, y in case.batches()]


def net() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 8)).cuda()
    return model, torch.optim.Adam(model.parameters(), fused=True)


# 32 rows through both layers; of each weight a gradient, and of the second layer's input
MACS = 32 * (64 * 128 + 128 * 8)
BACKWARD = 32 * (64 * 128 + 2 * 128 * 8)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(32, 64, device="cuda"), torch.randint(8, (32,), device="cuda")


def test_nothing_changes(case: Case) -> None:
    def train(watch: bool) -> dict[str, Any]:
        model, optimizer, batches = make(case)
        hook = summarycb.watch(model, verbose=False) if watch else None
        losses = [step(model, optimizer, x, y) for x, y in batches]
        assert hook is None or (hook.summary is not None and hook.summary.incomplete == ())
        assert left_behind(model) == NOTHING
        return everything(model, optimizer, losses)

    assert train(watch=True) == train(watch=False)


def test_the_work_is_that_of_the_cpu(case: Case) -> None:
    """Other kernels, the same mathematics, module by module."""

    def work(on_cuda: bool) -> dict[str, Any]:
        if on_cuda:
            model, optimizer, batches = make(case)
        else:
            (model, optimizer), batches = case.make(), case.batches()
        with summarycb.observe(model) as observation:
            step(model, optimizer, *batches[0])
        assert observation.summary is not None
        assert observation.summary.backward_flops is not None
        return {path: (m.forward_macs, m.backward_macs) for path, m in observation.summary.modules.items()}

    assert work(on_cuda=True) == work(on_cuda=False)


def test_saved_activations_are_what_autograd_saves(case: Case) -> None:
    model, _, [(x, y), *_] = make(case)
    saved = saved_by_autograd(model, x, y)
    torch.manual_seed(1)
    with summarycb.observe(model) as observation:
        loss_of(model(x), y).backward()
    assert observation.summary is not None
    assert observation.summary.memory.saved_activations == saved


def test_the_allocators_peak_is_beside_the_tensors() -> None:
    model, optimizer = net()
    x, y = torch.rand(4096, 64, device="cuda"), torch.randint(8, (4096,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    with summarycb.observe(model, optimizer) as observation:
        step(model, optimizer, x, y)
    assert observation.summary is not None
    memory = observation.summary.memory
    assert memory.allocator_peak == torch.cuda.max_memory_allocated()
    assert memory.peak is not None
    assert memory.unexplained is not None
    assert memory.unexplained >= 0
    assert memory.basis("allocator_peak") == "measured"
    assert observation.summary.environment.device == "cuda:0"
    assert "by the allocator" in observation.summary.to_text()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_that_runs_again_in_the_engines_thread(reentrant: bool) -> None:
    model, _ = net()
    x, y = batch()
    x.requires_grad_(True)
    with summarycb.observe(model) as observation:
        loss_of(checkpoint(model, x, use_reentrant=reentrant), y).backward()
    summary = observation.summary
    assert summary is not None
    assert (summary.forward_macs, summary.backward_macs) == (MACS, 2 * MACS)
    # the second layer's result is needed by nobody, and the other way of checkpointing stops before it
    assert summary.recompute_flops == 2 * (MACS if reentrant else 32 * 64 * 128)
    assert (summary["0"].forward_macs, summary["0"].backward_macs) == (32 * 64 * 128, 2 * 32 * 64 * 128)


def test_a_gradient_scaler_that_skips_the_first_step() -> None:
    model, optimizer = net()
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)
    hook = summarycb.watch(model, optimizer, verbose=False)
    skipped = 0
    for _ in range(50):
        optimizer.zero_grad()
        x, y = batch()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_of(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        skipped += scaler.get_scale() < before
    assert 0 < skipped < 50
    summary = hook.summary
    assert summary is not None
    assert (summary[""].calls, summary.forward_macs, summary.backward_macs) == (1, MACS, BACKWARD)
    assert summary.environment.precision == "float16 autocast"
    # the second weight in half precision, for its input's gradient; the others went with the end of autocast
    assert summary.memory.weight_copies == 2 * 128 * 8
    assert left_behind(model) == NOTHING


def test_a_capture_is_let_alone() -> None:
    """A whole step that is captured into a graph, with a watch that waits: nothing begins, the graph trains."""
    model, _ = net()
    optimizer = torch.optim.Adam(model.parameters(), capturable=True)
    x, y = batch()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(model, optimizer, x, y)
    torch.cuda.current_stream().wait_stream(side)
    hook = summarycb.watch(model, optimizer, verbose=False)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
    assert hook.summary is None
    losses = []
    for _ in range(20):
        graph.replay()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert hook.summary is None
    del loss  # its graph holds nodes of the stream of the capture
    step(model, optimizer, *batch())
    assert hook.summary is not None
    assert hook.summary.forward_macs == MACS
    assert left_behind(model) == NOTHING


def test_an_observed_step_that_is_captured() -> None:
    """``observe`` around a capture: no operation of ours breaks it."""
    model, _ = net()
    x, y = batch()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            loss_of(model(x), y).backward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with summarycb.observe(model) as observation, torch.cuda.graph(graph):
        loss_of(model(x), y).backward()
    graph.replay()
    torch.cuda.synchronize()
    assert observation.summary is not None
    assert observation.summary.forward_macs == MACS


def test_an_exhausted_memory() -> None:
    model, _ = net()

    def too_much(module: nn.Module, args: Any) -> None:
        torch.empty(2**46, device="cuda")

    model[1].register_forward_pre_hook(too_much)
    with pytest.raises(torch.OutOfMemoryError), summarycb.observe(model) as observation:
        model(batch()[0])
    assert observation.summary is not None
    failure = observation.summary.failure
    assert failure is not None
    assert (failure.error, failure.out_of_memory, failure.operation) == (
        "OutOfMemoryError", True, "aten.empty.memory_format",
    )  # fmt: skip
    assert failure.calls[0] == ""
    # the first layer's weights and its result
    assert (failure.holders[0].module, failure.holders[0].bytes) == ("0", (64 * 128 + 128 + 32 * 128) * 4)


def test_an_error_in_the_engines_thread() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return torch.mm(gradient, gradient)

    class Layer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Wrong.apply(x)

    model = nn.Sequential(nn.Linear(64, 8), Layer()).cuda()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), summarycb.observe(model) as observation:
        model(batch()[0]).sum().backward()
    assert observation.summary is not None
    assert observation.summary.failure is not None
    assert (observation.summary.failure.phase, observation.summary.failure.module) == ("backward", "1")


def test_data_parallel() -> None:
    model, optimizer = net()
    parallel = nn.DataParallel(model, device_ids=[0])
    hook = summarycb.watch(parallel, verbose=False)
    step(parallel, optimizer, *batch())
    assert hook.summary is not None
    assert (hook.summary.forward_macs, hook.summary.backward_macs) == (MACS, BACKWARD)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own import, before 2.13
def test_a_compiled_model() -> None:
    """The observed step is eager, the later ones are one graph."""
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)
    model, optimizer = net()
    compiled = torch.compile(model, backend="aot_eager")
    hook = summarycb.watch(compiled, verbose=False)
    step(compiled, optimizer, *batch())
    assert hook.summary is not None
    assert (hook.summary.forward_macs, hook.summary.backward_macs) == (MACS, BACKWARD)
    torch._dynamo.utils.counters.clear()
    x, y = batch()
    for _ in range(3):
        output = compiled(x)
        assert type(output.grad_fn).__name__ == "CompiledFunctionBackward"
        loss_of(output, y).backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()
