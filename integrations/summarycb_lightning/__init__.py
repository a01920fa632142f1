"""ModelSummaryCallback: the first real training step of a Trainer of ``lightning.pytorch`` or ``pytorch_lightning``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from summarycb.baseline import Baseline
from summarycb.collect.ranks import Ranks, announce
from summarycb.deliver import deliver
from summarycb.errors import GateError, SummaryError, missing
from summarycb.observe import Observation
from summarycb.publish import Publisher
from summarycb.trackers import check_targets, check_timeout, open_targets, warn
from summarycb.tree import ModelSummary
from summarycb.view import Selection
from summarycb_lightning.throughput import FlopsPerBatch

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelSummary as LightningModelSummary
    from torch import nn
else:
    LightningModelSummary = object

# Lightning ships the same code under two names whose classes are strangers to each other.
_PACKAGES = {"lightning.pytorch": "lightning", "pytorch_lightning": "pytorch_lightning"}
STAGES = ("fit", "validate", "test", "predict")


class ModelSummaryCallback(LightningModelSummary):
    """Summarize the first real training step, and send it to the Trainer's loggers::

        Trainer(callbacks=[ModelSummaryCallback(depth=3)])

    It takes the place of Lightning's own table. ``depth`` is how many levels below the LightningModule are printed
    (None: all). ``trackers="auto"`` uses the Trainer's loggers that a tracker is installed for; a list takes native
    runs, writers and loggers, references, and names: the Trainer's loggers of that kind, else the run that is active.
    ``columns`` are those of :data:`summarycb.columns.COLUMNS`.
    ``baseline`` is a summary, a file or a reference such as ``"mlflow:<run_id>"``: what changed from it is printed
    after the summary, and sent with it. ``fail_on`` are gates, as in ``["params>+5%"]``: where one fails, the run ends
    with :class:`summarycb.GateError` before its second step, on each rank, when the loggers have the summary.
    ``stage`` is what the Trainer is asked to do when the step is observed: the first training batch of ``fit``, or the
    first batch, forward only, of ``validate``, ``test`` or ``predict``.
    ``timeout`` bounds in seconds how long the end of it waits for the trackers, and rank zero for what the other ranks
    saw. ``summary`` holds the result.

    A ``ThroughputMonitor`` beside it is told the FLOPs of a training batch, unless the module has a
    ``flops_per_batch`` of its own. A callback that runs the model at the end of a batch belongs after this one in the
    list: what it does there would be seen as a part of the step.

    Raises :class:`SummaryError` at once for a wrong argument, and with ``fail_on``, which each rank has to be given,
    where the baseline cannot be read as the training begins. Of what fails later, only a gate reaches the training.
    """

    summary: ModelSummary | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> ModelSummaryCallback:
        """An object that is also a ``ModelSummary`` of each Lightning that is in use, so that none prints its own."""
        if not any(base.__name__ == "ModelSummary" and _is_lightning(base) for base in cls.__mro__):
            same = {name: getattr(cls, name) for name in ("__module__", "__doc__", "__qualname__")}
            cls = type(cls.__name__, (cls, *_bases()), {**same, "_written": cls})
        return object.__new__(cls)

    def __init__(
        self,
        depth: int | None = 3,
        trackers: Sequence[object] | Literal["auto"] = "auto",
        *,
        columns: Sequence[str] | None = None,
        baseline: ModelSummary | str | Path | None = None,
        fail_on: Sequence[str] = (),
        stage: Literal["fit", "validate", "test", "predict"] = "fit",
        verbose: bool = True,
        timeout: float = 10.0,
    ) -> None:
        self._selection = Selection(depth, columns)
        super().__init__(max_depth=-1 if depth is None else depth)
        self._verbose, self._timeout = verbose, check_timeout(timeout)
        if stage not in STAGES:
            raise SummaryError(f"stage must be one of {', '.join(STAGES)}, not {stage!r}")
        self._stage = stage
        self._trackers = check_targets(trackers)
        self._baseline = Baseline(baseline, fail_on)
        self._armed = False
        self._flops = FlopsPerBatch()
        self._observation: Observation | None = None
        self._ranks: Ranks | None = None
        self._publisher: Publisher | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        written = getattr(type(self), "_written", type(self))
        state = {**self.__dict__, "_observation": None, "_ranks": None, "_publisher": None, "_flops": FlopsPerBatch()}
        for bound in ("log", "log_dict"):  # the Trainer puts methods of the model there
            state.pop(bound, None)
        return _rebuild, (written,), state

    def arm(self) -> None:
        """Observe the next batch of the stage, too: what a fit does by itself before its first one.

        Its summary takes the place of the one before, and is printed and written at the global step that it is of.
        """
        self._armed = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The Trainer begins with something: if it is the stage, its first batch is to be observed."""
        self._armed = not trainer.barebones
        if self._armed and trainer.state.fn == self._stage:
            zero, alone = trainer.is_global_zero, trainer.world_size == 1
            self._baseline.read(rank_zero=zero, alone=alone, timeout=self._timeout)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's own table is not made. The ranks' first batches may not wait for each other."""
        if not self._armed or trainer.state.fn != self._stage or self._ranks is not None:
            return
        try:
            self._ranks = announce(pl_module)
        except Exception as error:
            self._give_up(error)

    on_test_start = on_predict_start = on_fit_start

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is on its device, and the forward is next."""
        self._start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step has been made."""
        seen = self._observation
        if seen is None:
            return
        if not seen.backward_seen and not seen.failed:
            self._discard()  # training_step returned None: the next batch may be a real step
        else:
            self._finish(trainer, None)
            self._flops.found(pl_module, self.summary)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No batch end came where the module's ``on_train_batch_start`` returned -1, or there was no next batch."""
        self._discard()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training batch's FLOPs are not those of a batch of validation."""
        self._flops.tell(pl_module, training=False)
        if trainer.state.fn == "validate":
            self.on_fit_start(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch of an evaluation, of which those within a fit are not asked for."""
        if trainer.state.fn != "fit":
            self._start(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The forward has been made."""
        self._finish(trainer, None)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on."""
        self._flops.tell(pl_module, training=True)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The step raised, or was interrupted: what was seen of it is shown."""
        self._finish(trainer, exception)
        self._flush()
        self._flops.end(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """What is still on its way to the trackers is waited for, up to ``timeout``."""
        self._discard()
        self._flush()
        self._flops.end(trainer, pl_module)
        ranks, self._ranks = self._ranks, None
        try:
            if ranks is not None:
                ranks.withdraw()
        except Exception as error:
            self._give_up(error)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._armed or self._observation is not None or trainer.state.fn != self._stage:
            return
        self._armed = False
        try:
            self._flops.begin(trainer, pl_module)
            self._step = trainer.global_step
            ranks, self._ranks = self._ranks, None
            self._observation = _Step(pl_module, trainer.optimizers, self._timeout, ranks, **_context(trainer))
            self._observation.start()
        except Exception as error:
            self._give_up(error)
            if trainer.is_global_zero:
                self._baseline.cannot_hold(error)

    def _finish(self, trainer: Trainer, error: BaseException | None) -> None:
        observation, self._observation = self._observation, None
        if observation is None:
            return
        try:
            self.summary = observation.stop(error)
            how: dict[str, Any] = {"step": self._step, "verbose": self._verbose, "rank_zero": trainer.is_global_zero}
            to = partial(self._publish_to, trainer)
            deliver(self.summary, self._selection, to, self._baseline, observation.agree, **how)
        except GateError:
            raise
        except Exception as fault:
            self._give_up(fault)

    def _publish_to(self, trainer: Trainer) -> Publisher:
        if self._publisher is None:
            self._publisher = Publisher(open_targets(self._trackers, trainer.loggers), self._timeout)
        return self._publisher

    def _discard(self) -> None:
        observation, self._observation = self._observation, None
        try:
            if observation is not None:
                self._armed = True
                observation.discard()
        except Exception as error:
            self._give_up(error)

    def _flush(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.flush()

    def _give_up(self, error: Exception) -> None:
        self._observation = None
        warn(f"the model summary could not be made: {type(error).__name__}: {error}")


class _Step(Observation):
    """Within a strategy that wraps the module, its ``training_step`` runs as the module's forward, which it is not."""

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        redirected = getattr(vars(module).get("forward"), "__qualname__", "").startswith("_ForwardRedirection.")
        if not redirected:
            super().enter(module, args, kwargs)


def _rebuild(written: type[ModelSummaryCallback]) -> ModelSummaryCallback:
    return written.__new__(written)


def _context(trainer: Trainer) -> dict[str, Any]:
    return {
        "framework": "lightning",
        "strategy": type(trainer.strategy).__name__,
        "world_size": trainer.world_size,
    }


def _bases() -> list[type]:
    """Lightning's own summary callback from each package in use; from an installed one when none is yet."""
    in_use = [name for name in _PACKAGES if sys.modules.get(name) is not None]
    found: list[type] = []
    for name in in_use or _PACKAGES:
        try:
            found.append(importlib.import_module(f"{name}.callbacks").ModelSummary)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != _PACKAGES[name]:
                raise
        if found and not in_use:
            break
    if not found:
        raise missing("lightning", "lightning")
    return found


def _is_lightning(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in _PACKAGES.values()
