"""ModelSummaryCallback for Lightning Fabric: the first real training step of each model that ``fabric.setup`` returns.

Imports neither ``lightning.fabric`` nor ``lightning_fabric``: callbacks of Fabric need no base class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from summarycb.baseline import Baseline
from summarycb.trackers import check_targets, check_timeout, open_targets, warn
from summarycb.tree import ModelSummary
from summarycb.view import Selection
from summarycb.watch import Watch, watch

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from torch import nn


class ModelSummaryCallback:
    """Summarize the first real training step, and send it to Fabric's loggers::

        fabric = Fabric(callbacks=[ModelSummaryCallback(depth=3)], loggers=logger)
        model, optimizer = fabric.setup(model, optimizer)

    The arguments are those of :func:`summarycb.watch`, but for ``trackers="auto"``: Fabric's loggers that a tracker is
    installed for. A list takes native runs, writers and loggers, references, and names: Fabric's loggers of that kind,
    else the run that is active. Every model that is set up is watched, and compared with a ``baseline``; a
    run keeps one summary, that of the last.
    ``setup_module`` calls no callback: ``fabric.call("on_after_setup", fabric=fabric, module=model)`` after it does.

    Raises :class:`SummaryError` at once for a wrong argument, and with ``fail_on``, which each rank has to be given,
    where the baseline cannot be read as the training begins. Of what fails later, only a gate reaches the training.
    """

    def __init__(
        self,
        depth: int | None = 3,
        trackers: Sequence[object] | Literal["auto"] = "auto",
        *,
        columns: Sequence[str] | None = None,
        baseline: ModelSummary | str | Path | None = None,
        fail_on: Sequence[str] = (),
        verbose: bool = True,
        timeout: float = 10.0,
    ) -> None:
        self._trackers = check_targets(trackers)
        Selection(depth, columns)  # a wrong argument raises here, not within the training
        check_timeout(timeout)
        self._baseline = Baseline(baseline, fail_on)
        self._shown: dict[str, Any] = {"depth": depth, "columns": columns, "verbose": verbose, "timeout": timeout}
        self._shown["baseline"] = self._baseline
        self._watches: list[Watch] = []

    @property
    def summaries(self) -> list[ModelSummary]:
        """One of each model that has made its first step, in the order in which they were set up."""
        return [hook.summary for hook in self._watches if hook.summary is not None]

    def on_after_setup(self, fabric: Fabric, module: nn.Module) -> None:
        """Fabric has set up a model: its first training step is to be observed."""
        timeout, alone = self._shown["timeout"], fabric.world_size == 1
        self._baseline.read(rank_zero=fabric.is_global_zero, alone=alone, timeout=timeout)
        try:
            trackers = open_targets(self._trackers, fabric.loggers) if fabric.is_global_zero else []
            strategy, size = type(fabric.strategy).__name__, fabric.world_size
            hook = watch(
                module, trackers=trackers, framework="fabric", strategy=strategy, world_size=size, **self._shown
            )
            self._watches.append(hook)
        except Exception as error:
            warn(f"the model summary could not be made: {type(error).__name__}: {error}")

    def flush(self) -> None:
        """Wait for the trackers, up to ``timeout``, before a run is closed; ``fabric.call("flush")`` does it too."""
        for hook in self._watches:
            hook.flush()
