"""Promises 1 to 3 of the design: nothing changes, nothing is run or kept for it, and then it is gone."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import summarycb
from tests.trainings import CASES, NOTHING, Case, everything, hooks_of, left_behind, loss_of, step


def watched(model: nn.Module, optimizer: torch.optim.Optimizer) -> AbstractContextManager[Any]:
    return summarycb.watch(model, verbose=False)


def watched_with_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> AbstractContextManager[Any]:
    return summarycb.watch(model, optimizer, depth=None)


WAYS = [watched, watched_with_optimizer]


@pytest.mark.parametrize("way", WAYS)
def test_nothing_changes(case: Case, way: Any) -> None:
    """Losses, weights, gradients, buffers, optimizer and random state, flags and hooks after three steps: bitwise."""
    model, optimizer = case.make()
    plain = everything(model, optimizer, case.train(model, optimizer))

    model, optimizer = case.make()
    hook = way(model, optimizer)
    assert everything(model, optimizer, case.train(model, optimizer)) == plain
    assert hook.summary.observed == "step"
    assert hook.summary.incomplete == ()


def test_nothing_changes_under_observe(case: Case) -> None:
    model, optimizer = case.make()
    plain = everything(model, optimizer, case.train(model, optimizer))

    model, optimizer = case.make()
    losses = []
    for x, y in case.batches():  # every step is observed
        with summarycb.observe(model, optimizer):
            losses.append(step(model, optimizer, x, y))
    assert everything(model, optimizer, losses) == plain


def test_hooks_of_the_user_stay_as_they_are(case: Case) -> None:
    """The user's hooks run as often, in the same order, and are the only ones afterwards."""

    def train(watch: bool) -> tuple[list[str], dict[str, list[str]]]:
        model, optimizer = case.make()
        seen: list[str] = []
        model.register_forward_pre_hook(lambda module, args: seen.append("pre"))
        first = next(model.children())
        first.register_forward_hook(lambda module, args, output: seen.append("forward"))
        if watch:
            summarycb.watch(model, verbose=False)
        first.register_forward_hook(lambda module, args, kwargs, output: seen.append("late"), with_kwargs=True)
        last = list(model.children())[-1]
        last.register_full_backward_hook(lambda module, grads, outputs: seen.append("backward"))
        case.train(model, optimizer)
        return seen, hooks_of(model)

    assert train(watch=True) == train(watch=False)


def test_the_step_runs_once(case: Case) -> None:
    """No forward of its own, and no copy of the model: as many forwards, and parameters in memory, as without."""
    model, optimizer = case.make()
    forwards: Counter[str] = Counter()
    parameters: list[int] = []

    def count(name: str, forward: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            forwards[name] += 1
            parameters.append(sum(type(thing) is nn.Parameter for thing in gc.get_objects()))
            return forward(*args, **kwargs)

        return counted

    for name, module in model.named_modules():
        module.forward = count(name, module.forward)  # type: ignore[method-assign]
    gc.collect()  # what earlier tests have left in cycles
    before = sum(type(thing) is nn.Parameter for thing in gc.get_objects())
    hook = summarycb.watch(model, verbose=False)
    case.train(model, optimizer, steps=1)
    assert hook.summary is not None
    called = {path: module.calls for path, module in hook.summary.modules.items() if module.calls}
    assert called == dict(forwards)
    assert called[""] == 1
    assert set(parameters) == {before}


def test_an_observed_model_is_freed(case: Case) -> None:
    """Model, batch, optimizer and graph go when they are dropped, though the hook and its summary are held."""
    model, optimizer = case.make()
    hook = summarycb.watch(model, optimizer, verbose=False)
    first = next(iter(case.batches()))
    alive = {"model": weakref.ref(model), "optimizer": weakref.ref(optimizer), "batch": weakref.ref(first[0])}
    alive |= {name: weakref.ref(parameter) for name, parameter in model.named_parameters()}

    def keep_a_reference(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        alive["activation"] = weakref.ref(args[0].untyped_storage())

    handle = model.get_submodule("head").register_forward_pre_hook(keep_a_reference)
    loss = loss_of(model(first[0]), first[1])
    assert alive["activation"]() is not None, "the loss's graph has it, for the weight's gradient"
    loss.backward()
    assert alive["activation"]() is None, "it went with backward, the observation still on"
    optimizer.step()
    handle.remove()
    assert hook.summary is not None

    del model, optimizer, loss, first
    gc.collect()
    assert [name for name, reference in alive.items() if reference() is not None] == []


def test_a_graph_that_is_kept_by_nobody_is_freed_after_observe() -> None:
    """A held observation keeps no graph, model or optimizer: the forward's activations go with the loss."""
    case = CASES["cnn"]
    model, optimizer = case.make()
    [(x, y)] = case.batches(1)
    references: list[weakref.ref[Any]] = []
    with summarycb.observe(model, optimizer) as observation:
        handle = model.get_submodule("head").register_forward_pre_hook(
            lambda module, args: references.append(weakref.ref(args[0].untyped_storage()))
        )
        loss = loss_of(model(x), y)
    handle.remove()
    assert references[0]() is not None, "the loss's graph has it"
    del loss, handle
    references += [weakref.ref(x), weakref.ref(optimizer), *[weakref.ref(p) for p in model.parameters()]]
    del x, y, model, optimizer
    gc.collect()
    assert [reference for reference in references if reference() is not None] == []
    assert observation.summary is not None
    assert observation.summary.observed == "forward"


def test_a_watched_model_that_never_trains_is_freed(case: Case) -> None:
    """Also while the hook is held, and though the optimizer was named."""
    model, optimizer = case.make()
    hook = summarycb.watch(model, optimizer)
    parameters = [weakref.ref(parameter) for parameter in model.parameters()]
    del model, optimizer
    gc.collect()
    assert [reference for reference in parameters if reference() is not None] == []
    hook.close()
    assert hook.summary is None


def test_nothing_is_left_after_the_first_step(case: Case) -> None:
    """Zero hooks on every module, zero dispatch modes, zero process-wide optimizer hooks."""
    model, optimizer = case.make()
    hook = summarycb.watch(model, verbose=False)
    case.train(model, optimizer, steps=1)
    assert hook.summary is not None
    assert left_behind(model) == NOTHING


@pytest.mark.parametrize("end", ["close", "error", "never started"])
def test_nothing_is_left_when_the_step_does_not_end(end: str) -> None:
    case = CASES["gpt"]
    model, _ = case.make()
    [(x, _)] = case.batches(1)
    with pytest.raises(KeyError) if end == "error" else nullcontext(), summarycb.watch(model, verbose=False) as hook:
        if end != "never started":
            model(x)
            assert left_behind(model) != NOTHING
        if end == "close":
            hook.close()
        if end == "error":
            raise KeyError("the user's own")
    assert left_behind(model) == NOTHING


@pytest.mark.parametrize("stance", ["default", "eager_on_recompile"])
def test_the_compilers_stance_is_the_users_again(stance: str) -> None:
    """Not "default": what the user had set."""
    import torch._dynamo.eval_frame as dynamo

    case = CASES["cnn"]
    with torch.compiler.set_stance(stance):
        before = dynamo._stance
        model, optimizer = case.make()
        hook = summarycb.watch(model, verbose=False)
        stances: list[str] = []
        model.register_forward_hook(lambda *_: stances.append(dynamo._stance.stance))
        case.train(model, optimizer, steps=2)
        assert hook.summary is not None
        assert stances == ["force_eager", stance]
        assert dynamo._stance == before


def test_later_steps_see_no_mode() -> None:
    """A later step is the plain one: none of its operations passes through Python."""
    case = CASES["cnn"]
    model, optimizer = case.make()
    summarycb.watch(model, verbose=False)
    modes: list[int] = []
    model.register_forward_hook(lambda *_: modes.append(torch._C._len_torch_dispatch_stack()))
    case.train(model, optimizer, steps=3)
    assert modes == [1, 0, 0]


def test_a_fused_kernel_stays_one() -> None:
    """An encoder layer without gradients is one kernel, of other numbers, as long as no module of it has a hook."""
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True), nn.Linear(16, 4))
    frozen = model[0].eval().requires_grad_(False)
    x = torch.randn(3, 7, 16)
    mask = torch.arange(7)[None] >= torch.tensor([7, 5, 2])[:, None]

    def run() -> torch.Tensor:
        with torch.no_grad():
            features = frozen(x, src_key_padding_mask=mask)
        return model[1](features)

    plain = run()
    hook = summarycb.watch(model, verbose=False)
    assert torch.equal(run(), plain)  # armed, and then observing
    hook.close()
    with summarycb.observe(model) as observation:
        assert torch.equal(run(), plain)
    assert observation.summary is not None
    # projections of 16, attention over 7 keys, feed-forward of 32; the padding's places too
    assert observation.summary["0"].own_forward_macs == 3 * 7 * (4 * 16 * 16 + 2 * 7 * 16 + 2 * 16 * 32)


def test_a_compiled_module_does_not_warn_of_our_hooks() -> None:
    model = torch.compile(nn.Linear(3, 2), backend="eager")
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with summarycb.observe(model) as observation:
            model(torch.rand(4, 3)).sum().backward()
    assert warnings.filters == before
    assert observation.summary is not None
    assert (observation.summary[""].calls, observation.summary.forward_macs) == (1, 4 * 3 * 2)
