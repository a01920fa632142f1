"""What one execution of an op computes: op -> pure function of shapes, in one table.

A count is in MACs, for the whole batch: one MAC is one multiply-accumulate of a contraction, and 2 FLOPs. Every op has one
of three answers, and :func:`classify` gives it:

* a **formula**: its function in this file, or the user's own by :func:`register_formula`;
* **zero by convention**: element-wise work, reductions, copies, look-ups ... (the lists in :mod:`summarycb.conventions`);
* **unknown**: everything else. Unknown is ``None``, never 0.

What the formulas hold to:

* A convolution is counted dense: every kernel tap at every position, padding included, as published numbers are.
* Attention is counted dense: full QK^T and AV; causal, windowed and block masks are not discounted.
* An outer product contracts nothing (``addr``, ``ger``, ``outer``): a pure multiply, zero. The same product written as ``mm``
  is one MAC for each element, because what runs is a matrix product. A distance (``cdist``) is a reduction of element-wise
  work, zero, unless it runs as a matrix product (``_euclidean_dist``).
* A complex MAC is one MAC. Shapes do not tell a dtype.
* A kernel that computes all gradients at once is counted in full, also where some of them are not needed: attention
  backward and the fused RNN backwards. Everywhere else only the gradients that run are counted.
* A sparse or nested operand makes the count unknown: the number of its values is not in its shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from math import prod
from typing import Any, TypeVar

import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from summarycb.conventions import is_zero
from summarycb.errors import SummaryError


@dataclass(frozen=True, slots=True)
class Count:
    """What one execution of an op computes, in MACs, for the whole batch."""

    macs: int
    """What the mathematics needs."""
    recompute_macs: int = 0
    """Forward work that runs again inside this op, as flash attention's backward does with QK^T. Not part of ``macs``."""


class Verdict(Enum):
    """The answer for an op that has no formula."""

    ZERO = "zero by convention"
    UNKNOWN = "unknown"


Shape = tuple[int, ...]
Formula = Callable[..., int | Count | None]
"""Called with the op's own arguments, every tensor (also in lists) replaced by its shape, and ``out=``, the shape(s) of what
the op returned. An int is ``Count(int)``; ``None`` is unknown for these arguments."""

NOTHING = Count(0)

_AnyFormula = TypeVar("_AnyFormula", bound=Formula)
_formulas: dict[str, Formula] = {}
_registered: dict[str, Formula] = {}
_verdicts: dict[object, Formula | Verdict] = {}


def classify(func: object) -> Formula | Verdict:
    """The formula of an op as a dispatch mode sees it, or why it has none. One dictionary look-up after the first time."""
    verdict = _verdicts.get(func)
    if verdict is None:
        verdict = _verdicts[func] = _classify(func)
    return verdict


def evaluate(formula: Formula, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Count | None:
    """What one execution with these arguments and this result computes; None when it is unknown.

    What a user's formula raises goes through; a result that is no count raises :class:`SummaryError`.
    """
    try:
        shapes, named, returned = _shapes(args), {name: _shapes(value) for name, value in kwargs.items()}, _shapes(out)
    except _NoShape:
        return None
    result = formula(*shapes, **{**named, "out": returned})
    if result is None or isinstance(result, Count):
        return result
    if not isinstance(result, int):
        name = getattr(formula, "__qualname__", repr(formula))
        raise SummaryError(f"the formula {name} returned {result!r}; it must return an int, a Count, or None for unknown")
    return Count(result)


def count(func: object, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Count | None:
    """What one execution of an op computes: a zero count for zero by convention, None for unknown."""
    verdict = classify(func)
    if verdict is Verdict.ZERO:
        return NOTHING
    if isinstance(verdict, Verdict):
        return None
    return evaluate(verdict, args, kwargs, out)


def register_formula(op: object) -> Callable[[_AnyFormula], _AnyFormula]:
    """Say what an op computes, as a decorator: a custom op's own formula, or another one for an op that has one.

    ``op`` is ``torch.ops.mylib.my_op``, one overload of it, a ``torch.library.custom_op``, or the name ``"mylib::my_op"``. The
    function gets the op's arguments with every tensor replaced by its shape, and ``out=``, the shape of the result. It returns
    MACs as an int, a :class:`Count`, or None for unknown::

        @summarycb.register_formula("mylib::my_op")
        def my_op(x, weight, *, out):
            return math.prod(out) * x[-1]

    The backward of a custom op runs as whatever ops its registered autograd calls: an op of its own is registered under its
    own name. Raises :class:`SummaryError` for anything else.
    """
    key = _key(op)

    def register(formula: _AnyFormula) -> _AnyFormula:
        if not callable(formula):
            raise SummaryError(f"the formula of {key} must be a function of shapes, not {formula!r}")
        _registered[key] = formula
        _verdicts.clear()
        return formula

    return register


def _key(op: object) -> str:
    name = getattr(op, "_qualname", op)  # a torch.library.custom_op
    if isinstance(op, OpOverloadPacket):
        name = op._qualified_op_name
    elif isinstance(op, OpOverload):
        name = f"{op._overloadpacket._qualified_op_name}.{op._overloadname}"
    elif isinstance(op, HigherOrderOperator):
        name = f"higher_order::{op.name()}"
    match = re.fullmatch(r"(\w+)(?:::|\.)(\w+(?:\.\w+)?)", name) if isinstance(name, str) else None
    if match is None:
        raise SummaryError(
            f"register_formula got {op!r}; it takes an op (torch.ops.mylib.my_op), one of its overloads, a "
            'torch.library.custom_op, or its name ("mylib::my_op")'
        )
    return f"{match[1]}::{match[2]}"


def _classify(func: object) -> Formula | Verdict:
    if isinstance(func, HigherOrderOperator):
        names = [f"higher_order::{func.name()}"]
    elif isinstance(func, OpOverload):
        name = func._overloadpacket._qualified_op_name
        names = [f"{name}.{func._overloadname}", name]
        if name.endswith("_") and func._schema.is_mutable:
            names += [f"{name[:-1]}.{func._overloadname}", name[:-1]]
    else:
        return Verdict.UNKNOWN
    for table in (_registered, _formulas):
        for name in names:
            if name in table:
                return table[name]
    return Verdict.ZERO if isinstance(func, OpOverload) and is_zero(func, names) else Verdict.UNKNOWN


class _NoShape(Exception):
    """A tensor whose shape does not tell how many values it has."""


def _shapes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if (value.layout is not torch.strided and value.layout is not torch._mkldnn) or value.is_nested:
            raise _NoShape
        shape = tuple(value.shape)
        if not all(type(size) is int for size in shape):  # a symbolic size
            raise _NoShape
        return shape
    if isinstance(value, (list, tuple)):
        return [_shapes(item) for item in value]
    return value


def _counts(*names: str) -> Callable[[_AnyFormula], _AnyFormula]:
    """Put a formula into the table: for aten ops, unless a name says its namespace."""

    def add(formula: _AnyFormula) -> _AnyFormula:
        for name in names:
            _formulas[name if "::" in name else f"aten::{name}"] = formula
        return formula

    return add


# Matrix products


@_counts("mm", "bmm", "mv", "dot", "vdot", "linear", "mkldnn_linear", "matmul", "linalg_matmul", "linalg_vecdot", "inner")
@_counts("_int_mm", "_scaled_mm", "_scaled_mm_v2", "_dyn_quant_matmul_4bit", "_weight_int8pack_mm", "_weight_int4pack_mm")
@_counts("_weight_int4pack_mm_for_cpu", "_weight_int4pack_mm_with_scales_and_zeros", "_mixed_dtypes_linear")
@_counts("fbgemm_linear_fp16_weight", "fbgemm_linear_fp16_weight_fp32_activation")
@_counts("fbgemm_linear_int8_weight", "fbgemm_linear_int8_weight_fp32_activation")
def _contract_last(a: Shape, *_: Any, out: Shape, **__: Any) -> int:
    # Every element of the result sums over the last dimension of the first operand, whatever the second is packed in.
    return prod(out) * a[-1] if a else 0


@_counts("addmm", "_addmm_activation", "baddbmm", "addmv")
def _add_contract_last(_bias: Shape, a: Shape, *_: Any, out: Shape, **__: Any) -> int:
    return prod(out) * a[-1]


@_counts("addbmm")
def _addbmm(_bias: Shape, a: Shape, b: Shape, **_: Any) -> int:
    return prod(a) * b[-1]


@_counts("linear_backward", "mkldnn_linear_backward")
def _linear_backward(x: Shape, grad: Shape, _weight: Shape, mask: Sequence[bool], **_: Any) -> int:
    return (mask[0] + mask[1]) * prod(grad) * x[-1]


# Convolutions


def _conv(position_shape: Shape, weight: Shape) -> int:
    # Each position of the output (transposed: of the input) meets every value of the weight once.
    return position_shape[0] * prod(position_shape[2:]) * prod(weight)


@_counts("convolution", "_convolution", "convolution_overrideable")
def _convolution(
    x: Shape, weight: Shape, _bias: Any, _stride: Any, _padding: Any, _dilation: Any, transposed: bool, *_: Any, out: Shape
) -> int:
    return _conv(x if transposed else out, weight)


@_counts("convolution_backward")
def _convolution_backward(
    grad: Shape, x: Shape, weight: Shape, _bias: Any, _s: Any, _p: Any, _d: Any, transposed: bool, *rest: Any, out: Any
) -> int:
    mask = rest[-1]
    return (mask[0] + mask[1]) * _conv(x if transposed else grad, weight)


# Attention


def _sdpa(q: Shape, k: Shape, v: Shape) -> tuple[int, int]:
    """The MACs of QK^T and of AV, for (..., tokens, head size)."""
    pairs = prod(q[:-1]) * k[-2]
    return pairs * q[-1], pairs * v[-1]


@_counts("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu")
@_counts("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention")
@_counts("_scaled_dot_product_fused_attention_overrideable", "higher_order::flex_attention")
def _attention(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return sum(_sdpa(q, k, v))


@_counts("_scaled_dot_product_flash_attention_backward", "_scaled_dot_product_flash_attention_for_cpu_backward")
@_counts("_scaled_dot_product_efficient_attention_backward", "_scaled_dot_product_cudnn_attention_backward")
@_counts("_scaled_dot_product_fused_attention_overrideable_backward")
def _attention_backward(_grad: Shape, q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> Count:
    qk, av = _sdpa(q, k, v)  # dV and dP cost AV each, dQ and dK cost QK^T each
    return Count(2 * qk + 2 * av, recompute_macs=qk)


# Recurrent layers


def _rnn(x: Shape, weights: Sequence[Shape]) -> int:
    # Every token meets every weight matrix of every layer and direction once; the vectors are biases.
    return prod(x[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


@_counts("mkldnn_rnn_layer")
def _mkldnn_rnn_layer(x: Shape, *weights: Any, **_: Any) -> int:
    return _rnn(x, weights[:4])


@_counts("mkldnn_rnn_layer_backward")
def _mkldnn_rnn_layer_backward(x: Shape, *weights: Any, **_: Any) -> int:
    return 2 * _rnn(x, weights[:4])
