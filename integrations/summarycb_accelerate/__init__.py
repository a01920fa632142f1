"""watch() for a loop that Hugging Face accelerate runs: the accelerator's trackers, and what it knows of the step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from summarycb.errors import SummaryError
from summarycb.observe import check_optimizers
from summarycb.trackers import Tracker, check_targets, is_kind, open_targets
from summarycb.watch import Watch
from summarycb.watch import watch as watch_any

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator


def watch(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    *,
    trackers: Sequence[object] | Literal["auto"] = "auto",
    depth: int | None = 3,
    **settings: Any,
) -> Watch:
    """:func:`summarycb.watch` for a model that ``accelerator`` has prepared, or is to::

        accelerator.init_trackers("project")
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        hook = summarycb_accelerate.watch(accelerator, model)

    ``trackers="auto"`` is what ``accelerator.init_trackers`` has begun and a tracker is installed for. A list takes
    native runs and writers, references, and names: the accelerator's of that kind, else the run that is active.
    ``settings`` are the rest of :func:`summarycb.watch`: ``columns``, ``baseline``, ``fail_on``, ``verbose``,
    ``step``, ``timeout``. Call ``hook.flush()`` before ``accelerator.end_training()``, which closes the runs.

    Raises :class:`SummaryError` at once for a wrong argument, and with ``fail_on``, which each rank has to be given,
    where the baseline cannot be read as the training begins. Of what fails later, only a gate reaches the training.
    """
    if not is_kind(accelerator, "Accelerator", "accelerate"):
        raise SummaryError(f"accelerator must be an accelerate.Accelerator, not {type(accelerator).__name__}")
    targets, opened = check_targets(trackers), list[Tracker]()
    if accelerator.is_main_process:  # the others have no runs
        opened = open_targets(targets, [known.tracker for known in accelerator.trackers])
    return watch_any(
        model,
        [_inner(given) for given in check_optimizers(optimizer)],
        opened,
        depth,
        framework="accelerate",
        strategy=f"DistributedType.{accelerator.distributed_type.value}",
        world_size=accelerator.num_processes,
        **settings,
    )


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The one that steps and has the state."""
    wrapped = is_kind(optimizer, "AcceleratedOptimizer", "accelerate")
    inner: torch.optim.Optimizer = optimizer.optimizer if wrapped else optimizer
    return inner
