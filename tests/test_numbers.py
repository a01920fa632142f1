"""The MACs of every module of a real observed step, forward and backward, own and total, each derived beside it.

What one op computes is tested in ``test_formulas``; here it is which module that counts for. Most are one table: what
a module of a small model computes by itself; all others compute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import summarycb
from summarycb import formulas
from summarycb.tree import ModelSummary, add
from tests.test_formulas import c, t

Macs = tuple[int, int]
"""Forward and backward."""
Own = dict[str, Macs]
"""Path -> what the module computes by itself; those that are left out compute nothing."""
Step = Callable[[Any], Any]
BF16 = torch.bfloat16


def neither(product: int) -> Macs:
    """A product that runs forward and has no gradient: nothing of it is trained, and nothing before it."""
    return product, 0


def one(product: int) -> Macs:
    """Of its two gradients, the weight's and the input's, one is needed: of the first layer, or of a frozen one."""
    return product, product


def both(product: int) -> Macs:
    """Both gradients are needed."""
    return product, 2 * product


def tensors(value: Any) -> Iterator[Tensor]:
    """Those that a loss can be made of."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)
    elif hasattr(value, "__dict__"):
        yield from tensors(vars(value))


def observed(model: nn.Module, step: Step) -> ModelSummary:
    """``step`` runs, what it returns is added up, and if anything of that needs a gradient, backward follows."""
    with summarycb.observe(model) as observation:
        losses = [tensor.sum(dtype=torch.float32) for tensor in tensors(step(model))]
        if losses:
            torch.stack(losses).sum().backward()
    assert observation.summary is not None
    return observation.summary


def check(summary: ModelSummary, own: Own, outside: Macs = (0, 0), recompute: dict[str, int] | None = None) -> None:
    """Every module's own figures are these, those of a subtree are their sum, and those of the step the sum of all."""
    assert summary.incomplete == ()
    assert [note.text for note in summary.notes if note.kind == "unknown"] == []
    modules = {path: module for path, module in summary.modules.items() if module.shared_with is None}
    recompute = recompute or {}
    stepped = summary.observed == "step"  # else nothing of a backward is known

    def backward(macs: int) -> int | None:
        return macs if stepped else None

    expected = dict.fromkeys(modules, (0, 0)) | own
    assert {path: (module.own_forward_macs, module.own_backward_macs) for path, module in modules.items()} == {
        path: (macs[0], backward(macs[1])) for path, macs in expected.items()
    }
    if stepped:
        assert {path: m.own.recompute_macs for path, m in modules.items() if m.own.recompute_macs != 0} == recompute
    for path, module in modules.items():
        inside = [macs for p, macs in own.items() if p == path or path == "" or p.startswith(f"{path}.")]
        assert module.forward_macs == sum(macs[0] for macs in inside)
        assert module.backward_macs == backward(sum(macs[1] for macs in inside))
    everything = [*own.values(), outside]
    assert (summary.outside.forward_macs, summary.outside.backward_macs) == (outside[0], backward(outside[1]))
    assert summary.forward_macs == sum(macs[0] for macs in everything)
    assert summary.backward_macs == backward(sum(macs[1] for macs in everything))
    if stepped:
        ran = add(summary.forward_macs, summary.backward_macs, *recompute.values())
        assert summary.hardware_flops == add(ran, ran)


class Does(nn.Module):
    """Computes what it is told to, with the parameters and modules that it holds."""

    def __init__(self, run: Callable[..., Any], **held: Any) -> None:
        super().__init__()
        self.run = run
        for name, value in held.items():
            if type(value) is Tensor:
                value = nn.Parameter(value) if value.layout is torch.strided else nn.Buffer(value)
            setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def case(
    name: str,
    model: Callable[[], nn.Module],
    step: Step,
    own: Own,
    outside: Macs = (0, 0),
    recompute: dict[str, int] | None = None,
) -> Any:
    return pytest.param(model, step, own, outside, recompute, id=name)


def on(*shape: int, dtype: torch.dtype = torch.float32) -> Step:
    """The model is called with a batch, which needs no gradient."""
    return lambda model: model(c(*shape, dtype=dtype))


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


# Layers


def two_linears(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5, **options), nn.Linear(5, 6, **options))


def in_bf16(model: nn.Module) -> Any:
    with torch.autocast("cpu", BF16):
        return model(c(3, 4))


class Anything(nn.Linear):
    """A subclass by any name."""


class Normed(nn.Conv1d):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, F.normalize(self.weight, dim=(1, 2)), self.bias) @ x.new_ones(5, 3)


LINEAR = [
    # rows of 4 to 5 to 6; the batch needs no gradient, what the second layer gets does
    *[
        case(f"linear, {len(shape)}-D", two_linears, on(*shape), {"0": one(rows * 4 * 5), "1": both(rows * 5 * 6)})
        for shape, rows in [((4,), 1), ((3, 4), 3), ((2, 3, 4), 6), ((2, 3, 2, 4), 12)]
    ],
    case("linear, no bias", lambda: two_linears(bias=False), on(2, 3, 4), {"0": one(6 * 20), "1": both(6 * 30)}),
    case("linear, batch with gradient", lambda: nn.Linear(4, 5), lambda model: model(t(3, 4)), {"": both(3 * 4 * 5)}),
    case("autocast", two_linears, in_bf16, {"0": one(3 * 4 * 5), "1": both(3 * 5 * 6)}),
    # 3 rows, 4 and 5 in, 6 out: each row meets the whole weight, and what that gives (6 x 5) the second input. The
    # weight's gradient: 4 x 5 x 6 for each row
    case("bilinear", lambda: nn.Bilinear(4, 5, 6), lambda model: model(c(3, 4), c(3, 5)),
         {"": (3 * 6 * 4 * 5 + 3 * 6 * 5, 3 * 4 * 5 * 6)}),
    # and that of the first input: the gradient with the weight, then (4 x 5) with the second input; of the second: the
    # first with the weight, then (6 x 5) with the gradient
    case("bilinear, inputs with gradient",
         lambda: Does(lambda m, x: m.ab(m.a(x), m.b(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 5), ab=nn.Bilinear(4, 5, 6)),
         on(3, 4),
         {"a": one(3 * 4 * 4), "b": one(3 * 4 * 5), "ab": (
             3 * 6 * 4 * 5 + 3 * 6 * 5,
             3 * 4 * 5 * 6 + (3 * 6 * 4 * 5 + 3 * 4 * 5) + (3 * 6 * 4 * 5 + 3 * 6 * 5),
         )}),
    case("subclasses", lambda: nn.Sequential(Anything(4, 5), nn.ReLU(), Anything(5, 6)), on(3, 4),
         {"0": one(3 * 4 * 5), "2": both(3 * 5 * 6)}),
    # 6 channels of 4 x 3 taps at 7 - 3 + 1 = 5 positions of 2 signals; then 2 x 6 rows of 5 to 3, with a constant
    case("a subclass with a forward of its own", lambda: Normed(4, 6, 3), on(2, 4, 7),
         {"": one(2 * 5 * 6 * 4 * 3 + 2 * 6 * 5 * 3)}),
    # words, and bags of words, are looked up; the head has 3 rows
    case("embeddings",
         lambda: Does(lambda m, ids: m.head(m.words(ids).sum(1) + m.bags(ids)),
                      words=nn.Embedding(9, 6), bags=nn.EmbeddingBag(9, 6), head=nn.Linear(6, 2)),
         lambda model: model(torch.arange(6).view(3, 2)), {"head": both(3 * 6 * 2)}),
    # what normalizes, activates, pools, and moves
    case("nothing",
         lambda: nn.Sequential(
             nn.BatchNorm2d(4), nn.PReLU(), nn.MaxPool2d(2), nn.PixelShuffle(2), nn.Unfold(2), nn.Fold((4, 4), 2),
             nn.GroupNorm(1, 1), nn.Upsample(scale_factor=2, mode="bilinear"), nn.ZeroPad2d(1), nn.Flatten(),
             nn.RMSNorm(100), nn.Softmax(-1), nn.Dropout()),
         lambda model: model(t(2, 4, 4, 4)), {}),
]  # fmt: skip

# Every value of a kernel is one MAC at each position of the output; transposed, of the input.
CONVOLUTIONS = [
    # 2 signals of 11: (11 + 2 - 2 * 2 - 1) // 2 + 1 = 5 positions; then 5, for 6 channels of 4 / 2
    case("conv1d",
         lambda: nn.Sequential(nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2),
                               nn.ConvTranspose1d(6, 4, 3, stride=2, output_padding=1, groups=2)),
         on(2, 4, 11), {"0": one(2 * 5 * 6 * 4 * 3), "1": both(2 * 5 * 6 * 2 * 3)}),
    # 9 x 8 images: (9 - 3) // 2 + 1 = 4 by 8 + 2 - 2 + 1 = 9 positions, and 6 channels of 8 / 2; then 4 x 9
    case("conv2d",
         lambda: nn.Sequential(nn.Conv2d(8, 6, (3, 2), stride=(2, 1), padding=(0, 1), groups=2),
                               nn.ConvTranspose2d(6, 3, 2, dilation=2)),
         on(2, 8, 9, 8), {"0": one(2 * 4 * 9 * 6 * 4 * 3 * 2), "1": both(2 * 4 * 9 * 6 * 3 * 2 * 2)}),
    # 5 - 2 + 1 = 4 positions a side; then 4 a side
    case("conv3d",
         lambda: nn.Sequential(nn.Conv3d(4, 6, 2), nn.ConvTranspose3d(6, 2, 3, padding=1)),
         on(2, 4, 5, 5, 5), {"0": one(2 * 4**3 * 6 * 4 * 2**3), "1": both(2 * 4**3 * 6 * 2 * 3**3)}),
    # 7 x 7 stay 7 x 7: 8 channels of one input each, then 6 of 8 at one tap
    case("depthwise separable",
         lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding="same", groups=4, padding_mode="reflect"),
                               nn.Conv2d(8, 6, 1)),
         on(2, 4, 7, 7), {"0": one(2 * 49 * 8 * 9), "1": both(2 * 49 * 6 * 8)}),
    # 9 - 3 + 1 = 7 a side, then 7
    case("unbatched",
         lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 3, 2)),
         on(4, 9, 9), {"0": one(49 * 6 * 4 * 9), "1": both(49 * 6 * 3 * 4)}),
    # only the normalization between them is trained
    case("frozen convolutions",
         lambda: nn.Sequential(frozen(nn.Conv1d(4, 6, 3)), nn.BatchNorm1d(6), frozen(nn.Conv1d(6, 2, 1))),
         on(2, 4, 7), {"0": neither(2 * 5 * 6 * 4 * 3), "2": one(2 * 5 * 2 * 6)}),
]  # fmt: skip

# Recurrent: 5 steps of 2 sequences of 4 values, 6 units. A gate has 6 x 4 for what comes in and 6 x 6 for the state.
IN, STATE = 6 * 4, 6 * 6
GATE = IN + STATE


def packed(module: nn.Module) -> Any:
    return module(pack_padded_sequence(c(5, 2, 4), torch.tensor([5, 3])))


def unrolled(model: Any, steps: Tensor) -> Any:
    state = None
    for x in steps:
        state = model.cell(x, state)
    return model.head(state[0] if isinstance(state, tuple) else state)


RECURRENT = [
    # the gradients of the weights at 10 tokens, of the state at all but the first 2: it starts as a constant
    case("RNN", lambda: nn.RNN(4, 6), on(5, 2, 4), {"": (10 * GATE, 10 * GATE + 8 * STATE)}),
    case("GRU", lambda: nn.GRU(4, 6), on(5, 2, 4), {"": (10 * 3 * GATE, 10 * 3 * GATE + 8 * 3 * STATE)}),
    # the kernel for float32 computes every gradient, needed or not; that for float64 does not
    case("LSTM", lambda: nn.LSTM(4, 6), on(5, 2, 4), {"": both(10 * 4 * GATE)}),
    case("LSTM, float64", lambda: nn.LSTM(4, 6).double(), on(5, 2, 4, dtype=torch.float64),
         {"": (10 * 4 * GATE, 10 * 4 * GATE + 8 * 4 * STATE)}),
    # 5 sequences of 2 steps: 5 first ones
    case("GRU, batch first", lambda: nn.GRU(4, 6, batch_first=True), on(5, 2, 4),
         {"": (10 * 3 * GATE, 10 * 3 * GATE + 5 * 3 * STATE)}),
    # the second layer gets 12 values of both directions, which need gradients
    case("RNN, two layers, both directions", lambda: nn.RNN(4, 6, num_layers=2, bidirectional=True), on(5, 2, 4),
         {"": (10 * 2 * (GATE + 6 * 12 + STATE),
               10 * 2 * (GATE + 6 * 12 + STATE) + 8 * 2 * 2 * STATE + 10 * 2 * 6 * 12)}),
    case("LSTM, two layers, both directions", lambda: nn.LSTM(4, 6, num_layers=2, bidirectional=True), on(5, 2, 4),
         {"": both(10 * 4 * 2 * (GATE + 6 * 12 + STATE))}),
    # the state of 6 is projected to 3, which the gates get. Backward: all weights, 8 of the states, 10 projected ones
    case("LSTM, projected", lambda: nn.LSTM(4, 6, proj_size=3), on(5, 2, 4),
         {"": (10 * (4 * 6 * (4 + 3) + 3 * 6), 10 * (4 * 6 * (4 + 3) + 3 * 6) + 8 * 4 * 6 * 3 + 10 * 3 * 6)}),
    # 5 + 3 tokens, 2 of them the first
    case("LSTM, packed", lambda: nn.LSTM(4, 6), packed, {"": (8 * 4 * GATE, 8 * 4 * GATE + 6 * 4 * STATE)}),
    case("GRU, packed", lambda: nn.GRU(4, 6), packed, {"": (8 * 3 * GATE, 8 * 3 * GATE + 6 * 3 * STATE)}),
    # a cell that is called 3 times for 2 rows
    *[
        case(kind.__name__, lambda kind=kind: Does(unrolled, cell=kind(4, 6), head=nn.Linear(6, 5)), on(3, 2, 4),
             {"cell": (6 * gates * GATE, 6 * gates * GATE + 4 * gates * STATE), "head": both(2 * 6 * 5)})
        for kind, gates in [(nn.RNNCell, 1), (nn.LSTMCell, 4), (nn.GRUCell, 3)]
    ],
]  # fmt: skip

# Attention: 2 sequences of 5 tokens of width 16, 4 heads of 4. Every query meets every key over 4 features; so does AV.
TOKENS = 2 * 5
PAIRS = 2 * 4 * 5 * 5 * 4
PROJECT = TOKENS * 16 * 16


class Attention(nn.Module):
    def __init__(self, kv_heads: int = 4, **options: Any) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(16, 16), nn.Linear(16, 16)
        self.k, self.v = nn.Linear(16, 4 * kv_heads), nn.Linear(16, 4 * kv_heads)
        self.options = options

    def forward(self, x: Tensor) -> Any:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, **self.options).transpose(1, 2).flatten(2))


def attention(kv_heads: int = 4) -> Own:
    """Q, K and V are of the batch, which needs no gradient."""
    kv = one(TOKENS * 16 * 4 * kv_heads)
    return {"": both(2 * PAIRS), "q": one(PROJECT), "k": kv, "v": kv, "o": both(PROJECT)}


def by_math(model: nn.Module) -> Any:
    with sdpa_kernel(SDPBackend.MATH):
        return model(c(2, 5, 16))


def mha(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.MultiheadAttention(16, 4, batch_first=True, **options)


def to_itself(model: nn.Module, **options: Any) -> Any:
    x = c(2, 5, 16)
    return model(x, x, x, **options)


def encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **options), 2)


# The projection of the result is called as a function: all four, and attention, are the module's own. Those of Q, K and
# V have one gradient where they are of the batch.
ITSELF = 4 * PROJECT + 2 * PAIRS
FEED_FORWARD = TOKENS * 16 * 32
ENCODER: Own = {
    "layers.0.self_attn": (ITSELF, 2 * ITSELF - 3 * PROJECT),
    "layers.1.self_attn": both(ITSELF),
    **{f"layers.{i}.linear{n}": both(FEED_FORWARD) for i in (0, 1) for n in (1, 2)},
}

ATTENTION = [
    # QK^T runs again in the flash kernel's backward
    case("flash", Attention, on(2, 5, 16), attention(), recompute={"": PAIRS}),
    case("flash, causal: dense", lambda: Attention(is_causal=True), on(2, 5, 16), attention(), recompute={"": PAIRS}),
    case("grouped queries: 2 heads of K and V", lambda: Attention(2, enable_gqa=True), on(2, 5, 16), attention(2),
         recompute={"": PAIRS}),
    case("math", Attention, by_math, attention()),
    case("math, grouped queries", lambda: Attention(2, enable_gqa=True), by_math, attention(2)),
    case("math, for its dropout", lambda: Attention(dropout_p=0.5), on(2, 5, 16), attention()),
    case("nn.MultiheadAttention", mha(), partial(to_itself, need_weights=False),
         {"": (ITSELF, 2 * ITSELF - 3 * PROJECT)}, recompute={"": PAIRS}),
    case("nn.MultiheadAttention with its weights", mha(), to_itself, {"": (ITSELF, 2 * ITSELF - 3 * PROJECT)}),
    # 7 keys of width 6 and values of width 8, each to 16; 4 heads of 5 queries meet 7 keys over 4 features
    case("nn.MultiheadAttention, other keys and values", mha(kdim=6, vdim=8),
         lambda model: model(c(2, 5, 16), c(2, 7, 6), c(2, 7, 8)),
         {"": (2 * PROJECT + 14 * 6 * 16 + 14 * 8 * 16 + 2 * (2 * 4 * 5 * 7 * 4),
               3 * PROJECT + 14 * 6 * 16 + 14 * 8 * 16 + 4 * (2 * 4 * 5 * 7 * 4))}),
    # two keys more: a learned one, and zeros
    case("nn.MultiheadAttention, keys added", mha(add_bias_kv=True, add_zero_attn=True), to_itself,
         {"": (4 * PROJECT + 2 * (2 * 4 * 5 * 7 * 4), 5 * PROJECT + 4 * (2 * 4 * 5 * 7 * 4))}),
    # its dropout makes it take the math path
    case("nn.TransformerEncoder", encoder, on(2, 5, 16), ENCODER),
    case("nn.TransformerEncoder, no dropout", lambda: encoder(dropout=0.0), on(2, 5, 16), ENCODER,
         recompute={"layers.0.self_attn": PAIRS, "layers.1.self_attn": PAIRS}),
    # the 14 tokens of memory are a batch, too: one gradient of K's and V's projection
    case("nn.TransformerDecoder",
         lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True), 1),
         lambda model: model(c(2, 5, 16), c(2, 7, 16)),
         {"layers.0.self_attn": (ITSELF, 2 * ITSELF - 3 * PROJECT),
          "layers.0.multihead_attn": (2 * PROJECT + 2 * 14 * 16 * 16 + 2 * (2 * 4 * 5 * 7 * 4),
                                      4 * PROJECT + 2 * 14 * 16 * 16 + 4 * (2 * 4 * 5 * 7 * 4)),
          "layers.0.linear1": both(FEED_FORWARD), "layers.0.linear2": both(FEED_FORWARD)},
         recompute={"layers.0.self_attn": PAIRS, "layers.0.multihead_attn": 2 * 4 * 5 * 7 * 4}),
]  # fmt: skip


# Products of a module's own: "1", after a linear layer from 4 to 4, "0"


def after(run: Callable[..., Any], width: int = 4, **held: Tensor) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(width, width, dtype=held["w"].dtype), Does(run, **held))


def fp8(x: Tensor) -> Tensor:
    return x.detach().to(torch.float8_e4m3fn)


def in_groups(model: Any, x: Tensor) -> Tensor:
    return F.grouped_mm(x, model.w, offs=torch.tensor([8, 16, 20, 32], dtype=torch.int32))


def to_experts(model: Any, x: Tensor) -> Tensor:
    return torch.cat([model.experts[0](x[:2]), model.experts[2](x[2:])]) * model.router(x).amax(-1, keepdim=True)


SQUARE = one(3 * 4 * 4)
"""A linear layer from 4 to 4, for 3 rows of a batch."""

PRODUCTS = [
    case("@", after(lambda m, x: x @ m.w, w=c(4, 5)), on(3, 4), {"0": SQUARE, "1": both(3 * 4 * 5)}),
    case("matmul, broadcast over 2 matrices", after(lambda m, x: torch.matmul(x, m.w), w=c(2, 4, 5)), on(3, 4),
         {"0": SQUARE, "1": both(2 * 3 * 4 * 5)}),
    case("bmm, baddbmm and addbmm",
         after(lambda m, x: torch.addbmm(m.b, torch.baddbmm(m.b, torch.bmm(x, m.w), m.w), m.w), b=c(4), w=c(2, 4, 4)),
         on(2, 3, 4), {"0": one(2 * 3 * 4 * 4), "1": both(3 * 2 * 3 * 4 * 4)}),
    # a matrix's gradient is an outer product here, so only the vector's is one
    case("mv", after(lambda m, x: torch.mv(x, m.w), w=c(4)), on(3, 4), {"0": SQUARE, "1": one(3 * 4)}),
    case("addmv", after(lambda m, x: torch.addmv(m.b, x, m.w), b=c(3), w=c(4)), on(3, 4),
         {"0": SQUARE, "1": one(3 * 4)}),
    # each gradient is a number times the other vector
    case("dot", after(lambda m, x: torch.dot(x.flatten(), m.w), w=c(12)), on(3, 4), {"0": SQUARE, "1": neither(12)}),
    case("outer", after(lambda m, x: torch.outer(x.flatten(), m.w), w=c(5)), on(3, 4), {"0": SQUARE}),
    case("einsum", after(lambda m, x: torch.einsum("ri,io->or", x, m.w), w=c(4, 5)), on(3, 4),
         {"0": SQUARE, "1": both(3 * 4 * 5)}),
    case("tensordot over 4 x 3", after(lambda m, x: torch.tensordot(x, m.w, ([0, 1], [1, 0])), w=c(4, 3, 5)), on(3, 4),
         {"0": SQUARE, "1": both(4 * 3 * 5)}),
    # more than 25 points, so by a product: 30 x 7 pairs over 4 coordinates
    case("cdist", after(lambda m, x: torch.cdist(x, m.w), w=c(7, 4)), on(30, 4),
         {"0": one(30 * 4 * 4), "1": both(30 * 7 * 4)}),
    case("multi_dot", after(lambda m, x: torch.linalg.multi_dot([x, m.w, m.w, m.w]), w=c(4, 4)), on(3, 4),
         {"0": SQUARE, "1": both(3 * 3 * 4 * 4)}),
    # no gradient goes through what is rounded
    case("int8 mm", after(lambda m, x: x + torch._int_mm((9 * x).char(), (9 * m.w).char()), 8, w=c(8, 8)), on(17, 8),
         {"0": one(17 * 8 * 8), "1": neither(17 * 8 * 8)}),
    case("fp8 mm",
         after(lambda m, x: x + torch._scaled_mm(fp8(x), fp8(m.w).t(), *torch.ones(2)).float(), 16, w=c(16, 16)),
         on(32, 16), {"0": one(32 * 16 * 16), "1": neither(32 * 16 * 16)}),
    # each of 32 rows goes to one of 4 experts of 16 x 8
    case("experts in one product", after(in_groups, 16, w=c(4, 16, 8, dtype=BF16)), on(32, 16, dtype=BF16),
         {"0": one(32 * 16 * 16), "1": both(32 * 16 * 8)}),
    # 2 rows go to the first expert, one to the last
    case("experts as modules",
         lambda: Does(to_experts, router=nn.Linear(4, 3), experts=nn.ModuleList(nn.Linear(4, 5) for _ in range(3))),
         on(3, 4), {"router": one(3 * 4 * 3), "experts.0": one(2 * 4 * 5), "experts.2": one(4 * 5)}),
]  # fmt: skip


# Sparse products: 7 edges of 5 nodes; the nodes are of "layer", from 4 to 3, so they need a gradient

EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 4], [1, 0, 2, 1, 4, 3, 0]])
NODES = one(5 * 4 * 3)
COO, CSR, CSC = torch.sparse_coo, torch.sparse_csr, torch.sparse_csc


def graph(layout: torch.layout = COO) -> Tensor:
    return torch.sparse_coo_tensor(EDGES, c(7), (5, 5)).coalesce().to_sparse(layout=layout)


def trained(layout: torch.layout = COO) -> Tensor:
    return nn.Parameter(graph(layout))


def doubled() -> Tensor:
    """One edge is there twice: not coalesced."""
    return torch.sparse_coo_tensor(torch.cat([EDGES, EDGES[:, :1]], 1), c(8), (5, 5))


def over(edges: Callable[[], Tensor], run: Callable[..., Any]) -> Callable[[], nn.Module]:
    """A model that computes ``run`` of itself, with these edges, and of what its layer makes of the nodes."""
    return lambda: Does(lambda m, x: run(m, m.layer(x)), edges=edges(), layer=nn.Linear(4, 3), b=c(5, 3))


SPARSE = [
    # each edge meets 3 columns, and in the product with its transpose, the nodes' gradient, 3 again
    *[
        case(f"{name}, {layout}", over(partial(graph, layout), run), on(5, 4), {"": one(7 * columns), "layer": NODES})
        for layout in (COO, CSR, CSC)
        for name, run, columns in [
            ("torch.sparse.mm", lambda m, x: torch.sparse.mm(m.edges, x), 3),
            ("torch.sparse.addmm", lambda m, x: torch.sparse.addmm(m.b, m.edges, x), 3),
            ("sparse @ dense", lambda m, x: m.edges @ x, 3),
            ("dense @ sparse", lambda m, x: x.t() @ m.edges, 3),
            ("sparse addmm", lambda m, x: torch.addmm(m.b, m.edges, x), 3),
            ("sparse mv", lambda m, x: m.edges @ x[:, 0], 1),
            ("sparse weight", lambda m, x: F.linear(x.t(), m.edges), 3),
        ]
    ],
    case("sparse addmv", over(partial(graph, CSR), lambda m, x: torch.addmv(m.b[:, 0], m.edges, x[:, 0])), on(5, 4),
         {"": one(7), "layer": NODES}),
    case("sparse bmm, of 2 graphs", over(graph, lambda m, x: torch.bmm(torch.stack([m.edges, m.edges]), x)),
         on(2, 5, 4), {"": one(2 * 7 * 3), "layer": one(2 * 5 * 4 * 3)}),
    # 8 values are stored
    case("not coalesced", over(doubled, lambda m, x: m.edges @ x), on(5, 4), {"": one(8 * 3), "layer": NODES}),
    # the edges' gradient, 5 x 3 by 3 x 5, is dense and then masked; torch.sparse.mm of CSR has it at the edges alone
    case("trained COO", over(trained, lambda m, x: torch.sparse.mm(m.edges, x)), on(5, 4),
         {"": (7 * 3, 7 * 3 + 5 * 3 * 5), "layer": NODES}),
    case("trained CSR", over(partial(trained, CSR), lambda m, x: torch.sparse.mm(m.edges, x)), on(5, 4),
         {"": (7 * 3, 7 * 3 + 7 * 3), "layer": NODES}),
    case("trained CSR, @", over(partial(trained, CSR), lambda m, x: m.edges @ x), on(5, 4),
         {"": (7 * 3, 7 * 3 + 5 * 3 * 5), "layer": NODES}),
    # a mean is a sum, divided; of a maximum nothing is summed, and its gradient is scattered
    case("mean over edges", over(partial(trained, CSR), lambda m, x: torch.sparse.mm(m.edges, x, "mean")), on(5, 4),
         {"": both(7 * 3), "layer": NODES}),
    case("maximum over edges", over(partial(graph, CSR), lambda m, x: torch.sparse.mm(m.edges, x, "amax")), on(5, 4),
         {"layer": NODES}),
    # a product of which only the 7 values at the edges are computed, over 3 features; two sparse products backward
    case("scores of edges",
         over(partial(graph, CSR), lambda m, x: torch.sparse.sampled_addmm(m.edges, x, x.t()).to_dense()), on(5, 4),
         {"": both(7 * 3), "layer": NODES}),
]  # fmt: skip


# Whose it is


class Found:
    """What a model may return: no container that torch knows."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Product(torch.autograd.Function):
    """Rows by a matrix; backward computes both gradients, needed or not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight.t(), x.t() @ gradients[0]


def body_and_head(**more: nn.Module) -> dict[str, nn.Module]:
    return {"body": nn.Linear(4, 4), "head": nn.Linear(4, 2), **more}


def in_sequence() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def without_gradients(model: Any, x: Tensor) -> Any:
    with torch.no_grad():
        x = model.body(x)
    return model.head(x)


def distilled(model: Any, x: Tensor) -> Any:
    with torch.inference_mode():  # here composite ops are seen whole
        target = model.teacher(x.unsqueeze(1))[0]
    return model.head(model.body(x)) - target.squeeze(1).clone()


def twice_backward(model: nn.Module) -> Any:
    loss = model(c(3, 4)).sum()
    loss.backward(retain_graph=True)
    return loss


def accumulated(model: nn.Module) -> Any:
    model(c(3, 4)).sum().backward()
    return model(c(2, 4))


def with_auxiliary(model: Any, x: Tensor) -> Any:
    x = model.body(x)
    return (model.head(x), model.auxiliary(x)) if model.training else model.head(x)


def shared() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), nn.Sequential(layer))


def tied() -> nn.Module:
    layer = nn.Linear(4, 4, bias=False)
    return nn.Sequential(layer, Does(lambda m, x: F.linear(x, m.w), w=layer.weight))


def hooked() -> nn.Module:
    """Hooks of the user's own, of which one computes: it is a part of the module's call."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].register_forward_hook(lambda module, args, out: out @ torch.ones(4, 4))
    model[1].register_full_backward_hook(lambda module, grad_input, grad_output: None)
    return model


HEAD = both(3 * 4 * 2)
"""From 4 to 2, for 3 rows that need a gradient."""

ATTRIBUTION = [
    # three times the weight's gradient, and the input's but for the batch
    case("called three times, and never",
         lambda: Does(lambda m, x: m.layer(m.layer(m.layer(x))), layer=nn.Linear(4, 4), never=nn.Linear(4, 4)),
         on(3, 4), {"layer": (3 * 48, (3 + 2) * 48)}),
    case("in two places", shared, on(3, 4), {"0": (2 * 48, (2 + 1) * 48)}),
    case("a weight in two modules", tied, on(3, 4), {"0": SQUARE, "1": both(3 * 4 * 4)}),
    # no call of the module: the work is its caller's
    case("by .forward()", lambda: Does(lambda m, x: m.head(m.body.forward(x)), **body_and_head()), on(3, 4),
         {"": SQUARE, "head": HEAD}),
    # with the weights of both, 4 to 4 for the batch, and after the head, 2 to 4
    case("a function with another's parameters",
         lambda: Does(lambda m, x: F.linear(m.head(F.linear(x, m.body.weight)), m.head.weight.t()), **body_and_head()),
         on(3, 4), {"": (48 + 3 * 2 * 4, 48 + 2 * (3 * 2 * 4)), "head": HEAD}),
    case("a ParameterList and a ParameterDict",
         lambda: Does(lambda m, x: x @ m.some[0] @ m.some[1] @ m.named["w"],
                      some=nn.ParameterList([c(4, 5), c(5, 6)]), named=nn.ParameterDict({"w": c(6, 7)})),
         on(3, 4), {"": (3 * (4 * 5 + 5 * 6 + 6 * 7), 3 * (4 * 5 + 2 * 5 * 6 + 2 * 6 * 7))}),
    case("under no_grad", lambda: Does(without_gradients, **body_and_head()), on(3, 4),
         {"body": neither(48), "head": one(24)}),
    # 3 sequences of one step: 4 gates of 2 x 4 and 2 x 2
    case("a teacher in inference mode",
         lambda: Does(distilled, **body_and_head(teacher=nn.LSTM(4, 2, batch_first=True))), on(3, 4),
         {"body": SQUARE, "head": HEAD, "teacher": neither(3 * 4 * (2 * 4 + 2 * 2))}),
    case("keywords alone", lambda: Does(lambda m, *, x: m.head(input=m.body(input=x)), **body_and_head()),
         lambda model: model(x=c(3, 4)), {"body": SQUARE, "head": HEAD}),
    case("objects between modules",
         lambda: nn.Sequential(Does(lambda m, x: Found(m.layer(x)), layer=nn.Linear(4, 4)),
                               Does(lambda m, found: Found(m.layer(found.logits)), layer=nn.Linear(4, 2))),
         on(3, 4), {"0.layer": SQUARE, "1.layer": HEAD}),
    # the body is gone through once for both
    case("an auxiliary head in training", lambda: Does(with_auxiliary, **body_and_head(auxiliary=nn.Linear(4, 5))),
         on(3, 4), {"body": SQUARE, "head": HEAD, "auxiliary": both(3 * 4 * 5)}),
    case("and in evaluation", lambda: Does(with_auxiliary, **body_and_head(auxiliary=nn.Linear(4, 5))).eval(),
         on(3, 4), {"body": SQUARE, "head": HEAD}),
    case("parts that are called, never the model", lambda: nn.ModuleDict(body_and_head()),
         lambda model: model["head"](model["body"](c(3, 4))), {"body": SQUARE, "head": HEAD}),
    # 3 rows of 5 to 4 before the model, of 2 to 7 after it: a gradient goes through that
    case("work outside", lambda: nn.Sequential(nn.Linear(4, 2)), lambda model: model(c(3, 5) @ c(5, 4)) @ c(2, 7),
         {"0": one(3 * 4 * 2)}, outside=(3 * 5 * 4 + 3 * 2 * 7, 3 * 2 * 7)),
    case("two batches, of 3 and 2", in_sequence, accumulated, {"0": one(5 * 4 * 4), "1": both(5 * 4 * 2)}),
    case("backward twice", in_sequence, twice_backward, {"0": (48, 2 * 48), "1": (24, 2 * 2 * 24)}),
    # the hook has a constant: one gradient
    case("the user's hooks", hooked, on(3, 4), {"0": one(48 + 3 * 4 * 4), "1": HEAD}),
    case("an autograd.Function",
         lambda: nn.Sequential(Does(lambda m, x: Product.apply(x, m.w), w=c(4, 4)), nn.Linear(4, 2)), on(3, 4),
         {"0": both(3 * 4 * 4), "1": HEAD}),
]  # fmt: skip


def three(train: str) -> nn.Module:
    """Three linear layers from 4 to 4; the parameters whose names have ``train`` in them are trained."""
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(train in name)
    return model


def adapted(model: Any, x: Tensor) -> Any:
    return model.base(x) + model.up(model.down(x))


def adapter() -> nn.Module:
    return Does(adapted, base=frozen(nn.Linear(4, 4)), down=nn.Linear(4, 2), up=nn.Linear(2, 4))


# What needs no gradient costs none
FROZEN = [
    # weight's; then the input's, which is passed on to what is trained before
    case("only the first", partial(three, "0."), on(3, 4), {"0": one(48), "1": one(48), "2": one(48)}),
    case("only the middle", partial(three, "1."), on(3, 4), {"0": neither(48), "1": one(48), "2": one(48)}),
    case("only the last", partial(three, "2."), on(3, 4), {"0": neither(48), "1": neither(48), "2": one(48)}),
    case("only biases", partial(three, "bias"), on(3, 4), {"0": neither(48), "1": one(48), "2": one(48)}),
    case("only weights", partial(three, "weight"), on(3, 4), {"0": one(48), "1": both(48), "2": both(48)}),
    case("nothing: no backward", partial(three, "none"), on(3, 4), dict.fromkeys("012", neither(48))),
    # as an adversarial example is made
    case("the batch alone", partial(three, "none"), lambda model: model(t(3, 4)), dict.fromkeys("012", one(48))),
    case("cut off in the middle",
         lambda: nn.Sequential(nn.Linear(4, 4), Does(lambda m, x: x.detach()), nn.Linear(4, 4)), on(3, 4),
         {"0": neither(48), "2": one(48)}),
    # the first base needs no gradient at all, the second passes one on
    case("low-rank adapters", lambda: nn.Sequential(adapter(), adapter()), on(3, 4),
         {"0.base": neither(48), "0.down": one(3 * 4 * 2), "0.up": both(3 * 2 * 4),
          "1.base": one(48), "1.down": both(3 * 4 * 2), "1.up": both(3 * 2 * 4)}),
]  # fmt: skip


# Weights that are computed: of "1", a linear layer from 4 to 5


class Mixed(nn.Module):
    """A parametrization that mixes the columns of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.eye(4))

    def forward(self, weight: Tensor) -> Tensor:
        return weight @ self.mix


def with_weight(change: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5))
        change(model[1])
        return model

    return make


FIVE = both(3 * 4 * 5)
# one iteration: the weight with each of two vectors, which are constants; its norm: with one of them, and a dot product
# of 5, the gradient of which is an outer product
POWER = 2 * (5 * 4) + 5 * 4 + 5

PARAMETRIZED = [
    case("weight_norm, the old one", with_weight(nn.utils.weight_norm), on(3, 4), {"0": SQUARE, "1": FIVE}),
    case("weight_norm", with_weight(parametrizations.weight_norm), on(3, 4), {"0": SQUARE, "1": FIVE}),
    # a hook of the layer's: its own work
    case("spectral_norm, the old one", with_weight(nn.utils.spectral_norm), on(3, 4),
         {"0": SQUARE, "1": (FIVE[0] + POWER, FIVE[1])}),
    case("spectral_norm", with_weight(parametrizations.spectral_norm), on(3, 4),
         {"0": SQUARE, "1": FIVE, "1.parametrizations.weight.0": neither(POWER)}),
    case("a user's", with_weight(lambda layer: parametrize.register_parametrization(layer, "weight", Mixed())),
         on(3, 4), {"0": SQUARE, "1": FIVE, "1.parametrizations.weight.0": both(5 * 4 * 4)}),
]  # fmt: skip


# torch.func and TorchScript


def with_other_parameters(model: nn.Module) -> Any:
    other = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    return functional_call(model, other, (c(3, 4),))


def by_func(model: nn.Module) -> None:
    grad(lambda p, x: functional_call(model, p, (x,)).sum())(dict(model.named_parameters()), c(3, 4))


def by_func_for_each_row(model: nn.Module) -> None:
    gradient = grad(lambda p, x: functional_call(model, p, (x,)).sum())
    vmap(gradient, in_dims=(None, 0))({name: p.detach() for name, p in model.named_parameters()}, c(3, 4))


def by_jvp(model: nn.Module) -> None:
    jvp(model, (c(3, 4),), (c(3, 4),))


def by_dual_numbers(model: nn.Module) -> None:
    with forward_ad.dual_level():
        model(forward_ad.make_dual(c(3, 4), c(3, 4)))


def by_jvp_of_parameters(model: nn.Module) -> None:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    x = c(3, 4)
    jvp(lambda p: functional_call(model, p, (x,)), (parameters,), (parameters,))


def by_jacfwd(model: nn.Module) -> None:
    jacfwd(model)(c(4))


def by_hessian(model: nn.Module) -> None:
    hessian(lambda x: model(x).sum())(c(4))


def curved() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def with_inner(compiled: Callable[[nn.Module], Any]) -> Callable[[], nn.Module]:
    inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
    return lambda: nn.Sequential(nn.Linear(4, 4), compiled(inner), nn.Linear(4, 2))


INNER = both(3 * 4 * 5 + 3 * 5 * 4)

FUNCTIONAL = [
    case("functional_call", in_sequence, with_other_parameters, {"0": SQUARE, "1": HEAD}),
    case("torch.func.grad", in_sequence, by_func, {"0": SQUARE, "1": HEAD}),
    # the layer's product; the batch's tangent with the weight, and the batch with the weight's tangent: both run, also
    # where torch has filled one of the tangents with zeros
    case("torch.func.jvp", in_sequence, by_jvp, {"0": neither(3 * 48), "1": neither(3 * 24)}),
    case("forward_ad", in_sequence, by_dual_numbers, {"0": neither(3 * 48), "1": neither(3 * 24)}),
    # the batch is a constant for the first layer, not for the second
    case("torch.func.jvp of the parameters", in_sequence, by_jvp_of_parameters,
         {"0": neither(3 * 48), "1": neither(3 * 24)}),
    # one row; its 4 tangents, one for each value of it; the zeros do not differ between them
    case("torch.func.jacfwd", curved, by_jacfwd,
         {"0": neither((1 + 4 + 1) * 4 * 6), "2": neither((1 + 4 + 1) * 6 * 2)}),
    # forward as before; backward for the row and its tangents, too. The second layer's backward has no tangent, as what
    # it gets is constant; the weights' gradients are not asked for
    case("torch.func.hessian", curved, by_hessian,
         {"0": (6 * 4 * 6, (1 + 4 + 1) * 6 * 4), "2": (6 * 6 * 2, 2 * 6)}),
    # a gradient for each of 3 rows: the same products, not summed over the rows
    case("vmap of grad", in_sequence, by_func_for_each_row, {"0": SQUARE, "1": HEAD}),
    case("vmap", lambda: Does(lambda m, x: vmap(m.head)(m.body(x)), **body_and_head()), on(3, 4),
         {"body": SQUARE, "head": HEAD}),
    # the calls within a scripted module are not seen: what they compute is its own
    case("scripted", with_inner(torch.jit.script), on(3, 4), {"0": SQUARE, "1": INNER, "2": HEAD}),
    case("traced", with_inner(lambda inner: torch.jit.trace(inner, c(3, 4))), on(3, 4),
         {"0": SQUARE, "1": INNER, "2": HEAD}),
]  # fmt: skip


# Activation checkpointing: "first" is a linear layer from 4 to 4, and two blocks go from 4 to 5 and back


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Any:
        return self.down(self.up(x).tanh())


class Checkpointed(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first, self.blocks, self.options = nn.Linear(4, 4), nn.ModuleList([Block(), Block()]), options

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, **self.options)
        return x


class Nested(Checkpointed):
    """The whole is checkpointed, and within it the first block."""

    def forward(self, x: Tensor) -> Any:
        return checkpoint(lambda x: self.blocks[1](self.inner(self.first(x))), x, **self.options)

    def inner(self, x: Tensor) -> Any:
        return checkpoint(self.blocks[0], x, **self.options)


def keeping(*shapes: tuple[int, int]) -> dict[str, Any]:
    """Selective: the results of linear layers whose weights have one of these shapes, from in to out, are kept."""

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        keep = op is torch.ops.aten.addmm.default and tuple(args[2].shape) in shapes
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return {"context_fn": lambda: create_selective_checkpoint_contexts(policy), **TO_THE_END}


UP, DOWN = 3 * 4 * 5, 3 * 5 * 4
BLOCKS = {f"blocks.{i}.{name}": both(macs) for i in (0, 1) for name, macs in (("up", UP), ("down", DOWN))}
NON_REENTRANT: dict[str, Any] = {"use_reentrant": False}
TO_THE_END: dict[str, Any] = {"use_reentrant": False, "early_stop": False}
ALL = {path: forward for path, (forward, _) in BLOCKS.items()}
ONLY_UP = {"blocks.0.up": UP, "blocks.1.up": UP}

CHECKPOINTED = [
    # it stops as soon as it has what backward needs: what goes into the last layer
    case("non-reentrant", lambda: Checkpointed(**NON_REENTRANT), on(3, 4), {"first": SQUARE, **BLOCKS},
         recompute=ONLY_UP),
    case("non-reentrant, to the end", lambda: Checkpointed(**TO_THE_END), on(3, 4), {"first": SQUARE, **BLOCKS},
         recompute=ALL),
    case("reentrant", lambda: Checkpointed(use_reentrant=True), on(3, 4), {"first": SQUARE, **BLOCKS}, recompute=ALL),
    case("selective, all are kept", lambda: Checkpointed(**keeping((4, 5), (5, 4))), on(3, 4),
         {"first": SQUARE, **BLOCKS}),
    case("selective, one of two is kept", lambda: Checkpointed(**keeping((5, 4))), on(3, 4),
         {"first": SQUARE, **BLOCKS}, recompute=ONLY_UP),
    # the outer one up to what goes into the last layer, then the inner one up to what goes into its own last
    case("one in another", lambda: Nested(**NON_REENTRANT), on(3, 4), {"first": SQUARE, **BLOCKS},
         recompute={"first": 48, "blocks.0.up": UP + UP, "blocks.0.down": DOWN, "blocks.1.up": UP}),
    # here each to its end; and the batch must need a gradient
    case("one in another, reentrant", lambda: Nested(use_reentrant=True), lambda model: model(t(3, 4)),
         {"first": both(48), **BLOCKS},
         recompute={"first": 48, **ALL, "blocks.0.up": UP + UP, "blocks.0.down": DOWN + DOWN}),
    # QK^T and AV run again, and QK^T once more in the kernel's own backward
    case("attention", lambda: Does(lambda m, x: checkpoint(m.inner, x, **NON_REENTRANT), inner=Attention()),
         on(2, 5, 16), {f"inner.{path}".rstrip("."): macs for path, macs in attention().items()},
         recompute={"inner": 2 * PAIRS + PAIRS, "inner.q": PROJECT, "inner.k": PROJECT, "inner.v": PROJECT}),
]  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore:LSTM with projections", "ignore:Sparse", "ignore:None of the inputs have requires_grad"
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated", "ignore:`torch.jit")
@pytest.mark.parametrize(
    ("model", "step", "own", "outside", "recompute"),
    [
        *(LINEAR + CONVOLUTIONS + RECURRENT + ATTENTION + PRODUCTS + SPARSE),
        *(ATTRIBUTION + FROZEN + PARAMETRIZED + FUNCTIONAL + CHECKPOINTED),
    ],
)
def test_every_module(
    model: Callable[[], nn.Module], step: Step, own: Own, outside: Macs, recompute: dict[str, int] | None
) -> None:
    torch.manual_seed(0)
    check(observed(model(), step), own, outside, recompute)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention() -> None:
    """It has no backward on a CPU: the head alone is trained. Two heads of K and V for 4 of Q."""
    from torch.nn.attention.flex_attention import flex_attention  # not at the top: it imports torch._dynamo

    def attend(model: Any, x: Tensor) -> Any:
        q, k, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in model.qkv(x).split((16, 8, 8), -1))
        attended = flex_attention(q, k, v, enable_gqa=True)
        assert isinstance(attended, Tensor)
        return model.head(attended.transpose(1, 2).flatten(2))

    check(
        observed(Does(attend, qkv=frozen(nn.Linear(16, 16 + 8 + 8)), head=nn.Linear(16, 3)), on(2, 5, 16)),
        {"": neither(2 * PAIRS), "qkv": neither(TOKENS * 16 * 32), "head": one(TOKENS * 16 * 3)},
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True])
def test_the_fast_path_of_an_encoder(padded: bool) -> None:
    """In evaluation a fused kernel runs, of the attention or of the whole layer: a layer computes what it is there for.

    Padding makes a nested tensor of the batch, with parts of different lengths: that is unknown, the head is not.
    """
    options = {"src_key_padding_mask": torch.arange(5) >= torch.tensor([[5], [3]])} if padded else {}
    model = Does(lambda m, x: m.head(m.encoder(x, **options)), encoder=frozen(encoder()).eval(), head=nn.Linear(16, 3))
    summary = observed(model, on(2, 5, 16))
    layers = [summary["encoder.layers.0"], summary["encoder.layers.1"]]
    layer = None if padded else ITSELF + 2 * FEED_FORWARD
    assert [(module.forward_macs, module.backward_macs) for module in layers] == 2 * [(layer, 0)]
    assert (summary["head"].forward_macs, summary["head"].backward_macs) == one(TOKENS * 16 * 3)
    assert summary["encoder"].forward_macs == (None if padded else 2 * (ITSELF + 2 * FEED_FORWARD))
    assert bool(named(summary)) == padded


def test_a_gradient_of_a_gradient() -> None:
    """A penalty on the batch's gradient: every product of both backwards counts."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 5)), t(3, 4)
    with summarycb.observe(model) as observation:
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        gradient.square().sum().backward()
    summary = observation.summary
    assert summary is not None
    first, second = 3 * 4 * 4, 3 * 4 * 5
    assert (summary.forward_macs, summary.incomplete) == (first + second, ())
    assert [note.kind for note in summary.notes] == ["backwards"]
    # the batch's gradient goes through both layers. Backward through that: both gradients of the first layer's product,
    # of the second's the weight's alone, as what it multiplies is constant; then, through tanh, of the forward's first
    assert summary.backward_macs == (first + second) + (2 * first + second) + 2 * first


# A user's own op


@torch.library.custom_op("summarycb_numbers::product", mutates_args=())
def product(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


@torch.library.custom_op("summarycb_numbers::product_backward", mutates_args=())
def product_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return gradient @ weight.t(), x.t() @ gradient


product.register_autograd(
    lambda ctx, gradient: product_backward(gradient, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def own_of(summary: ModelSummary) -> dict[str, tuple[int | None, int | None]]:
    found = {path: (module.own_forward_macs, module.own_backward_macs) for path, module in summary.modules.items()}
    return {path: macs for path, macs in found.items() if macs != (0, 0)}


def named(summary: ModelSummary) -> list[str]:
    """The ops that are said to be unknown."""
    return [note.text.split()[0] for note in summary.notes if note.kind == "unknown"]


def test_a_users_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown in its module, forward and backward, until each has a formula; its neighbours are known all the time."""
    monkeypatch.setattr(formulas, "_registered", {})
    monkeypatch.setattr(formulas, "_answers", {})

    def summary() -> ModelSummary:
        model = nn.Sequential(nn.Linear(4, 4), Does(lambda m, x: product(x, m.w), w=c(4, 5)), nn.Linear(5, 2))
        return observed(model, on(3, 4))

    last = both(3 * 5 * 2)
    unknown = summary()
    assert own_of(unknown) == {"0": SQUARE, "1": (None, None), "2": last}
    assert (unknown.forward_macs, unknown.backward_macs) == (None, None)
    assert named(unknown) == ["summarycb_numbers.product.default", "summarycb_numbers.product_backward.default"]

    @summarycb.register_formula(product)
    def forward(x: tuple[int, ...], weight: tuple[int, ...], *, out: tuple[int, ...]) -> int:
        return prod(out) * x[-1]

    assert own_of(summary()) == {"0": SQUARE, "1": (3 * 4 * 5, None), "2": last}

    @summarycb.register_formula("summarycb_numbers::product_backward")
    def backward(gradient: Any, x: tuple[int, ...], weight: tuple[int, ...], *, out: Any) -> formulas.Count:
        return formulas.Count(2 * prod(x) * weight[-1], recompute_macs=9)

    check(summary(), {"0": SQUARE, "1": both(3 * 4 * 5), "2": last}, recompute={"1": 9})


# Unknown, and never a guess: named where it ran; every other module keeps its numbers

PARAMETRIZATION = "1.parametrizations.weight.0"


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("model", "step", "own", "ops"),
    [
        # what a product of two sparse operands costs lies in where their values are. The dense one after it is known
        pytest.param(
            over(graph, lambda m, x: torch.sparse.mm(m.edges, m.edges).to_dense() @ x), on(5, 4),
            {"": (None, 5 * 5 * 3), "layer": NODES}, ["aten._sparse_sparse_matmul.default"], id="sparse @ sparse",
        ),
        # the exponential of a matrix
        pytest.param(
            with_weight(partial(parametrizations.orthogonal, orthogonal_map="matrix_exp")), on(3, 4),
            {"0": SQUARE, "1": FIVE, PARAMETRIZATION: (None, None)}, ["aten.linalg_matrix_exp.default"],
            id="orthogonal",
        ),
    ],
)  # fmt: skip
def test_what_is_unknown(
    model: Callable[[], nn.Module], step: Step, own: dict[str, tuple[int | None, int | None]], ops: list[str]
) -> None:
    torch.manual_seed(0)
    summary = observed(model(), step)
    assert named(summary) == ops
    assert own_of(summary) == own
    assert summary.forward_macs is None


# Against a published formula


class Layer(nn.Module):
    """A transformer layer as in Korthikanti et al., 2205.05198, figure 2: eager attention, masks of one byte."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, -1))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        attended = (self.dropout(weights) @ v).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(attended))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))

    def dropout(self, x: Tensor) -> Tensor:
        return torch.native_dropout(x, 0.1, True)[0]  # on a CPU nn.Dropout keeps a mask of x's own type


def test_the_activations_of_a_transformer_layer_are_those_of_the_paper() -> None:
    """Korthikanti et al., 2205.05198, section 4.1: s b h (34 + 5 a s / h) bytes at 16 bits."""
    s, b, h, a = 256, 2, 512, 4
    torch.manual_seed(0)
    model = Layer(h, a).to(BF16)
    with summarycb.observe(model) as observation:
        model(torch.randn(b, s, h, dtype=BF16)).square().sum().backward()
    summary = observation.summary
    assert summary is not None

    # Two bytes for each value, one for each of a mask:
    # - what goes into the projection of Q, K and V: 2; Q, K and V: 6
    # - the attention weights and what dropout has left of them, for all pairs: 2 + 2; its mask: 1
    # - what goes into the output projection: 2; the dropout's mask: 1
    # - what goes into the second norm: 2; what goes into the feed-forward: 2
    # - what goes into the GELU and what comes out, 4 h wide: 8 + 8; the dropout's mask: 1
    # - the result: 2, which the next layer's first norm keeps, or as here the loss. The paper counts what goes into its
    #   own first norm instead, which is the layer's before, or as here the batch
    paper = s * b * h * (34 + 5 * a * s // h)
    assert paper == s * b * h * (2 + 6 + 2 + 1 + 2 + 2 + 8 + 8 + 1 + 2) + a * s * s * b * (2 + 2 + 1)
    # what the paper leaves out: a mean and an inverse deviation for each token, of two norms
    statistics = 2 * (s * b) * 2 * 2
    assert summary[""].saved_activations == paper + statistics
    loss = 2  # one value
    assert (summary.outside.saved_activations, summary.memory.batch) == (loss, s * b * h * 2)
    assert summary.memory.saved_activations == paper + statistics + loss
