"""observe(): every number of a step derived by hand, every kind of input and output, and steps that go wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import summarycb
from summarycb.errors import SummaryError
from summarycb.specs import Opaque, TensorSpec
from summarycb.tree import Amounts, CallGroup, ModelSummary, Work, add
from tests.trainings import CASES, NOTHING, Block, Case, left_behind, loss_of, saved_by_autograd

FLOAT, LONG = 4, 8


def spec(*shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(shape, dtype, "cpu")


def known(summary: ModelSummary | None) -> ModelSummary:
    assert summary is not None
    assert summary.incomplete == ()
    return summary


def observed(model: nn.Module, *args: Any, **kwargs: Any) -> ModelSummary:
    with summarycb.observe(model) as observation:
        model(*args, **kwargs)
    return known(observation.summary)


def rows_sum_to_totals(summary: ModelSummary) -> None:
    """Own figures over all rows, the outside row with them, are the totals."""
    rows = [module for module in summary.root.walk() if module.shared_with is None]
    for name in Amounts._fields:
        assert add(*[getattr(row.own, name) for row in rows]) == getattr(summary.root.total, name)
    work, memory = summary.outside, summary.memory
    assert add(*[row.own.forward_macs for row in rows], work.forward_macs) == summary.forward_macs
    assert add(*[row.own.backward_macs for row in rows], work.backward_macs) == summary.backward_macs
    assert add(*[row.own.saved_activations for row in rows], work.saved_activations) == memory.saved_activations
    assert add(*[row.own.weight_copies for row in rows], work.weight_copies) == memory.weight_copies
    assert summary.root.total.gradients == memory.gradients
    assert summary.root.total.optimizer_state == memory.optimizer_state
    assert summary.root.total.parameter_bytes == memory.parameters
    assert summary.root.total.buffer_bytes == memory.buffers


def test_an_mlp_by_hand() -> None:
    """Linear(3, 4), ReLU, Linear(4, 2), mean of squares, SGD with momentum, a batch of 5 in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.rand(5, 3)
    with summarycb.observe(model) as observation:
        model(x).square().mean().backward()
        optimizer.step()
    summary = observation.summary
    assert summary is not None

    first, second = 3 * 4 + 4, 4 * 2 + 2
    assert (summary.total_params, summary.trainable_params, summary.total_buffers) == (first + second, 26, 0)
    assert [(path, m.own_params) for path, m in summary.modules.items()] == [("", 0), ("0", 16), ("1", 0), ("2", 10)]

    # forward: rows x in x out. backward: as much for the weight's gradient, and for the input's where it needs one
    assert summary["0"].own_forward_macs == 5 * 3 * 4
    assert summary["0"].own_backward_macs == 5 * 3 * 4
    assert summary["2"].own_forward_macs == 5 * 4 * 2
    assert summary["2"].own_backward_macs == 2 * (5 * 4 * 2)
    assert summary[""].forward_macs == 60 + 40
    assert summary[""].backward_macs == 60 + 80
    assert summary[""].own_forward_macs == summary["1"].forward_macs == 0
    assert (summary.forward_flops, summary.backward_flops) == (2 * 100, 2 * 140)
    assert summary.step_flops == summary.hardware_flops == 2 * (100 + 140)

    # saved for backward: the ReLU's output (its own backward, and the input of the second layer), the second layer's
    # output, by the square; the loss itself is outside. The first layer's output goes as soon as the ReLU has read it.
    assert [m.own_saved_activations for m in summary.modules.values()] == [0, 0, 5 * 4 * FLOAT, 5 * 2 * FLOAT]
    assert summary.outside == Work(0, 0, 0, 1 * FLOAT, 0)
    assert summary.memory.saved_activations == (20 + 10 + 1) * FLOAT

    assert summary.memory.batch == 5 * 3 * FLOAT
    assert summary.memory.parameters == summary.memory.gradients == summary.memory.optimizer_state == 26 * FLOAT
    assert [p.gradient for p in summary["0"].parameters] == [12 * FLOAT, 4 * FLOAT]
    assert [p.optimizer_state for p in summary["0"].parameters] == [12 * FLOAT, 4 * FLOAT]
    assert summary.memory.buffers == summary.memory.weight_copies == 0

    environment = summary.environment
    assert (environment.training, environment.device, environment.precision) == (True, "cpu", "float32")
    assert (environment.optimizer, environment.torch) == ("SGD", torch.__version__)
    assert (summary.observed, summary.optimizer_macs, summary.notes, summary.incomplete) == ("step", 0, (), ())
    work = Work(5 * 4 * 2, 2 * (5 * 4 * 2), 0, 5 * 2 * FLOAT, 0)
    assert summary["2"].call_groups == (CallGroup(1, (spec(5, 4),), spec(5, 2), work, work),)
    rows_sum_to_totals(summary)


def test_a_cnn_by_hand() -> None:
    """Conv2d(3, 8, 3) with padding, two BatchNorms of which one is frozen, dropout and a head; 4 images of 8 x 8."""
    case = CASES["cnn"]
    model, optimizer = case.make()
    [(x, y)] = case.batches(1)
    with summarycb.observe(model) as observation:
        loss_of(model(x), y).backward()
        optimizer.step()
    summary = observation.summary
    assert summary is not None

    conv = 4 * 8 * (8 * 8) * (3 * 3 * 3)  # images x channels out x places x kernel
    head = 4 * 8 * 5
    assert {path: m.forward_macs for path, m in summary.modules.items()} == {
        "": conv + head, "conv": conv, "norm": 0, "frozen": 0, "drop": 0, "head": head,
    }  # fmt: skip
    assert summary["conv"].backward_macs == conv  # of the weight; the images need no gradient
    assert summary["head"].backward_macs == 2 * head
    assert summary[""].own_forward_macs == 0  # relu and mean are the root's own

    assert {path: m.own_params for path, m in summary.modules.items()} == {
        "": 0, "conv": 8 * 27 + 8, "norm": 2 * 8, "frozen": 2 * 8, "drop": 0, "head": 8 * 5 + 5,
    }  # fmt: skip
    assert (summary.total_params, summary.trainable_params) == (224 + 16 + 16 + 45, 224 + 16 + 45)
    # running mean and variance of 8 floats, and a count of batches in int64, for each of the two
    assert summary.total_buffers == 2 * (8 + 8 + 1)
    assert summary.memory.buffers == 2 * (16 * FLOAT + LONG)
    assert (summary["norm"].training, summary["frozen"].training) == (True, False)
    # no gradient for the frozen one's weight and bias
    assert summary.memory.gradients == summary.memory.optimizer_state == 285 * FLOAT
    assert [p.gradient for p in summary["frozen"].parameters] == [0, 0]

    image = 4 * 8 * (8 * 8) * FLOAT
    # conv's output is norm's input; the ReLU's result, the root's own, is the frozen norm's; dropout keeps its noise
    assert summary["conv"].own_saved_activations == image
    assert summary["norm"].own_saved_activations == 2 * 8 * FLOAT  # the batch's mean and inverse deviation
    assert summary["frozen"].own_saved_activations == 0
    assert summary["drop"].own_saved_activations == image
    assert summary[""].own_saved_activations == image + 4 * 8 * FLOAT  # the ReLU's result, and the head's input
    assert summary.memory.batch == 4 * 3 * 8 * 8 * FLOAT
    rows_sum_to_totals(summary)


def test_a_gpt_by_hand() -> None:
    """Width 16, 4 heads of 4, 2 blocks, 50 tokens; 2 sequences of 10: every matrix product is counted once."""
    case = CASES["gpt"]
    model, optimizer = case.make()
    [(x, y)] = case.batches(1)
    with summarycb.observe(model, optimizer) as observation:
        loss_of(model(x), y).backward()
        optimizer.step()
    summary = observation.summary
    assert summary is not None
    tokens = 2 * 10
    linears = tokens * (16 * 48 + 16 * 16 + 16 * 64 + 64 * 16)
    attention = 2 * (
        2 * 4 * 10 * 10 * 4
    )  # QK^T and AV: sequences x heads x queries x keys x head width; full, not causal
    block = linears + attention
    head = tokens * 16 * 50
    assert summary["blocks.0"].forward_macs == summary["blocks.1"].forward_macs == block
    assert summary["blocks.0"].own_forward_macs == attention
    assert summary.forward_macs == 2 * block + head
    # twice the forward for linears, whose inputs all need gradients; attention: four products for two (dV, dP, dQ, dK)
    assert summary["blocks.0"].own_backward_macs == 2 * attention
    assert summary.backward_macs == 2 * summary.forward_macs
    # tied: the head's weight is the embedding's, counted there
    assert summary["head"].own_params == 0
    assert [p.shared_with for p in summary["head"].parameters] == ["tokens.weight"]
    per_block = (16 * 48 + 48) + (16 * 16 + 16) + (16 * 64 + 64) + (64 * 16 + 16) + 2 * 2 * 16
    assert summary.total_params == 50 * 16 + 10 * 16 + 2 * per_block
    assert [note.text for note in summary.notes if note.kind == "tied"] == [
        "head.weight is tokens.weight, counted there"
    ]
    # AdamW: two moments, and a step count of 4 bytes a tensor (12 tensors a block, 2 embeddings)
    assert summary.memory.optimizer_state == 2 * summary.total_params * FLOAT + 4 * (2 * 12 + 2)
    rows_sum_to_totals(summary)


def test_an_lstm_by_hand() -> None:
    """Two layers of 12 units on 8 inputs, 3 sentences of 6: four gates, from the input and from the state."""
    case = CASES["lstm"]
    model, optimizer = case.make()
    [(x, y)] = case.batches(1)
    with summarycb.observe(model, optimizer) as observation:
        loss_of(model(x), y).backward()
        optimizer.step()
    summary = observation.summary
    assert summary is not None
    gates = 3 * 6 * 4 * 12 * (8 + 12) + 3 * 6 * 4 * 12 * (12 + 12)
    assert summary["lstm"].forward_macs == gates
    assert summary["head"].forward_macs == 3 * 12 * 5
    assert summary["lstm"].own_params == 48 * (8 + 12 + 2) + 48 * (12 + 12 + 2)
    rows_sum_to_totals(summary)


def test_figures_sum(case: Case) -> None:
    model, optimizer = case.make()
    [(x, y)] = case.batches(1)
    with summarycb.observe(model, optimizer) as observation:
        loss_of(model(x), y).backward()
        optimizer.step()
    assert observation.summary is not None
    assert observation.summary.forward_macs is not None
    assert observation.summary.backward_macs is not None
    rows_sum_to_totals(observation.summary)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_saved_activations_are_what_autograd_saves(case: Case, mode: str) -> None:
    model, _ = case.make()
    if mode == "eval":
        model.eval()
    [(x, y)] = case.batches(1)
    saved = saved_by_autograd(model, x, y)
    torch.manual_seed(1)
    with summarycb.observe(model) as observation:
        loss_of(model(x), y).backward()
    assert observation.summary is not None
    assert observation.summary.memory.saved_activations == saved


def test_a_peak_by_hand() -> None:
    """Two layers without bias: what is alive at once is known at every operation."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    x = torch.rand(5, 3)
    with summarycb.observe(model) as observation:
        model(x).sum().backward()
    memory = observation.summary.memory  # type: ignore[union-attr]
    # alive in the backward of the second layer: both weights, the batch, the hidden layer, the loss and its gradient
    # (which the second output's gradient is a view of), and then that layer's two results: its weight's gradient and
    # the hidden layer's. The second output went when it was summed.
    weights, given, hidden = 12 + 8, 15, 20
    assert memory.peak == (weights + given + hidden + 1 + 1 + 8 + 20) * FLOAT
    assert memory.peak_at is not None
    assert (memory.peak_at.phase, memory.peak_at.module) == ("backward", "1")


def test_batches_of_different_shapes_are_kept_apart() -> None:
    """Calls are grouped by what they were given and gave; the first stands for the module."""
    model = nn.Linear(3, 2)
    with summarycb.observe(model) as observation:
        for rows in (1, 4, 4):
            model(torch.zeros(rows, 3))
    module = observation.summary[""]  # type: ignore[index]
    one, four = Work(1 * 3 * 2), Work(2 * 4 * 3 * 2)
    assert module.call_groups == (
        CallGroup(1, (spec(1, 3),), spec(1, 2), one, one),
        CallGroup(2, (spec(4, 3),), spec(4, 2), four, four),
    )
    assert (module.calls, module.inputs, module.forward_macs) == (3, (spec(1, 3),), 9 * 3 * 2)


# Structures


def test_a_module_that_is_called_often_and_one_that_is_never() -> None:
    class Repeats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(4):
                x = self.used(x)
            return x

    summary = observed(Repeats(), torch.zeros(2, 3))
    assert (summary["used"].calls, summary["used"].forward_macs) == (4, 4 * 2 * 3 * 3)
    assert [(g.calls, g.inputs, g.outputs) for g in summary["used"].call_groups or ()] == [
        (4, (spec(2, 3),), spec(2, 3))
    ]
    assert (summary["unused"].calls, summary["unused"].forward_macs, summary["unused"].call_groups) == (0, 0, ())
    assert [note.text for note in summary.notes] == ["never called as a module: unused"]


def test_a_list_of_parameters_is_not_said_to_be_never_called() -> None:
    """It has parameters of its own, and no forward that anybody could call."""

    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each = nn.ParameterList([torch.ones(3), torch.ones(3)])
            self.named = nn.ParameterDict({"last": torch.ones(3)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.each[0] * self.each[1] * self.named["last"]

    summary = observed(Scales(), torch.zeros(2, 3))
    assert ([m.own_params for m in summary.modules.values()], summary.notes) == ([0, 6, 3], ())


def test_a_module_in_two_places() -> None:
    """The first place owns it, work and parameters; the second names the first."""
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))
    summary = observed(model, torch.zeros(2, 3))
    assert list(summary.modules) == ["", "0", "1", "2", "2.0"]
    second = summary.modules["2.0"]
    assert (second.shared_with, second.calls, second.own_params, second.own_forward_macs) == ("0", None, 0, 0)
    assert summary["2.0"] is summary["0"]
    assert (summary["0"].calls, summary["0"].forward_macs) == (2, 2 * (2 * 3 * 3))
    assert (summary.total_params, summary.forward_macs) == (12, 36)


def test_a_module_that_holds_its_parent() -> None:
    """A cycle in the tree ends where it closes."""

    class Child(nn.Module):
        def __init__(self, parent: nn.Module) -> None:
            super().__init__()
            self.parent, self.linear = parent, nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = Child(self)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.child(x)

    summary = observed(Parent(), torch.zeros(2, 3))
    assert [(path, module.shared_with) for path, module in summary.modules.items()] == [
        ("", None), ("child", None), ("child.parent", ""), ("child.linear", None),
    ]  # fmt: skip
    assert (summary.total_params, summary.forward_macs) == (12, 18)


def test_a_module_that_calls_itself() -> None:
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor, depth: int = 0) -> torch.Tensor:
            return self(self.linear(x), depth + 1) if depth < 3 else x

    summary = observed(Recursive(), torch.zeros(2, 3))
    assert (summary[""].calls, summary["linear"].calls, summary.forward_macs) == (4, 3, 3 * 18)


def test_a_very_deep_model() -> None:
    """Deeper than Python's recursion: the package walks with a stack of its own."""
    model: nn.Module = nn.Linear(2, 2)
    for _ in range(300):
        model = nn.Sequential(model)
    with summarycb.observe(model) as observation:
        model.get_submodule(".".join(["0"] * 300))(torch.zeros(1, 2))
    assert observation.summary is not None
    assert (observation.summary.incomplete, observation.summary.forward_macs) == ((), 4)


def test_a_parameter_that_is_used_without_its_module() -> None:
    """``F.linear`` with another module's weight: the work is of the module that ran it."""

    class Borrower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.owner = nn.Linear(3, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.owner.weight)

    summary = observed(Borrower(), torch.zeros(2, 3))
    assert (summary[""].own_forward_macs, summary["owner"].own_forward_macs, summary["owner"].calls) == (24, 0, 0)


def test_the_work_outside_of_modules_has_its_own_row() -> None:
    """A projection in the loop and a loss with a matrix product."""
    model = nn.Linear(3, 4, bias=False)
    x, mix = torch.rand(2, 3), torch.rand(4, 4, requires_grad=True)
    with summarycb.observe(model) as observation:
        (model(x @ torch.rand(3, 3)) @ mix).sum().backward()
    summary = observation.summary
    assert summary is not None
    assert summary.outside.forward_macs == 2 * 3 * 3 + 2 * 4 * 4
    assert summary.outside.backward_macs == 2 * (2 * 4 * 4)
    assert (summary[""].forward_macs, summary[""].backward_macs) == (24, 24)
    assert summary.forward_macs == 24 + 18 + 32
    rows_sum_to_totals(summary)


# Checkpointing


class Checkpointed(nn.Module):
    """Two blocks whose forward is run again in backward."""

    def __init__(self, use: bool | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(16, 4) for _ in range(2))
        self.use = use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x) if self.use is None else checkpoint(block, x, use_reentrant=self.use)
        return x


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    """The model's figures are those of the plain model; the second forward is recomputation, of the module it is of."""

    def train(use: bool | None) -> tuple[ModelSummary, list[torch.Tensor]]:
        torch.manual_seed(0)
        model = Checkpointed(use)
        x = torch.rand(2, 10, 16, requires_grad=True)
        with summarycb.observe(model) as observation:
            model(x).square().mean().backward()
        assert observation.summary is not None
        assert observation.summary.incomplete == ()
        return observation.summary, [p.grad for p in model.parameters() if p.grad is not None]

    (plain, gradients), (summary, recomputed) = train(None), train(reentrant)
    assert all(torch.equal(a, b) for a, b in zip(gradients, recomputed, strict=True))
    assert summary.step_flops == plain.step_flops
    for path, module in plain.modules.items():
        assert (summary[path].forward_macs, summary[path].backward_macs, summary[path].calls) == (
            module.forward_macs, module.backward_macs, module.calls,
        )  # fmt: skip
    block = plain["blocks.0"].forward_macs
    assert block is not None
    assert summary["blocks.0"].total.recompute_macs == plain["blocks.0"].total.recompute_macs + block  # type: ignore[operator]
    assert summary.hardware_flops == plain.hardware_flops + 2 * 2 * block  # type: ignore[operator]
    assert summary.memory.saved_activations < plain.memory.saved_activations  # type: ignore[operator]
    rows_sum_to_totals(summary)


WRONG_CONTEXTS: dict[str, tuple[dict[str, Any], str]] = {
    "framework": ({"framework": 3}, "framework must be a name or None, not 3"),
    "strategy": ({"strategy": ["ddp"]}, r"strategy must be a name or None, not \['ddp'\]"),
    "no process": ({"world_size": 0}, "world_size must be None or an integer from 1 on, not 0"),
    "a bool": ({"world_size": True}, "world_size must be None or an integer from 1 on, not True"),
    "a text": ({"world_size": "two"}, "world_size must be None or an integer from 1 on, not 'two'"),
}


@pytest.mark.parametrize("wrong", list(WRONG_CONTEXTS))
def test_a_circumstance_that_could_not_be_stored_raises_at_once(wrong: str) -> None:
    """A summary with it would be written, and never be read again."""
    context, message = WRONG_CONTEXTS[wrong]
    for arms in (summarycb.observe, summarycb.watch):
        with pytest.raises(SummaryError, match=f"^{message}$"):
            arms(nn.Linear(3, 4), **context)


# Steps that go wrong


class Breaks(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.before, self.after, self.error = nn.Linear(3, 4), nn.Linear(4, 2), error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        raise self.error


@pytest.mark.parametrize(
    "error", [ValueError("the user's"), KeyboardInterrupt(), SystemExit(3), torch.OutOfMemoryError("no more")], ids=repr
)
def test_an_error_of_the_step_goes_through(error: BaseException) -> None:
    """Unchanged, and nothing stays behind; what had been seen is in the summary, with the reason and the module."""
    model = nn.Sequential(nn.Identity(), Breaks(error))
    observation = summarycb.observe(model)
    with pytest.raises(type(error)) as raised, observation:
        model(torch.zeros(2, 3))
    assert raised.value is error
    assert left_behind(model) == NOTHING
    summary = observation.summary
    assert summary is not None
    assert summary.incomplete == (f"the step raised {type(error).__name__} in 1",)
    assert (summary["1.before"].calls, summary["1.before"].forward_macs, summary["1.after"].calls) == (1, 24, 0)
    assert summary.total_params == 16 + 10


def test_an_error_in_backward_goes_through() -> None:
    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            raise ValueError("the user's")

    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    observation = summarycb.observe(model)
    with pytest.raises(ValueError, match=r"^the user's$"), observation:
        model[1](Refuses.apply(model[0](torch.zeros(2, 3)))).sum().backward()
    assert left_behind(model) == NOTHING
    assert observation.summary is not None
    assert (observation.summary.observed, observation.summary["1"].backward_macs) == ("step", 2 * (2 * 4 * 2))
    assert observation.summary.incomplete == ("the step raised ValueError",)


def test_an_error_that_the_model_handles_is_not_the_steps() -> None:
    """Try one branch, fall back to the other: an everyday pattern that is no failure."""

    class Falls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(9, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.wide(x)
            except RuntimeError:
                return self.narrow(x)

    summary = observed(Falls(), torch.zeros(4, 3))
    with pytest.raises(KeyError), summarycb.observe(falls := Falls()) as observation:
        raise KeyError(falls(torch.zeros(4, 3)).shape)
    assert observation.summary is not None
    assert observation.summary.incomplete == ("the step raised KeyError",)  # not the one that was handled
    assert (summary["wide"].calls, summary["narrow"].calls, summary.forward_macs) == (1, 1, 24)
    assert [(g.calls, g.inputs, g.outputs) for g in summary["wide"].call_groups or ()] == [
        (1, (spec(4, 3),), Opaque("not returned"))
    ]


def test_an_observation_is_entered_once() -> None:
    model = nn.Linear(2, 2)
    observation = summarycb.observe(model)
    with observation:
        with pytest.raises(SummaryError, match="can be entered once"):
            observation.start()
        model(torch.zeros(1, 2))
    with pytest.raises(SummaryError, match="can be entered once"), observation:
        pass
    assert left_behind(model) == NOTHING


def test_the_optimizers_that_are_counted() -> None:
    """One that steps and owns a parameter, one that is named; not a stranger's."""
    torch.manual_seed(0)
    model, other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.Linear(2, 2)
    first = torch.optim.Adam(model[0].parameters())
    named = torch.optim.SGD(model[1].parameters(), momentum=0.9)
    stranger = torch.optim.Adam(other.parameters())
    for optimizer in (named, stranger):  # they have state before the step
        other(model(torch.rand(2, 3))).sum().backward()
        optimizer.step()
    with summarycb.observe(model, named) as observation:
        model(torch.rand(2, 3)).sum().backward()
        first.step()
    summary = observation.summary
    assert summary is not None
    assert summary.environment.optimizer == "Adam, SGD"
    assert summary["0"].total.optimizer_state == 2 * 16 * FLOAT + 2 * FLOAT
    assert summary["1"].total.optimizer_state == 10 * FLOAT


def test_an_optimizer_that_has_not_stepped_yet() -> None:
    """What its state will be is unknown, not 0; one without any state that has stepped has none."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    idle, plain = torch.optim.Adam(model[0].parameters()), torch.optim.SGD(model[1].parameters())
    with summarycb.observe(model, [idle, plain]) as observation:
        model(torch.rand(2, 3)).sum().backward()
        plain.step()
    summary = observation.summary
    assert summary is not None
    assert summary.incomplete == ()
    assert [summary[path].total.optimizer_state for path in ("0", "1")] == [None, 0]
    assert summary.memory.optimizer_state is None


def test_no_optimizer_seen_is_unknown_not_zero() -> None:
    model = nn.Linear(2, 2)
    with summarycb.observe(model) as observation:
        model(torch.zeros(1, 2)).sum().backward()
    memory = observation.summary.memory  # type: ignore[union-attr]
    assert (memory.gradients, memory.optimizer_state) == (6 * FLOAT, None)


def test_a_forward_without_backward() -> None:
    """What was not observed is unknown."""
    summary = observed(nn.Linear(3, 4), torch.zeros(2, 3))
    assert (summary.observed, summary.forward_macs, summary.backward_macs, summary.step_flops) == (
        "forward", 24, None, None,
    )  # fmt: skip
    assert summary.memory.saved_activations is None


def test_nothing_ran() -> None:
    """An empty block: zero calls of everything, said once."""
    model = nn.Sequential(nn.Linear(3, 4))
    with summarycb.observe(model) as observation:
        pass
    summary = observation.summary
    assert summary is not None
    assert (summary[""].calls, summary["0"].calls, summary.total_params, summary.forward_macs) == (0, 0, 16, 0)


def test_context_that_the_caller_knows() -> None:
    model = nn.Linear(2, 2)
    with summarycb.observe(model, framework="mine", strategy="ddp", world_size=4) as observation:
        model(torch.zeros(1, 2))
    environment = observation.summary.environment  # type: ignore[union-attr]
    assert (environment.framework, environment.strategy, environment.world_size) == ("mine", "ddp", 4)


def test_an_operation_without_a_formula_is_unknown_where_it_ran() -> None:
    """Unknown, named, and never 0; the siblings keep their numbers."""

    @torch.library.custom_op("summarycb_test_observe::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    class Mystery(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return mystery(x)

    summary = observed(nn.Sequential(nn.Linear(3, 4), Mystery()), torch.zeros(2, 3))
    assert (summary["0"].forward_macs, summary["1"].forward_macs, summary.forward_macs) == (24, None, None)
    [note] = summary.notes
    assert note.kind == "unknown"
    assert "summarycb_test_observe.mystery" in note.text
    assert "forward of 1" in note.text


def test_a_lazy_module_gets_its_shape_in_the_step() -> None:
    """The parameters are those after the first forward."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(4))
    with summarycb.observe(model) as observation:
        model(torch.rand(2, 3)).sum().backward()
    summary = observation.summary
    assert summary is not None
    assert (summary.incomplete, summary.total_params, summary.forward_macs) == ((), 16, 24)
    assert summary.memory.gradients == 16 * FLOAT


def test_no_value_of_a_tensor_is_stored() -> None:
    """Only names, shapes, dtypes and counts leave: a secret in the batch is in no form of the summary."""
    secret = 123456.7890625
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(secret)
    summary = observed(model, torch.full((1, 2), secret))
    assert "123456" not in summary.to_json() + str(summary) + repr(summary)


def test_gradients_and_state_that_are_views_of_one_bucket_count_their_own_part() -> None:
    """As DistributedDataParallel(gradient_as_bucket_view=True) makes them."""
    model = nn.Linear(3, 2)
    bucket = torch.zeros(3 * 2 + 2)
    model.weight.grad, model.bias.grad = bucket[:6].view(2, 3), bucket[6:]
    with summarycb.observe(model) as observation:
        model(torch.rand(4, 3)).sum().backward()
    assert observation.summary is not None
    assert [p.gradient for p in observation.summary.root.parameters] == [FLOAT * 6, FLOAT * 2]
    assert observation.summary.memory.gradients == FLOAT * 8


def test_no_value_and_no_path_is_stored() -> None:
    """Only names, shapes, dtypes, devices and counts: not what an ``extra_repr``, a key or an exception writes out."""

    class Telling(nn.Module):
        def __init__(self, said: str) -> None:
            super().__init__()
            self.said = said

        def extra_repr(self) -> str:
            return self.said

        def forward(self, batch: dict[Any, torch.Tensor]) -> torch.Tensor:
            return sum(batch.values(), torch.zeros(()))

    model = nn.ModuleList([Telling("scale=tensor([0.5]), p=1"), Telling("vocabulary=/home/someone/secret.txt, p=0.1")])
    with summarycb.observe(model) as observation:
        model[0]({torch.tensor(1.5): torch.rand(2), 7: torch.rand(2), "x": torch.rand(2)})
    assert observation.summary is not None
    assert [module.config for module in observation.summary.root.children] == ["", "p=0.1"]
    assert observation.summary["0"].inputs == ({"Tensor": spec(2), "7": spec(2), "x": spec(2)},)


def test_a_module_that_the_forward_adds_is_said() -> None:
    class Growing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.late = nn.Linear(3, 2)
            return self.late(x)

    model = Growing()
    with summarycb.observe(model) as observation:
        model(torch.rand(4, 3))
    assert observation.summary is not None
    assert observation.summary.incomplete == (
        "modules were added or taken away during the step; the ones before it are shown",
    )


def test_a_module_whose_getattr_raises() -> None:
    class Broken(nn.Linear):
        def __getattr__(self, name: str) -> Any:
            if name in ("weight", "bias"):
                return super().__getattr__(name)
            raise RuntimeError(name)

    summary = observed(nn.Sequential(Broken(3, 2)), torch.rand(4, 3))
    assert summary.total_params == 3 * 2 + 2
    assert summary["0"].type_name == "Broken"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention() -> None:
    """It compiles itself unless it is told not to, and cannot do so beneath a dispatch mode."""
    from torch.nn.attention.flex_attention import flex_attention

    class Attention(nn.Module):
        def forward(self, q: torch.Tensor) -> torch.Tensor:
            out = flex_attention(q, q, q)
            assert isinstance(out, torch.Tensor)
            return out

    with torch.no_grad():
        summary = observed(Attention(), torch.rand(1, 2, 8, 4))
    assert summary.forward_macs == 2 * (2 * 8 * 8 * 4)  # two heads, both products of 8 x 8 scores over 4 features


class Functional(nn.Module):
    """A checkpoint of a function that calls no module: two products of 3 x 4 x 4, after a layer of as many."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layer, self.weight, self.reentrant = nn.Linear(4, 4), nn.Parameter(torch.rand(4, 4)), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def products(y: torch.Tensor) -> torch.Tensor:
            return (y @ self.weight).tanh() @ self.weight

        return checkpoint(products, self.layer(x), use_reentrant=self.reentrant)  # type: ignore[no-any-return]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_function_is_recomputed_where_it_was_called(reentrant: bool) -> None:
    macs = 3 * 4 * 4
    model = Functional(reentrant)
    with summarycb.observe(model) as observation:
        model(torch.rand(3, 4)).sum().backward()
    summary = observation.summary
    assert summary is not None
    own = summary[""].own
    assert (own.forward_macs, own.backward_macs) == (2 * macs, 2 * 2 * macs)
    # what is not reentrant ends with the last tensor that is asked for: the second product's input
    assert own.recompute_macs == (2 if reentrant else 1) * macs
    assert (summary["layer"].own_forward_macs, summary["layer"].own_backward_macs) == (macs, macs)
    assert summary.outside.backward_macs == 0


@pytest.mark.parametrize("inside", [False, True])
def test_the_backward_of_a_backward_is_of_the_modules(inside: bool) -> None:
    """A gradient penalty, or the forces of an energy: W2 tanh(W1 x), and the square of its gradient by x."""

    class Forces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forces(self.net(x), x) if inside else self.net(x)

    def forces(energy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return found

    model, x = Forces(), torch.rand(3, 4, requires_grad=True)
    with summarycb.observe(model) as observation:
        found = model(x) if inside else forces(model(x), x)
        found.square().sum().backward()
    summary = observation.summary
    assert summary is not None
    first, second = 3 * 4 * 5, 3 * 5 * 1
    assert summary.forward_macs == first + second
    assert (summary.outside.backward_macs, summary[""].own_backward_macs) == (0, 0)
    # dx = dh W1, with dh = dy W2 * tanh'. Of dx: its gradients by dh and by W1, and by W2; of tanh', which is of W1 x:
    # the gradient by h, and of it those by W1 and by x
    assert summary["net.0"].own_backward_macs == first + 2 * first + 2 * first
    assert summary["net.2"].own_backward_macs == second + second


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_frozen_scripted_module() -> None:
    """It has not even a mode; what it computes is its own, for its modules' calls are not seen."""
    scripted = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(4, 5)).eval()))
    summary = observed(nn.Sequential(scripted, nn.Linear(5, 2)), torch.rand(3, 4))
    assert (summary["0"].own_forward_macs, summary["0"].training) == (3 * 4 * 5, None)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_module_says_that_its_calls_are_not_seen() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4)))
    summary = observed(nn.Sequential(nn.Linear(4, 4), scripted), torch.rand(3, 4))
    assert [note.text for note in summary.notes] == ["calls within 1 are not seen: it has their work"]
    assert summary["1"].own_forward_macs == 2 * 3 * 4 * 5
