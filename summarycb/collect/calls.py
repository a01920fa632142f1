"""Where code runs: the stack of module calls, their inputs and outputs, and whose backward an autograd node is.

A module call owns the autograd nodes whose sequence numbers were given out while it was the innermost call. The numbers
grow, so the changes of the innermost call are a sorted list, and a node's owner is found in it by bisection.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from traceback import walk_tb
from types import CodeType, FrameType

import torch
from torch.utils.checkpoint import CheckpointFunction

from summarycb.collect.failures import Raised
from summarycb.collect.inputs import describe, describe_call
from summarycb.collect.modules import Structure
from summarycb.specs import Opaque, Spec
from summarycb.step import Phase

OUTSIDE = -1
"""The row, and the call, of what ran outside of modules."""
ACCUMULATION = -2
"""The call of the nodes that add a gradient to a leaf's: outside of modules, too."""
UNPLACED = -3
"""The call of what ran in the backward of a graph that is too deep to ask each node whose it is."""
FORWARD: Phase = "forward"
BACKWARD: Phase = "backward"
RECOMPUTE: Phase = "recompute"
OPTIMIZER: Phase = "optimizer"
NO_TASK = -1
_ACCUMULATE_GRAD = 2**63
"""Nodes that only accumulate into a leaf carry the largest sequence number, above every one given to a call."""
_ENOUGH_STACK = 8 * 2**20
_ENGINE = torch.autograd.graph._engine_run_backward.__code__
_REENTRANT = CheckpointFunction.backward.__code__

graph_task = torch._C._current_graph_task_id
_next_sequence_number: Callable[[], int] = torch.autograd._get_sequence_nr  # type: ignore[attr-defined]


_NOT_RETURNED = Opaque("not returned")


@dataclass(slots=True)
class Call:
    """One execution of a module: its row, the call that made it, and what went in and came out."""

    slot: int
    caller: int
    inputs: Spec
    outputs: Spec = _NOT_RETURNED
    missed: bool = False
    """It ran again in the backward, and first before the observation began."""


@dataclass(slots=True)
class _Frame:
    call: int
    slot: int
    module: int
    task: int
    outer: bool
    """Ends its call: not so a wrapped module's frame, nor that of a recomputation."""
    error: BaseException | None


@dataclass(slots=True)
class _Marks:
    """From which sequence number on, of one thread, which call was the innermost."""

    starts: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    seen: int = 0

    def add(self, call: int, start: int | None = None) -> None:
        """From ``start`` on, or from the next number, it is this call."""
        self.seen = _next_sequence_number()
        if start is None:
            start = self.seen
        if self.starts and self.starts[-1] == start:
            self.calls[-1] = call
        elif not self.calls or self.calls[-1] != call:
            self.starts.append(start)
            self.calls.append(call)

    def at(self, number: int) -> int:
        index = bisect_right(self.starts, number) - 1
        return self.calls[index] if index >= 0 else OUTSIDE


class Calls:
    """The live stack of module calls and what they were called with; a call is known by its place in ``made``."""

    def __init__(self, structure: Structure) -> None:
        self._slot_of = structure.slot_of
        self._thread = threading.get_ident()
        self._stack: list[_Frame] = []
        self._specs: dict[Spec, Spec] = {}  # one object for all that are equal
        self._again: dict[int, list[int]] = {}
        self.made: list[Call] = []
        self.in_optimizer = False
        self.raised = False
        """An outermost call has ended by an error."""
        self.error: Raised | None = None
        """The last error of an operation or a module that nobody is known to have handled."""
        self.other_threads = False
        self.strange_nodes = False
        """Another thread may have made nodes, whose numbers are given out by that thread for itself."""
        self.differentiated: set[int] = set()
        """Calls, or UNPLACED, that a backward has run through."""
        self.accumulated = False
        """A gradient has been added to a leaf's."""
        self._graphs: list[int] = []
        self._began = 0
        self._outermost = 0
        self._node = -1
        self._asked = 0
        self._marks: dict[int, _Marks] = defaultdict(_Marks)
        self._marks[self._thread].add(OUTSIDE)

    def backward_begins(self) -> None:
        """Another graph's nodes are asked; those of an earlier one do not stand on the same stack."""
        self._asked = 0

    @property
    def depth(self) -> int:
        """How many module calls are open."""
        return len(self._stack)

    @property
    def current(self) -> int:
        """The innermost call that is open."""
        return self._stack[-1].call if self._stack else OUTSIDE

    def count(self, slot: int) -> int:
        """How many calls of a row there were."""
        return sum(call.slot == slot for call in self.made)

    def slot(self, call: int) -> int:
        """The row of a call."""
        return self.made[call].slot if call >= 0 else OUTSIDE

    def enter(self, module: torch.nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
        """A module's forward begins; True when it is the outermost."""
        task = graph_task()
        thread = threading.get_ident()
        if task == NO_TASK:
            if thread != self._thread:
                self.other_threads = True
                self.strange_nodes = self.strange_nodes or torch.is_grad_enabled()
                return False
            while self._stack and self._stack[-1].task != NO_TASK:  # an interrupt has ended a recomputation
                self._stack.pop()
            if not self._stack:
                self._outermost = _python_depth()
            elif self._stack[0].module == id(module) and _python_depth() <= self._outermost:
                # no call of itself: an interrupt ended the earlier one, and torch calls no hook then
                self.raised = True
                self._stack.clear()
        slot = self._slot_of[id(module)]
        top = self._stack[-1] if self._stack else None
        if top is not None and top.slot == slot and top.module != id(module):
            call, outer = top.call, False  # a wrapper and what it wraps are one row, hence one call
        else:
            inputs = describe_call(args, kwargs)
            inputs = self._specs.setdefault(inputs, inputs)
            again = None if task == NO_TASK else self._recomputed(slot, inputs)
            call, outer = len(self.made) if again is None else again, again is None
            if outer:
                caller = OUTSIDE if top is None else top.call
                self.made.append(Call(slot, caller, inputs, missed=task != NO_TASK))
                if slot in self._again:
                    self._again[slot].append(call)
        self._stack.append(_Frame(call, slot, id(module), task, outer, sys.exc_info()[1]))
        self._marks[thread].add(call)
        if top is None:
            self._began = self._marks[thread].seen
        return top is None

    def exit(self, module: torch.nn.Module, output: object) -> None:
        """A module's forward has returned, or raised."""
        thread = threading.get_ident()
        if thread != self._thread and graph_task() == NO_TASK:
            return
        # a call that an interrupt tore down never reached its exit: it goes with the one around it
        while self._stack:
            frame = self._stack.pop()
            if frame.module == id(module):
                break
        else:
            return
        self._marks[thread].add(self._stack[-1].call if self._stack else OUTSIDE)
        if not self._stack and frame.task == NO_TASK and self._marks[thread].seen > self._began:
            self._graphs.append(frame.call)
        error = sys.exc_info()[1]
        if error is None or error is frame.error:
            self.error = None  # an earlier one has been handled, and its id may be another's next
        else:
            if self.error is None or not self.error.led_to(error):  # the innermost call is the first that it leaves
                self.error = Raised.by(error, frame.call, FORWARD if frame.task == NO_TASK else RECOMPUTE)
            self.raised = self.raised or (frame.task == NO_TASK and not self._stack)
        if frame.outer and (error is None or error is frame.error):
            outputs = describe(output)
            self.made[frame.call].outputs = self._specs.setdefault(outputs, outputs)

    def _recomputed(self, slot: int, inputs: Spec) -> int | None:
        """The call that now runs again, within a backward: the last one with these inputs that has not yet."""
        if slot not in self._again:
            self._again[slot] = [number for number, call in enumerate(self.made) if call.slot == slot]
        waiting = self._again[slot]
        for place in range(len(waiting) - 1, -1, -1):
            if self.made[waiting[place]].inputs == inputs:
                return waiting.pop(place)
        return next((n for n in range(len(self.made) - 1, -1, -1) if self.made[n].slot == slot), None)

    def failed(self, error: BaseException) -> Raised:
        """What ``error``, which ends the step, or what it comes from, has ended."""
        if self._stack:  # an interrupt: torch calls no hook on its way out
            top = self._stack[-1]
            return Raised.by(error, top.call, FORWARD if top.task == NO_TASK else RECOMPUTE)
        if self.error is not None and self.error.led_to(error):
            return self.error
        return Raised.by(error, OUTSIDE, None)

    def without_backward(self) -> list[int]:
        """The outermost calls that made autograd nodes and were in no backward, where others of the same module were.

        A backward that only looks at tensors in another way, or adds, runs no operation that is told of.
        """
        if not self.differentiated or UNPLACED in self.differentiated:
            return []
        used = set(self.differentiated)
        for number in range(len(self.made) - 1, -1, -1):  # a call comes after the one that made it
            if number in used:
                used.add(self.made[number].caller)
        rows = {self.made[call].slot for call in self._graphs if call in used}
        return [call for call in self._graphs if call not in used and self.made[call].slot in rows]

    def path(self, call: int) -> list[int]:
        """The rows of the calls that led to ``call``, outermost first, itself last."""
        rows = []
        while call >= 0:
            rows.append(self.made[call].slot)
            call = self.made[call].caller
        return rows[::-1]

    def where(self, task: int, product: bool) -> tuple[int, Phase]:
        """The call and the phase of the operation that is running now, in the autograd engine's ``task``.

        The last half of the nodes that may be asked is left for operations that are a ``product``.
        """
        top = self._stack[-1] if self._stack else None
        if task == NO_TASK:
            call = OUTSIDE if top is None else top.call
            marks = self._marks[self._thread]
            if marks.calls[-1] == call:
                marks.seen = _next_sequence_number()
            else:  # a backward that ran in the midst of a call made nodes for others
                marks.add(call, marks.seen)
            if top is not None:
                return call, FORWARD
            # a closure that a step calls runs with gradients on, the optimizer's own arithmetic with them off
            return OUTSIDE, OPTIMIZER if self.in_optimizer and not torch.is_grad_enabled() else FORWARD
        if top is not None and top.task == task:  # a call that was opened by this very backward: a checkpoint's
            return top.call, RECOMPUTE
        known = not self.strange_nodes and self._asked < (_MOST_NODES if product else _MOST_NODES // 2)
        call = self._owner() if known else UNPLACED
        if call == ACCUMULATION:
            self.accumulated = True
        elif call != OUTSIDE:
            self.differentiated.add(call)
        if not torch.is_grad_enabled():
            return call, BACKWARD
        # what runs now makes nodes, which are its owner's: a function that a checkpoint runs again, or a backward that
        # is to be differentiated. The node of this operation has its number already
        marks = self._marks[threading.get_ident()]
        marks.add(call, marks.seen)
        return call, RECOMPUTE if _within_checkpoint() else BACKWARD

    def _owner(self) -> int:
        node = torch._C._current_autograd_node()
        if node is None:
            return OUTSIDE
        number = node._sequence_nr()
        if number >= _ACCUMULATE_GRAD:
            return ACCUMULATION
        if number != self._node:
            self._node = number
            self._asked += 1
        thread = threading.get_ident()
        # the engine runs an accelerator's nodes in a thread of its own, whose numbers a reentrant checkpoint's are
        return self._marks[thread if thread != self._thread and _REENTRANT in codes() else self._thread].at(number)


def _most_nodes() -> int:
    """How many nodes of a graph may be asked whose they are.

    Each gets a Python object for as long as it lives, and torch 2.13 frees a chain of such nodes by recursion, of some
    200 bytes of stack each: a chain of 40,000 ends the process (8 MiB). So there is a kibibyte of stack for each.
    """
    try:
        import resource
    except ImportError:  # Windows, where Python's own has 2 MB
        return 2**20 // 2**10
    limit = resource.getrlimit(resource.RLIMIT_STACK)[0]
    return (_ENOUGH_STACK if limit == resource.RLIM_INFINITY else min(limit, _ENOUGH_STACK)) // 2**10


_MOST_NODES = _most_nodes()


def _within_checkpoint() -> bool:
    since_the_engine = takewhile(lambda code: code is not _ENGINE, codes())
    return any(code.co_filename == _REENTRANT.co_filename for code in since_the_engine)


def in_checkpoint() -> bool:
    """Whether what runs is the first forward of a reentrant checkpoint that is to run again: without gradients."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            return any(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in frame.f_locals["args"])
        frame = frame.f_back
    return False


def engines() -> int:
    """How many backwards are running in this thread, each within the one before."""
    return sum(code is _ENGINE for code in codes())


def in_backward(error: BaseException) -> bool:
    """Whether the autograd engine was running as ``error`` was raised."""
    return any(frame.f_code is _ENGINE for frame, _ in walk_tb(error.__traceback__))


def codes() -> Iterator[CodeType]:
    """What runs in this thread, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def _python_depth() -> int:
    return sum(1 for _ in codes())
