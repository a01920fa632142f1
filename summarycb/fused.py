"""What ops that run a whole layer compute: attention, recurrent layers, and others fused. Must not import torch.

What :mod:`summarycb.contractions` holds to holds here.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from summarycb.contractions import FORMULAS, Count, Mask, Shape, counts

__all__ = ["FORMULAS"]  # the whole table, once this file has added its own

# Attention: QK^T costs one MAC for each pair of a query and a key, head, and value of the head; so does AV. In the
# backward, dV and dP cost AV each, dQ and dK cost QK^T each, and QK^T runs again.


def _heads_first(q: Shape, k: Shape, v: Shape) -> tuple[int, int]:
    """The MACs of QK^T and of AV, for (..., heads, tokens, head size). K and V may have fewer heads."""
    pairs = prod(q[:-1]) * k[-2]
    return pairs * q[-1], pairs * v[-1]


def _tokens_first(
    q: Shape, k: Shape, v: Shape, starts: Shape | None, max_q: int | None, max_k: int | None
) -> tuple[int, int] | None:
    """The same for (batch, tokens, heads, head size), or ([1,] tokens of all, heads, head size) with ``starts``."""
    tokens_q, tokens_k = q[-3], k[-3]
    sequences = starts[0] - 1 if starts else 0
    if sequences <= 0:
        pairs = q[0] * tokens_q * tokens_k
    elif max_q and sequences * max_q == tokens_q:  # then every sequence has this length
        pairs = max_q * tokens_k
    elif max_k and sequences * max_k == tokens_k:
        pairs = tokens_q * max_k
    else:
        return None
    return pairs * q[-2] * q[-1], pairs * q[-2] * v[-1]


def _forward(parts: tuple[int, int] | None) -> Count | None:
    return None if parts is None else Count(sum(parts))


def _backward(parts: tuple[int, int] | None) -> Count | None:
    return None if parts is None else Count(2 * sum(parts), recompute_macs=parts[0])


@counts("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu")
@counts("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention")
@counts("_scaled_dot_product_fused_attention_overrideable", "_triton_scaled_dot_attention")
@counts("higher_order::flex_attention")
def _attention(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> Count | None:
    return _forward(_heads_first(q, k, v))


@counts("_scaled_dot_product_flash_attention_backward", "_scaled_dot_product_flash_attention_for_cpu_backward")
@counts("_scaled_dot_product_efficient_attention_backward", "_scaled_dot_product_cudnn_attention_backward")
@counts("_scaled_dot_product_fused_attention_overrideable_backward")
def _attention_backward(_grad: Shape, q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> Count | None:
    return _backward(_heads_first(q, k, v))


@counts("higher_order::flex_attention_backward")
def _flex_attention_backward(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> Count | None:
    return _backward(_heads_first(q, k, v))


@counts(
    "scaled_dot_product_attention", "_scaled_dot_product_attention_math", "_scaled_dot_product_attention_math_for_mps"
)
def _attention_composite(q: Shape, k: Shape, v: Shape, *_: Any, out: Any, **__: Any) -> Count | None:
    attended = out if isinstance(out[0], int) else out[0]  # the math ones return the weights, too
    return _forward(_heads_first((*attended[:-1], q[-1]), k, v))  # the batch may be broadcast


@counts("_flash_attention_forward")
def _flash_attention(
    q: Shape, k: Shape, v: Shape, starts: Shape | None, _starts_k: Any, max_q: int, max_k: int, *_: Any, **named: Any
) -> Count | None:
    if named.get("seqused_k") or named.get("block_table"):
        return None  # only part of K is used, or K is looked up
    return _forward(_tokens_first(q, k, v, starts, max_q, max_k))


@counts("_flash_attention_forward_no_dropout_inplace")
def _flash_attention_inplace(_result: Shape, *arguments: Any, **named: Any) -> Count | None:
    return _flash_attention(*arguments, **named)


@counts("torch_attn::_varlen_attn")
def _varlen_attention(
    q: Shape, k: Shape, v: Shape, starts: Shape, _starts_k: Any, max_q: int, max_k: int, *rest: Any, **_: Any
) -> Count | None:
    seqused_k, block_table = (*rest, *[None] * 6)[4:6]  # after causal, scale, window and gqa; all have defaults
    return _flash_attention(q, k, v, starts, _starts_k, max_q, max_k, seqused_k=seqused_k, block_table=block_table)


@counts("torch_attn::_varlen_attn_out")
def _varlen_attention_out(_result: Shape, *arguments: Any, **_: Any) -> Count | None:
    return _varlen_attention(*arguments)


@counts("_flash_attention_backward", "torch_attn::_varlen_attn_backward")
def _flash_attention_backward(_grad: Shape, q: Shape, k: Shape, v: Shape, *rest: Any, **_: Any) -> Count | None:
    starts, _starts_k, max_q, max_k = rest[2:6]  # after the result and its log-sum-exp
    return _backward(_tokens_first(q, k, v, starts, max_q, max_k))


@counts("_efficient_attention_forward")
def _efficient_attention(q: Shape, k: Shape, v: Shape, _bias: Any, *rest: Any, **named: Any) -> Count | None:
    starts, _starts_k, max_q, max_k = rest[:4]
    return None if named.get("seqlen_k") else _forward(_tokens_first(q, k, v, starts, max_q, max_k))


@counts("_efficient_attention_backward")
def _efficient_attention_backward(_grad: Shape, q: Shape, k: Shape, v: Shape, *rest: Any, **_: Any) -> Count | None:
    starts, _starts_k, max_q, max_k = rest[2:6]  # after the bias and the result
    return _backward(_tokens_first(q, k, v, starts, max_q, max_k))


@counts("_cudnn_attention_forward")
def _cudnn_attention(q: Shape, k: Shape, v: Shape, _bias: Any, *rest: Any, **_: Any) -> Count | None:
    starts, _starts_k, max_q, max_k = rest[:4]
    return _forward(_heads_first(q, k, v) if len(q) == 4 else _tokens_first(q, k, v, starts, max_q, max_k))


@counts("_cudnn_attention_backward")
def _cudnn_attention_backward(_grad: Shape, q: Shape, k: Shape, v: Shape, *rest: Any, **_: Any) -> Count | None:
    starts, _starts_k, max_q, max_k = rest[5:9]  # after the result, its log-sum-exp, seed, offset and bias
    return _backward(_heads_first(q, k, v) if len(q) == 4 else _tokens_first(q, k, v, starts, max_q, max_k))


# Recurrent layers


def _rnn(x: Shape, weights: Sequence[Shape]) -> int:
    # Every token meets every weight matrix, of each layer and direction, once. The vectors are biases.
    return prod(x[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


@counts("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _rnn_cell(x: Shape, _states: Any, w_input: Shape, w_hidden: Shape, *_: Any, **__: Any) -> int:
    return _rnn(x, (w_input, w_hidden))


@counts("mkldnn_rnn_layer")
def _mkldnn_rnn_layer(x: Shape, *rest: Any, **_: Any) -> int:
    return _rnn(x, rest[:4])


@counts("mkldnn_rnn_layer_backward")
def _mkldnn_rnn_layer_backward(x: Shape, *rest: Any, **_: Any) -> int:
    return 2 * _rnn(x, rest[:4])


@counts("_cudnn_rnn", "miopen_rnn")
def _rnn_weights(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return _rnn(x, weights)


@counts("_cudnn_rnn_backward", "miopen_rnn_backward")
def _rnn_weights_backward(x: Shape, weights: Sequence[Shape], *rest: Any, **_: Any) -> int:
    mask: Mask = rest[-1]  # the data's gradients are always computed, the weights' only where one is needed
    return (1 + mask[3]) * _rnn(x, weights)


@counts("lstm", "gru", "rnn_tanh", "rnn_relu", "_lstm_mps")
def _rnn_layers(x: Shape, _states: Any, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return _rnn(x, weights)


@counts("lstm.data", "gru.data", "rnn_tanh.data", "rnn_relu.data")
def _rnn_layers_packed(x: Shape, _batch_sizes: Any, _states: Any, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return _rnn(x, weights)


@counts("lstm_mps_backward")
def _lstm_mps_backward(*arguments: Any, **_: Any) -> int:
    x: Shape = arguments[5]
    weights: Sequence[Shape] = arguments[8]
    return 2 * _rnn(x, weights)


# Several layers in one op


@counts("_native_multi_head_attention", "_triton_multi_head_attention")
def _multi_head_attention(q: Shape, k: Shape, v: Shape, embedding: int, *_: Any, **__: Any) -> int:
    projections = (prod(q) + prod(k) + prod(v) + prod(q)) * embedding  # of Q, K, V and the result
    return projections + sum(_heads_first(q, k, v))


@counts("_transformer_encoder_layer_fwd")
def _transformer_encoder_layer(x: Shape, embedding: int, *rest: Any, **_: Any) -> int:
    first: Shape = rest[12]
    second: Shape = rest[14]
    feed_forward = prod(first) + prod(second)
    return _multi_head_attention(x, x, x, embedding) + prod(x[:-1]) * feed_forward


@counts("torch_nn::_linear_cross_entropy_batch_chunked")
def _linear_cross_entropy(x: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    mask: Mask = rest[-3:]  # of x, weight and bias: this op computes the gradients in the forward
    return (1 + mask[0] + mask[1]) * prod(x) * weight[0]


@counts("torch_nn::_linear_cross_entropy_batch_chunked_no_reduction")
def _linear_cross_entropy_each(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return prod(x) * weight[0]
