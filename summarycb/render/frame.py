"""ModelSummary -> pandas.DataFrame."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from summarycb.errors import missing
from summarycb.render.exports import Cell, records
from summarycb.step import MAX_INT
from summarycb.tree import ModelSummary

if TYPE_CHECKING:
    from pandas import DataFrame

_TEXT = {"path", "type", "input", "output", "dtype", "device", "config", "shared_with"}


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
    exact = all(value is None or value <= MAX_INT for value in values if not isinstance(value, str))
    return "Int64" if exact else "object"  # a sum over modules may be more than 64 bits hold
