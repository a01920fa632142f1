"""expand(): the references that one reference stands for, as of all runs of an experiment. Must not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from glob import glob
from pathlib import Path
from typing import Any, TypeAlias

from summarycb import embed, units
from summarycb.errors import SummaryError
from summarycb.forms import FORMATS
from summarycb.serialize import MAX_BYTES, PAGES, SUFFIXES, is_file_name, load
from summarycb.tree import ModelSummary
from summarycb.view import Heading, Row, View

_GLOB = "*?["


def expand(reference: str | Path) -> list[str]:
    """The references to one summary each that ``reference`` stands for, newest first; what is of one stays as it is.

    Of several are a folder or pattern (``runs/*.json``) of files, a page that compares them, and what a tracker finds,
    as in ``mlflow:experiments/<name>``. In a folder or pattern comparisons are passed over, and so are flame graphs:
    what they are of is mostly there, too. Raises :class:`SummaryError` where there is none.
    """
    if not isinstance(reference, (str, Path)) or not reference:  # an empty one would be this very folder
        raise SummaryError(f"a reference is a text such as 'runs/base.json' or 'mlflow:<run_id>', not {reference!r}")
    found = _found(str(reference))
    if not found:
        raise SummaryError(f"no summaries were found at {reference!r}")
    return found


def _found(reference: str) -> list[str]:
    path = Path(reference)
    if not path.is_dir():
        if path.is_file() or is_file_name(reference):
            return _newest_first(glob(reference)) if _is_pattern(path) else _in_file(reference)
        from summarycb.trackers import find

        if (found := find(reference)) is not None:
            return found
        return _newest_first(glob(reference)) if _is_pattern(path) else [reference]
    return _newest_first([str(file) for file in path.iterdir()])


def _is_pattern(path: Path) -> bool:
    return any(sign in str(path) for sign in _GLOB) and not path.exists()


def _in_file(name: str) -> list[str]:
    count = _count(Path(name))
    return [name] if count < 2 else [f"{name}#{number}" for number in range(1, count + 1)]


def _count(path: Path) -> int:
    """How many summaries a file holds: a comparison's JSON 0, and 1 what cannot be read, which its reader says."""
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return 1
    try:
        if path.suffix.lower() in PAGES:
            return embed.count(path.read_text("utf-8", errors="replace")) or 1
        with path.open("rb") as file:
            return 0 if file.read(len(_COMPARISON)) == _COMPARISON else 1
    except OSError:
        return 1


_COMPARISON = b'{"comparison_version"'


def _newest_first(names: Sequence[str]) -> list[str]:
    flames = FORMATS["speedscope"]
    stored = [name for name in names if name.lower().endswith(SUFFIXES) and not name.lower().endswith(flames)]
    files = [file for file in map(Path, stored) if file.is_file() and _count(file) == 1]
    return [str(file) for file in sorted(files, key=lambda file: (-file.stat().st_mtime_ns, str(file)))]


COLUMNS: dict[str, tuple[str, Callable[[ModelSummary], int | None], units.Writer]] = {
    "params": ("params", lambda s: s.total_params, units.exact),
    "forward_macs": ("fwd MACs", lambda s: s.forward_macs, units.count),
    "step_flops": ("step FLOPs", lambda s: s.step_flops, units.count),
    "saved_activations": ("saved act.", lambda s: s.memory.saved_activations, units.nbytes),
    "memory_peak": ("peak", lambda s: s.memory.peak, units.nbytes),
}
"""The figures of a run in a list, by name: the title, the figure, and how it is written."""
SORTS = ("reference", "name", "created", "model", *COLUMNS)


Record: TypeAlias = dict[str, Any]
"""``reference``, ``name``, ``created``, ``model``, the figures of ``COLUMNS``, as ``failed`` what the step raised, else
None (its figures are of what ran until then), and as ``error`` why the summary cannot be read, else None.

``name`` is what the tracker calls the run, and ``created`` when it says that the run began, as
``2026-11-22T17:42:39.250000+00:00``: always in UTC.
"""


def runs(references: Iterable[str], sort: str | None = None) -> list[Record]:
    """A record for each summary at the references.

    ``sort`` is one of ``SORTS``: the newest come first, and of a figure the largest. What is unknown is last.
    """
    if sort is not None and sort not in SORTS:
        raise SummaryError(f"sort must be None or a column, not {sort!r}; allowed: {', '.join(SORTS)}")
    records = [_record(one) for reference in references for one in expand(reference)]
    if sort is not None:
        known = [one for one in records if one[sort] is not None]
        known.sort(key=lambda one: one[sort], reverse=sort in ("created", *COLUMNS))
        records = known + [one for one in records if one[sort] is None]
    return records


def _record(reference: str) -> Record:
    try:
        summary, told = load(reference), _told(reference)
    except Exception as error:  # of a library that a tracker is asked with, too: the others are still told
        from summarycb.trackers import reason

        return {"reference": reference, **dict.fromkeys([*SORTS[1:], "failed"]), "error": reason(error)}
    figures = {name: value(summary) for name, (_, value, _) in COLUMNS.items()}
    failed = None if summary.failure is None else summary.failure.error
    return {"reference": reference, **told, "model": summary.root.type_name, **figures, "failed": failed, "error": None}


def _told(reference: str) -> Record:
    """What its tracker says of the run."""
    tracker: Any = None
    if not is_file_name(reference):
        from summarycb.trackers import open_reference

        tracker = open_reference(reference)
    name: str | None = tracker.run_name() if hasattr(tracker, "run_name") else None
    when: datetime | None = tracker.created() if hasattr(tracker, "created") else None
    return {"name": name, "created": None if when is None else when.astimezone(UTC).isoformat()}


def view(title: str, records: Sequence[Record]) -> View:
    """The records as a table, with whole references; below it why some could not be read. Figures are left out last."""
    named = any(record["name"] for record in records)
    rows = [Row("", record["reference"], (), _cells(record, named)) for record in records]
    figures = [Heading(title) for title, _, _ in COLUMNS.values()]
    names = (Heading("name", "left"),) if named else ()
    headings = (*names, Heading("created (UTC)", "left", least=_TO_SECONDS), Heading("model", "left", "type"), *figures)
    notes = [f"{record['reference']}: {record['error']}" for record in records if record["error"]]
    several = (("summaries", (f"{len(records) - len(notes):,}", *([f"{len(notes):,} not read"] if notes else []))),)
    return View(title, several, headings, tuple(rows), tuple(notes), "reference", whole=True)


_TO_SECONDS = len("2026-11-22 17:42:39")


def _cells(record: Record, named: bool) -> tuple[str, ...]:
    if record["error"]:
        return (*[""] * named, "", "not read", *[""] * len(COLUMNS))
    names = (record["name"] or units.UNKNOWN,) if named else ()
    created = units.UNKNOWN if record["created"] is None else record["created"][:_TO_SECONDS].replace("T", " ")
    model = f"{record['model']}, failed" if record["failed"] else record["model"]
    return (*names, created, model, *[write(record[name]) for name, (_, _, write) in COLUMNS.items()])
