"""The graph of a summary as TensorFlow would store a traced one, coloured by cost.

TensorBoard knows two costs. *Compute time* stands for work here: one microsecond is 1 FLOP, or 1 KFLOP, 1 MFLOP ...
where the step would take more than a minute else; each node says which, and has the exact figures. *Memory* is, in the
graph of the forward, what it left alive for the backward, and in that of the backward the gradients. What is unknown
has none, and what never ran is faded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from summarycb.names import escape
from summarycb.specs import TensorSpec
from summarycb.tree import ModelSummary
from summarycb_tensorboard.graph import Cost, Node, drawn
from summarycb_tensorboard.messages import DeviceStepStats, GraphDef, NodeDef, RunMetadata, TensorShapeProto

_PHASES = {"structure": ["structure"], "forward": ["forward"], "step": ["forward", "backward"]}
_MINUTE = 60_000_000
_UNITS = ("FLOP", "KFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP")
_MOST_TEXT = 1_000
"""Bytes of an attribute: TensorBoard shows none that is larger."""
_IN_TEXTS = " -$&-~"
"""ASCII but for the escape itself: TensorBoard shows other characters as their bytes in octal."""


def graphs(summary: ModelSummary) -> Iterator[tuple[str, RunMetadata]]:
    """``"forward"`` and ``"backward"``, as far as the step was observed; or ``"structure"`` where none was."""
    nodes = drawn(summary)
    costs = [node.cost for node in nodes if node.cost is not None]
    most = max(sum(_time_and_memory(cost, phase)[0] or 0 for cost in costs) for phase in _PHASES["step"])
    power = next(power for power in range(len(_UNITS)) if most <= _MINUTE * 1000**power)
    graph = GraphDef(node=[_definition(node, _UNITS[power]) for node in nodes])
    nodes.sort(key=lambda node: node.name.split("/"))  # what is in one module follows each other
    for phase in _PHASES[summary.observed]:
        found = RunMetadata()
        found.function_graphs.add().pre_optimization_graph.CopyFrom(graph)
        if phase != "structure":
            found.step_stats.dev_stats.extend(_stats(nodes, phase, 1000**power))
        yield phase, found


def _time_and_memory(cost: Cost | None, phase: str) -> tuple[int | None, int | None]:
    if cost is None:
        return None, None
    if phase == "forward":
        return cost.forward_flops, cost.saved_activations
    return cost.backward_flops, cost.gradients


def _definition(node: Node, unit: str) -> NodeDef:
    reads = [f"{source.name}:{output}" if output else source.name for source, output in node.reads]
    definition = NodeDef(name=node.name, op=node.op, device=_device(node), input=reads)
    about = {}
    if node.cost is not None:
        about = {key: "?" if amount is None else f"{amount:,}" for key, amount in node.cost._asdict().items()}
        about["compute_time"] = f"1 us is 1 {unit}"
    about |= {key: escape(text, _IN_TEXTS, _MOST_TEXT) for key, text in node.about.items() if text}
    for key, text in about.items():
        definition.attr[key].s = text.encode()
    if shapes := list(node.outputs) or list(node.made):
        definition.attr["_output_shapes"].list.shape.extend([_shape(spec) for spec in shapes])
    return definition


def _stats(nodes: Sequence[Node], phase: str, unit: int) -> list[DeviceStepStats]:
    """One after another: TensorBoard takes a module's time from the first start in it to the last end."""
    devices: dict[str, DeviceStepStats] = {}
    some = next(filter(None, map(_device, nodes)), "/device:cpu:0")  # of what has no tensor: it must have one
    at = unit  # a start at 0 would be left out
    for node in nodes:
        if not node.ran:
            continue
        time, memory = _time_and_memory(node.cost, phase)
        device = _device(node) or some
        found = devices.setdefault(device, DeviceStepStats(device=device)).node_stats.add()
        found.node_name, found.all_start_micros = node.name, at // unit
        if time is not None:
            found.all_end_rel_micros = (at + time) // unit - at // unit
            at += time
        if memory is not None:
            found.memory.add().total_bytes = memory
        for slot, spec in enumerate(node.made or node.outputs):
            output = found.output.add(slot=slot)
            output.tensor_description.shape.CopyFrom(_shape(spec))
    return list(devices.values())


def _device(node: Node) -> str:
    """Of its tensors, as TensorBoard wants it: ``/device:cuda:0``."""
    kind, _, index = next((spec.device for spec in (*node.made, *node.outputs) if spec is not None), "").partition(":")
    return f"/device:{kind}:{index or 0}" if kind else ""


def _shape(spec: TensorSpec | None) -> TensorShapeProto:
    if spec is None:
        return TensorShapeProto(unknown_rank=True)
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in spec.shape])
