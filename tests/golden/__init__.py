"""Whole renderings of real steps, each in a file that was looked at by eye: a CNN, GPT-2, a U-Net, an LSTM, experts.

``python -m tests.golden`` writes all files anew; then look at ``git diff``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import summarycb
from summarycb import ModelSummary
from tests.edited import MADE, made

FOLDER = Path(__file__).parent
COMPARED = FOLDER / "compared.txt"


def observed(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> ModelSummary:
    """The summary of one real step with AdamW."""
    optimizer = torch.optim.AdamW(model.parameters())
    with summarycb.observe(model, optimizer) as observation:
        loss(model).backward()
        optimizer.step()
    assert observation.summary is not None
    return observation.summary


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or channels != 4 * width:
            shortcut = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """ResNet-50 with an eighth of its width, or deeper."""

    def __init__(self, depths: tuple[int, int, int, int] = (3, 4, 6, 3), width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels = width
        for stage, depth in enumerate(depths):
            inner = width << stage
            blocks = [Bottleneck(channels, inner, 2 if stage else 1)]
            channels = 4 * inner
            blocks += [Bottleneck(channels, inner, 1) for _ in range(depth - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def cnn(*depths: int) -> ModelSummary:
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([3, 5])
    return observed(ResNet(*[depths] if depths else []), lambda model: F.cross_entropy(model(images), labels))


def gpt2() -> ModelSummary:
    """All twelve layers of transformers' GPT-2, an eighth as wide."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=1024, n_positions=64, n_embd=96, n_head=4, use_cache=False))
    tokens = torch.randint(1024, (2, 64))
    return observed(model, lambda model: model(input_ids=tokens, labels=tokens).loss)


class UNet(nn.Module):
    def __init__(self, width: int = 8, levels: int = 4) -> None:
        super().__init__()
        widths = [width << level for level in range(levels + 1)]
        self.downs = nn.ModuleList(self.double(a, b) for a, b in zip([1, *widths], widths[:-1], strict=False))
        self.pool = nn.MaxPool2d(2)
        self.middle = self.double(widths[-2], widths[-1])
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.merges = nn.ModuleList(self.double(a, b) for a, b in pairs)
        self.head = nn.Conv2d(width, 2, 1)

    @staticmethod
    def double(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs:
            skips.append(down(x))
            x = self.pool(skips[-1])
        x = self.middle(x)
        for up, merge in zip(self.ups, self.merges, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        return self.head(x)


def unet() -> ModelSummary:
    images, labels = torch.randn(2, 1, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
    return observed(UNet(), lambda model: F.cross_entropy(model(images), labels))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 64)
        self.lstm = nn.LSTM(64, 128, num_layers=2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(256, 17)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.dropout(self.lstm(self.embed(tokens))[0]))


def lstm() -> ModelSummary:
    tokens, tags = torch.randint(1000, (4, 32)), torch.randint(17, (4, 32))
    return observed(Tagger(), lambda model: F.cross_entropy(model(tokens).flatten(0, 1), tags.flatten()))


class Expert(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class Experts(nn.Module):
    """Two of eight experts for each token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 8, bias=False)
        self.experts = nn.ModuleList(Expert(width) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            out = out.index_add(0, rows, weights[rows, place, None] * expert(x[rows]))
        return out


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.moe = Experts(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.moe(self.norm2(x).flatten(0, 1)).view_as(x)


class MixtureOfExperts(nn.Module):
    def __init__(self, layers: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def moe(layers: int = 4) -> ModelSummary:
    tokens = torch.randint(256, (2, 64))
    return observed(
        MixtureOfExperts(layers), lambda model: F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    )


MODELS: dict[str, tuple[Callable[[], ModelSummary], int | None]] = {
    "cnn": (cnn, 3),
    "gpt2": (gpt2, None),
    "unet": (unet, 3),
    "lstm": (lstm, 3),
    "moe": (moe, None),
}
"""Name -> what makes the summary, and the depth that is shown."""


@cache
def summary(name: str) -> ModelSummary:
    """The summary of a model of ``MODELS``, always the same."""
    make, _ = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def renderings(name: str) -> Iterator[tuple[Path, str]]:
    """Each file of a model, and what is to be in it."""
    made, (_, depth) = summary(name), MODELS[name]
    for width in (100, 80):
        yield FOLDER / f"{name}-{width}.txt", made.to_text(depth=depth, width=width) + "\n"
    yield FOLDER / f"{name}.md", made.to_markdown(depth=depth)
    yield FOLDER / f"{name}.mmd", made.to_mermaid(depth=depth)


def comparisons() -> tuple[dict[str, str], dict[str, Callable[[], str]]]:
    """By name what is expected of each edited model against the one that is not, and what makes the text."""
    parts = COMPARED.read_text(encoding="utf-8").split("== ") if COMPARED.exists() else []
    expected = {name: text[:-1] for name, _, text in [part.partition("\n") for part in parts if part]}
    return expected, {name: partial(_compared, name) for name in MADE}


def _compared(name: str) -> str:
    return summarycb.compare(made("base"), made(name)).to_text(width=120)
