"""The page and the notebook's fragment, read as a browser's parser does; tests/test_html_browser.py opens them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import summarycb
from summarycb import SummaryError, serialize
from summarycb.dataflow import Dataflow, FlowCall, FlowEdge, FlowNode
from summarycb.embed import embed, extract
from summarycb.graph import told
from summarycb.step import Environment, Memory
from summarycb.tree import ModelSummary, ModuleSummary, Work
from tests.literal import HEAD, ROOT, SUMMARY
from tests.pages import EVIL, Element, hostile, parse, residual


def rows(page: Element) -> list[tuple[str, ...]]:
    """The depth of each row of the tree, and its cells as they are read."""
    found = []
    for line in page.all("summary", "row"):
        level, above = 0, line.parent
        while above is not None:
            level += above.tag == "details"
            above = above.parent
        found.append((str(level - 1), *[cell.text for cell in line.children if isinstance(cell, Element)]))
    return found


def test_the_tree_has_every_row_with_its_figures_and_its_part_of_each_metric() -> None:
    page = parse(SUMMARY.to_html())
    # params of 20; forward MACs of 72 + 6 = 78; backward of 72 + 12 = 84; saved activations of 72 + 12 = 84
    assert rows(page) == [
        ("0", "Net", "[2, 3]", "20", "72", "72 B", "100.0", "92.3", "85.7", "85.7"),
        ("1", "fc Linear", "[2, 3]", "15", "48", "64 B", "75.0", "61.5", "57.1", "76.2"),
        ("1", "head Head", "{logits: [2, 3], states: ([], Cache)}", "5", "24", "8 B", "25.0", "30.8", "28.6", "9.5"),
        ("1", "again Linear = fc", "", "0", "0", "0 B", "0.0", "0.0", "0.0", "0.0"),
        ("0", "(outside) loss, etc.", "", "0", "6", "12 B", "0.0", "7.7", "14.3", "14.3"),
    ]
    titles = [title.text for title in page.all("div", "titles")[0].all("span")]
    assert titles[:5] == ["module", "output", "params", "fwd MACs", "saved act."]
    assert titles[5:] == ["params %", "fwd MACs %", "bwd FLOPs %", "saved act. %"]


def test_what_is_said_of_a_module() -> None:
    page = parse(SUMMARY.to_html())
    fc, head = [next(e for e in page.all("details") if e.attributes.get("id") == f"r{i}") for i in (1, 2)]

    def facts(row: Element) -> list[str]:
        (told,) = row.all("dl")
        return [element.text for element in told.children if isinstance(element, Element)]

    assert facts(fc) == [
        *("settings", "in_features=4, out_features=3, bias=True"),
        *("called 2 times", "[2, 4] → [2, 3]"),
        *("state", "training · float32 on cpu"),
        *("elements", "15 params"),
        *("compute", "48 forward MACs · 96 backward FLOPs"),
        # 15 elements of 4 bytes, a gradient of the same size, two of Adam's for each
        *("memory", "60 B weights · 60 B gradients · 120 B optimizer state · 64 B saved activations"),
    ]
    assert facts(head) == [
        *("called", "{0: [2, 3], mask: None} → {logits: [2, 3], states: ([], Cache)}"),
        *("state", "eval mode · float32 on cpu · frozen"),
        *("elements", "5 params · 7 in buffers"),
        *("compute", "24 forward MACs · 48 backward FLOPs · 48 recomputed FLOPs"),
        "memory",
        "20 B weights · 20 B gradients · 40 B optimizer state · 28 B buffers · 8 B saved activations"
        " · 16 B weight copies",
        *("note", "head.weight is fc.weight, counted there"),
    ]


def test_every_parameter_is_listed() -> None:
    table = parse(SUMMARY.to_html()).all("tbody")[0]
    assert [[cell.text for cell in line.all("td")] for line in table.all("tr")] == [
        ["fc.weight", "[3, 4]", "12", "float32", "48 B", ""],
        ["fc.bias", "[3]", "3", "float32", "12 B", ""],
        ["head.weight", "[3, 4]", "12", "float32", "48 B", "= fc.weight"],
        ["head.scale", "[5]", "5", "float32", "20 B", "frozen"],
    ]


def test_boxes_are_as_wide_as_their_part_of_the_metric() -> None:
    page = parse(SUMMARY.to_html())
    macs = page.all("svg", "icicle")[1]
    boxes = [
        (link.attributes["href"], *map(box.attributes.get, ("x", "y", "width")), box.all("title")[0].text)
        for link in macs.all("a")
        for box in link.all("svg")
    ]
    # of 78: Net 72, in it fc 48 and head 24, and beside it 6 outside; "again" has none
    assert boxes == [
        ("#r0", "0.0%", "0", "92.308%", "Net: 72, 92.3 %"),
        ("#r1", "0.0%", "26", "61.538%", "fc Linear: 48, 61.5 %"),
        ("#r2", "61.538%", "26", "30.769%", "head Head: 24, 30.8 %"),
        ("#r4", "92.308%", "0", "7.692%", "(outside) loss, etc.: 6, 7.7 %"),
    ]


def test_what_is_unknown_is_drawn_as_unknown() -> None:
    """A module whose MACs are unknown makes the sums above it unknown; what is known of it still has its box."""
    unknown = replace(HEAD.call_groups[0], own=replace(HEAD.call_groups[0].own, forward_macs=None))  # type: ignore[index]
    head = replace(HEAD, call_groups=(unknown,))
    page = parse(replace(SUMMARY, root=replace(ROOT, children=(ROOT.children[0], head))).to_html())
    assert [row[4] for row in rows(page)] == ["?", "48", "?", "6"]
    macs = page.all("div", "m1")[0]
    # fc's 48 and the 6 outside, of 54
    widths = [box.attributes["width"] for box in macs.all("svg") if "width" in box.attributes]
    assert widths == ["88.889%", "88.889%", "11.111%"]
    assert macs.all("p")[0].text == "fwd MACs: some of it is unknown; drawn is what is known, 54."


def test_blocks_that_repeat_are_one_row_one_box_and_one_line_a_parameter() -> None:
    summary = residual()
    page = parse(summary.to_html())
    inner = [("3", "norm LayerNorm"), ("3", "up Linear"), ("3", "act GELU"), ("3", "down Linear")]
    assert [row[:2] for row in rows(page)] == [
        ("0", "Residual"),
        ("1", "tokens Embedding"),
        ("1", "h ModuleList"),
        *[("2", "0-11 ×12 Block"), *inner],
        *[("2", "12 Block"), *inner],
        ("1", "head Linear"),
        ("0", "(outside) loss, etc."),
    ]
    # 8 x 2 of the norm, 8 x 16 + 16 up, 16 x 8 + 8 down, in each of twelve; 24 in place of 16 in the last
    block, last = 16 + 144 + 136, 16 + (8 * 24 + 24) + (24 * 8 + 8)
    total = 40 * 8 + 12 * block + last + 8 * 40 + 40
    assert summary.total_params == total
    params = page.all("svg", "icicle")[0]
    titles = [title.text for title in params.all("title")]
    assert f"h.0-11 Block: {12 * block:,}, {1200 * block / total:.1f} %" in titles
    line = next(line for line in page.all("tr") if line.text.startswith("h.0-11.up.weight"))
    assert [cell.text for cell in line.all("td")] == ["h.0-11.up.weight ×12", "[16, 8]", "128", "float32", "512 B", ""]
    unfolded = parse(summary.to_html(fold=False))
    assert len(rows(unfolded)) == 1 + 1 + 1 + 13 * 5 + 1 + 1
    assert [row[1] for row in rows(unfolded)[3::5]][:12] == [f"{i} Block" for i in range(12)]


def test_without_the_extra_the_edges_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it says what to install; with it there is a drawing for each depth, and no list."""
    summary = residual()
    flow = next(e for e in parse(summary.to_html()).all("section") if e.attributes.get("id") == "dataflow")
    assert len(flow.all("svg", "dataflow")) == 2
    assert not flow.all("ul", "edges")
    monkeypatch.setattr("summarycb.render.graph.find_spec", lambda name: None)
    flow = next(e for e in parse(summary.to_html()).all("section") if e.attributes.get("id") == "dataflow")
    assert not flow.all("svg")
    assert flow.all("code")[0].text == "pip install 'summarycb[report]'"
    edges = [line.text for line in flow.all("li")]
    assert edges[:3] == [
        "input → tokens: [2, 5] int64",
        "tokens → 0-11.norm ×12: [2, 5, 8] float32",
        "0-11.norm ×12 → 0-11.up ×12: [2, 5, 8] float32",
    ]


@pytest.mark.parametrize(("last", "drawn"), [(45, True), (46, False)])
def test_many_edges_between_few_nodes_are_too_large_to_draw(last: int, drawn: bool) -> None:
    """Each operation reads all before it: 44 of them have 990 edges, with the next there are 1,035 of 1,000 at most."""
    operations = [
        FlowNode("op", f"f{n}", 0, inputs=tuple([FlowEdge(m, None) for m in range(n)])) for n in range(1, last)
    ]
    flow = Dataflow((FlowCall(0, None),), (), (FlowNode("input", "x"), *operations))
    assert bool(parse(replace(SUMMARY, dataflow=flow).to_html()).all("svg", "dataflow")) is drawn


def test_what_is_too_large_to_draw_is_said_and_its_first_edges_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra and without it, which would not help. What repeats is looked for once."""
    reads = [{n - 1, 0} if n.bit_count() % 2 else {n - 1} for n in range(1, 1201)]  # nothing is in it twice on end
    operations = [
        FlowNode("op", f"f{n % 7}", 0, inputs=tuple([FlowEdge(m, None) for m in sorted(r)]))
        for n, r in enumerate(reads)
    ]
    flow = Dataflow((FlowCall(0, None),), (), (FlowNode("input", "x"), *operations))
    summary = replace(SUMMARY, dataflow=flow)
    folds: list[None] = []
    monkeypatch.setattr("summarycb.graph.told", lambda *given: folds.append(None) or told(*given))
    for is_installed in (True, False):
        if not is_installed:
            monkeypatch.setattr("summarycb.render.graph.find_spec", lambda name: None)
        folds.clear()
        flow_of = next(e for e in parse(summary.to_html()).all("section") if e.attributes.get("id") == "dataflow")
        assert len(folds) == 1
        # 1,200 operations and the input; each reads the one before, and half of them the input too, but the first once
        assert [line.text for line in flow_of.all("p")][1:] == [
            f"The drawing would have 1,201 nodes and {1200 + 600 - 1:,} edges; "
            "summary.to_svg(depth=1) makes it. The edges:",
            f"… and {1200 + 600 - 1 - 200:,} more.",
        ]
        edges = [line.text for line in flow_of.all("li")]
        assert (len(edges), edges[:3]) == (200, ["x → f0: ?", "x → f1: ?", "f0 → f1: ?"])
        assert not flow_of.all("svg")


def test_memory_through_the_step_is_stacked_to_its_peak() -> None:
    page = parse(SUMMARY.to_html())
    drawing = page.all("svg", "memory")[0]
    assert json.loads(drawing.attributes["data-stretches"] or "") == {
        "phases": ["forward", "backward"],
        "modules": ["head", "fc"],
        "moments": [["340 B", 0, 0], ["512 B", 1, 1]],
    }
    # from the top down, over 1000 units for 512 x 1.06 bytes. First 80 + 28 + 160 + 16 + 32 + 24 = 340, then 512
    top = 512 * 1.06
    heights = {  # of each kind and all that are below it, in both moments
        "temporaries": (340, 512),
        "activations": (340, 480),
        "batch": (316, 396),
        "weight_copies": (284, 364),
        "gradients": (268, 348),
        "optimizer_state": (268, 268),
        "buffers": (108, 108),
        "parameters": (80, 80),
    }
    expected = []
    for before, after in heights.values():
        a, b = 1000 - round(1000 * before / top), 1000 - round(1000 * after / top)
        expected.append(f"M0 1000V{a}h2V1000z" if a == b else f"M0 1000V{a}h1V{b}h1V1000z")
    assert [path.attributes["d"] for path in drawing.all("path")] == expected
    # the second of two: its middle is at three quarters
    assert [line.attributes["x1"] for line in drawing.all("line", "peak")] == ["75.0%"]
    assert [text.text for text in drawing.all("text", "peak-text")] == [
        "peak 512 B· backward · fc"  # two elements, each stripped
    ]


def test_a_structure_has_neither_icicles_of_work_nor_memory() -> None:
    structure = ModelSummary(ModuleSummary("", "", "Net"), Work(), Memory(), Environment("0.1.0"))
    page = parse(structure.to_html())
    assert rows(page)[0][:2] == ("0", "Net")
    assert len(rows(page)) == 1
    assert [e.attributes.get("id") for e in page.all("section")] == [None, "modules", "notes"]


def test_depth_is_how_many_levels_are_open() -> None:
    def opened(depth: int | None) -> list[str | None]:
        page = parse(residual().to_html(depth=depth))
        return [e.attributes["id"] for e in page.all("details") if "open" in e.attributes]

    assert opened(0) == []
    assert opened(2) == ["r0", "r2"]
    assert opened(None) == ["r0", "r2", "r3", "r8"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"depth": -1}, "depth must be None"),
        ({"columns": ["prams"]}, "there is no column 'prams'"),
        ({"metric": "config"}, "there is no metric 'config'; allowed: params, "),
    ],
)
def test_a_wrong_choice_is_said(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(SummaryError, match=said):
        SUMMARY.to_html(**wrong)  # type: ignore[arg-type]


def test_the_policy_allows_the_one_style_and_the_one_script_and_nothing_is_fetched() -> None:
    text = residual().to_html()
    page = parse(text)
    (policy,) = [m.attributes["content"] for m in page.all("meta") if "http-equiv" in m.attributes]
    (style,), scripts = page.all("style"), page.all("script")
    assert [script.attributes.get("id") for script in scripts] == ["summarycb", None]

    def digest(element: Element) -> str:
        (content,) = element.children
        assert isinstance(content, str)
        return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()

    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest(style)}'; script-src 'sha256-{digest(scripts[1])}'; "
        "base-uri 'none'; form-action 'none'"
    )
    for element in page.walk():
        assert "style" not in element.attributes
        assert not [name for name in element.attributes if name.startswith("on")]
        assert element.attributes.get("href", "#").startswith("#")  # type: ignore[union-attr]
        assert not {"src", "srcset", "xlink:href", "data", "action", "poster"} & element.attributes.keys()
    assert not re.search(r"url\(|@import|https?://", text.replace('xmlns="http://www.w3.org/2000/svg"', ""))


@pytest.mark.parametrize("render", [ModelSummary.to_html, ModelSummary._repr_html_], ids=["page", "fragment"])
def test_names_are_text(render: object) -> None:
    summary = hostile()
    text = render(summary)  # type: ignore[operator]
    assert EVIL not in text
    page = parse(text)
    assert not page.all("img")
    assert rows(page)[1][:2] == ("1", f"{EVIL} {EVIL}")


def test_a_page_is_loaded_and_compared_as_its_summary(tmp_path: Path) -> None:
    summary = hostile()
    page = tmp_path / "page.html"
    page.write_text(summary.to_html(), encoding="utf-8")
    assert summarycb.load(page) == summary
    assert summary.to_html() == page.read_text(encoding="utf-8"), "the same page for the same summary"
    assert summarycb.compare(page, summary).differences == ()


def test_a_name_that_utf8_cannot_hold() -> None:
    """A stored summary may have half of a surrogate pair, and controls, in a name."""
    odd = replace(ROOT, type_name="a\udc80\x00\u2028b")
    page = replace(SUMMARY, root=odd).to_html()
    assert rows(parse(page))[0][1] == "a\\udc80 b"
    assert serialize.loads(extract(page, serialize.MAX_BYTES)).root == odd


NO_SUMMARY = "it holds no summary: not a page that summarycb wrote, or only the first bytes of one"
CUT = "the page is cut short: it ends before the summary that a page of summarycb holds"


def test_a_page_that_holds_no_summary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"

    def refused(text: str) -> str:
        page.write_text(text, encoding="utf-8")
        with pytest.raises(SummaryError) as caught:
            summarycb.load(page)
        assert str(caught.value).startswith(f"{page}: ")
        return str(caught.value).removeprefix(f"{page}: ")

    for other in ("<html></html>", "<!doctype html><title>Notes</title><p>about summarycb", "", "{}"):
        assert refused(other) == NO_SUMMARY
    whole = embed(SUMMARY.to_json())
    assert refused(whole.replace("H4sI", "H4sJ")).startswith("the summary in it is damaged: ")
    start = whole.index(">") + 1
    assert refused(whole[: start + 40] + "</script>").startswith("the summary in it is damaged: ")
    bomb = base64.b64encode(gzip.compress(bytes(100_000))).decode()
    assert len(bomb) < 400
    monkeypatch.setattr(serialize, "MAX_BYTES", 50_000)
    assert refused(whole[:start] + bomb + "</script>") == "the summary in it is over the bound of 50,000 bytes"


def test_a_page_that_is_cut_short_says_so(tmp_path: Path) -> None:
    """Wherever it is cut after its title, by which it is known; what is cut only after the summary has all of it, by
    its checksum, and is loaded.
    """
    page = tmp_path / "page.html"
    whole = hostile().to_html().encode()
    start = whole.index(b'<script type="application')
    end = whole.index(b"</script>", start) + len(b"</script>")
    titled = whole.index(b"</title>") + len(b"</title>")
    within_a_character = whole.index("·".encode(), titled) + 1
    for size in (
        *(0, 1, 100, whole.index("·".encode()) + 1, titled - 1),
        *(titled, within_a_character, len(whole) // 3, start, start + 9, start + 90, end - 10, end - 1),
    ):
        page.write_bytes(whole[:size])
        with pytest.raises(SummaryError) as caught:
            summarycb.load(page)
        assert str(caught.value) == f"{page}: {CUT if size >= titled else NO_SUMMARY}"
    for size in (end, end + 1, len(whole) - 1):
        page.write_bytes(whole[:size])
        assert summarycb.load(page) == hostile()


def test_a_page_of_gpt2_is_at_most_150_kilobytes() -> None:
    """Twelve layers at their real size, and all of a step: its dataflow, and its memory forward and backward."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(loss_type="ForCausalLM")).train()
        ids = torch.zeros(2, 256, dtype=torch.int64)
    with summarycb.observe(model, torch.optim.AdamW(model.parameters())) as observation:
        model(input_ids=ids, labels=ids)["loss"].backward()
    summary = observation.summary
    assert summary is not None
    assert len(summary.modules) == 164
    assert len(summary.memory.timeline) > 100
    page = summary.to_html()
    assert len(parse(page).all("svg", "dataflow")) == 4
    assert len(page.encode()) <= 130_000  # 150,000 are promised


def test_a_page_of_an_encoder_and_a_decoder_is_at_most_350_kilobytes() -> None:
    """Six layers each, of which the first differs: 104 rows, and five drawings, the deepest of 143 nodes."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=200, decoder_start_token_id=0, **sizes))
    ids = torch.zeros(2, 12, dtype=torch.int64)
    with summarycb.observe(model, torch.optim.AdamW(model.parameters())) as observation:
        model(input_ids=ids, labels=ids)["loss"].backward()
    assert observation.summary is not None
    page = observation.summary.to_html()
    drawings = parse(page).all("svg", "dataflow")
    assert [len(drawing.all("g", "node")) for drawing in drawings][-1] == 143
    assert len(page.encode()) <= 350_000


def test_rows_say_their_paths_once() -> None:
    """What is below a row has its path: only what a path cannot be told by is written out."""
    page = parse(residual().to_html())
    written = {e.attributes["id"]: e.attributes for e in page.all("details") if "id" in e.attributes}
    assert [name for name, said in written.items() if "data-paths" in said] == ["r0", "r14"]
    assert json.loads(written["r14"]["data-paths"] or "") == ["(outside)"]
    assert {name: said["data-names"] for name, said in written.items() if "data-names" in said} == {
        "r3": str([str(number) for number in range(12)]).replace("'", '"')
    }


def test_a_tree_deeper_than_pythons_stack() -> None:
    module = ModuleSummary("x", "x", "Leaf")
    for _ in range(5_000):
        module = ModuleSummary("x", "x", "Layer", children=(module,))
    summary = ModelSummary(module, Work(), Memory(), Environment("0.1.0"))
    assert len(summary.to_html()) > 5_000


def test_a_notebook_shows_the_headline_and_the_tree_without_a_script() -> None:
    summary = residual()
    fragment = parse(summary._repr_html_())
    (root,) = [child for child in fragment.children if isinstance(child, Element)]
    assert root.classes == ["summarycb"]
    assert [row[:2] for row in rows(fragment)] == [row[:2] for row in rows(parse(summary.to_html()))]
    assert not fragment.all("script")
    assert not [e for e in fragment.walk() if "id" in e.attributes]
    (style,) = fragment.all("style")
    selectors = re.findall(r"([^{}]+)\{", style.text)
    assert selectors
    assert all(selector.strip().startswith(".summarycb") for selector in selectors), "no other cell is styled"


def test_a_notebook_is_not_given_more_than_a_thousand_rows() -> None:
    """Whole levels are left out, and that is said."""
    children = tuple(
        ModuleSummary(f"{i}", f"{i}", f"Type{i}", children=(ModuleSummary(f"{i}.x", "x", "Leaf"),)) for i in range(600)
    )
    summary = ModelSummary(ModuleSummary("", "", "Net", children=children), Work(), Memory(), Environment("0.1.0"))
    fragment = parse(summary._repr_html_())
    assert len(rows(fragment)) == 601
    assert fragment.all("div", "note")[-1].text == "Levels from 2 on are left out; to_html() has them."
