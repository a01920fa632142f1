"""How far a step has come, told by what it does: whether it is over, or has come to nothing."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from summarycb.collect import steps
from summarycb.collect.calls import NO_TASK, Calls, engines, graph_task
from summarycb.collect.eager import in_compiled_call
from summarycb.collect.modules import every, training
from summarycb.collectors import Collectors

_MOST_EVALUATIONS = 64
"""Forwards in eval mode without a backward: of so many, one step is none."""


class Progress:
    """Of the step that ``collectors`` write down, in the thread that it began in. The model is not kept alive."""

    def __init__(self, model: nn.Module, collectors: Collectors) -> None:
        self._model = weakref.ref(model)
        self._collectors = collectors
        self._thread = threading.get_ident()
        self._owned: set[int] = set()
        self._version_before = 0
        self._evaluated: set[int] = set()
        self._evaluations = 0
        self._awaited = self._returned = False
        self._over = False
        self.task = NO_TASK
        self.unfinished: set[int] = set()
        """Backwards that have not returned."""
        self.backward_seen = False

    def begins(self) -> None:
        """It is the thread that calls this."""
        self._thread = threading.get_ident()

    def expects_a_step(self) -> None:
        """Its end is to be told by :meth:`is_over`: parameters that change from now on are changed by it."""
        self._version_before = self._version()

    @property
    def here(self) -> bool:
        """Who asks is in the thread that it began in."""
        return threading.get_ident() == self._thread

    @property
    def abandoned(self) -> bool:
        """See :attr:`summarycb.observe.Observation.abandoned`."""
        records = self._collectors.records
        if records is None or records.calls is None or records.calls.depth > 1:
            return False
        if not self.here or graph_task() != NO_TASK:
            return False
        if self.unfinished or (records.calls.raised and not self.backward_seen):
            return True
        if records.calls.accumulated:
            return False
        nodes = records.structure.nodes
        return self._evaluations > _MOST_EVALUATIONS or any(training(nodes[row].module) for row in self._evaluated)

    def entered(self, module: nn.Module, row: int) -> None:
        """An outermost forward has begun."""
        if training(module) is False:
            self._evaluated.add(row)
            self._evaluations += 1

    def is_over(self) -> bool:
        """As a forward is about to begin: whether it is that of another step."""
        records = self._collectors.records
        calls = None if records is None else records.calls
        if calls is None or not self.here or calls.depth or graph_task() != NO_TASK:
            return False
        calls.in_optimizer = calls.in_optimizer and steps.stepping()  # one that raises does not say that it ends
        if not self._over and self._ended_without_an_optimizer(calls):
            self._over = True
            self._collectors.note(
                "optimizer",
                "no torch optimizer stepped before the next forward: its state is unknown, gradients are what was left",
            )
        return self._over

    def _ended_without_an_optimizer(self, calls: Calls) -> bool:
        """A backward of the model has run, and as an outermost forward begins its gradients are gone or it has changed.

        So it is in a step that a GradScaler skipped, and in a loop that writes its update by hand or by ``torch.func``,
        or has an optimizer that is not torch's.
        """
        if not calls.differentiated or calls.in_optimizer or self.unfinished:
            return False
        if self._evaluated and not calls.accumulated:  # gradients of an input, as for forces
            return False
        return all(p.grad is None for p in self._parameters()) or self._version() != self._version_before

    def stepped(self) -> bool:
        """An optimizer of the model's has stepped: whether the step is over with that."""
        # an optimizer of each parameter may step as its gradient is ready: the step is over with the backward; and
        # one whose step is compiled is no place to end at
        self._over = graph_task() != NO_TASK or in_compiled_call()
        return not self._over

    def owns(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it has a parameter of the model."""
        try:
            if not self._owned:
                self._owned = {id(parameter) for parameter in self._parameters()}
            return any(id(p) in self._owned for group in optimizer.param_groups for p in group["params"])
        except Exception as error:
            self._collectors.failed("the optimizer's step", error)
            return False

    def changes(self, task: int) -> None:
        """The autograd engine has begun on something else, or is done; a task within a task is no new backward."""
        outermost = engines() == self.here  # a device's thread is within the caller's
        begins, self.task = self.task == NO_TASK or (self._returned and outermost), task
        records = self._collectors.records
        if task == NO_TASK or records is None or records.calls is None:
            return
        if begins:
            self.backward_seen = True
            self._awaited = self._returned = False
            records.calls.error = None  # whatever was raised before has been handled
            records.calls.backward_begins()
        if outermost and not self._awaited:
            self._awaited = True
            try:
                if _after_backward(partial(call_alive, weakref.WeakMethod(self._backward_ends), task)):
                    self.unfinished.add(task)
            except Exception as error:
                self._collectors.failed("the end of the backward", error)
        if begins:
            self._collectors.backward_begins()

    def _backward_ends(self, task: int) -> None:
        """Not so one that raises."""
        self.unfinished.discard(task)
        self._returned = True

    def _parameters(self) -> list[torch.Tensor]:
        """Not ``model.parameters()``, which a model may have overridden."""
        model = self._model()
        modules = () if model is None else every(model)
        return [p for module in modules for p in module._parameters.values() if p is not None]

    def _version(self) -> int:
        """Grows as parameters are written to."""
        lazy = nn.parameter.is_lazy
        return sum(p._version for p in self._parameters() if not lazy(p) and not p.is_inference())


def _after_backward(call: Callable[[], None]) -> bool:
    """Have ``call`` called as the backward that is running is over, after all that others want then, if it can be."""
    compiled = sys.modules.get("torch._dynamo.compiled_autograd")
    if compiled is not None and compiled.compiled_autograd_enabled:  # it calls nobody
        return False
    queue: Callable[[Callable[[], None]], None] = torch.autograd.Variable._execution_engine.queue_callback
    queue(partial(queue, call))
    return True


def call_alive(method: weakref.WeakMethod[Callable[..., None]], *args: object) -> None:
    """Call a method, if its object is still there."""
    if (alive := method()) is not None:
        alive(*args)
