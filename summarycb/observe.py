"""observe(): one training step is watched where it runs, and becomes a summary.

Module hooks say where code runs, a dispatch mode sees every operation once and returns its result untouched, and torch's
optimizer hooks say when the step is over. All of it is taken off again on every way out. A collector that fails is
dropped, its figures are None, and the step goes on.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from summarycb.build import Records, build, nothing
from summarycb.collect import steps
from summarycb.collect.calls import NO_TASK, Calls, graph_task
from summarycb.collect.flops import Flops
from summarycb.collect.memory import Memory, tensor_bytes
from summarycb.collect.modules import walk
from summarycb.errors import SummaryError
from summarycb.trackers import warn
from summarycb.tree import ModelSummary


def observe(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    **context: Any,
) -> Observation:
    """Observe one step of ``model`` by hand::

        with summarycb.observe(model) as observation:
            loss_fn(model(x), y).backward()
            optimizer.step()
        observation.summary

    Optimizers that step inside the block and own a parameter of the model are found by themselves; name one in
    ``optimizer`` to have its state counted where it does not step. ``context`` sets fields of
    :class:`summarycb.tree.Environment` that only the caller knows (``framework``, ``strategy``, ``world_size``).
    """
    return Observation(model, optimizer, **context)


class Observation:
    """The context manager that :func:`observe` returns; ``summary`` is None until the block ends."""

    summary: ModelSummary | None = None

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        **context: Any,
    ) -> None:
        self._model: nn.Module | None = check_model(model)
        self._optimizers = check_optimizers(optimizer)
        self._context = context
        self.backward_seen = False
        self._exit: contextlib.ExitStack | None = None
        self._on_step: Callable[[], None] | None = None

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

    def start(self, on_step: Callable[[], None] | None = None) -> None:
        """Begin to observe; ``on_step`` is called when an optimizer that owns a parameter of the model has stepped."""
        if self._model is None or self._exit is not None:
            raise SummaryError("an observation can be entered once; make a new one for another step")
        self._on_step = on_step
        self._failures: list[str] = []
        self._records: Records | None = None
        self._exit = contextlib.ExitStack()
        try:
            self._begin(self._model)
        except Exception as error:
            self._failed("observation", error)

    @property
    def abandoned(self) -> bool:
        """What ran so far raised, or was an evaluation, and no backward followed: a new outermost forward is a new step.

        To be asked when a forward has just been entered.
        """
        records = self._records
        if self.backward_seen or records is None or records.calls is None or records.calls.depth > 1:
            return False
        return records.training is False or records.calls.failed is not None

    def discard(self) -> None:
        """Take everything off and make no summary."""
        assert self._exit is not None, "start() comes first"
        self._exit.close()
        self._exit = self._records = self._model = None

    def stop(self, error: BaseException | None = None) -> ModelSummary:
        """Take everything off and build the summary; ``error`` is what the step raised. Never raises."""
        assert self._exit is not None, "start() comes first"
        assert self._model is not None
        try:
            self._exit.close()
        except Exception as fault:
            self._failed("observation", fault)
        self._exit = None
        model, self._model = self._model, None
        try:
            records = self._records or Records(walk(model))
            if self._records is not None and records.tensor_bytes is None:
                self._guard("gradients and optimizer state", lambda: self._measure_tensors(records))
            if error is not None:
                records.incomplete.append(f"the step raised {type(error).__name__}")
            records.incomplete.extend(self._failures)
            records.backward = self.backward_seen
            self.summary = build(records, self._context)
        except Exception as fault:
            self._failed("the structure", fault)
            self.summary = nothing(type(model).__name__, self._failures)
        self._records = None
        self._optimizers = []
        if self._failures:
            warn("the model summary is incomplete: " + "; ".join(self._failures))
        return self.summary

    def _begin(self, model: nn.Module) -> None:
        assert self._exit is not None
        structure = walk(model)
        records = self._records = Records(structure)
        records.calls = Calls(structure)
        records.flops = Flops(records.calls)
        records.optimizers = {type(o).__name__ for o in self._optimizers}
        self._owned = {id(p) for module in structure.modules() for p in module._parameters.values() if p is not None}
        self._guard("memory", lambda: self._follow_memory(records))
        self._collectors: list[Flops | Memory] = [c for c in (records.flops, records.memory) if c is not None]
        for module in structure.modules():
            self._hook(module)
        steps.listen(self)
        self._exit.callback(steps.unlisten, self)
        if "torch._dynamo" in sys.modules:
            # a mode around the first call of a compiled model leaves it eager for good (pytorch#190286), and inside a
            # compiled graph no hook fires: the observed step alone runs eagerly
            self._exit.enter_context(torch.compiler.set_stance("force_eager"))
        if _get_current_dispatch_mode_stack():
            records.note("mode", "another dispatch mode was active when the step began; it saw every operation too")
        self._exit.enter_context(_Mode(self._op))

    def _follow_memory(self, records: Records) -> None:
        assert records.calls is not None
        records.memory = Memory(records.structure, records.calls, self._optimizers)

    def _hook(self, module: nn.Module) -> None:
        assert self._exit is not None
        try:
            before = module.register_forward_pre_hook(self.enter, prepend=True, with_kwargs=True)
            self._exit.callback(before.remove)
            after = module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
            self._exit.callback(after.remove)
        except RuntimeError:  # a scripted module may refuse hooks: its work is its parent's
            assert self._records is not None
            self._records.note("hooks", f"{type(module).__name__} takes no hooks: what it does counts for its parent")

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The forward of a module of the model begins."""
        records = self._records
        if records is None or records.calls is None:
            return
        try:
            outermost = records.calls.depth == 0
            records.calls.enter(module, args, kwargs)
            if outermost:
                records.saw_call(module)
        except Exception as error:
            self._drop_all("module calls", error)
            return
        if outermost and (memory := records.memory) is not None:
            self._guard("memory", lambda: memory.enter(args, kwargs))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._records is not None and self._records.calls is not None:
            try:
                self._records.calls.exit(module, output)
            except Exception as error:
                self._drop_all("module calls", error)

    def _op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if not self.backward_seen:
            self.backward_seen = graph_task() != NO_TASK
        for collector in self._collectors:
            try:
                collector.op(func, args, kwargs, out)
            except Exception as error:
                self._drop(collector, error)

    def step_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer of this process is about to step."""
        if self._records is not None and self._records.calls is not None:
            # an optimizer that takes a closure runs forward and backward inside its step; those have phases of their own
            self._records.calls.in_optimizer = True

    def step_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer of this process has stepped."""
        records = self._records
        if records is not None and records.calls is not None:
            records.calls.in_optimizer = False
        if not any(id(p) in self._owned for group in optimizer.param_groups for p in group["params"]):
            return
        if records is not None:
            if all(known is not optimizer for known in self._optimizers):
                self._optimizers.append(optimizer)
            records.optimizers.add(type(optimizer).__name__)
            self._guard("gradients and optimizer state", lambda: self._measure_tensors(records))
        if self._on_step is not None:
            self._on_step()

    def _measure_tensors(self, records: Records) -> None:
        records.tensor_bytes = tensor_bytes(records.structure, self._optimizers if self._optimizers else None)

    def _guard(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            if what == "memory" and self._records is not None and self._records.memory is not None:
                self._drop(self._records.memory, error)
            else:
                self._failed(what, error)

    def _drop(self, collector: Flops | Memory, error: Exception) -> None:
        assert self._records is not None
        self._collectors = [c for c in self._collectors if c is not collector]
        if collector is self._records.flops:
            self._records.flops = None
            self._failed("MACs", error)
        else:
            self._records.memory = None
            self._failed("memory", error)

    def _drop_all(self, what: str, error: Exception) -> None:
        assert self._records is not None
        self._collectors = []
        self._records.calls = self._records.flops = self._records.memory = None
        self._failed(what, error)

    def _failed(self, what: str, error: Exception) -> None:
        self._failures.append(f"{what} could not be observed ({type(error).__name__}: {error})")


class _Mode(TorchDispatchMode):
    """Calls every operation once, as it is, and then shows it."""

    supports_higher_order_operators = True

    def __init__(self, see: Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]) -> None:
        super().__init__()
        self._see = see

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing is compiled while we are here, and torch's guard against it costs an import of dynamo and 2 us an op
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._see(func, args, kwargs, out)
        return out


def check_model(model: object) -> nn.Module:
    """``model``, or SummaryError when it is no module."""
    if not isinstance(model, nn.Module):
        raise SummaryError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    return model


def check_optimizers(optimizer: object) -> list[torch.optim.Optimizer]:
    """A list of optimizers from one, several or None; SummaryError for anything else."""
    given = [] if optimizer is None else [optimizer] if not isinstance(optimizer, Iterable) else list(optimizer)
    for item in given:
        if not isinstance(item, torch.optim.Optimizer):
            raise SummaryError(
                f"optimizer must be a torch.optim.Optimizer, several of them or None, not {type(item).__name__}"
            )
    return given
