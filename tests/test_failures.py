"""When the step raises: the error goes through unchanged, and the partial summary says where, on what and with what."""

from __future__ import annotations

import contextlib
import gc
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import summarycb
from summarycb.specs import TensorSpec
from summarycb.step import Failure, Holder, Moment
from tests.trainings import NOTHING, left_behind

FLOAT = 4
ROWS = 8
BATCH = ROWS * 6 * FLOAT


def tensor(*shape: int) -> TensorSpec:
    return TensorSpec(shape, "float32", "cpu")


class Block(nn.Module):
    """Linear(6, 5), ReLU, then Linear(given, 6); ``then`` runs in between."""

    def __init__(self, given: int = 5, then: Callable[[torch.Tensor], torch.Tensor] = torch.relu) -> None:
        super().__init__()
        self.up, self.down, self.then = nn.Linear(6, 5), nn.Linear(given, 6), then

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.then(self.up(x)))


class Net(nn.Module):
    def __init__(self, *blocks: Block) -> None:
        super().__init__()
        self.h = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.h:
            x = block(x)
        return x


def observe(model: nn.Module, run: Callable[[], object], error: type[BaseException]) -> tuple[Any, BaseException]:
    """The summary of a step that raises, and what it has raised."""
    with pytest.raises(error) as raised, summarycb.observe(model) as observation:
        run()
    assert left_behind(model) == NOTHING
    assert observation.summary is not None
    assert summarycb.ModelSummary.from_json(observation.summary.to_json()) == observation.summary
    return observation.summary, raised.value


# a block: Linear(6, 5) has 35 elements, Linear(5, 6) has 36
UP, DOWN = 35 * FLOAT, 36 * FLOAT


def test_a_mismatch_of_dimensions_is_read_off() -> None:
    """The module, what led to it, what it was given, its weights, and the operation with all its operands."""
    model = Net(Block(), Block(given=7))
    x = torch.rand(ROWS, 6)
    summary, _ = observe(model, lambda: model(x), RuntimeError)
    # the first block's weights, and Linear(6, 5) and Linear(7, 6) of the second
    weights = UP + DOWN + UP + (7 * 6 + 6) * FLOAT
    # of each block the ReLU's result, for its input nobody keeps; and the first block's result
    made = ROWS * (5 + 6 + 5) * FLOAT
    assert summary.failure == Failure(
        error="RuntimeError",
        phase="forward",
        calls=("", "h.1", "h.1.down"),
        inputs=(tensor(ROWS, 5),),
        operation="aten.addmm.default",
        operands=(tensor(6), tensor(ROWS, 5), tensor(7, 6)),
        alive=Moment("forward", "h.1.down", weights, 0, 0, 0, made, 0, BATCH, 0),
    )
    assert summary.failure.module == "h.1.down"
    assert [(p.name, p.shape) for p in summary["h.1.down"].parameters] == [("weight", (6, 7)), ("bias", (6,))]
    lines = summary.to_text(depth=0).splitlines()
    assert lines[:4] == [
        "Net",
        "failed  RuntimeError in the forward: h.1.down (Linear) · called by Net → h.1 · given [8, 5]",
        "        with weight [6, 7] · bias [6] · aten.addmm.default of ([6], [8, 5], [7, 6])",
        "        alive 1.289 KiB: weights 616 B · batch 192 B · activations 512 B",
    ]
    assert "incomplete: the step raised RuntimeError in h.1.down" in summary.to_text()


def test_types_that_do_not_fit_are_read_off() -> None:
    """Shapes alone would not say what is wrong; equal types and devices are not worth a word."""
    model = Net(Block())
    summary, _ = observe(model, lambda: model(torch.rand(ROWS, 6, dtype=torch.float64)), RuntimeError)
    assert summary.to_text(depth=0).splitlines()[1:4] == [
        "failed  RuntimeError in the forward: h.0.up (Linear) · called by Net → h.0 · given [8, 6]",
        "        with weight [5, 6] · bias [5] · aten.addmm.default of ([5], [8, 6], [6, 5])",
        "        of float32, float64, float32 · alive 668 B: weights 284 B · batch 384 B",
    ]
    summary, _ = observe(model, lambda: model(torch.rand(ROWS, 6, device="meta")), RuntimeError)
    assert " ([5], [8, 6], [6, 5])\n        of cpu, meta, cpu · alive " in summary.to_text(depth=0)


def test_an_error_of_the_root_names_it_once() -> None:
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError

    model = Root()
    summary, _ = observe(model, lambda: model(torch.rand(2)), ValueError)
    assert (
        summary.to_text().splitlines()[1]
        == "failed  ValueError in the forward: Root · given [2] · alive 8 B: batch 8 B"
    )


def test_the_error_is_the_users() -> None:
    """The same object, with nothing added to it; and what it holds is freed with it."""
    error = ValueError("the user's")
    held: list[weakref.ref[Any]] = []

    def fail(x: torch.Tensor) -> torch.Tensor:
        held.append(weakref.ref(x.untyped_storage()))
        raise error

    model = Net(Block(then=fail))
    summary, raised = observe(model, lambda: model(torch.rand(ROWS, 6)), ValueError)
    assert raised is error
    assert (error.__cause__, error.__context__, getattr(error, "__notes__", [])) == (None, None, [])
    assert (summary.failure.error, summary.failure.calls, summary.failure.operation) == (
        "ValueError",
        ("", "h.0"),
        None,
    )
    assert "the user's" not in summary.to_json() + summary.to_text()
    error.__traceback__ = None
    del raised
    gc.collect()
    assert held[0]() is None


def test_an_exhausted_memory_says_what_holds_it() -> None:
    """A real allocation that cannot be met: what is alive by kind, and the ten modules that hold most of it."""

    def too_much(x: torch.Tensor) -> torch.Tensor:
        return x + torch.empty(2**50)

    model = Net(*[Block() for _ in range(5)], Block(then=too_much))
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # so that gradients and state are there as the step begins
    with pytest.raises(RuntimeError, match="can't allocate"), summarycb.observe(model, optimizer) as observation:
        model(torch.rand(ROWS, 6))
    assert observation.summary is not None
    failure = observation.summary.failure
    assert failure is not None
    assert (failure.error, failure.out_of_memory, failure.calls, failure.operation) == (
        "RuntimeError", True, ("", "h.5"), "aten.empty.memory_format",
    )  # fmt: skip
    # of each weight the value, the gradient and two moments, and a counter for each of its two tensors
    up, down = 4 * UP + 2 * FLOAT, 4 * DOWN + 2 * FLOAT
    # Linear(6, 5)'s result is the ReLU's input, which nobody keeps, and in the last block a local of the frame
    assert failure.holders == tuple(
        Holder(path, size)
        for path, size in [
            *[(f"h.{i}.down", down + ROWS * 6 * FLOAT) for i in range(5)],
            ("h.5.up", up + ROWS * 5 * FLOAT),
            ("h.5.down", down),
            *[(f"h.{i}.up", up) for i in range(3)],
        ]
    )
    assert failure.alive is not None
    weights = 6 * (UP + DOWN)
    made = ROWS * (5 * (5 + 6) + 5) * FLOAT
    assert failure.alive == Moment("forward", "h.5", weights, 0, weights, 2 * weights + 24 * FLOAT, made, 0, BATCH, 0)
    text = " ".join(observation.summary.to_text().split())
    assert "most held by h.0.down 776 B · h.1.down 776 B" in text


def test_an_interrupt_says_where() -> None:
    """torch calls no hook on the way out of a KeyboardInterrupt."""

    def interrupt(x: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    model = Net(Block(), Block(then=interrupt))
    summary, _ = observe(model, lambda: model(torch.rand(ROWS, 6)), KeyboardInterrupt)
    failure = summary.failure
    assert (failure.error, failure.phase, failure.calls) == ("KeyboardInterrupt", "forward", ("", "h.1"))
    assert failure.inputs == (tensor(ROWS, 6),)
    assert failure.alive.activations == ROWS * (5 + 6 + 5) * FLOAT


def test_an_error_of_the_loss_is_of_no_module() -> None:
    model = Net(Block())

    def run() -> None:
        nn.functional.nll_loss(model(torch.rand(ROWS, 6)), torch.zeros(ROWS + 1, dtype=torch.long))

    summary, _ = observe(model, run, ValueError)
    assert summary.failure == Failure(
        error="ValueError",
        phase="forward",
        # the ReLU's result, the output, and the classes, int64
        alive=Moment("forward", None, UP + DOWN, 0, 0, 0, ROWS * (5 + 6) * FLOAT + 9 * 8, 0, BATCH, 0),
    )
    assert summary.to_text().splitlines()[1].startswith("failed  ValueError in the forward: outside any module · alive")


def differentiated_by(backward: Callable[[Any], Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The identity, whose backward is Python."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return backward(gradient)  # type: ignore[no-any-return]

    return Function.apply  # type: ignore[no-any-return]


def test_an_error_in_the_backward_is_of_the_module_whose_it_is() -> None:
    wrong = differentiated_by(lambda gradient: torch.mm(gradient, gradient))  # operands that do not fit
    model = Net(Block(), Block(then=wrong))
    summary, _ = observe(model, lambda: model(torch.rand(ROWS, 6)).sum().backward(), RuntimeError)
    failure = summary.failure
    assert (failure.error, failure.phase, failure.calls) == ("RuntimeError", "backward", ("", "h.1"))
    assert (failure.operation, failure.operands) == ("aten.mm.default", (tensor(ROWS, 5), tensor(ROWS, 5)))
    assert failure.alive.gradients == DOWN  # of the last layer alone


@pytest.mark.parametrize("reentrant", [True, False])
def test_an_error_in_what_a_checkpoint_runs_again(reentrant: bool) -> None:
    runs = 0

    def second_time(x: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        if runs == 2:
            raise ValueError("the user's")
        return x.relu()

    block = Block(then=second_time)
    model = Net(block)

    def run() -> None:
        x = torch.rand(ROWS, 6, requires_grad=True)
        checkpoint(block, x, use_reentrant=reentrant).sum().backward()

    summary, _ = observe(model, run, ValueError)
    assert (summary.failure.phase, summary.failure.calls) == ("recompute", ("h.0",))


def test_a_module_that_did_not_return_has_given_nothing_back() -> None:
    """Not None, which a module may return."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(7, 6))
    summary, _ = observe(model, lambda: model(torch.rand(ROWS, 6)), RuntimeError)
    assert {path: str(module.outputs) for path, module in summary.modules.items()} == {
        "": "not returned",
        "0": "[8, 5]",
        "1": "not returned",
    }
    assert "compute until it failed: forward" in summary.to_text()


def test_whose_a_backward_was_that_ran_no_operation_is_not_said() -> None:
    model = Net(Block(then=differentiated_by(fail)))
    summary, _ = observe(model, lambda: model(torch.rand(ROWS, 6)).sum().backward(), ValueError)
    assert (summary.failure.phase, summary.failure.calls) == ("backward", ())
    assert "failed  ValueError in the backward\n" in summary.to_text().replace(" · ", "\n")


def test_an_error_of_the_optimizer() -> None:
    model = Net(Block())

    class Fails(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            torch.mm(self.param_groups[0]["params"][0].detach(), torch.rand(1, 1))

    def run() -> None:
        model(torch.rand(ROWS, 6)).sum().backward()
        Fails(model.parameters()).step()

    summary, _ = observe(model, run, RuntimeError)
    assert (summary.failure.calls, summary.failure.operation) == ((), "aten.mm.default")
    assert summary.failure.operands == (tensor(5, 6), tensor(1, 1))
    assert summary.failure.alive.gradients == UP + DOWN


def test_an_error_that_was_handled_is_not_the_one_that_ends_the_step() -> None:
    def falls_back(x: torch.Tensor) -> torch.Tensor:
        try:
            return torch.mm(x, x)
        except RuntimeError:
            return x.relu()

    model = Net(Block(then=falls_back))

    def run() -> None:
        model(torch.rand(ROWS, 6))
        raise KeyError("the user's")

    summary, _ = observe(model, run, KeyError)
    assert (summary.failure.error, summary.failure.calls, summary.failure.operation) == ("KeyError", (), None)


def test_an_error_at_the_address_of_one_that_was_handled() -> None:
    """Python gives the memory of a handled error to the next, which is another one all the same."""

    class Fallback(nn.Module):
        def __init__(self, kind: type[Exception], again: bool) -> None:
            super().__init__()
            self.inner, self.kind, self.again = nn.Linear(3, 4), kind, again

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with contextlib.suppress(RuntimeError):
                self.inner(x[:, :2])
            if self.again:
                x = x * 2
            raise self.kind

    for kind, again in ((KeyError, False), (RuntimeError, True)):
        model = nn.Sequential(Fallback(kind, again))
        with pytest.raises(kind), summarycb.observe(model) as observation:
            model(torch.rand(2, 3))
        assert observation.summary is not None
        failure = observation.summary.failure
        assert failure is not None
        assert (failure.error, failure.calls, failure.operation) == (kind.__name__, ("", "0"), None)


def test_an_error_that_is_raised_from_another() -> None:
    """The module that failed is that of the cause."""

    class Translates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Net(Block(given=7))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    model = Translates()

    def run() -> None:
        try:
            model(torch.rand(ROWS, 6))
        except RuntimeError as error:
            raise LookupError("the user's") from error

    summary, _ = observe(model, run, LookupError)
    assert (summary.failure.error, summary.failure.module) == ("RuntimeError", "inner.h.0.down")


def test_an_error_whose_text_cannot_be_had() -> None:
    class Mute(RuntimeError):
        def __str__(self) -> str:
            raise TypeError("no text")

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise Mute

    model = Net(Block(then=fail))
    with (
        pytest.warns(summarycb.SummaryWarning, match="incomplete"),
        pytest.raises(Mute),
        summarycb.observe(model) as observation,
    ):
        model(torch.rand(ROWS, 6))
    assert observation.summary is not None
    assert observation.summary.total_params == 71


LOOP = """
import sys, torch, summarycb
from torch import nn
from torch.utils.tensorboard import SummaryWriter

class Then(nn.Module):
    def forward(self, x):
        {then}
        return x

model = nn.Sequential(nn.Linear(3, 4), Then(), nn.Linear(5, 6))
"""
WATCH = """
summarycb.watch(model, trackers=[SummaryWriter(sys.argv[1])])
model(torch.rand(2, 3))
"""
FABRIC = """
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from summarycb_fabric import ModelSummaryCallback

logger = TensorBoardLogger(sys.argv[1], name="", version="")
fabric = Fabric(accelerator="cpu", devices=1, callbacks=[ModelSummaryCallback()], loggers=logger)
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters()))
model(torch.rand(2, 3))
"""
ACCELERATE = """
from accelerate import Accelerator
import summarycb_accelerate

accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=sys.argv[1])
accelerator.init_trackers("")
model = accelerator.prepare(model)
summarycb_accelerate.watch(accelerator, model)
model(torch.rand(2, 3))
"""
TRANSFORMERS = """
import os
from transformers import Trainer, TrainingArguments
from summarycb_transformers import ModelSummaryCallback

class Wants(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return {{"loss": self.net(x).sum()}}

os.environ["TENSORBOARD_LOGGING_DIR"] = sys.argv[1]
args = TrainingArguments(
    sys.argv[1], max_steps=1, per_device_train_batch_size=2, report_to="tensorboard", use_cpu=True, disable_tqdm=True,
    save_strategy="no", dataloader_pin_memory=False,
)
data = [{{"x": torch.rand(3)}}] * 2
Trainer(Wants(model), args, train_dataset=data, callbacks=[ModelSummaryCallback()]).train()
"""
SCRIPTS = {
    "a mismatch": (WATCH, "pass", "RuntimeError in the forward: 2 (Linear) · called by Sequential · given [2, 4]"),
    "Ctrl-C": (
        WATCH,
        "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
        "KeyboardInterrupt in the forward: 1 (Then) · called by Sequential · given [2, 4]",
    ),
    "out of memory": (
        WATCH, "torch.empty(2**60)", "RuntimeError in the forward: 1 (Then) · called by Sequential · given [2, 4]",
    ),
    "Fabric": (FABRIC, "pass", "RuntimeError in the forward: 2 (Linear) · called by Sequential · given [2, 4]"),
    "accelerate": (ACCELERATE, "pass", "RuntimeError in the forward: 2 (Linear) · called by Sequential · given [2, 4]"),
    "transformers": (
        TRANSFORMERS, "pass", "RuntimeError in the forward: net.2 (Linear) · called by Wants → net · given [2, 4]",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_dies_shows_and_logs_what_was_seen(name: str, tmp_path: Path) -> None:
    """After the traceback, by itself: a plain loop has no hook for it, nor have these frameworks."""
    script, then, failed = SCRIPTS[name]
    done = subprocess.run(
        [sys.executable, "-c", (LOOP + script).format(then=then), str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    error = failed.split()[0]
    assert done.returncode == (-signal.SIGINT if name == "Ctrl-C" else 1)
    assert done.stderr.splitlines()[-1].startswith(error), done.stderr
    assert "\nfailed  " + failed in done.stdout
    (folder,) = {file.parent for file in tmp_path.rglob("events.out.*")}
    logged = summarycb.load(f"tensorboard:{folder}").failure
    assert logged is not None
    assert (logged.error, logged.inputs, logged.out_of_memory) == (error, (tensor(2, 4),), name == "out of memory")
    if then == "pass":
        assert logged.operands == (tensor(6), tensor(2, 4), tensor(5, 6))


def test_an_error_that_is_caught_and_followed_by_nothing() -> None:
    """As in a notebook: the loop is left, and the hook is closed later."""
    model = Net(Block(given=7))
    hook = summarycb.watch(model, verbose=False)
    with pytest.raises(RuntimeError):
        model(torch.rand(ROWS, 6))
    hook.close()
    assert hook.summary is not None
    assert hook.summary.incomplete == ("the step raised RuntimeError in h.0.down",)
    assert hook.summary.failure is not None
    assert hook.summary.failure.operands == (tensor(6), tensor(ROWS, 5), tensor(7, 6))


def test_a_forward_that_was_interrupted_and_is_followed_by_nothing() -> None:
    def interrupt(x: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    model = Net(Block(then=interrupt))
    hook = summarycb.watch(model, verbose=False)
    with pytest.raises(KeyboardInterrupt):
        model(torch.rand(ROWS, 6))
    hook.close()
    assert hook.summary is not None
    assert hook.summary.incomplete == ("a forward did not return",)


def test_an_error_that_is_caught_and_followed_by_other_work() -> None:
    """Where it was is no longer sure; that it was, is."""
    model = Net(Block(given=7))
    hook = summarycb.watch(model, verbose=False)
    with pytest.raises(RuntimeError):
        model(torch.rand(ROWS, 6))
    torch.rand(3) * 2
    hook.close()
    assert hook.summary is not None
    assert (hook.summary.failure, hook.summary.incomplete) == (None, ("a forward raised",))


def test_a_step_that_goes_on_after_an_error_is_whole() -> None:
    """A loss that falls back on another."""
    model = Net(Block())
    optimizer = torch.optim.SGD(model.parameters())
    hook = summarycb.watch(model, verbose=False)
    y = model(torch.rand(ROWS, 6))
    with pytest.raises(RuntimeError):
        torch.mm(y, y)
    y.sum().backward()
    optimizer.step()
    assert hook.summary is not None
    assert (hook.summary.failure, hook.summary.incomplete) == (None, ())


def fail(gradient: torch.Tensor) -> torch.Tensor:
    raise ValueError("the user's")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["a function's backward", "a tensor's hook", "what a checkpoint runs again"])
def test_a_backward_that_python_code_ends_is_no_step(where: str, error: type[BaseException]) -> None:
    """No operation of torch fails, the loop skips the batch and goes on: the next one is summarized, and it alone."""
    backwards = 0

    def once(x: Any) -> Any:
        nonlocal backwards
        in_backward = torch._C._current_graph_task_id() != -1
        backwards += in_backward
        if in_backward and backwards == 1:
            raise error
        return x

    def through(x: torch.Tensor) -> torch.Tensor:
        if where == "a function's backward":
            return differentiated_by(once)(x)
        if where == "a tensor's hook":
            x = x * 1
            x.register_hook(once)
            return x
        return checkpoint(lambda x: relu(x), x, use_reentrant=True)  # type: ignore[no-any-return]

    class Once(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return once(x)  # type: ignore[no-any-return]

    relu = Once()
    model = Net(Block(then=through))
    model.relu = relu
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook: Any = summarycb.watch(model, verbose=False)
    for _ in range(3):
        optimizer.zero_grad()
        with contextlib.suppress(error):
            model(torch.rand(ROWS, 6)).sum().backward()
            optimizer.step()
    assert backwards == 3
    summary = hook.summary
    macs = ROWS * 6 * 5  # of each layer; the first needs no gradient of its input
    assert (summary[""].calls, summary.forward_macs, summary.backward_macs) == (1, 2 * macs, 3 * macs)
    assert (summary.incomplete, summary.notes) == ((), ())
    assert left_behind(model) == NOTHING


def test_a_backward_that_was_ended_and_followed_by_nothing() -> None:
    model = Net(Block(then=differentiated_by(fail)))
    hook = summarycb.watch(model, verbose=False)
    with contextlib.suppress(ValueError):
        model(torch.rand(ROWS, 6)).sum().backward()
    hook.close()
    assert hook.summary.incomplete == ("a backward did not return",)


def test_a_backward_that_was_ended_and_followed_by_the_optimizers_step() -> None:
    """The step has gone on with the gradients that there were: its figures are of a part, which is said."""
    model = Net(Block(then=differentiated_by(fail)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = summarycb.watch(model, verbose=False)
    with contextlib.suppress(ValueError):
        model(torch.rand(ROWS, 6)).sum().backward()
    optimizer.step()
    assert hook.summary.incomplete == ("a backward did not return",)


@pytest.mark.parametrize("way", ["a backward within it first", "operations of a callback after it"])
def test_one_backward_is_one(way: str) -> None:
    """Whatever runs in it before or after its own nodes."""
    queue: Any = torch.autograd.Variable._execution_engine.queue_callback
    model = nn.Linear(3, 4)
    other = (torch.ones(2, requires_grad=True) * 2).sum()

    def backward(gradient: torch.Tensor) -> torch.Tensor:
        if way == "a backward within it first":
            other.backward(torch.ones(()))
            return gradient
        queue(lambda: queue(lambda: queue(lambda: torch.ones(2) + 1)))
        return gradient

    with summarycb.observe(model) as observation:
        differentiated_by(backward)(model(torch.rand(2, 3)).sum()).backward(torch.ones(()))
    summary: Any = observation.summary
    assert (summary.notes, summary.incomplete, summary.backward_macs) == ((), (), 2 * 3 * 4)


def test_an_optimizers_step_that_raised_is_over() -> None:
    """The loop skips the batch: its forward and backward are the step, of which no optimizer's is a part."""
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook: Any = summarycb.watch(model, verbose=False)
    for turn in range(2):
        optimizer.zero_grad()
        model(torch.rand(2, 3)).sum().backward()
        with contextlib.suppress(ValueError):
            optimizer.step((lambda: fail(torch.zeros(()))) if turn == 0 else None)  # type: ignore[arg-type]
    assert (hook.summary.forward_macs, hook.summary.backward_macs) == (2 * 3 * 4, 2 * 3 * 4)
    assert [note.text for note in hook.summary.notes] == [
        "no torch optimizer stepped before the next forward: its state is unknown, gradients are what was left"
    ]


def test_a_forward_that_no_backward_followed_is_said() -> None:
    """An error of Python's in the loss, which the loop skips, looks like a forward whose output is not used."""
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = summarycb.watch(model, verbose=False)
    for turn in range(2):
        with contextlib.suppress(ValueError):
            loss = model(torch.rand(2, 3)).sum()
            if turn == 0:
                raise ValueError
            loss.backward()
            optimizer.step()
    assert hook.summary.forward_macs == 2 * 2 * 3 * 4
    assert [note.text for note in hook.summary.notes] == [
        "the model ran 2 times within the step; the figures are of all of them",
        "a forward of the model had no backward before the step ended, as where an error is caught or the output "
        "detached; the figures have it",
    ]


def test_a_backward_without_an_operation_is_one() -> None:
    """A view's, of a module of its own in a loop that never calls the root."""
    model = nn.ModuleList([nn.Linear(3, 4), nn.Flatten(0)])
    with summarycb.observe(model) as observation:
        for _ in range(2):
            model[1](model[0](torch.rand(2, 3))).sum().backward()
    assert [note.kind for note in observation.summary.notes] == ["backwards", "dataflow"]  # type: ignore[union-attr]


def test_the_hook_that_is_kept_after_an_error_keeps_no_model() -> None:
    """As in a notebook: the cell that failed is run again, with a smaller model for the memory of this one."""
    model = Net(Block(given=7))
    hook = summarycb.watch(model, verbose=False)
    with contextlib.suppress(RuntimeError):
        model(torch.rand(ROWS, 6))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert left_behind() == NOTHING
    hook.close()
    assert hook.summary is None


def test_an_error_that_a_module_raises_from_another_of_its_own() -> None:
    """The first one is told, with the operation that raised it."""

    class Translates(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return torch.mm(x, x)
            except RuntimeError as error:
                raise ValueError("the user's") from error

    model = nn.Sequential(Translates())
    summary, _ = observe(model, lambda: model(torch.rand(2, 3)), ValueError)
    failure = summary.failure
    assert (failure.error, failure.calls, failure.operation) == ("RuntimeError", ("", "0"), "aten.mm.default")


@pytest.mark.parametrize("way", ["changed in place", "a hook of a tensor"])
def test_an_error_of_the_engine_itself_is_in_the_backward(way: str) -> None:
    model = Net(Block())

    def run() -> None:
        saved = model(torch.rand(ROWS, 6)).exp()
        if way == "changed in place":
            saved.add_(1)
        else:
            saved.register_hook(lambda gradient: 1 // 0)
        saved.sum().backward()

    summary, _ = observe(model, run, RuntimeError if way == "changed in place" else ZeroDivisionError)
    assert (summary.failure.phase, summary.failure.calls) == ("backward", ())
