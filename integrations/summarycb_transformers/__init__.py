"""ModelSummaryCallback for the Trainer of Hugging Face transformers: the first real step of each training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from summarycb.errors import missing
from summarycb.trackers import check_targets, check_timeout, is_kind, names, open_targets, warn
from summarycb.tree import ModelSummary
from summarycb.view import Selection
from summarycb.watch import Watch, watch

try:
    from transformers import Trainer, TrainerCallback
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise missing("transformers", "transformers") from None

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class ModelSummaryCallback(TrainerCallback):
    """Summarize the first real training step, and send it where the Trainer reports to::

        Trainer(..., callbacks=[ModelSummaryCallback(depth=3)])

    The arguments are those of :func:`summarycb.watch`, but for ``trackers="auto"``: what ``report_to`` names and a
    tracker is installed for, in the run that the Trainer reports to. A list takes native runs and writers, references,
    and such names. Where gradients are accumulated, all batches until the optimizer steps are the step. Every
    ``train()`` is observed anew; ``summary`` is that of the newest.

    Raises :class:`SummaryError` at once for a wrong argument; nothing that fails later reaches the training.
    """

    def __init__(
        self,
        depth: int | None = 3,
        trackers: Sequence[object] | Literal["auto"] = "auto",
        *,
        columns: Sequence[str] | None = None,
        verbose: bool = True,
        timeout: float = 10.0,
    ) -> None:
        self._trackers = check_targets(trackers)
        Selection(depth, columns)  # a wrong argument raises here, not within the training
        check_timeout(timeout)
        self._shown: dict[str, Any] = {"depth": depth, "columns": columns, "verbose": verbose, "timeout": timeout}
        self._watch: Watch | None = None

    @property
    def summary(self) -> ModelSummary | None:
        """None until the first step of the training has been made."""
        return None if self._watch is None else self._watch.summary

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The first training step is to be observed; an evaluation before it does not count."""
        try:
            if self._watch is not None:
                self._watch.discard()  # a training that raised had no end
            self._watch = None
            trainer = _trainer()
            reported = [name for name in names() if name in (args.report_to or ())]
            targets = reported if self._trackers == "auto" else self._trackers
            trackers = open_targets(targets, _writers(trainer)) if state.is_world_process_zero else []
            known = {
                "framework": "transformers",
                "strategy": f"DistributedType.{trainer.accelerator.distributed_type.value}",
                "world_size": args.world_size,
            }
            self._watch = watch(
                trainer.model_wrapped, trackers=trackers, step=state.global_step, **known, **self._shown
            )
        except Exception as error:
            warn(f"the model summary could not be made: {type(error).__name__}: {error}")

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The trackers are waited for, once and up to ``timeout``: as training ends the Trainer's close before us."""
        if self._watch is not None:
            self._watch.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Whatever has not been observed by now will not be."""
        if self._watch is not None:
            self._watch.close()


def _trainer() -> Trainer:
    """Who calls: a callback is not told of the model as it is wrapped, nor of the other callbacks and their runs."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if isinstance(caller := frame.f_locals.get("self"), Trainer):
            return caller
        frame = frame.f_back
    raise RuntimeError("no Trainer has called on_train_begin")


def _writers(trainer: Trainer) -> list[object]:
    """TensorBoard's in use; W&B and MLflow know which of their runs is active."""
    others = trainer.callback_handler.callbacks
    return [other.tb_writer for other in others if is_kind(other, "TensorBoardCallback", "transformers")]
