"""The figures of each call of a module, and that rows sum on any tree of modules."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint

import summarycb
from summarycb.collect.calls import RECOMPUTE, Calls, graph_task
from summarycb.collect.modules import walk
from summarycb.specs import Opaque
from summarycb.tree import CallGroup, ModelSummary, Work
from tests.test_observe import FLOAT, known, rows_sum_to_totals, spec


class Repeats(nn.Module):
    """One layer, called ``times`` times, each time on what it has made before."""

    def __init__(self, layer: nn.Module, times: int) -> None:
        super().__init__()
        self.layer, self.times = layer, times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.layer(x)
        return x


def test_calls_with_other_figures_are_apart() -> None:
    """The batch needs no gradient, what the layer has made does: the first call's backward is half of the others'."""
    model = Repeats(nn.Linear(3, 3, bias=False), 4)
    with summarycb.observe(model) as observation:
        model(torch.rand(2, 3)).sum().backward()
    summary = known(observation.summary)
    macs, output = 2 * 3 * 3, 2 * 3 * FLOAT
    shapes = (spec(2, 3),), spec(2, 3)
    first = Work(macs, macs, 0, output, 0)  # its result is the next one's input, for the weight's gradient
    middle = Work(2 * macs, 2 * 2 * macs, 0, 2 * output, 0)  # two calls together
    last = Work(macs, 2 * macs, 0, 0, 0)  # the sum needs no values
    assert summary["layer"].call_groups == (
        CallGroup(1, *shapes, first, first),
        CallGroup(2, *shapes, middle, middle),
        CallGroup(1, *shapes, last, last),
    )
    nothing, everything = Work(0, 0, 0, 0, 0), Work(4 * macs, 7 * macs, 0, 3 * output, 0)
    assert summary[""].call_groups == (CallGroup(1, *shapes, nothing, everything),)
    assert (summary["layer"].calls, summary["layer"].forward_macs) == (4, 4 * macs)


def test_a_call_has_what_it_called_in_its_total_wherever_that_is_registered() -> None:
    class Borrows(nn.Module):
        def __init__(self, lender: list[nn.Module]) -> None:
            super().__init__()
            self.lender = lender

        def forward(self, x: Tensor) -> Tensor:
            return self.lender[0](x)

    layer = nn.Linear(3, 4)
    model = nn.Sequential(Borrows([layer]), nn.ReLU())
    model.layer = layer
    model.forward = lambda x: model[1](model[0](x))  # type: ignore[method-assign]
    with summarycb.observe(model) as observation, torch.no_grad():
        model(torch.rand(2, 3))
    summary = known(observation.summary)
    (group,) = summary["0"].call_groups or ()
    assert (group.own.forward_macs, group.total.forward_macs) == (0, 2 * 3 * 4)
    assert (summary["0"].forward_macs, summary["layer"].forward_macs) == (0, 2 * 3 * 4)  # rows are by place


def test_more_kinds_of_calls_than_are_kept() -> None:
    model = nn.Linear(3, 2)
    with summarycb.observe(model) as observation:
        for rows in range(1, 31):
            model(torch.zeros(rows, 3))
    summary = known(observation.summary)
    groups = summary[""].call_groups or ()
    assert [(group.calls, group.inputs) for group in groups[:15]] == [(1, (spec(n, 3),)) for n in range(1, 16)]
    rest = sum(range(16, 31)) * 3 * 2
    work = Work(rest, None, None, None, None)
    assert groups[15:] == (CallGroup(15, Opaque("other calls"), Opaque("other calls"), work, work),)
    assert (summary[""].calls, summary.forward_macs) == (30, sum(range(1, 31)) * 3 * 2)


def test_a_cell_that_is_called_ten_thousand_times_is_one_row() -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for position in x:
                state = self.cell(position, state)
            assert state is not None
            return state[0]

    model = Cells()
    with summarycb.observe(model) as observation:
        model(torch.rand(10_000, 1, 2)).sum().backward()
    summary = known(observation.summary)
    assert [(path, module.calls) for path, module in summary.modules.items()] == [("", 1), ("cell", 10_000)]
    # four gates of three from two of the input and three of the state
    assert summary["cell"].forward_macs == 10_000 * 4 * 3 * (2 + 3)
    # of both weights at each position, of the state at each but the first, which starts without one. torch would end
    # the process if as many nodes were asked whose they are
    backward = 10_000 * 4 * 3 * (2 + 3) + 9_999 * 4 * 3 * 3
    assert (summary["cell"].backward_macs, summary.backward_macs) == (None, backward)
    assert [note.text for note in summary.notes] == [
        "whose backward it is could not be told, because a graph has too many nodes to ask each"
    ]
    assert len(summary["cell"].call_groups or ()) <= 4
    assert len(summary.memory.timeline) <= 258
    assert summary.dataflow is not None
    assert len(replace(summary, dataflow=None).to_json()) < 100_000
    assert len(summary.to_json()) < 10_000 * 100  # a cell's call is a node of the dataflow, with what it read


def test_what_is_recomputed_is_the_first_call_s() -> None:
    class Segments(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.layer, self.reentrant = nn.Linear(3, 3, bias=False), reentrant

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = checkpoint(self.layer, x, use_reentrant=self.reentrant)
            return x

    for reentrant in (False, True):
        model = Segments(reentrant)
        with summarycb.observe(model) as observation:
            model(torch.rand(2, 3, requires_grad=True)).sum().backward()
        summary = known(observation.summary)
        macs = 2 * 3 * 3
        # non-reentrant recomputation ends with the last tensor that backward asks for: the input, before the product
        again = macs if reentrant else 0
        groups = summary["layer"].call_groups or ()
        assert sum(group.calls for group in groups) == 3
        for group in groups:
            own = group.own
            assert (own.forward_macs, own.recompute_macs) == (group.calls * macs, group.calls * again)
            assert own.backward_macs == group.calls * 2 * macs
        assert summary["layer"].backward_macs == 2 * 3 * macs


def test_numbers_of_another_thread_are_not_taken_for_those_of_the_forward() -> None:
    """As on an accelerator, whose backward has a thread of its own, in which a reentrant checkpoint runs again."""
    seen: list[tuple[str, str]] = []

    class See(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten.mm.default:
                call, phase = calls.where(graph_task(), product=True)
                seen.append((structure.nodes[calls.slot(call)].path, phase))
            return func(*args, **(kwargs or {}))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(lambda x: self.b(self.a(x)), x.tanh().sin().cos(), use_reentrant=True)

    model = Net()
    structure = walk(model)
    calls = Calls(structure)

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.enter(module, args, kwargs)

    for module in model.modules():
        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(lambda module, args, output: calls.exit(module, output))
    loss = model(torch.rand(2, 3, requires_grad=True)).sum()

    def backward() -> None:
        with See():
            loss.backward()

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert Counter(seen) == {("a", RECOMPUTE): 1, ("b", RECOMPUTE): 1, ("a", "backward"): 2, ("b", "backward"): 2}


def test_nodes_of_a_graph_that_is_gone_do_not_count_against_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many micro-batches: each graph stands on the stack alone."""
    monkeypatch.setattr("summarycb.collect.calls._MOST_NODES", 20)
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(6)])
    with summarycb.observe(model) as observation:
        for _ in range(8):
            model(torch.rand(2, 3)).sum().backward()
    macs = 2 * 3 * 3
    assert known(observation.summary).backward_macs == 8 * (6 + 5) * macs


def test_an_observation_that_is_dropped_amid_an_operation_is_left_with_the_next_collection() -> None:
    """As by a collection that starts while torch has the mode off its stack, and puts it back afterwards."""
    observation = summarycb.observe(nn.Linear(3, 2))
    held = [observation]

    @torch.library.custom_op("summarycb_test_calls::drop", mutates_args=())
    def drop(x: Tensor) -> Tensor:
        held.clear()
        return x.clone()

    observation.start()
    del observation
    drop(torch.rand(2, 3))
    assert held == []
    gc.collect()
    assert _get_current_dispatch_mode_stack() == []
    assert all("summarycb" not in type(getattr(callback, "__self__", None)).__module__ for callback in gc.callbacks)


ROWS, WIDTH = 2, 3
MACS = ROWS * WIDTH * WIDTH


class Plan(nn.Module):
    """A module that does what its plan says: call a child, or multiply with a child's weight without calling it."""

    def __init__(self, children: list[nn.Module], steps: list[tuple[int, bool]]) -> None:
        super().__init__()
        self.children_of_it = nn.ModuleList(children)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        for index, called in self.steps:
            child = self.children_of_it[index]
            if called:
                x = child(x)
            elif isinstance(child, nn.Linear):
                x = x @ child.weight
        return x


@st.composite
def trees(draw: st.DrawFn) -> Plan:
    """Layers, some of them frozen; modules that hold some of what is there already, so shared ones; and unused ones."""
    pool: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        layer = nn.Linear(WIDTH, WIDTH, bias=draw(st.booleans()))
        for parameter in layer.parameters():
            parameter.requires_grad_(draw(st.booleans()))
        pool.append(layer)
    for _ in range(draw(st.integers(1, 4))):
        held = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3))
        steps = draw(st.lists(st.tuples(st.integers(0, len(held) - 1), st.booleans()), max_size=4))
        pool.append(Plan(held, steps))
    held = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=4))
    return Plan(held, draw(st.lists(st.tuples(st.integers(0, len(held) - 1), st.booleans()), max_size=5)))


class Expected:
    """What a step of a tree is to count, by going through the plans without running anything."""

    def __init__(self, model: Plan) -> None:
        self.calls: Counter[int] = Counter()
        self.forward: Counter[int] = Counter()
        self.backward: Counter[int] = Counter()
        self.differentiable = False
        self._enter(model)

    def _enter(self, module: nn.Module) -> None:
        self.calls[id(module)] += 1
        if isinstance(module, nn.Linear):
            self._product(id(module), module)
            if module.bias is not None:
                self.differentiable |= module.bias.requires_grad
        elif isinstance(module, Plan):
            for index, called in module.steps:
                child = module.children_of_it[index]
                if called:
                    self._enter(child)
                elif isinstance(child, nn.Linear):
                    self._product(id(module), child)

    def _product(self, owner: int, layer: nn.Linear) -> None:
        self.forward[owner] += MACS
        trains = layer.weight.requires_grad
        self.backward[owner] += MACS * (trains + self.differentiable)  # of the weight, and of the input
        self.differentiable |= trains


@settings(max_examples=150, deadline=None)
@given(trees())
def test_rows_of_any_tree(model: Plan) -> None:
    expected = Expected(model)
    with summarycb.observe(model) as observation:
        loss = model(torch.rand(ROWS, WIDTH)).sum()
        if loss.requires_grad:
            loss.backward()
    summary = known(observation.summary)
    modules = {path: module for path, module in model.named_modules(remove_duplicate=False) if path in summary.modules}
    rows = {path: row for path, row in summary.modules.items() if row.shared_with is None}
    assert {id(modules[path]) for path in rows} == {id(module) for module in model.modules()}
    for path, row in rows.items():
        module = id(modules[path])
        assert (row.calls, row.own_forward_macs) == (expected.calls[module], expected.forward[module])
        if expected.differentiable:
            assert row.own_backward_macs == expected.backward[module]
        groups = row.call_groups or ()
        assert sum(group.own.forward_macs or 0 for group in groups) == row.own_forward_macs
    assert summary.forward_macs == expected.forward.total()
    assert summary.total_params == sum(p.numel() for p in set(model.parameters()))
    assert summary.trainable_params == sum(p.numel() for p in set(model.parameters()) if p.requires_grad)
    if expected.differentiable:
        rows_sum_to_totals(summary)
    assert ModelSummary.from_json(summary.to_json()) == summary
