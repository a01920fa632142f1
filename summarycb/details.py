"""What differs in two modules that are the same one, in words. Must not import torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from summarycb.specs import BufferSpec, Nested, ParameterSpec, Spec, TensorSpec, spec_text, tensors_of
from summarycb.tree import CallGroup, ModuleSummary

if TYPE_CHECKING:
    from summarycb.changes import Kind

_Held: TypeAlias = ParameterSpec | BufferSpec
Said: TypeAlias = "tuple[Kind, str]"
"""A kind of change, and the words for it."""


FACTS = ("type", "config", "input", "output", "dtype", "device", "trainable", "mode")


def facts(module: ModuleSummary) -> dict[str, str | None]:
    """What a module is, each in words; shapes are those of its first call, None where it was not called."""
    held = module.parameters or module.buffers
    trainable = {parameter.trainable for parameter in module.parameters}
    called = bool(module.call_groups)
    texts = (
        module.type_name,
        module.config or None,
        spec_text(module.inputs) if called else None,
        spec_text(module.outputs) if called else None,
        ", ".join(sorted({one.dtype for one in held})) or None,
        ", ".join(sorted({one.device for one in held})) or None,
        None if not trainable else "in part" if len(trainable) > 1 else "yes" if True in trainable else "no",
        _mode(module.training),
    )
    return dict(zip(FACTS, texts, strict=True))


@dataclass(frozen=True, slots=True)
class Turn:
    """A state that was another: of the module, whether it trains, or of what it holds, as ``trainable`` and dtype."""

    what: str
    before: object
    after: object

    def __str__(self) -> str:
        if self.what == "training":
            return f"{_mode(self.before)} → {_mode(self.after)}"
        if self.what == "trainable":
            return "unfrozen" if self.after else "frozen"
        if self.what == "persistent":
            return "persistent" if self.after else "not persistent"
        return f"{self.before} → {self.after}"

    def is_throughout(self, before: ModuleSummary, after: ModuleSummary) -> bool:
        """Whether in a module nothing was so that is no longer ``before`` or was not yet ``after``, but for this."""
        return self.is_of_all([(before, after)] if self.what == "training" else _both(before, after))

    def is_of_all(self, held: Iterable[tuple[object, object]]) -> bool:
        """The same of what is held in both."""
        what, before, after = self.what, self.before, self.after
        return all((getattr(x, what, None) == before) == (getattr(y, what, None) == after) for x, y in held)


def turns(before: ModuleSummary, after: ModuleSummary) -> dict[Turn, list[str]]:
    """What turned, with the names of the parameters and buffers; they are left out where all that could turn did so."""
    found: dict[Turn, list[str]] = {}
    if before.training != after.training:
        found[Turn("training", before.training, after.training)] = []
    if before.parameters == after.parameters and before.buffers == after.buffers:
        return found
    named: dict[str, dict[Turn, list[str]]] = {}
    both = _both(before, after)
    for p, q in both:
        if (was := _states(p)) != (now := _states(q)):
            for what, x, y in zip(_STATES, was, now, strict=True):
                if x != y:
                    named.setdefault(what, {}).setdefault(Turn(what, x, y), []).append(p.name)
    for here in named.values():
        alone = len(here) == 1 and next(iter(here)).is_of_all(both)
        found |= {turn: [] for turn in here} if alone else here
    return found


_STATES = ("trainable", "dtype", "device", "persistent")


def _states(held: _Held) -> list[object]:
    return [getattr(held, what, None) for what in _STATES]


def _both(before: ModuleSummary, after: ModuleSummary) -> list[tuple[_Held, _Held]]:
    """The parameters and buffers that both have."""
    other = _tensors(after)
    return [(held, other[name]) for name, held in _tensors(before).items() if name in other]


def differences(
    before: ModuleSummary, after: ModuleSummary, sized: Sequence[Said], turned: Mapping[Turn, list[str]]
) -> Iterator[Said]:
    """What differs in two modules without their children, with what :func:`sizes` says, and those of :func:`turns`."""
    if before.type_name != after.type_name:
        yield "replaced", f"{before.type_name} → {after.type_name}"
    yield from sized
    held: tuple[_Held, ...] = (*before.parameters, *before.buffers, *after.parameters, *after.buffers)
    if any(one.shared_with is not None for one in held):
        for p, q in _both(before, after):
            if (p.shared_with is None) != (q.shared_with is None):
                yield "changed", f"{p.name} {_tie(p.shared_with)} → {_tie(q.shared_with)}"
    if before.shared_with != after.shared_with and (before.shared_with is None or after.shared_with is None):
        yield "changed", f"{_shared(before)} → {_shared(after)}"
    for turn, names in turned.items():
        yield "changed", f"{', '.join(names)} {turn}".lstrip()
    if before.call_groups == after.call_groups:
        called = ""
    else:
        called = _called(before.call_groups, after.call_groups) or _again(before, after)
    if before.own != after.own or called:
        yield ("figures" if before.own != after.own else "shapes"), called


def sizes(before: ModuleSummary, after: ModuleSummary) -> Iterator[Said]:
    """What of the settings, and of the sizes of parameters and buffers, differs."""
    one, other = _tensors(before), _tensors(after)
    both = [(one[name], other[name]) for name in one if name in other]
    found = [f"{p.name} {p.shape_text} → {q.shape_text}" for p, q in both if p.shape != q.shape]
    for word, x, y in (("without", one, other), ("with", other, one)):
        if x.keys() - y.keys():
            found.append(f"{word} {', '.join([name for name in x if name not in y])}")
    said = "" if before.type_name != after.type_name else settings_text(before.config, after.config)
    if found:
        yield "resized", said or ", ".join(found)
    elif said:
        yield "changed", said


def _tensors(module: ModuleSummary) -> dict[str, _Held]:
    held: tuple[_Held, ...] = (*module.parameters, *module.buffers)
    return {each.name: each for each in held}


def _tie(owner: str | None) -> str:
    return "its own" if owner is None else f"tied to {owner}"


def _shared(module: ModuleSummary) -> str:
    return "its own" if module.shared_with is None else f"the same as {module.shared_with or 'the root'}"


def _mode(training: object) -> str:
    return "?" if training is None else "train" if training else "eval"


@lru_cache(1024)
def settings(before: str, after: str) -> dict[str | int, tuple[str | None, str | None]]:
    """The settings that differ, by name, or by place without one, None where it is not set; of others all as one."""
    a, b = _named(before), _named(after)
    found = {key: (a.get(key), b.get(key)) for key in a | b if a.get(key) != b.get(key)}
    whole = any(isinstance(key, int) and None in both for key, both in found.items())
    return {0: (before or "nothing set", after or "nothing set")} if whole or (before != after and not found) else found


def settings_text(before: str, after: str) -> str:
    """The same in words."""
    return ", ".join([_turned(key, x, y) for key, (x, y) in settings(before, after).items()])


def _turned(key: str | int, before: str | None, after: str | None) -> str:
    if before is None or after is None:
        return f"with {key}={after}" if before is None else f"without {key}={before}"
    return f"{f'{key}=' if isinstance(key, str) else ''}{before} → {after}"


def _named(config: str) -> dict[str | int, str]:
    found: dict[str | int, str] = {}
    for place, one in enumerate(_split(config) if config else ()):
        name, equals, value = one.partition("=")
        known = equals and name not in found
        found[name if known else place] = value if known else one
    return found


def _split(config: str) -> list[str]:
    """The settings, each with the commas that it has within brackets."""
    return re.split(r", (?![^(\[{]*[)\]}])", config)


@lru_cache(1024)
def _called(before: tuple[CallGroup, ...] | None, after: tuple[CallGroup, ...] | None) -> str:
    """How the calls differ in number and outputs, or else in inputs; empty when they do not."""
    if before is None or after is None:
        return ""
    said = []
    calls = sum([group.calls for group in before]), sum([group.calls for group in after])
    if calls[0] != calls[1]:
        said.append(f"calls {calls[0]} → {calls[1]}")
    for name in ("outputs", "inputs"):
        one, other = (list(dict.fromkeys([getattr(group, name) for group in groups])) for groups in (before, after))
        if one != other:
            differs = next(((x, y) for x, y in zip(one, other, strict=False) if x != y), None)
            said.append(f"{name.removesuffix('s')} {_specs(*differs) if differs else 'those of more or fewer calls'}")
            break
    return "; ".join(said)


def _again(before: ModuleSummary, after: ModuleSummary) -> str:
    one, other = before.own.recompute_macs, after.own.recompute_macs
    if one is None or other is None or bool(one) == bool(other):
        return ""
    return "runs again in backward" if other else "no longer runs again in backward"


def _specs(before: Spec, after: Spec) -> str:
    """Both by their shapes; where these are equal by the dtype alone, or else by all that is known of each tensor.

    Of what is long the first that differs is told, by the names that lead there: a cache of keys and values is longer
    in each layer, and the layers' rows are one where their words are the same.
    """
    texts = spec_text(before), spec_text(after)
    if texts[0] == texts[1]:
        texts = _typed(before), _typed(after)
        pairs = zip(tensors_of(before), tensors_of(after), strict=True)
        dtypes = {(x.dtype, y.dtype) for x, y in pairs if x != y}
        if len(dtypes) == 1:
            ((one, other),) = dtypes
            if texts[0].replace(f" {one} ", f" {other} ") == texts[1]:
                return f"{one} → {other}"
    if sum(map(len, texts)) <= _MOST_TEXT:
        return " → ".join(texts)
    first, *others = [*_apart(before, after)] or [" → ".join(texts)]
    return first + ", and others" * bool(others)


_MOST_TEXT = 100


def _apart(before: Spec, after: Spec, path: str = "") -> Iterator[str]:
    """What differs within two nestings."""
    a, b = _items(before), _items(after)
    if type(before) is not type(after) or not (a or b):
        write = _typed if spec_text(before) == spec_text(after) else spec_text
        one, other = (spec.type_name if isinstance(spec, Nested) else write(spec) for spec in (before, after))
        yield f"{path} {one} → {other}".lstrip()
        return
    if isinstance(before, Nested) and isinstance(after, Nested) and before.type_name != after.type_name:
        yield f"{path} {before.type_name} → {after.type_name}".lstrip()
    for name in a | b:
        there = f"{path}.{name}".lstrip(".")
        if name not in a or name not in b:
            yield f"{'with' if name in b else 'without'} {there}"
        elif a[name] != b[name]:
            yield from _apart(a[name], b[name], there)


def _items(spec: Spec) -> dict[str, Spec]:
    if isinstance(spec, tuple):
        return {str(place): item for place, item in enumerate(spec)}
    return dict(spec.items_) if isinstance(spec, Nested) else {}


def _typed(spec: Spec) -> str:
    if isinstance(spec, tuple):
        return "(" + ", ".join(map(_typed, spec)) + ("," if len(spec) == 1 else "") + ")"
    if isinstance(spec, Nested):
        return spec.type_name + "{" + ", ".join(f"{name}: {_typed(item)}" for name, item in spec.items_) + "}"
    return f"{spec} {spec.dtype} {spec.device}" if isinstance(spec, TensorSpec) else str(spec)
