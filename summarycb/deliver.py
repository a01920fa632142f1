"""What becomes of a summary that has just been made: printed, compared with a baseline, and handed to the trackers.

Must not import torch.
"""

from __future__ import annotations

from collections.abc import Callable

from summarycb import gates
from summarycb.baseline import Baseline
from summarycb.compare import Comparison
from summarycb.errors import GateError
from summarycb.publish import Publisher
from summarycb.render.terminal import show
from summarycb.report import Report
from summarycb.trackers import reason, warn
from summarycb.tree import ModelSummary
from summarycb.view import Selection


def deliver(
    summary: ModelSummary,
    selection: Selection,
    publisher: Callable[[], Publisher],
    baseline: Baseline,
    agree: Callable[[str], str],
    *,
    step: int,
    verbose: bool,
    rank_zero: bool,
) -> None:
    """Print it (``verbose``) and publish it at ``step``; a rank other than zero only prints where its step failed.

    Where the comparison with ``baseline`` fails a gate, :class:`GateError` is raised on each rank once the trackers
    have the summary: ``agree`` tells the others what rank zero found, and says on each what that was.
    """
    comparison, broken = _compared(summary, baseline) if rank_zero else (None, "")
    try:
        if verbose and (rank_zero or summary.failure is not None):
            show(summary, selection if rank_zero else Selection(depth=0), comparison)
        if rank_zero:
            publisher().publish(Report(summary, selection, comparison), step=step)
            if broken:
                publisher().flush()
    finally:  # whatever fails of ours, a gate holds, and no rank waits for another that has stopped
        # one whose own step raised does not wait, and what it raised is what is raised
        if baseline.gates and (rank_zero or summary.failure is None) and (broken := agree(broken)):
            raise GateError(broken)


def _compared(summary: ModelSummary, baseline: Baseline) -> tuple[Comparison | None, str]:
    """The comparison, if there is one to make, and which gates it fails and by how much."""
    try:
        comparison = baseline.compare(summary)
        if comparison is None:
            return None, ""
        failed = [verdict for verdict in gates.check(comparison, baseline.gates) if verdict.failed]
        who = f"{summary.root.type_name} against {comparison.names[0]}: "
        return comparison, who + "; ".join(map(str, failed)) if failed else ""
    except Exception as error:
        text = f"{summary.root.type_name} could not be compared with the baseline: {reason(error)}"
        if not baseline.gates:
            warn(text)
        return None, text if baseline.gates else ""
