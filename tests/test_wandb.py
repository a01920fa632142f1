"""What the real SDK stores of a report in an offline run, and that it is the same run otherwise."""

# ruff: noqa: F811  (a test's arguments are fixtures that are imported)
from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import summarycb
from summarycb.errors import SummaryError
from summarycb.names import unescape
from summarycb.report import Report
from summarycb.serialize import load
from summarycb.testing import _summary
from summarycb.trackers import resolve
from summarycb_wandb import WandbTracker
from summarycb_wandb.contents import architecture, module_key
from tests.browsing import Browser
from tests.chromium import needs_chromium
from tests.pages import residual
from tests.test_trackers import METRICS, SUMMARY, report, wandb, write  # noqa: F401

LINES = {
    "größe%7C%600%60": "Linear(in_features=3, out_features=4) · weight [4, 3] float32",
    "%3Cb%3E层%20%F0%9F%99%82%3C%2Fb%3E": "Odd()",
}


def records(run: Any) -> list[Any]:
    """The records of an offline run's file: LevelDB's log format in blocks of 32 KiB, after a header of 7 bytes."""
    from wandb import teardown
    from wandb.proto.wandb_internal_pb2 import Record

    run.finish()
    teardown()  # ends the process that writes the file: only then is it whole
    (path,) = Path(run.dir).parent.glob("run-*.wandb")
    data, position, message, found = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # a block's last bytes are padding when no record's header fits
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(message))
            message = b""
    return found


def stored(found: list[Any], kind: str) -> dict[str, Any]:
    """What was said of ``config`` or ``summary``, at the start and later, the last of each key."""
    updates = [update for one in found for said in (one.run, one) for update in getattr(said, kind).update]
    return {update.key: json.loads(update.value_json) for update in updates if update.key}


def test_a_run_holds_everything(wandb: Any, report: Report, tmp_path: Path) -> None:
    run = wandb.init(project="p", dir=tmp_path, config={"lr": 0.1})
    write(run)
    assert run.step == 0
    for step in range(3):
        run.log({"loss": step}, step=step)
    found, folder = records(run), Path(run.dir)

    summary, config = stored(found, "summary"), stored(found, "config")
    assert {name: summary[name] for name in METRICS} == METRICS
    assert [r.history.step.num for r in found if r.HasField("history")] == [0, 1, 2]  # the user's step was not moved
    assert config["lr"] == 0.1
    assert config["model_summary"] == {
        "model": "Net",
        "structure": report.identity["model_summary/structure"],
        "device": "cpu",
        "torch": "2.13.0",
        "summarycb": "0.1.0",
        "modules": LINES,
    }
    table = json.loads((folder / summary["model_summary/table"]["path"]).read_bytes())
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == report.table
    assert (folder / summary["model_summary/page"]["path"]).read_text("utf-8") == report.html  # and nothing injected
    assert (folder / "model_summary.json").read_bytes() == report.json.encode()
    assert (folder / "model_summary.txt").read_text("utf-8") == report.text
    assert {"model_summary.json", "model_summary.txt"} <= {f.path for r in found for f in r.files.files}
    (artifact,) = [r.artifact for r in found if r.artifact.type == "model-summary"]
    assert artifact.name == f"model_summary-{run.id}"
    assert json.loads(artifact.metadata) == {**report.identity, **METRICS}
    (content,) = artifact.manifest.contents
    assert content.path == "model_summary.json"
    assert Path(content.local_path).read_bytes() == report.json.encode()


def test_the_config_is_left_as_it_is_when_asked(wandb: Any, tmp_path: Path) -> None:
    run = wandb.init(project="p", dir=tmp_path, config={"lr": 0.1})
    write(WandbTracker(run, config=False))
    found = records(run)
    assert "model_summary" not in stored(found, "config")
    assert "model_summary/total_params" in stored(found, "summary")


@pytest.mark.parametrize(
    ("users", "kept"),
    [
        ({"mine": 1, "modules": {"gone": "Linear()"}, "precision": "int8"}, {"mine": 1}),
        ("bert", None),
    ],
    ids=["a dict", "another value"],
)
def test_the_config_of_the_user_is_kept(wandb: Any, report: Report, tmp_path: Path, users: Any, kept: Any) -> None:
    """Under our key too: of a dict only the keys that are ours are written, and another value stays as it is."""
    run = wandb.init(project="p", dir=tmp_path, config={"model_summary": users})
    write(run)
    assert run.config["model_summary"] == (users if kept is None else {**kept, **architecture(report)})
    expected = run.config["model_summary"]
    assert stored(records(run), "config")["model_summary"] == expected


def of(*layers: nn.Module) -> Report:
    return Report(summarycb.summarize(nn.Sequential(*layers), (torch.rand(2, 4),)))


def flat(facts: dict[str, Any]) -> dict[str, Any]:
    """As W&B's run comparer shows a config: a row for each key of a nested one."""
    return {**{k: v for k, v in facts.items() if k != "modules"}, **facts["modules"]}


def test_what_differs_in_the_config_is_what_differs_in_the_architecture() -> None:
    a, b = (flat(architecture(of(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 2)))) for n in (3, 5))
    assert a.keys() == b.keys()
    assert {key for key in a if a[key] != b[key]} == {"structure", "0", "2"}
    assert (a["0"], b["0"]) == (
        "Linear(in_features=4, out_features=3, bias=True) · weight [3, 4], bias [3] float32",
        "Linear(in_features=4, out_features=5, bias=True) · weight [5, 4], bias [5] float32",
    )


def test_the_name_of_a_module_makes_a_key_that_wandb_finds() -> None:
    """W&B's page has no key with a dot in it, nor an empty one; each key is told apart and given back."""
    paths = [
        *[
            "h.0.attn",
            "h/0/attn",
            "h%2F0.attn",
            "h_0_attn",
            "(root)",
            "größe.层",
            "🙂",
            "[a]//(b)",
            "-x",
            " ",
            "\ud800",
        ],
        *["a b\n", "é", "e\u0301", "x" * 250],
    ]
    keys = {path: module_key(path) for path in paths}
    assert keys["h.0.attn"] == "h/0/attn"
    assert {unescape(key.replace("/", ".")): key for key in keys.values()} == keys
    assert module_key("") == "(root)"
    long = [module_key(f"{'層' * 5_000}.{end}") for end in "ab"]
    assert [len(key) for key in long] == [250, 250]
    assert len({*keys.values(), *long, "(root)"}) == len(paths) + 3
    assert not [key for key in (*keys.values(), *long) if "." in key]


def test_the_config_is_bounded_and_says_what_it_leaves_out() -> None:
    """1,203 modules: the root has no line, 1,000 have one, and 202 are left out."""
    facts: Any = architecture(Report(_summary("first", modules=1_203)))
    assert list(facts["modules"])[:2] == ["first", "layer2"]
    assert len(facts["modules"]) == 1_000
    assert facts["modules_left_out"] == "202 more, which are in model_summary.json"
    assert len(json.dumps(architecture(Report(_summary("x" * 9_000, modules=1_001))))) < 100_000
    assert "modules_left_out" not in architecture(Report(_summary("first", modules=1_001)))


def test_a_second_report_of_another_architecture_raises_nothing(wandb: Any, tmp_path: Path) -> None:
    """As when a training is resumed, or fitted again; the summary has one table and one page, the newest."""
    run = wandb.init(project="p", dir=tmp_path)
    first, second = of(nn.Linear(4, 4), nn.ReLU()), of(nn.Linear(4, 2))
    for one in (first, second, second):
        WandbTracker(run).write(one, step=0)
    found = records(run)
    summary = stored(found, "summary")
    assert stored(found, "config")["model_summary"] == architecture(second)
    assert [key for key in summary if "table" in key or "page" in key] == ["model_summary/page", "model_summary/table"]
    table = json.loads(Path(run.dir, summary["model_summary/table"]["path"]).read_bytes())
    assert len(table["data"]) == 2  # the root and one layer
    assert Path(run.dir, summary["model_summary/page"]["path"]).read_text("utf-8") == second.html
    assert load(f"wandb:{run.dir}") == second.summary


def test_it_is_read_from_any_folder_of_an_offline_run(wandb: Any, tmp_path: Path) -> None:
    with wandb.init(project="p", dir=tmp_path) as run:
        write("wandb")
    offline = Path(run.dir).parent
    for folder in (offline, offline / "files", tmp_path / "wandb", tmp_path / "wandb" / "latest-run"):
        assert load(f"wandb:{folder}") == SUMMARY


def test_a_disabled_run_takes_everything_and_holds_nothing(wandb: Any, tmp_path: Path) -> None:
    with wandb.init(mode="disabled", dir=tmp_path) as disabled:
        write(disabled)
        assert list(Path(disabled.dir).glob("model_summary*")) == []


def train(steps: int, *trackers: object, **options: Any) -> tuple[Any, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    hook = summarycb.watch(model, trackers=trackers, verbose=False, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.rand(1, 2)).sum().backward()
        optimizer.step()
    return hook, list(model.parameters())


def test_a_run_that_was_finished_early(wandb: Any, tmp_path: Path) -> None:
    """Has no file in its folder that W&B does not know of."""
    run = wandb.init(project="p", dir=tmp_path)
    run.finish()
    with pytest.raises(SummaryError, match=f"is finished; .*`summarycb push FILE wandb:<entity>/p/{run.id}`"):
        write(run)
    assert not Path(run.dir, "model_summary.json").exists()


def test_a_run_that_is_finished_while_it_is_written_to(wandb: Any, tmp_path: Path) -> None:
    """As by accelerate's ``end_training`` without a ``flush`` before: it is told as of one that was finished before."""
    run = wandb.init(project="p", dir=tmp_path)

    class Late(Report):
        @property
        def text(self) -> str:  # type: ignore[override]
            run.finish()
            return super().text

    with pytest.raises(SummaryError, match=f"^the run is finished; .*`summarycb push FILE wandb:<entity>/p/{run.id}`"):
        resolve([run])[0].write(Late(SUMMARY), step=0)


def test_a_folder_cannot_be_written(wandb: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before training, of a folder that is there and of one that is not; and by ``push``."""
    for where in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SummaryError, match=f"^'wandb:{where}' can only be read; to write, give the native run"):
            summarycb.watch(nn.Linear(2, 2), trackers=[f"wandb:{where}"])
    stored = SUMMARY.save(tmp_path / "summary.json")
    from summarycb.cli import main

    assert main(["push", str(stored), f"wandb:{tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        f"summarycb: 'wandb:{tmp_path}' can only be read; to write, give the wandb.Run, or "
        "'wandb:<entity>/<project>/<run>' of one that has ended\n"
    )
    with pytest.raises(SummaryError, match="'wandb': no W&B run is active in this process"):
        resolve(["wandb"])


def test_a_key_that_is_cut_has_the_whole_of_it_in_its_line() -> None:
    """The path of each module is found, however long it is, and whatever letters it has."""
    paths = [f"{'層.' * 200}{end}" for end in ("a b", "c")]
    summaries = [_summary(path, modules=2) for path in paths]
    for path, summary in zip(paths, summaries, strict=True):
        modules: Any = architecture(Report(summary))["modules"]
        ((key, line),) = modules.items()
        assert len(key) == 250
        assert unescape(key) is None
        whole, _, rest = line.partition(" · ")
        assert unescape(whole.replace("/", ".")) == path
        assert rest == "Linear(in_features=3, out_features=2) · weight [2, 3] float32"


PLACES = {
    "/tmp/nosuch": False,  # three parts, the first of them empty
    "team/project/run": True,
    "team/project/run-5": True,  # a run's id that the user chose
    "a//b": False,
    "./a/b": False,
    "~/a/b": False,
    "../a/b": False,
    "a/b": False,
    "wandb/offline-run-x/files": False,
    "wandb/latest-run/files": False,
    "my/wandb/offline-run-20260101_000000-abc": False,
    "my/wandb/run-20260101_000000-abc": False,
}


@pytest.mark.parametrize("where", PLACES)
def test_a_path_that_is_not_there_is_no_run_on_the_server(where: str, tmp_path: Path, monkeypatch: Any) -> None:
    """It is told by its form, before anybody is asked: to read it names the folder, and to watch with it raises."""
    monkeypatch.chdir(tmp_path)
    assert WandbTracker(where).writable == PLACES[where]
    if not PLACES[where]:
        with pytest.raises(SummaryError, match=f"^no model_summary.json in the W&B run folder '{where}'"):
            load(f"wandb:{where}")
        with pytest.raises(SummaryError, match=f"^'wandb:{where}' can only be read"):
            summarycb.watch(nn.Linear(2, 2), trackers=[f"wandb:{where}"])


def test_rows_that_are_set_make_the_table_that_rows_that_are_given_make(wandb: Any, tmp_path: Path) -> None:
    """The attribute ``wandb.Table.data``, by which the SDK does not look at each row: should it no longer be the rows
    alone, ``_table`` in ``summarycb_wandb/contents.py`` has to give all of them to ``wandb.Table``.
    """
    run = wandb.init(project="p", dir=tmp_path)
    rows = [["a", 1], ["b", None], ["c", 3], [None, 4]]
    given = wandb.Table(columns=["path", "params"], data=rows)
    made = wandb.Table(columns=["path", "params"], data=[rows[0], rows[1], rows[3]])
    made.data = rows
    assert [row for _, row in made.iterrows()] == rows
    assert made == given  # columns, types and rows
    for name, table in (("given", given), ("made", made)):
        run.summary[name] = table
    files = [next(Path(run.dir).rglob(f"{name}_*.table.json")) for name in ("given", "made")]
    assert json.loads(files[0].read_bytes()) == json.loads(files[1].read_bytes())
    assert json.loads(files[1].read_bytes())["data"] == rows


@pytest.mark.slow
def test_the_table_of_twelve_thousand_modules_has_each(wandb: Any, tmp_path: Path) -> None:
    """W&B's file of it ends after 10,000; its artifact, which W&B's page shows, may have 200,000."""
    large = Report(_summary("first", modules=12_000))
    run = wandb.init(project="p", dir=tmp_path)
    WandbTracker(run).write(large, step=0)
    assert load(f"wandb:{run.dir}") == large.summary
    found = records(run)
    (artifact,) = [r.artifact for r in found if r.artifact.type == "run_table"]
    table = json.loads(Path(artifact.manifest.contents[0].local_path).read_bytes())
    assert [row[0] for row in table["data"]] == [record["path"] for record in large.table]
    types = table["column_types"]["params"]["type_map"]
    assert [kind["wb_type"] for kind in types["path"]["params"]["allowed_types"]] == ["none", "string"]


@needs_chromium
def test_the_page_that_is_stored_works_in_a_sandboxed_frame(wandb: Any, browser: Browser, tmp_path: Path) -> None:
    """W&B shows media of this kind in a frame without an origin of its own; it asks nothing of the network."""
    run = wandb.init(project="p", dir=tmp_path)
    write(run, residual())
    (page,) = Path(run.dir).rglob("*.html")
    frame = (
        f'<iframe sandbox="allow-scripts" style="width:1300px;height:900px" srcdoc="{escape(page.read_text("utf-8"))}">'
    )
    browser.open(f"<!doctype html><meta charset=utf-8>{frame}</iframe>")
    browser.driver.switch_to.frame(0)
    browser.find("#close").click()
    assert browser.shown() == ["Residual", "(outside)"]
    browser.find("#r0 > .row").click()
    assert browser.shown() == ["Residual", "tokens", "h", "head", "(outside)"]
    browser.driver.switch_to.default_content()
