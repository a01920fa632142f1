"""What is known of a step besides its modules: memory, circumstances, what it raised, what other ranks saw. Must not
import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal, TypeAlias

from summarycb.specs import Spec

MAX_INT = 2**63 - 1
"""The largest size or amount: torch's own sizes are int64."""
Positive: TypeAlias = Annotated[int, range(1, MAX_INT + 1)]
Phase: TypeAlias = Literal["forward", "backward", "recompute", "optimizer"]
Basis: TypeAlias = Literal["measured", "derived", "unavailable"]


@dataclass(frozen=True, slots=True)
class Moment:
    """The bytes of tensors that were alive at once, by kind, while ``module`` ran in ``phase``.

    ``module`` is None outside of modules, where an optimizer steps too, and deep in the backward of very many nodes.
    ``activations`` is what the forward, or its recomputation, made, kept or not; ``temporaries`` what the
    backward and the optimizer made, unless it has become a gradient or optimizer state.
    """

    phase: Phase
    module: str | None
    parameters: int
    buffers: int
    gradients: int
    optimizer_state: int
    activations: int
    weight_copies: int
    batch: int
    temporaries: int

    @property
    def total(self) -> int:
        """The sum over all kinds."""
        return sum(getattr(self, kind) for kind in KINDS)


KINDS = tuple(f.name for f in fields(Moment))[2:]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by kind, on this rank; None where it was not observed, and :meth:`basis` says how a figure is known.

    ``parameters``, ``buffers``, ``gradients`` and ``optimizer_state`` are the distinct storages of the real objects at
    the end of the step. ``saved_activations`` is what the forward, loss included, had left alive when backward began,
    without parameters, buffers, the batch and ``weight_copies``: copies of weights that the step made, in low precision
    by autocast or whole ones of sharded parameters.

    ``timeline`` holds, for each stretch of the step within one module and phase, the moment when most was alive, in
    order; neighbours are merged where there are many, of which the larger stays. ``peak_at`` is the largest of all:
    a sum of tensors on the type of device that holds the parameters, while the step is observed (under any dispatch
    mode autograd sums the gradients of a tensor with several uses out of place). Kernels' workspaces are no tensors;
    ``allocator_peak`` has them, where an allocator tells (CUDA). ``simulated``: on the meta device, where sizes are
    derived from shapes and nothing is allocated.
    """

    parameters: int | None = None
    buffers: int | None = None
    gradients: int | None = None
    optimizer_state: int | None = None
    saved_activations: int | None = None
    weight_copies: int | None = None
    batch: int | None = None
    peak_at: Moment | None = None
    timeline: tuple[Moment, ...] = ()
    allocator_peak: int | None = None
    simulated: bool = False

    @property
    def peak(self) -> int | None:
        """The largest sum of tensors that were alive at once."""
        return None if self.peak_at is None else self.peak_at.total

    @property
    def unexplained(self) -> int | None:
        """What the allocator's peak has beyond the tensors' peak: workspaces, rounding, tensors of other code."""
        return None if self.allocator_peak is None or self.peak is None else self.allocator_peak - self.peak

    def basis(self, figure: str) -> Basis:
        """How a figure is known: ``"measured"`` on real storages or by the allocator, ``"derived"``, ``"unavailable"``.

        The tensors' peak is derived, as a sum over measured storages, and so is everything on the meta device.
        """
        if getattr(self, figure) is None:
            return "unavailable"
        return "derived" if self.simulated or figure in ("peak", "unexplained") else "measured"


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
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Something the figures do not say by themselves; ``path`` is the module it is about, None when it is the step."""

    kind: str
    text: str
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """The bytes that one module holds: its weights and buffers, their gradients and state, and what ran in it made."""

    module: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Failure:
    """What the observed step raised, and where; never what the exception says, which may hold a value.

    ``error`` is the type of what was raised first, where others were raised from it.
    ``phase`` is that of the operation or the call that failed, else the last one that is known before. ``calls`` are
    the modules that were being called, outermost first, so that the last one failed; empty outside of modules.
    ``inputs`` is what that call was given, and its weights are in the summary. ``operation`` is the operation of torch
    that raised, and ``operands`` are the tensors that it was given; None where Python code did. ``alive`` is the memory
    at that moment. ``holders`` are the modules that held most of it, largest first, when the memory was exhausted.
    """

    error: str
    phase: Phase | None = None
    calls: tuple[str, ...] = ()
    inputs: Spec = None
    operation: str | None = None
    operands: Spec = None
    out_of_memory: bool = False
    alive: Moment | None = None
    holders: tuple[Holder, ...] = ()

    @property
    def module(self) -> str | None:
        """The path of the module that failed; None outside of modules."""
        return self.calls[-1] if self.calls else None


@dataclass(frozen=True, slots=True)
class Rank:
    """What one of several processes that train together observed of its step; the memory is without its timeline."""

    rank: int
    device: str | None
    local_params: int | None
    forward_macs: int | None
    backward_macs: int | None
    memory: Memory
    incomplete: tuple[str, ...] = ()
    failure: Failure | None = None
