"""What matrix products and convolutions compute: a pure function of shapes for each op. Must not import torch.

A count is in MACs, for the whole batch: one MAC is one multiply-accumulate of a contraction, and 2 FLOPs. What all hold
to:

* A convolution is counted dense: every kernel tap at every position, padding included, as published numbers are.
* Attention is counted dense: full QK^T and AV; causal, windowed and block masks are not discounted.
* An outer product contracts nothing (``addr``, ``ger``, ``outer``): a pure multiply, zero. The same product written
  as ``mm`` is one MAC for each element, because what runs is a matrix product. A distance (``cdist``) is a reduction
  of element-wise work, zero, unless it runs as a matrix product: then the inner products count, not the two columns
  that hold the norms.
* A complex MAC is one MAC: shapes do not tell a dtype.
* Head sizes and group sizes are those the kernel is called with, also where PyTorch has padded them.
* Only the gradients that run are counted. A fused kernel that computes all at once is counted in full, also where some
  of them are not needed: the backward of attention and of recurrent layers.
* A product of a sparse and a dense operand is one MAC for each stored value and each column of the dense one; stored
  zeros and duplicates count. What a product of two sparse operands costs lies in where their values are: unknown.
* Any other sparse tensor, a nested one, and one with two values in an element (fp4), makes a count unknown: its shape
  does not tell how many values it has. So do sequence lengths that are values of a tensor, unless the shapes leave
  only one possibility.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, Self, TypeVar


@dataclass(frozen=True, slots=True)
class Count:
    """What one execution of an op computes, in MACs, for the whole batch."""

    macs: int
    """What the mathematics needs."""
    recompute_macs: int = 0
    """Forward work that runs again inside this op, as QK^T does in flash attention's backward. Not part of ``macs``."""


Shape = tuple[int, ...]
Mask = Sequence[bool]
Formula = Callable[..., int | Count | None]
"""Called with the op's own arguments, every tensor (also in lists) replaced by its shape, and ``out=``, the shape(s)
of what the op returned. An int is ``Count(int)``; ``None`` is unknown for these arguments."""


class SparseShape(Shape):
    """The shape of a sparse tensor (COO, CSR, CSC, BSR or BSC), and how many values it stores."""

    nnz: int
    """Stored values: explicit zeros, and the duplicates of an uncoalesced tensor, are some of them."""

    def __new__(cls, sizes: Iterable[int], nnz: int) -> Self:  # noqa: D102  # the class says it
        shape = super().__new__(cls, sizes)
        shape.nnz = nnz
        return shape


@dataclass(frozen=True, slots=True)
class ForSparse:
    """A formula that is written for sparse tensors too, and gets a :class:`SparseShape` for each."""

    formula: Formula

    def __call__(self, *shapes: Any, **named: Any) -> int | Count | None:  # noqa: D102  # a formula's own call
        return self.formula(*shapes, **named)


FORMULAS: dict[str, Formula] = {}
"""Qualified name of an op, or of one overload of it -> its formula."""

_AnyFormula = TypeVar("_AnyFormula", bound=Formula)


def counts(*names: str, sparse: bool = False) -> Callable[[_AnyFormula], _AnyFormula]:
    """Put a formula into the table: for aten ops, unless a name says its namespace."""

    def add(formula: _AnyFormula) -> _AnyFormula:
        entry = ForSparse(formula) if sparse else formula
        FORMULAS.update({name if "::" in name else f"aten::{name}": entry for name in names})
        return formula

    return add


# Matrix products


@counts("dot", "vdot", "inner", "mkldnn_linear", "_int_mm")
@counts("_scaled_mm", "_scaled_mm_v2", "_dyn_quant_matmul_4bit", "_mixed_dtypes_linear", "_weight_int8pack_mm")
@counts("_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu", "_weight_int4pack_mm_with_scales_and_zeros")
@counts("fbgemm_linear_fp16_weight", "fbgemm_linear_fp16_weight_fp32_activation", "fbgemm_linear_int8_weight")
@counts("fbgemm_linear_int8_weight_fp32_activation", "_wrapped_quantized_linear_prepacked")
@counts("affine_grid_generator", "cudnn_affine_grid_generator", "mkl::_mkl_linear")
@counts("mkldnn::_linear_pointwise", "onednn::qlinear_pointwise", "onednn::linear_dynamic_fp16")
@counts("onednn::linear_relu_dynamic_fp16", "quantized::matmul", "quantized::int4mm_packed_weight_cpu")
@counts("quantized::linear", "quantized::linear_relu", "quantized::linear_leaky_relu", "quantized::linear_tanh")
@counts("quantized::linear_dynamic", "quantized::linear_relu_dynamic", "quantized::linear_dynamic_fp16")
@counts("quantized::linear_relu_dynamic_fp16", "quantized::linear_dynamic_fp16_unpacked_weight")
def _contract_last(a: Shape, *_: Any, out: Shape, **__: Any) -> int:
    # Every value of the result sums over the last dimension of the first operand; the second may be packed in any form.
    return prod(out) * a[-1] if a else 0


@counts("_addmm_activation", "baddbmm")
def _add_contract_last(_bias: Shape, a: Shape, *_: Any, out: Shape, **__: Any) -> int:
    return prod(out) * a[-1]


# These take sparse operands, too.


@counts("mm", "bmm", "mv", "matmul", "linalg_matmul", sparse=True)
def _product(a: Shape, b: Shape, *_: Any, out: Shape, **__: Any) -> int | None:
    if isinstance(a, SparseShape):
        # Every stored value meets each column of the other operand: of a vector there is one.
        return None if isinstance(b, SparseShape) or len(b) not in (1, len(a)) else a.nnz * prod(b[len(a) - 1 :])
    if isinstance(b, SparseShape):
        return prod(a[:-1]) * b.nnz if len(b) == 2 else None
    return _contract_last(a, out=out)


@counts("addmm", "addmv", "_sparse_addmm", sparse=True)
def _add_product(bias: Shape, a: Shape, b: Shape, *, out: Shape, **_: Any) -> int | None:
    return None if isinstance(bias, SparseShape) else _product(a, b, out=out)


@counts("linear", sparse=True)
def _linear(x: Shape, weight: Shape, *_: Any, out: Shape, **__: Any) -> int | None:
    if isinstance(x, SparseShape):
        return None
    return prod(x[:-1]) * weight.nnz if isinstance(weight, SparseShape) else _contract_last(x, out=out)


@counts("_sparse_mm", "_sparse_mm_reduce_impl", sparse=True)
def _sparse_mm(a: Shape, b: Shape, reduce: str = "sum", *, out: Any) -> int | None:
    # A greatest or least product is picked: nothing is summed.
    return _product(a, b, out=out) if reduce in ("sum", "mean") else 0


@counts("_sparse_mm_reduce_impl_backward", sparse=True)
def _sparse_mm_backward(
    a: SparseShape, _grad: Shape, b: Shape, reduce: str, _picked: Shape, mask: Mask, **_: Any
) -> int:
    return sum(mask) * a.nnz * b[-1] if reduce in ("sum", "mean") else 0


@counts("sparse_sampled_addmm", sparse=True)
def _sampled_addmm(places: SparseShape, a: Shape, *_: Any, **__: Any) -> int:
    # The product is computed only where the first operand stores a value.
    return places.nnz * a[-1]


@counts("addbmm")
def _addbmm(_bias: Shape, a: Shape, b: Shape, **_: Any) -> int:
    return prod(a) * b[-1]


@counts("_foreach_mm", "_native::_foreach_mm_native_0")
def _foreach_mm(a: Sequence[Shape], b: Sequence[Shape], **_: Any) -> int:
    return sum(prod(x) * y[-1] for x, y in zip(a, b, strict=True))


@counts("inductor::_mm_plus_mm")
def _mm_plus_mm(a: Shape, b: Shape, c: Shape, d: Shape, *_: Any, **__: Any) -> int:
    return prod(a) * b[-1] + prod(c) * d[-1]


@counts("_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2")
def _grouped_mm(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    # The groups split one dimension, so their sizes do not matter. The offsets are taken to cover all of it.
    if len(a) == 3 and len(b) == 2:
        return prod(a[1:]) * b[-1]
    return prod(a) * b[-1]


@counts("linear_backward", "mkldnn_linear_backward")
def _linear_backward(x: Shape, grad: Shape, _weight: Shape, mask: Mask, **_: Any) -> int:
    return (mask[0] + mask[1]) * prod(grad) * x[-1]


@counts("mkldnn_linear_backward_input")
def _linear_backward_input(x: Shape, grad: Shape, _weight: Shape, **_: Any) -> int:
    return prod(grad) * x[-1]


@counts("mkldnn_linear_backward_weights")
def _linear_backward_weights(grad: Shape, x: Shape, *_: Any, **__: Any) -> int:
    return prod(grad) * x[-1]


@counts("matmul_backward")
def _matmul_backward(grad: Shape, a: Shape, _b: Shape, mask: Mask, **_: Any) -> int:
    return sum(mask) * prod(grad) * a[-1]


@counts("tensordot")
def _tensordot(a: Shape, b: Shape, dims_a: Sequence[int], dims_b: Sequence[int], *, out: Shape) -> int | None:
    if [a[dim] for dim in dims_a] != [b[dim] for dim in dims_b]:
        return None  # a dimension of size 1 is broadcast
    if prod(out) == 1:
        return 0  # what runs then is a multiply and a sum
    return prod(a) * prod(size for dim, size in enumerate(b) if dim not in {other % len(b) for other in dims_b})


@counts("einsum")
def _einsum(equation: str, operands: Sequence[Shape], **_: Any) -> int | None:
    """Two operands; the cost of more depends on the order in which they are contracted."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(operands) == 1:
        return 0
    if len(operands) > 2 or "." in equation:
        return None
    kept = set(result) if arrow else {label for label in left if left.count(label) == 1}
    sizes = {*zip(chain(*terms), chain(*operands), strict=True)}
    shared = set(terms[0]) & set(terms[1])
    if len(sizes) != len(set(chain(*terms))):
        return None  # a dimension of size 1 is broadcast
    return prod(size for label, size in sizes if label in shared | kept) if shared - kept else 0


@counts("bilinear")
def _bilinear(a: Shape, b: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    rows = prod(a[:-1])
    return rows * prod(weight) + rows * weight[0] * b[-1]


@counts("_trilinear")
def _trilinear(
    a: Shape,
    b: Shape,
    c: Shape,
    expand_a: list[int],
    expand_b: list[int],
    expand_c: list[int],
    summed: list[int],
    *_: Any,
    **__: Any,
) -> int:
    """The first two are contracted over what the third does not have, and the rest with the third; ``nn.Bilinear``."""
    sizes: dict[int, int] = {}
    for shape, expand in ((a, expand_a), (b, expand_b), (c, expand_c)):
        own = [dim for dim in range(len(shape) + len(expand)) if dim not in expand]
        sizes.update(zip(own, shape, strict=True))
    first = [dim for dim in summed if dim in expand_c]
    second = [dim for dim in summed if dim not in expand_c]
    pair = [dim for dim in sizes if not (dim in expand_a and dim in expand_b)]
    macs = prod(sizes[dim] for dim in pair) if first else 0
    return macs + (prod(size for dim, size in sizes.items() if dim not in first) if second else 0)


@counts("_euclidean_dist")
def _euclidean_dist(a: Shape, _b: Shape, *, out: Shape) -> int:
    return prod(out) * a[-1]


@counts("cdist", "_cdist_forward")
def _cdist(a: Shape, b: Shape, p: float = 2.0, mode: int | None = None, *, out: Shape) -> int:
    by_product = mode == 1 or (not mode and (a[-2] > 25 or b[-2] > 25))  # as at::native::cdist_impl chooses
    return prod(out) * a[-1] if p == 2 and by_product else 0


@counts("affine_grid_generator_backward", "cudnn_affine_grid_generator_backward")
def _affine_grid_backward(grad: Shape, *_: Any, **__: Any) -> int:
    return prod(grad) * (grad[-1] + 1)  # theta has one column more than a point has coordinates


# Convolutions


def _conv(positions: Shape, weight: Shape) -> int:
    # Every value of the weight is used once at each position of the output; transposed: of the input.
    if len(positions) < len(weight):
        positions = (1, *positions)
    return positions[0] * prod(positions[2:]) * prod(weight)


@counts("convolution", "_convolution", "convolution_overrideable")
def _convolution(
    x: Shape,
    weight: Shape,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    *_: Any,
    out: Shape,
) -> int:
    return _conv(x if transposed else out, weight)


@counts("conv1d", "conv2d", "conv3d", "_convolution_mode", "mkldnn_convolution", "_nnpack_spatial_convolution")
@counts("cudnn_convolution", "cudnn_convolution_relu", "cudnn_convolution_add_relu", "_mps_convolution")
@counts("miopen_convolution", "miopen_convolution_relu", "miopen_convolution_add_relu", "miopen_depthwise_convolution")
@counts("_conv_depthwise2d", "conv_depthwise3d", "thnn_conv2d", "_slow_conv2d_forward", "slow_conv3d")
@counts("slow_conv3d_forward", "slow_conv_dilated2d", "slow_conv_dilated3d")
@counts("mkldnn::_convolution_pointwise", "torchvision::deform_conv2d")
def _conv_forward(_x: Shape, weight: Shape, *_: Any, out: Shape, **__: Any) -> int:
    return _conv(out, weight)


@counts("mkldnn::_convolution_pointwise.binary", "mkldnn::_convolution_pointwise_.binary")
def _conv_binary(_x: Shape, _other: Shape, weight: Shape, *_: Any, out: Shape, **__: Any) -> int:
    return _conv(out, weight)


@counts(
    "onednn::qconv_pointwise", "onednn::qconv1d_pointwise", "onednn::qconv2d_pointwise", "onednn::qconv3d_pointwise"
)
def _quantized_conv(_x: Shape, _scale: Any, _zero: Any, weight: Shape, *_: Any, out: Shape, **__: Any) -> int:
    return _conv(out, weight)


@counts("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "cudnn_convolution_transpose")
@counts("miopen_convolution_transpose", "_mps_convolution_transpose", "slow_conv_transpose2d", "slow_conv_transpose3d")
def _conv_transpose(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return _conv(x, weight)


@counts("conv_tbc")
def _conv_tbc(_x: Shape, weight: Shape, *_: Any, out: Shape, **__: Any) -> int:
    return prod(out[:2]) * prod(weight)


# Each gradient pairs the same values as the forward, once.


@counts("convolution_backward")
def _convolution_backward(
    grad: Shape, x: Shape, weight: Shape, _bias: Any, _s: Any, _p: Any, _d: Any, transposed: bool, *rest: Any, **_: Any
) -> int:
    mask: Mask = rest[-1]
    return (mask[0] + mask[1]) * _conv(x if transposed else grad, weight)


@counts("convolution_backward_overrideable")
def _convolution_backward_overrideable(
    grad: Shape, x: Shape, weight: Shape, _s: Any, _p: Any, _d: Any, transposed: bool, *rest: Any, **_: Any
) -> int:
    return _convolution_backward(grad, x, weight, None, _s, _p, _d, transposed, *rest)


@counts("_slow_conv2d_backward")
def _slow_conv2d_backward(
    grad: Shape,
    _x: Shape,
    weight: Shape,
    _k: Any,
    _s: Any,
    _p: Any,
    mask: Mask = (True, True, True),
    **_: Any,
) -> int:
    return (mask[0] + mask[1]) * _conv(grad, weight)


@counts("mps_convolution_backward")
def _mps_convolution_backward(_x: Shape, grad: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    mask: Mask = rest[-1]
    return (mask[0] + mask[1]) * _conv(grad, weight)


@counts("mps_convolution_transpose_backward")
def _mps_convolution_transpose_backward(x: Shape, _grad: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    mask: Mask = rest[-1]
    return (mask[0] + mask[1]) * _conv(x, weight)


@counts("conv_tbc_backward")
def _conv_tbc_backward(grad: Shape, _x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(grad[:2]) * prod(weight)


@counts("torchvision::_deform_conv2d_backward")
def _deform_conv2d_backward(grad: Shape, _x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * _conv(grad, weight)
