"""What the figures do not say by themselves: of the step, of what could not be counted, of the structure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from summarycb.collect.calls import BACKWARD, OUTSIDE, UNPLACED
from summarycb.collect.modules import Held
from summarycb.collect.origins import MOST_PARTS
from summarycb.records import Records
from summarycb.specs import BufferSpec, ParameterSpec
from summarycb.step import Note

_MOST_NAMED = 4


def notes(records: Records, held: Sequence[Held]) -> Iterator[Note]:
    """All of them: what was said while the step ran comes first."""
    yield from records.notes
    yield from _step_notes(records)
    yield from _unknown_notes(records)
    yield from _structure_notes(records, held)


def _step_notes(records: Records) -> Iterator[Note]:
    calls, memory, nodes = records.calls, records.memory, records.structure.nodes
    if calls is not None and (forwards := calls.count(0)) > 1:
        yield Note("forwards", f"the model ran {forwards:,} times within the step; the figures are of all of them")
    unused = Counter(() if calls is None else [nodes[calls.slot(call)].path for call in calls.without_backward()])
    for path, count in unused.items():
        times = "a forward" if count == 1 else f"{count:,} forwards"
        why = "as where an error is caught or the output detached"
        of = f"{times} of {path or 'the model'} had no backward before the step ended"
        yield Note("no backward", f"{of}, {why}; the figures have it")
    if records.backward and records.idle:
        yield Note("optimizer", "an optimizer did not step, as in gradient accumulation: its state is unknown")
    if records.missed:
        yield Note("missed", f"{_before(records, records.missed)}: what it did of the step is unknown")
    elif memory is not None and memory.batch is None:
        what = "an input holds what cannot be looked into, or too much"
        yield Note("batch", f"{what}: what the step made of it counts as saved")
    if records.unseen:
        yield Note("missed", f"{_before(records, records.unseen)}, without gradients: it is no part of what is shown")
    if memory is not None and memory.backwards > 1:
        ran = f"backward ran {memory.backwards:,} times within the step"
        yield Note("backwards", f"{ran}; saved activations are those before the one that found the most")
    if calls is not None and records.flow is not None and records.flow.ended_early(calls):
        yield Note("dataflow", "the dataflow is of what ran before the first backward")
    if records.flow is not None and records.flow.joined:
        parts = f"more than {MOST_PARTS:,} parts: in the dataflow who reads one of them seems to read all"
        yield Note("dataflow", f"a tensor was written in {parts}")


def _before(records: Records, rows: Sequence[int]) -> str:
    return f"{_listed([records.structure.nodes[row].path or 'the root' for row in rows])} ran before the step was seen"


def _listed(names: Sequence[str], rest: str = "more") -> str:
    """The first few, and how many there are besides."""
    more = f" and {len(names) - _MOST_NAMED} {rest}" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _unknown_notes(records: Records) -> list[Note]:
    if records.flops is None:
        return []
    nodes, calls = records.structure.nodes, records.calls
    assert calls is not None
    by_op: dict[str, set[str]] = defaultdict(set)
    for call, phase, op in records.flops.unknown:
        slot = calls.slot(call)
        where = f"{nodes[slot].path or 'the root'}" if slot != OUTSIDE else "outside any module"
        by_op[op].add(f"{phase} of {where}")
    notes = []
    if (UNPLACED, BACKWARD) in records.flops.macs:
        why = "modules ran in other threads" if calls.strange_nodes else "a graph has too many nodes to ask each"
        notes.append(Note("unplaced", f"whose backward it is could not be told, because {why}"))
    for op, places in sorted(by_op.items()):
        listed = _listed(sorted(places), "more places")
        notes.append(Note("unknown", f"{op} could not be counted, so MACs are unknown in {listed}"))
    return notes


def _structure_notes(records: Records, held: Sequence[Held]) -> list[Note]:
    notes = []
    for node, facts in zip(records.structure.nodes, held, strict=True):
        tensors: tuple[ParameterSpec | BufferSpec, ...] = (*facts.parameters, *facts.buffers)
        for tensor in tensors:
            if tensor.shared_with is not None:
                name = f"{node.path}.{tensor.name}" if node.path else tensor.name
                notes.append(Note("tied", f"{name} is {tensor.shared_with}, counted there", node.path))
    if records.structure.flattened:
        text = "FullyShardedDataParallel flattens parameters: their own sizes are unknown; fully_shard keeps them"
        notes.append(Note("flattened", text))
    calls = records.calls
    if calls is not None and not records.incomplete:
        called = {call.slot for call in calls.made}.union(records.unseen)
        nodes = records.structure.nodes
        scripted = [isinstance(node.module, torch.jit.ScriptModule) for node in nodes]
        outermost = [node.parent is None or not scripted[node.parent] for node in nodes]
        notes += [
            Note("scripted", f"calls within {node.path or 'the root'} are not seen: it has their work", node.path)
            for slot, node in enumerate(nodes)
            if scripted[slot] and outermost[slot] and slot in called
        ]
        never = [
            node.path
            for slot, (node, facts) in enumerate(zip(nodes, held, strict=True))
            if slot not in called
            and node.alias_of is None
            and facts.parameters
            and node.path
            and outermost[slot]
            and not isinstance(node.module, nn.ParameterList | nn.ParameterDict)  # which nobody can call
        ]
        if never:
            notes.append(Note("never called", f"never called as a module: {_listed(never)}"))
        if calls.other_threads:
            notes.append(Note("threads", "modules were called in other threads too; those calls are not counted"))
    return notes
