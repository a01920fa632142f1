"""watch() in the set-ups of real loops: each trains, with and without it, and is bitwise the same."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import summarycb
from summarycb.tree import Work
from tests.test_watch import MACS, batch, net, plain_step
from tests.trainings import NOTHING, Case, bits, everything, hooks_of, left_behind, loss_of, step

STEPS = 3
Loop = Callable[[bool], tuple[Any, Any]]
"""Trains, watched or not; returns all that the training leaves, and the hook."""


def summary_of(loop: Loop) -> Any:
    """The summary, of a training that is bitwise the one without it."""
    plain, _ = loop(False)
    observed, hook = loop(True)
    assert observed == plain
    assert left_behind() == NOTHING
    assert hook.summary.incomplete == ()
    return hook.summary


def test_a_gradient_scaler_that_skips_a_step() -> None:
    """An infinite gradient: the first step is without the optimizer's, and is over as the second forward begins."""

    def loop(watch: bool) -> tuple[Any, Any]:
        model, optimizer = net()
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=2)
        hook = summarycb.watch(model, verbose=False) if watch else None
        losses, scales = [], []
        for turn in range(STEPS):
            x, y = batch()
            optimizer.zero_grad()
            loss = loss_of(model(x), y) * (float("inf") if turn == 0 else 1.0)
            scaler.scale(loss).backward()
            before = hook is not None and hook.summary is not None
            scaler.step(optimizer)
            scaler.update()
            assert before == (watch and turn > 0)
            losses.append(loss.detach())
            scales.append(scaler.get_scale())
        assert scales == [8.0, 8.0, 16.0]  # halved once
        return everything(model, optimizer, losses), hook

    summary = summary_of(loop)
    assert (summary[""].calls, summary.forward_macs, summary.backward_macs) == (1, MACS, MACS)
    assert summary.memory.gradients == 0  # taken away before the next forward
    assert summary.memory.optimizer_state is None
    assert [note.text for note in summary.notes] == [
        "no torch optimizer stepped before the next forward: its state is unknown"
    ]


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.block = nn.Linear(3, 5), nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.Tanh())
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(checkpoint(self.block, self.first(x), use_reentrant=self.reentrant))  # type: ignore[no-any-return]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    """A reentrant one runs its forward without gradients, and its backward within another: neither is a step."""

    def loop(watch: bool) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = Checkpointed(reentrant)
        optimizer = torch.optim.Adam(model.parameters())
        hook = summarycb.watch(model, verbose=False) if watch else None
        losses = [step(model, optimizer, *batch()) for _ in range(STEPS)]
        return everything(model, optimizer, losses), hook

    summary = summary_of(loop)
    first, block, head = 2 * 3 * 5, 2 * 5 * 5, 2 * 5 * 4
    assert (summary[""].calls, summary["block"].calls) == (1, 1)
    assert summary.forward_macs == first + block + head
    assert summary.backward_macs == first + 2 * block + 2 * head
    assert summary["block"].total.recompute_macs == summary.root.total.recompute_macs == block


def test_a_submodule_that_is_first_seen_as_it_is_recomputed() -> None:
    """Its forward had no gradients, as an evaluation's: a step without it would be no step, so none is shown."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 5)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = summarycb.watch(model, verbose=False)
    for _ in range(2):
        checkpoint(model[0], torch.rand(2, 3, requires_grad=True), use_reentrant=True).sum().backward()
        optimizer.step()
    assert hook.summary is None
    hook.close()
    assert left_behind(model) == NOTHING


@pytest.mark.parametrize("way", ["fused", "foreach", "one by one"])
def test_fused_optimizers(way: str) -> None:
    """AdamW's two moments and its step count of 4 bytes for each of two tensors, however it steps."""
    options = {"fused": way == "fused", "foreach": way == "foreach"}

    def loop(watch: bool) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = nn.Linear(3, 4)
        optimizer = torch.optim.AdamW(model.parameters(), **options)
        hook = summarycb.watch(model, verbose=False) if watch else None
        losses = [step(model, optimizer, *batch()) for _ in range(STEPS)]
        return everything(model, optimizer, losses), hook

    summary = summary_of(loop)
    assert summary.environment.optimizer == "AdamW"
    assert summary.memory.optimizer_state == 2 * 16 * 4 + 2 * 4


def test_an_average_of_the_weights() -> None:
    """AveragedModel copies the watched model, before the step and amid it; the copies average as without."""

    def loop(watch: bool) -> tuple[Any, Any]:
        model, optimizer = net()
        hook = summarycb.watch(model, verbose=False) if watch else None
        averages = [AveragedModel(model)]
        losses = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            x, y = batch()
            output = model(x)
            averages.append(AveragedModel(model))
            loss = loss_of(output, y)
            loss.backward()
            optimizer.step()
            for average in averages:
                average.update_parameters(model)
            losses.append(loss.detach())
        losses += [average(batch()[0]).detach() for average in averages]
        assert left_behind(model, averages[0]) == NOTHING
        return [everything(model, optimizer, losses), [bits(average.state_dict()) for average in averages]], hook

    summary = summary_of(loop)
    assert (summary[""].calls, summary.forward_macs) == (1, MACS)


@pytest.mark.parametrize("watched", ["wrapper", "model"])
def test_data_parallel(watched: str) -> None:
    """Without an accelerator it calls its module; the row is the module's either way."""

    def loop(watch: bool) -> tuple[Any, Any]:
        model, optimizer = net()
        wrapper = nn.DataParallel(model)
        hook = summarycb.watch(wrapper if watched == "wrapper" else model, verbose=False) if watch else None
        losses = [step(wrapper, optimizer, *batch()) for _ in range(STEPS)]
        assert left_behind(wrapper) == NOTHING
        return everything(model, optimizer, losses), hook

    summary = summary_of(loop)
    assert [(path, module.type_name, module.calls) for path, module in summary.modules.items()] == [
        ("", "Sequential", 1),
        ("0", "Linear", 1),
    ]
    assert (summary.forward_macs, summary.backward_macs) == (MACS, MACS)


def test_a_functional_ensemble() -> None:
    """Three models as one by ``vmap``, no optimizer of torch's: over at the next forward, gradients bitwise."""

    def loop(watch: bool) -> tuple[Any, Any]:
        torch.manual_seed(0)
        models = [nn.Linear(3, 4) for _ in range(3)]
        parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
        model = models[0]
        hook = summarycb.watch(model, verbose=False) if watch else None

        def loss(weights: Any, states: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return loss_of(functional_call(model, (weights, states), (x,)), y)

        for turn in range(STEPS):
            x, y = batch()
            gradients = vmap(grad(loss), in_dims=(0, 0, None, None))(parameters, buffers, x, y)
            assert (hook is not None and hook.summary is not None) == (watch and turn > 0)
            parameters = {name: (p - 0.1 * gradients[name]).detach() for name, p in parameters.items()}
        assert left_behind(model) == NOTHING
        return bits(parameters), hook

    summary = summary_of(loop)
    assert summary[""].calls == 1
    assert summary.forward_macs == 3 * MACS  # of three models at once
    assert summary.backward_macs == 3 * MACS


def test_a_model_that_trains_in_another_thread() -> None:
    """Two trainings at the same time, forward and backward in turn, one watched, both or none: bitwise the same."""

    def run(watched: tuple[bool, bool]) -> list[Any]:
        gate = threading.Barrier(2, timeout=60)
        results: list[Any] = [None, None]

        def train(turn: int) -> None:
            try:
                model = nn.Sequential(nn.Linear(3, 4 + turn), nn.Tanh(), nn.Linear(4 + turn, 4))
                generator = torch.Generator().manual_seed(turn)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.copy_(torch.rand(parameter.shape, generator=generator))
                optimizer = torch.optim.Adam(model.parameters())
                hook = summarycb.watch(model, verbose=False) if watched[turn] else None
                losses = []
                for _ in range(STEPS):
                    x, y = torch.rand(2, 3, generator=generator), torch.arange(2)
                    optimizer.zero_grad()
                    gate.wait()
                    output = model(x)
                    gate.wait()  # both have begun before either goes on
                    loss = loss_of(output, y)
                    loss.backward()
                    gate.wait()
                    optimizer.step()
                    losses.append(loss.detach())
                trained = everything(model, optimizer, losses)
                del trained["random state"]  # that of the process
                results[turn] = trained, hook
            except BaseException:
                gate.abort()
                raise

        threads = [threading.Thread(target=train, args=(turn,)) for turn in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert left_behind() == NOTHING
        return results

    plain = [trained for trained, _ in run((False, False))]
    for watched in [(True, False), (True, True)]:
        results = run(watched)
        assert [trained for trained, _ in results] == plain
        for turn, (_, hook) in enumerate(results):
            if hook is not None:
                width = 4 + turn
                assert hook.summary.incomplete == ()
                assert hook.summary[""].calls == 1
                assert hook.summary.forward_macs == 2 * (3 * width + width * 4)


LOAD = """
import sys, torch
sys.modules["summarycb"] = None  # as where it is not installed
for path in sys.argv[1:]:
    model = torch.load(path, weights_only=False)
    handle = model.register_forward_pre_hook(lambda module, args: None)  # the first number a process gives out
    model(torch.rand(2, 3)).sum().backward()
"""


def test_a_watched_model_loads_where_this_package_is_not_installed(tmp_path: Path) -> None:
    """Saved while it waits, and amid the step; also where the user has hooks that ours come after."""
    model, optimizer = net()
    model.register_forward_hook(nullcontext().__exit__)  # takes anything, and is found everywhere
    hook = summarycb.watch(model, verbose=False)
    torch.save(model, tmp_path / "waiting.pt")
    x, y = batch()
    loss = loss_of(model(x), y)
    torch.save(model, tmp_path / "amid.pt")
    loss.backward()
    optimizer.step()
    assert hook.summary is not None
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "waiting.pt"), str(tmp_path / "amid.pt")],
        capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_happens_while_a_cuda_graph_is_captured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No observation begins amid a capture, and none ends or prints: the step that is observed ends after it."""
    model, optimizer = net()
    hook = summarycb.watch(model, columns=["params"])
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    step(model, optimizer, *batch())
    assert (hook.summary, left_behind()) == (None, NOTHING)

    capturing = False
    x, y = batch()
    loss = loss_of(model(x), y)
    capturing = True
    loss.backward()
    optimizer.step()
    assert (hook.summary, capsys.readouterr().out) == (None, "")

    capturing = False
    optimizer.step()
    assert hook.summary is not None
    assert capsys.readouterr().out == hook.summary.to_text(columns=["params"]) + "\n"
    assert (hook.summary[""].calls, hook.summary.forward_macs) == (1, MACS)
    assert left_behind(model) == NOTHING


def test_waiting_asks_nothing_of_cuda_where_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bool:
        raise AssertionError("asked")

    model, optimizer = net()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", fail)
    hook = summarycb.watch(model, verbose=False)
    step(model, optimizer, *batch())
    assert hook.summary is not None
    assert hook.summary.incomplete == ()


def test_an_optimizer_that_takes_a_closure() -> None:
    """LBFGS runs the forward and the backward within its step, as often as it likes: the whole step is observed."""
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    forwards = 0

    def train(watch: bool) -> tuple[Any, Any]:
        nonlocal forwards
        torch.manual_seed(0)
        model = nn.Linear(3, 4)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
        hook = summarycb.watch(model, verbose=False) if watch else None
        x, y = batch()
        forwards = 0

        def closure() -> torch.Tensor:
            nonlocal forwards
            forwards += 1
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            return loss

        losses = [optimizer.step(closure) for _ in range(3)]  # type: ignore[arg-type]
        if hook is not None:
            assert hook.summary is not None
        return everything(model, optimizer, losses), hook

    plain, _ = train(watch=False)
    observed, hook = train(watch=True)
    assert observed == plain
    summary = hook.summary
    assert summary.incomplete == ()
    calls = summary[""].calls
    assert calls is not None
    assert 1 < calls < forwards  # of the first step, not of all three
    assert (summary.forward_macs, summary.backward_macs) == (calls * MACS, calls * MACS)
    assert summary.environment.optimizer == "LBFGS"
    assert left_behind(model) == NOTHING


def test_two_models_with_two_optimizers() -> None:
    """A GAN: each watch ends at the step of its own model's optimizer, and neither disturbs the other."""

    def train(watch: bool) -> tuple[Any, list[Any]]:
        torch.manual_seed(0)
        generator, judge = nn.Linear(2, 3), nn.Linear(3, 1)
        g_step, d_step = torch.optim.Adam(generator.parameters()), torch.optim.SGD(judge.parameters(), momentum=0.9)
        hooks = [summarycb.watch(m, verbose=False) for m in (generator, judge)] if watch else []
        losses = []
        for turn in range(3):
            noise = torch.rand(5, 2)
            d_step.zero_grad()
            loss = judge(generator(noise).detach()).mean()
            loss.backward()
            d_step.step()
            if watch and turn == 0:
                assert [hook.summary is not None for hook in hooks] == [False, True]
            losses.append(loss.detach())
            g_step.zero_grad()
            loss = -judge(generator(noise)).mean()
            loss.backward()
            g_step.step()
            losses.append(loss.detach())
        assert left_behind(generator, judge) == NOTHING
        return [everything(generator, g_step, losses), everything(judge, d_step, losses)], hooks

    plain, _ = train(watch=False)
    observed, (of_generator, of_judge) = train(watch=True)
    assert observed == plain
    assert of_judge.summary[""].calls == 1
    assert of_judge.summary.root.total.forward_macs == 5 * 3 * 1
    assert of_judge.summary.environment.optimizer == "SGD"
    assert of_generator.summary[""].calls == 2
    assert of_generator.summary.root.total.forward_macs == 2 * (5 * 2 * 3)
    assert of_generator.summary.root.total.backward_macs == 5 * 2 * 3  # of the second; the first was detached
    assert of_generator.summary.environment.optimizer == "Adam"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_watches_that_end_at_the_same_step(order: tuple[int, int]) -> None:
    """One optimizer for two models: its hooks go while torch still iterates over them."""
    torch.manual_seed(0)
    models = [nn.Linear(3, 3), nn.Linear(3, 4)]
    optimizer = torch.optim.SGD([p for model in models for p in model.parameters()], lr=0.1)
    hooks = [summarycb.watch(models[i], verbose=False) for i in order]
    x, y = batch()
    loss_of(models[1](models[0](x)), y).backward()
    optimizer.step()
    assert all(hook.summary is not None for hook in hooks)
    assert left_behind(*models) == NOTHING
    first, second = (hooks[order.index(i)].summary for i in (0, 1))
    assert first is not None
    assert second is not None
    assert (first[""].total.forward_macs, second[""].total.forward_macs) == (2 * 3 * 3, 2 * 3 * 4)
    assert second[""].total.backward_macs == 2 * (2 * 3 * 4)  # the weight's gradient and the input's


def test_optimizer_hooks_of_the_user_run_on() -> None:
    """Process-wide hooks registered before, between and after ours are all called, at every step."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    seen: list[str] = []
    model, optimizer = net()
    handles = [register_optimizer_step_post_hook(lambda *_: seen.append("before"))]
    hook = summarycb.watch(model, verbose=False)
    loss_of(model(batch()[0]), batch()[1]).backward()
    handles.append(register_optimizer_step_post_hook(lambda *_: seen.append("after")))
    handles.append(register_optimizer_step_pre_hook(lambda *_: seen.append("pre")))
    optimizer.register_step_post_hook(lambda *_: seen.append("own"))
    optimizer.step()
    assert hook.summary is not None
    optimizer.step()
    for handle in handles:
        handle.remove()
    assert seen == ["pre", "own", "before", "after"] * 2


def test_a_copy_of_a_watched_model_is_inert(case: Case) -> None:
    """An EMA copy, a checkpoint of the whole module: they train on their own, unobserved, and load without the hook."""
    model, optimizer = case.make()
    hook = summarycb.watch(model, verbose=False)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stored, weights_only=False)]
    for other in copies:
        case.train(other, case.optimizer(other.parameters()), steps=1)
        assert hook.summary is None
    case.train(model, optimizer, steps=1)
    assert hook.summary is not None
    assert hook.summary[""].calls == 1


def test_a_copy_that_is_made_amid_the_step() -> None:
    """``deepcopy`` of the model between forward and backward copies no observation."""
    model, optimizer = net()
    hook = summarycb.watch(model, verbose=False)
    x, y = batch()
    loss = loss_of(model(x), y)
    other = copy.deepcopy(model)
    other(x)
    loss.backward()
    optimizer.step()
    assert hook.summary is not None
    assert (hook.summary[""].calls, hook.summary[""].total.forward_macs) == (1, MACS)
    assert hook.summary.outside.forward_macs == MACS  # the copy's
    assert left_behind(model) == NOTHING


def test_the_copy_of_a_watched_model_loses_the_hook_as_it_is_first_called() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    hook = summarycb.watch(model, verbose=False)
    average = copy.deepcopy(model)
    average(torch.rand(4, 3))
    assert hooks_of(average) == hooks_of(nn.Sequential(nn.Linear(3, 2)))
    assert hook.summary is None
    hook.close()


def test_autocast(case: Case) -> None:
    """bfloat16 autocast on the CPU: the precision is recorded, and the copies of weights are a kind of their own."""

    def train(watch: bool) -> tuple[Any, Any]:
        model, optimizer = case.make()
        hook = summarycb.watch(model, verbose=False) if watch else None
        losses = []
        for x, y in case.batches():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return everything(model, optimizer, losses), hook

    plain, _ = train(watch=False)
    observed, hook = train(watch=True)
    assert observed == plain
    assert hook.summary.environment.precision == "bfloat16 autocast"
    copies, weights = hook.summary.memory.weight_copies, hook.summary.memory.parameters
    assert 0 < copies <= weights // 2


def test_autocast_copies_of_weights_in_bytes() -> None:
    """Linear(3, 4), Linear(4, 5): a weight's copy is saved where the input needs a gradient, so the second's alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    optimizer = torch.optim.SGD(model.parameters())
    hook = summarycb.watch(model, verbose=False)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch()[0])
    loss = output.sum()
    loss.backward()
    optimizer.step()
    summary = hook.summary
    assert summary is not None
    # forward and backward MACs, recomputed ones, saved bytes (bfloat16: 2 each), copies of weights
    # the first saves the copy of the batch and its output, the second its output, which the user's variable holds
    (first,), (second,) = summary["0"].call_groups or (), summary["1"].call_groups or ()
    assert first.own == Work(2 * 3 * 4, 2 * 3 * 4, 0, 2 * (2 * 3) + 2 * (2 * 4), 0)
    assert second.own == Work(2 * 4 * 5, 2 * (2 * 4 * 5), 0, 2 * (2 * 5), 2 * (4 * 5))
    assert summary.memory.weight_copies == 2 * (4 * 5)


def test_a_user_mode_around_the_forward_alone() -> None:
    """Somebody counts FLOPs of the forward: that mode is left before ours, and must pop itself, not us.

    So ours is left with the forward. The gradients are still measured at the end of the step.
    """
    model, optimizer = net()
    x, y = batch()
    hook = summarycb.watch(model, verbose=False)
    with FlopCounterMode(display=False) as counter:
        output = model(x)
    assert _get_current_dispatch_mode_stack() == []
    loss_of(output, y).backward()
    optimizer.step()
    summary = hook.summary
    assert counter.get_total_flops() == 2 * MACS
    assert summary is not None
    assert (summary.observed, summary.forward_macs, summary.backward_macs) == ("forward", MACS, None)
    assert summary.memory.gradients == 16 * 4
    assert [note.kind for note in summary.notes] == ["mode"]
    assert left_behind(model) == NOTHING
    assert not torch.utils._python_dispatch.is_in_torch_dispatch_mode()


def test_a_user_mode_around_backward_and_step() -> None:
    """A mode entered after ours is still there, and whole, when ours has gone from below it."""
    model, optimizer = net()
    x, y = batch()
    hook = summarycb.watch(model, verbose=False)
    loss = loss_of(model(x), y)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
        optimizer.step()
        assert _get_current_dispatch_mode_stack() == [counter.mode]
        assert hook.summary is not None
        torch.rand(2, 3) @ torch.rand(3, 4)
    assert counter.get_total_flops() == 2 * MACS + 2 * MACS
    assert (hook.summary.forward_macs, hook.summary.backward_macs) == (MACS, MACS)
    assert left_behind(model) == NOTHING
    assert not torch.utils._python_dispatch.is_in_torch_dispatch_mode()


def test_a_user_mode_around_the_whole_step() -> None:
    model, optimizer = net()
    hook = summarycb.watch(model, verbose=False)
    with FlopCounterMode(display=False) as counter:
        step(model, optimizer, *batch())
    assert counter.get_total_flops() == 2 * MACS + 2 * MACS
    assert hook.summary is not None
    assert hook.summary.forward_macs == MACS
    assert not torch.utils._python_dispatch.is_in_torch_dispatch_mode()


@pytest.mark.parametrize("gradients", [False, True])
def test_modules_in_other_threads(gradients: bool) -> None:
    """A thread that prefetches features with the model is not part of the step's calls, and is said.

    Where it makes a graph, the numbers of its nodes are not told from those of the step's.
    """
    model, optimizer = net()
    hook = summarycb.watch(model, verbose=False)
    x, y = batch()
    loss = loss_of(model(x), y)

    def prefetch() -> None:
        with torch.set_grad_enabled(gradients):
            model(torch.rand(50, 3))

    thread = threading.Thread(target=prefetch)
    thread.start()
    thread.join()
    loss.backward()
    optimizer.step()
    assert hook.summary is not None
    assert (hook.summary[""].calls, hook.summary.forward_macs) == (1, MACS)
    assert [note.kind for note in hook.summary.notes] == (["unplaced", "threads"] if gradients else ["threads"])
    assert (hook.summary[""].backward_macs is None) == gradients


def test_another_thread_does_not_end_the_step() -> None:
    model, optimizer = net()
    hook = summarycb.watch(model, verbose=False)
    x, y = batch()
    loss_of(model(x), y).backward()
    thread = threading.Thread(target=optimizer.step)
    thread.start()
    thread.join()
    assert hook.summary is None
    optimizer.step()
    assert hook.summary is not None


class Each(nn.Module):
    """Three layers whose optimizers step as each gradient is ready, within the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def test_an_optimizer_for_each_parameter_that_steps_within_the_backward() -> None:
    model = Each()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    hook = summarycb.watch(model, verbose=False)
    model(torch.rand(3, 4)).sum().backward()
    assert hook.summary is None
    model(torch.rand(3, 4))
    assert hook.summary is not None
    first, second, third = 3 * 4 * 5, 3 * 5 * 6, 3 * 6 * 2
    assert hook.summary.forward_macs == first + second + third
    assert hook.summary.backward_macs == first + 2 * (second + third)


def test_an_update_by_hand_that_zeroes_in_place_ends_the_step() -> None:
    model = nn.Linear(3, 2)
    hook = summarycb.watch(model, verbose=False)
    for _ in range(2):
        model(torch.rand(4, 3)).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad.zero_()  # type: ignore[union-attr]
    assert hook.summary is not None
    assert (hook.summary[""].calls, hook.summary.forward_macs) == (1, 4 * 3 * 2)


@pytest.mark.parametrize("way", ["by hand", "torch.func"])
def test_a_loop_without_a_torch_optimizer_ends_at_the_next_forward(way: str) -> None:
    model = nn.Linear(3, 2)
    hook = summarycb.watch(model, verbose=False)
    for _ in range(3):
        if way == "by hand":
            plain_step(model)
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
        else:
            parameters = dict(model.named_parameters())

            def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
                return torch.func.functional_call(model, weights, (torch.rand(4, 3),)).sum()

            torch.func.grad(loss)(parameters)
    assert hook.summary is not None
    assert hook.summary[""].calls == 1
    assert hook.summary.forward_macs == 4 * 3 * 2
    assert left_behind(model) == NOTHING


class Overrides(nn.Module):
    """Its parameters come in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def parameters(self, rate: float) -> Any:  # type: ignore[override]
        return [{"params": [*self.layer.parameters()], "lr": rate}]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def test_a_model_with_parameters_of_its_own_kind() -> None:
    model = Overrides()
    optimizer = torch.optim.SGD(model.parameters(0.1))
    hook = summarycb.watch(model, verbose=False)
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    assert hook.summary is not None
    assert (hook.summary.incomplete, hook.summary.total_params) == ((), 8)
