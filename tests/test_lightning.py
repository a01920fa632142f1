"""ModelSummaryCallback: what it shows and sends, what it does when it fails, and the object that it is.

In both packages that Lightning is shipped as.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import summarycb
from summarycb.changes import Delta
from summarycb.errors import SummaryWarning
from summarycb.view import Selection
from summarycb_lightning import ModelSummaryCallback
from tests.lightning_trainings import FORWARD, MARKS, Recording, all_of, lit, loader, trainer
from tests.test_faults import Broken, Planted, plant
from tests.trainings import NOTHING, left_behind, loss_of

pytestmark = MARKS


@pytest.mark.parametrize("enable_model_summary", [True, None], ids=["on", "default"])
def test_it_takes_the_place_of_lightnings_table(
    L: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], enable_model_summary: bool | None
) -> None:
    """One summary is printed, ours."""
    callback = ModelSummaryCallback(depth=1, columns=["type", "params"])
    runner = trainer(L, tmp_path, callback, enable_model_summary=enable_model_summary)
    runner.fit(lit(L))
    captured = capsys.readouterr()
    assert callback.summary is not None
    table = callback.summary.to_text(depth=1, columns=["type", "params"])
    assert captured.out.count(table) == 1
    assert "Total params" not in captured.out + captured.err
    assert "Non-trainable params" not in captured.out + captured.err
    summaries = [c for c in runner.callbacks if isinstance(c, L.callbacks.ModelSummary)]
    assert summaries == [callback]


def test_verbose_false_prints_nothing(
    lightning: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = ModelSummaryCallback(verbose=False)
    trainer(lightning, tmp_path, callback).fit(lit(lightning))
    assert callback.summary is not None
    assert "params" not in capsys.readouterr().out


def test_the_trainers_loggers_are_used(L: ModuleType, tmp_path: Path) -> None:
    """By itself: TensorBoard's log directory gives an equal summary back; a logger that no tracker takes is passed."""
    tensorboard = L.loggers.TensorBoardLogger(tmp_path, name="runs")
    csv = L.loggers.CSVLogger(tmp_path)
    callback = ModelSummaryCallback(verbose=False)
    trainer(L, tmp_path, callback, logger=[tensorboard, csv]).fit(lit(L))
    assert callback.summary is not None
    assert summarycb.load(f"tensorboard:{tensorboard.log_dir}") == callback.summary


def test_two_loggers(lightning: ModuleType, tmp_path: Path) -> None:
    loggers = [lightning.loggers.TensorBoardLogger(tmp_path, name=name) for name in ("a", "b")]
    callback = ModelSummaryCallback(verbose=False)
    trainer(lightning, tmp_path, callback, logger=loggers).fit(lit(lightning))
    assert [summarycb.load(f"tensorboard:{logger.log_dir}") for logger in loggers] == [callback.summary] * 2


def test_trackers_that_are_given_replace_the_loggers(lightning: ModuleType, tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    logger = lightning.loggers.TensorBoardLogger(tmp_path, name="logger")
    with SummaryWriter(str(tmp_path / "writer")) as writer:
        callback = ModelSummaryCallback(trackers=[writer], verbose=False)
        trainer(lightning, tmp_path, callback, logger=logger).fit(lit(lightning))
    assert summarycb.load(f"tensorboard:{tmp_path / 'writer'}") == callback.summary
    with pytest.raises(summarycb.SummaryError, match="no model summary"):
        summarycb.load(f"tensorboard:{logger.log_dir}")


@pytest.mark.parametrize("logger", ["csv", "false", "dummy"])
def test_loggers_that_no_tracker_takes(lightning: ModuleType, tmp_path: Path, logger: str) -> None:
    """Are passed over without a word: a warning would be an error here."""
    loggers = {"csv": lightning.loggers.CSVLogger(tmp_path), "false": False, "dummy": True}
    arguments = {"fast_dev_run": True} if logger == "dummy" else {}
    callback = ModelSummaryCallback(verbose=False)
    runner = trainer(lightning, tmp_path, callback, logger=loggers[logger], **arguments)
    runner.fit(lit(lightning))
    if logger == "dummy":
        assert [type(used).__name__ for used in runner.loggers] == ["DummyLogger"]
    assert callback.summary is not None


# Faults


HOOKS = {
    "start": ("summarycb.observe", "walk"),
    "observation": ("summarycb_lightning", "_Step"),
    "context": ("summarycb_lightning", "_context"),
    "build": ("summarycb.observe", "build"),
    "show": ("summarycb.deliver", "show"),
    "report": ("summarycb.deliver", "Report"),
    "trackers": ("summarycb.trackers", "wrap"),
}


@pytest.mark.parametrize("fault", list(HOOKS))
def test_a_fault_in_the_callback(monkeypatch: pytest.MonkeyPatch, L: ModuleType, tmp_path: Path, fault: str) -> None:
    """Training goes on bit by bit, and one warning says what happened, once for all batches."""

    def fit(*callbacks: Any) -> Any:
        model = lit(L)
        runner = trainer(L, tmp_path, *callbacks, enable_model_summary=False, logger=L.loggers.CSVLogger(tmp_path))
        runner.fit(model)
        assert left_behind(model) == NOTHING
        return all_of(runner, model)

    plain = fit()
    module, name = HOOKS[fault]
    callback = ModelSummaryCallback(verbose=True)
    plant(monkeypatch, importlib.import_module(module), name)
    with pytest.warns(SummaryWarning, match="Planted: on purpose") as caught:
        assert fit(callback) == plain
    assert len([warning for warning in caught if issubclass(warning.category, SummaryWarning)]) == 1


def test_a_tracker_that_fails(L: ModuleType, tmp_path: Path) -> None:
    """The warning comes at the end of the fit, names the tracker, and nothing else is lost."""
    working = Recording()
    model = lit(L)
    callback = ModelSummaryCallback(trackers=[Broken(), working], verbose=False)
    with pytest.warns(
        SummaryWarning, match=r"^the model summary was not written to Broken: Planted: on purpose; it is saved in "
    ):
        trainer(L, tmp_path, callback).fit(model)
    assert len(model.losses) == 3
    assert working.written == [(callback.summary, 0)]  # the step that was observed is the first: global step 0


@pytest.mark.parametrize("method", ["wrap", "write"])
def test_a_logger_whose_adapter_fails(
    monkeypatch: pytest.MonkeyPatch, L: ModuleType, tmp_path: Path, method: str
) -> None:
    """The real TensorBoard adapter, broken."""
    from summarycb_tensorboard import TensorBoardTracker

    def planted(*args: Any, **kwargs: Any) -> Any:
        raise Planted("on purpose")

    monkeypatch.setattr(TensorBoardTracker, method, classmethod(planted) if method == "wrap" else planted)
    model = lit(L)
    callback = ModelSummaryCallback(verbose=False)
    with pytest.warns(SummaryWarning, match="Planted: on purpose") as caught:
        trainer(L, tmp_path, callback, logger=L.loggers.TensorBoardLogger(tmp_path)).fit(model)
    assert len([warning for warning in caught if issubclass(warning.category, SummaryWarning)]) == 1
    assert len(model.losses) == 3
    assert callback.summary is not None


# The object


def test_it_is_a_summary_of_both_packages() -> None:
    """So that neither Trainer prints its own table."""
    import lightning.pytorch.callbacks
    import pytorch_lightning.callbacks

    callback = summarycb.ModelSummaryCallback()
    for kind in (
        ModelSummaryCallback,
        lightning.pytorch.callbacks.ModelSummary,
        lightning.pytorch.callbacks.Callback,
        pytorch_lightning.callbacks.ModelSummary,
        pytorch_lightning.callbacks.Callback,
    ):
        assert isinstance(callback, kind)
    assert type(callback).__name__ == "ModelSummaryCallback"


class Mine(ModelSummaryCallback):
    """A user's subclass, with an argument of its own and a hook that calls ours."""

    def __init__(self, tag: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.tag = tag

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.tag += "."


def test_a_subclass(L: ModuleType, tmp_path: Path) -> None:
    callback = Mine("batches", depth=1, verbose=False)
    assert isinstance(callback, Mine)
    trainer(L, tmp_path, callback).fit(lit(L))
    assert callback.tag == "batches..."
    assert callback.summary is not None


def test_a_subclass_that_names_lightnings_callback_too(lightning: ModuleType, tmp_path: Path) -> None:
    """``class C(ModelSummaryCallback, Callback)``, as people write who do not know that it is one."""
    kind: Any = type("Both", (ModelSummaryCallback, lightning.Callback), {})
    callback = kind(verbose=False)
    trainer(lightning, tmp_path, callback, enable_model_summary=False).fit(lit(lightning))
    assert callback.summary is not None


@pytest.mark.parametrize("again", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("after", ["new", "fit"])
def test_a_copy(lightning: ModuleType, tmp_path: Path, again: Callable[[Any], Any], after: str) -> None:
    """As strategies that start processes make it: same arguments, same summary, and it works."""
    callback = Mine("x", depth=2, columns=["params"], verbose=False)
    if after == "fit":
        trainer(lightning, tmp_path, callback, logger=lightning.loggers.TensorBoardLogger(tmp_path)).fit(lit(lightning))
    other = again(callback)
    assert isinstance(other, Mine)
    assert isinstance(other, lightning.callbacks.ModelSummary)
    assert (other.tag, other._selection) == (callback.tag, Selection(depth=2, columns=["params"]))
    assert other.summary == callback.summary
    trainer(lightning, tmp_path, other).fit(lit(lightning))
    assert other.summary is not None


@pytest.mark.slow
def test_only_the_lightning_in_use_is_imported() -> None:
    """A user of one package does not pay for the other, and without either the extra is named."""
    code = """
import sys
import lightning.pytorch as L
import summarycb
callback = summarycb.ModelSummaryCallback()
assert isinstance(callback, L.callbacks.ModelSummary)
print("pytorch_lightning" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr
    code = """
import sys
sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
import summarycb
try:
    summarycb.ModelSummaryCallback()
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "lightning is not installed; install it with: pip install 'summarycb[lightning]'", (
        done.stderr
    )


def test_a_name_is_the_trainers_logger_and_one_that_is_none_does_not_stop_the_others(tmp_path: Path) -> None:
    import lightning.pytorch as L
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="", version="run")
    callback = ModelSummaryCallback(trackers=["wandb", "tensorboard"], verbose=False)
    with pytest.warns(SummaryWarning, match=r"^the model summary was not written to 'wandb': 'wandb': no W&B"):
        trainer(L, tmp_path, callback, logger=logger).fit(lit(L))
    assert summarycb.load(f"tensorboard:{tmp_path}/run") == callback.summary


def test_a_logger_that_is_given_is_opened_at_the_first_step_and_not_before(tmp_path: Path) -> None:
    """On the ranks above zero it has no run, and on rank zero making one early is not ours to do."""
    import lightning.pytorch as L
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="", version="run")
    callback = ModelSummaryCallback(trackers=[logger], verbose=False)
    assert not (tmp_path / "run").exists()
    trainer(L, tmp_path, callback, logger=False).fit(lit(L))
    assert summarycb.load(f"tensorboard:{tmp_path}/run") == callback.summary


def test_a_batch_that_no_forward_of_the_modules_own_was_given_is_told(tmp_path: Path) -> None:
    """As where ``training_step`` calls ``self.net``: what the net was given is what two runs differ by."""
    import lightning.pytorch as L

    def training_step(self: Any, batch: Any, index: int) -> torch.Tensor:
        return loss_of(self.net(batch[0]), batch[1])

    found = []
    for rows in (4, 8):
        callback = ModelSummaryCallback(verbose=False)
        model = lit(L, training_step=training_step, train_dataloader=lambda self, rows=rows: loader(rows))
        trainer(L, tmp_path, callback).fit(model)
        assert callback.summary is not None
        found.append(callback.summary)
    assert "in [4, 3, 8, 8] float32" in found[0].to_text()
    per_step, per_sample = summarycb.compare(*found), summarycb.compare(*found, per="sample")
    assert [str(difference) for difference in per_step.differences] == ["input: [4, 3, 8, 8] → [8, 3, 8, 8]"]
    assert "forward_macs" in per_step.incomparable
    assert per_sample.metrics["forward_macs"] == Delta(FORWARD // 4, FORWARD // 4)
    assert "forward_macs" not in per_sample.incomparable
