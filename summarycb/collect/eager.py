"""Compiled models run eagerly for as long as anybody here wants it, and then as the training has it.

A mode around the first call of a compiled model leaves it eager for good (pytorch#190286), and inside a compiled graph
no hook fires.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

_lock = threading.Lock()
_wishes: list[object] = []
_put_back: list[Callable[[], None]] = []


def run_eagerly() -> Callable[[], None]:
    """Begin; what is returned ends it, once."""
    wish = object()
    with _lock:
        if not _wishes:
            stance = torch.compiler.set_stance("force_eager")
            _put_back.append(lambda: stance.__exit__(None, None, None))
        _wishes.append(wish)

    def end() -> None:
        with _lock:
            if wish in _wishes:
                _wishes.remove(wish)
                if not _wishes:
                    put_back = _put_back.pop()
                    if _stance() == "force_eager":  # else the training has taken another since
                        put_back()

    return end


def _stance() -> str:
    from torch._dynamo import eval_frame

    return eval_frame._stance.stance
