"""The fixture ``model_summary_snapshot``, in pytest runs of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parent.parent
RESULTS = Callable[..., pytest.RunResult]

# 2 rows through 4 x WIDTH and WIDTH x 2: weights, biases, and no figure of a step but the forward's
MODEL = """
import summarycb
from torch import nn

def model(width):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

def summary(width, rows=2):
    return summarycb.summarize(model(width), input_size=(rows, 4))
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> RESULTS:
    """Runs a test file of this body; the plugin is named, since an entry point is there once it is installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(body: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=MODEL + body)
        return pytester.runpytest("-p", "summarycb.pytest_plugin", "-p", "no:cacheprovider", *options)

    return run


def test_it_is_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"summarycb": "summarycb.pytest_plugin"}


def test_it_is_missing_then_written_then_the_same_then_another(run: RESULTS, pytester: pytest.Pytester) -> None:
    body = "def test_model(model_summary_snapshot):\n    model_summary_snapshot(summary({width}))\n"
    stored = pytester.path / "__model_summaries__/test_it/test_model.json"

    missing = run(body.format(width=8))
    missing.assert_outcomes(failed=1)
    assert f"there is no stored summary {stored}; pytest --model-summary-update writes it" in missing.stdout.str()
    assert not stored.exists()

    run(body.format(width=8), "--model-summary-update").assert_outcomes(passed=1)
    first = stored.read_bytes()
    run(body.format(width=8)).assert_outcomes(passed=1)

    other = run(body.format(width=16))
    other.assert_outcomes(failed=1)
    said = other.stdout.str()
    assert f"the model is not the one in {stored}; pytest --model-summary-update writes it anew" in said
    assert "params            58 → 114 (+56, +96.6 %)" in said  # 7 for each of the width, and 2
    assert "~ 0               out_features=8 → 16" in said
    assert stored.read_bytes() == first

    run(body.format(width=16), "--model-summary-update").assert_outcomes(passed=1)
    run(body.format(width=16)).assert_outcomes(passed=1)
    assert json.loads(stored.read_text())["modules"][1]["config"] == "in_features=4, out_features=16, bias=True"


def test_a_condition_that_changes_figures_fails_and_another_torch_does_not(
    run: RESULTS, pytester: pytest.Pytester
) -> None:
    body = "def test_model(model_summary_snapshot):\n    model_summary_snapshot(summary(8, rows={rows}))\n"
    run(body.format(rows=2), "--model-summary-update").assert_outcomes(passed=1)
    stored = pytester.path / "__model_summaries__/test_it/test_model.json"
    document = json.loads(stored.read_text())
    document["environment"] |= {"torch": "1.0", "summarycb": "0.0"}
    stored.write_text(json.dumps(document))
    run(body.format(rows=2)).assert_outcomes(passed=1)
    more = run(body.format(rows=3))
    more.assert_outcomes(failed=1)
    assert "input: [2, 4] → [3, 4]" in more.stdout.str()


def test_a_gate_is_all_that_fails(run: RESULTS) -> None:
    body = """
def test_model(model_summary_snapshot):
    model_summary_snapshot(summary({width}), fail_on=["params>+50%"])
"""
    run(body.format(width=8), "--model-summary-update").assert_outcomes(passed=1)
    run(body.format(width=9)).assert_outcomes(passed=1)
    failed = run(body.format(width=16))
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(["*failed: params>+50%: 58 → 114 (+56, +96.55 %), 27 over the limit"])


def test_a_model_several_in_one_test_and_names_that_no_file_has(run: RESULTS, pytester: pytest.Pytester) -> None:
    """Of a model without an input the structure; each call and each parameter has a file of its own."""
    body = """
import pytest

class TestModels:
    @pytest.mark.parametrize("kind", ["a/b", "a:b"])
    def test_model(self, kind, model_summary_snapshot):
        model_summary_snapshot(model({width}))
        model_summary_snapshot(model(3))
        model_summary_snapshot(model(4), name="head")
"""
    run(body.format(width=8), "--model-summary-update").assert_outcomes(passed=2)
    stored = pytester.path / "__model_summaries__/test_it"
    assert sorted(path.name for path in stored.iterdir()) == [
        "TestModels.test_model[a%2Fb]-2.json",
        "TestModels.test_model[a%2Fb]-head.json",
        "TestModels.test_model[a%2Fb].json",
        "TestModels.test_model[a%3Ab]-2.json",
        "TestModels.test_model[a%3Ab]-head.json",
        "TestModels.test_model[a%3Ab].json",
    ]
    run(body.format(width=8)).assert_outcomes(passed=2)
    run(body.format(width=5)).assert_outcomes(failed=2)


def test_ids_that_are_longer_than_the_name_of_a_file(run: RESULTS, pytester: pytest.Pytester) -> None:
    """Two that differ in the end alone have files of their own."""
    body = """
import pytest

@pytest.mark.parametrize(("kind", "size"), [("ü" * 100 + "a", {first}), ("ü" * 100 + "b", 9)])
def test_model(kind, size, model_summary_snapshot):
    model_summary_snapshot(model(size))
"""
    run(body.format(first=8), "--model-summary-update").assert_outcomes(passed=2)
    run(body.format(first=8)).assert_outcomes(passed=2)
    run(body.format(first=9)).assert_outcomes(passed=1, failed=1)


def test_another_torch_does_not_fail_a_gate(run: RESULTS, pytester: pytest.Pytester) -> None:
    """Nor does it without one; what is no gate is an error, also where snapshots are updated."""
    body = """
import torch

def test_it(model_summary_snapshot):
    net = model(3)
    with summarycb.observe(net) as observation:
        net(torch.ones(2, 4)).sum().backward()
    model_summary_snapshot(observation.summary, fail_on={gates})
"""
    run(body.format(gates=["saved_activations>+5%"]), "--model-summary-update").assert_outcomes(passed=1)
    stored = pytester.path / "__model_summaries__/test_it/test_it.json"
    stored.write_text(re.sub(r'"torch": "[^"]*"', '"torch": "1.0"', stored.read_text()))
    run(body.format(gates=["saved_activations>+5%"])).assert_outcomes(passed=1)
    wrong = run(body.format(gates='"params>+5%"'), "--model-summary-update")
    wrong.assert_outcomes(failed=1)
    assert "fail_on must be a list of gates" in wrong.stdout.str()


def test_pytest_starts_with_nothing_of_the_package_but_the_plugin(tmp_path: Path) -> None:
    """Neither torch nor rich is imported for tests that do not use the fixture."""
    (tmp_path / "test_it.py").write_text(
        "import sys\n\ndef test_modules():\n"
        "    ours = {name for name in sys.modules if name.partition('.')[0] == 'summarycb'}\n"
        "    assert ours == {'summarycb', 'summarycb.pytest_plugin'}\n"
        "    assert not {'torch', 'rich', 'jinja2', 'numpy'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "summarycb.pytest_plugin", "-p", "no:cacheprovider"]

    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout
