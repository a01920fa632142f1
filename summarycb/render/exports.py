"""ModelSummary -> data for other programs: records, CSV, speedscope. Must not import torch."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

from summarycb import __version__
from summarycb.garbage import collection_paused
from summarycb.specs import spec_text
from summarycb.tree import OUTSIDE, Amounts, ModelSummary, ModuleSummary, flops, outside_row

Cell: TypeAlias = str | int | bool | None


@collection_paused()
def records(summary: ModelSummary, *, outside: bool = False) -> list[dict[str, Cell]]:
    """One record a module, in definition order: what tables of trackers, CSV files and DataFrames hold.

    ``outside`` adds the row of what the step did outside any module, so that the ``own_`` figures sum to the step's.
    """
    modules = list(summary.root.walk())
    if outside and summary.observed != "structure":
        modules.append(outside_row(summary.outside))
    return [_record(module) for module in modules]


def _record(module: ModuleSummary) -> dict[str, Cell]:
    total, own = module.total, module.own
    inside = module.path != OUTSIDE
    shapes = {"input": module.inputs, "output": module.outputs}
    return {
        "path": module.path,
        "type": module.type_name,
        "depth": (module.path.count(".") + 1 if module.path else 0) if inside else None,
        "calls": module.calls if inside else None,
        "training": module.training,
        **{name: None if spec is None else spec_text(spec) for name, spec in shapes.items()},
        "dtype": ", ".join(sorted({p.dtype for p in module.parameters})) or None,
        "device": ", ".join(sorted({p.device for p in module.parameters})) or None,
        **{f"total_{name}": value for name, value in zip(Amounts._fields, total, strict=True)},
        **{f"own_{name}": value for name, value in zip(Amounts._fields, own, strict=True)},
        "forward_flops": flops(total.forward_macs),
        "backward_flops": flops(total.backward_macs),
        "recompute_flops": flops(total.recompute_macs),
        "config": module.config,
        "shared_with": module.shared_with,
    }


def to_csv(summary: ModelSummary, *, outside: bool = False) -> str:
    """The records with a header line; an unknown figure is empty, and so is the root's path. Names are as they are."""
    return csv_of(records(summary, outside=outside))


def csv_of(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Records as lines, with a header; None is empty."""
    lines: list[str] = []
    # before Python 3.13 a line break in a name is quoted only where it is also one of those that end the lines
    writer = csv.DictWriter(SimpleNamespace(write=lines.append), list(rows[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return "".join([line.removesuffix("\r\n") + "\n" for line in lines])


_PROFILES = {
    "params": ("parameters", "none"),
    "forward_macs": ("forward MACs", "none"),
    "backward_macs": ("backward MACs", "none"),
    "saved_activations": ("saved activations", "bytes"),
}


@collection_paused()
def to_speedscope(summary: ModelSummary) -> str:
    """A flame graph of the module tree for each figure that is known, as JSON for https://www.speedscope.app.

    A box is as wide as the module's subtree. What is unknown has no width, and the profile's name says of how many
    modules it is.
    """
    rows = [summary.root] if summary.observed == "structure" else [summary.root, outside_row(summary.outside)]
    modules = [module for row in rows for module in row.walk()]
    frames = [{"name": _frame(module), "file": module.path} for module in modules]
    numbers = {id(module): number for number, module in enumerate(modules)}
    profiles = [_profile(rows, numbers, figure) for figure in _PROFILES]
    document = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": f"summarycb@{__version__}",
        "name": summary.root.type_name,
        "activeProfileIndex": 0,
        "shared": {"frames": frames},
        "profiles": [profile for profile in profiles if profile is not None],
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _frame(module: ModuleSummary) -> str:
    return f"{module.name} ({module.type_name})" if module.name else module.type_name


def _profile(rows: list[ModuleSummary], numbers: dict[int, int], figure: str) -> dict[str, Any] | None:
    """What a module has of its own comes first in its box, then its children's; empty boxes are left out."""
    events: list[dict[str, Any]] = []
    at = unknown = 0
    todo: list[ModuleSummary | dict[str, Any]] = list(reversed(rows))
    while todo:
        step = todo.pop()
        if isinstance(step, dict):  # the end of a box
            if step["at"] == at:
                events.pop()
            else:
                events.append({"type": "C", "frame": step["frame"], "at": at})
            continue
        opened = {"type": "O", "frame": numbers[id(step)], "at": at}
        events.append(opened)
        own = getattr(step.own, figure)
        unknown += own is None
        at += own or 0
        todo += [opened, *reversed(step.children)]
    if not at and figure != "params":  # a file without any profile would be refused
        return None
    title, unit = _PROFILES[figure]
    name = f"{title}, unknown in {unknown} module{'' if unknown == 1 else 's'}" if unknown else title
    return {"type": "evented", "name": name, "unit": unit, "startValue": 0, "endValue": at, "events": events}
