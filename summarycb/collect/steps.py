"""When an optimizer steps: a process-wide hook of torch's before each step, there only while somebody listens.

The hook at the end of a step is put on the optimizer itself as its step begins: torch iterates over the dict of hooks
while it calls them, and an ordered dict that changes under an iterator raises, unless the change is made by its last
entry. So another thread's optimizer never meets a dict that changes.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from summarycb.collect.calls import codes


class Listener(Protocol):
    """Told about every optimizer's step in the process."""

    def step_begins(self, optimizer: torch.optim.Optimizer) -> None: ...  # noqa: D102
    def step_ends(self, optimizer: torch.optim.Optimizer) -> None: ...  # noqa: D102


_STEP = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__  # what every optimizer's step is wrapped in

_listeners: list[weakref.ref[Listener]] = []
_handles: list[RemovableHandle] = []
_lock = threading.Lock()


def listen(listener: Listener) -> weakref.ref[Listener]:
    """Tell ``listener`` about steps until :func:`unlisten`; a step that has begun already is told when it ends.

    It is not kept alive by this; what is returned is for :func:`unlisten`.
    """
    known = weakref.ref(listener)
    _listeners.append(known)
    with _lock:
        if not _handles:
            _handles.append(register_optimizer_step_pre_hook(_begins))
            if stepping():  # its beginning was missed
                _handles.append(register_optimizer_step_post_hook(_ends))
    return known


def unlisten(known: weakref.ref[Listener]) -> None:
    """The opposite of :func:`listen`; may be called while a step ends."""
    _listeners[:] = [other for other in _listeners if other is not known]
    with _lock:
        if not _listeners:
            while _handles:
                _handles.pop().remove()


def stepping() -> bool:
    """Whether an optimizer's step is running: one that takes a closure may have begun before anybody listened."""
    return _STEP in codes()


def _begins(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    def ends(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        handle.remove()
        _ends(optimizer, args, kwargs)

    handle = optimizer.register_step_post_hook(ends)
    for known in _listeners.copy():  # a listener may take itself off
        if (listener := known()) is not None:
            listener.step_begins(optimizer)


def _ends(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for known in _listeners.copy():
        if (listener := known()) is not None:
            listener.step_ends(optimizer)
