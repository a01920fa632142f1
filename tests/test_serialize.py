"""Stored summaries come back equal, match their schema, and anything else is refused with the file and the reason."""

from __future__ import annotations

import json
import os
import pickle
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from summarycb import ModelSummary, SummaryError, load
from summarycb.dataflow import Dataflow, FlowCall, FlowEdge, FlowNode
from summarycb.serialize import MAX_BYTES, SCHEMA_VERSION
from summarycb.specs import BufferSpec, Nested, Opaque, ParameterSpec, TensorSpec
from summarycb.step import KINDS, MAX_INT, Environment, Failure, Holder, Memory, Moment, Note, Rank
from summarycb.tree import WORK, CallGroup, ModuleSummary, Work
from tests.literal import SUMMARY

SCHEMA = jsonschema.Draft202012Validator(json.loads(files("summarycb").joinpath("summary.schema.json").read_text()))

amount = st.none() | st.integers(0, MAX_INT)
text = st.text(max_size=12)
shape = st.lists(st.integers(0, 10**6), max_size=3).map(tuple)
tensor = st.builds(TensorSpec, shape, text, text)
spec = st.recursive(
    st.none() | tensor | st.builds(Opaque, text),
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.builds(Nested, text, st.lists(st.tuples(text, inner), max_size=3).map(tuple))
    ),
    max_leaves=6,
)
work = st.builds(Work, amount, amount, amount, amount, amount)
parameter = st.builds(
    ParameterSpec,
    text,
    st.none() | shape,
    text,
    text,
    st.booleans(),
    amount,
    st.none() | shape,
    st.none() | text,
    amount,
    amount,
)
buffer = st.builds(
    BufferSpec, text, st.none() | shape, text, text, st.booleans(), amount, st.none() | shape, st.none() | text
)
moment = st.builds(
    Moment,
    st.sampled_from(["forward", "backward", "recompute", "optimizer"]),
    st.none() | text,
    *[st.integers(0, MAX_INT)] * len(KINDS),
)
module = st.deferred(
    lambda: st.builds(
        ModuleSummary,
        path=text,
        name=text,
        type_name=text,
        config=text,
        training=st.none() | st.booleans(),
        parameters=st.lists(parameter, max_size=2).map(tuple),
        buffers=st.lists(buffer, max_size=2).map(tuple),
        call_groups=st.none()
        | st.lists(st.builds(CallGroup, st.integers(1, 9), spec, spec, work, work), max_size=2).map(tuple),
        shared_with=st.none() | text,
        children=st.just(()) | st.lists(module, max_size=2).map(tuple),
    )
)
memory = st.builds(
    Memory, *[amount] * 7, st.none() | moment, st.lists(moment, max_size=2).map(tuple), amount, st.booleans()
)
failure = st.none() | st.builds(
    Failure,
    text,
    st.none() | st.sampled_from(["forward", "backward", "recompute", "optimizer"]),
    st.lists(text, max_size=2).map(tuple),
    spec,
    st.none() | text,
    spec,
    st.booleans(),
    st.none() | moment,
    st.lists(st.builds(Holder, text, st.integers(0, MAX_INT)), max_size=2).map(tuple),
)
rank = st.builds(
    Rank,
    st.integers(0, MAX_INT),
    st.none() | text,
    *[amount] * 3,
    memory,
    st.lists(text, max_size=2).map(tuple),
    failure,
)


@st.composite
def dataflows(draw: st.DrawFn) -> Dataflow:
    """Any that refers only to what is there; the first module always is."""
    tensors = draw(st.lists(tensor, max_size=2, unique=True).map(tuple))
    callers = [draw(st.none() | st.integers(0, n - 1) if n else st.none()) for n in range(draw(st.integers(0, 3)))]
    count = draw(st.integers(0, 4))
    edge = (
        st.builds(FlowEdge, st.integers(0, count - 1), st.none() | st.sampled_from(range(len(tensors))))
        if (tensors and count)
        else st.builds(FlowEdge, st.integers(0, count - 1), st.none())
    )
    call = st.sampled_from(range(len(callers))) if callers else st.nothing()
    kinds = ["op", "input", "output"] + ["module"] * bool(callers)
    node = st.builds(
        FlowNode,
        st.sampled_from(kinds),
        text,
        call if callers else st.none(),
        st.none(),
        st.none(),
        st.lists(edge, max_size=2).map(tuple),
    ) | st.builds(FlowNode, st.just("parameter"), text, st.none(), st.just(0))
    nodes = tuple(draw(st.lists(node, min_size=count, max_size=count)))
    return Dataflow(tuple([FlowCall(0, caller) for caller in callers]), tensors, nodes)


summary = st.builds(
    ModelSummary,
    root=module,
    outside=work,
    memory=memory,
    environment=st.builds(
        Environment,
        text,
        text,
        st.none() | st.booleans(),
        *[st.none() | text] * 5,
        st.none() | st.integers(1, 9),
        amount,
    ),
    failure=failure,
    ranks=st.lists(rank, max_size=2).map(tuple),
    optimizer_macs=amount,
    unplaced_backward_macs=amount,
    observed=st.sampled_from(["structure", "forward", "step"]),
    notes=st.lists(st.builds(Note, text, text, st.none() | text), max_size=2).map(tuple),
    incomplete=st.lists(text, max_size=2).map(tuple),
    dataflow=st.none() | dataflows(),
)


@given(summary)
def test_any_summary_comes_back_equal_and_matches_the_schema(original: ModelSummary) -> None:
    written = original.to_json()
    assert ModelSummary.from_json(written) == original
    SCHEMA.validate(json.loads(written))


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON document."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [(node, key) for key in keys] + [place for key in keys for place in places(node[key])]


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_what_the_schema_forbids_is_refused(data: st.DataObject) -> None:
    """Any one value of a stored summary is replaced by any other: what the schema does not allow, ``loads`` refuses."""
    mutated = json.loads(SUMMARY.to_json())
    container, key = data.draw(st.sampled_from(places(mutated)))
    container[key] = data.draw(
        st.none()
        | st.booleans()
        | st.sampled_from([-1, 0, 1, MAX_INT, MAX_INT + 1, -(2**63), 10**400, 1.5, "", "forward", "warmup", [], {}])
        | st.lists(st.sampled_from([-1, 3, MAX_INT + 1, None, "x", []]), max_size=2)
    )
    try:
        ModelSummary.from_json(json.dumps(mutated)).to_text()
    except SummaryError:
        return
    assert SCHEMA.is_valid(mutated)


def test_the_order_of_modules_and_fields_comes_back() -> None:
    assert ModelSummary.from_json(SUMMARY.to_json()).to_json() == SUMMARY.to_json()


def test_save_and_load(tmp_path: Path) -> None:
    assert load(SUMMARY.save(tmp_path / "net.json")) == SUMMARY
    assert load(str(tmp_path / "net.json")) == SUMMARY
    with pytest.raises(SummaryError, match=r"cannot save to 'net\.pkl': the file name must end in \.json"):
        SUMMARY.save(tmp_path / "net.pkl")


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def document(**changes: Any) -> bytes:
    return json.dumps({**json.loads(SUMMARY.to_json()), **changes}).encode()


def with_module(**changes: Any) -> bytes:
    modules = json.loads(SUMMARY.to_json())["modules"]
    modules[1] = {**modules[1], **changes}
    return document(modules=modules)


MEMORY = json.loads(SUMMARY.to_json())["memory"]


def group(**changes: Any) -> dict[str, Any]:
    work = dict.fromkeys(WORK)
    return {"calls": 1, "inputs": None, "outputs": None, "own": work, "total": work, **changes}


def with_shape(shape: list[int]) -> bytes:
    return with_module(call_groups=[group(calls=1, inputs=[{"shape": shape, "dtype": "float32", "device": "cpu"}])])


BAD = {
    "empty": (b"", "not a model summary in JSON: it is empty"),
    "truncated": (SUMMARY.to_json().encode()[:500], "not a model summary in JSON: "),
    "newer schema": (
        document(schema_version=SCHEMA_VERSION + 1),
        f"schema_version {SCHEMA_VERSION + 1} cannot be read; this version of summarycb reads {SCHEMA_VERSION}",
    ),
    "100,000-deep": (deep(100_000), "nested too deeply"),
    "deep shapes": (
        SUMMARY.to_json()
        .replace('"inputs":[', '"inputs":' + "[" * 800 + "[", 1)
        .replace('],"outputs"', "]" * 801 + ',"outputs"', 1)
        .encode(),
        "nested too deeply",
    ),
    "a pickle": (pickle.dumps({"a": 1}), "never a pickle"),
    "other JSON": (b'{"a": 1}', "it has no schema_version"),
    "a list": (b"[1]", "it has no schema_version"),
    "NaN": (document(optimizer_macs=float("nan")), "NaN is not a number in JSON"),
    "a float": (document(optimizer_macs=1.5), r"summary\.optimizer_macs must be int, not float"),
    "a bool for a number": (document(optimizer_macs=True), r"summary\.optimizer_macs must be int, not bool"),
    "a bool for the version": (document(schema_version=True), "schema_version True cannot be read"),
    "a key twice": (b'{"schema_version": 1, "schema_version": 1}', "the key 'schema_version' is twice in one object"),
    "a negative amount": (document(optimizer_macs=-1), rf"summary\.optimizer_macs must be from 0 to {MAX_INT}, not -1"),
    "an amount over int64": (document(optimizer_macs=2**63), rf"must be from 0 to {MAX_INT}, not {2**63}"),
    "an amount of a thousand digits": (document(optimizer_macs=10**999), "not a number of 3319 bits"),
    "no calls in a signature": (
        with_module(call_groups=[group(calls=0)]),
        r"modules\[1\]\.call_groups\[0\]\.calls must be from 1 to ",
    ),
    "an unknown kind of step": (
        document(observed="two steps"),
        r"summary\.observed must be one of structure, forward, step, not 'two steps'",
    ),
    "an unknown phase": (
        document(memory={**MEMORY, "peak_at": {**MEMORY["peak_at"], "phase": "warmup"}}),
        r"summary\.memory\.peak_at\.phase must be one of forward, backward, recompute, optimizer, not 'warmup'",
    ),
    "no process": (
        document(environment={**json.loads(SUMMARY.to_json())["environment"], "world_size": 0}),
        r"summary\.environment\.world_size must be from 1 to ",
    ),
    "a negative size": (with_shape([2, -1]), r"inputs\[0\]\.shape\[1\] must be from 0 to "),
    "more elements than int64 counts": (with_shape([2**62] * 400), r"inputs\[0\]\.shape must have at most "),
    "a root with a parent": (
        document(modules=[{**json.loads(SUMMARY.to_json())["modules"][0], "parent": 0}]),
        r"modules\[0\] is the root: its parent must be null, not 0",
    ),
    "no modules": (document(modules=[]), "modules must be a list with at least one module"),
    "modules of the wrong kind": (document(modules=[3]), r"modules\[0\] must be an object, not int"),
    "a parent that comes later": (
        with_module(parent=2),
        r"modules\[1\]\.parent must be the index of an earlier module, not 2",
    ),
    "a parent that is no index": (
        with_module(parent=True),
        r"modules\[1\]\.parent must be the index of an earlier module, not True",
    ),
    "an unknown field": (
        with_module(weights=[1.0]),
        r"modules\[1\] lacks the fields \[\] and has the unknown fields \['weights'\]",
    ),
    "a lacking field": (
        document(memory={}),
        r"summary\.memory lacks the fields \['allocator_peak', .*'weight_copies'\]",
    ),
    "a spec of no kind": (
        with_module(call_groups=[group(calls=1, inputs=3)]),
        r"modules\[1\]\.call_groups\[0\]\.inputs must be a tensor, a container or null, not int",
    ),
}


@pytest.mark.parametrize(("content", "reason"), BAD.values(), ids=BAD.keys())
def test_a_file_that_is_no_summary_is_refused_with_its_name_and_the_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(SummaryError, match=r"bad\.json: .*" + reason):
        load(path)


def test_a_file_over_the_bound_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: no disk is used
    with pytest.raises(SummaryError, match=rf"big\.json: over the bound of {MAX_BYTES:,} bytes"):
        load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SummaryError, match=r"none\.json: No such file or directory"):
        load(tmp_path / "none.json")
    with pytest.raises(SummaryError, match="embedded null byte"):
        load("a\0b.json")


def test_the_size_that_a_file_is_said_to_have_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A /proc file is a regular one of 0 bytes, and is read for as long as it goes on."""
    monkeypatch.setattr("summarycb.serialize.MAX_BYTES", 100)
    with pytest.raises(SummaryError, match=r"/proc/self/maps: over the bound of 100 bytes"):
        load("/proc/self/maps")


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to would wait for ever, and /dev/zero has no end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(SummaryError, match=f"^{path}: not a regular file$"):
            load(path)


@pytest.mark.parametrize("given", [3, None, b"{}"], ids=repr)
def test_from_json_takes_a_text(given: Any) -> None:
    with pytest.raises(SummaryError, match=f"^the text: a summary in JSON is a str, not {type(given).__name__}$"):
        ModelSummary.from_json(given)


def test_load_says_what_it_takes() -> None:
    allowed = r"load takes a str \(a file name or tracker:where\) or a Path, not int"
    with pytest.raises(SummaryError, match=allowed):
        load(3)  # type: ignore[arg-type]
