"""A tracker of another package: the rows as CSV, the totals and the whole summary as JSON, in a folder.

``summarycb.watch(model, trackers=["csv:runs/17"])`` writes there, ``summarycb show csv:runs/17`` reads it.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Self

from summarycb import ModelSummary, SummaryError, load
from summarycb.report import PREFIX, Report


class CsvTracker:
    """Files in a folder, which are replaced when a summary is written again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def wrap(cls, target: object) -> Self | None:
        """Takes a folder as a ``Path``: there is no run or writer of this kind."""
        return cls(target) if isinstance(target, Path) else None

    @classmethod
    def open(cls, reference: str) -> Self:
        """``csv:<folder>``."""
        folder = reference.partition(":")[2]
        if not folder:
            raise SummaryError(f"{reference!r} names no folder: give 'csv:<folder>'")
        return cls(Path(folder))

    def write(self, report: Report, *, step: int) -> None:
        """The summary last: where it is, all is."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{PREFIX}.csv").open(
            "w", newline="", encoding="utf-8", errors="backslashreplace"
        ) as file:
            writer = csv.DictWriter(file, report.table[0])
            writer.writeheader()
            writer.writerows(report.table)
        (self._folder / "totals.json").write_text(json.dumps({"step": step, **report.metrics}), encoding="utf-8")
        (self._folder / f"{PREFIX}.json").write_text(report.json, encoding="utf-8")

    def read(self) -> ModelSummary:
        """What was written last."""
        return load(self._folder / f"{PREFIX}.json")
