"""A run's folder: its ``.wandb`` file, the log of all that the run was told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_HEADER, _FRAME, _BLOCK = 7, 7, 2**15  # of the file, and of each record in a block of it, as in LevelDB's log
_WHOLE = 1
"""The kind of a record that is not spread over blocks."""


def run(folder: Path) -> Any:
    """What it says of the run itself, which is among the first records; None where it does not, or cannot be read."""
    try:
        from wandb.proto import wandb_internal_pb2
    except ModuleNotFoundError:
        return None
    records: Any = wandb_internal_pb2
    for log in folder.glob("*.wandb"):
        with log.open("rb") as file:
            block = file.read(_BLOCK)
        at = _HEADER
        while at + _FRAME < len(block) and block[at + 6] == _WHOLE:
            end = at + _FRAME + int.from_bytes(block[at + 4 : at + 6], "little")
            record = records.Record.FromString(block[at + _FRAME : end])
            if record.HasField("run"):
                return record.run
            at = end
    return None
