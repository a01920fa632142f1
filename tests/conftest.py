"""Fixtures for every test: the four trainings, and that no test leaves anything behind in the process."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from tests.trainings import CASES, NOTHING, Case, left_behind, sweep

torch.set_num_threads(1)  # the models are tiny: more threads would wait for each other, most of all beside other tests


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    left = left_behind()
    sweep()
    assert left == NOTHING
    if "torch._dynamo" in sys.modules:
        from torch._dynamo.eval_frame import _stance

        assert _stance.stance == "default"
