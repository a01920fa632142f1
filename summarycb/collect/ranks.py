"""What the other processes saw of the same step: through the key-value store that torch.distributed already has.

Nothing here is collective. Each rank says that it is about to observe a model, and leaves its record in the store when
its step is over; rank zero waits, for a bounded time, for those that have said so. So none waits for a rank that failed
or does not observe.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import replace

from torch import distributed
from torch.distributed.distributed_c10d import _get_default_store

from summarycb.collect.modules import Structure
from summarycb.serialize import dumps_rank, loads_rank
from summarycb.step import Note, Rank
from summarycb.tree import ModelSummary

_PAUSE = 0.005
_rounds: Counter[str] = Counter()
"""How many steps of a model this process has told of; the other ranks count alike."""


def world() -> tuple[int, int] | None:
    """This process's rank, and how many there are; None where it is alone."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return None
    return distributed.get_rank(), distributed.get_world_size()


class Ranks:
    """The processes that train one model; made as a step of it is about to be observed."""

    def __init__(self, structure: Structure, rank: int, size: int) -> None:
        paths = "\n".join([node.path for node in structure.nodes])
        self._model = hashlib.sha256(paths.encode(errors="surrogatepass")).hexdigest()
        self._rank, self._size = rank, size
        _get_default_store().set(self._key("here", rank), "")

    def gather(self, summary: ModelSummary, timeout: float) -> ModelSummary:
        """Tell what this rank saw; on rank zero, with what the others tell within ``timeout`` seconds."""
        own = Rank(
            self._rank,
            summary.environment.device,
            summary.local_params,
            summary.forward_macs,
            summary.backward_macs,
            replace(summary.memory, timeline=()),
            summary.incomplete,
            summary.failure,
        )
        others = self._exchange(dumps_rank(own), timeout)
        if self._rank != 0:
            return summary
        ranks = {0: own, **{rank: loads_rank(record) for rank, record in others.items()}}
        silent = [str(rank) for rank in range(self._size) if rank not in ranks]
        notes = [Note("ranks", f"not told what rank {', '.join(silent)} saw")] if silent else []
        return replace(summary, ranks=tuple(ranks.values()), notes=(*summary.notes, *notes))

    def _exchange(self, record: str, timeout: float) -> dict[int, str]:
        store = _get_default_store()
        try:
            if self._rank != 0:
                store.set(self._key("record", self._rank), record)
                return {}
            here = {rank: self._key("here", rank) for rank in range(1, self._size)}
            awaited = {rank: self._key("record", rank) for rank, key in here.items() if store.check([key])}
            deadline = time.monotonic() + timeout
            while not store.check([*awaited.values()]) and time.monotonic() < deadline:
                time.sleep(_PAUSE)  # the store's own wait would not hear of Ctrl-C
            records = {rank: store.get(key).decode() for rank, key in awaited.items() if store.check([key])}
            for key in [*[here[rank] for rank in awaited], *[awaited[rank] for rank in records]]:
                store.delete_key(key)
            return records
        finally:
            _rounds[self._model] += 1

    def _key(self, what: str, rank: int) -> str:
        return f"summarycb/{self._model}/{_rounds[self._model]}/{what}/{rank}"
