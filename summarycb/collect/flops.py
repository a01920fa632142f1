"""What runs: MACs per call and phase, and the operations that could not be counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from summarycb.collect.calls import RECOMPUTE
from summarycb.formulas import Formula, Verdict, evaluate
from summarycb.step import Phase


class Flops:
    """Counts every operation of the step by its formula."""

    def __init__(self) -> None:
        self.macs: dict[tuple[int, Phase], int] = defaultdict(int)
        self.unknown: Counter[tuple[int, Phase, str]] = Counter()
        self.faults: dict[str, Exception] = {}
        """What formulas have raised, by operation."""

    def op(
        self,
        formula: Formula | Verdict,
        place: tuple[int, Phase],
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
    ) -> None:
        """One operation that is not zero by convention has run."""
        count = None
        if not isinstance(formula, Verdict):
            try:
                count = evaluate(formula, args, kwargs, out)
            except Exception as error:
                self.faults.setdefault(str(func), error)
        call, phase = place
        if count is None:
            self.unknown[call, phase, str(func)] += 1
        else:
            self.macs[place] += count.macs
            if count.recompute_macs:
                self.macs[call, RECOMPUTE] += count.recompute_macs
