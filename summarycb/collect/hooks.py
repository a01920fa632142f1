"""Who calls: hooks of the process on every module's forward, told about one structure, and taken off again.

Hooks on the modules themselves would change what runs: an encoder layer's fused kernel is for modules without any. Only
where a module has forward hooks already ours comes after them, because what they do is a part of the call.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.module import register_module_forward_hook

from summarycb.collect.modules import Structure


class Listener(Protocol):
    """Told about the calls of every module in the process."""

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None: ...  # noqa: D102
    def leave(self, module: nn.Module, output: Any) -> None: ...  # noqa: D102


def hook(listener: weakref.ref[Listener], structure: Structure) -> Callable[[], None]:
    """Begin to tell ``listener``, which is not kept alive by this; returns what ends it."""
    after, key = After(listener), new_key()
    hooked = [module for module in structure.modules() if module._forward_hooks]
    have_some = {id(module) for module in hooked}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> None:
        if (alive := listener()) is not None and _runs():
            alive.enter(module, args, kwargs or {})

    def after_any(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if id(module) not in have_some:
            after(module, args, output)

    torch_module._global_forward_pre_hooks[key] = before
    handle = register_module_forward_hook(after_any, always_call=True)
    # a hook of the process gets keyword arguments where a module has its key among those that do
    entries: list[tuple[dict[Any, Any], Any]]
    entries = [(module._forward_pre_hooks_with_kwargs, True) for module in structure.modules()]
    entries += [(module._forward_hooks, after) for module in hooked]
    entries += [(module._forward_hooks_always_called, True) for module in hooked]
    for entry, value in entries:
        entry[key] = value

    def remove() -> None:
        torch_module._global_forward_pre_hooks.pop(key, None)
        handle.remove()
        for entry, _ in entries:
            entry.pop(key, None)

    return remove


def before_each(modules: Sequence[nn.Module], hook: Callable[..., None]) -> Callable[[], None]:
    """Call ``hook`` with the module, its arguments and keyword arguments before each forward, first of all its hooks.

    Returns what takes it off. The modules are not kept alive by this.
    """
    key, hooked = new_key(), [weakref.ref(module) for module in modules]
    for module in modules:
        hooks: Any = module._forward_pre_hooks
        hooks[key] = hook
        hooks.move_to_end(key, last=False)
        module._forward_pre_hooks_with_kwargs[key] = True

    def remove() -> None:
        for known in hooked:
            if (module := known()) is not None:
                module._forward_pre_hooks.pop(key, None)
                module._forward_pre_hooks_with_kwargs.pop(key, None)

    return remove


def new_key() -> Any:
    """torch's own keys are numbers, which another process gives out again to what a model saved meanwhile has there."""
    return f"summarycb {next(_keys)}"


_keys = itertools.count()


class After:
    """The hook at the end of a call; a copy or a pickle of it does nothing."""

    __name__ = "summarycb"  # torch.jit.script asks hooks for theirs

    def __init__(self, listener: Callable[[], Listener | None] = lambda: None) -> None:
        self._listener = listener

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: D102
        if (alive := self._listener()) is not None and _runs():
            alive.leave(module, output)

    def __deepcopy__(self, memo: object) -> After:
        return After()

    def __reduce__(self) -> tuple[Any, ...]:
        return NO_HOOK


# A pickled hook is a hook that does nothing, and loads where this package is not installed.
NO_HOOK = getattr, (contextlib.nullcontext(), "__exit__")


def _runs() -> bool:
    """It is no compiler, and no tracer, that goes through the call."""
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is None


def no_warning_of_hooks() -> Callable[[], None]:
    """A compiled module warns that it would fire them twice, which it may: it and what it wraps are one row."""
    before = {id(entry) for entry in warnings.filters}
    warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there are global hooks")
    ours = [entry for entry in warnings.filters if id(entry) not in before]

    def remove() -> None:
        for entry in ours:
            with contextlib.suppress(ValueError):  # the training has put its own filters in place since
                warnings.filters.remove(entry)  # type: ignore[attr-defined]

    return remove
