"""One line in a training script: a model summary of the first real training step, logged and compared across runs.

Every name is imported when it is first used: ``import summarycb`` pulls in neither torch nor a framework.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from summarycb.columns import Column as Column
    from summarycb.compare import Comparison as Comparison
    from summarycb.compare import compare as compare
    from summarycb.errors import GateError as GateError
    from summarycb.errors import SummaryError as SummaryError
    from summarycb.errors import SummaryWarning as SummaryWarning
    from summarycb.formulas import register_formula as register_formula
    from summarycb.observe import observe as observe
    from summarycb.serialize import load as load
    from summarycb.specs import TensorSpec as TensorSpec
    from summarycb.summarize import summarize as summarize
    from summarycb.trackers import Tracker as Tracker
    from summarycb.tree import ModelSummary as ModelSummary
    from summarycb.tree import ModuleSummary as ModuleSummary
    from summarycb.watch import watch as watch
    from summarycb_lightning import ModelSummaryCallback as ModelSummaryCallback

__version__ = "0.1.0"

# name -> the module that defines it, and the extra that brings what that module needs
_LAZY = {
    "Column": ("summarycb.columns", ""),
    "Comparison": ("summarycb.compare", ""),
    "GateError": ("summarycb.errors", ""),
    "ModelSummary": ("summarycb.tree", ""),
    "ModelSummaryCallback": ("summarycb_lightning", "lightning"),
    "ModuleSummary": ("summarycb.tree", ""),
    "SummaryError": ("summarycb.errors", ""),
    "SummaryWarning": ("summarycb.errors", ""),
    "TensorSpec": ("summarycb.specs", ""),
    "Tracker": ("summarycb.trackers", ""),
    "compare": ("summarycb.compare", ""),
    "load": ("summarycb.serialize", ""),
    "observe": ("summarycb.observe", "torch"),
    "register_formula": ("summarycb.formulas", "torch"),
    "summarize": ("summarycb.summarize", "torch"),
    "watch": ("summarycb.watch", "torch"),
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'summarycb' has no attribute {name!r}")
    module, extra = _LAZY[name]
    try:
        value = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if not extra or error.name is None or error.name.partition(".")[0].startswith("summarycb"):
            raise
        from summarycb.errors import missing

        raise missing(extra, error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


class _Package(ModuleType):
    """Keeps ``summarycb.watch`` the function: an import of the submodule of the same name would bind that over it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
