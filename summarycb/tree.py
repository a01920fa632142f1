"""The frozen tree that everything before it builds and everything after it reads. Must not import torch.

Units: parameters and buffers are counted in elements, memory in bytes, work in MACs (1 MAC = 2 FLOPs, the convention of
``torch.utils.flop_counter``). Anything that was not observed or could not be derived is ``None``, never 0. The types
are what a stored summary is checked for: an ``int`` is from 0 to ``MAX_INT``, a ``Positive`` from 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import islice
from typing import Literal, NamedTuple, Protocol, Self, TypeAlias, TypeVar

from summarycb.dataflow import Dataflow
from summarycb.forms import Forms
from summarycb.specs import BufferSpec, ParameterSpec, Spec
from summarycb.step import Environment, Failure, Memory, Note, Positive, Rank

Observed: TypeAlias = Literal["structure", "forward", "step"]


class _Nested(Protocol):
    @property
    def children(self) -> Sequence[Self]: ...


_Node = TypeVar("_Node", bound=_Nested)


def subtree(top: _Node) -> Iterator[_Node]:
    """All that is in something, itself first, in order; however deep it is."""
    stack = [top]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(node.children))


def add(*values: int | None) -> int | None:
    """The sum, or None when a term is unknown."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


@dataclass(frozen=True, slots=True)
class Work:
    """What the observed step did in one place; None where it was not observed or holds an operation without a formula.

    ``recompute_macs`` is forward work that ran again during backward (activation checkpointing, flash attention): it is
    part of the hardware figure, not of the model figure. ``saved_activations`` and ``weight_copies`` (low-precision
    copies that autocast made) are bytes that the forward left alive for backward.
    """

    forward_macs: int | None = None
    backward_macs: int | None = None
    recompute_macs: int | None = None
    saved_activations: int | None = None
    weight_copies: int | None = None


WORK = tuple(f.name for f in fields(Work))
OUTSIDE = "(outside)"
"""Stands for a path in the row of what the step did outside any module."""


@dataclass(frozen=True, slots=True)
class CallGroup:
    """``calls`` calls of one module that had the same inputs and outputs, and the same figures.

    ``own`` is what ran in these calls, all of them together, and in no call that they made; ``total`` has those too.
    Where a module was called in more ways than are kept, the last group is the rest, with inputs and outputs as
    :class:`~summarycb.specs.Opaque`.
    """

    calls: Positive
    inputs: Spec
    outputs: Spec
    own: Work
    total: Work


class Amounts(NamedTuple):
    """Everything that adds up over modules. Elements, bytes and MACs; None is unknown and makes a sum unknown.

    The sizes are global, but for ``local_params`` and ``local_parameter_bytes``, and for gradients and optimizer state:
    these are of the real objects, on this rank.
    """

    params: int | None
    trainable_params: int | None
    buffers: int | None
    parameter_bytes: int | None
    buffer_bytes: int | None
    local_params: int | None
    local_parameter_bytes: int | None
    gradients: int | None
    optimizer_state: int | None
    forward_macs: int | None
    backward_macs: int | None
    recompute_macs: int | None
    saved_activations: int | None
    weight_copies: int | None


@dataclass(frozen=True)
class ModuleSummary:
    """One module: where it is, what it holds, and what the observed step did in it.

    ``path`` is the fully qualified name, as in ``state_dict`` keys (the root is ``""``). ``call_groups`` is None where
    no step was observed, and empty where the module was not called in it. ``own`` counts the module without its
    children, ``total`` its whole subtree. A module that is registered in a second place is a leaf there, with
    ``shared_with`` naming the path that owns it; its calls are there too.
    """

    path: str
    name: str
    type_name: str
    config: str = ""
    training: bool | None = None
    parameters: tuple[ParameterSpec, ...] = ()
    buffers: tuple[BufferSpec, ...] = ()
    call_groups: tuple[CallGroup, ...] | None = None
    shared_with: str | None = None
    children: tuple[ModuleSummary, ...] = ()
    own: Amounts = field(init=False, repr=False, compare=False)
    total: Amounts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        own = total = Amounts(*self._sizes(), *self._work())
        if self.children:
            total = Amounts(*[add(*terms) for terms in zip(own, *[c.total for c in self.children], strict=True)])
        object.__setattr__(self, "own", own)
        object.__setattr__(self, "total", total)

    def _sizes(self) -> Sequence[int | None]:
        owned = [p for p in self.parameters if p.shared_with is None]
        held = [b for b in self.buffers if b.shared_with is None]
        if not owned and not held:
            return (0,) * (len(Amounts._fields) - len(WORK))
        elements, size = add(*[p.numel for p in owned]), add(*[p.bytes for p in owned])
        in_parts = any(p.local_shape is not None for p in owned)
        return (
            elements,
            elements if all(p.trainable for p in owned) else add(*[p.numel for p in owned if p.trainable]),
            add(*[b.numel for b in held]),
            size,
            add(*[b.bytes for b in held]),
            add(*[p.local_numel for p in owned]) if in_parts else elements,
            add(*[p.local_bytes for p in owned]) if in_parts else size,
            add(*[p.gradient for p in owned]),
            add(*[p.optimizer_state for p in owned]),
        )

    def _work(self) -> Sequence[int | None]:
        if self.call_groups is None and self.shared_with is None:
            return (None,) * len(WORK)
        return [add(*[getattr(group.own, name) for group in self.call_groups or ()]) for name in WORK]

    @property
    def calls(self) -> int | None:
        """How often it was called in the step; None where no step was observed, and for a module in a second place."""
        if self.call_groups is None or self.shared_with is not None:
            return None
        return sum(group.calls for group in self.call_groups)

    @property
    def inputs(self) -> Spec:
        """The first call's inputs: a tuple when all were positional, else a mapping by position and keyword."""
        return self.call_groups[0].inputs if self.call_groups else None

    @property
    def outputs(self) -> Spec:
        """The first call's outputs."""
        return self.call_groups[0].outputs if self.call_groups else None

    @property
    def total_params(self) -> int | None:
        """Parameters in the subtree, elements, distinct tensors once."""
        return self.total.params

    @property
    def own_params(self) -> int | None:
        """Parameters that the module itself owns, elements."""
        return self.own.params

    @property
    def trainable_params(self) -> int | None:
        """Parameters with ``requires_grad`` in the subtree, elements."""
        return self.total.trainable_params

    @property
    def total_buffers(self) -> int | None:
        """Buffers in the subtree, elements."""
        return self.total.buffers

    @property
    def forward_macs(self) -> int | None:
        """Forward MACs of the subtree, all calls."""
        return self.total.forward_macs

    @property
    def own_forward_macs(self) -> int | None:
        """Forward MACs that ran in the module and in no child of it."""
        return self.own.forward_macs

    @property
    def forward_flops(self) -> int | None:
        """Forward FLOPs of the subtree: 2 x MACs."""
        return flops(self.total.forward_macs)

    @property
    def backward_macs(self) -> int | None:
        """Backward MACs of the subtree, without recomputation."""
        return self.total.backward_macs

    @property
    def own_backward_macs(self) -> int | None:
        """Backward MACs of the operations that ran in the module and in no child of it."""
        return self.own.backward_macs

    @property
    def backward_flops(self) -> int | None:
        """Backward FLOPs of the subtree: 2 x MACs, without recomputation."""
        return flops(self.total.backward_macs)

    @property
    def recompute_flops(self) -> int | None:
        """Forward FLOPs of the subtree that ran again during backward."""
        return flops(self.total.recompute_macs)

    @property
    def saved_activations(self) -> int | None:
        """Bytes that the subtree's forward left alive for backward, each storage once."""
        return self.total.saved_activations

    @property
    def own_saved_activations(self) -> int | None:
        """Bytes that the module itself, and no child of it, left alive for backward."""
        return self.own.saved_activations

    def walk(self) -> Iterator[ModuleSummary]:
        """The subtree in definition order, this module first."""
        return subtree(self)


def outside_row(work: Work) -> ModuleSummary:
    """Work outside any module as a row."""
    return ModuleSummary(OUTSIDE, OUTSIDE, "loss, etc.", call_groups=(CallGroup(1, None, None, work, work),))


def flops(macs: int | None) -> int | None:
    """1 MAC = 2 FLOPs."""
    return None if macs is None else 2 * macs


@dataclass(frozen=True)
class ModelSummary(Forms):
    """The summary of one observed step, or of a structure alone (then every figure of a step is None).

    ``outside`` is what the step did outside any module: the loss, augmentation. ``optimizer_macs`` is what the
    optimizer's step computed. ``observed`` is ``"structure"``, ``"forward"`` or ``"step"`` (a backward ran too).
    ``unplaced_backward_macs`` is all of the backward together, where it could not be told whose it is: then no row
    has any. ``incomplete`` holds the reasons for which parts are missing, empty when none is. ``failure`` is what the
    step raised. ``dataflow`` is what flowed where in the forward. ``ranks`` holds, where several processes trained
    together, what each of them observed; all else is of the process that made the summary.
    """

    root: ModuleSummary
    outside: Work
    memory: Memory
    environment: Environment
    optimizer_macs: int | None = None
    unplaced_backward_macs: int | None = None
    observed: Observed = "structure"
    notes: tuple[Note, ...] = ()
    incomplete: tuple[str, ...] = ()
    failure: Failure | None = None
    ranks: tuple[Rank, ...] = ()
    dataflow: Dataflow | None = None

    @cached_property
    def modules(self) -> Mapping[str, ModuleSummary]:
        """Path -> module, in definition order."""
        found: dict[str, ModuleSummary] = {}
        for module in self.root.walk():
            found.setdefault(module.path, module)
        return found

    def __getitem__(self, path: str) -> ModuleSummary:
        try:
            module = self.modules[path]
        except KeyError:
            known = ", ".join([*map(repr, islice(self.modules, 8)), *["..."] * (len(self.modules) > 8)])
            raise KeyError(f"no module at {path!r}; there are {len(self.modules)}: {known}") from None
        return module if module.shared_with is None else self[module.shared_with]

    @cached_property
    def entry(self) -> ModuleSummary:
        """What the step called first: the root; or, as where a LightningModule has a ``training_step`` alone, another.

        Of several that no module called, the first by the dataflow, and by definition order where there is none.
        """
        if self.root.calls == 0 and self.dataflow is not None and self.dataflow.calls:
            return next(islice(self.root.walk(), self.dataflow.calls[0].module, None))
        return next(iter(self.outermost), self.root)

    @cached_property
    def outermost(self) -> tuple[ModuleSummary, ...]:
        """What the step itself called, in definition order: the root, or modules that are in none that was called."""
        found, waiting = [], [self.root]
        while waiting:
            module = waiting.pop()
            if module.calls != 0 and module.shared_with is None:
                found.append(module)
            elif module.shared_with is None:
                waiting += reversed(module.children)
        return tuple(found)

    @property
    def total_params(self) -> int | None:
        """Parameters, elements; distinct tensors once, global sizes when sharded."""
        return self.root.total.params

    @property
    def local_params(self) -> int | None:
        """Parameters on this rank, elements: fewer than ``total_params`` where they are sharded."""
        return self.root.total.local_params

    @property
    def trainable_params(self) -> int | None:
        """Parameters with ``requires_grad``, elements."""
        return self.root.total.trainable_params

    @property
    def total_buffers(self) -> int | None:
        """Buffers, elements."""
        return self.root.total.buffers

    @property
    def forward_macs(self) -> int | None:
        """Forward MACs of the step, whole batch, outside included."""
        return add(self.root.total.forward_macs, self.outside.forward_macs)

    @property
    def forward_flops(self) -> int | None:
        """2 x forward MACs."""
        return flops(self.forward_macs)

    @property
    def backward_macs(self) -> int | None:
        """Backward MACs of the step, without recomputation."""
        rows = add(self.root.total.backward_macs, self.outside.backward_macs)
        return self.unplaced_backward_macs if rows is None else rows

    @property
    def backward_flops(self) -> int | None:
        """2 x backward MACs, without recomputation."""
        return flops(self.backward_macs)

    @property
    def recompute_flops(self) -> int | None:
        """2 x the forward MACs that ran again during backward."""
        return flops(add(self.root.total.recompute_macs, self.outside.recompute_macs))

    @property
    def step_flops(self) -> int | None:
        """The model figure: forward + backward, without recomputation (PaLM, arXiv 2204.02311, appendix B).

        A fused kernel counts with all gradients that it computes: the backward of attention and of recurrent layers.
        """
        return add(self.forward_flops, self.backward_flops)

    @property
    def hardware_flops(self) -> int | None:
        """What ran: the model figure, recomputation and the optimizer's own contractions."""
        return add(self.step_flops, self.recompute_flops, flops(self.optimizer_macs))

    @property
    def all_ranks_flops(self) -> int | None:
        """The step's model FLOPs on all ranks together.

        None where a rank is missing, and where products count at their global size on each rank (tensor parallelism).
        """
        if self.environment.world_size == 1:
            return self.step_flops
        if len(self.ranks) != self.environment.world_size or any(note.kind == "global" for note in self.notes):
            return None
        return flops(add(*[macs for rank in self.ranks for macs in (rank.forward_macs, rank.backward_macs)]))

    def over_ranks(self, figure: str) -> tuple[Rank, Rank] | None:
        """The ranks with the least and the most of a figure of :class:`~summarycb.step.Memory`, as ``"peak"``.

        None where no ranks were gathered, or the figure is unknown on one of them.
        """
        known = [(value, rank) for rank in self.ranks if (value := getattr(rank.memory, figure)) is not None]
        if not known or len(known) < len(self.ranks):
            return None
        least, most = min(known, key=lambda pair: pair[0]), max(known, key=lambda pair: pair[0])
        return least[1], most[1]
