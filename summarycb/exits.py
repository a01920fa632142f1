"""What is still to be done when the interpreter exits. Must not import torch."""

from __future__ import annotations

import atexit
import contextlib
import sys
from collections.abc import Callable
from functools import partial

_wishes: dict[object, Callable[[], None]] = {}
_known = -1
"""How many callbacks atexit had when ours became the last of them."""


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


def _do_all() -> None:
    try:
        while _wishes:
            _, do = _wishes.popitem()
            do()
    finally:
        if _wishes:  # that one was interrupted
            _do_all()
    if isinstance(getattr(sys, "last_value", None), KeyboardInterrupt) and not hasattr(sys, "ps1"):
        # the interpreter ends as one killed by Ctrl-C only if no other source text was executed since, as imports do
        with contextlib.suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")
