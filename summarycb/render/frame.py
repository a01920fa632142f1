"""ModelSummary -> pandas.DataFrame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from summarycb.errors import missing
from summarycb.trackers import records
from summarycb.tree import ModelSummary

if TYPE_CHECKING:
    from pandas import DataFrame

_TEXT = {"type", "input", "output", "config", "shared_with"}


def to_dataframe(summary: ModelSummary) -> DataFrame:
    """One row a module, index = path; numbers are ``Int64``, NA where unknown. Needs the ``pandas`` extra."""
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise missing("pandas", "pandas") from error
    frame = pd.DataFrame(records(summary)).set_index("path")
    return frame.astype({name: _dtype(name) for name in map(str, frame.columns)})


def _dtype(name: str) -> str:
    return "string" if name in _TEXT else "boolean" if name == "training" else "Int64"
