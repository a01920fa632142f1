"""What becomes of a summary that has just been made: printed, and handed to the trackers. Must not import torch."""

from __future__ import annotations

from collections.abc import Callable

from summarycb.publish import Publisher
from summarycb.render.terminal import show
from summarycb.report import Report
from summarycb.tree import ModelSummary
from summarycb.view import Selection


def deliver(
    summary: ModelSummary,
    selection: Selection,
    publisher: Callable[[], Publisher],
    *,
    step: int,
    verbose: bool,
    rank_zero: bool,
) -> None:
    """Print it (``verbose``) and publish it at ``step``; a rank other than zero only prints where its step failed."""
    if not rank_zero:
        if verbose and summary.failure is not None:
            show(summary, Selection(depth=0))
        return
    if verbose:
        show(summary, selection)
    publisher().publish(Report(summary, selection), step=step)
