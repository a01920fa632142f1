"""ModelSummary <-> JSON, and ``load``. Must not import torch.

The JSON is the tree itself: every dataclass is an object with its fields, described by ``summary.schema.json``; the
nodes and edges of the dataflow, of which there are very many, are arrays of their fields. Modules
are one flat list in definition order, each with the index of its parent, so that the nesting of the file does not grow
with the model's. Reading never executes anything: JSON only, bounded in size, every field checked as it is declared.
"""

from __future__ import annotations

import json
import os
import re
import stat
import types
import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from summarycb import dataflow, specs, step, tree
from summarycb.dataflow import FlowCall, FlowEdge, FlowNode
from summarycb.embed import extract
from summarycb.errors import SummaryError
from summarycb.garbage import collection_paused
from summarycb.specs import BufferSpec, Nested, Opaque, ParameterSpec, Spec, TensorSpec
from summarycb.step import MAX_INT, Rank
from summarycb.tree import CallGroup, ModelSummary, ModuleSummary, Work

SCHEMA_VERSION = 1
MAX_BYTES = 256 * 2**20
"""The largest file that is read. 10,000 modules take about 10 MiB."""

PAGES = (".html", ".htm")
SUFFIXES = (".json", *PAGES)
"""Of the files that may hold a summary."""
_NUMBERED = re.compile(r"(.+\.html?)#(\d{1,4})", re.IGNORECASE)
"""The name of a page, and which of the summaries in it."""


@collection_paused()
def dumps(summary: ModelSummary) -> str:
    """The summary as JSON text."""
    document = {"schema_version": SCHEMA_VERSION, **_encode_fields(summary, skip="root")}
    document["modules"] = _flatten(summary.root)
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@collection_paused()
def loads(text: str, source: str = "the text") -> ModelSummary:
    """The summary that :func:`dumps` wrote. Raises :class:`SummaryError`, naming ``source``, for anything else."""
    if not isinstance(text, str):
        raise SummaryError(f"{source}: a summary in JSON is a str, not {type(text).__name__}")
    try:
        document = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError:
        raise SummaryError(f"{source}: the JSON is nested too deeply to be a model summary") from None
    except ValueError as error:  # JSONDecodeError is one; so is an integer with too many digits
        reason = "it is empty" if not text.strip() else str(error)
        raise SummaryError(f"{source}: not a model summary in JSON: {reason}") from None
    if not isinstance(document, dict) or "schema_version" not in document:
        raise SummaryError(f"{source}: not a model summary: it has no schema_version")
    version = document.pop("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:  # True == 1
        raise SummaryError(
            f"{source}: schema_version {version!r} cannot be read; this version of summarycb reads {SCHEMA_VERSION}. "
            "A newer file needs a newer summarycb"
        )
    try:
        rows = document.pop("modules", None)
        document["root"] = _unflatten(rows)
        summary = typing.cast(ModelSummary, _decoder(ModelSummary)(document, "summary"))
        if summary.dataflow is not None and (fault := summary.dataflow.fault(len(rows))) is not None:
            raise SummaryError(f"summary.dataflow.{fault} refers to what is not there")
        return summary
    except RecursionError:
        raise SummaryError(f"{source}: the modules or shapes are nested too deeply") from None
    except SummaryError as error:
        raise SummaryError(f"{source}: {error}") from None


def dumps_rank(rank: Rank) -> str:
    """What one rank observed, as JSON text, for :func:`loads_rank`."""
    return json.dumps(_encode_fields(rank), allow_nan=False)


def loads_rank(text: str) -> Rank:
    """What :func:`dumps_rank` wrote."""
    return typing.cast(Rank, _decoder(Rank)(json.loads(text), "rank"))


def read(path: str | Path) -> ModelSummary:
    """The summary in a ``.json`` file, or in a page: ``a.html``, or ``a.html#2`` where a page holds several.

    Raises :class:`SummaryError` with the file's name and the reason.
    """
    numbered = _NUMBERED.fullmatch(str(path))
    source, number = (Path(numbered[1]), int(numbered[2])) if numbered else (Path(path), None)
    try:
        regular = stat.S_ISREG(source.stat().st_mode)  # before it is opened: a FIFO would block, a device never end
        content = b""
        if regular:
            with source.open("rb") as file:
                content = file.read(MAX_BYTES + 1)  # whatever its size is said to be: that of a /proc file is 0
    except OSError as error:
        raise SummaryError(f"{source}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        raise SummaryError(f"{str(source)!r}: {error}") from None
    if not regular:
        raise SummaryError(f"{source}: not a regular file")
    if len(content) > MAX_BYTES:
        raise SummaryError(f"{source}: over the bound of {MAX_BYTES:,} bytes for a model summary")
    page = source.suffix.lower() in PAGES
    try:  # a page that is cut short may end within a character; the summary in it is ASCII
        text = content.decode("utf-8", "replace" if page else "strict")
    except UnicodeDecodeError:
        raise SummaryError(f"{source}: not a text file; a model summary is JSON in UTF-8, never a pickle") from None
    if page:
        try:
            text = extract(text, MAX_BYTES, number)
        except SummaryError as error:
            raise SummaryError(f"{source}: {error}") from None
    return loads(text, str(source))


def load(reference: str | Path) -> ModelSummary:
    """The summary at a reference: a ``.json`` or ``.html`` file, or ``tracker:where``, as in ``mlflow:<run_id>``.

    Raises :class:`SummaryError` when there is none or it cannot be read.
    """
    if not isinstance(reference, (str, Path)):
        raise SummaryError(f"load takes a str (a file name or tracker:where) or a Path, not {type(reference).__name__}")
    if isinstance(reference, Path) or is_file_name(reference):
        return read(reference)
    from summarycb.trackers import forms, open_reference

    tracker = open_reference(reference)
    if tracker is not None:
        return tracker.read()
    if ":" in reference and not os.path.lexists(reference):
        raise SummaryError(f"{reference!r} is no file, and names no tracker; allowed are {forms()}")
    return read(reference)


def is_file_name(reference: str) -> bool:
    """Whether it is plainly a file's, so that the trackers, which take time to find, need not be asked."""
    return ":" not in reference and reference.lower().endswith(SUFFIXES)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that says a thing twice is refused, because readers differ in which of them holds."""
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} is twice in one object")
    return made


def _flatten(root: ModuleSummary) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    stack: list[tuple[ModuleSummary, int | None]] = [(root, None)]
    while stack:
        module, parent = stack.pop()
        stack.extend((child, len(rows)) for child in reversed(module.children))
        rows.append({"parent": parent, **_encode_fields(module, skip="children")})
    return rows


def _unflatten(rows: object) -> ModuleSummary:
    if not isinstance(rows, list) or not rows:
        raise SummaryError("modules must be a list with at least one module")
    decode = _decoder(ModuleSummary)
    children: list[list[ModuleSummary]] = [[] for _ in rows]
    for index in range(len(rows) - 1, -1, -1):  # children come after their parent, so they are made first
        where = f"modules[{index}]"
        row = rows[index]
        if not isinstance(row, dict):
            raise SummaryError(f"{where} must be an object, not {_kind(row)}")
        row = dict(row)
        parent = row.pop("parent", None)
        row["children"] = tuple(reversed(children[index]))
        module = decode(row, where)
        if index == 0:
            if parent is not None:
                raise SummaryError(f"{where} is the root: its parent must be null, not {parent!r}")
            break
        if not isinstance(parent, int) or isinstance(parent, bool) or not 0 <= parent < index:
            raise SummaryError(f"{where}.parent must be the index of an earlier module, not {parent!r}")
        children[parent].append(module)
    return typing.cast(ModuleSummary, module)


@cache
def _names(kind: type, skip: str) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind) if f.init and f.name != skip)


def _encode_fields(value: Any, skip: str = "") -> dict[str, Any]:
    return {name: _encode(getattr(value, name)) for name in _names(type(value), skip)}  # type: ignore[arg-type]  # a type is hashable


_encode_often = lru_cache(maxsize=1024)(_encode_fields)
_OFTEN = {BufferSpec, CallGroup, ParameterSpec, TensorSpec, Work}
_ROWS = {FlowCall, FlowEdge, FlowNode}
_AS_IT_IS = {type(None), str, int, bool}


def _encode(value: Any) -> Any:
    kind = type(value)
    if kind in _AS_IT_IS:
        return value
    if kind is tuple:
        return [_encode(item) for item in value]
    if kind in _ROWS:
        return list(_encode_fields(value).values())
    if kind is Nested:
        return {"type": value.type_name, "items": [[name, _encode(item)] for name, item in value.items_]}
    if kind is Opaque:
        return {"type": value.type_name}
    return _encode_often(value) if kind in _OFTEN else _encode_fields(value)


def _decode_spec(value: Any, where: str) -> Spec:
    if value is None:
        return None
    if isinstance(value, list):
        return tuple(_decode_spec(item, f"{where}[{i}]") for i, item in enumerate(value))
    if not isinstance(value, dict):
        raise SummaryError(f"{where} must be a tensor, a container or null, not {_kind(value)}")
    if "type" not in value:
        return typing.cast(TensorSpec, _decoder(TensorSpec)(value, where))
    type_name = _decoder(str)(value["type"], f"{where}.type")
    if value.keys() == {"type"}:
        return Opaque(type_name)
    items = value.get("items")
    if value.keys() != {"type", "items"} or not isinstance(items, list):
        raise SummaryError(f"{where} must have type and a list of items, not {sorted(value)}")
    pairs = []
    for i, item in enumerate(items):
        if not isinstance(item, list) or len(item) != 2:
            raise SummaryError(f"{where}.items[{i}] must be a pair of name and value")
        pairs.append((_decoder(str)(item[0], f"{where}.items[{i}][0]"), _decode_spec(item[1], f"{where}.items[{i}]")))
    return Nested(type_name, tuple(pairs))


_Decoder = Callable[[Any, str], Any]


@cache
def _decoder(hint: Any) -> _Decoder:
    """A function (value, where) -> the value as ``hint`` says, or SummaryError."""
    if isinstance(hint, type) and is_dataclass(hint):
        return _dataclass_decoder(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint == tuple[int, ...]:
        return _decode_shape
    if origin is tuple:
        return _tuple_decoder(_decoder(arguments[0]))
    if origin is Literal:
        return _one_of(arguments)
    if origin is Annotated:
        return _int_decoder(*arguments[1:])
    if origin in (types.UnionType, typing.Union):
        (inner,) = [a for a in arguments if a is not type(None)]
        decode = _decoder(inner)
        return lambda value, where: None if value is None else decode(value, where)
    return _int_decoder(range(MAX_INT + 1)) if hint is int else _scalar_decoder(hint)


def _int_decoder(allowed: range) -> _Decoder:
    scalar = _scalar_decoder(int)

    def decode(value: Any, where: str) -> Any:
        if scalar(value, where) not in allowed:
            raise SummaryError(f"{where} must be from {allowed[0]} to {allowed[-1]}, not {_digits(value)}")
        return value

    return decode


def _one_of(allowed: tuple[str, ...]) -> _Decoder:
    def decode(value: Any, where: str) -> Any:
        if value not in allowed:
            given = repr(value) if isinstance(value, str) else _kind(value)
            raise SummaryError(f"{where} must be one of {', '.join(allowed)}, not {given}")
        return value

    return decode


def _scalar_decoder(kind: type) -> _Decoder:
    def decode(value: Any, where: str) -> Any:
        if type(value) is not kind:  # a bool is an int to isinstance
            raise SummaryError(f"{where} must be {kind.__name__}, not {_kind(value)}")
        return value

    return decode


def _tuple_decoder(item: _Decoder) -> _Decoder:
    def decode(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise SummaryError(f"{where} must be a list, not {_kind(value)}")
        return tuple([item(entry, f"{where}[{i}]") for i, entry in enumerate(value)])

    return decode


def _decode_shape(value: Any, where: str) -> tuple[int, ...]:
    shape = typing.cast("tuple[int, ...]", _tuple_decoder(_decoder(int))(value, where))
    elements = 1
    for size in shape:  # stopped early: the product of a million sizes would take minutes
        elements *= max(1, size)
        if elements > MAX_INT:
            raise SummaryError(f"{where} must have at most {MAX_INT} elements")
    return shape


def _dataclass_decoder(kind: type) -> _Decoder:
    names = {f.name: f for f in fields(kind) if f.init}
    hints = typing.get_type_hints(kind, vars(specs) | vars(step) | vars(dataflow) | vars(tree), include_extras=True)
    # the tree above a module or a summary is put together here, not read from nested JSON
    made = {"children", "root"}
    decoders = {
        name: _decode_spec if f.type == "Spec" else _decoder(hints[name])
        for name, f in names.items()
        if name not in made
    }

    def decode(value: Any, where: str) -> Any:
        if kind in _ROWS and isinstance(value, list) and len(value) == len(names):
            value = dict(zip(names, value, strict=True))
        elif kind in _ROWS or not isinstance(value, dict):
            form = f"an array of {', '.join(names)}" if kind in _ROWS else "an object"
            raise SummaryError(f"{where} must be {form}, not {_kind(value)}")
        if value.keys() != names.keys():
            lacking, unknown = sorted(names.keys() - value.keys()), sorted(value.keys() - names.keys())
            raise SummaryError(f"{where} lacks the fields {lacking} and has the unknown fields {unknown}")
        arguments = {
            name: item if name in made else decoders[name](item, f"{where}.{name}") for name, item in value.items()
        }
        return kind(**arguments)

    return decode


def _digits(value: int) -> str:
    return str(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
