"""What other programs read, whole, of the hand-written summary: CSV, DataFrame, speedscope; and files by suffix."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from jsonschema import Draft202012Validator

from summarycb import SummaryError, load
from summarycb.errors import missing
from summarycb.forms import FORMATS
from summarycb.render.exports import records
from summarycb.step import MAX_INT, Environment, Memory
from summarycb.tree import Amounts, ModelSummary, ModuleSummary, Work
from tests.literal import FC, ROOT, SUMMARY
from tests.pages import residual

OWN = [f"own_{name}" for name in Amounts._fields]
# what the step computed and saved, outside included; sizes are of modules alone
STEP = {
    "own_params": 12 + 3 + 5,
    "own_trainable_params": 12 + 3,
    "own_buffers": 7,
    "own_parameter_bytes": 4 * 20,
    "own_buffer_bytes": 4 * 7,
    "own_local_params": 20,
    "own_local_parameter_bytes": 4 * 20,
    "own_gradients": 4 * 20,
    "own_optimizer_state": 8 * 20,
    "own_forward_macs": 48 + 24 + 6,
    "own_backward_macs": 48 + 24 + 12,
    "own_recompute_macs": 24,
    "own_saved_activations": 64 + 8 + 12,
    "own_weight_copies": 16,
}
STRUCTURE = ModelSummary(replace(ROOT, call_groups=None, children=()), Work(), Memory(), Environment("0.1.0"))

CSV = """\
path,type,depth,calls,training,input,output,dtype,device,\
total_params,total_trainable_params,total_buffers,total_parameter_bytes,total_buffer_bytes,total_local_params,\
total_local_parameter_bytes,total_gradients,total_optimizer_state,total_forward_macs,total_backward_macs,\
total_recompute_macs,total_saved_activations,total_weight_copies,\
own_params,own_trainable_params,own_buffers,own_parameter_bytes,own_buffer_bytes,own_local_params,\
own_local_parameter_bytes,own_gradients,own_optimizer_state,own_forward_macs,own_backward_macs,\
own_recompute_macs,own_saved_activations,own_weight_copies,\
forward_flops,backward_flops,recompute_flops,config,shared_with
,Net,0,1,True,"([2, 4],)","[2, 3]",,,\
20,15,7,80,28,20,80,80,160,72,72,24,72,16,0,0,0,0,0,0,0,0,0,0,0,0,0,0,144,144,48,,
fc,Linear,1,2,True,"([2, 4],)","[2, 3]",float32,cpu,\
15,15,0,60,0,15,60,60,120,48,48,0,64,0,15,15,0,60,0,15,60,60,120,48,48,0,64,0,96,96,0,\
"in_features=4, out_features=3, bias=True",
head,Head,1,1,False,"{0: [2, 3], mask: None}","{logits: [2, 3], states: ([], Cache)}",float32,cpu,\
5,0,7,20,28,5,20,20,40,24,24,24,8,16,5,0,7,20,28,5,20,20,40,24,24,24,8,16,48,48,48,,
again,Linear,1,,,,,,,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,,fc
"""


def test_the_whole_csv() -> None:
    assert SUMMARY.to_csv() == CSV


def test_a_csv_holds_any_name() -> None:
    """Line breaks, quotes and commas come back; an unknown figure is empty, never 0."""
    odd = replace(FC, path='a"b,\nc', name='a"b,\nc', call_groups=None)
    text = replace(SUMMARY, root=replace(ROOT, children=(odd,))).to_csv()
    _, row = csv.DictReader(text.splitlines(keepends=True))
    assert (row["path"], row["total_params"], row["total_forward_macs"], row["calls"]) == ('a"b,\nc', "15", "", "")


NAMES = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "'=1", "a\rb", "a\r\nb", "\r\n", "\t=1", '"', " a ", "网"]


def test_a_csv_gives_every_name_back_to_pandas() -> None:
    """As it is, also where a spreadsheet would take it for a formula."""
    odd = [replace(FC, path=name, name=name, type_name=name, config=name) for name in NAMES]
    text = replace(SUMMARY, root=replace(ROOT, children=tuple(odd))).to_csv()
    read = pandas.read_csv(io.StringIO(text, newline=""), keep_default_na=False)
    for column in ("path", "type", "config"):
        assert list(read[column])[1:] == NAMES


def test_the_figures_that_are_each_modules_own_sum_to_the_steps() -> None:
    rows = records(SUMMARY, outside=True)
    assert [row["path"] for row in rows] == ["", "fc", "head", "again", "(outside)"]
    assert {name: sum(row[name] for row in rows) for name in OWN} == STEP  # type: ignore[misc]
    assert SUMMARY.to_csv(outside=True).startswith(CSV + '(outside),"loss, etc.",,,')
    # nothing ran outside where nothing ran
    assert STRUCTURE.to_csv(outside=True) == STRUCTURE.to_csv()


def test_the_dataframe_holds_the_same_with_real_types() -> None:
    frame = SUMMARY.to_dataframe(outside=True)
    rows = records(SUMMARY, outside=True)
    assert list(frame.index) == [row.pop("path") for row in rows]
    assert _rows(frame) == rows
    texts = {"type", "input", "output", "dtype", "device", "config", "shared_with"}
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        name: "string" if name in texts else "boolean" if name == "training" else "Int64" for name in rows[0]
    }
    assert list(SUMMARY.to_dataframe().index) == ["", "fc", "head", "again"]
    assert {name: int(total) for name, total in frame[OWN].sum().items()} == STEP


def _rows(frame: Any) -> list[dict[str, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")  # type: ignore[no-any-return]


def test_a_sum_that_64_bits_do_not_hold_is_exact_in_the_dataframe() -> None:
    huge = replace(FC, call_groups=(replace(FC.call_groups[0], own=Work(MAX_INT, 1, 0, 0, 0)),))  # type: ignore[index]
    frame = replace(SUMMARY, root=replace(ROOT, children=(huge,))).to_dataframe()
    assert frame.loc["fc", "total_forward_macs"] == MAX_INT
    assert frame.loc["fc", "forward_flops"] == 2 * MAX_INT


def test_pandas_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError) as raised:
        SUMMARY.to_dataframe()
    assert str(raised.value) == str(missing("pandas", "pandas"))


# the format as https://github.com/jlfwong/speedscope/wiki/Importing-from-custom-sources describes it
SPEEDSCOPE = {
    "type": "object",
    "required": ["$schema", "shared", "profiles"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"const": "https://www.speedscope.app/file-format-schema.json"},
        "exporter": {"type": "string"},
        "name": {"type": "string"},
        "activeProfileIndex": {"type": "integer", "minimum": 0},
        "shared": {
            "type": "object",
            "required": ["frames"],
            "additionalProperties": False,
            "properties": {
                "frames": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "additionalProperties": False,
                        "properties": {"name": {"type": "string"}, "file": {"type": "string"}},
                    },
                }
            },
        },
        "profiles": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["type", "name", "unit", "startValue", "endValue", "events"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "evented"},
                    "name": {"type": "string"},
                    "unit": {"enum": ["none", "nanoseconds", "microseconds", "milliseconds", "seconds", "bytes"]},
                    "startValue": {"type": "number"},
                    "endValue": {"type": "number"},
                    "events": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["type", "frame", "at"],
                            "additionalProperties": False,
                            "properties": {
                                "type": {"enum": ["O", "C"]},
                                "frame": {"type": "integer", "minimum": 0},
                                "at": {"type": "number"},
                            },
                        },
                    },
                },
            },
        },
    },
}


def boxes(text: str) -> dict[str, list[tuple[int, str, int]]]:
    """Each profile by name: its boxes in order of their beginning, as depth, name and width.

    As speedscope does, it refuses events that are out of order, a box that is closed before one within it, and one
    that is never closed.
    """
    document = json.loads(text)
    Draft202012Validator(SPEEDSCOPE).validate(document)
    names = [frame["name"] for frame in document["shared"]["frames"]]
    found: dict[str, list[tuple[int, str, int]]] = {}
    for profile in document["profiles"]:
        opened: list[tuple[int, int, int]] = []
        drawn: list[tuple[int, str, int]] = found.setdefault(f"{profile['name']} [{profile['unit']}]", [])
        last = profile["startValue"]
        for event in profile["events"]:
            assert last <= event["at"] <= profile["endValue"]
            last = event["at"]
            if event["type"] == "O":
                opened.append((event["frame"], event["at"], len(drawn)))
                drawn.append((len(opened) - 1, names[event["frame"]], -1))
            else:
                frame, begun, place = opened.pop()
                assert frame == event["frame"]
                drawn[place] = (*drawn[place][:2], event["at"] - begun)
        assert opened == []
    return found


def test_a_flame_graph_of_each_figure() -> None:
    """A box is as wide as the module's subtree, and all of them together as the step; a module of 0 has none."""
    assert boxes(SUMMARY.to_speedscope()) == {
        "parameters [none]": [(0, "Net", 20), (1, "fc (Linear)", 15), (1, "head (Head)", 5)],
        "forward MACs [none]": [
            (0, "Net", 72),
            (1, "fc (Linear)", 48),
            (1, "head (Head)", 24),
            (0, "(outside) (loss, etc.)", 6),
        ],
        "backward MACs [none]": [
            (0, "Net", 72),
            (1, "fc (Linear)", 48),
            (1, "head (Head)", 24),
            (0, "(outside) (loss, etc.)", 12),
        ],
        "saved activations [bytes]": [
            (0, "Net", 72),
            (1, "fc (Linear)", 64),
            (1, "head (Head)", 8),
            (0, "(outside) (loss, etc.)", 12),
        ],
    }


def test_a_flame_graph_says_what_it_has_no_width_for() -> None:
    """An unknown figure is said in the profile's name, and a figure that is unknown throughout has no profile."""
    unknown = replace(SUMMARY, root=replace(ROOT, children=(replace(FC, call_groups=None), ROOT.children[1])))
    assert list(boxes(unknown.to_speedscope())) == [
        "parameters [none]",
        "forward MACs, unknown in 1 module [none]",
        "backward MACs, unknown in 1 module [none]",
        "saved activations, unknown in 1 module [bytes]",
    ]
    structure = replace(STRUCTURE, root=replace(STRUCTURE.root, children=(replace(FC, call_groups=None),)))
    assert list(boxes(structure.to_speedscope())) == ["parameters [none]"]


def test_a_flame_graph_of_a_model_without_any_figure() -> None:
    """speedscope refuses a file without a profile."""
    alone = ModelSummary(ModuleSummary("", "", "ReLU"), Work(), Memory(), Environment("0.1.0"))
    assert boxes(alone.to_speedscope()) == {"parameters [none]": []}


def test_exports_of_a_model_of_5000_levels() -> None:
    module = replace(FC, path="m." * 4999 + "m", name="m")
    for level in range(4998, -1, -1):
        module = ModuleSummary("m." * level + "m", "m", "Box", call_groups=(), children=(module,))
    deep = replace(SUMMARY, root=replace(ROOT, children=(module,)))
    (_, root, width), *inner = boxes(deep.to_speedscope())["parameters [none]"]
    assert (root, width, inner[-1]) == ("Net", 15, (5000, "m (Linear)", 15))
    assert len(deep.to_csv().splitlines()) == 5002


def test_save_writes_what_the_suffix_says(tmp_path: Path) -> None:
    """One line break ends each file, and the summary and the page are read back."""
    summary = residual()
    for form, suffix in FORMATS.items():
        text = getattr(summary, f"to_{form}")()
        path = tmp_path / f"net.v1{suffix}"
        assert summary.save(str(path)) == path
        assert path.read_bytes().decode() == text.rstrip("\n") + "\n"
    for read in (".json", ".html"):
        assert load(tmp_path / f"net.v1{read}") == summary
    with pytest.raises(SummaryError, match=r"net\.v1\.speedscope\.json: not a model summary: it has no schema_version"):
        load(tmp_path / "net.v1.speedscope.json")


def test_a_graph_that_is_not_there_leaves_no_file(tmp_path: Path) -> None:
    for suffix in (".svg", ".dot", ".mmd"):
        with pytest.raises(SummaryError, match=r"^the summary has no dataflow"):
            SUMMARY.save(tmp_path / f"net{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_suffix_of_none_of_ours_says_which_there_are(tmp_path: Path) -> None:
    for name in ("net.pkl", "net", "json"):
        with pytest.raises(SummaryError) as raised:
            SUMMARY.save(tmp_path / name)
        assert str(raised.value) == f"cannot save to {name!r}: the file name must end in {', '.join(FORMATS.values())}"
        assert not (tmp_path / name).exists()


def test_half_a_surrogate_pair_in_a_name_comes_back(tmp_path: Path) -> None:
    odd = replace(SUMMARY, root=replace(ROOT, type_name="N\ud800t"))
    assert load(odd.save(tmp_path / "odd.json")) == odd
    assert odd.save(tmp_path / "odd.txt").read_text("utf-8").startswith("N\\ud800t\n")
