"""What was written down of one step: flat, while it runs. ``build.py`` makes the summary of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from summarycb.collect.calls import Calls
from summarycb.collect.dataflow import Flow
from summarycb.collect.failures import Raised
from summarycb.collect.flops import Flops
from summarycb.collect.memory import Memory
from summarycb.collect.modules import Structure, TensorBytes, dtype_name, training
from summarycb.step import Note


@dataclass
class Records:
    """What was written down of one step. A collector that was not used, or failed, is None."""

    structure: Structure
    calls: Calls | None = None
    flops: Flops | None = None
    memory: Memory | None = None
    flow: Flow | None = None
    tensor_bytes: TensorBytes | None = None
    optimizers: set[str] = field(default_factory=set)
    backward: bool = False
    precision: str | None = None
    training: bool | None = None
    idle: bool = False
    """An optimizer has neither stepped nor a state from before: it will have one that nobody knows yet."""
    ran_before: frozenset[int] = frozenset()
    """Modules, by id, that ran without gradients before the observation began, perhaps as a part of the step."""
    _autocasts: str | None = None
    notes: list[Note] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    raised: Raised | None = None

    def note(self, kind: str, text: str) -> None:
        """Say something about the step as a whole."""
        self.notes.append(Note(kind, text))

    def saw_call(self) -> None:
        """A module is called: what only holds inside a step is read now.

        Autocast may begin within the outermost forward, as where accelerate has prepared the model.
        """
        if self.training is None:
            self.training = training(self.structure.nodes[0].module)
            device = device_of(self.structure)
            self._autocasts = device if device is not None and torch.amp.is_autocast_available(device) else None
        if self.precision is None and self._autocasts is not None and torch.is_autocast_enabled(self._autocasts):
            self.precision = f"{dtype_name(torch.get_autocast_dtype(self._autocasts))} autocast"

    @cached_property
    def unseen(self) -> list[int]:
        """Rows that ran before the observation began, and not in it."""
        if self.calls is None or not self.ran_before:
            return []
        rows = {slot for module, slot in self.structure.slot_of.items() if module in self.ran_before}
        return sorted(rows - {call.slot for call in self.calls.made})

    @cached_property
    def missed(self) -> list[int]:
        """Rows that a backward has run again, and that ran first before the observation began."""
        return sorted({call.slot for call in self.calls.made if call.missed}) if self.calls is not None else []


def device_of(structure: Structure) -> str | None:
    """The type of the device that holds the first parameter."""
    return next((p.device.type for p in structure.parameters()), None)
