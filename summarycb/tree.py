"""The frozen tree that everything before it builds and everything after it reads. Must not import torch.

Units: parameters and buffers are counted in elements, memory in bytes, work in MACs (1 MAC = 2 FLOPs, the convention of
``torch.utils.flop_counter``). Anything that was not observed or could not be derived is ``None``, never 0. The types
are what a stored summary is checked for: an ``int`` is from 0 to ``MAX_INT``, a ``Positive`` from 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from summarycb.errors import SummaryError

if TYPE_CHECKING:
    from pathlib import Path

    from pandas import DataFrame

MAX_INT = 2**63 - 1
"""The largest size or amount: torch's own sizes are int64."""
Positive: TypeAlias = Annotated[int, range(1, MAX_INT + 1)]
Observed: TypeAlias = Literal["structure", "forward", "step"]
Phase: TypeAlias = Literal["forward", "backward", "recompute", "optimizer"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What is known of a tensor without its values: shape, dtype (``"float32"``) and device (``"cuda:0"``)."""

    shape: tuple[int, ...]
    dtype: str
    device: str

    def __str__(self) -> str:
        return f"{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value that is neither a tensor nor a container of any, shown by its type name alone."""

    type_name: str

    def __str__(self) -> str:
        return self.type_name


@dataclass(frozen=True, slots=True, eq=False)
class Nested(Mapping[str, "Spec"]):
    """Named values: a dict, a dataclass, a namedtuple, a ``ModelOutput``, or the arguments of a call with keywords.

    It reads as a mapping, ``m.outputs["logits"].shape``, and equals a dict with the same items. Two of them are equal
    when their types and the order of their items are too.
    """

    type_name: str
    items_: tuple[tuple[str, Spec], ...]

    def __getitem__(self, key: str) -> Spec:
        for name, value in self.items_:
            if name == key:
                return value
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.items_)

    def __len__(self) -> int:
        return len(self.items_)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Nested):
            return (self.type_name, self.items_) == (other.type_name, other.items_)
        return Mapping.__eq__(self, other)

    def __hash__(self) -> int:
        return hash((self.type_name, self.items_))

    def __str__(self) -> str:
        return "{" + ", ".join(f"{name}: {spec_text(value)}" for name, value in self.items_) + "}"


Spec: TypeAlias = TensorSpec | Nested | Opaque | tuple["Spec", ...] | None
"""The real nesting of a call's inputs or outputs, tensors as :class:`TensorSpec`; lists and tuples are tuples."""


def spec_text(spec: Spec) -> str:
    """A spec on one line: ``[2, 3]``, ``([2, 3], None)``, ``{logits: [2, 10]}``."""
    if isinstance(spec, tuple):
        return "(" + ", ".join(map(spec_text, spec)) + ("," if len(spec) == 1 else "") + ")"
    return str(spec)


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """A parameter as its module holds it.

    ``shape`` is the global one; ``local_shape`` is set only where a rank holds a part. ``shape`` is None while a lazy
    parameter has none. ``shared_with`` is the full name of the same tensor in the module that owns it: it counts
    there, not here. ``bytes``, ``gradient`` and ``optimizer_state`` are bytes.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    device: str
    trainable: bool
    bytes: int | None
    local_shape: tuple[int, ...] | None = None
    shared_with: str | None = None
    gradient: int | None = None
    optimizer_state: int | None = None

    @property
    def numel(self) -> int | None:
        """Elements, globally."""
        return None if self.shape is None else prod(self.shape)


@dataclass(frozen=True, slots=True)
class BufferSpec:
    """A buffer as its module holds it; the fields mean what they mean in :class:`ParameterSpec`."""

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    device: str
    persistent: bool
    bytes: int | None
    local_shape: tuple[int, ...] | None = None
    shared_with: str | None = None

    @property
    def numel(self) -> int | None:
        """Elements, globally."""
        return None if self.shape is None else prod(self.shape)


@dataclass(frozen=True, slots=True)
class Signature:
    """``calls`` calls of one module that had the same inputs and outputs."""

    calls: Positive
    inputs: Spec
    outputs: Spec


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


@dataclass(frozen=True, slots=True)
class Amounts:
    """Everything that adds up over modules. Elements, bytes and MACs; None is unknown and makes a sum unknown."""

    params: int | None = 0
    trainable_params: int | None = 0
    buffers: int | None = 0
    parameter_bytes: int | None = 0
    buffer_bytes: int | None = 0
    gradients: int | None = 0
    optimizer_state: int | None = 0
    forward_macs: int | None = 0
    backward_macs: int | None = 0
    recompute_macs: int | None = 0
    saved_activations: int | None = 0
    weight_copies: int | None = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(*[add(getattr(self, name), getattr(other, name)) for name in AMOUNTS])


AMOUNTS = tuple(f.name for f in fields(Amounts))


@dataclass(frozen=True)
class ModuleSummary:
    """One module: where it is, what it holds, and what the observed step did in it.

    ``path`` is the fully qualified name, as in ``state_dict`` keys (the root is ``""``). ``calls`` is None where no
    step was observed. ``own`` counts the module without its children, ``total`` its whole subtree. A module that is
    registered in a second place is a leaf there, with ``shared_with`` naming the path that owns it.
    """

    path: str
    name: str
    type_name: str
    config: str = ""
    training: bool | None = None
    parameters: tuple[ParameterSpec, ...] = ()
    buffers: tuple[BufferSpec, ...] = ()
    calls: int | None = None
    signatures: tuple[Signature, ...] = ()
    work: Work = Work()
    shared_with: str | None = None
    children: tuple[ModuleSummary, ...] = ()
    own: Amounts = field(init=False, repr=False, compare=False)
    total: Amounts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        owned = [p for p in self.parameters if p.shared_with is None]
        held = [b for b in self.buffers if b.shared_with is None]
        own = Amounts(
            params=add(*[p.numel for p in owned]),
            trainable_params=add(*[p.numel for p in owned if p.trainable]),
            buffers=add(*[b.numel for b in held]),
            parameter_bytes=add(*[p.bytes for p in owned]),
            buffer_bytes=add(*[b.bytes for b in held]),
            gradients=add(*[p.gradient for p in owned]),
            optimizer_state=add(*[p.optimizer_state for p in owned]),
            **{f.name: getattr(self.work, f.name) for f in fields(Work)},
        )
        total = own
        for child in self.children:
            total += child.total
        object.__setattr__(self, "own", own)
        object.__setattr__(self, "total", total)

    @property
    def inputs(self) -> Spec:
        """The first call's inputs: a tuple when all were positional, else a mapping by position and keyword."""
        return self.signatures[0].inputs if self.signatures else None

    @property
    def outputs(self) -> Spec:
        """The first call's outputs."""
        return self.signatures[0].outputs if self.signatures else None

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
        stack = [self]
        while stack:
            module = stack.pop()
            yield module
            stack.extend(reversed(module.children))


def flops(macs: int | None) -> int | None:
    """1 MAC = 2 FLOPs."""
    return None if macs is None else 2 * macs


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by kind; None where it was not observed.

    ``parameters``, ``buffers``, ``gradients`` and ``optimizer_state`` are the distinct storages of the real objects at
    the end of the step. ``saved_activations`` is what the forward, loss included, had left alive when backward began,
    without parameters, buffers, the batch and ``weight_copies``. ``peak`` is the largest sum of tensor storages alive
    at once (kernel workspaces are not tensors), with the phase and the module path in which it was reached.
    """

    parameters: int | None = None
    buffers: int | None = None
    gradients: int | None = None
    optimizer_state: int | None = None
    saved_activations: int | None = None
    weight_copies: int | None = None
    batch: int | None = None
    peak: int | None = None
    peak_phase: Phase | None = None
    peak_module: str | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """Under what the step was observed; None where it is not known."""

    summarycb: str
    torch: str | None = None
    training: bool | None = None
    device: str | None = None
    precision: str | None = None
    optimizer: str | None = None
    framework: str | None = None
    strategy: str | None = None
    world_size: Positive | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Something the figures do not say by themselves; ``path`` is the module it is about, None when it is the step."""

    kind: str
    text: str
    path: str | None = None


@dataclass(frozen=True)
class ModelSummary:
    """The summary of one observed step, or of a structure alone (then every figure of a step is None).

    ``outside`` is what the step did outside any module: the loss, augmentation. ``optimizer_macs`` is what the
    optimizer's step computed. ``observed`` is ``"structure"``, ``"forward"`` or ``"step"`` (a backward ran too).
    ``incomplete`` holds the reasons for which parts are missing, empty when none is.
    """

    root: ModuleSummary
    outside: Work
    memory: Memory
    environment: Environment
    optimizer_macs: int | None = None
    observed: Observed = "structure"
    notes: tuple[Note, ...] = ()
    incomplete: tuple[str, ...] = ()

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
            known = ", ".join(repr(p) for p in list(self.modules)[:8])
            raise KeyError(f"no module at {path!r}; there are {len(self.modules)}: {known}, ...") from None
        return module if module.shared_with is None else self[module.shared_with]

    @property
    def total_params(self) -> int | None:
        """Parameters, elements; distinct tensors once, global sizes when sharded."""
        return self.root.total.params

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
        return add(self.root.total.backward_macs, self.outside.backward_macs)

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
        """The model figure: forward + backward, what the mathematics needs (PaLM, arXiv 2204.02311, appendix B)."""
        return add(self.forward_flops, self.backward_flops)

    @property
    def hardware_flops(self) -> int | None:
        """What ran: the model figure, recomputation and the optimizer's own contractions."""
        return add(self.step_flops, self.recompute_flops, flops(self.optimizer_macs))

    def __str__(self) -> str:
        return self.to_text()

    def to_text(
        self, *, depth: int | None = 3, columns: Sequence[str] | None = None, width: int = 100, ascii_only: bool = False
    ) -> str:
        """The summary as plain text, at most ``width`` columns wide; ``depth=None`` shows every module."""
        from summarycb.render.terminal import to_text
        from summarycb.view import select

        return to_text(select(self, depth=depth, columns=columns), width=width, ascii_only=ascii_only)

    def to_markdown(self, *, depth: int | None = 3, columns: Sequence[str] | None = None) -> str:
        """The summary as a Markdown table with its headline and notes."""
        from summarycb.render.markdown import to_markdown
        from summarycb.view import select

        return to_markdown(select(self, depth=depth, columns=columns))

    def to_dataframe(self) -> DataFrame:
        """One row a module, index = path, real dtypes (``Int64`` with NA where unknown). Needs pandas."""
        from summarycb.render.frame import to_dataframe

        return to_dataframe(self)

    def to_json(self) -> str:
        """The tree itself as JSON, with its ``schema_version``; :meth:`from_json` gives an equal summary back."""
        from summarycb.serialize import dumps

        return dumps(self)

    @staticmethod
    def from_json(text: str) -> ModelSummary:
        """The summary that :meth:`to_json` wrote. Raises :class:`SummaryError` for anything else."""
        from summarycb.serialize import loads

        return loads(text)

    def save(self, path: str | Path) -> Path:
        """Write the JSON to ``path`` (``*.json``) and return it."""
        from pathlib import Path

        target = Path(path)
        if target.suffix != ".json":
            raise SummaryError(f"cannot save to {target.name!r}: the file name must end in .json")
        target.write_text(self.to_json(), encoding="utf-8")
        return target
