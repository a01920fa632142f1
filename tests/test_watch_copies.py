"""Copies and pickles of a watched model: they are the model's, and nothing of the watch."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import summarycb
from tests.test_watch import MACS, batch, net
from tests.test_watch_setups import STEPS, summary_of
from tests.trainings import NOTHING, Case, bits, everything, hooks_of, left_behind, loss_of


def test_an_average_of_the_weights() -> None:
    """AveragedModel copies the watched model, before the step and amid it; the copies average as without."""

    def loop(watch: bool) -> tuple[Any, Any]:
        model, optimizer = net()
        hook = summarycb.watch(model, verbose=False) if watch else None
        averages = [AveragedModel(model)]
        losses = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            x, y = batch()
            output = model(x)
            averages.append(AveragedModel(model))
            loss = loss_of(output, y)
            loss.backward()
            optimizer.step()
            for average in averages:
                average.update_parameters(model)
            losses.append(loss.detach())
        losses += [average(batch()[0]).detach() for average in averages]
        assert left_behind(model, averages[0]) == NOTHING
        return [everything(model, optimizer, losses), [bits(average.state_dict()) for average in averages]], hook

    summary = summary_of(loop)
    assert (summary[""].calls, summary.forward_macs) == (1, MACS)


LOAD = """
import sys, torch
sys.modules["summarycb"] = None  # as where it is not installed
for path in sys.argv[1:]:
    model = torch.load(path, weights_only=False)
    handle = model.register_forward_pre_hook(lambda module, args: None)  # the first number a process gives out
    model(torch.rand(2, 3)).sum().backward()
"""


def test_a_watched_model_loads_where_this_package_is_not_installed(tmp_path: Path) -> None:
    """Saved while it waits, and amid the step; also where the user has hooks that ours come after."""
    model, optimizer = net()
    model.register_forward_hook(nullcontext().__exit__)  # takes anything, and is found everywhere
    hook = summarycb.watch(model, verbose=False)
    torch.save(model, tmp_path / "waiting.pt")
    x, y = batch()
    loss = loss_of(model(x), y)
    torch.save(model, tmp_path / "amid.pt")
    loss.backward()
    optimizer.step()
    assert hook.summary is not None
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "waiting.pt"), str(tmp_path / "amid.pt")],
        capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


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


def test_the_copy_of_a_watched_model_loses_the_hook_as_it_is_first_called() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    hook = summarycb.watch(model, verbose=False)
    average = copy.deepcopy(model)
    average(torch.rand(4, 3))
    assert hooks_of(average) == hooks_of(nn.Sequential(nn.Linear(3, 2)))
    assert hook.summary is None
    hook.close()
