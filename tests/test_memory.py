"""Memory of the step by kind: what is alive when, where the most is, and what was measured."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import summarycb
from summarycb.collect.memory import Allocator
from summarycb.step import KINDS, Memory, Moment
from summarycb.tree import ModelSummary
from tests.test_observe import FLOAT, known
from tests.trainings import Case


def moment(phase: str, module: str | None, **kinds: int) -> Moment:
    return Moment(phase, module, *[FLOAT * kinds.get(kind, 0) for kind in KINDS])  # type: ignore[arg-type]


def test_a_timeline_by_hand() -> None:
    """Linear(3, 4), ReLU, Linear(4, 2), mean of squares, SGD with momentum, a batch of 5; everything in floats of 4."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, w, b = torch.rand(5, 3), (3 * 4 + 4) + (4 * 2 + 2), 5 * 3
    with summarycb.observe(model) as observation:
        model(x).square().mean().backward()
        del x
        optimizer.step()
    memory = known(observation.summary).memory
    hidden, out = 5 * 4, 5 * 2
    assert memory.timeline == (
        moment("forward", None, parameters=w, batch=b),
        moment("forward", "0", parameters=w, batch=b, activations=hidden),
        moment("forward", "1", parameters=w, batch=b, activations=2 * hidden),
        # the first layer's own output has gone: the ReLU keeps its result
        moment("forward", "2", parameters=w, batch=b, activations=hidden + out),
        # the squares, until they have been summed, and the mean
        moment("forward", None, parameters=w, batch=b, activations=hidden + out + out + 1),
        # gradients: of the loss (1), of the mean, and of the squares, for which x, 2x and the product are made
        moment("backward", None, parameters=w, batch=b, activations=hidden + out + 1, temporaries=1 + 4 * out),
        # of the second layer's output, weight and bias, and of its input
        moment(
            "backward", "2", parameters=w, batch=b, gradients=10, activations=hidden + 1, temporaries=1 + out + hidden
        ),
        moment(
            "backward", "1", parameters=w, batch=b, gradients=10, activations=hidden + 1, temporaries=1 + hidden * 2
        ),
        moment("backward", "0", parameters=w, batch=b, gradients=26, activations=1, temporaries=1 + hidden),
        moment("optimizer", None, parameters=w, gradients=w, optimizer_state=w),
        moment("optimizer", None, parameters=w, gradients=w, optimizer_state=w),
    )
    assert memory.peak_at == memory.timeline[5]
    assert memory.peak == (26 + 15 + 31 + 41) * FLOAT


def test_a_timeline_ends_with_the_real_objects(case: Case) -> None:
    """After the step the kinds are what the model, its gradients and its optimizer hold, and the peak is above all."""
    model, optimizer = case.make()
    [(x, y)] = case.batches(1)
    with summarycb.observe(model) as observation:
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()
    memory = known(observation.summary).memory
    last = memory.timeline[-1]
    assert last.parameters == memory.parameters
    assert last.buffers == memory.buffers
    assert last.gradients == memory.gradients
    assert last.optimizer_state == memory.optimizer_state
    assert last.batch == memory.batch
    # a view of the model's output may still be about, but nothing that this step has put aside
    assert last.activations + last.weight_copies + last.temporaries == 0
    assert memory.peak == max(moment.total for moment in memory.timeline)
    phases = [moment.phase for moment in memory.timeline]
    assert phases == sorted(phases, key=["forward", "backward", "optimizer"].index)


def test_a_timeline_is_bounded_and_keeps_its_peak() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.act = nn.Linear(4, 4), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(1000):
                x = self.act(self.cell(x))
            return x.sum()

    model = Cell()
    with summarycb.observe(model) as observation:
        model(torch.rand(2, 4)).backward()
    memory = known(observation.summary).memory
    assert 128 < len(memory.timeline) <= 256 + 2
    weights = 4 * 4 + 4
    # the sums grow by 8 floats a Tanh until backward begins, and then shrink: gradients come and go
    in_forward = [moment.activations for moment in memory.timeline if moment.phase == "forward"]
    assert in_forward == sorted(in_forward)
    assert memory.saved_activations == (1000 * 2 * 4 + 1) * FLOAT  # what each Tanh has made, and the loss
    assert memory.peak_at in memory.timeline
    assert memory.peak is not None
    assert memory.peak > (1000 * 8 + 1 + weights + 8) * FLOAT


def test_state_and_gradients_from_before_the_step_are_there_all_the_time() -> None:
    model = nn.Linear(3, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 3)).sum().backward()
    optimizer.step()
    with summarycb.observe(model, optimizer) as observation:
        model(torch.rand(2, 3)).sum().backward()
        optimizer.step()
    memory = known(observation.summary).memory
    state = (2 * 16 + 2) * FLOAT  # two averages and, of each parameter, a counter
    assert {(m.parameters, m.gradients, m.optimizer_state) for m in memory.timeline} == {(64, 64, state)}


def test_low_precision_copies_of_weights_are_a_kind_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    with summarycb.observe(model) as observation:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.rand(2, 3)).float().sum()
        loss.backward()
    memory = known(observation.summary).memory
    # autocast copies weights and biases, keeps them until it is left, and backward needs the second weight alone
    assert max(m.weight_copies for m in memory.timeline) == 2 * (3 * 4 + 4 + 4 * 5 + 5)
    assert memory.weight_copies == 2 * (4 * 5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_recomputed_is_an_activation_and_not_saved(reentrant: bool) -> None:
    block = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 4))
    x = torch.rand(2, 4, requires_grad=True)
    with summarycb.observe(block) as observation:
        checkpoint(block, x, use_reentrant=reentrant).sum().backward()
    memory = known(observation.summary).memory
    # the input is the batch; the result is not needed, and gone as it has been summed
    assert memory.saved_activations == 1 * FLOAT
    again = [m.activations for m in memory.timeline if m.phase == "recompute"]
    # the Tanh's result and, while it is made, what it is made of; then the sum too
    assert max(again) == (1 + 2 * 32 + 2 * 32) * FLOAT


@pytest.mark.filterwarnings("ignore:Using backward")
def test_an_accumulated_gradient_is_a_gradient() -> None:
    """Out of place, as autograd does it where the gradient is to be differentiated, too."""
    model = nn.Linear(3, 4, bias=False)
    model(torch.rand(2, 3)).sum().backward()
    held = model.weight.grad
    with summarycb.observe(model) as observation:
        model(torch.rand(2, 3)).sum().backward(create_graph=True)
    memory = known(observation.summary).memory
    assert memory.gradients == 12 * FLOAT
    assert memory.timeline[-1].gradients == 2 * 12 * FLOAT  # the old one, which is held, and the sum
    assert held is not model.weight.grad
    model.weight.grad = None  # it is in a cycle


@pytest.mark.parametrize("trained", [False, True])
def test_a_batch_that_the_step_makes_is_a_batch(trained: bool) -> None:
    """Also one whose gradient is wanted, as for forces or an attack; what another module has computed is not."""
    first, second = nn.Linear(4, 3), nn.Linear(3, 2)
    with summarycb.observe(nn.ModuleList([first, second])) as observation:
        x = torch.rand(2, 4, requires_grad=trained)
        second(first(x)).sum().backward()
    assert observation.summary is not None
    memory = observation.summary.memory
    # x; between the two 2 x 3 values, and the loss
    assert (memory.batch, memory.saved_activations) == (2 * 4 * 4, 2 * 3 * 4 + 4)


def test_a_storage_that_grows() -> None:
    class Grows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            made = torch.empty(0)
            made.resize_(100)
            return x.sum() + made.fill_(1.0).sum()

    model = Grows()
    with summarycb.observe(model) as observation:
        model(torch.rand(5))
    memory = known(observation.summary).memory
    assert memory.peak_at == moment("forward", "", batch=5, activations=100 + 3)  # and three sums


def test_each_figure_says_how_it_is_known() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    real = summarycb.summarize(model, input_size=(2, 3), backward=True).memory
    simulated = summarycb.summarize(model, input_size=(2, 3), backward=True, device="meta").memory
    figures = ["parameters", "buffers", "gradients", "optimizer_state", "saved_activations", "weight_copies", "batch"]
    assert {name: real.basis(name) for name in [*figures, "peak", "allocator_peak", "unexplained"]} == {
        "parameters": "measured",
        "buffers": "measured",
        "gradients": "measured",
        "optimizer_state": "unavailable",  # no optimizer was there
        "saved_activations": "measured",
        "weight_copies": "measured",
        "batch": "measured",
        "peak": "derived",  # a sum, over what was measured
        "allocator_peak": "unavailable",  # the CPU's tells nothing
        "unexplained": "unavailable",
    }
    assert {simulated.basis(name) for name in figures} == {"derived", "unavailable"}
    assert {Memory().basis(name) for name in figures} == {"unavailable"}
    assert simulated.saved_activations == real.saved_activations


def test_an_allocator_tells_its_peak_when_the_step_has_raised_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no such device here: what the allocator says is put into its mouth."""
    said = iter([1000, 1500, 1000, 1000])
    monkeypatch.setattr(Allocator, "_stats", lambda self: next(said))
    assert Allocator([]).peak() == 1500
    assert Allocator([]).peak() is None  # the peak was before the step, so that of the step is not known
    monkeypatch.undo()
    assert Allocator([torch.zeros(1)]).peak() is None


def test_state_that_an_optimizer_resizes() -> None:
    class Resizes(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    self.state[parameter]["average"] = torch.empty(1).resize_(parameter.shape).zero_()

    model = nn.Linear(10, 100, bias=False)
    optimizer = Resizes(model.parameters(), lr=0.1)
    with summarycb.observe(model) as observation:
        model(torch.rand(2, 10)).sum().backward()
        optimizer.step()
    summary = known(observation.summary)
    assert summary.memory.optimizer_state == summary.memory.timeline[-1].optimizer_state == 1000 * FLOAT
    assert min(getattr(m, kind) for m in summary.memory.timeline for kind in KINDS) == 0
    assert ModelSummary.from_json(summary.to_json()) == summary


def test_what_grows_as_the_result_of_an_operation() -> None:
    class Grows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            made = torch.empty(0)
            torch.mul(x, 2.0, out=made)
            return made

    with summarycb.observe(model := Grows()) as observation:
        result = model(torch.rand(100))
    memory = known(observation.summary).memory
    assert result.shape == (100,)
    assert memory.peak_at == moment("forward", "", batch=100, activations=100)


def test_parameters_and_buffers_that_the_step_makes_are_these() -> None:
    """A lazy layer, and a buffer in whose place the forward puts a new one."""

    class Averages(nn.Module):
        average: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LazyLinear(4)
            self.register_buffer("average", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            out = self.layer(x)
            self.average = 0.9 * self.average + 0.1 * out.detach().mean(0)
            return out.sum()

    with summarycb.observe(model := Averages()) as observation:
        model(torch.rand(2, 3)).backward()
    memory = known(observation.summary).memory
    assert (memory.parameters, memory.buffers) == (16 * FLOAT, 4 * FLOAT)
    assert (memory.timeline[-1].parameters, memory.timeline[-1].buffers) == (16 * FLOAT, 4 * FLOAT)
    assert memory.saved_activations == 1 * FLOAT  # the loss


def test_several_backwards_say_which_one_the_saved_are_of() -> None:
    model = nn.Linear(3, 4)
    with summarycb.observe(model) as observation:
        model(torch.rand(2, 3)).square().sum().backward()
        model(torch.rand(5, 3)).square().sum().backward()
    summary = known(observation.summary)
    assert summary.memory.saved_activations == (5 * 4 + 1) * FLOAT
    assert [note.text for note in summary.notes if note.kind == "backwards"] == [
        "backward ran 2 times within the step; saved activations are those before the one that found the most"
    ]


def test_nothing_waits_for_a_garbage_collection() -> None:
    """The step over, the model goes as its last name does."""
    model = nn.Linear(3, 4)
    with summarycb.observe(model) as observation:
        model(torch.rand(2, 3)).sum().backward()
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()
    known(observation.summary)
