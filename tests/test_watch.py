"""watch(): when the first real training step starts and ends in a plain loop, and that nothing else is taken for it."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import summarycb
from summarycb.errors import SummaryError
from summarycb.testing import RecordingTracker
from tests.trainings import NOTHING, Case, left_behind, loss_of, step

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


@pytest.mark.parametrize("wrong", ["7", None, 1.5, True], ids=str)
def test_a_step_that_is_no_number_raises_at_once(wrong: Any) -> None:
    """No tracker would take it, or take it for another."""
    with pytest.raises(SummaryError, match=f"^step must be an integer, not {wrong!r}$"):
        summarycb.watch(nn.Linear(3, 4), step=wrong)


def test_a_step_may_be_of_numpy() -> None:
    """As one that was read from an array of what was done before; trackers are given a plain one."""
    model, optimizer = net()
    tracker = RecordingTracker()
    hook = summarycb.watch(model, trackers=[tracker], verbose=False, step=np.int64(7))  # type: ignore[arg-type]
    step(model, optimizer, *batch())
    hook.flush()
    assert [(given, type(given)) for _, given in tracker.reports] == [(7, int)]


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
    assert done.stdout.startswith("Linear\nparams ")


def test_the_summary_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """With the columns and the depth that were asked for, and not again by a later step or ``close``."""
    model, optimizer = net()
    hook = summarycb.watch(model, depth=0, columns=["params"])
    for _ in range(2):
        step(model, optimizer, *batch())
    hook.close()
    assert hook.summary is not None
    assert capsys.readouterr().out == hook.summary.to_text(depth=0, columns=["params"]) + "\n"


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
        "no torch optimizer stepped before the next forward: its state is unknown, gradients are what was left",
        "an optimizer did not step, as in gradient accumulation: its state is unknown",
    ]
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
        "the dataflow is of what ran before the first backward",
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
