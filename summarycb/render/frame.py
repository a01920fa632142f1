"""ModelSummary -> pandas.DataFrame."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from summarycb.changes import FIGURES
from summarycb.details import FACTS
from summarycb.errors import missing
from summarycb.render.exports import Cell, records
from summarycb.step import MAX_INT
from summarycb.tree import ModelSummary

if TYPE_CHECKING:
    from pandas import DataFrame

    from summarycb.compare import Comparison

_TEXT = {"path", "type", "input", "output", "dtype", "device", "config", "shared_with"}


def changes_to_dataframe(comparison: Comparison) -> DataFrame:
    """One row a change of each pair of summaries; a figure's columns are ``<name>_a``, ``<name>_b`` and ``<name>``.

    What a module is, as ``type_a`` and ``type_b``, is told where it differs, and of the first of several places.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise missing("pandas", "pandas") from error
    rows = []
    for pair in comparison.against:
        for change in pair.rows:
            places = {"a": pair.names[0], "b": pair.names[1], "kind": change.kind, "path": change.path}
            row: dict[str, object] = {**places, "before": change.before, "times": change.times}
            row["details"] = change.details
            for name, (a, b) in change.edits[0].differs.items():
                row |= {f"{name}_a": a, f"{name}_b": b}
            for name, figure in change.figures.items():
                row |= {f"{name}_a": figure.a, f"{name}_b": figure.b, name: figure.delta}
            rows.append(row)
    texts = ["a", "b", "kind", "path", "before", "details", *[name + end for name in FACTS for end in ("_a", "_b")]]
    numbers = ["times", *[name + end for name in FIGURES for end in ("_a", "_b", "")]]
    columns = [*texts[:5], "times", *texts[5:], *numbers[1:]]
    frame = pd.DataFrame(rows, columns=columns, dtype="object")
    whole = {name: _dtype(name, frame[name]) if comparison.per is None else "Float64" for name in numbers}
    return frame.astype(dict.fromkeys(texts, "string") | whole)


def to_dataframe(summary: ModelSummary, *, outside: bool = False) -> DataFrame:
    """One row a module, index = path; numbers are ``Int64``, NA where unknown. Needs the ``pandas`` extra."""
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise missing("pandas", "pandas") from error
    frame = pd.DataFrame(records(summary, outside=outside), dtype="object")
    return frame.astype({name: _dtype(name, frame[name]) for name in map(str, frame.columns)}).set_index("path")


def _dtype(name: str, values: Iterable[Cell]) -> str:
    if name in _TEXT:
        return "string"
    if name == "training":
        return "boolean"
    exact = all(value is None or abs(value) <= MAX_INT for value in values if not isinstance(value, str))
    return "Int64" if exact else "object"  # a sum over modules may be more than 64 bits hold
