"""observe(): one training step is watched where it runs, and becomes a summary.

Module hooks say where code runs, a dispatch mode sees every operation once and returns its result untouched, and
torch's optimizer hooks say when the step is over. All of it is taken off again on every way out. A collector that fails
is dropped, its figures are None, and the step goes on.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from summarycb.build import build, nothing
from summarycb.collect import steps
from summarycb.collect.calls import NO_TASK, Calls, engines, graph_task
from summarycb.collect.eager import in_compiled_call, run_eagerly
from summarycb.collect.hooks import hook, no_warning_of_hooks
from summarycb.collect.memory import Memory
from summarycb.collect.mode import KeepsModes, Mode
from summarycb.collect.modules import class_name, every, training, walk
from summarycb.collect.ranks import Ranks, world
from summarycb.collectors import Collectors
from summarycb.errors import SummaryError
from summarycb.garbage import collection_paused
from summarycb.records import Records
from summarycb.trackers import check_timeout, warn
from summarycb.tree import ModelSummary


def observe(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    *,
    framework: str | None = None,
    strategy: str | None = None,
    world_size: int | None = None,
    timeout: float = 10.0,
) -> Observation:
    """Observe one step of ``model`` by hand::

        with summarycb.observe(model) as observation:
            loss_fn(model(x), y).backward()
            optimizer.step()
        observation.summary

    Optimizers that step inside the block and own a parameter of the model are found by themselves; name one in
    ``optimizer`` to have its state counted where it does not step. ``framework``, ``strategy`` and ``world_size`` are
    the fields of :class:`summarycb.step.Environment` that only the caller knows. Where several processes train together
    each has to observe; rank zero's summary then has what each of them saw (``summary.ranks``), if it is told within
    ``timeout`` seconds.

    Raises :class:`SummaryError` at once for a wrong argument; nothing that fails later reaches the step.
    """
    context: dict[str, Any] = {"framework": framework, "strategy": strategy, "world_size": world_size}
    return Observation(model, optimizer, check_timeout(timeout), **context)


class Observation:
    """The context manager that :func:`observe` returns; ``summary`` is None until the block ends."""

    summary: ModelSummary | None = None

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        timeout: float = 10.0,
        ranks: Ranks | None = None,
        **context: Any,
    ) -> None:
        self._model: nn.Module | None = check_model(model)
        self._timeout = timeout
        self._ranks = ranks
        self._collectors = Collectors(check_optimizers(optimizer))
        self._owned: set[int] = set()
        self._context = context
        self._task = NO_TASK
        self._unfinished: set[int] = set()
        self._awaited = self._returned = False
        self._evaluated: set[int] = set()
        self._evaluations = 0
        self._began_at = 0
        self._thread = threading.get_ident()
        self._over = False
        self._exit: contextlib.ExitStack | None = None
        self._on_step: Callable[[], None] | None = None
        self._forward_only = False
        self.backward_seen = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(error)

    @property
    def running(self) -> bool:
        """Between :meth:`start` and :meth:`stop`."""
        return self._exit is not None

    @collection_paused()
    def start(self, on_step: Callable[[], None] | None = None) -> None:
        """Begin to observe; ``on_step`` is called when an optimizer that owns a parameter of the model has stepped."""
        if self._model is None or self._exit is not None:
            raise SummaryError("an observation can be entered once; make a new one for another step")
        self._on_step = on_step
        self._thread = threading.get_ident()
        self._exit = contextlib.ExitStack()
        # when nobody holds the observation any more, because a step raised and its model was dropped, what the process
        # holds of it goes too; so neither the mode nor the optimizer hooks, nor this, may keep it alive
        self._dropped = weakref.finalize(self, self._exit.close)
        self._dropped.atexit = False
        # before anything that can fail: whoever waits for the step's end must hear of it
        self._exit.callback(steps.unlisten, steps.listen(self))
        try:
            self._begin(self._model)
        except Exception as error:
            self._collectors.drop_all("the step", error)

    @property
    def failed(self) -> bool:
        """A part of the package has failed; what it was to observe is missing."""
        return bool(self._collectors.failures)

    @property
    def abandoned(self) -> bool:
        """What ran so far raised, or was an evaluation: an outermost forward is a new step.

        An evaluation with gradients on is known by a module that was in eval mode and no longer is, or by its length.
        To be asked when a forward has just been entered.
        """
        records = self._collectors.records
        if records is None or records.calls is None or records.calls.depth > 1:
            return False
        if threading.get_ident() != self._thread or graph_task() != NO_TASK:
            return False
        if self._unfinished or (records.calls.raised and not self.backward_seen):
            return True
        if records.calls.accumulated:
            return False
        nodes = records.structure.nodes
        return self._evaluations > _MOST_EVALUATIONS or any(training(nodes[row].module) for row in self._evaluated)

    def note(self, kind: str, text: str) -> None:
        """Say in the summary what its figures do not."""
        self._collectors.note(kind, text)

    def may_have_missed(self, modules: Iterable[int]) -> None:
        """These, by id, ran before the observation began, perhaps as a part of the step."""
        if self._collectors.records is not None:
            self._collectors.records.ran_before = frozenset(modules)

    def discard(self) -> None:
        """Take everything off and make no summary."""
        assert self._exit is not None, "start() comes first"
        self._exit.close()
        self._forget()
        if self._ranks is not None:
            self._ranks.withdraw()

    @collection_paused()
    def stop(self, error: BaseException | None = None) -> ModelSummary:
        """Take everything off and build the summary; ``error`` is what the step raised. Never raises."""
        assert self._exit is not None, "start() comes first"
        assert self._model is not None
        try:
            self._exit.close()
        except Exception as fault:
            self._collectors.failed("the end of the step", fault)
        try:
            records = self._collectors.records or Records(walk(self._model))
            if self._collectors.records is not None and records.tensor_bytes is None:
                self._collectors.measure_tensors(records)
            if error is not None:
                self._collectors.ended_by(error, records)
            else:
                self._collectors.ended_early(records, self.backward_seen, bool(self._unfinished))
            self._collectors.tell_memory(Memory.end)
            for op, raised in ({} if records.flops is None else records.flops.faults).items():
                self._collectors.failed(f"MACs of {op}", raised)
            if records.structure.changed():
                records.incomplete.append(
                    "modules were added or taken away during the step; the ones before it are shown"
                )
            records.incomplete.extend(self._collectors.failures)
            records.backward, records.idle = self.backward_seen, bool(self._collectors.idle())
            self.summary = build(records, self._context)
        except Exception as fault:
            self._collectors.failed("the structure", fault)
            self.summary = nothing(class_name(type(self._model)), list(self._collectors.failures))
        self.summary = self._with_other_ranks(self.summary)
        if self._collectors.failures:
            warn("the model summary is incomplete: " + "; ".join(self._collectors.failures.values()))
        self._forget()
        return self.summary

    def _with_other_ranks(self, summary: ModelSummary) -> ModelSummary:
        if self._ranks is None:
            return summary
        timeout = self._timeout if summary.failure is None else min(self._timeout, _AFTER_AN_ERROR)
        try:
            return self._ranks.gather(summary, timeout)
        except Exception as fault:
            self._collectors.failed("what the other ranks saw", fault)
            return replace(summary, incomplete=(*summary.incomplete, *self._collectors.failures))

    def _forget(self) -> None:
        """Nothing of the model, the optimizers or the step is kept alive by an observation that is over."""
        self._dropped.detach()
        self._exit = self._model = self._on_step = None
        self._collectors.forget()

    def _begin(self, model: nn.Module) -> None:
        assert self._exit is not None
        structure = walk(model)
        if self._on_step is not None:
            self._began_at = self._version()
        records = self._collectors.records = Records(structure)
        if (place := world()) is not None:
            self._context |= {"rank": place[0], "world_size": self._context.get("world_size") or place[1]}
            try:
                self._ranks = self._ranks or Ranks(structure, *place)
            except Exception as error:
                self._collectors.failed("the other ranks", error)
        self._collectors.begin(records)
        self._exit.callback(hook(weakref.ref(self), structure))
        if not _COMPILERS.isdisjoint(sys.modules):
            # a mode around the first call of a compiled model leaves it eager for good (pytorch#190286), and inside a
            # compiled graph no hook fires: the observed step alone runs eagerly. flex_attention compiles itself
            self._exit.callback(run_eagerly())
            self._exit.callback(no_warning_of_hooks())
        self._mode = contextlib.ExitStack()
        self._exit.push(self._mode)
        active = _get_current_dispatch_mode_stack()
        theirs = [mode for mode in active if not isinstance(mode, Mode)]
        if len(active) - len(theirs) >= _MOST_AT_ONCE:
            raise SummaryError(
                f"{_MOST_AT_ONCE} other observations are running, of which each is a call around each operation"
            )
        if theirs and self._on_step is not None:
            # begun amid the user's code: that mode may be left before the step ends, and would then pop ours
            self._forward_only = True
            records.note("mode", "another dispatch mode was active as the step began: its forward alone was observed")
        if in_compiled_call():
            self._exit.enter_context(KeepsModes())
        self._mode.enter_context(Mode(weakref.ref(self)))

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The forward of a module of the process begins."""
        records = self._collectors.records
        if records is None or records.calls is None or id(module) not in records.structure.slot_of:
            return
        try:
            over = self._on_step is not None and self._is_over(records.calls)
            outermost = not over and records.calls.enter(module, args, kwargs)
            if not over:
                records.saw_call()
        except Exception as error:
            self._collectors.drop_all("module calls", error)
            return
        if over and self._on_step is not None:
            self._on_step()
            return
        self._collectors.tell_flow(lambda flow: flow.enter(args, kwargs))
        if outermost:
            if training(module) is False:
                self._evaluated.add(records.structure.slot_of[id(module)])
                self._evaluations += 1
            self._collectors.tell_memory(lambda memory: memory.enter(args, kwargs))

    def _is_over(self, calls: Calls) -> bool:
        """As a forward is about to begin: whether it is that of another step."""
        if threading.get_ident() != self._thread or calls.depth or graph_task() != NO_TASK:
            return False
        calls.in_optimizer = calls.in_optimizer and steps.stepping()  # one that raises does not say that it ends
        if not self._over and self._ended_without_an_optimizer(calls):
            self._over = True
            self.note("optimizer", "no torch optimizer stepped before the next forward: its state is unknown")
        return self._over

    def _ended_without_an_optimizer(self, calls: Calls) -> bool:
        """A backward of the model has run, and as an outermost forward begins its gradients are gone or it has changed.

        So it is in a step that a GradScaler skipped, and in a loop that writes its update by hand or by ``torch.func``,
        or has an optimizer that is not torch's.
        """
        if not calls.differentiated or calls.in_optimizer or self._unfinished:
            return False
        if self._evaluated and not calls.accumulated:  # gradients of an input, as for forces
            return False
        return all(parameter.grad is None for parameter in self._parameters()) or self._version() != self._began_at

    def _parameters(self) -> list[torch.Tensor]:
        """Not ``model.parameters()``, which a model may have overridden."""
        modules = () if self._model is None else every(self._model)
        return [p for module in modules for p in module._parameters.values() if p is not None]

    def _version(self) -> int:
        """Grows as parameters are written to."""
        lazy = nn.parameter.is_lazy
        return sum(p._version for p in self._parameters() if not lazy(p) and not p.is_inference())

    def leave(self, module: nn.Module, output: Any) -> None:
        """The forward of a module of the process has returned, or raised."""
        records = self._collectors.records
        if records is None or records.calls is None or id(module) not in records.structure.slot_of:
            return
        self._collectors.tell_flow(lambda flow: flow.exit(output))
        try:
            records.calls.exit(module, output)
            if records.calls.error is not None:
                self._collectors.look_at_memory(records.calls.error)
            if self._forward_only and records.calls.depth == 0:
                self._mode.close()
        except Exception as error:
            self._collectors.drop_all("module calls", error)

    def saw(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """An operation has run."""
        records = self._collectors.records
        if records is None or records.calls is None:
            return
        task = graph_task()
        if task != self._task:
            self._task_changes(task, records)
        self._collectors.op(task, func, types, args, kwargs, out)

    def saw_error(self, func: Any, args: tuple[Any, ...], error: BaseException) -> None:
        """An operation has raised: it may end a step that is in no module just now."""
        records = self._collectors.records
        if records is None or records.calls is None:
            return
        task = graph_task()
        if task != self._task:
            self._task_changes(task, records)
        self._collectors.op_raised(task, func, args, error)

    def _task_changes(self, task: int, records: Records) -> None:
        """The autograd engine has begun on something else, or is done; a task within a task is no new backward."""
        outermost = engines() == (threading.get_ident() == self._thread)  # a device's thread is within the caller's
        begins, self._task = self._task == NO_TASK or (self._returned and outermost), task
        if task == NO_TASK or records.calls is None:
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
                    self._unfinished.add(task)
            except Exception as error:
                self._collectors.failed("the end of the backward", error)
        if begins:
            self._collectors.backward_begins()

    def _backward_ends(self, task: int) -> None:
        """Not so one that raises."""
        self._unfinished.discard(task)
        self._returned = True

    def step_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer of this process is about to step."""
        if threading.get_ident() != self._thread:
            return
        records = self._collectors.records
        if records is not None and self._owns(optimizer):
            self._collectors.optimizer_begins(optimizer)
        if records is not None and records.calls is not None:
            # an optimizer that takes a closure runs forward and backward inside its step: phases of their own
            records.calls.in_optimizer = True

    def step_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer of this process has stepped."""
        if threading.get_ident() != self._thread:
            return
        records = self._collectors.records
        if records is not None and records.calls is not None:
            records.calls.in_optimizer = False
        if not self._owns(optimizer):
            return
        self._collectors.optimizer_ends(optimizer)
        if self._on_step is not None:
            # an optimizer of each parameter may step as its gradient is ready: the step is over with the backward; and
            # one whose step is compiled is no place to end at
            self._over = graph_task() != NO_TASK or in_compiled_call()
            if not self._over:
                self._on_step()

    def _owns(self, optimizer: torch.optim.Optimizer) -> bool:
        try:
            if not self._owned:
                self._owned = {id(parameter) for parameter in self._parameters()}
            return any(id(p) in self._owned for group in optimizer.param_groups for p in group["params"])
        except Exception as error:
            self._collectors.failed("the optimizer's step", error)
            return False


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


_AFTER_AN_ERROR = 2.0
"""How long, at most, the user's exception is held up."""
_MOST_AT_ONCE = 16
_MOST_EVALUATIONS = 64
"""Forwards in eval mode without a backward: of so many, one step is none."""
_COMPILERS = {"torch._dynamo", "torch.nn.attention.flex_attention"}


def check_model(model: object) -> nn.Module:
    """``model``, or SummaryError when it is no module."""
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise SummaryError(f"model must be a torch.nn.Module, not {given}")
    return model


def check_optimizers(optimizer: object) -> list[torch.optim.Optimizer]:
    """A list of optimizers from one, several or None; SummaryError for anything else."""
    given: list[Any] = (
        [] if optimizer is None else [optimizer] if not isinstance(optimizer, Iterable) else list(optimizer)
    )
    for item in given:
        if not isinstance(item, torch.optim.Optimizer):
            raise SummaryError(
                f"optimizer must be a torch.optim.Optimizer, several of them or None, not {type(item).__name__}"
            )
    return given
