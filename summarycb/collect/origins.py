"""Who wrote which bytes of which storage. Of storages and tensors weak references are held, so nothing is kept alive.

Of each storage the node that wrote it last is known, and of the parts that were written since, which bytes. A view is
of the same storage; a tensor of which something else is known than of its storage is told by itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from summarycb.collect.extents import Extent, common, extent, overlap, within, without
from summarycb.collect.kinds import operands
from summarycb.collect.storages import in_one_storage, storages

NOWHERE = -1
"""The node of what a module's forward made of nothing: zeros, positions, noise."""
MOST_PARTS = 1_000
"""Of one storage, that are told apart."""
_BEFORE = 0
"""The time of what was there before the step."""

Source: TypeAlias = tuple[int, int | None]
"""A node, and which of the known tensors is like what it wrote, if that is less than what is read."""


@dataclass(slots=True)
class _Write:
    """``module`` is the row of the layer that did it, None where it was none."""

    node: int
    time: int
    module: int | None


@dataclass(slots=True)
class _Part(_Write):
    extent: Extent
    tensor: int | None
    whole: bool = True
    """None of it was written again."""


class _Origin(weakref.ref[Any]):
    """A storage, or a tensor by itself: who wrote it, and, the latest last, the parts of it that were written since.

    ``holder`` is the row of the module whose parameter or buffer it is.
    """

    __slots__ = ("holder", "key", "parts", "write")

    key: int
    holder: int | None
    write: _Write
    parts: list[_Part]


class Origins:
    """``before`` makes the node of what was there before the step, and ``join`` that of sources too many to keep.

    ``like`` says which of the known tensors one is like.
    """

    def __init__(
        self,
        before: Callable[[], int],
        join: Callable[[list[Source]], int],
        like: Callable[[torch.Tensor], int | None],
    ) -> None:
        self._before, self._join, self._like = before, join, like
        self._storages: dict[int, _Origin] = {}
        self._tensors: dict[int, _Origin] = {}
        self._time = _BEFORE

    def hold(self, tensor: torch.Tensor, node: int, module: int) -> None:
        """A parameter or buffer of a module; several may be parts of one storage."""
        for storage in storages(tensor):
            known = self._storages.get(storage._cdata)
            if known is None and _is_whole(tensor, storage):
                self._know_storage(storage, _Write(node, _BEFORE, None)).holder = module
            elif in_one_storage(tensor):
                known = known or self._know_storage(storage, _Write(NOWHERE, _BEFORE, None))
                known.parts.append(_Part(node, _BEFORE + 1, None, extent(tensor), self._like(tensor)))

    def tick(self) -> None:
        """What is written from now on is later than what was written before."""
        self._time += 1

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether anybody has written it, or it was read."""
        return any(storage._cdata in self._storages for storage in storages(tensor))

    def given(self, tensor: torch.Tensor) -> list[int]:
        """The nodes of what a model is given, made now for what nobody has made.

        What is a part of something larger is told by itself: another part may be the targets.
        """
        found = []
        for storage in storages(tensor):
            known = self._tensors.get(id(tensor)) or self._storages.get(storage._cdata)
            if known is None or known.write.node == NOWHERE:
                write = _Write(self._before(), self._time, None)
                if known is None and not _is_whole(tensor, storage):
                    known = self._know_tensor(tensor, write)
                else:
                    known = self._know_storage(storage, write)
            found.append(known.write.node)
        return found

    def stands_for(self, tensor: torch.Tensor, node: int) -> None:
        """Whatever its storage says, this tensor and the views of it come from this node."""
        self._know_tensor(tensor, _Write(node, self._time, None))

    def view(self, base: object, made: object) -> None:
        """An operation has made a view of something, or several."""
        if self._tensors and (known := self._tensors.get(id(base))) is not None:
            for tensor in operands((made,)):
                self._know_tensor(tensor, known.write)

    def wrote(self, tensor: torch.Tensor, node: int, module: int | None = None) -> None:
        """A node, perhaps the call of a layer, has made it or written to it."""
        for storage in storages(tensor):
            known = self._storages.get(storage._cdata)
            if known is not None and known.write.node == node != NOWHERE and not known.parts:
                known.write.time = self._time
            elif _is_whole(tensor, storage):
                self._know_storage(storage, _Write(node, self._time, module))
            else:
                # the rest of it is from before the step
                known = known or self._know_storage(storage, _Write(self._before(), _BEFORE, None))
                self._add(known, _Part(node, self._time, module, extent(tensor), self._like(tensor)), storage)

    def _add(self, known: _Origin, new: _Part, storage: torch.UntypedStorage) -> None:
        kept = []
        for part in known.parts:
            left = without(part.extent, new.extent)
            if left == [part.extent]:
                part.whole = part.whole and not overlap(part.extent, new.extent)
                kept.append(part)
            else:
                kept += [_Part(part.node, part.time, part.module, one, part.tensor, part.whole) for one in left]
        known.parts = [*kept, new]
        if len(known.parts) > MOST_PARTS:
            sources = [(known.write.node, None), *[(part.node, part.tensor) for part in known.parts]]
            self._know_storage(storage, _Write(self._join(sources), self._time, None))

    def sources(self, tensor: torch.Tensor, reader: int | None = None) -> list[Source]:
        """The nodes that a tensor comes from, most often one.

        ``reader`` is the row of the layer that reads it: its own statistics, which it updates for later steps, do not
        come from its earlier calls.
        """
        view = self._tensors.get(id(tensor)) if self._tensors else None
        found: dict[int, int | None] = {}
        behind = storages(tensor)
        if view is None and len(behind) == 1:  # most often
            known = self._storages.get(behind[0]._cdata)
            if known is not None and not known.parts and known.holder is None:
                return [] if known.write.node == NOWHERE else [(known.write.node, None)]
        for storage in behind:
            known = self._storages.get(storage._cdata)
            if known is None and view is None:
                known = self._know_storage(storage, _Write(self._before(), _BEFORE, None))
            if known is None or (view is not None and view.write.time >= known.write.time):
                assert view is not None
                write = view.write
            else:
                write = known.write
            own = known is not None and reader is not None and known.holder == reader
            parts = [] if known is None else known.parts
            for one, like in self._writers(tensor, parts, write) if parts else ((write, None),):
                if one.node != NOWHERE and not (own and one.module == reader):
                    found.setdefault(one.node, like)
        return list(found.items())

    def _writers(self, tensor: torch.Tensor, parts: list[_Part], write: _Write) -> list[tuple[_Write, int | None]]:
        """Who wrote what a tensor reads, in order.

        ``write`` is not among them if the parts that were written since are known to leave nothing of it; that is not
        known where they overlap in part and are not runs of bytes.
        """
        if not in_one_storage(tensor):
            return [(write, None), *[(part, part.tensor) for part in parts]]
        read = extent(tensor)
        left = read.stop - read.start if read.bytes is None else read.bytes
        found: list[tuple[_Write, int | None]] = []
        for part in reversed(parts):
            if left <= 0 or part.time <= write.time:
                break
            if within(read, part.extent):
                left = 0
                found.append((part, None))
            elif overlap(part.extent, read):
                left -= common(part.extent, read) if part.whole else 0
                found.append((part, part.tensor))
        if left > 0:
            found.append((write, None))
        return found[::-1]

    def forget(self) -> None:
        """Nothing more is asked."""
        self._storages.clear()
        self._tensors.clear()

    def _know_storage(self, storage: torch.UntypedStorage, write: _Write) -> _Origin:
        known = self._storages.get(storage._cdata)
        if known is None:
            known = self._storages[storage._cdata] = _Origin(storage, self._storage_is_gone)
            known.key, known.holder = storage._cdata, None
        known.write, known.parts = write, []
        return known

    def _know_tensor(self, tensor: torch.Tensor, write: _Write) -> _Origin:
        known = self._tensors.get(id(tensor))
        if known is None:
            known = self._tensors[id(tensor)] = _Origin(tensor, self._tensor_is_gone)
            known.key, known.holder, known.parts = id(tensor), None, []
        known.write = write
        return known

    def _storage_is_gone(self, gone: _Origin) -> None:
        if self._storages.get(gone.key) is gone:
            del self._storages[gone.key]

    def _tensor_is_gone(self, gone: _Origin) -> None:
        if self._tensors.get(gone.key) is gone:
            del self._tensors[gone.key]


def _is_whole(tensor: torch.Tensor, storage: torch.UntypedStorage) -> bool:
    """Whether all of the storage is this tensor's; of a wrapper or a sparse tensor it is."""
    if not in_one_storage(tensor):
        return True
    size = tensor.numel() * tensor.element_size() if tensor.is_contiguous() else extent(tensor).bytes
    return size == storage.nbytes()
