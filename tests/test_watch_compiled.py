"""watch() of compiled models: the observed step runs eagerly, and the compiler does what it does without it."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo import callback_handler, eval_frame
from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics

import summarycb
from tests.trainings import CASES, CNN, NOTHING, everything, left_behind, loss_of, step

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler looks at it


class Block(nn.Module):
    """Its forward is no code of torch's: that is what the compiler makes frames of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.head = nn.Linear(3, 5), Block(), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(torch.relu(self.first(x))))  # type: ignore[no-any-return]


MACS = 2 * (3 * 5 + 5 * 5 + 5 * 4)  # on a batch of 2


class Graphs:
    """A compiler backend that counts the graphs it was given, and the runs of all of them."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: object) -> Any:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph(*args)

        return run


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    assert (callback_handler.start_callbacks, callback_handler.end_callbacks) == ([], [])
    torch._dynamo.reset()


def outer(net: Net, backend: Graphs) -> tuple[Any, nn.Module]:
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    return compiled, compiled


def inner(net: Net, backend: Graphs) -> tuple[Any, nn.Module]:
    return torch.compile(net, backend=backend, fullgraph=True), net


def in_place(net: Net, backend: Graphs) -> tuple[Any, nn.Module]:
    net.compile(backend=backend, fullgraph=True)
    return net, net


def submodule(net: Net, backend: Graphs) -> tuple[Any, nn.Module]:
    net.block = torch.compile(net.block, backend=backend, fullgraph=True)  # type: ignore[assignment]
    return net, net


def submodule_in_place(net: Net, backend: Graphs) -> tuple[Any, nn.Module]:
    net.block.compile(backend=backend, fullgraph=True)
    return net, net


def both(net: Net, backend: Graphs) -> tuple[Any, nn.Module]:
    net.block.compile(backend=backend)
    compiled = torch.compile(net, backend=backend)
    return compiled, net


def graph_break(net: Net, backend: Graphs) -> tuple[Any, nn.Module]:
    """A call that the compiler cannot look into, between the first layer and the block."""
    net.first.register_forward_hook(torch._dynamo.disable(lambda module, args, output: output + 1))
    return torch.compile(net, backend=backend), net


def function(net: Net, backend: Graphs) -> tuple[Any, nn.Module]:
    """The model is a part of what is compiled, and nothing of it is called from outside of that."""
    return torch.compile(lambda x: net(x), backend=backend, fullgraph=True), net


Way = Callable[[Net, Graphs], tuple[Any, nn.Module]]
Watched = tuple[Any, Any, int | None, dict[str, Any]]


def train(way: Way, watch: str = "", evaluate: bool = True, warm: int = 0) -> Watched:
    """Evaluate, train five steps, and evaluate; returns all that is left, the hook, its step, and what was compiled."""
    torch._dynamo.reset()
    clear_compilation_metrics()
    counters.clear()
    torch.manual_seed(0)
    net, backend = Net(), Graphs()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    hook = summarycb.watch(net, verbose=False) if watch == "before" else None
    model, watched = way(net, backend)
    batches = [(torch.rand(2, 3), torch.randint(4, (2,))) for _ in range(5)]
    losses = [step(model, optimizer, *batches[0]) for _ in range(warm)]
    if watch == "after":
        hook = summarycb.watch(watched, verbose=False)
    if evaluate:
        with torch.no_grad():
            losses += [model(x) for x, _ in batches[:2]]
    observed_at = None
    for turn, (x, y) in enumerate(batches):
        losses.append(step(model, optimizer, x, y))
        if hook is not None and hook.summary is not None and observed_at is None:
            observed_at = turn
    with torch.no_grad():
        losses.append(model(batches[0][0]))
    compiled = {
        "graphs": backend.graphs,
        # every frame that the compiler looked into, in order: a frame that it had looked into before says why
        "frames": [(found.co_name, found.recompile_reason) for found in get_compilation_metrics()],
        "runs": backend.runs,
    }
    return everything(net, optimizer, losses), hook, observed_at, compiled


def recompilations(compiled: dict[str, Any]) -> int:
    return sum(reason is not None for _, reason in compiled["frames"])


WAYS = [outer, inner, in_place, submodule, submodule_in_place, both, graph_break]


@pytest.mark.parametrize("evaluate", [False, True], ids=["train", "evaluate first"])
@pytest.mark.parametrize("watch", ["before", "after"])
@pytest.mark.parametrize("way", WAYS)
def test_as_many_graphs_and_recompilations_as_without(way: Way, watch: str, evaluate: bool) -> None:
    """Over the whole script, whether it is watched before or after it is compiled; only the first step runs eagerly.

    So an evaluation before the training runs compiled, and what was compiled for it serves the one after it.
    """
    plain, _, _, without = train(way, evaluate=evaluate)
    observed, hook, observed_at, compiled = train(way, watch, evaluate)
    each = 2 if way is graph_break else 1  # graphs that a forward runs
    assert without["graphs"] == 2 * each  # with gradients, and without
    # each frame as the gradients are switched; what is called between two graphs is a frame of its own, with no graph
    assert recompilations(without) == (3 if way is graph_break else 1)
    assert without["runs"] == (5 + 1 + 2 * evaluate) * each
    assert (compiled["graphs"], recompilations(compiled)) == (without["graphs"], recompilations(without))
    assert [name for name, _ in compiled["frames"]] == [name for name, _ in without["frames"]]
    assert compiled["runs"] == without["runs"] - each
    assert observed == plain
    summary = hook.summary
    assert observed_at == 0
    assert (summary.incomplete, summary.notes) == ((), ())
    assert [(path, module.type_name, module.calls) for path, module in summary.modules.items()] == [
        ("", "Net", 1),
        ("first", "Linear", 1),
        ("block", "Block", 1),
        ("block.layer", "Linear", 1),
        ("head", "Linear", 1),
    ]
    assert (summary.forward_macs, summary.backward_macs) == (MACS, 2 * MACS - 2 * 3 * 5)  # not of the batch


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_was_compiled_and_trained_before(way: Way) -> None:
    """Its graphs know no hook of ours: a step is observed all the same, and they are used again."""
    plain, _, _, without = train(way, warm=2)
    observed, hook, observed_at, compiled = train(way, "after", warm=2)
    assert (compiled["graphs"], compiled["frames"]) == (without["graphs"], without["frames"])
    assert (observed_at, hook.summary.notes, hook.summary.forward_macs) == (0, (), MACS)
    assert observed == plain


def test_a_model_in_a_compiled_function() -> None:
    """That is only noticed as its first step is compiled: the second one is observed, and the summary says so.

    The graph that the first made has our hooks, and is compiled again without them.
    """
    plain, _, _, without = train(function)
    observed, hook, observed_at, compiled = train(function, "after")
    assert (compiled["graphs"], recompilations(compiled)) == (without["graphs"] + 1, recompilations(without) + 1)
    assert observed_at == 1
    assert [note.text for note in hook.summary.notes] == [
        "the first step ran as a compiled graph; this is the next, eager",
    ]
    assert (hook.summary[""].calls, hook.summary.forward_macs) == (1, MACS)
    assert (hook.summary.observed, hook.summary.backward_macs) == ("step", 2 * MACS - 2 * 3 * 5)
    assert observed == plain


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own, as it compiles a step
@pytest.mark.parametrize("by_hand", [False, True], ids=["compiled optimizer", "no optimizer"])
@pytest.mark.parametrize("way", [outer, inner, in_place, submodule_in_place])
def test_a_step_that_begins_or_ends_within_a_compiled_call(way: Way, by_hand: bool) -> None:
    """A compiled optimizer's step, or the next forward, ends it: as that call returns, torch turns modes on again."""
    weights: list[Any] = []
    for watch in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        model, watched = way(net, Graphs())
        hook = summarycb.watch(watched, verbose=False) if watch else None
        update = torch.compile(optimizer.step, backend="eager")
        for _ in range(3):
            model(torch.rand(2, 3)).sum().backward()  # one call of torch between the model's and the backward
            with torch.no_grad():
                if by_hand:
                    for parameter in net.parameters():
                        assert parameter.grad is not None
                        parameter -= 0.1 * parameter.grad
                else:
                    update()
            optimizer.zero_grad()
        weights.append(everything(net, optimizer, []))
        gc.collect()
        assert left_behind(net, model) == NOTHING
    assert weights[0] == weights[1]
    assert hook is not None
    assert hook.summary is not None
    assert (hook.summary.forward_macs, hook.summary.backward_macs) == (MACS, 2 * MACS - 2 * 3 * 5)


@pytest.mark.slow
def test_a_whole_step_that_is_compiled() -> None:
    """Its backward is compiled while the compiler is on for the function around it, and what we do then is not."""
    code = """
import torch, summarycb
net = torch.nn.Linear(3, 4)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
hook = summarycb.watch(net, verbose=False)
@torch.compile(backend="aot_eager")
def train(x):
    net(x).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
for _ in range(3):
    train(torch.rand(2, 3))
hook.close()
print(hook.summary.forward_macs, hook.summary.backward_macs)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{2 * 3 * 4} {2 * 3 * 4}\n"), done.stderr


def test_a_watched_model_that_never_trains_leaves_the_compiler_alone() -> None:
    net, backend = Net(), Graphs()
    model = torch.compile(net, backend=backend)
    hook = summarycb.watch(model, verbose=False)
    assert len(callback_handler.start_callbacks) == len(callback_handler.end_callbacks) == 1
    with torch.no_grad():
        model(torch.rand(2, 3))
    hook.close()
    assert left_behind(net, model) == NOTHING
    assert (callback_handler.start_callbacks, callback_handler.end_callbacks) == ([], [])
    with torch.no_grad():
        model(torch.rand(2, 3))
    assert (backend.graphs, backend.runs) == (1, 2)


def test_a_reset_of_the_compiler_while_a_model_is_watched() -> None:
    """It takes off what everybody has told the compiler to call, ours too."""
    net, backend = Net(), Graphs()
    model = torch.compile(net, backend=backend)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    hook = summarycb.watch(model, verbose=False)
    torch.compiler.reset()
    for _ in range(2):
        step(model, optimizer, torch.rand(2, 3), torch.randint(4, (2,)))
    assert hook.summary is not None
    assert (hook.summary.forward_macs, backend.graphs, backend.runs) == (MACS, 1, 1)


def test_another_compiled_model_stays_compiled_while_one_is_watched() -> None:
    """A first stage that trains for long before the watched model does: nothing of it runs eagerly."""
    torch.manual_seed(0)
    backend = Graphs()
    first, second = Net(), Net()
    stage = torch.compile(first, backend=backend, fullgraph=True)
    hook = summarycb.watch(second, verbose=False)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    for _ in range(3):
        step(stage, optimizer, torch.rand(2, 3), torch.randint(4, (2,)))
    assert (backend.graphs, backend.runs, hook.summary) == (1, 3, None)
    hook.close()


def test_watching_does_not_import_the_compiler() -> None:
    """Where no optimizer has: it would take seconds. A model that is compiled only then is watched as any."""
    code = """
import sys, torch, summarycb
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)
    def forward(self, x):
        return self.layer(x)
net, graphs = Net(), []
hook = summarycb.watch(net, verbose=False)
assert "torch._dynamo" not in sys.modules
def backend(graph, inputs):
    graphs.append(graph)
    return graph
model = torch.compile(net, backend=backend, fullgraph=True)
def evaluate():
    with torch.no_grad():
        model(torch.rand(2, 3))
evaluate()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.rand(2, 3)).sum().backward()
    optimizer.step()
evaluate()
print(len(graphs), hook.summary.forward_macs, len(hook.summary.notes))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"2 {2 * 3 * 4} 0\n")


def test_every_module_of_a_compiled_model_is_seen() -> None:
    """Batch norms that learn and that are frozen, dropout: bitwise the same numbers, eager and compiled."""

    def run(watch: bool) -> tuple[Any, Any]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        inner = CNN()
        optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
        model = torch.compile(inner, backend="eager", fullgraph=True)
        hook = summarycb.watch(model, verbose=False) if watch else None
        losses = [step(model, optimizer, x, y) for x, y in CASES["cnn"].batches(4)]
        assert left_behind(model, inner) == NOTHING
        return everything(inner, optimizer, losses), hook

    plain, _ = run(watch=False)
    observed, hook = run(watch=True)
    assert observed == plain
    assert hook.summary.incomplete == ()
    assert [path for path, module in hook.summary.modules.items() if module.calls == 1] == [
        "", "conv", "norm", "frozen", "drop", "head",
    ]  # fmt: skip
    assert hook.summary.root.type_name == "CNN"
    # conv: 4 images x 8 x 8 places x 8 channels x 3 x 3 x 3; head: 4 x 8 x 5
    assert hook.summary.forward_macs == 4 * 8 * 8 * 8 * 27 + 4 * 8 * 5


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


def test_two_watches_of_compiled_models_leave_the_compiler_as_it_was() -> None:
    """A generator and its critic: the first to begin is the first to end."""
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
