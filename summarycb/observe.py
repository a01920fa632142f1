"""observe(): one training step is watched where it runs, and becomes a summary.

Module hooks say where code runs, a dispatch mode sees every operation once and returns its result untouched, and
torch's optimizer hooks say when the step is over. All of it is taken off again on every way out. A collector that fails
is dropped, its figures are None, and the step goes on.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from summarycb.build import build, nothing
from summarycb.collect import steps
from summarycb.collect.calls import graph_task
from summarycb.collect.eager import in_compiled_call, run_eagerly
from summarycb.collect.hooks import hook, no_warning_of_hooks
from summarycb.collect.memory import Memory
from summarycb.collect.mode import KeepsModes, Mode
from summarycb.collect.modules import class_name, walk
from summarycb.collect.ranks import Ranks, world
from summarycb.collectors import Collectors
from summarycb.errors import SummaryError
from summarycb.garbage import collection_paused
from summarycb.progress import Progress
from summarycb.records import Records
from summarycb.trackers import check_timeout, reason, warn
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
    return Observation(model, optimizer, check_timeout(timeout), **check_context(framework, strategy, world_size))


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
        self._progress = Progress(self._model, self._collectors)
        self._context = context
        self._exit: contextlib.ExitStack | None = None
        self._on_step: Callable[[], None] | None = None
        self._forward_only = False

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
        self._progress.begins()
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
        return self._progress.abandoned

    @property
    def backward_seen(self) -> bool:
        """A backward has begun."""
        return self._progress.backward_seen

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
                self._collectors.ended_early(records, self.backward_seen, bool(self._progress.unfinished))
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

    def agree(self, verdict: str) -> str:
        """Rank zero's ``verdict``, on every rank, after :meth:`stop`; each is on its own where that cannot be had."""
        if self._ranks is None:
            return verdict
        try:
            return self._ranks.agree(verdict, self._timeout)
        except Exception as error:
            warn(f"the ranks could not agree on the gates: {reason(error)}")
            return verdict

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
            self._progress.expects_a_step()
        self._context["strategy"] = self._context.get("strategy") or structure.strategy
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
            over = self._on_step is not None and self._progress.is_over()
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
            self._progress.entered(module, records.structure.slot_of[id(module)])
            self._collectors.tell_memory(lambda memory: memory.enter(args, kwargs))

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
        if task != self._progress.task:
            self._progress.changes(task)
        self._collectors.op(task, func, types, args, kwargs, out)

    def saw_error(self, func: Any, args: tuple[Any, ...], error: BaseException) -> None:
        """An operation has raised: it may end a step that is in no module just now."""
        records = self._collectors.records
        if records is None or records.calls is None:
            return
        task = graph_task()
        if task != self._progress.task:
            self._progress.changes(task)
        self._collectors.op_raised(task, func, args, error)

    def step_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer of this process is about to step."""
        if not self._progress.here:
            return
        records = self._collectors.records
        if records is not None and self._progress.owns(optimizer):
            self._collectors.optimizer_begins(optimizer)
        if records is not None and records.calls is not None:
            # an optimizer that takes a closure runs forward and backward inside its step: phases of their own
            records.calls.in_optimizer = True

    def step_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer of this process has stepped."""
        if not self._progress.here:
            return
        records = self._collectors.records
        if records is not None and records.calls is not None:
            records.calls.in_optimizer = False
        if not self._progress.owns(optimizer):
            return
        self._collectors.optimizer_ends(optimizer)
        if self._on_step is not None and self._progress.stepped():
            self._on_step()


_AFTER_AN_ERROR = 2.0
"""How long, at most, the user's exception is held up."""
_MOST_AT_ONCE = 16
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


def check_context(framework: object, strategy: object, world_size: object) -> dict[str, Any]:
    """What only the caller knows of the step; SummaryError for what no stored summary could be read with."""
    for name, given in (("framework", framework), ("strategy", strategy)):
        if not isinstance(given, str | None):
            raise SummaryError(f"{name} must be a name or None, not {given!r}")
    if world_size is not None and (type(world_size) is not int or world_size < 1):
        raise SummaryError(f"world_size must be None or an integer from 1 on, not {world_size!r}")
    return {"framework": framework, "strategy": strategy, "world_size": world_size}
