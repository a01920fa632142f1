"""What the step raised, and where. The error itself is never kept: it would keep its frames, and their tensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

from summarycb.collect.modules import class_name
from summarycb.specs import Spec
from summarycb.step import Phase


@dataclass(slots=True)
class Raised:
    """An error by its id, the call and the phase that it ended; the operation, if one of torch's raised it.

    ``alive`` is bytes by kind at that moment, and ``holders`` bytes by row.
    """

    id: int
    type_name: str
    out_of_memory: bool
    call: int
    phase: Phase | None
    operation: str | None = None
    operands: Spec = None
    alive: list[int] | None = None
    holders: Counter[int] = field(default_factory=Counter)

    @classmethod
    def by(cls, error: BaseException, call: int, phase: Phase | None) -> Raised:
        """``error`` has ended ``call``."""
        return cls(id(error), class_name(type(error)), _out_of_memory(error), call, phase)

    def led_to(self, error: BaseException) -> bool:
        """Whether it is ``error``, or what that was raised from: one that was handled is gone, and its id another's."""
        seen: set[int] = set()
        cause: BaseException | None = error
        while cause is not None and id(cause) not in seen:
            if self.id == id(cause) and self.type_name == class_name(type(cause)):
                return True
            seen.add(id(cause))
            cause = cause.__cause__ or cause.__context__
        return False


def _out_of_memory(error: BaseException) -> bool:
    # the allocator of the CPU has no exception of its own
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in ("can't allocate", "out of memory"))
    )
