"""watch(): when the first real training step starts and ends in a plain loop, and that nothing else is taken for it."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode

import summarycb
from summarycb.tree import Work
from tests.trainings import CASES, CNN, NOTHING, Case, everything, hooks_of, left_behind, loss_of, step

# Linear(3, 4) on a batch of 2, its input needs no gradient: 2 x 3 x 4 forward, as much for the weight's gradient.
MACS = 24


def net() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4))
    return model, torch.optim.Adam(model.parameters())


def batch(rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(rows, 3), torch.randint(4, (rows,))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_an_evaluation_before_training_does_not_count(case: Case, mode: str) -> None:
    """Without gradients: the sanity check of a plain loop, or statistics gathered in train mode."""
    model, optimizer = case.make()
    hook = summarycb.watch(model, verbose=False)
    flags = {name: module.training for name, module in model.named_modules()}
    model.train(mode == "train")
    with torch.no_grad():
        model(case.batches(1)[0][0][:1])
    with torch.inference_mode():
        model(case.batches(1)[0][0][:1])
    for name, module in model.named_modules():
        module.training = flags[name]
    case.train(model, optimizer, steps=1)
    assert hook.summary is not None
    root = hook.summary[""]
    assert (root.calls, root.training, hook.summary.environment.training) == (1, True, True)
    assert hook.summary.memory.batch == sum(t.nbytes for t in case.batches(1)[0][:1])


def test_an_evaluation_with_gradients_on_does_not_count() -> None:
    """A forward in eval mode that no backward follows, as of somebody who forgot ``no_grad``."""
    model, optimizer = net()
    hook = summarycb.watch(model, verbose=False)
    model.eval()
    for rows in (5, 6):
        model(batch(rows)[0])
    model.train()
    step(model, optimizer, *batch())
    assert hook.summary is not None
    assert (hook.summary[""].calls, hook.summary.memory.batch) == (1, 2 * 3 * 4)
    assert (hook.summary.forward_macs, hook.summary.backward_macs) == (MACS, MACS)


def test_training_in_eval_mode_counts() -> None:
    """Fine-tuning with frozen statistics: a backward follows, so it is the step."""
    model, optimizer = net()
    model.eval()
    hook = summarycb.watch(model, verbose=False)
    step(model, optimizer, *batch())
    assert hook.summary is not None
    assert hook.summary.environment.training is False
    assert (hook.summary.observed, hook.summary.forward_macs, hook.summary.backward_macs) == ("step", MACS, MACS)


def test_from_the_first_forward_to_the_first_step() -> None:
    """The summary is there as soon as ``optimizer.step()`` has returned, and later steps change nothing in it."""
    model, optimizer = net()
    hook = summarycb.watch(model, verbose=False)
    x, y = batch()
    loss = loss_of(model(x), y)
    assert left_behind(model)["modes"] != []
    loss.backward()
    assert hook.summary is None
    optimizer.step()
    summary = hook.summary
    assert summary is not None
    assert summary[""].calls == 1
    # the weights, 4 x 3 + 4 floats; Adam: two moments of as many, and a step count of 4 bytes for each of two tensors
    assert summary.memory.parameters == summary.memory.gradients == 16 * 4
    assert summary.memory.optimizer_state == 2 * 16 * 4 + 2 * 4
    assert summary.environment.optimizer == "Adam"
    step(model, optimizer, x, y)
    assert hook.summary is summary


def test_gradients_that_accumulate() -> None:
    """Two batches, then a step: both are the step."""
    model, optimizer = net()
    hook = summarycb.watch(model, verbose=False)
    for _ in range(2):
        x, y = batch()
        loss_of(model(x), y).backward()
    assert hook.summary is None
    optimizer.step()
    assert hook.summary is not None
    assert hook.summary[""].calls == 2
    assert (hook.summary.forward_macs, hook.summary.backward_macs) == (2 * MACS, 2 * MACS)
    assert hook.summary.memory.batch == 2 * (2 * 3 * 4)
    assert hook.summary.memory.gradients == 16 * 4


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


def test_the_step_of_another_models_optimizer_does_not_end_it() -> None:
    model, optimizer = net()
    _, stranger = net()
    hook = summarycb.watch(model, verbose=False)
    loss_of(model(batch()[0]), batch()[1]).backward()
    stranger.step()
    assert hook.summary is None
    optimizer.step()
    assert hook.summary is not None
    assert hook.summary.memory.optimizer_state == 2 * 16 * 4 + 2 * 4


def test_a_forward_that_raises_and_is_tried_again() -> None:
    """Out of memory, then a smaller batch: the summary is of the step that was made."""
    model, optimizer = net()
    hook = summarycb.watch(model, verbose=False)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.rand(9, 7))
    step(model, optimizer, *batch())
    assert hook.summary is not None
    assert hook.summary.incomplete == ()
    assert (hook.summary[""].calls, hook.summary.forward_macs, hook.summary.memory.batch) == (1, MACS, 2 * 3 * 4)
    assert left_behind(model) == NOTHING


def test_a_forward_that_was_interrupted_and_is_tried_again() -> None:
    """Ctrl-C in a notebook's cell, which is then run again: torch calls no hook on the way out of an interrupt."""
    model, optimizer = net()
    interrupts = iter([True, False])

    def interrupt(module: nn.Module, args: Any, output: Any) -> None:
        if next(interrupts):
            raise KeyboardInterrupt

    model[0].register_forward_hook(interrupt)  # type: ignore[index,operator]
    hook = summarycb.watch(model, verbose=False)
    with pytest.raises(KeyboardInterrupt):
        step(model, optimizer, *batch(7))
    step(model, optimizer, *batch())
    assert hook.summary is not None
    assert (hook.summary[""].calls, hook.summary["0"].calls, hook.summary.memory.batch) == (1, 1, 2 * 3 * 4)
    assert (hook.summary.forward_macs, hook.summary["0"].forward_macs) == (MACS, MACS)


def test_an_error_that_the_model_handles_is_no_new_step() -> None:
    """Two forwards before one backward, in each of which a branch fails and another takes over."""

    class Falls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(9, 4), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.wide(x)
            except RuntimeError:
                return self.narrow(x)

    torch.manual_seed(0)
    model = Falls()
    hook = summarycb.watch(model, verbose=False)
    (x1, y1), (x2, y2) = batch(), batch()
    (loss_of(model(x1), y1) + loss_of(model(x2), y2)).backward()
    torch.optim.SGD(model.parameters()).step()
    assert hook.summary is not None
    assert (hook.summary[""].calls, hook.summary.forward_macs, hook.summary.backward_macs) == (2, 2 * MACS, 2 * MACS)


def test_the_submodules_alone_are_called() -> None:
    """A loop that never calls the root: an encoder and a head, one after the other."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "head": nn.Linear(5, 4)})
    optimizer = torch.optim.SGD(model.parameters())
    hook = summarycb.watch(model, verbose=False)
    x, y = batch()
    loss_of(model["head"](model["encoder"](x)), y).backward()
    optimizer.step()
    summary = hook.summary
    assert summary is not None
    assert [(path, module.calls) for path, module in summary.modules.items()] == [("", 0), ("encoder", 1), ("head", 1)]
    assert summary.forward_macs == 2 * 3 * 5 + 2 * 5 * 4
    assert summary.backward_macs == 2 * 3 * 5 + 2 * (2 * 5 * 4)  # the encoder's input needs no gradient
    assert summary.memory.batch == 2 * 3 * 4


def test_a_wrapped_model_is_watched_through_its_inside() -> None:
    """``watch(model)``, and the loop calls a wrapper of it."""
    model, optimizer = net()
    hook = summarycb.watch(model, verbose=False)
    step(nn.Sequential(model, nn.Identity()), optimizer, *batch())
    assert hook.summary is not None
    assert (hook.summary[""].calls, hook.summary.forward_macs) == (1, MACS)


def test_close_before_any_step() -> None:
    """Of a model that was never called there is nothing to say; closing twice is no error."""
    model, optimizer = net()
    hook = summarycb.watch(model, verbose=False)
    hook.close()
    hook.close()
    assert hook.summary is None
    assert left_behind(model) == NOTHING
    step(model, optimizer, *batch())
    assert hook.summary is None


def test_close_amid_the_step() -> None:
    """What was seen so far is the summary: here a forward."""
    model, _ = net()
    hook = summarycb.watch(model, verbose=False)
    model(batch()[0])
    hook.close()
    assert hook.summary is not None
    assert (hook.summary.observed, hook.summary.forward_macs, hook.summary.backward_macs) == ("forward", MACS, None)


def test_as_a_context_manager() -> None:
    """Where no optimizer of torch ever steps, the block is the step."""
    model, _ = net()
    with summarycb.watch(model, verbose=False) as hook:
        x, y = batch()
        loss_of(model(x), y).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad  # type: ignore[operator]
    summary = hook.summary
    assert summary is not None
    assert (summary.observed, summary.backward_macs) == ("step", MACS)
    assert (summary.memory.gradients, summary.memory.optimizer_state) == (16 * 4, None)


def test_as_a_context_manager_around_a_step_that_raises() -> None:
    """The user's error goes through; the summary says that the step raised."""
    model, _ = net()
    with pytest.raises(ZeroDivisionError), summarycb.watch(model, verbose=False) as hook:
        model(batch()[0]) / (1 / 0)
    assert hook.summary is not None
    assert hook.summary.incomplete == ("the step raised ZeroDivisionError",)


def test_a_process_that_ends_without_a_step_says_what_it_saw() -> None:
    """A hand-written optimizer: the summary is printed as the interpreter exits."""
    code = """
import torch, summarycb
model = torch.nn.Linear(3, 4)
hook = summarycb.watch(model)
model(torch.rand(2, 3)).sum().backward()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Linear\nstep ")


def test_the_summary_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """With the columns and the depth that were asked for, and not again by a later step or ``close``."""
    model, optimizer = net()
    hook = summarycb.watch(model, depth=0, columns=["params"])
    for _ in range(2):
        step(model, optimizer, *batch())
    hook.close()
    assert hook.summary is not None
    assert capsys.readouterr().out == hook.summary.to_text(depth=0, columns=["params"]) + "\n"


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


class Graphs:
    """A compiler backend that counts the graphs it was given, and the runs of each."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: object) -> Any:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph(*args)

        return run


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("evaluate", [False, True], ids=["train", "evaluate first"])
@pytest.mark.parametrize("watched", ["compiled", "inner", "in place"])
def test_a_compiled_model(watched: str, evaluate: bool) -> None:
    """The observed step runs eagerly, so its modules are seen; every later step runs compiled, one graph.

    Where the call goes through the compiler before it comes to the watched module, that is only noticed as the first
    step is compiled: then the next one is observed, and the summary says so. The graph is whole all the same.
    """

    def train(watch: bool) -> tuple[Any, Any, Graphs]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        inner = CNN()
        optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
        backend = Graphs()
        if watched == "in place":
            inner.compile(backend=backend, fullgraph=True)
            model: Any = inner
        else:
            model = torch.compile(inner, backend=backend, fullgraph=True)
        hook = summarycb.watch(model if watched == "compiled" else inner, verbose=False) if watch else None
        batches = CASES["cnn"].batches(4)
        if evaluate:
            with torch.no_grad():
                model(batches[0][0])
        backend.graphs = backend.runs = 0
        losses = [step(model, optimizer, x, y) for x, y in batches]
        assert left_behind(model, inner) == NOTHING
        return everything(inner, optimizer, losses), hook, backend

    plain, _, plain_backend = train(watch=False)
    observed, hook, backend = train(watch=True)
    assert (plain_backend.graphs, plain_backend.runs) == (1, 4)
    assert (backend.graphs, backend.runs) == (1 if watched == "compiled" else 2, 3)
    assert [note.kind for note in hook.summary.notes] == ([] if watched == "compiled" else ["compiled"])
    assert observed == plain
    assert hook.summary is not None
    assert hook.summary.incomplete == ()
    assert [path for path, module in hook.summary.modules.items() if module.calls == 1] == [
        "", "conv", "norm", "frozen", "drop", "head",
    ]  # fmt: skip
    assert hook.summary.root.type_name == "CNN"
    # conv: 4 images x 8 x 8 places x 8 channels x 3 x 3 x 3; head: 4 x 8 x 5
    assert hook.summary.forward_macs == 4 * 8 * 8 * 8 * 27 + 4 * 8 * 5


@pytest.mark.usefixtures("fresh_compiler")
def test_a_model_that_is_compiled_for_training() -> None:
    """With AOTAutograd behind it: the later steps' backward is compiled too."""
    torch.manual_seed(0)
    inner = CNN()
    model = torch.compile(inner, backend="aot_eager")
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    hook = summarycb.watch(model, verbose=False)
    batches = CASES["cnn"].batches(3)
    step(model, optimizer, *batches[0])
    assert hook.summary is not None
    assert hook.summary.backward_macs is not None
    nodes: list[str] = []
    for x, y in batches[1:]:
        output = model(x)
        nodes.append(type(output.grad_fn).__name__)
        loss_of(output, y).backward()
        optimizer.step()
    assert nodes == ["CompiledFunctionBackward"] * 2


def plain_step(model: nn.Module) -> None:
    loss_of(model(torch.rand(4, 3)), torch.randint(2, (4,))).backward()


def test_a_skipped_step_is_a_step_of_its_own() -> None:
    """A GradScaler that skips a step takes the gradients away: the next forward is not part of the same step."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = summarycb.watch(model, optimizer, verbose=False)
    plain_step(model)
    optimizer.zero_grad()
    assert hook.summary is None
    plain_step(model)
    optimizer.step()
    assert hook.summary is not None
    assert hook.summary[""].calls == 1
    assert hook.summary.forward_macs == 4 * 3 * 2
    assert hook.summary.memory.optimizer_state is None
    assert [note.text for note in hook.summary.notes if note.kind == "optimizer"] == [
        "no torch optimizer stepped before the next forward: its state is unknown",
        "an optimizer did not step, as in gradient accumulation: its state is unknown",
    ]
    assert left_behind(model) == NOTHING


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


def test_a_step_that_raised_leaves_nothing_once_its_model_is_gone() -> None:
    """A notebook cell that fails and is run again with a new model: the first one's mode must not stay on."""
    model = nn.Linear(3, 2)
    summarycb.watch(model, verbose=False)
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        loss_of(model(torch.rand(4, 3)), torch.full((4,), 7))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert left_behind() == NOTHING


def test_several_forwards_within_a_step_are_said() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = summarycb.watch(model, verbose=False)
    for _ in range(3):
        plain_step(model)
    optimizer.step()
    assert hook.summary is not None
    assert [note.text for note in hook.summary.notes] == [
        "the model ran 3 times within the step; the figures are of all of them",
        "backward ran 3 times within the step; saved activations are those before the one that found the most",
    ]


def test_state_of_an_optimizer_that_has_not_stepped_yet_is_unknown() -> None:
    body, head = nn.Linear(3, 3), nn.Linear(3, 2)
    model = nn.Sequential(body, head)
    first, second = torch.optim.AdamW(body.parameters()), torch.optim.AdamW(head.parameters())
    hook = summarycb.watch(model, verbose=False)
    plain_step(model)
    first.step()
    second.step()
    assert hook.summary is not None
    # two moments of each element and a step count for each tensor
    assert hook.summary["0"].total.optimizer_state == 4 * (2 * (9 + 3) + 2)
    assert hook.summary["1"].total.optimizer_state is None
    assert hook.summary.memory.optimizer_state is None


def test_the_peak_holds_the_state_of_an_optimizer_that_is_found_only_as_it_steps() -> None:
    """AdamW's two moments exist before the second step, whether or not the optimizer was given."""

    def peak(given: bool) -> int | None:
        model = nn.Linear(64, 64)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        x, y = torch.rand(4, 64), torch.randint(2, (4,))
        for turn in range(2):
            if turn:
                hook = summarycb.watch(model, optimizer if given else None, verbose=False)
            loss_of(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert hook.summary is not None
        return hook.summary.memory.peak

    assert peak(given=False) == peak(given=True)


def test_only_rank_zero_prints_and_writes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = summarycb.watch(model)
    plain_step(model)
    optimizer.step()
    assert hook.summary is not None
    assert capsys.readouterr().out == ""


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


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler looks at it
def test_two_watches_of_compiled_models_leave_the_compiler_as_it_was() -> None:
    """A generator and its critic: the first to begin is the first to end."""
    from torch._dynamo import eval_frame

    graphs = Graphs()
    a, b = (torch.compile(nn.Linear(3, 3), backend=graphs) for _ in range(2))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (a, b)]
    hooks = [summarycb.watch(model, verbose=False) for model in (a, b)]
    for _ in range(3):
        loss = b(a(torch.rand(2, 3))).sum()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert [hook.summary is not None for hook in hooks] == [True, True]
    assert eval_frame._stance.stance == "default"
    assert graphs.runs > 0


def test_the_copy_of_a_watched_model_loses_the_hook_as_it_is_first_called() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    hook = summarycb.watch(model, verbose=False)
    average = copy.deepcopy(model)
    average(torch.rand(4, 3))
    assert hooks_of(average) == hooks_of(nn.Sequential(nn.Linear(3, 2)))
    assert hook.summary is None
    hook.close()


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
