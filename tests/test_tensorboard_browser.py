"""What a reader of TensorBoard sees of a report, in Chromium, with its real server. The screenshots are in tmp_path.

Skipped where there is no Chromium; ``.ci/run`` installs Debian's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from selenium.webdriver import Chrome
from selenium.webdriver.support.wait import WebDriverWait
from torch.utils.tensorboard import SummaryWriter

from summarycb.report import Report, structure
from summarycb.trackers import resolve
from summarycb.tree import ModelSummary
from tests.chromium import SECONDS, chromium, needs_chromium
from tests.pages import Block, residual, step
from tests.tensorboards import serving

pytestmark = [pytest.mark.slow, needs_chromium]
ALL = """
function all(selector, root = document) {
  const found = [...root.querySelectorAll(selector)]
  for (const element of root.querySelectorAll('*'))
    if (element.shadowRoot) found.push(...all(selector, element.shadowRoot))
  return found
}
const shown = selector => all(selector).filter(element => element.checkVisibility())
const node = name => all('g.node').find(element => element.getAttribute('data-name') === name)
"""
"""The elements of the page, those in shadow roots too."""


@dataclass
class Page:
    driver: Chrome
    url: str
    folder: Path

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(ALL + script, *arguments)

    def until(self, script: str, *arguments: object) -> Any:
        """What the script returns, once that is something."""
        try:
            return WebDriverWait(self.driver, SECONDS).until(lambda _: self.run(script, *arguments))
        except Exception:
            self.keep("failed")
            raise

    def open(self, dashboard: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}#{dashboard}")

    def choose(self, selector: str, text: str) -> None:
        """Click on what says ``text``, once it can be clicked on."""
        self.until(
            "const found = all(arguments[0]).find(element => element.textContent.trim() === arguments[1])\n"
            "if (!found || found.hasAttribute('disabled')) return false\n"
            "found.click(); return true",
            *(selector, text),
        )

    def says(self, text: str) -> None:
        """Wait until some element that is shown says just this."""
        self.until(
            "return shown('*').some(element => [...element.childNodes].some("
            "child => child.nodeType === Node.TEXT_NODE && child.data.trim() === arguments[0]))",
            text,
        )

    def keep(self, name: str) -> None:
        assert self.driver.save_screenshot(str(self.folder / f"{name}.png"))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile"), "127.0.0.1", size=(1700, 1000)) as driver:
        yield driver


@pytest.fixture(scope="module")
def summary() -> ModelSummary:
    return residual()


@pytest.fixture(scope="module")
def server(summary: ModelSummary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a TensorBoard on two runs, of which one has a log of its own too."""
    folder = tmp_path_factory.mktemp("runs")
    with SummaryWriter(str(folder / "residual")) as writer:
        [tracker] = resolve([writer])
        tracker.write(Report(summary), step=0)
        writer.add_scalar("loss", 1.0, 0)
    [tracker] = resolve([f"tensorboard:{folder / 'block'}"])
    tracker.write(Report(step(Block(4, 8), torch.ones(2, 4))), step=0)
    with serving(folder) as url:
        yield url


@pytest.fixture
def page(driver: Chrome, server: str, tmp_path: Path) -> Page:
    return Page(driver, server, tmp_path)


def test_the_graphs_page_draws_the_model_and_colours_it_by_work(page: Page, summary: ModelSummary) -> None:
    page.open("graphs")
    page.choose("paper-item", "residual")
    forward, backward = [
        f"model_summary/Residual/{phase}.{structure(summary)[:8]}" for phase in ("forward", "backward")
    ]
    page.choose("paper-item", forward)
    items = page.run("return all('paper-item').map(element => element.textContent.trim())")
    assert items == ["block", "residual", backward, forward]
    page.choose("paper-radio-button", "Profile")
    page.choose("paper-radio-button", "Compute time")
    page.says("69.1 ms")  # the legend's end
    names = page.run("return all('g.node').map(element => element.getAttribute('data-name'))")
    assert set(names) == {"Residual", "input", "tokens", "h", "head", "output", "(outside)", "loss"}
    # 10 rows, 2 FLOPs a MAC: twelve blocks of 8 x 16 and one of 8 x 24, up and down; the head of 8 x 40
    work = 2 * 10 * (12 * 2 * 8 * 16 + 2 * 8 * 24)
    assert (work, 2 * 10 * 8 * 40) == (69_120, 6_400)
    for name, time in [("h", "69.1 ms"), ("head", "6.4 ms")]:
        page.until(CARD, name, time)  # again and again: the scene does not listen while it is built
        page.keep(f"graph_{name}")
    red = {name: page.run(COLOUR, name) for name in ("h", "head", "tokens")}
    assert red["h"] > red["head"] > red["tokens"]


CARD = """
const rows = shown('.sub-list-table-row').map(row => row.textContent.replace(/\\s+/g, ' ').trim())
if (rows.includes(`Compute Time ${arguments[1]}`)) return true
node(arguments[0]).querySelector('.nodeshape').dispatchEvent(new MouseEvent('click', {bubbles: true}))
"""
COLOUR = """
const [r, g, b] = getComputedStyle(node(arguments[0]).querySelector('.nodecolortarget')).fill.match(/\\d+/g).map(Number)
return r - (g + b) / 2
"""


def test_a_block_opens_to_its_calls_and_residuals(page: Page) -> None:
    page.open("graphs")
    page.choose("paper-item", "residual")
    opened = "node(arguments[0]).querySelector('.nodeshape').dispatchEvent(new MouseEvent('dblclick', {bubbles: true}))"
    for name, inside in [("h", "h/0"), ("h/0", "h/0/add")]:
        page.until("return node(arguments[0]) !== undefined", name)
        page.until(f"if (node(arguments[1])) return true; {opened}", name, inside)
    names = page.run("return all('g.node').map(element => element.getAttribute('data-name'))")
    assert {"h/0/(0)", "h/0/norm", "h/0/up", "h/0/act", "h/0/down", "h/0/add"} <= set(names)
    page.keep("block")


def test_the_text_page_shows_the_table(page: Page, summary: ModelSummary) -> None:
    page.open("text")
    text = Report(summary).text.rstrip()
    page.until("return all('pre code').some(element => element.textContent.trimEnd() === arguments[0])", text)
    page.keep("text")


def test_the_scalars_page_shows_totals_beside_the_users_own(page: Page) -> None:
    page.open("scalars")
    for tag in ("loss", "model_summary/backward_flops"):
        page.says(tag)
    page.keep("scalars")


def test_the_images_page_shows_every_plot(page: Page, summary: ModelSummary) -> None:
    """None has the tag of a scalar: the server would take it for one."""
    page.open("images")
    for name in Report(summary).images:
        page.says(f"model_summary/plots/{name}")
    page.keep("images")
