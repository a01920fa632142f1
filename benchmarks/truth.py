"""Models of many kinds, and how many MACs one training step of each is, derived by hand from its configuration.

No tool has a say here: each ``..._macs`` can be followed with a pencil. One MAC is one multiply-accumulate of a
contraction, counted dense (padding and masks included), for the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ConvNextConfig,
    ConvNextForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)


class Truth(NamedTuple):
    forward: int
    leaf: int = 0
    """Of these, the MACs of products with an operand that needs no gradient: the data, a constant."""

    @property
    def step(self) -> int:
        return 3 * self.forward - self.leaf  # backward: one such product for each operand's gradient


def linear(rows: int, inputs: int, outputs: int) -> int:
    return rows * inputs * outputs


def conv(positions: int, inputs: int, outputs: int, kernel: int, groups: int = 1) -> int:
    return positions * outputs * (inputs // groups) * kernel**2


def attention(queries: int, keys: int, width: int) -> int:
    return 2 * queries * keys * width  # QK^T and AV; the width is that of all heads


def encoder_layer(tokens: int, width: int, inner: int) -> int:
    return linear(tokens, width, 4 * width) + attention(tokens, tokens, width) + 2 * linear(tokens, width, inner)


TOKENS, CLASSES, PIXELS = 128, 1000, 224

RESNET = ResNetConfig(num_labels=CLASSES)


def resnet_macs() -> Truth:
    """The stem halves the image twice, and every stage but the first once, in its first 3 x 3 convolution."""
    stem = conv((PIXELS // 2) ** 2, 3, RESNET.embedding_size, 7)
    side, inputs, macs = PIXELS // 4, RESNET.embedding_size, stem
    for stage, (depth, outputs) in enumerate(zip(RESNET.depths, RESNET.hidden_sizes, strict=True)):
        narrow = outputs // 4
        for block in range(depth):
            before, side = side, side // 2 if stage and not block else side
            macs += conv(before**2, inputs, narrow, 1) + conv(side**2, narrow, narrow, 3)
            macs += conv(side**2, narrow, outputs, 1)
            macs += 0 if block else conv(side**2, inputs, outputs, 1)  # the shortcut
            inputs = outputs
    return Truth(macs + linear(1, inputs, CLASSES), stem)


VIT = ViTConfig(num_labels=CLASSES)


def vit_macs() -> Truth:
    patches = (PIXELS // VIT.patch_size) ** 2
    stem = conv(patches, 3, VIT.hidden_size, VIT.patch_size)
    layer = encoder_layer(patches + 1, VIT.hidden_size, VIT.intermediate_size)
    return Truth(stem + VIT.num_hidden_layers * layer + linear(1, VIT.hidden_size, CLASSES), stem)


CONVNEXT = ConvNextConfig(num_labels=CLASSES)


def convnext_macs() -> Truth:
    side, inputs, macs = PIXELS, 3, 0
    for stage, (depth, width) in enumerate(zip(CONVNEXT.depths, CONVNEXT.hidden_sizes, strict=True)):
        shrink = 2 if stage else CONVNEXT.patch_size
        side //= shrink
        macs += conv(side**2, inputs, width, shrink)
        macs += depth * (conv(side**2, width, width, 7, groups=width) + 2 * linear(side**2, width, 4 * width))
        inputs = width
    stem = conv((PIXELS // CONVNEXT.patch_size) ** 2, 3, CONVNEXT.hidden_sizes[0], CONVNEXT.patch_size)
    return Truth(macs + linear(1, inputs, CLASSES), stem)


SWIN = SwinConfig(num_labels=CLASSES)


def swin_macs() -> Truth:
    """Each token attends to the tokens of its window; between stages four tokens are merged into one, twice as wide."""
    side, width, window = PIXELS // SWIN.patch_size, SWIN.embed_dim, SWIN.window_size**2
    stem = macs = conv(side**2, 3, width, SWIN.patch_size)
    for stage, depth in enumerate(SWIN.depths):
        if stage:
            side, width = side // 2, 2 * width
            macs += linear(side**2, 2 * width, width)
        macs += depth * side**2 // window * encoder_layer(window, width, int(SWIN.mlp_ratio * width))
    return Truth(macs + linear(1, width, CLASSES), stem)


BERT = BertConfig()


def bert_macs() -> Truth:
    layers = BERT.num_hidden_layers * encoder_layer(TOKENS, BERT.hidden_size, BERT.intermediate_size)
    return Truth(layers + linear(TOKENS, BERT.hidden_size, BERT.hidden_size + BERT.vocab_size))


GPT2 = GPT2Config()


def gpt2_macs() -> Truth:
    layers = GPT2.n_layer * encoder_layer(TOKENS, GPT2.n_embd, 4 * GPT2.n_embd)
    return Truth(layers + linear(TOKENS, GPT2.n_embd, GPT2.vocab_size))


LLAMA = LlamaConfig(
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    vocab_size=8192,
)


def grouped_query_attention(config: Any) -> int:
    """Query and output are as wide as the model, key and value as wide as their fewer heads."""
    width = config.hidden_size
    narrow = width // config.num_attention_heads * config.num_key_value_heads
    return linear(TOKENS, width, 2 * width + 2 * narrow) + attention(TOKENS, TOKENS, width)


def llama_macs() -> Truth:
    gated = 3 * linear(TOKENS, LLAMA.hidden_size, LLAMA.intermediate_size)
    layers = LLAMA.num_hidden_layers * (grouped_query_attention(LLAMA) + gated)
    return Truth(layers + linear(TOKENS, LLAMA.hidden_size, LLAMA.vocab_size))


T5, T5_TARGETS = T5Config(decoder_start_token_id=0), 32


def t5_macs() -> Truth:
    width, heads, targets = T5.d_model, T5.num_heads * T5.d_kv, T5_TARGETS
    one = linear(1, width, heads)  # a projection of one token
    encoder = 4 * TOKENS * one + attention(TOKENS, TOKENS, heads) + 2 * linear(TOKENS, width, T5.d_ff)
    decoder = 4 * targets * one + attention(targets, targets, heads) + 2 * linear(targets, width, T5.d_ff)
    cross = 2 * targets * one + 2 * TOKENS * one + attention(targets, TOKENS, heads)
    layers = T5.num_layers * encoder + T5.num_decoder_layers * (decoder + cross)
    return Truth(layers + linear(targets, width, T5.vocab_size))


MIXTRAL = MixtralConfig(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=4,
    vocab_size=1024,
)


def mixtral_macs() -> Truth:
    """Every token meets the router and ``num_experts_per_tok`` gated experts, whichever they are."""
    width = MIXTRAL.hidden_size
    router = linear(TOKENS, width, MIXTRAL.num_local_experts)
    experts = MIXTRAL.num_experts_per_tok * 3 * linear(TOKENS, width, MIXTRAL.intermediate_size)
    layers = MIXTRAL.num_hidden_layers * (grouped_query_attention(MIXTRAL) + router + experts)
    return Truth(layers + linear(TOKENS, width, MIXTRAL.vocab_size))


MAMBA, MAMBA_TOKENS = MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=256), 64


def mamba_macs() -> Truth:
    """The causal convolution pads both ends and cuts one off; of the scan, only the product with C is a contraction."""
    tokens, width, inner, state = MAMBA_TOKENS, MAMBA.hidden_size, MAMBA.intermediate_size, MAMBA.state_size
    rank = MAMBA.time_step_rank
    causal = (tokens + MAMBA.conv_kernel - 1) * inner * MAMBA.conv_kernel
    scan = linear(tokens, inner, rank + 2 * state) + linear(tokens, rank, inner) + linear(tokens, inner, state)
    layer = linear(tokens, width, 2 * inner) + causal + scan + linear(tokens, inner, width)
    return Truth(MAMBA.num_hidden_layers * layer + linear(tokens, width, MAMBA.vocab_size))


BATCH, LENGTH, WIDTH = 4, 64, 256
ENCODER_LAYERS = 4


def encoder_macs() -> Truth:
    layers = ENCODER_LAYERS * BATCH * encoder_layer(LENGTH, WIDTH, 4 * WIDTH)
    return Truth(layers, linear(BATCH * LENGTH, WIDTH, 3 * WIDTH))  # the first queries, keys and values


WORDS, EMBEDDING, OUTPUTS = 1000, 128, 10


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, OUTPUTS)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.lstm(self.embedding(x))[0])


def lstm_macs() -> Truth:
    """Four gates of each layer see the input and the state before; the first state is a constant."""
    rows, gates = BATCH * LENGTH, 4 * WIDTH
    layers = linear(rows, EMBEDDING + WIDTH, gates) + linear(rows, WIDTH + WIDTH, gates)
    return Truth(layers + linear(rows, WIDTH, OUTPUTS), 2 * linear(BATCH, WIDTH, gates))


HEADS = 4


class Products(nn.Module):
    """Attention with its products written out; the heads' projection is an einsum with a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Parameter(torch.randn(3, HEADS, WIDTH, WIDTH // HEADS) / 16)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> Any:
        q, k, v = torch.einsum("btw,phwe->pbhte", x, self.project)
        weights = torch.einsum("bhqe,bhke->bhqk", q, k).softmax(-1)
        mixed = torch.bmm(weights.flatten(0, 1), v.flatten(0, 1)).unflatten(0, (-1, HEADS))
        return self.out(mixed.transpose(1, 2).flatten(2))


def products_macs() -> Truth:
    project = linear(BATCH * LENGTH, WIDTH, 3 * WIDTH)
    rest = BATCH * attention(LENGTH, LENGTH, WIDTH) + linear(BATCH * LENGTH, WIDTH, WIDTH)
    return Truth(project + rest, project)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(self.layer(self.layer(x).relu()).relu())


def shared_macs() -> Truth:
    return Truth(3 * linear(BATCH, WIDTH, WIDTH), linear(BATCH, WIDTH, WIDTH))


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, groups=8),
        nn.GELU(),
        nn.Conv2d(64, 64, 3, padding=1, groups=64),
        nn.Conv2d(64, 128, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, OUTPUTS),
    )


def grouped_macs() -> Truth:
    """On 32 x 32 pixels, halved once."""
    stem = conv(BATCH * 32**2, 3, 32, 3)
    half = BATCH * 16**2
    rest = conv(half, 32, 64, 3, groups=8) + conv(half, 64, 64, 3, groups=64) + conv(half, 64, 128, 1)
    return Truth(stem + rest + linear(BATCH, 128, OUTPUTS), stem)


# The models


class Net(nn.Module):
    """What every tool accepts: two tensors by position, the loss as the result. ``key`` is the body's name of ``x``."""

    forwards = 0
    """Of all copies."""

    def __init__(self, body: nn.Module, key: str = "") -> None:
        super().__init__()
        self.body, self.key = body, key

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        Net.forwards += 1
        if self.key:
            return self.body(**{self.key: x, "labels": y})["loss"]
        return F.mse_loss(self.body(x), y)


@dataclass
class Step:
    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor

    def forward(self) -> Any:
        return self.model(self.x, self.y)

    def run(self) -> None:
        self.forward().backward()


def image(body: nn.Module) -> Step:
    return Step(Net(body, "pixel_values"), torch.randn(1, 3, PIXELS, PIXELS), torch.zeros(1, dtype=torch.long))


def text(body: nn.Module, vocabulary: int, tokens: int = TOKENS, targets: int | None = None) -> Step:
    x = torch.randint(vocabulary, (1, tokens))
    return Step(Net(body, "input_ids"), x, x if targets is None else torch.randint(vocabulary, (1, targets)))


def plain(body: nn.Module, x: torch.Tensor, *target: int) -> Step:
    return Step(Net(body), x, torch.randn(*target))


def encoder() -> Step:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True)
    body = nn.TransformerEncoder(layer, ENCODER_LAYERS, enable_nested_tensor=False)
    return plain(body, torch.randn(BATCH, LENGTH, WIDTH), BATCH, LENGTH, WIDTH)


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], Step]
    truth: Truth
    memory: bool = False

    def step(self) -> Step:
        torch.manual_seed(0)
        step = self.build()
        step.model.train()
        return step


CASES = (
    Case("ResNet-50", lambda: image(ResNetForImageClassification(RESNET)), resnet_macs(), memory=True),
    Case("ViT-B/16", lambda: image(ViTForImageClassification(VIT)), vit_macs()),
    Case("ConvNeXt-T", lambda: image(ConvNextForImageClassification(CONVNEXT)), convnext_macs()),
    Case("Swin-T", lambda: image(SwinForImageClassification(SWIN)), swin_macs(), memory=True),
    Case("BERT-base", lambda: text(BertForMaskedLM(BERT), BERT.vocab_size), bert_macs()),
    Case("GPT-2 small", lambda: text(GPT2LMHeadModel(GPT2), GPT2.vocab_size), gpt2_macs(), memory=True),
    Case("Llama, grouped queries", lambda: text(LlamaForCausalLM(LLAMA), LLAMA.vocab_size), llama_macs()),
    Case(
        "T5-small",
        lambda: text(T5ForConditionalGeneration(T5), T5.vocab_size, targets=T5_TARGETS),
        t5_macs(),
    ),
    Case("Mixtral, 4 experts", lambda: text(MixtralForCausalLM(MIXTRAL), MIXTRAL.vocab_size), mixtral_macs()),
    Case("Mamba", lambda: text(MambaForCausalLM(MAMBA), MAMBA.vocab_size, MAMBA_TOKENS), mamba_macs()),
    Case("nn.TransformerEncoder", encoder, encoder_macs(), memory=True),
    Case(
        "LSTM, 2 layers",
        lambda: plain(Recurrent(), torch.randint(WORDS, (BATCH, LENGTH)), BATCH, LENGTH, OUTPUTS),
        lstm_macs(),
        memory=True,
    ),
    Case(
        "einsum and bmm",
        lambda: plain(Products(), torch.randn(BATCH, LENGTH, WIDTH), BATCH, LENGTH, WIDTH),
        products_macs(),
    ),
    Case(
        "one Linear, called 3 times",
        lambda: plain(Shared(), torch.randn(BATCH, WIDTH), BATCH, WIDTH),
        shared_macs(),
        memory=True,
    ),
    Case(
        "grouped convolutions", lambda: plain(grouped(), torch.randn(BATCH, 3, 32, 32), BATCH, OUTPUTS), grouped_macs()
    ),
)
