"""Lightning's ThroughputMonitor logs FLOP/s where the module says how many FLOPs a batch has: here it is told.

It wants those of one device: ``Throughput.update`` in ``lightning/fabric/utilities/throughput.py`` takes "Flops
elapased per device since last ``update()`` call" and multiplies them by the world size. At the end of its first batch
it asks, once, whether the module has ``flops_per_batch``, and reads it at the end of each, those of validation too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from summarycb.trackers import LIGHTNING, is_kind
from summarycb.tree import ModelSummary

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

NAME = "flops_per_batch"


class FlopsPerBatch:
    """The attribute of that name, on a module that has none of its own, for as long as a fit lasts."""

    def __init__(self) -> None:
        self._given = False
        self._told: int | None = None
        self._of_training: int | None = None

    def begin(self, trainer: Any, pl_module: LightningModule) -> None:
        """Before the first batch ends, which a monitor may hear of before us; unknown so far."""
        # a property of the class is not asked for its value: that is the monitor's to do
        if self._given or not _monitors(trainer) or hasattr(type(pl_module), NAME) or hasattr(pl_module, NAME):
            return
        self._given = True
        vars(pl_module)[NAME] = self._told = self._of_training = None
        _ask_anew(trainer)

    def found(self, pl_module: LightningModule, summary: ModelSummary | None) -> None:
        """A training step was observed; where it counts products of all devices, one device's share is unknown."""
        shared = summary is None or any(note.kind == "global" for note in summary.notes)
        self._of_training = None if summary is None or shared else summary.step_flops
        self.tell(pl_module, training=True)

    def tell(self, pl_module: LightningModule, *, training: bool) -> None:
        """What the next batches have: those of a validation are not known."""
        if self._is_ours(pl_module):
            vars(pl_module)[NAME] = self._told = self._of_training if training else None

    def end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Take it away."""
        if self._is_ours(pl_module):
            del vars(pl_module)[NAME]
            _ask_anew(trainer)
        self._given = False

    def _is_ours(self, pl_module: LightningModule) -> bool:
        """Not so when the module has given itself another since."""
        return self._given and vars(pl_module).get(NAME, self) is self._told


def _monitors(trainer: Any) -> list[Any]:
    return [callback for callback in trainer.callbacks if is_kind(callback, "ThroughputMonitor", *LIGHTNING)]


def _ask_anew(trainer: Any) -> None:
    """A monitor keeps the answer that it had, in an evaluation before the fit, or in the fit that is over."""
    for monitor in _monitors(trainer):
        monitor._module_has_flops = None
