"""When an optimizer steps: one process-wide pair of torch's optimizer hooks, there only while somebody listens.

torch iterates over the dict of hooks while it calls them, and an ordered dict that changes under an iterator raises,
unless the change is made by the last entry. So the post hook is put last as each step begins, and may then take itself
off.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


class Listener(Protocol):
    """Told about every optimizer's step in the process."""

    def step_begins(self, optimizer: torch.optim.Optimizer) -> None: ...  # noqa: D102
    def step_ends(self, optimizer: torch.optim.Optimizer) -> None: ...  # noqa: D102


_STEP = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__  # what every optimizer's step is wrapped in

_listeners: list[Listener] = []
_handles: list[RemovableHandle] = []


def listen(listener: Listener) -> None:
    """Tell ``listener`` about steps until :func:`unlisten`; a step that has begun already is told when it ends."""
    _listeners.append(listener)
    if not _handles:
        _handles.append(register_optimizer_step_pre_hook(_begins))
        _handles.append(register_optimizer_step_post_hook(_ends))


def unlisten(listener: Listener) -> None:
    """The opposite of :func:`listen`; may be called while a step ends."""
    if listener in _listeners:
        _listeners.remove(listener)
    if not _listeners:
        while _handles:
            _handles.pop().remove()


def stepping() -> bool:
    """Whether an optimizer's step is running: one that takes a closure may have begun before anybody listened."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _STEP:
            return True
        frame = frame.f_back
    return False


def _begins(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    _handles.pop().remove()
    _handles.append(register_optimizer_step_post_hook(_ends))
    for listener in _listeners.copy():  # a listener may take itself off
        listener.step_begins(optimizer)


def _ends(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for listener in _listeners.copy():
        listener.step_ends(optimizer)
