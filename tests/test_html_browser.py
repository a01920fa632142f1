"""The page in Chromium, from disk and without a network: what a reader does with it works, and nothing else happens.

Skipped where there is no Chromium; ``.ci/run`` installs Debian's.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from torch import nn

from tests.browsing import Browser
from tests.chromium import needs_chromium
from tests.pages import EVIL, hostile, residual, step

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page() -> str:
    return residual().to_html(depth=2, metric="params")


def test_the_tree_expands_and_collapses(browser: Browser, page: str) -> None:
    browser.open(page)
    start = ["Residual", "tokens", "h", "0-11", "12", "head", "(outside)"]
    assert browser.shown() == start
    browser.find("#r3 > .row").click()
    inner = ["norm", "up", "act", "down"]
    assert browser.shown() == [*start[:4], *inner, *start[4:]]
    browser.find("#close").click()
    assert browser.shown() == ["Residual", "(outside)"]
    browser.find("#open").click()
    assert browser.shown() == [*start[:4], *inner, "12", *inner, "head", "(outside)"]


def test_the_cells_are_below_their_titles(browser: Browser, page: str) -> None:
    """In every row, however deep it is nested."""
    browser.open(page)
    browser.find("#open").click()
    edges = browser.run(
        "const edge = one => one.getBoundingClientRect()[one.matches('.shape') ? 'left' : 'right'];"
        "return [...document.querySelectorAll('.row')].map(row => [...row.children].slice(1)"
        ".filter(one => one.checkVisibility()).map(one => Math.round(edge(one))).join())"
    )
    assert len(edges) == 16
    assert len(set(edges)) == 1


def test_the_keyboard_walks_the_tree(browser: Browser, page: str) -> None:
    browser.open(page)
    at = browser.find("#r0 > .row")
    browser.run("arguments[0].focus()", at)

    def press(*keys: str) -> str:
        for key in keys:
            browser.driver.switch_to.active_element.send_keys(key)
        return browser.run("return document.activeElement.querySelector('bdi').textContent")

    assert press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN) == "0-11"
    assert press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT) == "norm"
    assert press(Keys.ARROW_LEFT) == "0-11"
    assert press(Keys.ARROW_LEFT, Keys.ARROW_LEFT) == "h"
    assert press(Keys.ARROW_DOWN) == "0-11"
    assert press(Keys.ARROW_DOWN) == "12", "what a closed row holds is passed by"
    assert press(Keys.END) == "(outside)"
    assert browser.find(".on > .row bdi").text == "(outside)"


def stops(browser: Browser) -> Iterator[Any]:
    """Each element that the Tab key comes to, from the page's first to its last."""
    browser.run("document.activeElement.blur()")
    found: list[Any] = []
    while True:
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        at = browser.driver.switch_to.active_element
        if at.tag_name == "body" or at in found:
            return
        yield at
        found.append(at)
        assert len(found) < 100


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_tab_key_comes_to_each_part_of_the_page_once(browser: Browser, page: str, theme: str) -> None:
    """However many boxes, rows and nodes there are; in the order of the page, and where it is can be seen."""
    browser.emulate("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    browser.open(page)
    ring = (
        "const at = arguments[0], box = at.matches('.icicle a, .node');"
        "const seen = box ? at.querySelector('rect') : at.matches('.switch input') ? at.nextElementSibling : at;"
        "const style = getComputedStyle(seen);"
        "const width = box ? style.strokeWidth : style.outlineStyle === 'none' ? '0' : style.outlineWidth;"
        "return [parseFloat(width), ...(box ? style.stroke : style.outlineColor).match(/[0-9.]+/g).map(Number)]"
    )
    found = []
    for at in stops(browser):
        name = at.accessible_name
        width, *colour = browser.run(ring, at)
        assert width >= 2, name
        # the ground is #fff or #151a21
        assert (
            contrast(colour[:3], (255, 255, 255)) if theme == "light" else contrast(colour[:3], (21, 26, 33))
        ) >= 3, name
        found.append((at.aria_role, name.split(" [")[0]))
    assert found == [
        *[("link", name) for name in ("Residual", "Modules", "Dataflow", "Memory", "Parameters", "Notes")],
        ("button", "dark theme"),
        ("radio", "params"),
        ("treeitem", "Residual: 4,664, 100.0 %"),
        ("searchbox", "search modules"),
        ("button", "Expand all"),
        ("button", "Collapse"),
        *[("button", name) for name in ("module", "params", "fwd MACs", "saved act.", "params %")],
        ("row", "Residual"),
        ("radio", "2"),
        ("button", "tokens Embedding"),
        ("slider", "stretch of the step"),
        ("region", "parameters"),
    ]
    assert not browser.run("return [...document.querySelectorAll('[tabindex]')].some(one => one.tabIndex > 0)")
    ids = browser.run("return [...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """The ratio of two colours as WCAG 2.2 defines it."""

    def luminance(colour: Sequence[float]) -> float:
        parts = [part / 255 for part in colour]
        r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


Node = dict[str, Any]


def spoken(browser: Browser, role: str) -> list[tuple[str, dict[str, Any]]]:
    """The names and states of what has ``role`` in Chromium's accessibility tree, which screen readers are given."""
    wanted = {"checked", "expanded", "level", "pressed", "selected"}
    nodes: list[Node] = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [
        (node["name"]["value"], {p["name"]: p["value"]["value"] for p in node["properties"] if p["name"] in wanted})
        for node in nodes
        if not node["ignored"] and node["role"]["value"] == role
    ]


def test_what_a_screen_reader_is_told(browser: Browser, page: str) -> None:
    browser.open(page)
    assert spoken(browser, "treegrid") == [("modules", {})]
    rows = spoken(browser, "row")[1:8]
    assert [(" ".join(name.split()[:2]), states["level"], states["selected"]) for name, states in rows] == [
        ("Residual [2,", 1, True),
        ("tokens Embedding", 2, False),
        ("h ModuleList", 2, False),
        ("0-11 ×12", 3, False),
        ("12 Block", 3, False),
        ("head Linear", 2, False),
        ("(outside) loss,", 1, False),
    ]
    assert [states["expanded"] for _, states in rows] == [True, False, True, False, False, False, False]
    headers = ["module", "output", "params", "fwd MACs", "saved act.", "params %"]
    listed = ["name", "shape", "elements", "dtype", "bytes", "remarks"]
    assert [name for name, _ in spoken(browser, "columnheader")] == [*headers, *listed]
    assert spoken(browser, "radio") == [
        ("params", {"checked": "true"}),
        *[(name, {"checked": "false"}) for name in ("fwd MACs", "bwd FLOPs", "saved act.", "1 level")],
        ("2", {"checked": "true"}),
    ]
    assert [name for name, _ in spoken(browser, "radiogroup")] == ["metric", "levels of modules"]
    assert [name for name, _ in spoken(browser, "tree")] == ["params by module"]
    assert spoken(browser, "treeitem")[:2] == [
        ("Residual: 4,664, 100.0 %", {"level": 1, "selected": True}),
        ("tokens Embedding: 320, 6.9 %", {"level": 2, "selected": False}),
    ]
    assert ("The dataflow of the step", {}) in spoken(browser, "group")
    edges = [name for name, _ in spoken(browser, "graphics-symbol")]
    assert edges[:2] == ["input → tokens: [2, 5] int64", "tokens → 0-11.norm: [2, 5, 8] float32"]
    browser.find("#r3 > .row").click()
    assert spoken(browser, "row")[4][1] == {"expanded": True, "level": 3, "selected": True}
    # said of those that open, for browsers that would not tell it of a row
    said = [browser.find(f"#r{row} > .row").get_dom_attribute("aria-expanded") for row in (0, 1, 3, 8)]
    assert said == ["true", None, "true", "false"]
    assert ("dark theme", {"pressed": "false"}) in spoken(browser, "button")
    browser.find("#theme").click()
    assert ("dark theme", {"pressed": "true"}) in spoken(browser, "button")


def test_the_stop_of_the_tree_is_never_hidden(browser: Browser, page: str) -> None:
    browser.open(page)
    browser.find("#r3 > .row").click()
    browser.run("arguments[0].focus()", browser.find("#r4 > .row"))
    browser.find("#close").click()
    assert [at.text for at in stops(browser) if at.aria_role == "row"] == [browser.find("#r0 > .row").text]


def test_the_keyboard_walks_the_icicle(browser: Browser, page: str) -> None:
    """Down to what is in a box, up to what it is in, sideways on its level; Enter zooms, Escape goes back."""
    browser.open(page)
    browser.run("arguments[0].focus()", browser.find(".m0 .icicle a"))

    def press(*keys: str) -> str:
        for key in keys:
            browser.driver.switch_to.active_element.send_keys(key)
        return browser.driver.switch_to.active_element.get_dom_attribute("href").removeprefix("#")

    assert press(Keys.ARROW_DOWN) == "r1"
    assert press(Keys.ARROW_DOWN) == "r1", "there is nothing in it"
    assert press(Keys.ARROW_RIGHT) == "r2"
    assert press(Keys.ARROW_DOWN, Keys.ARROW_DOWN) == "r4"
    assert press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT) == "r5", "up and down are beside it, act has none"
    width = "return document.querySelector('.m0 .icicle a[href=\"#r5\"] > svg').getAttribute('width')"
    before = browser.run(width)
    assert press(Keys.ENTER) == "r5"
    assert browser.run(width) == "100%"
    assert browser.find(".on > .row bdi").text == "up"
    assert press(Keys.ARROW_LEFT) == "r5", "what the view is not within cannot be seen"
    assert press(Keys.ESCAPE) == "r5"
    assert browser.run(width) == before
    assert press(Keys.ARROW_UP) == "r3"
    assert press(Keys.END) == "r13"
    assert press(Keys.HOME) == "r0"


def test_the_keyboard_walks_the_dataflow(browser: Browser, page: str) -> None:
    """In the order in which the modules ran, always in sight; Enter or Space chooses as a click does."""
    browser.open(page)
    browser.run("arguments[0].focus()", browser.find(".g1 [data-path]"))

    def press(*keys: str) -> str:
        for key in keys:
            browser.driver.switch_to.active_element.send_keys(key)
        at = browser.driver.switch_to.active_element
        inside = (
            "const [a, b] = [...arguments].map(one => one.getBoundingClientRect());"
            "return a.top >= b.top && a.bottom <= b.bottom"
        )
        assert browser.run(inside, at, browser.find(".g1"))
        return at.get_attribute("data-path")

    assert press(Keys.ARROW_DOWN, Keys.ARROW_DOWN) == "h.0.up"
    press(Keys.ENTER)
    assert browser.find(".on > .row bdi").text == "up"
    assert ("h.0-11.up Linear ×12", {"pressed": "true"}) in [
        (name.replace("h.0.up", "h.0-11.up"), states) for name, states in spoken(browser, "button")
    ]
    assert press(Keys.ARROW_UP, " ") == "h.0.norm"
    assert browser.find(".on > .row bdi").text == "norm"
    assert press(Keys.END) == "head"
    assert press(Keys.ARROW_DOWN) == "head"


def test_the_keyboard_goes_through_the_memory(browser: Browser, page: str) -> None:
    browser.open(page)
    chart = browser.find("#stretches")
    browser.run("arguments[0].focus()", chart)
    last = chart.get_attribute("aria-valuemax")
    assert chart.get_attribute("aria-valuetext").startswith("peak ")
    chart.send_keys(Keys.END)
    assert browser.find("#readout").text.endswith("optimizer")
    assert chart.get_attribute("aria-valuenow") == last
    chart.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert chart.get_attribute("aria-valuenow") == "2"
    assert browser.find("#readout").text == chart.get_attribute("aria-valuetext")


def test_the_search_filters(browser: Browser, page: str) -> None:
    """By any copy's path, or the type; parents stay, and what was open is open again afterwards."""
    browser.open(page)
    before = browser.shown()
    browser.driver.switch_to.active_element.send_keys("/")
    search = browser.driver.switch_to.active_element
    search.send_keys("h.7.up")
    assert browser.shown() == ["Residual", "h", "0-11", "up"]
    assert browser.find("#found").text == "1 of 15 rows"
    search.clear()
    search.send_keys("GELU")
    assert browser.shown() == ["Residual", "h", "0-11", "act", "12", "act"]
    search.send_keys(Keys.ESCAPE)
    assert browser.shown() == before


def test_a_column_sorts_within_each_parent(browser: Browser, page: str) -> None:
    browser.open(page)
    browser.find('[data-sort="0"]').click()
    # 12 has 24 in place of 16 inside; head 320 + 40, tokens 320
    assert browser.shown() == ["Residual", "h", "12", "0-11", "head", "tokens", "(outside)"]
    (sorted_by,) = browser.driver.find_elements("css selector", "[aria-sort]")
    assert (sorted_by.text, sorted_by.get_attribute("role")) == ("params", "columnheader")
    browser.find('[data-sort=""]').click()
    assert browser.shown() == ["Residual", "tokens", "h", "0-11", "12", "head", "(outside)"]


def test_the_metric_switches_bars_and_icicle(browser: Browser, page: str) -> None:
    browser.open(page)

    def seen() -> list[list[str]]:
        return browser.run(
            "return ['.icicle', '.titles [class^=m]'].map(all => [...document.querySelectorAll(all)]"
            ".filter(one => one.checkVisibility()).map(one => one.ariaLabel || one.textContent))"
        )

    assert seen() == [["params by module"], ["params %"]]
    browser.find("label[for=m3]").click()
    assert seen() == [["saved act. by module"], ["saved act. %"]]


def test_the_icicle_zooms_and_selects_the_row(browser: Browser, page: str) -> None:
    browser.open(page)
    box = browser.find('.icicle a[href="#r7"]')
    assert browser.find("#r7 > .row").is_displayed() is False
    box.click()
    assert browser.find("#r7 > .row").is_displayed()
    assert browser.find(".on > .row bdi").text == "down"
    assert browser.find("#panel h3").text.split() == ["down", "Linear"]
    assert [cell.text for cell in browser.driver.find_elements("css selector", "#panel td")] == [
        *("weight ×12", "[8, 16]", "128"),
        *("bias ×12", "[8]", "8"),
    ]
    width = "return arguments[0].firstElementChild.getAttribute('width')"
    assert browser.run(width, box) == "100%"
    box.click()
    # 16 x 8 + 8 = 136 in each of twelve, of 320 + 12 x 296 + 432 + 360
    assert browser.run(width, box) == f"{round(100 * 12 * 136 / (320 + 12 * 296 + 432 + 360), 3)}%"


def test_the_memory_says_what_was_alive_where_the_pointer_is(browser: Browser, page: str) -> None:
    browser.open(page)
    said = browser.run(
        "const chart = document.getElementById('stretches'), { left, width, top } = chart.getBoundingClientRect();"
        "return [0.001, 0.999].map(part => { chart.dispatchEvent(new PointerEvent('pointermove',"
        " { clientX: left + part * width, clientY: top + 50 }));"
        " return document.getElementById('readout').textContent; })"
    )
    assert [" · ".join(text.split(" · ")[1:]) for text in said] == ["forward", "optimizer"]


def test_the_graph_is_drawn_and_selects_the_row(browser: Browser, page: str) -> None:
    """One drawing for each depth; a node leads to its module's row, and a row to its nodes."""
    browser.open(page)
    drawn = (
        "return [...document.querySelectorAll('.graph')].filter(one => one.checkVisibility())"
        ".map(one => [...one.querySelectorAll('.node text:not(.dim)')].map(name => name.textContent))"
    )
    (deep,) = browser.run(drawn)
    browser.find("label[for=g0]").click()
    (shallow,) = browser.run(drawn)
    inner = ["norm", "up", "act", "down"]
    first, last = [f"0-11.{name}" for name in inner], [f"12.{name}" for name in inner]
    around = ["head", "output", "sum", "loss"]
    assert deep == ["input", "tokens", *first, "add", *last, "add", *around]
    assert shallow == ["input", "tokens", "h.0-11 ×12 in a row", "h.12", *around]
    browser.find('.g0 [data-path="head"]').click()
    assert browser.find(".on > .row bdi").text == "head"
    browser.find("#r1 > .row").click()
    assert [one.get_attribute("data-path") for one in browser.driver.find_elements("css selector", ".g0 .node.on")] == [
        "tokens"
    ]
    for node in browser.driver.find_elements("css selector", ".g0 .node rect"):
        assert node.size["width"] > 20


def test_names_are_inert(browser: Browser) -> None:
    """A module, its type, settings and parameter that are HTML; an alert would fail every later command."""
    browser.open(hostile().to_html())
    browser.find("#open").click()
    browser.find("#r1 > .row").click()
    assert browser.find("#panel h3").text == f"{EVIL} {EVIL}"
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert browser.run("return document.scripts.length") == 2


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_are_drawn(browser: Browser, page: str, theme: str) -> None:
    """The ground covers most, in the theme's brightness, and there is much else; the toggle shows the other one."""
    browser.emulate("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    browser.open(page)

    def check(dark: bool) -> None:
        colours = browser.colours()
        (ground, count), *others = colours.most_common()
        assert (max(ground) < 64) is dark
        assert (min(ground) > 192) is not dark
        assert 0.2 < count / colours.total() < 0.95
        assert len(others) > 100

    check(theme == "dark")
    browser.find("#theme").click()
    check(theme != "dark")


def test_a_narrow_screen_needs_no_sideways_scrolling(browser: Browser, page: str) -> None:
    browser.emulate("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1, mobile=True)
    browser.open(page)
    assert browser.run("return document.documentElement.scrollWidth") <= 360
    assert browser.find("#r3 > .row bdi").is_displayed()


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleList(nn.Sequential(nn.Linear(4, 4 + i), nn.ReLU()) for i in range(9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([way(x) for way in self.ways], 1)


def test_on_a_narrow_screen_a_drawing_starts_where_the_flow_does(browser: Browser) -> None:
    """Nine ways are far wider than the screen, and the input is above the middle one."""
    browser.emulate("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    browser.open(step(Wide(), torch.rand(2, 4)).to_html())
    for depth in (0, 1):
        browser.find(f"label[for=g{depth}]").click()
        assert browser.run("return arguments[0].scrollWidth", browser.find(f".g{depth}")) > 2 * 390
        # the observer of sizes is told before the second frame after the change
        browser.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        place = browser.find(f".g{depth} .input").rect
        assert 0 < place["x"] < place["x"] + place["width"] < 390
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    theme = browser.find("#theme").rect
    assert theme["x"] + theme["width"] <= 390


def test_it_is_read_without_a_script(browser: Browser, page: str) -> None:
    """The tree opens, a box leads to its row, the metric switches, and all sections are there."""
    browser.emulate("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(page)
    assert browser.find("html").get_attribute("class") == ""
    browser.find("#r3 > .row").click()
    assert browser.shown()[3:8] == ["0-11", "norm", "up", "act", "down"]
    browser.find("label[for=m1]").click()
    assert browser.find(".m1 .icicle").is_displayed()
    browser.find('.m1 .icicle a[href="#r12"]').click()
    assert browser.run("return location.hash") == "#r12"
    assert browser.find("#r12 > .row").is_displayed()
    assert not browser.find("#search").is_displayed()
    for section in ("modules", "memory", "parameters", "notes"):
        assert browser.find(f"#{section}").is_displayed()


@pytest.mark.parametrize("sandbox", ["allow-scripts", ""])
def test_it_works_in_a_sandboxed_frame(browser: Browser, page: str, sandbox: str) -> None:
    """As MLflow and W&B show it: no origin of its own; without scripts it is read all the same."""
    frame = f'<iframe sandbox="{sandbox}" style="width:1300px;height:900px" srcdoc="{html.escape(page)}"></iframe>'
    browser.open(f"<!doctype html><meta charset=utf-8>{frame}")
    browser.driver.switch_to.frame(0)
    assert browser.find("#r3 > .row").is_displayed()
    if sandbox:
        browser.find('.icicle a[href="#r3"]').click()
        assert browser.find("#panel h3").text == "0-11 ×12 Block"
    browser.driver.switch_to.default_content()


def test_a_notebooks_cell(browser: Browser) -> None:
    summary = residual()
    browser.open(f"<!doctype html><meta charset=utf-8><body>{summary._repr_html_()}{summary._repr_html_()}")
    assert browser.shown()[:4] == ["Residual", "tokens", "h", "0-11"]
    browser.driver.find_elements("css selector", ".kids > .row")[2].click()
    assert browser.shown()[3:5] == ["0-11", "norm"]
