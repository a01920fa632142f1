"""watch(): one line in a plain loop. It decides when the first real training step starts and ends, and nothing else."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch._C._dynamo.eval_frame import set_eval_frame

from summarycb.baseline import Baseline
from summarycb.collect.calls import NO_TASK, graph_task, in_checkpoint
from summarycb.collect.eager import around_compiling, not_compiled, run_eagerly
from summarycb.collect.hooks import NO_HOOK, before_each
from summarycb.collect.modules import every
from summarycb.collect.ranks import world
from summarycb.deliver import deliver
from summarycb.errors import GateError, SummaryError
from summarycb.exits import at_exit
from summarycb.observe import Observation, check_context, check_model, check_optimizers
from summarycb.progress import call_alive
from summarycb.publish import Publisher
from summarycb.trackers import check_timeout, resolve, warn
from summarycb.tree import ModelSummary
from summarycb.view import Selection


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    trackers: Sequence[object] = (),
    depth: int | None = 3,
    *,
    columns: Sequence[str] | None = None,
    baseline: ModelSummary | str | Path | Baseline | None = None,
    fail_on: Sequence[str] = (),
    verbose: bool = True,
    step: int = 0,
    timeout: float = 10.0,
    framework: str | None = None,
    strategy: str | None = None,
    world_size: int | None = None,
) -> Watch:
    """Summarize the first real training step of ``model`` in a plain loop::

        hook = summarycb.watch(model, trackers=[writer])
        for x, y in loader:
            ...

    The observation begins at the first forward of the model, or of a module in it, with gradients on, and ends after
    the first step of an optimizer that owns one of its parameters, or, where none steps, at the next forward that finds
    the gradients gone. An evaluation, without gradients or in eval mode, does not count, nor does what a loop that
    never calls ``model`` itself runs without gradients before. Then everything is taken off, the summary is printed
    (``verbose``), written to ``trackers`` at ``step``, and kept in ``hook.summary``.

    The observed step of a compiled model runs eagerly, every other as it is compiled. Of a model within a compiled
    function that is noticed as its first training step is compiled: the second is observed, and one graph is compiled
    again. Where that function has trained before, nothing is noticed. While a CUDA graph is captured nothing is done.

    ``baseline`` is a summary, a file or a reference such as ``"mlflow:<run_id>"``: what changed from it is printed
    after the summary, and written to the trackers. ``fail_on`` are gates, as in ``["params>+5%"]``: where one fails,
    the first step raises :class:`summarycb.GateError` as it ends, on each rank, when the trackers have the summary.

    ``timeout`` bounds in seconds how long ``hook.flush()``, ``hook.close()`` and the interpreter's exit wait for the
    trackers, and rank zero for the other ranks: where several processes train together, each has to watch.
    ``framework``, ``strategy`` and ``world_size`` are for what knows them, as in :func:`summarycb.observe`.

    Raises :class:`SummaryError` at once for a wrong argument, and with ``fail_on``, which each rank has to be given,
    for a baseline that cannot be read. Of what fails later, only a gate reaches the training.
    """
    context = check_context(framework, strategy, world_size)
    if not isinstance(baseline, Baseline):
        baseline = Baseline(baseline, fail_on)
    return Watch(model, optimizer, trackers, depth, columns, baseline, verbose, step, timeout, **context)


class Watch:
    """What :func:`watch` returns; also a context manager that closes itself."""

    summary: ModelSummary | None = None

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None,
        trackers: Sequence[object],
        depth: int | None,
        columns: Sequence[str] | None,
        baseline: Baseline,
        verbose: bool,
        step: int,
        timeout: float,
        **context: Any,
    ) -> None:
        self._model: weakref.ref[nn.Module] | None = weakref.ref(check_model(model))
        self._optimizers = [weakref.ref(given) for given in check_optimizers(optimizer)]
        self._selection = Selection(depth, columns)
        self._verbose, self._step, self._context = verbose, _check_step(step), context
        self._timeout = check_timeout(timeout)
        self._baseline = baseline
        self._baseline.read(rank_zero=_is_rank_zero(), alone=_is_alone(), timeout=self._timeout)
        self._publisher = Publisher(resolve(trackers), self._timeout)
        self._hook: weakref.ref[_FirstForward] | None = None
        self._disarm: Callable[[], None] | None = None
        self._stance: Callable[[], None] | None = None
        self._compiler: weakref.finalize[[], Watch] | None = None
        self._ran: dict[int, None] = {}
        self._arm()
        self._meet_compiler()
        self._not_at_exit = weakref.finalize(self, at_exit(partial(_close, weakref.ref(self))))
        self._not_at_exit.atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._finish(error)
        self.flush()

    def close(self) -> None:
        """End the observation if it is still on, and wait for the trackers."""
        self._finish(None)
        self.flush()

    def discard(self) -> None:
        """End the observation, if it is still on, and make no summary: of a step that raised, where nobody said so."""
        observation, self._observation = self._observation, None
        try:
            if observation is not None and observation.running:
                observation.discard()
        finally:
            self._leave()

    def flush(self) -> None:
        """Wait, for at most ``timeout`` seconds, until the trackers have everything."""
        self._publisher.flush()

    @property
    def _observation(self) -> Observation | None:
        """It holds the model, so the model's hook has it, and not this: a step may raise, and the model be dropped."""
        hook = None if self._hook is None else self._hook()
        return None if hook is None else hook.observation

    @_observation.setter
    def _observation(self, observation: Observation | None) -> None:
        hook = None if self._hook is None else self._hook()
        if hook is not None:
            hook.observation = observation

    def _arm(self) -> None:
        """Wait for a forward."""
        model = None if self._model is None else self._model()
        if model is None or self._disarm is not None:
            return
        # an encoder layer in eval mode has a fused kernel for when no module of it has a hook
        encoders = [module for module in every(model) if isinstance(module, nn.TransformerEncoderLayer)]
        left_alone = {id(module) for layer in encoders if layer is not model for module in every(layer)}
        modules = [module for module in every(model) if id(module) not in left_alone]
        hook = _FirstForward(self)
        self._hook = weakref.ref(hook)
        self._disarm = before_each(modules, hook)

    def _take_hooks_off(self) -> None:
        if self._disarm is not None:
            self._disarm()
            self._disarm = None

    def _meet_compiler(self) -> None:
        """What it compiles before the training, an evaluation, is to be of use after it, when our hooks are gone."""
        if self._compiler is None and self._model is not None and "torch._dynamo" in sys.modules:
            methods = map(weakref.WeakMethod, (self._compiling_begins, self._compiling_ends))
            begins, ends = (partial(call_alive, method) for method in methods)
            self._compiler = weakref.finalize(self, around_compiling(begins, ends))

    def _compiling_begins(self) -> None:
        if not torch.is_grad_enabled() and self._observation is None:
            self._take_hooks_off()

    def _compiling_ends(self) -> None:
        try:
            self._arm()
        except Exception as error:
            self._give_up(error)

    def _forward_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> bool:
        """Whether it is the one to observe."""
        model = None if self._model is None else self._model()
        # without keyword arguments torch calls a hook that another hook has taken off in the same call
        if model is None or kwargs is None or torch._C._get_tracing_state() is not None:
            return False
        if self._observation is not None and not self._observation.abandoned:
            return False
        if _capturing() or graph_task() != NO_TASK:  # what runs again in a backward is no first forward
            return False
        if not torch.is_grad_enabled() and not in_checkpoint():
            self._ran.pop(id(module), None)
            self._ran[id(module)] = None
            return False
        try:
            if self._observation is not None:
                self._observation.discard()
            optimizers = [alive for known in self._optimizers if (alive := known()) is not None]
            self._observation = Observation(model, optimizers, self._timeout, **self._context)
            on_step = partial(_end, weakref.ref(self))
            self._observation.start(on_step)
            self._observation.enter(module, args, kwargs)  # this call's hooks were listed before ours came
            if module is not model:
                self._observation.may_have_missed(self._ran_since(module))
            if self._stance is not None:
                self._observation.note("compiled", "the first step ran as a compiled graph; this is the next, eager")
        except Exception as error:
            self._give_up(error)
            if _is_rank_zero():
                self._baseline.cannot_hold(error)
        return self._observation is not None

    def _ran_since(self, module: nn.Module) -> list[int]:
        """By id, what ran without gradients since ``module`` last did, in it or beside it: perhaps of the same step."""
        ran = list(self._ran)
        return ran[ran.index(id(module)) :] if id(module) in self._ran else ran

    def _traced(self) -> None:
        """A training forward is compiled, hooks and all: a graph shows nothing, so the next one is to run eagerly."""
        if self._observation is None and self._model is not None and self._stance is None:
            self._stance = run_eagerly()

    def _finish(self, error: BaseException | None) -> None:
        observation, self._observation = self._observation, None
        try:
            if observation is not None and observation.running:
                self.summary = observation.stop(error)
        finally:
            self._leave()
        if observation is None or self.summary is None:
            return
        try:
            how: dict[str, Any] = {"step": self._step, "verbose": self._verbose, "rank_zero": _is_rank_zero()}
            deliver(self.summary, self._selection, lambda: self._publisher, self._baseline, observation.agree, **how)
        except GateError:
            raise
        except Exception as fault:
            self._give_up(fault)

    def _give_up(self, error: Exception) -> None:
        self._observation = None
        self._leave()
        what = "made" if self.summary is None else "shown and sent"
        warn(f"the model summary could not be {what}: {type(error).__name__}: {error}")

    def _leave(self) -> None:
        self._not_at_exit()
        self._model = None
        self._take_hooks_off()
        if self._compiler is not None:
            self._compiler()
        if self._stance is not None:
            self._stance()
            self._stance = None


class _FirstForward:
    """The hook on each module while nothing is observed; a copy or a pickle of it does nothing."""

    __name__ = "summarycb"  # torch.jit.script asks hooks for theirs

    def __init__(self, watch: Watch | None = None) -> None:
        self._watch = watch
        self.observation: Observation | None = None

    @not_compiled
    def __call__(self, *args: Any) -> None:
        if torch.compiler.is_compiling():  # traced into a graph, of which nothing will be seen as it runs
            self.traced()
            return
        compiler = set_eval_frame(None)  # of the region that this is called in, if it is one
        if self._watch is None:
            self._leave(args[0])
        else:
            self._watch._meet_compiler()
            if self._watch._forward_begins(*args):
                return  # the rest of the region runs eagerly
        set_eval_frame(compiler)

    def _leave(self, module: nn.Module) -> None:
        """A copy of the model need not carry a hook that does nothing."""
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is self]:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)

    def traced(self) -> bool:
        """Run once as the compiler traces the call, and nothing of it becomes part of the graph."""
        if self._watch is not None and torch.is_grad_enabled():
            self._watch._traced()
        return True

    # what torch.compiler.assume_constant_result sets, without the import of the compiler that it costs
    traced._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: object) -> _FirstForward:
        return _FirstForward()

    def __reduce__(self) -> tuple[Any, ...]:
        return NO_HOOK


def _capturing() -> bool:
    """A CUDA graph is being recorded: nothing but what it is to replay may happen."""
    return bool(torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())  # type: ignore[no-untyped-call]


def _end(watch: weakref.ref[Watch]) -> None:
    if (alive := watch()) is not None and not _capturing():
        alive._finish(None)


def _is_rank_zero() -> bool:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"  # torchrun has started this process, and no group is there yet


def _is_alone() -> bool:
    return world() is None and os.environ.get("WORLD_SIZE", "1") == "1"


def _close(watch: weakref.ref[Watch]) -> None:
    """The interpreter ends; if by an error, ``sys.last_value`` has it."""
    if (alive := watch()) is not None:
        try:
            alive._finish(None if hasattr(sys, "ps1") else getattr(sys, "last_value", None))
        except GateError as error:  # there is no second step to be stopped
            warn(str(error))
        alive.flush()


def _check_step(step: object) -> int:
    """Also one of NumPy's; a bool is an int to Python, and no step."""
    if not isinstance(step, Integral) or isinstance(step, bool):
        raise SummaryError(f"step must be an integer, not {step!r}")
    return int(step)
