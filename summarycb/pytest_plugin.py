"""The pytest fixture ``model_summary_snapshot``: a model is the one that is stored beside its test.

Every pytest of an environment with this package imports this, so nothing of the package is imported before the fixture
is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

if TYPE_CHECKING:
    from torch import nn

    from summarycb.compare import Comparison
    from summarycb.tree import ModelSummary

UPDATE = "--model-summary-update"
FOLDER = "__model_summaries__"
_LONGEST = 200


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--model-summary-update``."""
    group = parser.getgroup("summarycb", "model summaries")
    group.addoption(UPDATE, action="store_true", help="store the summaries that model_summary_snapshot is given")


@pytest.fixture
def model_summary_snapshot(request: pytest.FixtureRequest) -> Snapshot:
    """Compares a model with the summary that is stored of it; see :class:`summarycb.pytest_plugin.Snapshot`."""
    return Snapshot(request)


class Snapshot:
    """Fails the test where a model is not the one whose summary is stored::

        def test_model(model_summary_snapshot):
            model_summary_snapshot(summarycb.summarize(Model(), input_size=(2, 16), backward=True))

    It is ``__model_summaries__/<test file>/<test>.json`` beside the test file, and ``pytest --model-summary-update``
    writes it. Of a model, and not a summary, the structure is compared. Where a test compares several, the second is in
    ``<test>-2.json``, or with ``name="head"`` in ``<test>-head.json``.
    """

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._folder = request.path.parent / FOLDER / request.path.stem
        self._test = request.node.nodeid.partition("::")[2].replace("::", ".")
        self._update = request.config.getoption(UPDATE)
        self._calls = 0

    def __call__(self, model: ModelSummary | nn.Module, name: str = "", fail_on: Sequence[str] = ()) -> None:
        """Any change of the structure or of a figure fails, and conditions of the step that change figures.

        Not so another version of torch, nor what CUDA's allocator held. With ``fail_on`` only these gates fail, as in
        ``["params>+5%"]``.
        """
        __tracebackhide__ = True
        from summarycb.compare import compare
        from summarycb.gates import check, of
        from summarycb.serialize import load
        from summarycb.tree import ModelSummary

        if not isinstance(model, ModelSummary):
            from summarycb.summarize import summarize

            model = summarize(model)
        self._calls += 1
        gates = of(fail_on)
        which = name or (str(self._calls) if self._calls > 1 else "")
        stored = self._folder / f"{_file_name('-'.join(filter(None, [self._test, which])))}.json"
        if self._update:
            stored.parent.mkdir(parents=True, exist_ok=True)
            model.save(stored)
            return
        update = f"pytest {UPDATE} writes it"
        if not stored.exists():
            pytest.fail(f"there is no stored summary {stored}; {update}")
        base = load(stored)
        model = replace(model, environment=replace(model.environment, torch=base.environment.torch))
        comparison = compare(base, model)
        failed = [str(verdict) for verdict in check(comparison, gates) if verdict.failed]
        if failed or (not gates and _differs(comparison)):
            pytest.fail("\n".join([f"the model is not the one in {stored}; {update} anew", *failed, str(comparison)]))


def _differs(comparison: Comparison) -> bool:
    totals = [f for name, f in comparison.metrics.items() if f.a != f.b and name != "memory_allocator_peak"]
    return bool(comparison.rows or not comparison.comparable or totals)


def _file_name(test: str) -> str:
    """A test's id may have characters, and be of a length, that no file's name has."""
    name = quote(test, safe="[] ,=")
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}-{hashlib.sha256(test.encode()).hexdigest()[:8]}"
