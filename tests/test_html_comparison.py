"""The page of a comparison, read as a browser's parser does, and opened in Chromium without a network."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from selenium.webdriver.common.keys import Keys
from torch import nn

import summarycb
from summarycb import Comparison, ModelSummary, SummaryError, compare
from summarycb.cli import main
from summarycb.compared import Shown
from summarycb.merged import merged
from summarycb.render.markdown import to_markdown
from summarycb.render.terminal import to_text
from tests.browsing import Browser
from tests.chromium import needs_chromium
from tests.pages import EVIL, Block, Element, Residual, hostile, parse, residual, step

IDS = torch.arange(10).reshape(2, 5)


def wide() -> nn.Module:
    """Twelve blocks with 20 in place of 16 inside, without the wide one, and with a norm that is never called."""
    model = Residual()
    model.h = nn.ModuleList([Block(8, 20) for _ in range(12)])
    model.norm = nn.LayerNorm(8)
    return model


def wider() -> ModelSummary:
    return step(wide(), IDS)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(residual(), wider())


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    return comparison.to_html()


def lines(page: Element, key: str = "") -> list[list[str]]:
    """The mark of each row of the tree, its name, what changed and the delta of the params."""
    (tree,) = [one for one in page.all("div", "tree") if one.attributes["id"] == f"{key}tree"]
    found = []
    for row in [*tree.all("summary", "row"), *tree.all("div", "total")]:
        name, what, params, *_ = [child.text for child in row.children if isinstance(child, Element)]
        found.append([row.attributes.get("data-mark") or "", name, what, params])
    return found


def test_the_tree_is_that_of_both_and_sums_to_the_totals(page: str) -> None:
    """What was removed is where it was, and rows are folded; each has what changed in it and below."""
    # up 4 x 8 + 4 = 36 more, down 4 x 8 = 32 more; the wide block was 16 + 24 x 8 + 24 + 8 x 24 + 8 = 432
    assert lines(parse(page)) == [
        ["", "Residual", "", "+400"],  # 12 x 68 - 432 + 16
        ["", "tokens Embedding", "", "0"],
        ["", "h ModuleList", "", "+384"],
        ["", "0-11 ×12 Block", "", "+816"],
        ["", "norm LayerNorm", "", "0"],
        ["~", "up Linear", "out_features=16 → 20", "+432"],
        ["·", "act GELU", "output [2, 5, 16] → [2, 5, 20]", "0"],
        ["~", "down Linear", "in_features=16 → 20", "+384"],
        ["-", "12 Block", "Block (5 modules)", "-432"],
        ["-", "norm LayerNorm", "", "-16"],
        ["-", "up Linear", "", "-216"],
        ["-", "act GELU", "", "0"],
        ["-", "down Linear", "", "-200"],
        ["", "head Linear", "", "0"],
        ["+", "norm LayerNorm", "LayerNorm", "+16"],
        ["", "(outside) loss, etc.", "", "0"],
        ["", "total", "", "+400"],
    ]


def test_the_roots_of_both_trees_sum_to_the_totals(comparison: Comparison) -> None:
    """Also where one model was built around the other, and where all is for one sample."""

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = wide()

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.net(ids).relu()

    around = step(Around(), IDS)
    for other in (
        comparison,
        compare(comparison.a, around),
        compare(around, comparison.a),
        compare(comparison.a, around, per="sample"),
    ):
        roots = merged(other)
        for name, delta in roots[0].total.items():
            known = [root.total[name] for root in roots]
            assert sum(one.delta or 0 for one in known) == (other.metrics[name].delta or 0), name
            assert delta.b is not None
        places = [place for root in roots for item in root.walk() for place in item.copies]
        for side in "ab":
            summary: ModelSummary = getattr(other, side)
            paths = [getattr(place, side).path for place in places if getattr(place, side) is not None]
            assert sorted(paths) == sorted([*summary.modules, "(outside)"]), "each module is in one place"


def test_boxes_are_as_wide_as_the_part_of_the_second_and_coloured_by_the_change(page: str) -> None:
    def boxes(element: Element) -> list[tuple[str | None, ...]]:
        (drawing,) = element.all("svg", "icicle")
        return [
            (link.attributes.get("class"), box.attributes["width"], box.all("title")[0].text)
            for link in drawing.all("a")
            for box in link.all("svg")
        ]

    params = parse(page).all("div", "m0")[0]
    # tokens 320, twelve of 16 + 180 + 168 = 364, head 360, norm 16: 5,064 in all, before 4,664
    after = boxes(params.all("div", "plain")[0])
    assert after[:4] == [
        ("up1", "100.0%", "Residual: 4,664 → 5,064, +8.6 %"),
        (None, "6.319%", "tokens Embedding: 320 → 320, ="),
        ("up1", "86.256%", "h ModuleList: 3,984 → 4,368, +9.6 %"),
        ("up2", "86.256%", "h.0-11 Block: 3,552 → 4,368, +23.0 %"),
    ]
    assert ("new", "0.316%", "norm LayerNorm: 0 → 16, new") in after
    assert not [box for box in after if box[0] == "gone"]
    # with the 432 that were removed, of 5,496
    assert ("gone", "7.86%", "h.12 Block: 432 → 0, removed") in boxes(params.all("div", "union")[0])


def test_two_runs_that_have_names_are_named_by_the_title(comparison: Comparison) -> None:
    """Of more than two the names are in a list."""
    named = Comparison((comparison.a, comparison.b), ("base.json", "this run"))
    runs = Comparison((comparison.a, comparison.b, comparison.a), ("a.json", "b.json", "c.json"))
    for one, title in {
        comparison: "Residual",
        named: "Residual: base.json → this run",
        runs: "Residual, 3 runs",
    }.items():
        page = parse(one.to_html())
        assert [page.all(tag)[0].text for tag in ("title", "h1")] == [f"{title} · summarycb", title]


def test_conditions_come_first_and_what_they_change_is_marked() -> None:
    """Twice the batch: the parameters can be compared, and of other figures it is said why they cannot."""
    page = parse(compare(residual(), step(Residual(), torch.arange(20).reshape(4, 5))).to_html())
    (differs,) = page.all("section", "differs")
    assert differs.all("dd")[0].text == (
        "[2, 5] → [4, 5] · changes forward MACs, backward FLOPs, step FLOPs, saved activations, peak,"
        " whatever the model is"
    )
    tiles = [tile for box in page.all("div", "tiles") for tile in box.all("div", "tile")]
    assert [(tile.all("h2")[0].text, [why.text for why in tile.all("p", "why")]) for tile in tiles] == [
        ("params", []),
        *[
            (f"{name} *", ["* changes with input"])
            for name in ("forward MACs", "backward FLOPs", "step FLOPs", "saved activations", "peak")
        ],
    ]
    checked = [one.attributes["id"] for one in page.all("input") if "checked" in one.attributes]
    assert "m1" in checked, "forward MACs, not the params, which are the same"


def test_of_what_was_frozen_the_tiles_tell() -> None:
    """What the text has in its headline: parameters that are trained no more, and the optimizer's state of them."""
    frozen = Residual()
    frozen.tokens.requires_grad_(False)
    comparison = compare(residual(), step(frozen, IDS))
    tiles = parse(comparison.to_html()).all("div", "tiles")[0].all("div", "tile")
    told = {tile.all("h2")[0].text: (tile.all("strong")[0].text, tile.all("p")[0].text) for tile in tiles}
    assert told["params"] == ("same", "4,664")
    assert told["trainable params"] == ("-6.9 %", "4,664 → 4,344-320")  # 40 x 8 = 320
    # Adam: two floats for each, and one for each of 1 + 13 x 6 + 2 = 81 tensors: 37,312 + 324 = 37,636 B;
    # 320 x 8 + 4 = 2,564 B less
    assert told["optimizer state"] == ("-6.8 %", "36.75 KiB → 34.25 KiB-2.504 KiB")
    assert [heading.lower() for heading in told] == [heading.lower() for heading, _ in comparison.view().headline]


def test_of_several_runs_the_rows_that_differ_and_each_pair() -> None:
    runs = compare(residual(), wider(), step(Residual(11), IDS))
    page = parse(runs.to_html())
    table = page.all("section")[0].all("tbody")[0]
    told = {line.all("td")[0].text: [cell.text for cell in line.all("td")[1:]] for line in table.all("tr")}
    assert told["params"] == ["", "4,664", "5,064", "4,368"]  # 4,664 - 296
    assert told["h.0-11.up ×12"] == ["out_features", "16", "20", "="]
    assert "tokens" not in told
    assert [note.text for note in page.all("section")[0].all("li")] == list(runs.view().notes), "what = and - are"
    assert [row[3] for key in ("x0-", "x1-") for row in lines(page, key)[-1:]] == ["+400", "-296"]
    ids = [element.attributes["id"] for element in page.walk() if "id" in element.attributes]
    assert len(set(ids)) == len(ids)


def changes(page: Element) -> list[list[str]]:
    """The table of changes: the label, what changed and the delta of the params."""
    (section,) = [one for one in page.all("section") if one.attributes.get("id") == "changes"]
    return [[cell.text for cell in line.all("td")[:3]] for table in section.all("tbody") for line in table.all("tr")]


def unfiltered(page: Element) -> list[str]:
    """The labels of the rows in the tree that are shown though what is the same is hidden."""
    rows = [row for row in page.all("details") if "id" in row.attributes and "same" not in row.classes]
    return [row.all("bdi")[0].text for row in rows]


def test_what_is_asked_for_is_what_the_page_shows(comparison: Comparison, tmp_path: Path) -> None:
    """The table has these rows, in this order; the tree what they are in, open to the depth."""
    page = parse(comparison.to_html(only=["h.*"], sort="params", most=3))
    assert changes(page) == [
        ["~ h.*.up ×12", "out_features=16 → 20", "+432"],
        ["- h.12", "Block (5 modules)", "-432"],
        ["… 2 more rows", "", "+384"],  # act 0, down +384
        ["= sum of the rows", "", "+384"],
    ]
    assert unfiltered(page) == ["Residual", "h", "0-11", "up", "act", "down", "12", "norm", "up", "act", "down"]
    assert page.all("div", "filters")[0].all("label")[0].text == "only h.*"
    (sort,) = page.all("select")
    assert [option.text for option in sort.all("option") if "selected" in option.attributes] == ["Δ params"]

    page = parse(comparison.to_html(only=["added"]))
    assert changes(page) == [["+ norm", "LayerNorm", "+16"], ["= sum of the rows", "", "+16"]]
    assert unfiltered(page) == ["Residual", "norm"]

    page = parse(comparison.to_html(depth=1))
    assert changes(page) == [
        ["~ h", "24 resized, 12 did other work, 1 removed", "+384"],
        ["+ norm", "LayerNorm", "+16"],
        ["= sum of the rows", "", "+400"],
    ]
    assert [row.all("bdi")[0].text for row in page.all("details") if "open" in row.attributes] == ["Residual"]

    page = parse(comparison.to_html(only=["added", "h.*"]))  # both: nothing within h is new
    assert changes(page) == []
    assert page.all("section")[0].all("p")[1].text == "Of what was asked for, nothing changed."
    a, b = (comparison.a.save(tmp_path / "a.json"), comparison.b.save(tmp_path / "b.json"))
    out = tmp_path / "page.html"
    assert main(["compare", str(a), str(b), "--only", "added", "--sort", "params", "--depth", "2", "-o", str(out)]) == 0
    told = compare(a, b).to_html(only=["added"], sort="params", depth=2)
    assert out.read_text(encoding="utf-8") == f"{told}\n"


def test_text_and_markdown_take_what_the_page_takes(comparison: Comparison) -> None:
    asked: dict[str, Any] = {"only": ["resized", "added"], "sort": "buffers", "depth": 1, "most": 1}
    view = comparison.view(Shown(**asked))
    assert [(row.label, row.cells[1]) for row in view.rows] == [
        ("… 2 more rows", "+832"),  # up +432, down +384, norm +16
        ("= sum of the rows", "+832"),
    ]
    assert comparison.to_text(**asked, width=80) == to_text(view, width=80)
    assert comparison.to_markdown(**asked) == to_markdown(view)
    for make in (comparison.to_text, comparison.to_markdown, comparison.to_html):
        with pytest.raises(SummaryError, match="sort must be None or a figure, not 'size'"):
            make(sort="size")


def test_a_notebook_shows_what_the_text_says_without_a_script(comparison: Comparison) -> None:
    runs = Comparison((comparison.a, comparison.b, comparison.a), ("1", "2", "3"))
    for one in (comparison, runs):
        fragment, told = parse(one._repr_html_()), one.view()
        (root,) = [child for child in fragment.children if isinstance(child, Element)]
        assert root.classes == ["summarycb"]
        assert [cell.text for cell in fragment.all("tr")[1].all("td")][1:] == list(told.rows[0].cells)
        assert len(fragment.all("tr")) == 1 + len(told.rows)
        assert [note.text for note in fragment.all("div", "note")] == list(told.notes)
        assert not fragment.all("script")
        assert not [e for e in fragment.walk() if "id" in e.attributes]
        (style,) = fragment.all("style")
        selectors = re.findall(r"([^{}]+)\{", style.text)
        assert all(selector.strip().startswith(".summarycb") for selector in selectors), "no other cell is styled"


def test_the_summaries_are_read_back(comparison: Comparison, tmp_path: Path) -> None:
    path = comparison.save(tmp_path / "page.html")
    assert summarycb.load(f"{path}#1") == comparison.a
    assert summarycb.load(f"{path}#2") == comparison.b
    with pytest.raises(SummaryError, match=re.escape(f"{path}: it holds 2 summaries; add #1 to #2 to its name")):
        summarycb.load(path)
    with pytest.raises(SummaryError, match="it holds 2 summaries, none with the number 3"):
        summarycb.load(f"{path}#3")


def test_it_is_saved_as_what_the_name_says(comparison: Comparison, tmp_path: Path) -> None:
    for suffix, text in {
        ".txt": comparison.to_text(),
        ".md": comparison.to_markdown(),
        ".json": comparison.to_json(),
        ".html": comparison.to_html(),
    }.items():
        assert comparison.save(tmp_path / f"c{suffix}").read_text(encoding="utf-8").rstrip("\n") == text.rstrip("\n")
    with pytest.raises(SummaryError, match=r"must end in \.txt, \.md, \.html, \.json"):
        comparison.save(tmp_path / "c.csv")


def test_the_policy_allows_the_one_style_and_the_one_script(page: str) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src &#39;sha256-{digest}&#39;" in policy
    assert "default-src &#39;none&#39;" in policy


class Many(nn.Module):
    """``blocks`` of three modules, of which each third is wider by ``more``, so that nothing repeats."""

    def __init__(self, blocks: int, more: int) -> None:
        super().__init__()
        widths = [4 + i + more * (i % 3 == 0) for i in range(blocks)]
        self.h = nn.ModuleList([nn.Sequential(nn.Linear(2, w), nn.Linear(w, 2)) for w in widths])


def test_what_is_beyond_the_bound_is_said_to_be_left_out() -> None:
    """3,002 modules: 334 of the 1,000 blocks changed; what did not is one row for each block, without what is in it."""
    a, b = (summarycb.summarize(Many(1000, more)) for more in (0, 1))
    page = parse(compare(a, b).to_html())
    # the root, h, 1,000 blocks, two in each of the 334, (outside)
    assert len(lines(page)) == 1 + 1 + 1000 + 2 * 334 + 1 + 1
    notes = [note.text for note in page.all("ul", "notes")[0].all("li")]
    assert notes[0] == "1,332 rows are left out: what did not change is one row with all in it"


def test_a_pages_size_is_that_of_what_differs() -> None:
    """A GPT-2 of 12 blocks against 13 wider ones."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def gpt2(layers: int, inner: int) -> ModelSummary:
        with torch.device("meta"):
            model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_inner=inner))
        return summarycb.summarize(model, (torch.zeros(2, 32, dtype=torch.long, device="meta"),))

    assert len(compare(gpt2(12, 3072), gpt2(13, 4608)).to_html()) <= 300_000


@needs_chromium
def test_the_tree_opens_and_shows_what_changed(browser: Browser, page: str) -> None:
    browser.open(page)
    start = ["Residual", "h", "0-11", "up", "act", "down", "12", "norm"]
    assert browser.shown() == start
    browser.find("#r8 > .row").click()
    assert browser.shown() == [*start[:7], "norm", "up", "act", "down", "norm"]
    browser.find("#changed").click()
    assert {"tokens", "head", "(outside)"} <= set(browser.shown())


@needs_chromium
def test_the_search_finds_what_did_not_change_too(browser: Browser, page: str) -> None:
    browser.open(page)
    search = browser.find("#search")
    search.send_keys("tokens")
    assert browser.shown() == ["Residual", "tokens"]
    search.clear()
    search.send_keys("out_features")
    assert browser.shown() == ["Residual", "h", "0-11", "up"]
    search.send_keys(Keys.ESCAPE)
    assert browser.shown() == ["Residual", "h", "0-11", "up", "act", "down", "12", "norm"]


@needs_chromium
def test_kinds_filter_and_deltas_sort(browser: Browser, page: str) -> None:
    browser.open(page)
    browser.find("label[for=kind-added]").click()
    assert browser.shown() == ["Residual", "norm"]
    browser.find("label[for=kind-all]").click()
    browser.find("#sort option[value='0']").click()
    # of params: h 384 before norm 16, and in a block up 432 before down 384
    assert browser.shown() == ["Residual", "h", "0-11", "up", "down", "act", "12", "norm"]
    assert browser.run("return document.querySelector('.tree').lastElementChild.className") == "row total"


@needs_chromium
def test_the_tree_begins_in_the_order_that_is_asked_for(browser: Browser, comparison: Comparison) -> None:
    browser.open(comparison.to_html(sort="params"))
    assert browser.shown() == ["Residual", "h", "0-11", "up", "down", "act", "12", "norm"]
    browser.find("#sort option[value='']").click()
    assert browser.shown() == ["Residual", "h", "0-11", "up", "act", "down", "12", "norm"]
    browser.open(comparison.to_html(only=["added"]))
    assert browser.shown() == ["Residual", "norm"]
    browser.find("#changed").click()
    assert "tokens" in browser.shown()


@needs_chromium
def test_a_tree_in_which_nothing_changed_is_shown(browser: Browser, comparison: Comparison) -> None:
    browser.open(compare(comparison.a, comparison.a).to_html())
    assert browser.shown() == ["Residual", "(outside)"]
    browser.find("#r0 > .row").click()
    assert "tokens" in browser.shown()


@needs_chromium
def test_what_was_removed_is_drawn_when_asked_for(browser: Browser, page: str) -> None:
    browser.open(page)
    gone = "return [...document.querySelectorAll('.icicle .gone')].filter(one => one.checkVisibility()).length"
    assert browser.run(gone) == 0
    browser.find("#removed").click()
    assert browser.run(gone) > 0
    browser.find('.m0 .union a[href="#r9"]').click()
    assert browser.find("#r9.on > .row bdi").text == "norm", "a box without room for a name"


@needs_chromium
def test_a_box_selects_its_row(browser: Browser, page: str) -> None:
    browser.open(page)
    browser.find('.m0 .plain a[href="#r5"]').click()
    assert browser.find(".on > .row bdi").text == "up"
    assert browser.find("#panel h3").text == "up Linear"
    assert "1,728 → 2,160" in browser.find("#panel").text  # 12 x 144, 12 x 180
    browser.find("label[for=m1]").click()
    assert browser.find(".m1 .plain .icicle").is_displayed()


@needs_chromium
def test_each_pair_of_several_runs_has_a_tree_of_its_own(browser: Browser) -> None:
    browser.open(compare(residual(), wider(), step(Residual(11), IDS)).to_html())
    browser.find("label[for=p1]").click()
    assert browser.shown()[:2] == ["Residual", "h"]
    assert not browser.find("#x0-tree").is_displayed()
    browser.find("#x1-search").send_keys("tokens")
    assert browser.shown() == ["Residual", "tokens"]


@needs_chromium
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_of_a_comparison_are_drawn(browser: Browser, page: str, theme: str) -> None:
    browser.emulate("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    browser.open(page)
    colours = browser.colours()
    ground = colours.most_common(1)[0][0]
    assert max(ground) < 64 if theme == "dark" else min(ground) > 192
    assert len(colours) > 100


class AClassWhoseNameIsLongerThanAPhoneIsWideInLargeLetters(Residual):
    """No place to break it."""


@pytest.fixture(scope="module")
def five(comparison: Comparison) -> Comparison:
    long = step(AClassWhoseNameIsLongerThanAPhoneIsWideInLargeLetters(), IDS)
    others = [step(Residual(blocks), IDS) for blocks in (11, 13, 14)]
    return Comparison((long, comparison.b, *others), tuple([f"tensorboard:runs/sweep/{n}" for n in range(5)]))


@needs_chromium
def test_a_comparison_needs_no_sideways_scrolling(browser: Browser, page: str, five: Comparison) -> None:
    browser.emulate("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1, mobile=True)
    for text in (page, five.against[0].to_html(), five.to_html()):
        browser.open(text)
        assert browser.run("return document.documentElement.scrollWidth") <= 360
    heights = browser.run("return [...document.querySelectorAll('#runs tr')].map(row => row.offsetHeight)")
    assert max(heights) < 5 * 24, "words are not broken into letters"


@needs_chromium
def test_what_changed_and_by_how_much_is_not_cut(browser: Browser, page: str) -> None:
    inner = [step(nn.Sequential(nn.Linear(8, width), nn.Linear(width, 8)), torch.ones(2, 8)) for width in (4, 130)]
    batch = step(Residual(), torch.arange(20).reshape(4, 5))
    cut = (
        "return [...document.querySelectorAll('.tree .row > *')].filter(cell => cell.scrollWidth > cell.clientWidth"
        " || cell.matches('.what') && cell.scrollHeight > cell.clientHeight + 1).map(cell => cell.textContent)"
    )
    for width in (400, 1280):
        browser.emulate(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
        )
        browser.open(compare(*inner).to_html())
        assert "+3,150.0 %" in browser.find("#r1 > .row").text  # 8 x 4 + 4 = 36 → 8 x 130 + 130 = 1,170
        assert browser.run(cut) == []
    browser.open(compare(residual(), batch).to_html())
    assert "output [2, 5, 40] → [4, 5, 40]" in browser.find(".tree").text.replace("\n", " ")
    assert browser.run(cut) == []
    browser.emulate("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=False)
    browser.open(page)
    lines_of_words = (
        "const text = document.querySelector('.sum td').firstChild, range = new Range();"
        "return [...text.data.matchAll(/\\S+/g)].map(({ 0: word, index }) => {"
        " range.setStart(text, index); range.setEnd(text, index + word.length);"
        " return [word, range.getClientRects().length]; })"
    )
    assert browser.run(lines_of_words) == [["=", 1], ["sum", 1], ["of", 1], ["the", 1], ["rows", 1]]


class Deep(nn.Module):
    """Eight modules, each in the one before, around a Linear with so many outputs."""

    def __init__(self, outputs: int, levels: int = 8) -> None:
        super().__init__()
        self.a_module_with_a_long_name = Deep(outputs, levels - 1) if levels > 1 else nn.Linear(4, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a_module_with_a_long_name(x)


@needs_chromium
def test_five_runs_and_a_tree_with_long_names_fit_a_small_screen(browser: Browser, five: Comparison) -> None:
    browser.emulate("Emulation.setDeviceMetricsOverride", width=1280, height=800, deviceScaleFactor=1, mobile=False)
    wider = "return [...document.querySelectorAll(arguments[0])].map(one => one.scrollWidth - one.clientWidth)"
    deep = compare(*[step(Deep(outputs), torch.ones(1000, 4)) for outputs in (1000, 2000)])
    for text in (deep.to_html(), five.to_html()):
        browser.open(text)
        for inner in ("#runs .scroll", ".pair .scroll", ".tree"):
            assert set(browser.run(wider, inner)) <= {0}, inner


@needs_chromium
def test_a_comparison_is_read_without_a_script(browser: Browser, page: str) -> None:
    browser.emulate("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(page)
    browser.find("#r8 > .row").click()
    assert browser.shown()[6:11] == ["12", "norm", "up", "act", "down"]
    browser.find("#changed").click()
    assert "tokens" in browser.shown()
    browser.find("label[for=kind-added]").click()
    assert browser.shown() == ["Residual", "norm"]


@needs_chromium
def test_names_in_a_comparison_are_inert(browser: Browser) -> None:
    """A module, its type and settings, and the name of a run that are HTML; an alert would fail later commands."""
    evil = step(type(EVIL, (nn.Sequential,), {})(nn.Linear(3, 3)), torch.ones(2, 3))
    runs = Comparison((evil, hostile(), evil), (EVIL, EVIL, EVIL))
    for page in (runs, runs.against[0]):
        browser.open(page.to_html())
        for button in browser.driver.find_elements("css selector", "[id$=open]"):
            browser.run("arguments[0].click()", button)
        assert browser.run("return document.querySelectorAll('img').length") == 0
        assert browser.run("return document.scripts.length") == len(page.summaries) + 1
        assert EVIL in browser.find("main").text
