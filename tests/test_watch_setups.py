"""watch() in the set-ups of real loops: each trains, with and without it, and is bitwise the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import summarycb
from summarycb.tree import Work
from tests.test_watch import MACS, batch, net, plain_step
from tests.trainings import NOTHING, Case, bits, everything, left_behind, loss_of, step

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
        "no torch optimizer stepped before the next forward: its state is unknown, gradients are what was left"
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


@pytest.mark.parametrize("within", ["one checkpoint", "each its own"])
def test_submodules_alone_in_reentrant_checkpoints(within: str) -> None:
    """Their first forward has no gradients, as an evaluation's; that it is to run again tells it from one."""

    def loop(watch: bool) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"first": nn.Linear(3, 5), "head": nn.Linear(5, 4)})
        first, head = model["first"], model["head"]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        hook = summarycb.watch(model, verbose=False) if watch else None
        with torch.no_grad():
            head(first(torch.rand(7, 3)))
        for _ in range(STEPS):
            x = torch.rand(2, 3, requires_grad=True)
            if within == "one checkpoint":
                x = checkpoint(lambda x: head(first(x)), x, use_reentrant=True)
            else:
                x = checkpoint(head, checkpoint(first, x, use_reentrant=True), use_reentrant=True)
            x.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return everything(model, optimizer, []), hook

    summary = summary_of(loop)
    ran = {"first": 2 * 3 * 5, "head": 2 * 5 * 4}
    assert {path: m.total.recompute_macs for path, m in summary.modules.items() if path} == ran
    assert {path: (m.calls, m.forward_macs) for path, m in summary.modules.items() if path} == {
        path: (1, macs) for path, macs in ran.items()
    }
    assert summary.backward_macs == 2 * sum(ran.values())  # by each weight and by each input
    assert (summary.notes, summary.memory.batch) == ((), 2 * 3 * 4)


@pytest.mark.parametrize("fails", [False, True])
def test_what_ran_without_gradients_before_the_observation_began_is_said(fails: bool) -> None:
    """A frozen encoder in a loop that never calls the root, after an evaluation: it may be of the step, or not."""

    def loop(watch: bool) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "head": nn.Linear(5, 4), "idle": nn.Linear(1, 1)})
        encoder, head = model["encoder"], model["head"]
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        hook = summarycb.watch(model, verbose=False) if watch else None
        with torch.no_grad():
            head(encoder(torch.rand(7, 3)) + model["idle"](torch.rand(1, 1)))
            features = encoder(torch.rand(2, 3))
        if fails:
            with pytest.raises(RuntimeError):
                head(features.T)
        for _ in range(STEPS):
            with torch.no_grad():
                features = encoder(torch.rand(2, 3))
            head(features).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return everything(model, optimizer, []), hook

    summary = summary_of(loop)
    assert {path: (m.calls, m.forward_macs, m.backward_macs) for path, m in summary.modules.items()} == {
        "": (0, 2 * 5 * 4, 2 * 5 * 4),
        "encoder": (0, 0, 0),
        "head": (1, 2 * 5 * 4, 2 * 5 * 4),
        "idle": (0, 0, 0),  # ran before the head's evaluation, so in no step that begins with the head
    }
    assert [note.text for note in summary.notes if note.kind == "missed"] == [
        "encoder ran before the step was seen, without gradients: it is no part of what is shown"
    ]
    assert summary.memory.batch == 2 * 5 * 4


def test_an_evaluation_with_gradients_does_not_count() -> None:
    """It is in eval mode, and the training is not; more batches than a step has, of the root or of submodules alone."""
    for evaluate in (lambda m, x: m[1](m[0](x)), lambda m, x: m(x)):

        def loop(watch: bool) -> tuple[Any, Any]:
            model, optimizer = net()
            model = nn.Sequential(model, nn.Tanh())
            hook = summarycb.watch(model, verbose=False) if watch else None
            model.eval()
            for _ in range(70):
                evaluate(model, torch.rand(7, 3))  # noqa: B023
            model.train()
            losses = [step(model, optimizer, *batch()) for _ in range(STEPS)]
            return everything(model, optimizer, losses), hook

        summary = summary_of(loop)
        assert (summary[""].calls, summary.forward_macs, summary.backward_macs) == (1, MACS, MACS)
        assert (summary.notes, summary.environment.training) == ((), True)


def test_forces_in_an_evaluation_are_no_step() -> None:
    """A model that differentiates its own energy, evaluated first: its backward reaches no weight."""

    class Forces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = nn.Linear(3, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad(self.energy(x).square().sum(), x, create_graph=self.training)[0]

    def loop(watch: bool) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = Forces()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        hook = summarycb.watch(model, verbose=False) if watch else None
        with torch.no_grad():
            for _ in range(3):
                model.eval()(torch.rand(7, 3))
        model.train()
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(torch.rand(2, 3)).square().sum().backward()
            optimizer.step()
        return everything(model, optimizer, []), hook

    summary = summary_of(loop)
    product = 2 * 3
    assert (summary[""].calls, summary["energy"].calls, summary.forward_macs) == (1, 1, product)
    # the force is one product, whose own backward is two, by the weight and by the energy's gradient, and so is the
    # first product's, by the weight and by the input
    assert summary.backward_macs == 5 * product
    assert summary.environment.training is True


@pytest.mark.parametrize("mode", ["siamese, in eval mode", "a teacher in eval mode first"])
def test_training_in_eval_mode(mode: str) -> None:
    """Frozen statistics, a teacher that gradients pass through: no evaluation, because nothing is put back to train."""

    def loop(watch: bool) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"one": nn.Linear(3, 4).eval(), "two": nn.Linear(3, 4)})
        first, second = (model["one"],) * 2 if mode.startswith("siamese") else (model["one"], model["two"])
        optimizer = torch.optim.SGD(second.parameters(), lr=0.1)
        hook = summarycb.watch(model, verbose=False) if watch else None
        for _ in range(STEPS):
            optimizer.zero_grad()
            x = torch.rand(2, 3)
            (first(x) - second(x + 1)).square().sum().backward()
            optimizer.step()
        return everything(model, optimizer, []), hook

    summary = summary_of(loop)
    assert (summary.forward_macs, summary.backward_macs) == (2 * MACS, 2 * MACS)


def test_what_a_checkpoint_ran_before_the_observation_began_is_unknown() -> None:
    """An observation that begins between the forward and the backward."""
    model = nn.ModuleDict({"first": nn.Linear(3, 5), "head": nn.Linear(5, 4)})
    x = checkpoint(model["first"], torch.rand(2, 3, requires_grad=True), use_reentrant=True)
    with summarycb.observe(model) as observation:
        model["head"](x).sum().backward()
    summary: Any = observation.summary
    assert [note.kind for note in summary.notes] == ["missed"]
    head = 2 * 5 * 4
    assert {path: (m.calls, m.forward_macs) for path, m in summary.modules.items()} == {
        "": (0, None),
        "first": (1, None),
        "head": (1, head),
    }
    # the head's, by its weight and by its input, and the same of the first layer
    assert (summary.backward_macs, summary["first"].total.recompute_macs) == (2 * head + 2 * 2 * 3 * 5, 2 * 3 * 5)
    memory = summary.memory
    assert (summary.outside.forward_macs, memory.batch, memory.saved_activations) == (None, None, None)


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="it goes to the GPU by itself: test_cuda has that")
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
