"""What is said of a summary above and below its rows: headline and notes, as facts in words. Must not import torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from summarycb import units
from summarycb.fold import Item, paths
from summarycb.specs import Spec, sole, spec_text, tensors_of
from summarycb.step import KINDS, Failure, Memory, Moment
from summarycb.tree import ModelSummary, ModuleSummary, flops

CONVENTION = (
    "1 MAC = 2 FLOPs, whole batch; MACs of matrix products, convolutions, attention (causal masks not discounted) and "
    "RNN gates; biases, norms, activations, softmax and look-ups count 0; only what torch dispatches is seen, no "
    "kernel that a custom autograd.Function runs by itself; ? is unknown"
)


def headline(summary: ModelSummary, roots: Sequence[Item]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Pairs of a heading and the facts under it; ``roots`` are the model and what ran outside of it, folded."""
    memory = summary.memory
    if summary.failure is not None:
        yield "failed", tuple(_failure(summary, summary.failure))
    yield "params", tuple(_params(summary))
    if summary.observed != "structure":
        yield "compute", tuple(_compute(summary))
    if facts := tuple(_memory(summary)):
        yield "memory", facts
    if (moment := memory.peak_at) is not None:
        place = "" if moment.module is None else f" of {moment.module or summary.root.type_name}"
        yield (
            "peak",
            (
                f"{memory.basis('peak')}: {units.nbytes(moment.total)} of tensors in the {moment.phase}{place}",
                *_after("of which ", _parts(moment)),
                *_allocator(memory, "cuda" in (summary.environment.device or "")),
            ),
        )
    yield summary.observed, tuple(_circumstances(summary))
    if summary.ranks:
        yield "ranks", tuple(_ranks(summary))
    if summary.root.children and (facts := tuple(_biggest(summary, roots))):
        yield "biggest", facts
    if facts := tuple(_warnings(summary)):
        yield "warned", facts


def _params(summary: ModelSummary) -> Iterator[str]:
    share = units.percent(summary.trainable_params, summary.total_params) or "0"
    yield f"{units.exact(summary.total_params)} ({share} % trainable)"
    if summary.local_params != summary.total_params:
        yield f"{units.exact(summary.local_params)} on this rank"
    if summary.total_buffers:
        yield f"buffers {units.exact(summary.total_buffers)}"


def _memory(summary: ModelSummary) -> Iterator[str]:
    memory = summary.memory
    known: dict[str, list[str]] = {"measured": [], "derived": []}
    for kind, title in _KINDS.items():
        if value := getattr(memory, kind):
            known[memory.basis(kind)].append(f"{title} {units.nbytes(value)}")
    whose = ", on this rank" if summary.local_params != summary.total_params else ""
    for basis, figures in known.items():
        yield from _after(f"{basis}{whose}: ", figures)
    if summary.observed == "step":  # what is unknown of a step is said; what was never observed is left out
        yield from _after("unavailable: ", [title for kind, title in _KINDS.items() if getattr(memory, kind) is None])


def _circumstances(summary: ModelSummary) -> Iterator[str]:
    environment, root = summary.environment, summary.root
    if environment.training is not None:
        yield "training" if environment.training else "eval mode"
    under = (environment.device, environment.precision, environment.optimizer, environment.framework)
    yield from filter(None, (*under, environment.strategy))
    if environment.rank:  # zero's is all ranks'
        yield f"rank {environment.rank} of {environment.world_size}"
    modules = len(summary.modules)
    yield f"{modules:,} module{'' if modules == 1 else 's'}"
    if summary.entry.call_groups:
        yield f"in {_given(summary.entry.inputs)}{_dtypes(summary.entry.inputs)}"
    if root.call_groups:
        yield f"out {_brief(root.outputs)}{_dtypes(root.outputs)}"


def _dtypes(spec: Spec) -> str:
    return "".join([f" {dtype}" for dtype in sorted({tensor.dtype for tensor in tensors_of(spec)})])


_BIGGEST = {"params": "params", "forward_macs": "MACs", "saved_activations": "saved act."}


def _biggest(summary: ModelSummary, roots: Sequence[Item]) -> Iterator[str]:
    """Of each figure that is known everywhere, the module that has most of it by itself, and its part of all."""
    items = list(paths(roots))
    for figure, title in _BIGGEST.items():
        most, where = 0, ""
        for item, path in items:
            values = [getattr(copy.own, figure) for copy in item.copies]
            if None in values:
                break
            if max(values, default=0) > most:
                each = f" (each of {len(item.copies)})" if len(item.copies) > 1 else ""
                name = path if len(path) <= _MOST_PATH else f"…{path[1 - _MOST_PATH :]}"
                most, where = max(values), f"{name or summary.root.type_name}{each}"
        else:
            if most:
                total = sum([getattr(root.copies[0].total, figure) for root in roots])
                yield f"{title} {where} {units.percent(most, total)} %"


def _warnings(summary: ModelSummary) -> Iterator[str]:
    kinds = Counter(["incomplete"] * len(summary.incomplete) + [n.kind for n in summary.notes if n.kind != "tied"])
    if kinds:
        yield f"{kinds.total()} note{'s' if kinds.total() > 1 else ''} below: " + ", ".join(kinds)


_KINDS = {
    "parameters": "weights",
    "buffers": "buffers",
    "gradients": "gradients",
    "optimizer_state": "optimizer state",
    "saved_activations": "saved activations",
    "weight_copies": "weight copies",
    "batch": "batch",
}
_MOST_CALLERS = 12
_MOST_TEXT, _MOST_PATH = 300, 60
_PASSING = {"activations": "activations", "temporaries": "temporaries"}


def _parts(moment: Moment) -> list[str]:
    titles = {kind: title for kind, title in {**_KINDS, **_PASSING}.items() if kind in KINDS}
    return [f"{title} {units.nbytes(value)}" for kind, title in titles.items() if (value := getattr(moment, kind))]


def _given(inputs: Spec) -> str:
    return _brief(sole(inputs))


def _brief(spec: Spec) -> str:
    """Caches of a language model and lists of all parameters would fill the screen; the summary has them whole."""
    return units.cut(spec_text(spec), _MOST_TEXT)


def _failure(summary: ModelSummary, failure: Failure) -> Iterator[str]:
    module = summary.modules.get(failure.module or "") if failure.calls else None
    phase = "" if failure.phase is None else f" in the {failure.phase}"
    if module is not None:
        place = f": {_named(module)}" + (f" ({module.type_name})" if module.path else "")
    else:  # whose a node of the backward is, is asked of its operations, of which it may have run none
        place = "" if failure.phase == "backward" else ": outside any module"
    yield f"{failure.error}{phase}{place}"
    if failure.calls[:-1]:
        callers = [_named(summary.modules[path]) for path in failure.calls[:-1]]
        yield "called by " + " → ".join(["…"] * (len(callers) > _MOST_CALLERS) + callers[-_MOST_CALLERS:])
    if module is not None:
        yield f"given {_given(failure.inputs)}"
        yield from _after("with ", [f"{p.name} {p.shape_text}" for p in module.parameters])
    if failure.operation is not None:
        yield f"{failure.operation} of {_brief(failure.operands)}"
        yield from _differing(failure.operands)
    if failure.alive is not None:
        yield from _after(f"alive {units.nbytes(failure.alive.total)}: ", _parts(failure.alive))
    holders = [f"{held.module or summary.root.type_name} {units.nbytes(held.bytes)}" for held in failure.holders]
    yield from _after("most held by ", holders)


def _differing(operands: Spec) -> Iterator[str]:
    """What shapes do not say: of which types and on which devices, where it is more than one."""
    tensors = list(tensors_of(operands))
    for kinds in ([tensor.dtype for tensor in tensors], [tensor.device for tensor in tensors]):
        if len(set(kinds)) > 1:
            yield f"of {', '.join(kinds)}"


def _named(module: ModuleSummary) -> str:
    return module.path or module.type_name


def _ranks(summary: ModelSummary) -> Iterator[str]:
    """How many there are, and each kind of memory of which they have more or less, with the rank that has most."""
    yield f"{len(summary.ranks)} of {summary.environment.world_size} observed"
    if summary.all_ranks_flops is not None:
        yield f"step {units.work(summary.all_ranks_flops, 'FLOPs')} on all"
    for kind, title in {"peak": "peak", "allocator_peak": "by the allocator", **_KINDS}.items():
        if (found := summary.over_ranks(kind)) is None:
            continue
        least, most = (getattr(rank.memory, kind) for rank in found)
        if least != most:
            yield f"{title} {units.nbytes(least)} to {units.nbytes(most)} (rank {found[1].rank})"
        elif kind == "peak" and len(summary.ranks) > 1:
            yield f"{title} {units.nbytes(most)} on each"
    for rank in summary.ranks:
        if rank.failure is not None and rank.rank != summary.environment.rank:
            yield f"rank {rank.rank}: {rank.failure.error} in {rank.failure.module or 'the step'}"


def _after(prefix: str, facts: list[str]) -> list[str]:
    return [prefix + facts[0], *facts[1:]] if facts else []


def _allocator(memory: Memory, on_cuda: bool) -> Iterator[str]:
    if memory.allocator_peak is None and on_cuda:
        yield "unavailable: the allocator's peak"
    if memory.allocator_peak is not None:
        yield f"measured: {units.nbytes(memory.allocator_peak)} by the allocator"
        yield f"{units.nbytes(memory.unexplained)} of it no tensor of the step"


def _compute(summary: ModelSummary) -> Iterator[str]:
    until = "" if summary.failure is None else "until it failed: "
    yield f"{until}forward {units.work(summary.forward_macs, 'MACs')} = {units.work(summary.forward_flops, 'FLOPs')}"
    if summary.observed == "step":
        yield f"backward {units.work(summary.backward_flops, 'FLOPs')}"
        yield f"step {units.work(summary.step_flops, 'FLOPs')}"
        if summary.recompute_flops != 0:
            yield f"recomputed {units.work(summary.recompute_flops, 'FLOPs')}"
        if summary.optimizer_macs != 0:
            yield f"optimizer {units.work(flops(summary.optimizer_macs), 'FLOPs')}"
        if summary.hardware_flops != summary.step_flops:
            yield f"all that ran {units.work(summary.hardware_flops, 'FLOPs')}"


def notes(summary: ModelSummary) -> list[str]:
    """What the figures do not say by themselves."""
    notes = [f"incomplete: {reason}" for reason in summary.incomplete]
    tied = [note.text for note in summary.notes if note.kind == "tied"]
    notes += [note.text for note in summary.notes if note.kind != "tied"]
    if tied:
        notes.append("; ".join(tied[:3]) + (f"; and {len(tied) - 3} more tied tensors" if len(tied) > 3 else ""))
    return notes
