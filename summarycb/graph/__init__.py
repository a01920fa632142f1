"""The dataflow as a graph to be drawn. Must not import torch.

In three stages, each a function of what the one before gives: :func:`contracted` cuts the stored dataflow at a depth
into units, :func:`told` finds what repeats among them, and :func:`drawn` makes nodes, edges and groups of the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from summarycb.errors import SummaryError
from summarycb.graph.contracted import contracted, levels
from summarycb.graph.drawn import Edge as Edge
from summarycb.graph.drawn import Graph as Graph
from summarycb.graph.drawn import Group as Group
from summarycb.graph.drawn import Node as Node
from summarycb.graph.drawn import drawn
from summarycb.graph.folded import likenesses
from summarycb.graph.told import Told, told
from summarycb.tree import ModelSummary


def contract(summary: ModelSummary, *, depth: int | None = 2, fold: bool = True, parameters: bool = False) -> Graph:
    """The graph of ``summary.dataflow``.

    ``depth`` is how many calls within one another are told apart: 0 is the model as one node, 1 what it calls and
    computes itself, and ``None`` all. With ``fold`` what repeats is drawn once: modules that are folded in the table
    too, and were used alike. With ``parameters`` they are nodes too, and what is computed of nothing else.
    """
    if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or depth < 0):
        raise SummaryError(f"depth must be a whole number from 0, or None for all, not {depth!r}")
    if summary.dataflow is None:
        raise SummaryError("the summary has no dataflow: " + _why(summary))
    [graph] = contractions(summary, [depth], fold=fold, parameters=parameters)
    return graph


def contractions(
    summary: ModelSummary, at: Iterable[int | None], *, fold: bool = True, parameters: bool = False
) -> Iterator[Graph]:
    """The graph at each of several depths."""
    if summary.dataflow is not None:
        alike = likenesses(summary) if fold else {}
        for depth in at:
            units = contracted(summary.root, summary.dataflow, depth, parameters=parameters)
            yield drawn(units, told(units, alike) if fold else Told())


def depths(summary: ModelSummary) -> range:
    """The depths at which the graph differs."""
    flow = summary.dataflow
    if flow is None:
        return range(0)
    level = levels(flow)
    found = [level[n.call] + (n.kind == "op") for n in flow.nodes if n.call is not None]
    return range(1, max(found, default=0) + 1)


def _why(summary: ModelSummary) -> str:
    if summary.observed == "structure":
        return "no step was observed"
    reasons = [note.text for note in summary.notes if note.kind == "dataflow"]
    return "; ".join([*reasons, *summary.incomplete]) or "it was not stored"
