"""Which ops count zero MACs by convention, listed by reason."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._ops import OpOverload

COLLECTIVES = frozenset({"c10d", "_c10d_functional", "_c10d_functional_autograd", "fsdp", "_dtensor", "profiler"})

ZERO: dict[str, frozenset[str]] = {
    "first draft": frozenset(
        "aten::" + name
        for name in """sum mean cat stack embedding embedding_dense_backward native_layer_norm native_layer_norm_backward
    native_batch_norm native_batch_norm_backward _log_softmax _log_softmax_backward_data _softmax _softmax_backward_data
    nll_loss_forward nll_loss_backward mse_loss mse_loss_backward zeros ones empty full zeros_like ones_like empty_like
    full_like copy_ _to_copy fill_ zero_ max_pool2d_with_indices max_pool2d_with_indices_backward native_dropout
    _local_scalar_dense gelu_backward threshold_backward empty_strided new_empty new_zeros native_group_norm
    native_group_norm_backward _foreach_add_ _foreach_mul_ _foreach_addcdiv_ _foreach_addcmul_ _foreach_lerp_ _foreach_sqrt
    _foreach_div_ arange scatter gather index index_put_ slice_backward select_backward lift_fresh _unsafe_view randn bernoulli_
    normal_ uniform_ amax amin argmax cumsum tril triu""".split()
    ),
}
_ALL = frozenset().union(*ZERO.values())


def is_zero(func: OpOverload, names: Sequence[str]) -> bool:
    """Whether an op counts zero by convention; ``names`` are the names it may be listed under."""
    if func.namespace in COLLECTIVES or torch.Tag.pointwise in func.tags:
        return True
    return not _ALL.isdisjoint(names) or (func.namespace == "aten" and func.is_view)
