"""What is told to the collectors of a step, each by itself: one that fails is dropped, and its figures are None."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from summarycb.collect import steps
from summarycb.collect.calls import BACKWARD, OUTSIDE, Calls, in_backward
from summarycb.collect.dataflow import Flow, TooLarge
from summarycb.collect.failures import Raised
from summarycb.collect.flops import Flops
from summarycb.collect.inputs import describe, iter_tensors
from summarycb.collect.memory import Makes, Memory, makes
from summarycb.collect.modules import class_name
from summarycb.collect.storages import tensor_bytes
from summarycb.dataflow import MOST_EDGES, MOST_NODES
from summarycb.formulas import Formula, Verdict, classify
from summarycb.records import Records


class Collectors:
    """Those that write the :class:`~summarycb.records.Records` of a step, and what of them has failed."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.records: Records | None = None
        self.failures: dict[str, str] = {}
        """What could not be observed, as it is stored -> as the warning says it."""
        self.optimizers = optimizers
        self._stepped: set[int] = set()
        self._flow: Flow | None = None  # until the first backward begins
        self._kinds: dict[int, tuple[Formula | Verdict | None, Makes, Any]] = {}
        self._distributed = False

    def begin(self, records: Records) -> None:
        """Have all collectors; one without which there is nothing to collect may raise."""
        structure = records.structure
        records.calls = Calls(structure)
        records.flops = Flops()
        records.calls.in_optimizer = steps.stepping()
        records.optimizers = {type(o).__name__ for o in self.optimizers}
        try:
            records.memory = Memory(structure, self.optimizers)
        except Exception as error:
            self.failed("memory", error)
        try:
            records.flow = self._flow = Flow(structure, records.calls)
        except Exception as error:
            self._drop_flow(error)

    def note(self, kind: str, text: str) -> None:
        """Say in the summary what its figures do not."""
        if self.records is not None:
            self.records.note(kind, text)

    def op(self, task: int, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """An operation has run, within ``task`` of the autograd engine."""
        records = self.records
        if records is None or records.calls is None:
            return
        if records.calls.error is not None and sys.exc_info()[1] is None:  # nobody is handling it any more
            records.calls.error = None
        if self._flow is not None:
            try:
                self._flow.op(func, args, kwargs, out)
            except Exception as error:
                self._drop_flow(error)
        kind = self._kinds.get(id(func))
        if kind is None:
            try:
                answer = classify(func)
                # the function is kept with what is known of it, so that its id remains its own
                kind = self._kinds[id(func)] = (None if answer is Verdict.ZERO else answer, makes(func), func)
            except Exception as error:
                self.drop_all("the operations", error)
                return
        formula, made, _ = kind
        if formula is None and made is Makes.NOTHING:
            return
        try:
            place = records.calls.where(task, formula is not None)
        except Exception as error:
            records.flops = records.memory = None
            self.failed("MACs and memory", error)
            return
        if formula is not None and records.flops is not None:
            if types and not self._distributed and any(kind.__name__ == "DTensor" for kind in types):
                self._distributed = True
                self.note("global", "products of DTensors count at their global size; this rank ran a part of them")
            try:
                records.flops.op(formula, place, func, args, kwargs, out)
            except Exception as error:
                records.flops = None
                self.failed("MACs", error)
        if made is not Makes.NOTHING and records.memory is not None:
            try:
                records.memory.op(made, place, args, out)
            except Exception as error:
                self._drop_memory(error)

    def op_raised(self, task: int, func: Any, args: tuple[Any, ...], error: BaseException) -> None:
        """An operation has raised: it may end a step that is in no module just now."""
        records = self.records
        if records is None or records.calls is None:
            return
        records.calls.raised = records.calls.raised or records.calls.depth == 0
        try:
            raised = records.calls.error = Raised.by(error, *records.calls.where(task, False))
            raised.operation, raised.operands = str(func), describe(tuple(iter_tensors(args)))
        except Exception as fault:
            self.failed("where the step failed", fault)
        else:
            self.look_at_memory(raised)

    def look_at_memory(self, raised: Raised) -> None:
        """What was alive as it was raised, once: later the error's frames may have been left."""

        def look(memory: Memory) -> None:
            raised.alive, raised.phase = memory.now(), raised.phase or memory.phase
            if raised.out_of_memory and self.records is not None and self.records.calls is not None:
                raised.holders = memory.holders(self.records.calls, self.optimizers)

        if raised.alive is None:
            self.tell_memory(look)

    def optimizer_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """One of the model's is about to step."""
        self.tell_memory(lambda memory: memory.existed(iter_tensors(list(optimizer.state.values()))))
        self.tell_memory(Memory.steps)

    def optimizer_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """One of the model's has stepped."""
        if self.records is None:
            return
        if self.records.calls is not None:
            self.records.calls.error = None
        if all(known is not optimizer for known in self.optimizers):
            self.optimizers.append(optimizer)
        self._stepped.add(id(optimizer))
        self.records.optimizers.add(type(optimizer).__name__)
        self.measure_tensors(self.records)
        self.tell_memory(lambda memory: memory.stepped(optimizer))

    def idle(self) -> list[torch.optim.Optimizer]:
        """Optimizers that have neither stepped nor a state from before: they will have one that nobody knows yet."""
        return [known for known in self.optimizers if id(known) not in self._stepped and not known.state]

    def measure_tensors(self, records: Records) -> None:
        """The bytes of gradients and optimizer state as they are now."""
        try:
            records.tensor_bytes = tensor_bytes(records.structure, self.optimizers or None, self.idle())
        except Exception as error:
            self.failed("gradients and optimizer state", error)

    def ended_by(self, error: BaseException, records: Records) -> None:
        """The step is over because it raised."""
        try:
            calls = records.calls
            raised = records.raised = Raised.by(error, OUTSIDE, None) if calls is None else calls.failed(error)
            if raised.phase is None and in_backward(error):  # the engine itself has raised, or a hook of the user's
                raised.phase = BACKWARD
            self.look_at_memory(raised)
        except Exception as fault:
            self.failed("where the step failed", fault)
        records.incomplete.append(f"the step raised {class_name(type(error))}{_place(records)}")

    def ended_early(self, records: Records, backward: bool, unfinished: bool) -> None:
        """Nobody says that the step raised; where nothing has followed an error, it did.

        Whether a backward has begun, and whether one has not returned.
        """
        calls = records.calls
        if calls is None:
            return
        if calls.depth:
            records.incomplete.append("a forward did not return")
        elif calls.error is not None and (calls.raised or unfinished):
            records.raised = calls.error
            records.incomplete.append(f"the step raised {calls.error.type_name}{_place(records)}")
        elif unfinished:
            records.incomplete.append("a backward did not return")
        elif calls.raised and not backward:
            records.incomplete.append("a forward raised")

    def tell_memory(self, what: Callable[[Memory], None]) -> None:
        """Where memory is collected."""
        memory = None if self.records is None else self.records.memory
        if memory is not None:
            try:
                what(memory)
            except Exception as error:
                self._drop_memory(error)

    def tell_flow(self, what: Callable[[Flow], None]) -> None:
        """Where the dataflow is collected, and until the first backward begins."""
        if self._flow is not None:
            try:
                what(self._flow)
            except Exception as error:
                self._drop_flow(error)

    def failed(self, what: str, error: Exception) -> None:
        """It is missing from the summary, which says so."""
        kind = f"{what} could not be observed ({type(error).__name__}"
        # what the exception says may hold a path or a value: it is for the warning, and is not stored
        self.failures.setdefault(f"{kind})", f"{kind}: {error})")

    def drop_all(self, what: str, error: Exception) -> None:
        """What every collector needs has failed."""
        if self.records is not None:
            self.records.calls = self.records.flops = self.records.memory = None
            self.records.flow = self._flow = None
        self.failed(what, error)

    def backward_begins(self) -> None:
        """What flows where is told no further."""
        self.tell_flow(Flow.backward_begins)
        self._flow = None
        self.tell_memory(Memory.backward_begins)

    def forget(self) -> None:
        """Nothing of the step is kept alive."""
        self.records = self._flow = None
        self.optimizers = []

    def _drop_flow(self, error: Exception) -> None:
        assert self.records is not None
        self.records.flow = self._flow = None
        if isinstance(error, TooLarge):
            self.note("dataflow", f"a dataflow of more than {MOST_NODES:,} nodes or {MOST_EDGES:,} edges is not kept")
        else:
            self.failed("the dataflow", error)

    def _drop_memory(self, error: Exception) -> None:
        assert self.records is not None
        self.records.memory = None
        self.failed("memory", error)


def _place(records: Records) -> str:
    if records.raised is None or records.calls is None or records.raised.call < 0:
        return ""
    return f" in {records.structure.nodes[records.calls.slot(records.raised.call)].path or 'the root'}"
