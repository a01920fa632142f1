"""Records -> ModelSummary: the only place where one is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import nn

import summarycb
from summarycb.collect.calls import (
    BACKWARD,
    FORWARD,
    OPTIMIZER,
    OUTSIDE,
    RECOMPUTE,
    UNPLACED,
)
from summarycb.collect.memory import Stretch
from summarycb.collect.modules import Held, describe, dtype_name
from summarycb.collect.storages import storage_bytes
from summarycb.garbage import collection_paused
from summarycb.notes import notes
from summarycb.records import Records, device_of
from summarycb.specs import BufferSpec, Opaque, ParameterSpec
from summarycb.step import Environment, Failure, Holder, Memory, Moment
from summarycb.tree import WORK, CallGroup, ModelSummary, ModuleSummary, Work, add

_MOST_GROUPS = 16
_MOST_HOLDERS = 10
_OTHER = Opaque("other calls")


@collection_paused()
def build(records: Records, context: dict[str, Any]) -> ModelSummary:
    """The summary of the records. What fails is left out and said; the structure itself is always there."""
    held = describe(records.structure, records.tensor_bytes)
    outside, groups = _work(records)
    root = _tree(records, held, groups)
    return ModelSummary(
        root=root,
        outside=outside,
        memory=_memory(records),
        environment=_environment(records, context),
        optimizer_macs=_optimizer_macs(records),
        unplaced_backward_macs=_unplaced_macs(records),
        observed="structure" if records.calls is None else "step" if records.backward else "forward",
        notes=tuple(notes(records, held)),
        incomplete=tuple(records.incomplete),
        failure=_failure(records),
        dataflow=None if records.flow is None else records.flow.dataflow(),
    )


def nothing(type_name: str, reasons: list[str]) -> ModelSummary:
    """The summary of a model of which nothing could be read."""
    unread = ParameterSpec("?", None, "?", "?", False, None)  # how many there are is unknown, which is not none
    root = ModuleSummary(
        "", "", type_name, parameters=(unread,), buffers=(BufferSpec("?", None, "?", "?", True, None),)
    )
    return ModelSummary(root, Work(), Memory(), Environment(summarycb.__version__), incomplete=tuple(reasons))


def _tree(records: Records, held: list[Held], groups: list[tuple[CallGroup, ...]] | None) -> ModuleSummary:
    nodes = records.structure.nodes
    children: list[list[ModuleSummary]] = [[] for _ in nodes]
    for slot in range(len(nodes) - 1, -1, -1):  # a child comes after its parent, so it is made first
        node, facts = nodes[slot], held[slot]
        module = ModuleSummary(
            path=node.path,
            name=node.name,
            type_name=facts.type_name,
            config=facts.config,
            training=facts.training,
            parameters=facts.parameters,
            buffers=facts.buffers,
            call_groups=None if groups is None else groups[slot],
            shared_with=None if node.alias_of is None else nodes[node.alias_of].path,
            children=tuple(reversed(children[slot])),
        )
        if node.parent is not None:
            children[node.parent].append(module)
    return module


def _work(records: Records) -> tuple[Work, list[tuple[CallGroup, ...]] | None]:
    """What ran outside of modules, and for each row its calls, grouped; None when no calls were observed."""
    calls = records.calls
    if calls is None:
        return Work(), None
    own = _own_work(records)
    total = [*own[: len(calls.made)]]
    for number in range(len(calls.made) - 1, -1, -1):  # a call comes after the one that made it
        caller = calls.made[number].caller
        if caller >= 0:
            total[caller] = _sum(total[caller], total[number])
    rows: list[dict[tuple[object, ...], list[int]]] = [{} for _ in records.structure.nodes]
    for number, call in enumerate(calls.made):
        # equal inputs are one object, and so are equal outputs
        key = (id(call.inputs), id(call.outputs), own[number], total[number])
        rows[call.slot].setdefault(key, []).append(number)

    @cache
    def work(amounts: _Amounts, count: int) -> Work:
        return Work(*[n and n * count for n in amounts])

    def group(numbers: list[int]) -> CallGroup:
        first, count = numbers[0], len(numbers)
        call = calls.made[first]
        return CallGroup(count, call.inputs, call.outputs, work(own[first], count), work(total[first], count))

    return Work(*own[OUTSIDE]), [_bounded([group(numbers) for numbers in row.values()]) for row in rows]


_Amounts = tuple[int | None, ...]


def _own_work(records: Records) -> list[_Amounts]:
    """What ran in each call itself, and last, at the index ``OUTSIDE``, outside of all."""
    assert records.calls is not None
    flops = records.flops
    count = len(records.calls.made)
    zero_flops = [None] * 3 if flops is None else [0, *([0, 0] if records.backward else [None, None])]
    left_alive = _left_alive(records)
    zero_bytes = [None if found is None else 0 for found in left_alive]
    own: list[list[int | None]] = [[*zero_flops, *zero_bytes] for _ in range(count + 1)]
    columns = {FORWARD: 0, BACKWARD: 1, RECOMPUTE: 2}
    if flops is not None:
        for (call, phase), macs in flops.macs.items():
            if phase in columns:
                found = own[max(call, OUTSIDE)]
                found[columns[phase]] = add(found[columns[phase]], macs)
        for call, phase, _ in flops.unknown:
            if phase in columns:
                own[max(call, OUTSIDE)][columns[phase]] = None
        if (UNPLACED, BACKWARD) in flops.macs:
            for amounts in own:
                amounts[columns[BACKWARD]] = amounts[columns[RECOMPUTE]] = None
        missed = [number for number, call in enumerate(records.calls.made) if call.missed]
        for number in (*missed, OUTSIDE) if missed else ():
            own[number][columns[FORWARD]] = None
    for column, found_bytes in enumerate(left_alive, 3):
        for call, size in (found_bytes or {}).items():
            own[max(call, OUTSIDE)][column] = size
    return [tuple(amounts) for amounts in own]


def _left_alive(records: Records) -> tuple[Counter[int] | None, Counter[int] | None]:
    """By call, what the forward left alive for the backward: activations, and copies of weights."""
    if records.memory is None or records.missed:  # what ran before was taken for the batch
        return None, None
    return records.memory.saved, records.memory.weight_copies


def _sum(a: _Amounts, b: _Amounts) -> _Amounts:
    return tuple([add(x, y) for x, y in zip(a, b, strict=True)])


def _bounded(groups: list[CallGroup]) -> tuple[CallGroup, ...]:
    """The groups, those beyond the most that are kept as one."""
    if len(groups) > _MOST_GROUPS:
        rest = groups[_MOST_GROUPS - 1 :]
        own, total = (
            Work(*[add(*[getattr(getattr(group, which), name) for group in rest]) for name in WORK])
            for which in ("own", "total")
        )
        groups[_MOST_GROUPS - 1 :] = [CallGroup(sum(group.calls for group in rest), _OTHER, _OTHER, own, total)]
    return tuple(groups)


def _unplaced_macs(records: Records) -> int | None:
    """All of the backward's MACs, when some of them are nobody's; None when all are somebody's, or one is unknown."""
    flops = records.flops
    if flops is None or (UNPLACED, BACKWARD) not in flops.macs or any(p == BACKWARD for _, p, _ in flops.unknown):
        return None
    return sum(macs for (_, phase), macs in flops.macs.items() if phase == BACKWARD)


def _optimizer_macs(records: Records) -> int | None:
    flops = records.flops
    if flops is None or any(phase == OPTIMIZER for _, phase, _ in flops.unknown):
        return None
    return flops.macs.get((OUTSIDE, OPTIMIZER), 0)


def _memory(records: Records) -> Memory:
    structure, found = records.structure, records.memory
    parameters, buffers = list(structure.parameters()), list(structure.buffers())
    lazy = [any(map(nn.parameter.is_lazy, held)) for held in (parameters, buffers)]
    sizes = records.tensor_bytes
    saved, copies = _left_alive(records)
    timeline = () if found is None else tuple([_moment(records, stretch) for stretch in found.timeline])
    return Memory(
        parameters=None if lazy[0] else storage_bytes(parameters),
        buffers=None if lazy[1] else storage_bytes(buffers),
        gradients=None if sizes is None else sum(sizes.gradients.values()),
        optimizer_state=None
        if sizes is None or sizes.optimizer_state is None
        else add(*sizes.optimizer_state.values()),
        saved_activations=None if saved is None else saved.total(),
        weight_copies=None if copies is None else copies.total(),
        batch=None if found is None or records.missed else found.batch,
        peak_at=max(timeline, key=lambda moment: moment.total, default=None),
        timeline=timeline,
        allocator_peak=None if found is None else found.allocator_peak,
        simulated=device_of(structure) == "meta",
    )


def _moment(records: Records, stretch: Stretch) -> Moment:
    assert records.calls is not None
    slot = records.calls.slot(stretch.call)
    module = None if slot == OUTSIDE else records.structure.nodes[slot].path
    return Moment(stretch.phase, module, *stretch.kinds)


def _failure(records: Records) -> Failure | None:
    raised, calls, nodes = records.raised, records.calls, records.structure.nodes
    if raised is None:
        return None
    rows = [] if calls is None else calls.path(raised.call)
    module = nodes[rows[-1]].path if rows else None
    holders = Counter({slot: size for slot, size in raised.holders.items() if slot != OUTSIDE and size})
    return Failure(
        error=raised.type_name,
        phase=raised.phase,
        calls=tuple([nodes[slot].path for slot in rows]),
        inputs=calls.made[raised.call].inputs if rows and calls is not None else None,
        operation=raised.operation,
        operands=raised.operands,
        out_of_memory=raised.out_of_memory,
        alive=None if raised.alive is None or raised.phase is None else Moment(raised.phase, module, *raised.alive),
        holders=tuple([Holder(nodes[slot].path, size) for slot, size in holders.most_common(_MOST_HOLDERS)]),
    )


def _environment(records: Records, context: dict[str, Any]) -> Environment:
    parameters = list(records.structure.parameters())
    return Environment(
        summarycb=summarycb.__version__,
        torch=str(torch.__version__),
        training=records.training,
        device=_listed(map(str, {p.device for p in parameters})),
        precision=records.precision or _listed(map(dtype_name, {p.dtype for p in parameters})),
        optimizer=_listed(records.optimizers),
        **context,
    )


def _listed(names: Iterable[str]) -> str | None:
    return ", ".join(sorted(set(names))) or None
