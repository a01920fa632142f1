"""A headless Chromium of its own for a test file: an empty profile, bounded in time, stopped at the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

SECONDS = 60
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no Chromium: apt-get install chromium chromium-driver"
)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)


@contextmanager
def chromium(profile: Path, *reachable: str, size: tuple[int, int] = (1400, 1000)) -> Iterator[Chrome]:
    """One that reaches no host but ``reachable``."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    hosts = "".join(f", EXCLUDE {host}" for host in reachable)
    for flag in [
        *FLAGS.split(),
        "--window-size={},{}".format(*size),
        f"--user-data-dir={profile}",
        f"--host-resolver-rules=MAP * ~NOTFOUND{hosts}",
    ]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(str(DRIVER)))
    try:
        driver.set_page_load_timeout(SECONDS)
        driver.set_script_timeout(SECONDS)
        driver.get("about:blank")  # leaves Chromium's own first page, which makes requests
        yield driver
    finally:
        driver.quit()
