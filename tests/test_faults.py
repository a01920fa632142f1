"""Promise 4: whatever fails inside the package, training goes on bit by bit, and one warning says what is missing.

``test_fault_matrix.py`` has every fault in each way to observe; here is which figures a fault takes away.

A wrong argument is not such a failure: it raises at once, with what was given and what is allowed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import summarycb
from summarycb.collect.calls import Calls
from summarycb.collect.flops import Flops
from summarycb.collect.memory import Memory
from summarycb.errors import SummaryError, SummaryWarning
from summarycb.tree import ModelSummary
from tests.trainings import CASES, NOTHING, everything, left_behind

# ``summarycb.observe`` is the function
_MODULES = ("build", "collectors", "observe")
BUILD, COLLECTORS, OBSERVE = (importlib.import_module(f"summarycb.{name}") for name in _MODULES)

CALLS = {"calls", "input shapes"}
WORK = {"forward MACs", "backward MACs"}
STORAGES = {"saved activations", "batch", "peak"}
TENSORS = {"gradients", "optimizer state"}
STRUCTURE = {"parameters", "buffers", "parameter bytes"}

# What is planted where, and which figures that takes away: the others stay what they are.
FAULTS: dict[str, tuple[Any, str, set[str]]] = {
    "enter": (Calls, "enter", CALLS | WORK | STORAGES),
    "exit": (Calls, "exit", CALLS | WORK | STORAGES),
    "where": (Calls, "where", WORK | STORAGES),
    "calls": (Calls, "__init__", CALLS | WORK | STORAGES),
    "flops": (Flops, "__init__", CALLS | WORK | STORAGES),
    "flops op": (Flops, "op", WORK),
    "memory": (Memory, "__init__", STORAGES),
    "memory op": (Memory, "op", STORAGES),
    "memory enter": (Memory, "enter", STORAGES),
    "memory backward": (Memory, "backward_begins", STORAGES),
    "memory state": (Memory, "stepped", STORAGES),
    "memory end": (Memory, "end", STORAGES),
    "tensor_bytes": (COLLECTORS, "tensor_bytes", TENSORS),
    "walk": (OBSERVE, "walk", CALLS | WORK | STORAGES | TENSORS | STRUCTURE),
    "describe": (BUILD, "describe", CALLS | WORK | STORAGES | TENSORS | STRUCTURE),
    "build": (OBSERVE, "build", CALLS | WORK | STORAGES | TENSORS | STRUCTURE),
}
LATER = {"enter": 3, "exit": 3, "where": 10, "flops op": 3, "memory op": 40}
"""Which run of what runs often is amid the step: the third module call or product, the fortieth new tensor."""


class Planted(Exception):
    pass


def figures(summary: ModelSummary) -> dict[str, Any]:
    root, memory = summary.root, summary.memory
    return {
        "calls": root.calls,
        "input shapes": root.inputs,
        "forward MACs": summary.forward_macs,
        "backward MACs": summary.backward_macs,
        "saved activations": memory.saved_activations,
        "batch": memory.batch,
        "peak": memory.peak,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer_state,
        "parameters": summary.total_params or None,
        "buffers": summary.total_buffers or None,
        "parameter bytes": memory.parameters,
    }


def plant(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, nth: int = 1) -> None:
    """The ``nth`` run of ``where.name`` raises, and every one after it."""
    real, runs = getattr(where, name), 0

    def planted(*args: Any, **kwargs: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs >= nth:
            raise Planted("on purpose")
        return real(*args, **kwargs)

    monkeypatch.setattr(where, name, planted)


def plain_and_healthy(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    case = CASES[name]
    model, optimizer = case.make()
    plain = everything(model, optimizer, case.train(model, optimizer))
    model, optimizer = case.make()
    hook = summarycb.watch(model, verbose=False)
    case.train(model, optimizer)
    assert hook.summary is not None
    assert hook.summary.incomplete == ()
    healthy = figures(hook.summary)
    assert None not in healthy.values()
    return plain, healthy


@pytest.mark.parametrize(("fault", "nth"), [*[(fault, 1) for fault in FAULTS], *LATER.items()])
def test_a_fault_in_a_collector(monkeypatch: pytest.MonkeyPatch, fault: str, nth: int) -> None:
    """Training is bitwise the plain one, one warning, the summary says so, and what was not affected is right."""
    where, name, lost = FAULTS[fault]
    plain, healthy = plain_and_healthy("cnn")
    case = CASES["cnn"]
    model, optimizer = case.make()
    hook = summarycb.watch(model, verbose=False)
    plant(monkeypatch, where, name, nth)

    with pytest.warns(SummaryWarning, match=r"incomplete: .*Planted: on purpose") as caught:
        assert everything(model, optimizer, case.train(model, optimizer)) == plain
    assert len(caught) == 1
    assert left_behind(model) == NOTHING
    assert hook.summary is not None
    # what is stored says which part and what kind; an exception's text may hold a path or a value
    assert any(reason.endswith("could not be observed (Planted)") for reason in hook.summary.incomplete)
    assert len(set(hook.summary.incomplete)) == len(hook.summary.incomplete)
    assert figures(hook.summary) == {key: None if key in lost else value for key, value in healthy.items()}
    monkeypatch.undo()
    assert "could not be observed (Planted)" in " ".join(hook.summary.to_text().split())
    assert ModelSummary.from_json(hook.summary.to_json()) == hook.summary


@pytest.mark.parametrize("fault", ["enter", "exit", "flops op", "memory op", "memory enter", "tensor_bytes", "walk"])
@pytest.mark.parametrize("name", ["gpt", "lstm", "transformer"])
def test_a_fault_in_other_models(monkeypatch: pytest.MonkeyPatch, name: str, fault: str) -> None:
    case = CASES[name]
    model, optimizer = case.make()
    plain = everything(model, optimizer, case.train(model, optimizer))
    model, optimizer = case.make()
    hook = summarycb.watch(model, verbose=False)
    plant(monkeypatch, *FAULTS[fault][:2], LATER.get(fault, 1))
    with pytest.warns(SummaryWarning, match="incomplete") as caught:
        assert everything(model, optimizer, case.train(model, optimizer)) == plain
    assert len(caught) == 1
    assert hook.summary is not None
    assert hook.summary.incomplete


class Broken:
    """A tracker whose every write fails."""

    @classmethod
    def wrap(cls, target: object) -> Broken | None:
        return None

    @classmethod
    def open(cls, reference: str) -> Broken:
        return cls()

    def write(self, report: object, *, step: int) -> None:
        raise Planted("on purpose")

    def read(self) -> ModelSummary:
        raise SummaryError("nothing here")


def test_a_tracker_that_fails() -> None:
    """The others get the summary; one warning names the tracker and what it raised."""
    plain, healthy = plain_and_healthy("cnn")
    written: list[tuple[ModelSummary, int]] = []

    class Working(Broken):
        def write(self, report: Any, *, step: int) -> None:
            written.append((report.summary, step))

    case = CASES["cnn"]
    model, optimizer = case.make()
    hook = summarycb.watch(model, trackers=[Broken(), Working()], verbose=False, step=7)
    assert everything(model, optimizer, case.train(model, optimizer)) == plain
    message = r"^the model summary was not written to Broken: Planted: on purpose; it is saved in "
    with pytest.warns(SummaryWarning, match=message) as caught:
        hook.close()
    assert len(caught) == 1
    assert hook.summary is not None
    assert figures(hook.summary) == healthy
    assert written == [(hook.summary, 7)]


ANY_MODEL = nn.Linear(2, 2)
WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "watch depth -1": (
        lambda: summarycb.watch(ANY_MODEL, depth=-1),
        r"depth must be None \(every level\) or an integer from 0 \(the root alone\) on, not -1",
    ),
    "watch depth x": (lambda: summarycb.watch(ANY_MODEL, depth="x"), "depth must be .*, not 'x'"),  # type: ignore[arg-type]
    "watch depth True": (lambda: summarycb.watch(ANY_MODEL, depth=True), "depth must be .*, not True"),
    "watch tracker": (
        lambda: summarycb.watch(ANY_MODEL, trackers=["tensorbord"]),
        "unknown tracker 'tensorbord'; allowed are the names .*mlflow, tensorboard, wandb",
    ),
    "watch trackers is a string": (
        lambda: summarycb.watch(ANY_MODEL, trackers="tensorboard"),
        "trackers must be a list of trackers, not 'tensorboard'",
    ),
    "watch tracker of no kind": (lambda: summarycb.watch(ANY_MODEL, trackers=[3]), "no tracker takes 'int'; installed"),
    "watch column": (
        lambda: summarycb.watch(ANY_MODEL, columns=["prams"]),
        "there is no column 'prams'; allowed: .*params",
    ),
    "watch columns is a string": (
        lambda: summarycb.watch(ANY_MODEL, columns="params"),
        "columns must be a list of names, not 'params'; allowed: ",
    ),
    "watch model": (lambda: summarycb.watch("net"), "model must be a torch.nn.Module, not str"),  # type: ignore[arg-type]
    "watch model class": (lambda: summarycb.watch(nn.Linear), "model must be a torch.nn.Module, not the class Linear"),  # type: ignore[arg-type]
    "watch optimizer": (
        lambda: summarycb.watch(ANY_MODEL, "adam"),  # type: ignore[arg-type]
        "optimizer must be a torch.optim.Optimizer, several of them or None, not str",
    ),
    "watch optimizer module": (
        lambda: summarycb.watch(ANY_MODEL, ANY_MODEL),  # type: ignore[arg-type]
        "optimizer must be a torch.optim.Optimizer, several of them or None, not Linear",
    ),
    "watch parameters": (
        lambda: summarycb.watch(ANY_MODEL, ANY_MODEL.parameters()),  # type: ignore[arg-type]
        "optimizer must be a torch.optim.Optimizer, several of them or None, not Parameter",
    ),
    "watch timeout": (
        lambda: summarycb.watch(ANY_MODEL, timeout=-1),
        "timeout must be a number of seconds from 0 on, not -1",
    ),
    "watch timeout text": (
        lambda: summarycb.watch(ANY_MODEL, timeout="10"),  # type: ignore[arg-type]
        "timeout must be a number of seconds from 0 on, not '10'",
    ),
    "observe model": (lambda: summarycb.observe(3), "model must be a torch.nn.Module, not int"),  # type: ignore[arg-type]
    "observe optimizer": (
        lambda: summarycb.observe(ANY_MODEL, [3]),  # type: ignore[list-item]
        "optimizer must be a torch.optim.Optimizer, several of them or None, not int",
    ),
    "callback depth -1": (lambda: summarycb.ModelSummaryCallback(depth=-1), "depth must be .*, not -1"),
    "callback depth x": (lambda: summarycb.ModelSummaryCallback(depth="x"), "depth must be .*, not 'x'"),  # type: ignore[arg-type]
    "callback tracker": (
        lambda: summarycb.ModelSummaryCallback(trackers=["wandbb"]),
        "unknown tracker 'wandbb'; allowed are the names .*wandb",
    ),
    "callback trackers": (lambda: summarycb.ModelSummaryCallback(trackers="wandb"), "trackers must be .*, not 'wandb'"),
    "callback column": (
        lambda: summarycb.ModelSummaryCallback(columns=["flps"]),
        "there is no column 'flps'; allowed: .*params",
    ),
    "callback timeout": (lambda: summarycb.ModelSummaryCallback(timeout=-1), "timeout must be .*, not -1"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning:google")
@pytest.mark.parametrize("wrong", list(WRONG))
def test_a_wrong_argument_raises_at_once(wrong: str) -> None:
    """With what was given and what is allowed, and with nothing left on the model."""
    make, message = WRONG[wrong]
    with pytest.raises(SummaryError, match=message):
        make()
    assert left_behind(ANY_MODEL) == NOTHING


def test_a_user_s_formula_that_raises_costs_its_own_operation_alone() -> None:
    from summarycb import formulas

    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).erfinv()

    @summarycb.register_formula("aten::erfinv")
    def raises(x: tuple[int, ...], *, out: tuple[int, ...]) -> int:
        return x[7]

    try:
        model = Squares()
        with (
            pytest.warns(SummaryWarning, match=r"MACs of aten.erfinv.default could not be observed \(IndexError"),
            summarycb.observe(model) as observation,
        ):
            model(torch.zeros(4, 3)).sum().backward()
    finally:
        del formulas._registered["aten::erfinv"]
        formulas._answers.clear()
    summary = observation.summary
    assert summary is not None
    assert (summary["layer"].own_forward_macs, summary[""].own_forward_macs) == (4 * 3 * 2, None)
    assert summary.incomplete == ("MACs of aten.erfinv.default could not be observed (IndexError)",)
