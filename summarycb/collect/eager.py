"""Compiled models run eagerly for as long as anybody here wants it, and then as the training has it.

A mode around the first call of a compiled model leaves it eager for good (pytorch#190286), and inside a compiled graph
no hook fires. Nor may the compiler see one of ours: a graph with it is compiled anew when it is gone.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy, set_eval_frame

from summarycb.collect.calls import codes

_Function = TypeVar("_Function", bound=Callable[..., object])

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


def around_compiling(begins: Callable[[], None], ends: Callable[[], None]) -> Callable[[], None]:
    """Call ``begins`` before the compiler looks at anything and ``ends`` after it; what is returned ends that."""
    from torch._dynamo.callback import callback_handler

    before, after = (not_compiled(_aside(call)) for call in (begins, ends))
    callback_handler.register_start_callback(before)
    callback_handler.register_end_callback(after)

    def remove() -> None:
        with contextlib.suppress(ValueError):  # torch.compiler.reset() has taken everybody's off
            callback_handler.remove_start_callback(before)
            callback_handler.remove_end_callback(after)

    return remove


def _aside(call: Callable[[], None]) -> Callable[[object], None]:
    """The compiler may be on while it calls this, and would wait for itself to compile it."""

    def aside(_: object) -> None:
        compiler = set_eval_frame(None)
        try:
            call()
        finally:
            set_eval_frame(compiler)

    return aside


def not_compiled(function: _Function) -> _Function:
    """Where a compiled region comes to ``function`` Python runs it, and the compiler makes no frame of it."""
    set_code_exec_strategy(function.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.DEFAULT))
    return function


def in_compiled_call() -> bool:
    """Whether what runs was called by a function that is compiled, though it may run eagerly."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and any(
        code.co_name == "compile_wrapper" and code.co_filename == dynamo.__file__ for code in codes()
    )


def _stance() -> str:
    from torch._dynamo import eval_frame

    return eval_frame._stance.stance
