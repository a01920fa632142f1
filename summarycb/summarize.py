"""summarize(): one call on a model and an input, for those who come from ``torchinfo.summary``."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from summarycb.build import build
from summarycb.collect.inputs import iter_tensors
from summarycb.collect.modules import walk
from summarycb.errors import SummaryError
from summarycb.observe import Observation, check_model
from summarycb.records import Records
from summarycb.tree import ModelSummary

Mode = Literal["same", "train", "eval"]


def summarize(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    input_size: Sequence[int] | Sequence[Sequence[int]] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    device: torch.device | str | None = None,
    mode: Mode = "same",
    backward: bool = False,
) -> ModelSummary:
    """Run ``model(*args, **kwargs)`` once under :func:`summarycb.observe` and leave the model as it was.

    Give the inputs themselves, as to ``torch.export.export``, or ``input_size``: one shape or a list of shapes, made
    with ``dtypes`` (float32 unless said; integers are valid indices for every ``nn.Embedding`` of the model). Without
    either, the summary is of the structure and parameters alone. ``device`` is where to run: the model's tensors are
    swapped for copies there and swapped back, and ``"meta"`` needs no memory for them. ``backward=True`` also runs
    the backward of the output's ``loss``, or of the sum of its floating-point tensors.

    Train/eval flags, buffers, gradients, hooks and the random state are afterwards what they were, also when it fails.

    Raises :class:`SummaryError` for a wrong argument; what the model raises goes through.
    """
    check_model(model)
    if mode not in ("same", "train", "eval"):
        raise SummaryError(f"mode must be 'same', 'train' or 'eval', not {mode!r}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise SummaryError(f"kwargs must be a mapping of names to inputs, not {type(kwargs).__name__}")
    if unnamed := [name for name in kwargs or () if not isinstance(name, str)]:
        raise SummaryError(f"kwargs must be a mapping of names to inputs; {unnamed[0]!r} is no name")
    if type(backward) is not bool:
        raise SummaryError(f"backward must be True or False, not {backward!r}")
    if not isinstance(args, tuple):
        raise SummaryError(f"args must be a tuple of positional inputs, as in (x,), not {type(args).__name__}")
    if input_size is not None and (args or kwargs):
        raise SummaryError("give either args and kwargs or input_size, not both")
    if dtypes is not None and input_size is None:
        raise SummaryError("dtypes says how input_size is to be filled; without input_size there is nothing to fill")
    target = _device(device)
    shapes = None if input_size is None else _shapes(input_size)
    dtypes = _dtypes(dtypes, shapes or [])
    if shapes is None and not args and not kwargs:
        if backward:
            raise SummaryError("backward=True needs an input: give args and kwargs, or input_size")
        return build(Records(walk(model)), {})
    with _same_random_state(model, target), _borrowed(model, target), _flags(model, mode):
        if shapes is not None:
            args = _inputs(model, shapes, dtypes, target)
        call_args, call_kwargs = _moved((args, dict(kwargs or {})), target)
        observation = Observation(model)
        with observation, torch.set_grad_enabled(backward):
            output = model(*call_args, **call_kwargs)
            if backward:
                output = _loss(output)  # nobody holds the output itself, as in a training step
                torch.autograd.backward(output)
            del output
    assert observation.summary is not None
    return observation.summary


def _shapes(input_size: Any) -> list[tuple[int, ...]]:
    try:
        sizes = list(input_size)
        shapes = [sizes] if all(isinstance(n, int) for n in sizes) else sizes
        return [tuple(_dimension(n) for n in shape) for shape in shapes]
    except TypeError:
        raise SummaryError(
            f"input_size must be a shape such as (1, 3, 224, 224), or a list of shapes, not {input_size!r}"
        ) from None


def _dimension(size: object) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise TypeError
    return size


def _dtypes(dtypes: Any, shapes: list[tuple[int, ...]]) -> list[torch.dtype]:
    kinds = [torch.float32] * len(shapes) if dtypes is None else dtypes
    fits = isinstance(kinds, Sequence) and len(kinds) == len(shapes)
    if not fits or not all(isinstance(kind, torch.dtype) for kind in kinds):
        raise SummaryError(f"dtypes must hold one torch.dtype for each of the {len(shapes)} shapes, not {dtypes!r}")
    return list(kinds)


def _device(device: Any) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError):
        raise SummaryError(
            f"device must be a torch.device or its name, such as 'cpu', 'cuda:0' or 'meta', not {device!r}"
        ) from None


def _inputs(
    model: nn.Module, shapes: list[tuple[int, ...]], dtypes: Sequence[torch.dtype], device: torch.device | None
) -> tuple[torch.Tensor, ...]:
    where = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    rows = min((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=2)
    return tuple(
        torch.rand(shape, dtype=kind, device=where)
        if kind.is_floating_point or kind.is_complex
        else torch.randint(0, 2 if kind is torch.bool else max(rows, 1), shape, device=where).to(kind)
        for shape, kind in zip(shapes, dtypes, strict=True)
    )


def _moved(value: Any, device: torch.device | None) -> Any:
    """The same nesting with its tensors on ``device``."""
    if device is None:
        return value
    from torch.utils._pytree import tree_map_only

    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), value)


def _loss(output: Any) -> torch.Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else None
    if isinstance(loss, torch.Tensor):
        return loss.sum()
    floating = [t for t in iter_tensors(output) if t.is_floating_point() and t.requires_grad]
    if not floating:
        raise SummaryError("backward=True, but the output holds no floating-point tensor that requires gradients")
    return torch.stack([tensor.sum().to(floating[0].device, torch.float32) for tensor in floating]).sum()


@contextlib.contextmanager
def _same_random_state(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    used = {p.device for p in model.parameters()} | ({device} if device is not None else set())
    accelerators = [d for d in used if d.type not in ("cpu", "meta")]
    kind = accelerators[0].type if accelerators else "cuda"
    numpy = sys.modules.get("numpy")
    numbers, arrays = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=accelerators, device_type=kind):
            yield
    finally:
        random.setstate(numbers)
        if numpy:
            numpy.random.set_state(arrays)


@contextlib.contextmanager
def _flags(model: nn.Module, mode: Mode) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        if mode != "same":
            model.train(mode == "train")
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def _borrowed(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Buffers are copies meanwhile, gradients set aside, and with another ``device`` parameters are copies there."""
    parameters: list[tuple[nn.Module, str, nn.Parameter]] = []
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    copies: dict[int, torch.Tensor] = {}
    for module in model.modules():
        parameters += [(module, name, p) for name, p in module._parameters.items() if p is not None]
    try:
        for module, held in buffers:
            for name, buffer in held.items():
                if buffer is not None and not nn.parameter.is_lazy(buffer):
                    if id(buffer) not in copies:
                        copies[id(buffer)] = buffer.detach().to(device or buffer.device, copy=True)
                    module._buffers[name] = copies[id(buffer)]
        for parameter, _ in gradients:
            parameter.grad = None
        for module, name, parameter in parameters:
            if device is not None and parameter.device != device and not nn.parameter.is_lazy(parameter):
                moved = copies.get(id(parameter))
                if moved is None:  # a tied parameter stays tied
                    moved = nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
                    copies[id(parameter)] = moved
                setattr(module, name, moved)  # not _parameters: an RNN keeps a list of its own up to date by this
        yield
    finally:
        for module, name, parameter in parameters:
            if module._parameters.get(name) is not parameter:
                setattr(module, name, parameter)
        for module, held in buffers:
            module._buffers.clear()  # the forward may have added some
            module._buffers.update(held)
        for parameter, gradient in gradients:
            parameter.grad = gradient
