"""What one execution of an op computes: the answer for every op, and the door for a user's own formula.

Every op has one of three answers, and :func:`classify` gives it:

* a **formula**: in :mod:`summarycb.contractions` and :mod:`summarycb.fused`, or a user's by :func:`register_formula`;
* **zero by convention**: element-wise work, reductions, copies, look-ups ..., listed in :mod:`summarycb.conventions`;
* **unknown**: everything else, and what a formula cannot read from the shapes. Unknown is ``None``, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from summarycb.contractions import Count, Formula, ForSparse, Shape, SparseShape
from summarycb.conventions import is_zero
from summarycb.errors import SummaryError
from summarycb.fused import FORMULAS

__all__ = ["Count", "Formula", "SparseShape", "Verdict", "classify", "count", "evaluate", "register_formula"]


class Verdict(Enum):
    """The answer for an op that has no formula."""

    ZERO = "zero by convention"
    UNKNOWN = "unknown"


_AnyFormula = TypeVar("_AnyFormula", bound=Formula)

_ZERO_COUNT = Count(0)
_registered: dict[str, Formula] = {}
_answers: dict[object, Formula | Verdict] = {}


def classify(func: object) -> Formula | Verdict:
    """The formula of an op as a dispatch mode sees it, or why it has none. Cached: one dictionary look-up."""
    answer = _answers.get(func)
    if answer is None:
        answer = _answers[func] = _classify(func)
    return answer


def evaluate(formula: Formula, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Count | None:
    """What one execution with these arguments and this result computes; None when it is unknown.

    What a user's formula raises goes through; a result that is no count raises :class:`SummaryError`.
    """
    sparse = isinstance(formula, ForSparse)
    try:
        shapes = _shapes(args, sparse)
        named = {name: _shapes(value, sparse) for name, value in kwargs.items()}
        named["out"] = _shapes(out, sparse)
    except _NoShape:
        return None
    result = formula(*shapes, **named)
    if result is None or isinstance(result, Count):
        return result
    if not isinstance(result, int):
        name = getattr(formula, "__qualname__", repr(formula))
        raise SummaryError(
            f"the formula {name} returned {result!r}; it must return an int, a Count, or None for unknown"
        )
    return Count(result)


def count(func: object, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Count | None:
    """What one execution of an op computes: a zero count for zero by convention, None for unknown."""
    answer = classify(func)
    if answer is Verdict.ZERO:
        return _ZERO_COUNT
    if isinstance(answer, Verdict):
        return None
    return evaluate(answer, args, kwargs, out)


def register_formula(op: object, *, sparse: bool = False) -> Callable[[_AnyFormula], _AnyFormula]:
    """Say what an op computes, as a decorator: a custom op's own formula, or another one for an op that has one.

    ``op`` is ``torch.ops.mylib.my_op``, one overload of it, a ``torch.library.custom_op``, or the name
    ``"mylib::my_op"``. The function gets the op's arguments with every tensor replaced by its shape, and ``out=``,
    the shape of the result. It returns MACs as an int, a :class:`Count`, or None for unknown::

        @summarycb.register_formula("mylib::my_op")
        def my_op(x, weight, *, out):
            return math.prod(out) * x[-1]

    The backward of a custom op runs as whatever ops its registered autograd calls; one that is an op of its own is
    registered under its own name.

    What gets a sparse tensor is unknown, unless ``sparse=True`` says that the formula is written for them: the shape of
    a sparse tensor is then a :class:`SparseShape`, a tuple with ``nnz``, how many values are stored::

        @summarycb.register_formula("mylib::spmm", sparse=True)
        def spmm(adjacency, x, *, out):
            return adjacency.nnz * x[-1]

    Raises :class:`SummaryError` for what names no op.
    """
    key = _key(op)

    def register(formula: _AnyFormula) -> _AnyFormula:
        if not callable(formula):
            raise SummaryError(f"the formula of {key} must be a function of shapes, not {formula!r}")
        _registered[key] = ForSparse(formula) if sparse else formula
        _answers.clear()
        return formula

    return register


def _key(op: object) -> str:
    name = getattr(op, "_qualname", op)  # a torch.library.custom_op
    if isinstance(op, OpOverloadPacket):
        name = op._qualified_op_name
    elif isinstance(op, OpOverload):
        name = f"{op._overloadpacket._qualified_op_name}.{op._overloadname}"
    elif isinstance(op, HigherOrderOperator):
        name = f"higher_order::{op}"
    match = re.fullmatch(r"(\w+)(?:::|\.)(\w+(?:\.\w+)?)", name) if isinstance(name, str) else None
    if match is None:
        raise SummaryError(
            f"register_formula got {op!r}; it takes an op (torch.ops.mylib.my_op), one of its overloads, a "
            'torch.library.custom_op, or its name ("mylib::my_op")'
        )
    return f"{match[1]}::{match[2]}"


def _classify(func: object) -> Formula | Verdict:
    if isinstance(func, HigherOrderOperator):
        names = [f"higher_order::{func}"]
    elif isinstance(func, OpOverload):
        name = func._overloadpacket._qualified_op_name
        names = [f"{name}.{func._overloadname}", name]
        if name.endswith("_") and func._schema.is_mutable:
            names += [f"{name[:-1]}.{func._overloadname}", name[:-1]]
    else:
        return Verdict.UNKNOWN
    for table in (_registered, FORMULAS):
        for name in names:
            if name in table:
                return table[name]
    return Verdict.ZERO if isinstance(func, OpOverload) and is_zero(func, names) else Verdict.UNKNOWN


class _NoShape(Exception):
    """A tensor whose shape does not tell how many values it has."""


_DENSE = (torch.strided, torch._mkldnn)  # type: ignore[attr-defined]  # a layout that torch does not declare
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def _shapes(value: Any, sparse: bool) -> Any:
    if isinstance(value, torch.Tensor):
        return _shape(value, sparse)
    if isinstance(value, (list, tuple)):
        return [_shapes(item, sparse) for item in value]
    return value


def _shape(tensor: torch.Tensor, sparse: bool) -> Shape:
    if tensor.is_nested or tensor.dtype is torch.float4_e2m1fn_x2:
        raise _NoShape
    shape = tuple(tensor.shape)
    for size in shape:
        if type(size) is not int:  # a symbolic size
            raise _NoShape
    if tensor.layout in _DENSE:
        return shape
    # one that stands for a tensor, such as a fake one or one on meta, stores no values
    if not sparse or type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_meta:
        raise _NoShape
    if tensor.layout is torch.sparse_coo:
        return SparseShape(shape, tensor._values().numel())
    if tensor.layout in _COMPRESSED:
        return SparseShape(shape, tensor.values().numel())
    raise _NoShape
