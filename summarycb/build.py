"""Records -> ModelSummary: the only place where one is made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import summarycb
from summarycb.collect.calls import BACKWARD, FORWARD, OPTIMIZER, OUTSIDE, RECOMPUTE, Calls
from summarycb.collect.flops import Flops
from summarycb.collect.memory import Memory as MemoryRecords
from summarycb.collect.memory import storage_bytes
from summarycb.collect.modules import Held, Structure, TensorBytes, describe, dtype_name
from summarycb.tree import BufferSpec, Environment, Memory, ModelSummary, ModuleSummary, Note, ParameterSpec, Work, add


@dataclass
class Records:
    """What was written down of one step. A collector that was not used, or failed, is None."""

    structure: Structure
    calls: Calls | None = None
    flops: Flops | None = None
    memory: MemoryRecords | None = None
    tensor_bytes: TensorBytes | None = None
    optimizers: set[str] = field(default_factory=set)
    backward: bool = False
    precision: str | None = None
    training: bool | None = None
    notes: list[Note] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)

    def note(self, kind: str, text: str) -> None:
        """Say something about the step as a whole."""
        self.notes.append(Note(kind, text))

    def saw_call(self, module: nn.Module) -> None:
        """An outermost module is called: what only holds inside a step is read now, the first time."""
        if self.training is None:
            self.training = module.training
            device = _device(self.structure)
            if device is not None and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                self.precision = f"{dtype_name(torch.get_autocast_dtype(device))} autocast"


def build(records: Records, context: dict[str, Any]) -> ModelSummary:
    """The summary of the records. What fails is left out and said; the structure itself is always there."""
    held = describe(records.structure, records.tensor_bytes)
    work = _work(records)
    root = _tree(records, held, work)
    notes = [*records.notes, *_unknown_notes(records), *_structure_notes(records, held)]
    return ModelSummary(
        root=root,
        outside=work[OUTSIDE],
        memory=_memory(records),
        environment=_environment(records, context),
        optimizer_macs=_optimizer_macs(records),
        observed="structure" if records.calls is None else "step" if records.backward else "forward",
        notes=tuple(notes),
        incomplete=tuple(records.incomplete),
    )


def nothing(type_name: str, reasons: list[str]) -> ModelSummary:
    """The summary of a model of which nothing could be read."""
    unread = ParameterSpec("?", None, "?", "?", False, None)  # how many there are is unknown, which is not none
    root = ModuleSummary(
        "", "", type_name, parameters=(unread,), buffers=(BufferSpec("?", None, "?", "?", True, None),)
    )
    return ModelSummary(root, Work(), Memory(), Environment(summarycb.__version__), incomplete=tuple(reasons))


def _tree(records: Records, held: list[Held], work: dict[int, Work]) -> ModuleSummary:
    nodes, calls = records.structure.nodes, records.calls
    children: list[list[ModuleSummary]] = [[] for _ in nodes]
    for slot in range(len(nodes) - 1, -1, -1):  # a child comes after its parent, so it is made first
        node, facts = nodes[slot], held[slot]
        owner = None if node.alias_of is None else nodes[node.alias_of].path
        module = ModuleSummary(
            path=node.path,
            name=node.name,
            type_name=facts.type_name,
            config=facts.config,
            training=facts.training,
            parameters=facts.parameters,
            buffers=facts.buffers,
            calls=calls.counts[slot] if calls is not None and owner is None else None,
            signatures=calls.signatures_of(slot) if calls is not None else (),
            work=work[slot] if owner is None else Work(0, 0, 0, 0, 0),
            shared_with=owner,
            children=tuple(reversed(children[slot])),
        )
        if node.parent is not None:
            children[node.parent].append(module)
    return module


def _work(records: Records) -> dict[int, Work]:
    flops, memory = records.flops, records.memory
    unknown = set() if flops is None else {(slot, phase) for slot, phase, _ in flops.unknown}

    def macs(slot: int, phase: str) -> int | None:
        seen = flops is not None and (phase == FORWARD or records.backward)
        return flops.macs[slot, phase] if flops is not None and seen and (slot, phase) not in unknown else None

    saved = None if memory is None else memory.saved
    copies = None if memory is None else memory.weight_copies
    return {
        slot: Work(
            forward_macs=macs(slot, FORWARD),
            backward_macs=macs(slot, BACKWARD),
            recompute_macs=macs(slot, RECOMPUTE),
            saved_activations=None if saved is None else saved[slot],
            weight_copies=None if copies is None else copies[slot],
        )
        for slot in range(OUTSIDE, len(records.structure.nodes))
    }


def _optimizer_macs(records: Records) -> int | None:
    flops = records.flops
    if flops is None or any(phase == OPTIMIZER for _, phase, _ in flops.unknown):
        return None
    return flops.macs[OUTSIDE, OPTIMIZER]


def _memory(records: Records) -> Memory:
    structure, found = records.structure, records.memory
    parameters, buffers = list(structure.parameters()), list(structure.buffers())
    lazy = any(nn.parameter.is_lazy(t) for t in (*parameters, *buffers))
    sizes = records.tensor_bytes
    peak_slot, peak_phase = (OUTSIDE, None) if found is None else found.peak_at
    return Memory(
        parameters=None if lazy else storage_bytes(parameters),
        buffers=None if lazy else storage_bytes(buffers),
        gradients=None if sizes is None else sum(sizes.gradients.values()),
        optimizer_state=None
        if sizes is None or sizes.optimizer_state is None
        else add(*sizes.optimizer_state.values()),
        saved_activations=None if found is None or found.saved is None else found.saved.total(),
        weight_copies=None if found is None or found.weight_copies is None else found.weight_copies.total(),
        batch=None if found is None else found.batch,
        peak=None if found is None else found.peak,
        peak_phase=peak_phase,
        peak_module=None if found is None or peak_slot == OUTSIDE else structure.nodes[peak_slot].path,
    )


def _environment(records: Records, context: dict[str, Any]) -> Environment:
    return Environment(
        summarycb=summarycb.__version__,
        torch=str(torch.__version__),
        training=records.training,
        device=_listed(str(p.device) for p in records.structure.parameters()),
        precision=records.precision or _listed(dtype_name(p.dtype) for p in records.structure.parameters()),
        optimizer=_listed(records.optimizers),
        **context,
    )


def _device(structure: Structure) -> str | None:
    return next((p.device.type for p in structure.parameters()), None)


def _listed(names: Iterable[str]) -> str | None:
    return ", ".join(sorted(set(names))) or None


def _unknown_notes(records: Records) -> list[Note]:
    if records.flops is None:
        return []
    nodes = records.structure.nodes
    by_op: dict[str, set[str]] = defaultdict(set)
    for slot, phase, op in records.flops.unknown:
        where = f"{nodes[slot].path or 'the root'}" if slot != OUTSIDE else "outside any module"
        by_op[op].add(f"{phase} of {where}")
    notes = []
    for op, places in sorted(by_op.items()):
        listed = sorted(places)
        rest = f" and {len(listed) - 4} more places" if len(listed) > 4 else ""
        notes.append(Note("unknown", f"{op} has no formula, so MACs are unknown in {', '.join(listed[:4])}{rest}"))
    return notes


def _structure_notes(records: Records, held: list[Held]) -> list[Note]:
    notes = []
    for node, facts in zip(records.structure.nodes, held, strict=True):
        tensors: tuple[ParameterSpec | BufferSpec, ...] = (*facts.parameters, *facts.buffers)
        for tensor in tensors:
            if tensor.shared_with is not None:
                name = f"{node.path}.{tensor.name}" if node.path else tensor.name
                notes.append(Note("tied", f"{name} is {tensor.shared_with}, counted there", node.path))
    calls = records.calls
    if calls is not None and not records.incomplete:
        never = [
            node.path
            for slot, (node, facts) in enumerate(zip(records.structure.nodes, held, strict=True))
            if calls.counts[slot] == 0 and node.alias_of is None and facts.parameters and node.path
        ]
        if never:
            rest = f" and {len(never) - 4} more" if len(never) > 4 else ""
            notes.append(Note("never called", f"never called as a module: {', '.join(never[:4])}{rest}"))
        if calls.other_threads:
            notes.append(Note("threads", "modules were called in other threads too; those calls are not counted"))
    return notes
