"""What the other processes saw of the same step: through the key-value store that torch.distributed already has.

Nothing here is collective. Each rank says in the store when it begins to observe a model, and what it saw when its
step is over; rank zero waits, for a bounded time, for those that have begun. So none waits for a rank that has failed
or does not observe, and what a rank had seen before rank zero began is not taken for the same step.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

from torch import distributed, nn
from torch.distributed.distributed_c10d import _get_default_store

from summarycb.collect.modules import Structure, type_name, walk
from summarycb.serialize import dumps_rank, loads_rank
from summarycb.step import Note, Rank
from summarycb.tree import ModelSummary

_SHORTEST, _LONGEST = 0.001, 0.05
_numbers = itertools.count(1)


def world() -> tuple[int, int] | None:
    """This process's rank, and how many there are; None where it is alone."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return None
    return distributed.get_rank(), distributed.get_world_size()


def announce(model: nn.Module) -> Ranks | None:
    """This process is to observe a step of ``model`` soon: rank zero is to wait for it. None where it is alone."""
    place = world()
    return None if place is None else Ranks(walk(model), *place)


class Ranks:
    """The processes that train one model: from when this one begins to observe a step until it tells what it saw.

    Under a rank's key is the number of its observation, and below it, when that is over, what it saw.
    """

    def __init__(self, structure: Structure, rank: int, size: int) -> None:
        self._model = _name(structure)
        self._rank, self._size = rank, size
        self._number = str(next(_numbers))
        self._store = _get_default_store()
        if rank == 0:
            self._before = {other: told for other in range(1, size) if "\n" in (told := self._told(other))}
        else:
            self._tell(self._number)

    def withdraw(self) -> None:
        """This rank's observation has come to nothing."""
        if self._rank != 0:
            self._tell("")

    def gather(self, summary: ModelSummary, timeout: float) -> ModelSummary:
        """Tell what this rank saw; on rank zero, with what the others tell within ``timeout`` seconds."""
        environment = summary.environment
        own = Rank(
            rank=self._rank,
            device=environment.device,
            local_params=summary.local_params,
            forward_macs=summary.forward_macs,
            backward_macs=summary.backward_macs,
            memory=replace(summary.memory, timeline=()),
            incomplete=summary.incomplete,
            failure=summary.failure,
        )
        if self._rank != 0:
            self._tell(f"{self._number}\n{dumps_rank(own)}")
            return summary
        ranks = {0: own, **{rank: loads_rank(told) for rank, told in self._hear(timeout).items()}}
        silent = [str(rank) for rank in range(self._size) if rank not in ranks]
        notes = [Note("ranks", f"not told what rank {', '.join(silent)} saw")] if silent else []
        return replace(summary, ranks=tuple(ranks.values()), notes=(*summary.notes, *notes))

    def agree(self, verdict: str, timeout: float) -> str:
        """Rank zero's ``verdict``, which the others wait for while rank zero waits for them and for its trackers.

        Each is answered under its own observation's number, so that none takes the verdict of an earlier step.
        """
        if self._rank == 0:
            for rank in range(1, self._size):
                number = self._told(rank).partition("\n")[0]
                self._store.set(f"{self._key(rank)}/verdict", f"{number}\n{verdict}")
            return verdict
        key, deadline, pause = f"{self._key(self._rank)}/verdict", time.monotonic() + 3 * timeout, _SHORTEST
        while time.monotonic() < deadline:
            if self._store.check([key]):
                number, _, verdict = self._store.get(key).decode().partition("\n")
                if number == self._number:
                    return verdict
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
        raise TimeoutError(f"rank 0 did not say within {3 * timeout:g} s whether a gate fails")

    def _hear(self, timeout: float) -> dict[int, str]:
        deadline, pause = time.monotonic() + timeout, _SHORTEST
        heard: dict[int, str] = {}
        begun: dict[int, str] = {}
        awaited: Sequence[int] = range(1, self._size)
        while True:
            told = {rank: self._told(rank) for rank in awaited}
            heard |= {rank: text for rank, text in told.items() if "\n" in text and text != self._before.get(rank)}
            # they have begun, and not begun anew: a rank that has is at a later step, and may be waiting for this one
            awaited = [r for r, text in told.items() if text and "\n" not in text and begun.setdefault(r, text) == text]
            if not awaited or time.monotonic() > deadline:
                return {rank: heard[rank].partition("\n")[2] for rank in sorted(heard)}
            time.sleep(pause)  # the store's own wait would not hear of Ctrl-C
            pause = min(2 * pause, _LONGEST)

    def _tell(self, text: str) -> None:
        self._store.set(self._key(self._rank), text)

    def _told(self, rank: int) -> str:
        key = self._key(rank)
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _key(self, rank: int) -> str:
        return f"summarycb/{self._model}/{rank}"


def _name(structure: Structure) -> str:
    """The same on each rank, and another for another model: of its paths, classes and its parameters' global shapes."""
    facts: list[object] = [(node.path, type_name(node.module)) for node in structure.nodes]
    if not structure.flattened:  # each rank's part of a flat parameter has its own size
        lazy = nn.parameter.is_lazy
        facts += [None if lazy(parameter) else tuple(parameter.shape) for parameter in structure.parameters()]
    return hashlib.sha256(repr(facts).encode(errors="surrogatepass")).hexdigest()
