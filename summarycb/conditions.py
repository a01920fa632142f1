"""Under what two steps ran, where that differs, and which figures it changes. Must not import torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Literal, TypeAlias

from summarycb import units
from summarycb.errors import SummaryError
from summarycb.specs import Nested, Spec, TensorSpec, sole, spec_text
from summarycb.step import Environment
from summarycb.tree import ModelSummary, ModuleSummary

Per: TypeAlias = Literal["sample", "token"]

_MADE_BY_STEP = ("saved_activations", "weight_copies", "memory_saved_activations", "memory_weight_copies")
_PEAKS = ("memory_peak", "memory_allocator_peak")
_BACKWARD = ("backward_macs", "backward_flops", "recompute_macs", "step_flops", "hardware_flops")
_STATE = ("optimizer_state", "memory_optimizer_state")
_GRADIENTS = ("gradients", "memory_gradients")
_FORWARD = ("forward_macs", "forward_flops")
_AMOUNTS = (*_FORWARD, *_BACKWARD, *_MADE_BY_STEP, *_PEAKS)
_SHARDED = (*_STATE, *_PEAKS, *_GRADIENTS, "memory_parameters", *_MADE_BY_STEP)
_AFFECTED: dict[str, tuple[str, ...]] = {
    "observed": (*_AMOUNTS, *_STATE, *_GRADIENTS),
    "failed": (*_AMOUNTS, *_STATE, *_GRADIENTS),
    "input": _AMOUNTS,
    "batch": _AMOUNTS,
    "input dtype": (*_MADE_BY_STEP, *_PEAKS),
    "forwards in the step": _AMOUNTS,
    "training": (*_BACKWARD, *_MADE_BY_STEP, *_PEAKS),
    "precision": (*_MADE_BY_STEP, *_PEAKS),
    "device": (*_BACKWARD, *_MADE_BY_STEP, *_PEAKS),  # another device has other kernels, which save other tensors
    "torch": (*_MADE_BY_STEP, *_PEAKS),
    "optimizer": (*_STATE, *_PEAKS, "step_flops", "hardware_flops"),
    "strategy": _SHARDED,
    "world_size": _SHARDED,
}
"""Which figures another condition changes where the model is the same: their difference says nothing of the model."""
_ALONE = (None, "SingleDeviceStrategy", "DistributedType.NO")
"""Strategies that are none: one process has the whole model."""
_WORK = (*_FORWARD, *_BACKWARD)
_SAVED = ("saved_activations", "memory_saved_activations")
_TOKENS = ("int32", "int64")
_MOST_TEXT = 300


@dataclass(frozen=True, slots=True)
class Difference:
    """A condition of the step that was not the same, in words, and the names of the figures that it changes."""

    condition: str
    a: str
    b: str
    affects: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.condition}: {self.a} → {self.b}"


def scales(a: ModelSummary, b: ModelSummary, per: Per | None) -> Mapping[str, tuple[int, int]]:
    """By figure, how many samples or tokens either step had; only of what is divided by them.

    Saved activations are not, where backward ran more than once: they are of the batches before one of them.
    """
    if per is None:
        return {}
    divided = parts(a, per), parts(b, per)
    again = any(note.kind == "backwards" for summary in (a, b) for note in summary.notes)
    return dict.fromkeys(_WORK if again else (*_WORK, *_SAVED), divided)


def parts(summary: ModelSummary, per: Per) -> int:
    """How many samples or tokens the step had, in all of its forwards.

    Raises :class:`SummaryError` when that is not known.
    """
    found = _total(_given(summary), per)
    samples = {_total(_given(summary, module), "sample") for module in summary.outermost} - {None}
    if len(samples) > 1:
        given = ", ".join(map(str, sorted(filter(None, samples))))
        raise SummaryError(f"per={per!r} needs one number of samples; the step calls modules with {given}")
    if not found:
        given = spec_text(sole(summary.entry.inputs))
        what = "a batch as its first input" if per == "sample" else "token ids [batch, length] as its first input"
        raise SummaryError(f"per={per!r} needs a step that was given {what}; {summary.entry.type_name} had {given}")
    return found


def _total(given: Sequence[tuple[Spec, int]], per: Per) -> int | None:
    """How many there were in all of the forwards; None where it is not known."""
    sizes = [_sizes(inputs, per) for inputs, _ in given]
    if not sizes or not all(sizes):
        return None
    return sum(prod(size) * calls for size, (_, calls) in zip(sizes, given, strict=True))


def differences(a: ModelSummary, b: ModelSummary, per: Per | None) -> Iterator[Difference]:
    """Each condition that differs, those of the environment first."""
    for one in fields(Environment):
        before, after = getattr(a.environment, one.name), getattr(b.environment, one.name)
        if one.name == "torch":  # the build, as "+cpu", is told by the device
            before, after = (text and text.partition("+")[0] for text in (before, after))
        if before != after:
            alone = one.name in ("strategy", "world_size") and _is_alone(a) and _is_alone(b)
            yield _difference(one.name, before, after, () if alone else None)
    if a.observed != b.observed:
        yield _difference("observed", a.observed, b.observed)
    if a.failure is not None or b.failure is not None:
        yield _difference("failed", _failed(a), _failed(b))
    if "structure" not in (a.observed, b.observed):
        yield from _of_inputs(a, b, per)


def _difference(condition: str, before: object, after: object, affects: tuple[str, ...] | None = None) -> Difference:
    one, other = ("not known" if x is None else str(x) for x in (before, after))
    return Difference(condition, one, other, _AFFECTED.get(condition, ()) if affects is None else affects)


def _failed(summary: ModelSummary) -> str:
    failure = summary.failure
    return "no" if failure is None else f"{failure.error} in the {failure.phase or 'step'}"


def _is_alone(summary: ModelSummary) -> bool:
    return summary.environment.strategy in _ALONE and summary.environment.world_size in (None, 1)


def _of_inputs(a: ModelSummary, b: ModelSummary, per: Per | None) -> Iterator[Difference]:
    """What was given by the shapes of its tensors, whatever it was given in, and how often.

    With ``per``, a batch that is larger and otherwise the same changes no work for each part of it. What is saved can
    be of one size for any batch.
    """
    divided = _WORK if per is not None else ()
    if not _alike(a, b, _shapes):
        alike = _alike(a, b, _but_for_batch)
        affects = tuple(name for name in _AMOUNTS if not (alike and name in divided))
        yield _difference("input", *_texts(a, b), affects)
    elif not _alike(a, b, _dtypes):
        yield _difference("input dtype", _text(a, _typed), _text(b, _typed))
    elif len(a.outermost) > 1 < len(b.outermost) and a.memory.batch != b.memory.batch:
        yield _difference("batch", units.nbytes(a.memory.batch), units.nbytes(b.memory.batch))
    calls = a.entry.calls, b.entry.calls
    if calls[0] != calls[1] and None not in calls:
        yield _difference("forwards in the step", *calls, tuple(name for name in _AMOUNTS if name not in divided))


def _given(summary: ModelSummary, module: ModuleSummary | None = None) -> list[tuple[Spec, int]]:
    """What the forwards were given, of what the step called first or another module, and how many of them each."""
    return [(group.inputs, group.calls) for group in (module or summary.entry).call_groups or ()]


def _sizes(inputs: Spec, per: Per) -> tuple[int, ...]:
    """The dimensions whose product is how many samples, or tokens, one forward was given; none where it is unknown."""
    first = next((tensor for _, tensor in _named(inputs)), None)
    if first is None or (per == "token" and (len(first.shape) != 2 or first.dtype not in _TOKENS)):
        return ()
    return first.shape[: 1 if per == "sample" else 2]


def _alike(a: ModelSummary, b: ModelSummary, key: Callable[[Spec], Iterable[tuple[str, str]]]) -> bool:
    """Whether the same parts of the forwards were given the same, as ``key`` tells each tensor with where it is.

    The same in order, whatever it was called, or by name in any order.
    """

    def alike(of_all: Callable[[Spec], tuple[object, ...]]) -> bool:
        counts: tuple[Counter[object], Counter[object]] = Counter(), Counter()
        for summary, count in zip((a, b), counts, strict=True):
            for inputs, calls in _given(summary):
                count[of_all(inputs) or spec_text(inputs)] += calls
        one, other = counts
        return {k: n * other.total() for k, n in one.items()} == {k: n * one.total() for k, n in other.items()}

    in_order = alike(lambda inputs: tuple([said for _, said in key(inputs)]))
    return in_order or alike(lambda inputs: tuple(sorted(key(inputs))))


def _named(inputs: Spec, path: str = "") -> Iterator[tuple[str, TensorSpec]]:
    """The tensors with a dimension, and where each is: a count or a rate that is handed over is no part of a batch."""
    if isinstance(inputs, TensorSpec):
        if inputs.shape:
            yield path, inputs
    elif isinstance(inputs, Nested):
        for name, item in inputs.items():
            yield from _named(item, f"{path}.{name}")
    elif isinstance(inputs, tuple):
        for place, item in enumerate(inputs):
            yield from _named(item, f"{path}.{place}")


def _shapes(inputs: Spec) -> Iterator[tuple[str, str]]:
    for path, tensor in _named(inputs):
        yield path, f"{tensor} {_kind(tensor)}"


def _but_for_batch(inputs: Spec) -> Iterator[tuple[str, str]]:
    """Without the size that is divided by: of tokens the batch alone, attention is no sum over lengths."""
    tensors = list(_named(inputs))
    batch = tensors[0][1].shape[0] if tensors else None
    for path, tensor in tensors:
        size = "batch" if tensor.shape[0] == batch else tensor.shape[0]
        yield path, f"{size} {tensor.shape[1:]} {_kind(tensor)}"


def _kind(tensor: TensorSpec) -> str:
    """In which precision, and on which device, are other conditions."""
    return "floats" if "float" in tensor.dtype or "complex" in tensor.dtype else "integers"


def _dtypes(inputs: Spec) -> Iterator[tuple[str, str]]:
    for path, tensor in _named(inputs):
        yield path, f"{tensor} {tensor.dtype}"


def _typed(inputs: Spec) -> str:
    return ", ".join([f"{tensor} {tensor.dtype}" for _, tensor in _named(inputs)])


def _texts(a: ModelSummary, b: ModelSummary) -> tuple[str, str]:
    """What both were given: by shapes, or where these read the same with dtypes."""
    texts = _text(a, lambda inputs: spec_text(sole(inputs))), _text(b, lambda inputs: spec_text(sole(inputs)))
    return texts if texts[0] != texts[1] else (_text(a, _typed), _text(b, _typed))


def _text(summary: ModelSummary, text: Callable[[Spec], str]) -> str:
    counts: Counter[str] = Counter()
    for inputs, calls in _given(summary):
        counts[text(inputs)] += calls
    said = ", ".join([what if len(counts) == 1 else f"{what} ×{count}" for what, count in counts.items()])
    return units.clean(units.cut(said or "not known", _MOST_TEXT))
