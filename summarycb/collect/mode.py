"""What runs: a dispatch mode that is there for one step, and can be left out of order."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch._C import _len_torch_function_stack, _pop_torch_function_stack, _push_on_torch_function_stack
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
)

from summarycb.collect.eager import in_compiled_call, run_eagerly


class Observer(Protocol):
    """Sees operations."""

    def saw(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None: ...  # noqa: D102
    def saw_error(self, func: Any, args: tuple[Any, ...], error: BaseException) -> None: ...  # noqa: D102


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
    """Calls every operation once, as it is, and then shows it to an observer that it does not keep alive."""

    supports_higher_order_operators = True

    def __init__(self, observer: weakref.ref[Observer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._observer = observer
        self._compile_again: Callable[[], None] | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing is compiled while we are here, and torch's guard against it costs an import of dynamo and 2 us an op
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        try:
            out = func(*args, **kwargs)
        except BaseException as error:
            if (observer := self._observer()) is not None:
                observer.saw_error(func, args, error)
            raise
        observer = self._observer()
        if observer is not None:
            observer.saw(func, types, args, kwargs, out)
        return out

    def __exit__(self, *exc_info: Any) -> None:
        """Leave, though modes of the user's may have been entered since, which stay: torch pops whatever is on top."""
        if not self._can_leave():
            # in another thread, or off the stack for the length of an operation, after which torch puts it back, or in
            # a compiled call: it is left with the next garbage collection that finds it on the stack, and nobody
            # listens to it until then; what is first called under a mode would never be compiled
            self._compile_again = run_eagerly() if in_compiled_call() else None
            gc.callbacks.append(self._leave_later)
            return
        above: list[TorchDispatchMode] = []
        while _get_current_dispatch_mode_stack()[-1] is not self:
            above.append(_pop_mode())
        if above:
            # each mode puts back, when it is left, the flags that it found: the next one above inherits ours
            heir = above[-1]
            for flags in _FLAGS:
                found = getattr(self, flags).pop()
                getattr(heir, flags)[-1] = found
            _pop_mode()
        else:
            super().__exit__(*exc_info)  # type: ignore[no-untyped-call]
        for mode in reversed(above):
            _push_mode(mode)
        if self._compile_again is not None:
            self._compile_again()

    def _can_leave(self) -> bool:
        return any(mode is self for mode in _get_current_dispatch_mode_stack()) and not in_compiled_call()

    def _leave_later(self, phase: str, info: object) -> None:
        if self._can_leave():
            gc.callbacks.remove(self._leave_later)
            self.__exit__(None, None, None)


class KeepsModes(TorchFunctionMode):
    """Dispatch modes that were entered within a compiled call stay in force after it.

    As the call ends torch sets back whether modes are on (the dispatch keys), but not the stack of them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.Python):
            found = [_pop_mode() for _ in _get_current_dispatch_mode_stack()]
            for mode in reversed(found):
                _push_mode(mode)
        return func(*args, **(kwargs or {}))

    def __exit__(self, *exc_info: Any) -> None:
        """Leave, though others may have been entered since."""
        above: list[Any] = []
        while _len_torch_function_stack() and (top := _pop_torch_function_stack()) is not self:
            above.append(top)
        for mode in reversed(above):
            _push_on_torch_function_stack(mode)


_FLAGS = (
    "old_dispatch_mode_flags",
    "old_non_infra_dispatch_mode_flags",
    "old_without_ignore_compile_internals_dispatch_mode_flags",
)
