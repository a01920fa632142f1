"""What is still to be done when the interpreter exits. Must not import torch."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial

_wishes: dict[object, Callable[[], None]] = {}
_known = -1
"""How many callbacks atexit had when ours became the last of them."""
_native = threading.Lock()
_over = False
_LONGEST = 10.0
"""Seconds that the exit waits for one use of native code."""


@contextlib.contextmanager
def native() -> Iterator[bool]:
    """Around C++ that calls Python; gives False in a thread that is too late to begin: the process ends.

    The interpreter stops such a thread wherever it is, and within such code that kills the process by a signal.
    """
    with _native:
        yield not _over or threading.current_thread() is threading.main_thread()


def _forked() -> None:
    """The thread that held it is not in the child."""
    global _native
    _native = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def at_exit(do: Callable[[], None]) -> Callable[[], object]:
    """Do it when the interpreter exits, before what was wished for earlier; what is returned takes that back.

    One callback of atexit's is for all wishes, because one that is taken back leaves its place behind. It runs before
    those that others have registered until now: a tracker's run must not be closed before it has the summary.
    """
    global _known
    wish = object()
    _wishes[wish] = do
    if atexit._ncallbacks() != _known:
        atexit.unregister(_do_all)
        atexit.register(_do_all)
        _known = atexit._ncallbacks()
    return partial(_wishes.pop, wish, None)


def _leave_native() -> None:
    global _over
    _over = True
    if _native.acquire(timeout=_LONGEST):
        _native.release()


def _do_all() -> None:
    try:
        while _wishes:
            _, do = _wishes.popitem()
            do()
    finally:
        if _wishes:  # that one was interrupted
            _do_all()
        _leave_native()
    if isinstance(getattr(sys, "last_value", None), KeyboardInterrupt) and not hasattr(sys, "ps1"):
        # the interpreter ends as one killed by Ctrl-C only if no other source text was executed since, as imports do
        with contextlib.suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")
