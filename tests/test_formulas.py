"""Every expected number is derived beside it, from the shapes; what runs is the real op, forward and backward."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from summarycb import contractions, conventions, formulas, fused
from summarycb.contractions import FORMULAS
from summarycb.errors import SummaryError
from summarycb.formulas import Count, SparseShape, Verdict, classify, count, evaluate, register_formula

aten = torch.ops.aten


class Seen(TorchDispatchMode):
    """Counts what runs, as the observer does."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.recompute_macs = 0
        self.unknown: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        counted = count(func, args, kwargs or {}, out)
        if counted is None:
            self.unknown.add(str(func))
        else:
            self.macs += counted.macs
            self.recompute_macs += counted.recompute_macs
        return out


def t(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor that needs a gradient."""
    return torch.randn(shape).to(dtype).requires_grad_()


def c(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A constant: it needs no gradient."""
    return torch.randn(shape).to(dtype)


def first_tensor(out: Any) -> Tensor:
    while not isinstance(out, Tensor):
        out = out[0]
    return out


Case = tuple[Callable[[], Any], int, int, int]


def case(name: str, run: Callable[[], Any], forward: int, backward: int = 0, recompute: int = 0) -> Any:
    return pytest.param(run, forward, backward, recompute, id=name)


OFFSETS = torch.tensor([8, 16, 20, 32], dtype=torch.int32)
BF16 = torch.bfloat16

MATRIX_PRODUCTS = [
    case("mm", lambda: t(3, 4) @ t(4, 5), 3 * 4 * 5, 2 * 3 * 4 * 5),
    case("mm, one operand needs no gradient", lambda: t(3, 4) @ c(4, 5), 3 * 4 * 5, 3 * 4 * 5),
    case("mm, no gradient at all", lambda: c(3, 4) @ c(4, 5), 3 * 4 * 5),
    case("mm in place", lambda: c(3, 5).addmm_(t(3, 4), t(4, 5)), 3 * 4 * 5, 2 * 3 * 4 * 5),
    case("mm with out=", lambda: torch.mm(c(3, 4), c(4, 5), out=torch.empty(3, 5)), 3 * 4 * 5),
    case("addmm", lambda: torch.addmm(t(5), t(3, 4), t(4, 5)), 3 * 4 * 5, 2 * 3 * 4 * 5),
    case("bmm", lambda: torch.bmm(t(2, 3, 4), t(2, 4, 5)), 2 * 3 * 4 * 5, 2 * 2 * 3 * 4 * 5),
    case("baddbmm", lambda: torch.baddbmm(t(3, 5), t(2, 3, 4), t(2, 4, 5)), 2 * 3 * 4 * 5, 2 * 2 * 3 * 4 * 5),
    case("addbmm", lambda: torch.addbmm(t(3, 5), t(2, 3, 4), t(2, 4, 5)), 2 * 3 * 4 * 5, 2 * 2 * 3 * 4 * 5),
    # the matrix's gradient is an outer product: element-wise
    case("mv", lambda: torch.mv(t(3, 4), t(4)), 3 * 4, 3 * 4),
    case("addmv", lambda: torch.addmv(t(3), t(3, 4), t(4)), 3 * 4, 3 * 4),
    # the gradients are a scalar times a vector
    case("dot", lambda: torch.dot(t(5), t(5)), 5),
    case("vdot", lambda: torch.vdot(t(5), t(5)), 5),
    case("outer product", lambda: torch.outer(t(3), t(4)), 0, 0),
    # an outer product forward; each gradient sums over the other vector: a matrix-vector product
    case("addr", lambda: torch.addr(t(3, 4), t(3), t(4)), 0, 3 * 4 + 3 * 4),
    case("kron", lambda: torch.kron(t(2, 3), t(3, 4)), 0, 0),
    case("inner", lambda: torch.inner(t(2, 4), t(3, 4)), 2 * 3 * 4, 2 * 2 * 3 * 4),
    case("linear", lambda: F.linear(t(2, 3, 4), t(5, 4), t(5)), 2 * 3 * 4 * 5, 2 * 2 * 3 * 4 * 5),
    case("linear, the first of a model", lambda: F.linear(c(2, 3, 4), t(5, 4), t(5)), 2 * 3 * 4 * 5, 2 * 3 * 4 * 5),
    case("linear, frozen", lambda: F.linear(t(2, 3, 4), c(5, 4), c(5)), 2 * 3 * 4 * 5, 2 * 3 * 4 * 5),
    case("matmul, broadcast", lambda: t(2, 1, 3, 4) @ t(5, 4, 6), 2 * 5 * 3 * 4 * 6, 2 * 2 * 5 * 3 * 4 * 6),
    # runs as mv: the matrices' gradient is an outer product
    case("matmul, vector", lambda: t(4) @ t(2, 4, 5), 2 * 4 * 5, 2 * 4 * 5),
    case("einsum", lambda: torch.einsum("bij,bjk->bik", t(2, 3, 4), t(2, 4, 5)), 2 * 3 * 4 * 5, 2 * 2 * 3 * 4 * 5),
    case("einsum, implicit result", lambda: torch.einsum("ij,jk", t(3, 4), t(4, 5)), 3 * 4 * 5, 2 * 3 * 4 * 5),
    # i is in one operand alone: it is summed before the product. One of the gradients is an outer product run as bmm
    case("einsum, summed alone", lambda: torch.einsum("ij,jk->k", t(3, 4), t(4, 5)), 4 * 5, 2 * 4 * 5),
    case("einsum, outer product", lambda: torch.einsum("i,j->ij", t(3), t(4)), 0, 0),
    case("tensordot", lambda: torch.tensordot(t(2, 3, 4), t(4, 3, 5), ([1, 2], [1, 0])), 2 * 12 * 5, 2 * 2 * 12 * 5),
    # groups of 8, 8, 4 and 12 rows: together 32 x 16 x 8, whatever the split
    case(
        "grouped mm, rows in groups",
        lambda: F.grouped_mm(t(32, 16, dtype=BF16), t(4, 16, 8, dtype=BF16), offs=OFFSETS),
        32 * 16 * 8,
        2 * 32 * 16 * 8,
    ),
    case(
        "grouped mm, columns in groups",
        lambda: F.grouped_mm(t(4, 8, 16, dtype=BF16), t(16, 32, dtype=BF16), offs=OFFSETS),
        8 * 16 * 32,
        2 * 8 * 16 * 32,
    ),
    case(
        "grouped mm, inner dimension in groups",
        lambda: F.grouped_mm(t(8, 32, dtype=BF16), t(32, 16, dtype=BF16), offs=OFFSETS),
        8 * 32 * 16,
        2 * 8 * 32 * 16,
    ),
    case("int8 mm", lambda: torch._int_mm(torch.ones(17, 8).char(), torch.ones(8, 16).char()), 17 * 8 * 16),
    case(
        "int8 packed",
        lambda: torch._weight_int8pack_mm(c(4, 32, dtype=BF16), torch.ones(16, 32).char(), c(16, dtype=BF16)),
        4 * 32 * 16,
    ),
    case(
        "fp8 mm",
        lambda: torch._scaled_mm(
            c(16, 32).to(torch.float8_e4m3fn), c(8, 32).to(torch.float8_e4m3fn).t(), torch.ones(()), torch.ones(())
        ),
        16 * 32 * 8,
    ),
    # nn.Bilinear, 3 rows, 4 and 5 values in, 6 out. Forward: x1 with the weight, then with x2
    # backward: the same twice for x1 and x2, and the weight's gradient, x1 (outer) dy with x2
    case(
        "bilinear",
        lambda: nn.Bilinear(4, 5, 6)(t(3, 4), t(3, 5)),
        3 * 6 * 4 * 5 + 3 * 6 * 5,
        (3 * 6 * 4 * 5 + 3 * 4 * 5) + (3 * 6 * 4 * 5 + 3 * 6 * 5) + 3 * 6 * 4 * 5,
    ),
    # more than 25 points on either side: by matrix product
    case("cdist by product", lambda: torch.cdist(t(3, 26, 5), t(3, 7, 5)), 3 * 26 * 7 * 5, 2 * 3 * 26 * 7 * 5),
    case("cdist by product, 26 others", lambda: torch.cdist(t(7, 5), t(26, 5)), 7 * 26 * 5, 2 * 7 * 26 * 5),
    case("cdist, direct", lambda: torch.cdist(t(3, 25, 5), t(3, 25, 5)), 0, 0),
    case("pdist", lambda: F.pdist(t(4, 5)), 0, 0),
    # 20 points of 2 coordinates, each from 3; twice for 2 images
    case("affine grid", lambda: F.affine_grid(t(2, 2, 3), [2, 3, 4, 5], False), 2 * 20 * 2 * 3, 2 * 20 * 2 * 3),
    case(
        "affine grid, backward whole",
        lambda: aten.affine_grid_generator_backward(c(2, 4, 5, 2), [2, 3, 4, 5], False),
        2 * 20 * 2 * 3,
    ),
    case(
        "two products at once",
        lambda: torch.ops.inductor._mm_plus_mm(c(3, 4), c(4, 5), c(3, 6), c(6, 5), out=c(3, 5)),
        3 * 4 * 5 + 3 * 6 * 5,
    ),
    case("fold", lambda: F.fold(F.unfold(t(1, 2, 4, 4), 2), (4, 4), 2), 0, 0),
]

X = (2, 4, 9, 9)
# 3 x 3 over 9 x 9 leaves 7 x 7
CONV = 2 * 7 * 7 * 6 * 4 * 9
CONVOLUTIONS = [
    case("conv2d", lambda: F.conv2d(t(*X), t(6, 4, 3, 3), t(6)), CONV, 2 * CONV),
    case("conv2d, the first of a model", lambda: F.conv2d(c(*X), t(6, 4, 3, 3)), CONV, CONV),
    case("conv2d, frozen", lambda: F.conv2d(t(*X), c(6, 4, 3, 3)), CONV, CONV),
    case("conv2d, only the bias", lambda: F.conv2d(c(*X), c(6, 4, 3, 3), t(6)), CONV, 0),
    case("conv2d, unbatched", lambda: F.conv2d(t(4, 9, 9), t(6, 4, 3, 3)), CONV // 2, CONV),
    # all 9 taps count at each of 81 positions, those on the padding too
    case("padding", lambda: F.conv2d(t(*X), t(6, 4, 3, 3), padding=1), 2 * 81 * 6 * 4 * 9, 2 * 2 * 81 * 6 * 4 * 9),
    case("same", lambda: F.conv2d(t(*X), t(6, 4, 5, 5), padding="same"), 2 * 81 * 6 * 4 * 25, 2 * 2 * 81 * 6 * 4 * 25),
    # (9 - 2 * 2 - 1) // 2 + 1 = 3 positions a side; each of 6 outputs sees 2 of 4 inputs
    case(
        "groups, stride and dilation",
        lambda: F.conv2d(t(*X), t(6, 2, 3, 3), stride=2, dilation=2, groups=2),
        2 * 3 * 3 * 6 * 2 * 9,
        2 * 2 * 3 * 3 * 6 * 2 * 9,
    ),
    case("depthwise", lambda: F.conv2d(t(*X), t(8, 1, 3, 3), groups=4), 2 * 49 * 8 * 9, 2 * 2 * 49 * 8 * 9),
    case("conv1d", lambda: F.conv1d(t(2, 4, 9), t(6, 4, 3), padding=1), 2 * 9 * 6 * 4 * 3, 2 * 2 * 9 * 6 * 4 * 3),
    case("conv3d", lambda: F.conv3d(t(2, 4, 5, 5, 5), t(6, 4, 2, 2, 2)), 2 * 64 * 6 * 4 * 8, 2 * 2 * 64 * 6 * 4 * 8),
    # transposed: each of the 25 inputs meets the weight (4 in, 6 / 2 out, 3 x 3)
    case(
        "transposed, groups and stride",
        lambda: F.conv_transpose2d(t(2, 4, 5, 5), t(4, 3, 3, 3), stride=2, output_padding=1, groups=2),
        2 * 25 * 4 * 3 * 9,
        2 * 2 * 25 * 4 * 3 * 9,
    ),
    case(
        "transposed, frozen", lambda: F.conv_transpose1d(t(2, 4, 5), c(4, 6, 3)), 2 * 5 * 4 * 6 * 3, 2 * 5 * 4 * 6 * 3
    ),
    case("transposed, unbatched", lambda: F.conv_transpose1d(t(4, 5), t(4, 6, 3)), 5 * 4 * 6 * 3, 2 * 5 * 4 * 6 * 3),
    # 9 - 3 + 1 = 7 steps
    case("conv_tbc", lambda: torch.conv_tbc(t(9, 2, 4), t(3, 4, 6), t(6)), 7 * 2 * 3 * 4 * 6, 2 * 7 * 2 * 3 * 4 * 6),
]

# batch 2, 4 heads, 5 queries, 7 keys, head size 8
QK = 2 * 4 * 5 * 7 * 8
Q, K = (2, 4, 5, 8), (2, 4, 7, 8)


def layer_macs(tokens: int, keys: int, width: int, hidden: int) -> int:
    """Q, K, V and output projection; QK^T and AV over all heads; the two layers of the feed-forward."""
    return tokens * 4 * width * width + tokens * keys * 2 * width + tokens * 2 * width * hidden


def attend_to_itself(module: nn.MultiheadAttention, x: Tensor) -> Tensor:
    return first_tensor(module(x, x, x, need_weights=False))


ATTENTION = [
    # AV costs as much as QK^T here; the backward is twice the forward, and QK^T runs again
    case("flash", lambda: F.scaled_dot_product_attention(t(*Q), t(*K), t(*K)), 2 * QK, 4 * QK, QK),
    case(
        "causal is not discounted",
        lambda: F.scaled_dot_product_attention(t(*Q), t(*Q), t(*Q), is_causal=True),
        2 * 2 * 4 * 5 * 5 * 8,
        4 * 2 * 4 * 5 * 5 * 8,
        2 * 4 * 5 * 5 * 8,
    ),
    case(
        "grouped queries: 2 heads of K and V serve 4 of Q",
        lambda: F.scaled_dot_product_attention(t(*Q), t(2, 2, 7, 8), t(2, 2, 7, 8), enable_gqa=True),
        2 * QK,
        4 * QK,
        QK,
    ),
    # this kernel computes the gradients of K and V, too
    case("flash, only Q needs it", lambda: F.scaled_dot_product_attention(t(*Q), c(*K), c(*K)), 2 * QK, 4 * QK, QK),
    # a mask that needs a gradient, values of another size, and no heads: all run as matrix products, nothing runs again
    case(
        "math, mask",
        lambda: F.scaled_dot_product_attention(t(*Q), t(*K), t(*K), attn_mask=t(5, 7)),
        2 * QK,
        4 * QK,
    ),
    case(
        "math, values of size 6",
        lambda: F.scaled_dot_product_attention(t(*Q), t(*K), t(2, 4, 7, 6)),
        QK + 2 * 4 * 5 * 7 * 6,
        2 * QK + 2 * 2 * 4 * 5 * 7 * 6,
    ),
    case(
        "math, no heads",
        lambda: F.scaled_dot_product_attention(t(4, 5, 8), t(4, 7, 8), t(4, 7, 8)),
        2 * 4 * 5 * 7 * 8,
        4 * 4 * 5 * 7 * 8,
    ),
    # dP and dQ: what K and V need is left out
    case(
        "math, only Q needs it",
        lambda: F.scaled_dot_product_attention(t(4, 5, 8), c(4, 7, 8), c(4, 7, 8)),
        2 * 4 * 5 * 7 * 8,
        2 * 4 * 5 * 7 * 8,
    ),
    # 2 x 5 tokens of width 16; the weights are asked for, so no fused kernel
    case(
        "nn.MultiheadAttention",
        lambda: nn.MultiheadAttention(16, 2, batch_first=True)(t(2, 5, 16), t(2, 5, 16), t(2, 5, 16)),
        2 * layer_macs(5, 5, 16, 0),
        2 * 2 * layer_macs(5, 5, 16, 0),
    ),
    # no dropout, so the flash kernel runs: QK^T runs again
    case(
        "nn.TransformerEncoderLayer",
        lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)(t(2, 5, 16)),
        2 * layer_macs(5, 5, 16, 32),
        2 * 2 * layer_macs(5, 5, 16, 32),
        2 * 5 * 5 * 16,
    ),
]

# an LSTM of 4 in and 6 hidden: 4 gates x 6 rows; 5 steps of 2
LSTM = 24 * 4 + 24 * 6


def packed() -> Any:
    return pack_padded_sequence(c(5, 2, 4), torch.tensor([5, 3]))


RECURRENT = [
    case("LSTM", lambda: nn.LSTM(4, 6)(t(5, 2, 4)), 10 * LSTM, 2 * 10 * LSTM),
    # this kernel computes all gradients, needed or not
    case("LSTM, the first of a model", lambda: nn.LSTM(4, 6)(c(5, 2, 4)), 10 * LSTM, 2 * 10 * LSTM),
    case("LSTM, frozen", lambda: nn.LSTM(4, 6).requires_grad_(False)(t(5, 2, 4)), 10 * LSTM, 2 * 10 * LSTM),
    case("LSTM, unbatched", lambda: nn.LSTM(4, 6)(t(5, 4)), 5 * LSTM, 2 * 5 * LSTM),
    # the second layer sees both directions of the first
    case(
        "LSTM, two layers, both directions, batch first",
        lambda: nn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=True)(t(2, 5, 4)),
        10 * (2 * LSTM + 2 * (24 * 12 + 24 * 6)),
        2 * 10 * (2 * LSTM + 2 * (24 * 12 + 24 * 6)),
    ),
    # with a projection it runs step by step. Backward: the weights' gradients at all steps, that of the state at
    # all but the first (it starts at zero), that of what is projected at all
    case(
        "LSTM, projection",
        lambda: nn.LSTM(4, 6, proj_size=3)(c(5, 2, 4)),
        10 * (24 * 4 + 24 * 3 + 3 * 6),
        10 * (24 * 4 + 24 * 3 + 3 * 6) + 8 * 24 * 3 + 10 * 3 * 6,
    ),
    # 5 + 3 tokens; 2 of them are at the first step
    case("LSTM, packed", lambda: nn.LSTM(4, 6)(packed()), 8 * LSTM, 8 * LSTM + 6 * 24 * 6),
    case("GRU", lambda: nn.GRU(4, 6)(c(5, 2, 4)), 10 * (18 * 4 + 18 * 6), 10 * (18 * 4 + 18 * 6) + 8 * 18 * 6),
    case("GRU, packed", lambda: nn.GRU(4, 6)(packed()), 8 * (18 * 4 + 18 * 6), 8 * (18 * 4 + 18 * 6) + 6 * 18 * 6),
    case("RNN", lambda: nn.RNN(4, 6)(c(5, 2, 4)), 10 * (6 * 4 + 6 * 6), 10 * (6 * 4 + 6 * 6) + 8 * 6 * 6),
    case("LSTMCell", lambda: nn.LSTMCell(4, 6)(c(2, 4)), 2 * LSTM, 2 * LSTM),
    case("GRUCell", lambda: nn.GRUCell(4, 6)(c(2, 4)), 2 * (18 * 4 + 18 * 6), 2 * (18 * 4 + 18 * 6)),
    case("RNNCell", lambda: nn.RNNCell(4, 6)(c(2, 4)), 2 * (6 * 4 + 6 * 6), 2 * (6 * 4 + 6 * 6)),
]

ZERO_BY_CONVENTION = [
    case("embedding", lambda: F.embedding(torch.tensor([1, 2]), t(5, 3)), 0),
    case("embedding bag", lambda: F.embedding_bag(torch.tensor([[1, 2]]), t(5, 3)), 0),
    case("layer norm", lambda: F.layer_norm(t(2, 3), (3,), t(3), t(3)), 0),
    case("batch norm", lambda: nn.BatchNorm2d(4)(t(*X)), 0),
    case("group norm", lambda: nn.GroupNorm(2, 4)(t(*X)), 0),
    case("rms norm", lambda: F.rms_norm(t(2, 3), (3,), t(3)), 0),
    case("softmax", lambda: t(2, 3).softmax(-1), 0),
    case("gelu", lambda: F.gelu(t(2, 3)), 0),
    case("dropout", lambda: F.dropout(t(2, 3)), 0),
    case("max pool", lambda: F.max_pool2d(t(*X), 2), 0),
    case("interpolate", lambda: F.interpolate(t(*X), scale_factor=2, mode="bicubic"), 0),
    case("grid sample", lambda: F.grid_sample(t(*X), t(2, 3, 3, 2), align_corners=False), 0),
    case("cross entropy", lambda: F.cross_entropy(t(2, 3), torch.tensor([0, 1])), 0),
    case("index, slice, split and cat", lambda: torch.cat(t(4, 6)[torch.tensor([0, 2]), 1:5].split(2, 1)), 0),
    case("weight norm", lambda: torch._weight_norm(t(4, 3), t(4, 1), 0), 0),
    case("reductions", lambda: t(3, 4).var(0).amax() + t(3).norm() + t(3, 4).cumsum(0).logsumexp((0, 1)), 0),
]


def stored(layout: torch.layout = torch.sparse_coo, *, trained: bool = False) -> Tensor:
    """6 values of 4 x 5."""
    places = torch.tensor([[0, 0, 1, 2, 3, 3], [1, 4, 0, 2, 2, 3]])
    return torch.sparse_coo_tensor(places, c(6), (4, 5)).coalesce().to_sparse(layout=layout).requires_grad_(trained)


COO, CSR, CSC = torch.sparse_coo, torch.sparse_csr, torch.sparse_csc
SPARSE = [
    # the dense operand's gradient is a product with the transpose
    case("sparse COO mm", lambda: torch.sparse.mm(stored(), t(5, 3)), 6 * 3, 6 * 3),
    case("sparse CSR mm", lambda: torch.sparse.mm(stored(CSR), t(5, 3)), 6 * 3, 6 * 3),
    case("sparse CSC @", lambda: stored(CSC) @ t(5, 3), 6 * 3, 6 * 3),
    case("sparse mv", lambda: stored() @ t(5), 6, 6),
    case("sparse addmm", lambda: torch.addmm(t(3), stored(), t(5, 3)), 6 * 3, 6 * 3),
    case("sparse.addmm", lambda: torch.sparse.addmm(t(4, 3), stored(CSR), t(5, 3)), 6 * 3, 6 * 3),
    case("sparse addmv", lambda: torch.addmv(t(4), stored(CSR), t(5)), 6, 6),
    case("dense @ sparse", lambda: t(3, 4) @ stored(), 3 * 6, 3 * 6),
    case("vector @ sparse", lambda: t(4) @ stored(), 6, 6),
    case("sparse weight", lambda: F.linear(t(2, 3, 5), stored(CSR)), 2 * 3 * 6, 2 * 3 * 6),
    case("sparse bmm", lambda: torch.bmm(torch.stack([stored(), stored()]), t(2, 5, 3)), 2 * 6 * 3, 2 * 6 * 3),
    # both operands are dense, as they may be
    case("sparse.mm of dense tensors", lambda: torch.sparse.mm(t(4, 5), t(5, 3)), 4 * 5 * 3, 2 * 4 * 5 * 3),
    # the gradient of a trained one, 4 x 3 by 3 x 5: at its 6 places for CSR, else all of it
    case("trained CSR", lambda: torch.sparse.mm(stored(CSR, trained=True), t(5, 3)), 6 * 3, 6 * 3 + 6 * 3),
    case("trained COO", lambda: torch.sparse.mm(stored(trained=True), t(5, 3)), 6 * 3, 6 * 3 + 4 * 3 * 5),
    case("trained, alone", lambda: torch.sparse.mm(stored(CSR, trained=True), c(5, 3)), 6 * 3, 6 * 3),
    case("sparse mean", lambda: torch.sparse.mm(stored(CSR), t(5, 3), "mean"), 6 * 3, 6 * 3),
    case("sparse maximum", lambda: torch.sparse.mm(stored(CSR), t(5, 3), "amax"), 0, 0),
    # only the 6 values are computed, of 4 x 2 by 2 x 5; then two products of 6 values with 2 columns
    case(
        "sampled addmm",
        lambda: torch.sparse.sampled_addmm(stored(CSR), t(4, 2), t(2, 5)).to_dense(),
        6 * 2,
        2 * 6 * 2,
    ),
]

CASES = MATRIX_PRODUCTS + CONVOLUTIONS + ATTENTION + RECURRENT + ZERO_BY_CONVENTION + SPARSE


@pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:Sparse")
@pytest.mark.parametrize(("run", "forward", "backward", "recompute"), CASES)
def test_forward_and_backward(run: Callable[[], Any], forward: int, backward: int, recompute: int) -> None:
    with Seen() as ran_forward:
        out = run()
    with Seen() as ran_backward:
        if first_tensor(out).requires_grad:
            first_tensor(out).float().sum().backward()
    assert (ran_forward.macs, ran_forward.recompute_macs) == (forward, 0)
    assert (ran_backward.macs, ran_backward.recompute_macs) == (backward, recompute)
    assert ran_forward.unknown | ran_backward.unknown == set()


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(("run", "forward", "backward", "recompute"), CASES)
def test_what_runs_undecomposed_counts_the_same(
    run: Callable[[], Any], forward: int, backward: int, recompute: int
) -> None:
    """In inference mode a dispatch mode sees composite ops whole: linear, conv2d, lstm, matmul, einsum ..."""
    with torch.inference_mode(), Seen() as ran:
        run()
    assert (ran.macs, ran.recompute_macs, ran.unknown) == (forward, 0, set())


def meta(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype, requires_grad=dtype.is_floating_point)


RNN_WEIGHTS = [meta(24, 4), meta(24, 6), meta(24), meta(24)]
RNN_STATES = (meta(1, 2, 6), meta(1, 2, 6))
RNN_MODE = (False, 0.0, True, False)  # steps first, no dropout, in training, one direction


# the kernels of other devices, on the meta device
@pytest.mark.parametrize(
    ("run", "forward", "backward", "recompute"),
    [
        case(
            "flash", lambda: aten._scaled_dot_product_flash_attention(meta(*Q), meta(*K), meta(*K)), 2 * QK, 4 * QK, QK
        ),
        case(
            "efficient",
            lambda: aten._scaled_dot_product_efficient_attention(meta(*Q), meta(*K), meta(*K), None, True),
            2 * QK,
            4 * QK,
            QK,
        ),
        case(
            "cudnn",
            lambda: aten._scaled_dot_product_cudnn_attention(meta(*Q), meta(*K), meta(*K), None, True),
            2 * QK,
            4 * QK,
            QK,
        ),
        case(
            "another device's",
            lambda: aten._scaled_dot_product_fused_attention_overrideable(meta(*Q), meta(*K), meta(*K)),
            2 * QK,
            4 * QK,
            QK,
        ),
        # (batch, tokens, heads, size)
        case(
            "flash kernel",
            lambda: aten._flash_attention_forward(
                meta(2, 5, 4, 8), meta(2, 7, 4, 8), meta(2, 7, 4, 8), None, None, 5, 7, 0.0, False, False
            ),
            2 * QK,
            4 * QK,
            QK,
        ),
        case(
            "efficient kernel",
            lambda: aten._efficient_attention_forward(
                meta(2, 5, 4, 8), meta(2, 7, 4, 8), meta(2, 7, 4, 8), None, None, None, None, None, 0.0, 0, True
            ),
            2 * QK,
            4 * QK,
            QK,
        ),
        # two weight matrices and two biases. Their backwards do not run on the meta device: see test_by_shapes
        case(
            "cudnn RNN",
            lambda: aten._cudnn_rnn(meta(5, 2, 4), RNN_WEIGHTS, 4, None, *RNN_STATES, 2, 6, 0, 1, *RNN_MODE, [], None),
            10 * LSTM,
        ),
        case(
            "miopen RNN",
            lambda: aten.miopen_rnn(meta(5, 2, 4), RNN_WEIGHTS, 4, *RNN_STATES, 2, 6, 1, *RNN_MODE, [], None),
            10 * LSTM,
        ),
    ],
)
def test_kernels_of_other_devices(run: Callable[[], Any], forward: int, backward: int, recompute: int) -> None:
    with torch.set_grad_enabled(backward > 0):
        test_forward_and_backward(run, forward, backward, recompute)


def shapes(name: str, *arguments: Any, out: Any = (), **named: Any) -> int | Count | None:
    """A formula by itself, for ops that do not run here."""
    formula = FORMULAS[name if "::" in name else f"aten::{name}"]
    return formula(*arguments, **named, out=out)


YES, NO = (True, True, True), (False, False, False)


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        # conv2d of the cases above: 2 x 4 x 9 x 9 by 6 x 4 x 3 x 3
        *[
            pytest.param(shapes(name, X, (6, 4, 3, 3), None, out=(2, 6, 7, 7)), CONV, id=name)
            for name in ["cudnn_convolution", "miopen_convolution", "mkldnn_convolution", "_slow_conv2d_forward"]
        ],
        # what is added to the result comes second; in place, first
        pytest.param(
            shapes(
                *("mkldnn::_convolution_pointwise.binary", X, (2, 6, 7, 7), (6, 4, 3, 3), None, [0, 0]),
                *([1, 1], [1, 1], 1, "add", None, None, [], None),
                out=(2, 6, 7, 7),
            ),
            CONV,
            id="convolution and a sum",
        ),
        pytest.param(
            shapes(
                *("mkldnn::_convolution_pointwise_.binary", (2, 6, 7, 7), X, (6, 4, 3, 3), None, [0, 0]),
                *([1, 1], [1, 1], 1, "add", None, None, [], None),
                out=(2, 6, 7, 7),
            ),
            CONV,
            id="convolution and a sum in place",
        ),
        # a scale and a zero point for the input, a tensor of each for the weight's 6 channels
        pytest.param(
            shapes(
                *("onednn::qconv2d_pointwise", X, 0.1, 3, (6, 4, 3, 3), (6,), (6,), None, [1, 1], [0, 0], [1, 1], 1),
                *(0.2, 5, None, "none", [], None),
                out=(2, 6, 7, 7),
            ),
            CONV,
            id="quantized convolution",
        ),
        pytest.param(
            shapes("_conv_depthwise2d", X, (8, 1, 3, 3), (3, 3), None, out=(2, 8, 7, 7)), 2 * 49 * 8 * 9, id="depthwise"
        ),
        pytest.param(
            shapes("conv_depthwise3d", (2, 4, 5, 5, 5), (4, 1, 2, 2, 2), (2, 2, 2), None, out=(2, 4, 4, 4, 4)),
            2 * 64 * 4 * 8,
            id="depthwise 3d",
        ),
        # 25 inputs meet 4 x 3 x 3 x 3
        *[
            pytest.param(shapes(name, (2, 4, 5, 5), (4, 3, 3, 3), out=(2, 6, 12, 12)), 2 * 25 * 4 * 3 * 9, id=name)
            for name in ["cudnn_convolution_transpose", "miopen_convolution_transpose", "slow_conv_transpose2d"]
        ],
        *[
            pytest.param(
                shapes(
                    "convolution_backward", (2, 6, 7, 7), X, (6, 4, 3, 3), [6], *[[1, 1]] * 3, False, [0, 0], 1, mask
                ),
                sum(mask[:2]) * CONV,
                id=f"convolution_backward {mask}",
            )
            for mask in [YES, (True, False, True), (False, True, False), (False, False, True)]
        ],
        pytest.param(
            shapes(
                *("convolution_backward_overrideable", (2, 6, 7, 7), X, (6, 4, 3, 3)),
                *(*[[1, 1]] * 3, False, [0, 0], 1, YES),
            ),
            2 * CONV,
            id="convolution_backward_overrideable",
        ),
        pytest.param(
            shapes("mps_convolution_backward", X, (2, 6, 7, 7), (6, 4, 3, 3), *[[1, 1]] * 3, 1, YES),
            2 * CONV,
            id="mps_convolution_backward",
        ),
        *[
            pytest.param(
                shapes("_slow_conv2d_backward", (2, 6, 7, 7), X, (6, 4, 3, 3), [3, 3], [1, 1], [0, 0], mask),
                sum(mask[:2]) * CONV,
                id=f"_slow_conv2d_backward {mask}",
            )
            for mask in [YES, (True, False, True), (False, True, False), (False, False, True)]
        ],
        # the overload that says by what it writes to which gradients it computes: all
        pytest.param(
            shapes(
                *("_slow_conv2d_backward", (2, 6, 7, 7), X, (6, 4, 3, 3), [3, 3], [1, 1], [0, 0]),
                grad_input=X,
                grad_weight=(6, 4, 3, 3),
                grad_bias=(6,),
            ),
            2 * CONV,
            id="_slow_conv2d_backward, written to",
        ),
        # 25 inputs meet 4 x 3 x 3 x 3, as above
        *[
            pytest.param(
                shapes(
                    *("mps_convolution_transpose_backward", (2, 4, 5, 5), (2, 6, 12, 12), (4, 3, 3, 3)),
                    *([0, 0], [1, 1], [2, 2], [1, 1], 2, mask),
                ),
                sum(mask) * 2 * 25 * 4 * 3 * 9,
                id=f"mps_convolution_transpose_backward {mask}",
            )
            for mask in [(True, True), (True, False), (False, True)]
        ],
        # 7 steps of 2, 3 taps; both gradients, always
        pytest.param(
            shapes("conv_tbc_backward", (7, 2, 6), (9, 2, 4), (3, 4, 6), (6,), 0),
            2 * 7 * 2 * 3 * 4 * 6,
            id="conv_tbc_backward",
        ),
        pytest.param(
            shapes("torchvision::deform_conv2d", X, (6, 4, 3, 3), (2, 18, 7, 7), out=(2, 6, 7, 7)),
            CONV,
            id="deformable",
        ),
        pytest.param(
            shapes("torchvision::_deform_conv2d_backward", (2, 6, 7, 7), X, (6, 4, 3, 3), (2, 18, 7, 7)),
            2 * CONV,
            id="deformable backward",
        ),
        pytest.param(
            shapes("linear_backward", (2, 3, 4), (2, 3, 5), (5, 4), YES), 2 * 2 * 3 * 4 * 5, id="linear_backward"
        ),
        pytest.param(shapes("mkldnn_linear_backward", (6, 4), (6, 5), (5, 4), NO), 0, id="mkldnn_linear_backward"),
        # one gradient each: 6 rows of 5 with the 5 x 4 weight; of 5 and of 4 with each other
        pytest.param(
            shapes("mkldnn_linear_backward_input", [2, 3, 4], (2, 3, 5), (5, 4), out=(2, 3, 4)),
            2 * 3 * 5 * 4,
            id="mkldnn_linear_backward_input",
        ),
        pytest.param(
            shapes("mkldnn_linear_backward_weights", (2, 3, 5), (2, 3, 4), (5, 4), True, out=[(5, 4), (5,)]),
            2 * 3 * 5 * 4,
            id="mkldnn_linear_backward_weights",
        ),
        # 2 images of 4 x 5 points with 2 coordinates, of 2 x 3 x 4 with 3: each meets a point of the grid and a one
        pytest.param(
            shapes("affine_grid_generator_backward", (2, 4, 5, 2), [2, 3, 4, 5], False, out=(2, 2, 3)),
            2 * 20 * 2 * 3,
            id="affine grid backward",
        ),
        pytest.param(
            shapes("affine_grid_generator_backward", (2, 2, 3, 4, 3), [2, 1, 2, 3, 4], True, out=(2, 3, 4)),
            2 * 24 * 3 * 4,
            id="affine grid backward, 3d",
        ),
        pytest.param(
            shapes("cudnn_affine_grid_generator_backward", (2, 4, 5, 2), 2, 3, 4, 5, out=(2, 2, 3)),
            2 * 20 * 2 * 3,
            id="cudnn affine grid backward",
        ),
        pytest.param(shapes("matmul_backward", (3, 5), (3, 4), (4, 5), (True, False)), 3 * 4 * 5, id="matmul_backward"),
        # weights packed for a kernel: the result and the input tell the inner dimension
        pytest.param(
            shapes("_weight_int4pack_mm", (4, 64), (2, 1, 32, 4), 32, (2, 16, 2), out=(4, 16)), 4 * 64 * 16, id="int4"
        ),
        pytest.param(
            shapes("quantized::linear", (4, 64), None, 1.0, 0, out=(4, 16)), 4 * 64 * 16, id="quantized linear"
        ),
        pytest.param(
            shapes("_foreach_mm", [(3, 4), (2, 5)], [(4, 6), (5, 7)], out=[(3, 6), (2, 7)]),
            3 * 4 * 6 + 2 * 5 * 7,
            id="_foreach_mm",
        ),
        # 3 x 4 by 4 x 5, and 3 x 6 by 6 x 5; the last argument is what is written to
        pytest.param(
            shapes("inductor::_mm_plus_mm", (3, 4), (4, 5), (3, 6), (6, 5), (3, 5), out=(3, 5)),
            3 * 4 * 5 + 3 * 6 * 5,
            id="_mm_plus_mm",
        ),
        # a dimension of size 1 meets one of 4: what is summed before the product, the shapes do not tell
        pytest.param(shapes("einsum", "ij,jk->ik", [(3, 1), (4, 5)], out=(3, 5)), None, id="einsum, broadcast"),
        pytest.param(shapes("tensordot", (3, 1), (4, 5), [1], [0], out=(3, 5)), None, id="tensordot, broadcast"),
        pytest.param(
            shapes("_scaled_grouped_mm", (32, 16), (4, 16, 8), (32,), (4, 8), (4,), out=(32, 8)),
            32 * 16 * 8,
            id="_scaled_grouped_mm",
        ),
        # only where a weight needs its gradient is it computed; the data's always is
        *[
            pytest.param(
                shapes(name, (5, 2, 4), [(24, 4), (24, 6), (24,), (24,)], *[None] * 18, mask),
                (1 + mask[3]) * 10 * LSTM,
                id=f"{name} {mask}",
            )
            for name in ["_cudnn_rnn_backward", "miopen_rnn_backward"]
            for mask in [(False, False, False, True), (True, False, False, False)]
        ],
        # the batch is sixth, after gradients of the result and the states and what the forward has kept of the gates
        # and cells; the weights of two layers are ninth, after the results of all layers and the states
        pytest.param(
            shapes(
                *("lstm_mps_backward", (5, 2, 6), None, None, (2, 5, 2, 24), (2, 5, 2, 6), (5, 2, 4), (2, 5, 2, 6)),
                *([(2, 2, 6), (2, 2, 6)], [(24, 4), (24, 6), (24,), (24,), (24, 6), (24, 6), (24,), (24,)]),
                *(True, 2, 0.0, True, False, False),
            ),
            2 * 10 * (LSTM + 24 * 6 + 24 * 6),
            id="lstm_mps_backward",
        ),
        # 8 tokens in a packed batch; an LSTM with projection
        pytest.param(
            shapes("lstm.data", (8, 4), (5,), [(1, 2, 3), (1, 2, 6)], [(24, 4), (24, 3), (24,), (24,), (3, 6)]),
            8 * (24 * 4 + 24 * 3 + 3 * 6),
            id="packed LSTM, whole",
        ),
        # a vocabulary of 11 for 8 tokens of width 4; both gradients are computed in the forward
        pytest.param(
            shapes("torch_nn::_linear_cross_entropy_batch_chunked", (8, 4), (11, 4), *[None] * 9, False, *YES),
            3 * 8 * 4 * 11,
            id="linear cross entropy",
        ),
        # a loss for each token: the backward is ops of its own
        pytest.param(
            shapes(
                *("torch_nn::_linear_cross_entropy_batch_chunked_no_reduction", (8, 4), (11, 4), (8,), (11,), None),
                *(-100, 4, "auto", torch.float32),
                out=(8,),
            ),
            8 * 4 * 11,
            id="linear cross entropy of each",
        ),
        # two sequences, 4 heads of size 8; 3 and 5 queries can only be told apart if all have the same length
        pytest.param(
            shapes("_flash_attention_forward", *[(8, 4, 8)] * 3, (3,), (3,), 5, 5, 0.0, False, False),
            None,
            id="varlen, lengths 3 and 5",
        ),
        # one sequence: all queries with all keys
        pytest.param(
            shapes("_flash_attention_forward", (5, 4, 8), (7, 4, 8), (7, 4, 8), (2,), (2,), 5, 7, 0.0, False, False),
            Count(5 * 7 * 4 * 8 * 2),
            id="varlen, one sequence",
        ),
        # the first argument is what is written to
        pytest.param(
            shapes(
                *("_flash_attention_forward_no_dropout_inplace", (5, 4, 8), (5, 4, 8), (7, 4, 8), (7, 4, 8)),
                *((2,), (2,), 5, 7, 0.0, False, False),
                out=(4, 5),
            ),
            Count(5 * 7 * 4 * 8 * 2),
            id="varlen, one sequence, written to",
        ),
        pytest.param(
            shapes(
                *("_flash_attention_forward_no_dropout_inplace", *[(8, 4, 8)] * 4, (3,), (3,), 4, 4, 0.0, False, False),
                block_table=(2, 1),
                out=(4, 8),
            ),
            None,
            id="K is looked up, written to",
        ),
        # 2 x 4 queries, and 7 keys in all: 4 x 7 pairs, however the keys are split
        pytest.param(
            shapes("_flash_attention_backward", *[(8, 4, 8)] * 2, *[(7, 4, 8)] * 2, None, None, (3,), (3,), 4, 6),
            Count(2 * 4 * 7 * 4 * 8 * 2, 4 * 7 * 4 * 8),
            id="varlen, queries of one length",
        ),
        # the same where the keys have one length: 2 x 4 of them, and 7 queries
        pytest.param(
            shapes("_efficient_attention_forward", (1, 7, 4, 8), *[(1, 8, 4, 8)] * 2, None, (3,), (3,), 6, 4, 0.0, 0),
            Count(7 * 4 * 4 * 8 * 2),
            id="varlen, keys of one length",
        ),
        pytest.param(
            shapes(
                "_flash_attention_forward", *[(2, 5, 4, 8)] * 3, None, None, 5, 5, 0.0, False, False, seqused_k=(2,)
            ),
            None,
            id="only part of K is used",
        ),
        pytest.param(
            shapes("torch_attn::_varlen_attn", *[(8, 4, 8)] * 3, (3,), (3,), 4, 4, False),
            Count(2 * 4 * 4 * 4 * 8 * 2),
            id="varlen_attn",
        ),
        pytest.param(
            shapes("torch_attn::_varlen_attn", *[(8, 4, 8)] * 3, (3,), (3,), 4, 4, False, None, None, False, (2,)),
            None,
            id="varlen_attn, part of K",
        ),
        pytest.param(
            shapes("torch_attn::_varlen_attn_out", *[(8, 4, 8)] * 4, (3,), (3,), 4, 4, False, out=(4, 8)),
            Count(2 * 4 * 4 * 4 * 8 * 2),
            id="varlen_attn_out",
        ),
        pytest.param(
            shapes(
                *("torch_attn::_varlen_attn_out", *[(8, 4, 8)] * 4, (3,), (3,), 4, 4, False, None, None, False),
                *(None, (2, 1)),
                out=(4, 8),
            ),
            None,
            id="varlen_attn_out, K is looked up",
        ),
        # (batch, heads, tokens, size), unlike the others
        pytest.param(
            shapes("_cudnn_attention_forward", Q, K, K, None, None, None, 5, 7, True), Count(2 * QK), id="cudnn kernel"
        ),
        pytest.param(
            shapes("_cudnn_attention_backward", Q, Q, K, K, *[None] * 7, 5, 7),
            Count(4 * QK, QK),
            id="cudnn kernel backward",
        ),
        # (tokens of all, heads, size): 2 x 4 queries with 7 keys in all, 4 x 7 pairs. The offsets and the greatest
        # lengths come after the result, its log-sum-exp, seed, offset and bias
        pytest.param(
            shapes(
                *("_cudnn_attention_backward", (8, 4, 8), (8, 4, 8), (7, 4, 8), (7, 4, 8), (8, 4, 8), (8, 4, 1)),
                *((), (), None, (3,), (3,), 4, 6, 0.0, False),
            ),
            Count(2 * 4 * 7 * 4 * 8 * 2, 4 * 7 * 4 * 8),
            id="cudnn kernel backward, varlen",
        ),
        pytest.param(
            shapes("higher_order::flex_attention_backward", Q, K, K, Q, (2, 4, 5), Q),
            Count(4 * QK, QK),
            id="flex backward",
        ),
    ],
)
def test_by_shapes(counted: int | Count | None, expected: int | Count | None) -> None:
    assert counted == expected


def test_flex_attention_is_counted_as_the_operator_that_the_mode_sees() -> None:
    import torch.nn.attention.flex_attention  # not at the top: it defines the operator, and imports torch._dynamo

    arguments: tuple[Any, ...] = (c(*Q), c(2, 2, 7, 8), c(2, 2, 7, 8), None, (), 1.0, {}, (), ())
    assert count(torch.ops.higher_order.flex_attention, arguments, {}, (c(*Q), c(2, 4, 5))) == Count(2 * QK)


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_fused_fast_path_counts_as_the_layer_it_replaces(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first).eval()
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    with torch.no_grad(), Seen() as ran:
        layer(c(2, 5, 16))
    assert (ran.macs, ran.unknown) == (2 * layer_macs(5, 5, 16, 32), set())
    with torch.no_grad(), Seen() as ran:
        attend_to_itself(attention, c(2, 5, 16))
    assert (ran.macs, ran.unknown) == (2 * layer_macs(5, 5, 16, 0), set())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("foreach", [False, True])
def test_optimizer_steps_are_zero(optimizer: type[torch.optim.Optimizer], foreach: bool, fused: bool) -> None:
    weight = t(3, 4)
    weight.grad = c(3, 4)
    options = {"fused": True} if fused else {"foreach": foreach}
    if optimizer is torch.optim.SGD:
        options["momentum"] = 0.9  # type: ignore[assignment]
    with Seen() as ran:
        optimizer([weight], **options).step()  # type: ignore[arg-type]
    assert (ran.macs, ran.unknown) == (0, set())


# Unknown is never 0


@pytest.mark.parametrize(
    ("run", "op"),
    [
        pytest.param(lambda: torch.fft.rfft(c(4, 4)), "aten._fft_r2c.default", id="fft"),
        pytest.param(lambda: torch.linalg.svd(c(3, 3)), "aten._linalg_svd.default", id="svd"),
        pytest.param(lambda: torch.linalg.qr(c(3, 3)), "aten.linalg_qr.default", id="qr"),
        pytest.param(lambda: torch.linalg.inv(torch.eye(3)), "aten.linalg_inv_ex.default", id="inverse"),
        pytest.param(lambda: torch.linalg.solve(torch.eye(3), c(3)), "aten._linalg_solve_ex.default", id="solve"),
        pytest.param(lambda: torch.linalg.cholesky(torch.eye(3)), "aten.linalg_cholesky_ex.default", id="cholesky"),
        # two sparse operands: which of their values meet lies in where they are
        pytest.param(
            lambda: torch.sparse.mm(stored(), stored().t()), "aten._sparse_sparse_matmul.default", id="sparse @ sparse"
        ),
        pytest.param(lambda: torch.mm(stored(CSR), stored(CSR).t()), "aten.mm.default", id="CSR @ CSC"),
        pytest.param(
            lambda: torch.addmm(c(4, 4), stored(CSR), stored(CSR).t()), "aten.addmm.default", id="CSR @ CSC, added"
        ),
        pytest.param(lambda: torch.hspmm(stored(), c(5, 3)), "aten.hspmm.default", id="hspmm"),
        pytest.param(
            lambda: torch.nested.nested_tensor([c(2, 4), c(3, 4)]) @ torch.nested.nested_tensor([c(4, 5), c(4, 5)]),
            "aten.matmul.default",
            id="nested",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse")
def test_unknown(run: Callable[[], Any], op: str) -> None:
    with Seen() as ran:
        run()
    assert op in ran.unknown
    assert ran.macs == 0


@pytest.mark.filterwarnings("ignore:Sparse")
def test_every_stored_value_counts() -> None:
    """Explicit zeros and duplicates too: what a sparse tensor stores is known without looking at it."""
    twice = torch.sparse_coo_tensor(stored().indices().repeat(1, 2), c(12), (4, 5))
    blocks = torch.eye(8).to_sparse_bsr((2, 4))  # the 4 that are on the diagonal
    for sparse, values in [(stored() * 0, 6), (twice, 2 * 6), (blocks, 4 * 2 * 4)]:
        rows, inner = sparse.shape
        assert count(aten.mm.default, (sparse, c(inner, 3)), {}, c(rows, 3)) == Count(values * 3)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_formula_that_is_not_written_for_sparse_tensors_gets_none(library: Any) -> None:
    sparse, dense = stored(), c(5, 3)
    register_formula(library.product)(product)
    assert count(library.product.default, (sparse, dense), {}, c(4, 3)) is None
    assert count(aten._int_mm.default, (sparse, dense), {}, c(4, 3)) is None
    assert count(aten.addmm.default, (sparse, c(4, 3), c(3, 5)), {}, sparse) is None

    @register_formula(library.product, sparse=True)
    def sparse_product(a: SparseShape, b: tuple[int, ...], *, out: tuple[int, ...]) -> int:
        assert (a, a.nnz, b, out) == ((4, 5), 6, (5, 3), (4, 3))
        return a.nnz * b[-1]

    assert count(library.product.default, (sparse, dense), {}, c(4, 3)) == Count(6 * 3)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_tensor_without_values_makes_a_product_unknown() -> None:
    """On meta, and as a fake one, it has lost them."""
    assert count(aten.mm.default, (stored().to("meta"), meta(5, 3)), {}, meta(4, 3)) is None
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(stored())
        assert count(aten.mm.default, (fake, meta(5, 3)), {}, meta(4, 3)) is None


def test_two_values_in_an_element_make_a_product_unknown() -> None:
    packed_values = torch.empty(16, 32, dtype=torch.float4_e2m1fn_x2)
    scale = torch.ones(())
    assert count(aten._scaled_mm.default, (packed_values, packed_values.t(), scale, scale), {}, c(16, 16)) is None


# Every op has one answer


def packets() -> dict[str, Any]:
    names = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    return {name: getattr(getattr(torch.ops, name.partition("::")[0]), name.partition("::")[2]) for name in names}


def words(text: str) -> set[str]:
    return set(text.split())


UNKNOWN_ATEN = words(
    """
    _backward _cholesky_solve_helper _compute_linear_combination _convolution_double_backward _cslt_compress
    _cslt_sparse_mm _cslt_sparse_mm_search _fft_c2c _fft_c2r _fft_r2c _foobar _linalg_det _linalg_eigh
    _linalg_eigvals _linalg_slogdet _linalg_solve_ex _linalg_svd _lu_with_info _sparse_semi_structured_addmm
    _sparse_semi_structured_apply _sparse_semi_structured_apply_dense _sparse_semi_structured_linear
    _sparse_semi_structured_mm _sparse_semi_structured_tile _sparse_sparse_matmul _spsolve _test_ambiguous_defaults
    _test_autograd_multiple_dispatch _test_autograd_multiple_dispatch_view_copy _test_check_tensor
    _test_functorch_fallback _test_optional_filled_intlist _test_optional_floatlist _test_optional_intlist
    _test_parallel_materialize _test_serialization_subcmul _test_string_default _test_warn_in_autograd
    _to_sparse_semi_structured
    chain_matmul cholesky cholesky_inverse cholesky_solve
    corrcoef cov det fft_fft fft_fft2 fft_fftn fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ihfft
    fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn geqrf get_gradients hspmm
    inverse istft linalg_cholesky linalg_cholesky_ex linalg_cond linalg_det linalg_eig linalg_eigh linalg_eigvals
    linalg_eigvalsh linalg_householder_product linalg_inv linalg_inv_ex linalg_ldl_factor linalg_ldl_factor_ex
    linalg_ldl_solve linalg_lstsq linalg_lu linalg_lu_factor linalg_lu_factor_ex linalg_lu_solve linalg_matrix_exp
    linalg_matrix_norm linalg_matrix_power linalg_matrix_rank linalg_multi_dot linalg_norm linalg_pinv linalg_qr
    linalg_slogdet linalg_solve linalg_solve_ex linalg_solve_triangular linalg_svd linalg_svdvals linalg_tensorinv
    linalg_tensorsolve linalg_vecdot logdet lu_solve matrix_exp matrix_exp_backward matrix_power nuclear_norm orgqr
    ormqr pinverse qr quantized_gru quantized_gru_cell quantized_lstm quantized_lstm_cell quantized_rnn_relu_cell
    quantized_rnn_tanh_cell slogdet smm sspaddmm stft svd triangular_solve
    """
)


def test_every_aten_op_has_one_answer_and_the_unknown_ones_are_these() -> None:
    """Written for torch 2.13. An op that a later torch adds is unknown until someone has looked at it."""
    unknown = set()
    for name, packet in packets().items():
        if not name.startswith("aten::"):
            continue
        overloads = {classify(getattr(packet, overload)) for overload in packet.overloads()}
        formula = {answer for answer in overloads if not isinstance(answer, Verdict)}
        assert len(overloads) == 1 or len(formula) == len(overloads), name  # the overloads of an op never disagree
        if overloads == {Verdict.UNKNOWN}:
            unknown.add(name.removeprefix("aten::"))
    assert unknown == UNKNOWN_ATEN


def test_of_the_primitives_only_these_are_unknown() -> None:
    """``prims``, which torch decomposes other ops into, have no contraction of their own but in these."""
    import_module("torch._inductor.inductor_prims")  # it adds the second group, for compiled code alone
    known = {Verdict.ZERO, Verdict.UNKNOWN}
    answers = {
        name.removeprefix("prims::"): {classify(getattr(packet, overload)) for overload in packet.overloads()}
        for name, packet in packets().items()
        if name.startswith("prims::")
    }
    assert all(len(overloads) == 1 and overloads < known for overloads in answers.values())
    assert {name for name, overloads in answers.items() if overloads == {Verdict.UNKNOWN}} == words(
        """
        fft_c2c fft_c2r fft_r2c svd

        _low_memory_max_pool_offsets_to_indices _low_memory_max_pool_with_offsets _unsafe_index_put_
        inductor_cvt_e8m0_rceil inductor_force_stride_order inductor_lookup_seed inductor_rand_eager_offset
        inductor_rand_eager_offsets inductor_randint inductor_random inductor_seed inductor_seeds
        prepare_softmax_online
        """
    )


def test_no_op_is_in_two_tables() -> None:
    listed = [name for names in conventions.ZERO.values() for name in names]
    assert len(listed) == len(set(listed))
    assert not set(listed) & set(FORMULAS)
    decorated = [
        name
        for module in (contractions, fused)
        for group in re.findall(
            r"^@counts\((.*?)\)\n(?=@|def)", Path(str(module.__file__)).read_text(), re.DOTALL | re.M
        )
        for name in re.findall(r'"([^"]+)"', group)
    ]
    assert len(decorated) == len(set(decorated)) == len(FORMULAS)


def test_every_name_in_the_tables_is_an_op() -> None:
    """A misspelt name would count nothing. Only namespaces that are registered on import can be checked."""
    ops = packets()
    here = {
        "aten",
        "symm_mem",
        "mkldnn",
        "onednn",
        "mkl",
        "quantized",
        "inductor",
        "profiler",
        "prims",
        "rngprims",
        "quantization",
    }
    listed = {name for names in conventions.ZERO.values() for name in names}
    named = {name.partition(".")[0] for name in {*FORMULAS, *listed} if name.partition("::")[0] in here}
    lazy = {"symm_mem::_low_contention_all_gather", "symm_mem::_low_contention_reduce_scatter"}
    assert named - set(ops) - lazy - {"symm_mem::get_remote_tensors"} == set()


def test_collectives_are_zero_and_their_fusions_with_products_are_not() -> None:
    assert classify(torch.ops._c10d_functional.all_reduce.default) is Verdict.ZERO
    assert classify(torch.ops.c10d.allreduce_.default) is Verdict.ZERO
    assert classify(torch.ops.symm_mem.one_shot_all_reduce.default) is Verdict.ZERO
    assert classify(torch.ops.symm_mem._async_input_mm.default) is Verdict.UNKNOWN


def test_a_fused_recurrent_cell_is_zero() -> None:
    """It gets what the matrix products, ops of their own, have computed."""
    assert classify(aten._thnn_fused_lstm_cell.default) is Verdict.ZERO
    assert classify(aten._thnn_fused_gru_cell_backward.default) is Verdict.ZERO


def test_what_is_no_operator_is_unknown() -> None:
    assert classify(print) is Verdict.UNKNOWN
    assert count(print, (), {}, None) is None


# register_formula


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ops of a user: a product and its backward. What is registered is forgotten after the test."""
    monkeypatch.setattr(formulas, "_registered", {})
    monkeypatch.setattr(formulas, "_answers", {})

    with torch.library._scoped_library("summarycb_test", "FRAGMENT") as lib:
        lib.define("product(Tensor a, Tensor b) -> Tensor")
        lib.define("product.scaled(Tensor a, Tensor b, float scale) -> Tensor")
        lib.define("product_backward(Tensor grad, Tensor a, Tensor b) -> (Tensor, Tensor)")
        lib.impl("product", lambda a, b: a @ b, "CPU")
        lib.impl("product.scaled", lambda a, b, scale: a @ b * scale, "CPU")
        lib.impl("product_backward", lambda grad, a, b: (grad @ b.T, a.T @ grad), "CPU")
        ops = torch.ops.summarycb_test
        torch.library.register_autograd(
            "summarycb_test::product",
            lambda ctx, grad: ops.product_backward(grad, *ctx.saved_tensors),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
            lib=lib,
        )
        yield ops


def product(a: tuple[int, ...], b: tuple[int, ...], *_: Any, out: tuple[int, ...]) -> int:
    return prod(out) * a[-1]


def test_a_custom_op_is_unknown_until_its_formula_is_registered(library: Any) -> None:
    """Forward and backward, each under its own name; also where the op has been seen before."""
    with Seen() as ran:
        library.product(t(3, 4), t(4, 5)).sum().backward()
    assert (ran.macs, ran.unknown) == (0, {"summarycb_test.product.default", "summarycb_test.product_backward.default"})

    register_formula(library.product)(product)

    @register_formula("summarycb_test::product_backward")
    def product_backward(grad: Any, a: Any, b: Any, *, out: Any) -> Count:
        assert (grad, a, b, out) == ((3, 5), (3, 4), (4, 5), [(3, 4), (4, 5)])
        return Count(2 * prod(a) * b[-1], recompute_macs=7)

    with Seen() as ran:
        library.product(t(3, 4), t(4, 5)).sum().backward()
    assert (ran.macs, ran.recompute_macs, ran.unknown) == (3 * 3 * 4 * 5, 7, set())


@pytest.mark.parametrize("name", ["summarycb_test::product", "summarycb_test.product"])
def test_a_name_or_a_packet_is_every_overload(library: Any, name: str) -> None:
    register_formula(name)(product)
    assert count(library.product.default, (c(3, 4), c(4, 5)), {}, c(3, 5)) == Count(3 * 4 * 5)
    assert count(library.product.scaled, (c(3, 4), c(4, 5), 2.0), {}, c(3, 5)) == Count(3 * 4 * 5)


def test_an_overload_is_itself_alone(library: Any) -> None:
    register_formula(library.product.scaled)(product)
    assert classify(library.product.scaled) is product
    assert classify(library.product.default) is Verdict.UNKNOWN
    register_formula("summarycb_test::product.default")(product)
    assert classify(library.product.default) is product


def test_a_custom_op_object_is_taken(library: Any) -> None:
    @torch.library.custom_op("summarycb_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    register_formula(twice)(lambda x, *, out: prod(x))
    with Seen() as ran:
        twice(c(3, 4))
    assert (ran.macs, ran.unknown) == (3 * 4, set())


def test_a_user_s_formula_comes_before_the_built_in_one(library: Any) -> None:
    register_formula(aten.mm)(lambda a, b, *, out: None)
    register_formula(aten.relu)(lambda x, *, out: 5)
    assert count(aten.mm.default, (c(3, 4), c(4, 5)), {}, c(3, 5)) is None
    assert count(aten.relu.default, (c(3),), {}, c(3)) == Count(5)
    assert count(aten.relu_.default, (c(3),), {}, c(3)) == Count(5)


def test_a_custom_op_tagged_element_wise_is_zero(library: Any) -> None:
    with torch.library._scoped_library("summarycb_test", "FRAGMENT") as lib:
        lib.define("same(Tensor a) -> Tensor", tags=(torch.Tag.pointwise,))
        lib.define("alias(Tensor(a) a) -> Tensor(a)")
        assert classify(library.same.default) is Verdict.ZERO
        # it may compute anything before it returns a view
        assert classify(library.alias.default) is Verdict.UNKNOWN


@pytest.mark.parametrize("wrong", [None, 3, "product", "a::b::c", torch.mm, nn.Linear])
def test_a_wrong_op_is_refused_at_once(wrong: object) -> None:
    with pytest.raises(SummaryError) as refused:
        register_formula(wrong)
    assert str(refused.value) == (
        f"register_formula got {wrong!r}; it takes an op (torch.ops.mylib.my_op), one of its overloads, a "
        'torch.library.custom_op, or its name ("mylib::my_op")'
    )


def test_a_wrong_formula_is_refused(library: Any) -> None:
    with pytest.raises(SummaryError, match=r"^the formula of aten::mm must be a function of shapes, not 12$"):
        register_formula(aten.mm)(12)  # type: ignore[type-var]


def test_a_formula_that_returns_no_count_is_named(library: Any) -> None:
    def halves(*_: Any, **__: Any) -> Any:
        return 1.5

    with pytest.raises(
        SummaryError, match=r"halves returned 1\.5; it must return an int, a Count, or None for unknown$"
    ):
        evaluate(halves, (), {}, None)


# Against torch's own counter, where that is right


class Block(nn.Module):
    """A convolution, attention that asks for its weights, and a feed-forward: all counted by FlopCounterMode."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.feed_forward = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = x + first_tensor(self.attention(x, x, x))
        return x + first_tensor(self.feed_forward(x))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        pytest.param(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), c(5, 8), id="mlp"),
        pytest.param(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, stride=2)),
            c(2, 3, 8, 8),
            id="convolutions",
        ),
        pytest.param(Block(), c(2, 3, 16, 16), id="attention"),
    ],
)
def test_agrees_with_torch_where_torch_is_right(model: nn.Module, x: Tensor) -> None:
    with FlopCounterMode(display=False) as torch_counter:
        model(x).sum().backward()
    with Seen() as ran:
        model(x).sum().backward()
    assert 2 * (ran.macs + ran.recompute_macs) == torch_counter.get_total_flops() > 0
    assert ran.unknown == set()


def test_differs_from_torch_where_torch_ignores_groups() -> None:
    """pytorch#183405: FlopCounterMode counts the backward of a grouped convolution as if it had one group."""
    with Seen() as ran:
        F.conv2d(t(*X), t(8, 1, 3, 3), groups=4).sum().backward()
    with FlopCounterMode(display=False) as torch_counter:
        F.conv2d(t(*X), t(8, 1, 3, 3), groups=4).sum().backward()
    assert ran.macs == 3 * 2 * 49 * 8 * 9
    assert torch_counter.get_total_flops() > 2 * ran.macs
