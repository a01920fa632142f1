"""What runs: MACs per row and phase, and the operations that could not be counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

from summarycb.collect.calls import RECOMPUTE, Calls
from summarycb.formulas import Verdict, classify, evaluate


class Flops:
    """Counts every operation of the step by its formula."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.macs: Counter[tuple[int, str]] = Counter()
        self.unknown: Counter[tuple[int, str, str]] = Counter()

    def op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """One operation has run."""
        formula = classify(func)
        if formula is Verdict.ZERO:
            return
        slot, phase = self._calls.where()
        count = None if isinstance(formula, Verdict) else evaluate(formula, args, kwargs, out)
        if count is None:
            self.unknown[slot, phase, str(func)] += 1
        else:
            self.macs[slot, phase] += count.macs
            if count.recompute_macs:
                self.macs[slot, RECOMPUTE] += count.recompute_macs
