"""What the package raises and warns with. Must not import torch."""

from __future__ import annotations


class SummaryError(ValueError):
    """A wrong argument, or a file or reference that holds no readable summary.

    The message says what happened, what was given, and what is allowed.
    """


class GateError(SummaryError):
    """``fail_on`` stops a run: the message says which gate the comparison with the baseline fails, and by how much."""


class SummaryWarning(UserWarning):
    """Something inside the package failed; training went on, and the summary says what is missing."""


def missing(extra: str, module: str) -> ModuleNotFoundError:
    """The error for an optional dependency that is not installed: names the module and the install command."""
    return ModuleNotFoundError(
        f"{module} is not installed; install it with: pip install 'summarycb[{extra}]'", name=module
    )
