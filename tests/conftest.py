"""Fixtures for every test: the four trainings, and that no test leaves anything behind in the process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from selenium.webdriver import Chrome

from summarycb.publish import FOLDER
from summarycb.trackers import _warn_once
from tests.browsing import Browser
from tests.chromium import chromium
from tests.trainings import CASES, NOTHING, Case, left_behind, sweep

torch.set_num_threads(1)  # the models are tiny: more threads would wait for each other, most of all beside other tests


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def L(request: pytest.FixtureRequest) -> ModuleType:
    """Lightning, under each of the two names that it is shipped as."""
    return importlib.import_module(request.param)


@pytest.fixture
def lightning() -> ModuleType:
    """Lightning, where one of the two is enough."""
    return importlib.import_module("lightning.pytorch")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Chromium without a network."""
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def browser(driver: Chrome, tmp_path: Path) -> Iterator[Browser]:
    """Each test ends without a word on the console and without a request but that for the page itself."""
    browser = Browser(driver, tmp_path)
    yield browser
    browser.emulate("Emulation.setScriptExecutionDisabled", value=False)
    browser.emulate("Emulation.setEmulatedMedia", features=[])
    browser.emulate("Emulation.clearDeviceMetricsOverride")
    assert browser.messages() == []
    assert set(browser.requests()) <= {(tmp_path / "page.html").as_uri(), "about:srcdoc"}


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what no tracker took is saved."""
    folder = tmp_path / "model_summaries"
    monkeypatch.setenv(FOLDER, str(folder))
    return folder


@pytest.fixture(autouse=True)
def _nothing_was_told() -> None:
    """What is told once in a process is told in each test."""
    _warn_once.cache_clear()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    left = left_behind()
    sweep()
    assert left == NOTHING
    if "torch._dynamo" in sys.modules:
        from torch._dynamo.eval_frame import _stance

        assert _stance.stance == "default"
