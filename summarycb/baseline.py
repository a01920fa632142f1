"""The summary that a run's own is compared with as the run starts, and the gates that stop the run. No torch here."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from summarycb import gates
from summarycb.errors import GateError, SummaryError
from summarycb.serialize import load
from summarycb.trackers import names, reason, warn
from summarycb.tree import ModelSummary

if TYPE_CHECKING:
    from summarycb.compare import Comparison


_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""What launchers tell a process; in one that is not the first nothing is compared."""


class Baseline:
    """``given`` is a summary, a file, or a tracker's reference; None is no comparison. ``fail_on`` are gates.

    A file is read as this is made, a tracker's run in :meth:`read`, by rank zero alone, which compares for all. What
    cannot be read is one warning, and nothing is compared; with ``fail_on`` it is :class:`SummaryError`, or where
    several processes train together, what each of them is stopped for.
    """

    def __init__(self, given: ModelSummary | str | Path | None, fail_on: Sequence[str] = ()) -> None:
        if given is not None and not isinstance(given, (ModelSummary, str, Path)):
            raise SummaryError(
                f"baseline must be a ModelSummary, a file or a reference such as 'mlflow:<run_id>', not {given!r}"
            )
        self.gates = gates.of(fail_on)
        if self.gates and given is None:
            raise SummaryError("fail_on needs a baseline to compare with")
        self._summary = given if isinstance(given, ModelSummary) else None
        self._name = "baseline" if isinstance(given, ModelSummary) else str(given)
        scheme, colon, where = self._name.rpartition(":")
        self._told = f"{scheme}{colon}{Path(where).name}"  # trackers are told no path of the machine
        self._unread = None if isinstance(given, ModelSummary) else given
        self._fault = ""
        is_file = given is not None and not (isinstance(given, str) and given.partition(":")[0] in names())
        if is_file and all(os.environ.get(name, "0") == "0" for name in _RANKS):
            self.read(alone=os.environ.get("WORLD_SIZE", "1") == "1")

    def read(self, *, rank_zero: bool = True, alone: bool = True, timeout: float | None = None) -> None:
        """Read it, once, in at most ``timeout`` seconds; ``alone`` where no other process trains the same model."""
        if self._unread is None or not rank_zero:
            return
        reference, self._unread, self._fault = self._unread, None, ""
        found: list[ModelSummary] = []
        faults: list[str] = []

        def reads() -> None:
            try:
                found.append(load(reference))
            except BaseException as error:
                faults.append(reason(error))

        thread = threading.Thread(target=reads, name="summarycb-baseline", daemon=True)
        thread.start()
        thread.join(timeout)
        if found:
            (self._summary,) = found
            return
        why = (*faults, f"no answer within {timeout or 0:g} s")[0]
        self._fault = f"the baseline {self._name!r} cannot be read: {why}"
        if not self.gates:
            warn(f"{self._fault}; nothing is compared")
        else:
            self._unread = reference  # another training may find it
            if alone:
                raise SummaryError(self._fault)

    def compare(self, summary: ModelSummary) -> Comparison | None:
        """The baseline and ``summary``; None where there is no baseline, or the step failed.

        Raises :class:`SummaryError` where a gate is to be held against what could not be read.
        """
        from summarycb.compare import Comparison

        if self.gates and self._fault:
            raise SummaryError(self._fault)
        if self._summary is None or summary.failure is not None:
            return None
        return Comparison((self._summary, summary), (self._told, "this run"))

    def cannot_hold(self, error: Exception) -> None:
        """No summary is made, because of ``error``: raises :class:`GateError` where there are gates."""
        if self.gates:
            raise GateError(f"no gate can be held: the model summary could not be made: {reason(error)}") from error
