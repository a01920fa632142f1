"""select(): what is shown of a summary, decided once for every renderer: rows, columns, headline, notes.

Must not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from summarycb import units
from summarycb.columns import COLUMNS, DEFAULT, STRUCTURE
from summarycb.errors import SummaryError
from summarycb.garbage import collection_paused
from summarycb.specs import Nested, Spec, TensorSpec, spec_text
from summarycb.step import KINDS, Failure, Memory, Moment
from summarycb.tree import ModelSummary, ModuleSummary, flops, outside_row

CONVENTION = (
    "1 MAC = 2 FLOPs, whole batch; MACs of matrix products, convolutions, attention (causal masks not discounted) and "
    "RNN gates; biases, norms, activations, softmax and look-ups count 0; only what torch dispatches is seen, no "
    "kernel that a custom autograd.Function runs by itself; ? is unknown"
)


@dataclass(frozen=True, slots=True)
class Heading:
    """The head of a column."""

    title: str
    justify: Literal["left", "right"] = "right"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: ``guides`` says for each ancestor below the root, and itself, whether it is its parent's last."""

    path: str
    label: str
    guides: tuple[bool, ...]
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """Text that is ready to be laid out: ``headline`` is pairs of a heading and the facts under it."""

    title: str
    headline: tuple[tuple[str, tuple[str, ...]], ...]
    columns: tuple[Heading, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029], " ")


def clean(text: str) -> str:
    """``text`` on one line, without what a terminal would obey."""
    return text if text.isprintable() else text.translate(_CONTROLS)


_DEFAULTS = {
    "structure": STRUCTURE,
    "forward": tuple(
        key for key in DEFAULT if key != "saved_activations"
    ),  # without a backward nothing is saved for it
    "step": DEFAULT,
}


def check_depth(depth: object) -> int | None:
    """``depth``, or SummaryError when it is neither None (every level) nor a number from 0 (the root alone) on."""
    if depth is None or (isinstance(depth, int) and not isinstance(depth, bool) and depth >= 0):
        return depth
    raise SummaryError(f"depth must be None (every level) or an integer from 0 (the root alone) on, not {depth!r}")


def check_columns(columns: Sequence[str] | None) -> tuple[str, ...]:
    """The columns' keys, or SummaryError when one does not exist."""
    if columns is None:
        return DEFAULT
    if isinstance(columns, str) or not isinstance(columns, Sequence):
        raise SummaryError(f"columns must be a list of names, not {columns!r}; allowed: {', '.join(COLUMNS)}")
    for key in columns:
        if key not in COLUMNS:
            raise SummaryError(f"there is no column {key!r}; allowed: {', '.join(COLUMNS)}")
    return tuple(columns)


@collection_paused()
def select(summary: ModelSummary, *, depth: int | None = 3, columns: Sequence[str] | None = None) -> View:
    """The rows down to ``depth`` levels below the root, each with its whole subtree's figures, and the outside row."""
    depth = check_depth(depth)
    keys = _DEFAULTS[summary.observed] if columns is None else check_columns(columns)
    chosen = tuple(COLUMNS[key] for key in keys)
    rows = [
        Row(module.path, _label(module, guides), guides, tuple(column.text(module, summary) for column in chosen))
        for module, guides in _visible(summary, depth)
    ]
    return View(
        title=summary.root.type_name,
        headline=tuple(_headline(summary)),
        columns=tuple(Heading(column.title, column.justify) for column in chosen),
        rows=tuple(rows),
        notes=(*([CONVENTION] if summary.observed != "structure" else []), *_notes(summary)),
    )


def _visible(summary: ModelSummary, depth: int | None) -> Iterator[tuple[ModuleSummary, tuple[bool, ...]]]:
    root = summary.root
    if (
        summary.observed != "structure"
    ):  # a step was observed: its work outside any module is a row, so that rows sum to it
        root = replace(root, children=(*root.children, outside_row(summary.outside)))
        outside_shown = depth is None or depth > 0
        if not outside_shown:
            root = replace(root, children=summary.root.children)
    yield summary.root, ()
    stack: list[tuple[ModuleSummary, tuple[bool, ...]]] = []
    stack += [(child, (child is root.children[-1],)) for child in reversed(root.children)]
    while stack:
        module, guides = stack.pop()
        if depth is not None and len(guides) > depth:
            continue
        yield module, guides
        stack.extend((child, (*guides, child is module.children[-1])) for child in reversed(module.children))


def _label(module: ModuleSummary, guides: tuple[bool, ...]) -> str:
    label = module.name if guides else module.type_name
    return label if module.shared_with is None else f"{label} = {module.shared_with or 'the root'}"


def _headline(summary: ModelSummary) -> Iterator[tuple[str, tuple[str, ...]]]:
    root, memory, environment = summary.root, summary.memory, summary.environment
    if summary.failure is not None:
        yield "failed", tuple(_failure(summary, summary.failure))
    mode = {None: None, True: "training", False: "eval mode"}[environment.training]
    under = [mode, environment.device, environment.precision, environment.optimizer]
    where = f"rank {environment.rank} of {environment.world_size}" if environment.rank else None  # zero's is all ranks'
    facts = [fact for fact in (*under, environment.framework, environment.strategy, where) if fact]
    if root.call_groups:
        facts.append(f"in {_given(root.inputs)} → out {_brief(root.outputs)}")
    modules = len(summary.modules)
    yield summary.observed, (*facts, f"{modules:,} module{'' if modules == 1 else 's'}")

    shares = f"{units.percent(summary.trainable_params, summary.total_params) or '0'} % trainable"
    buffers = [f"buffers {units.exact(summary.total_buffers)}"] if summary.total_buffers else []
    sharded = summary.local_params != summary.total_params
    here = [f"{units.exact(summary.local_params)} on this rank"] if sharded else []
    yield "params", (f"{units.exact(summary.total_params)} ({shares})", *here, *buffers)
    if summary.observed != "structure":
        yield "compute", tuple(_compute(summary))

    known: dict[str, list[str]] = {"measured": [], "derived": []}
    for kind, title in _KINDS.items():
        if value := getattr(memory, kind):
            known[memory.basis(kind)].append(f"{title} {units.nbytes(value)}")
    whose = ", on this rank" if sharded else ""
    facts = [fact for basis, figures in known.items() for fact in _after(f"{basis}{whose}: ", figures)]
    if summary.observed == "step":  # what is unknown of a step is said; what was never observed is left out
        facts += _after("unavailable: ", [title for kind, title in _KINDS.items() if getattr(memory, kind) is None])
    if facts:
        yield "memory", tuple(facts)
    if (moment := memory.peak_at) is not None:
        place = "" if moment.module is None else f" of {moment.module or root.type_name}"
        yield (
            "peak",
            (
                f"{memory.basis('peak')}: {units.nbytes(moment.total)} of tensors in the {moment.phase}{place}",
                *_after("of which ", _parts(moment)),
                *_allocator(memory, "cuda" in (environment.device or "")),
            ),
        )
    if summary.ranks:
        yield "ranks", tuple(_ranks(summary))


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
_MOST_TEXT = 300
_PASSING = {"activations": "activations", "temporaries": "temporaries"}


def _parts(moment: Moment) -> list[str]:
    titles = {kind: title for kind, title in {**_KINDS, **_PASSING}.items() if kind in KINDS}
    return [f"{title} {units.nbytes(value)}" for kind, title in titles.items() if (value := getattr(moment, kind))]


def _given(inputs: Spec) -> str:
    return _brief(inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs)


def _brief(spec: Spec) -> str:
    """Caches of a language model and lists of all parameters would fill the screen; the summary has them whole."""
    text = spec_text(spec)
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 1]}…"


def _failure(summary: ModelSummary, failure: Failure) -> Iterator[str]:
    module = summary.modules.get(failure.module or "") if failure.calls else None
    phase = "" if failure.phase is None else f" in the {failure.phase}"
    place = "outside any module" if module is None else _named(module)
    if module is not None and module.path:
        place += f" ({module.type_name})"
    yield f"{failure.error}{phase}: {place}"
    if failure.calls[:-1]:
        callers = [_named(summary.modules[path]) for path in failure.calls[:-1]]
        yield "called by " + " → ".join(["…"] * (len(callers) > _MOST_CALLERS) + callers[-_MOST_CALLERS:])
    if module is not None:
        yield f"given {_given(failure.inputs)}"
        yield from _after("with ", [f"{p.name} {'?' if p.shape is None else list(p.shape)}" for p in module.parameters])
    if failure.operation is not None:
        yield f"{failure.operation} of {_brief(failure.operands)}"
        yield from _differing(failure.operands)
    if failure.alive is not None:
        yield from _after(f"alive {units.nbytes(failure.alive.total)}: ", _parts(failure.alive))
    holders = [f"{held.module or summary.root.type_name} {units.nbytes(held.bytes)}" for held in failure.holders]
    yield from _after("most held by ", holders)


def _differing(operands: Spec) -> Iterator[str]:
    """What shapes do not say: of which types and on which devices, where it is more than one."""
    tensors = list(_tensors(operands))
    for kinds in ([tensor.dtype for tensor in tensors], [tensor.device for tensor in tensors]):
        if len(set(kinds)) > 1:
            yield f"of {', '.join(kinds)}"


def _tensors(spec: Spec) -> Iterator[TensorSpec]:
    if isinstance(spec, TensorSpec):
        yield spec
    elif isinstance(spec, tuple | Nested):
        for part in spec.values() if isinstance(spec, Nested) else spec:
            yield from _tensors(part)


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
    yield f"forward {units.work(summary.forward_macs, 'MACs')} = {units.work(summary.forward_flops, 'FLOPs')}"
    if summary.observed == "step":
        yield f"backward {units.work(summary.backward_flops, 'FLOPs')}"
        yield f"step {units.work(summary.step_flops, 'FLOPs')}"
        if summary.recompute_flops != 0:
            yield f"recomputed {units.work(summary.recompute_flops, 'FLOPs')}"
        if summary.optimizer_macs != 0:
            yield f"optimizer {units.work(flops(summary.optimizer_macs), 'FLOPs')}"
        if summary.hardware_flops != summary.step_flops:
            yield f"all that ran {units.work(summary.hardware_flops, 'FLOPs')}"


def _notes(summary: ModelSummary) -> list[str]:
    notes = [f"incomplete: {reason}" for reason in summary.incomplete]
    tied = [note.text for note in summary.notes if note.kind == "tied"]
    notes += [note.text for note in summary.notes if note.kind != "tied"]
    if tied:
        notes.append("; ".join(tied[:3]) + (f"; and {len(tied) - 3} more tied tensors" if len(tied) > 3 else ""))
    return notes
