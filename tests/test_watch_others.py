"""watch() beside what else is at work in the process: modes, hooks, threads, and captures of CUDA graphs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode

import summarycb
from tests.test_watch import MACS, batch, net
from tests.test_watch_setups import STEPS
from tests.trainings import NOTHING, everything, left_behind, loss_of, step


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
