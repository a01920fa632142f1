"""What flowed where in the forward of the observed step, as it is stored. Must not import torch.

The nodes are the calls of modules without children, and the operations that other modules' own forwards and the loss
ran; views and copies are no nodes, the data passes through them. :mod:`summarycb.graph` makes drawings' graphs of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from summarycb.specs import TensorSpec

FlowKind: TypeAlias = Literal["module", "op", "input", "output", "parameter"]
MOST_NODES = 20_000
MOST_EDGES = 100_000
"""A dataflow of more of either is not kept."""


@dataclass(frozen=True, slots=True)
class FlowCall:
    """A call of a module: its place in definition order, and the call that made it."""

    module: int
    caller: int | None


@dataclass(frozen=True, slots=True)
class FlowEdge:
    """A tensor that a node has read: the node that it came from, and which of the known tensors it is like.

    ``tensor`` is None where it has no shape, as a nested one.
    """

    source: int
    tensor: int | None


@dataclass(frozen=True, slots=True)
class FlowNode:
    """One thing that data comes from or goes to.

    ``"module"``: the call of a module; ``"op"``: an operation called ``name``, run by the module of ``call``, or
    outside of modules; ``"input"`` and ``"output"``: what the model was given and gave, by key or position, the loss
    that backward began with, and tensors from before the step, without a name; ``"parameter"``: one, or a buffer, of
    the module in place ``module``. ``output`` is which of the known tensors it made, None where it made several.
    """

    kind: FlowKind
    name: str = ""
    call: int | None = None
    module: int | None = None
    output: int | None = None
    inputs: tuple[FlowEdge, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataflow:
    """The nodes in the order in which they first ran; what they refer to is by place in these tuples."""

    calls: tuple[FlowCall, ...]
    tensors: tuple[TensorSpec, ...]
    nodes: tuple[FlowNode, ...]

    def fault(self, modules: int) -> str | None:
        """What it refers to that is not there, in a tree of so many modules."""
        calls, tensors, nodes = len(self.calls), len(self.tensors), len(self.nodes)
        for place, call in enumerate(self.calls):
            if call.module >= modules or not _there(call.caller, place):
                return f"calls[{place}]"
        for place, node in enumerate(self.nodes):
            lacks = {"module": node.call, "parameter": node.module}.get(node.kind, 0) is None
            there = _there(node.call, calls) and _there(node.module, modules) and _there(node.output, tensors)
            if lacks or not there:
                return f"nodes[{place}]"
            if any(edge.source >= nodes or not _there(edge.tensor, tensors) for edge in node.inputs):
                return f"nodes[{place}].inputs"
        return None


def _there(place: int | None, count: int) -> bool:
    return place is None or place < count
