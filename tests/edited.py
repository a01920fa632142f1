"""A GPT of twelve blocks, edited in all the ways that a comparison tells of, each observed in a real step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional as F

import summarycb
from summarycb import ModelSummary


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class Mean(nn.Module):
    """In place of attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.mean(1, keepdim=True)).expand_as(x)


class MLP(nn.Module):
    def __init__(self, width: int, ratio: int, act: type[nn.Module], names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Linear(width, ratio * width))
        self.act = act()
        self.add_module(names[1], nn.Linear(ratio * width, width))

    def forward(self, x: Tensor) -> Tensor:
        up, down = map(self.get_submodule, self.names)
        return down(self.act(up(x)))


class Block(nn.Module):
    def __init__(
        self,
        width: int = 16,
        ratio: int = 4,
        act: type[nn.Module] = nn.GELU,
        attention: type[nn.Module] = Attention,
        norm: type[nn.Module] = nn.LayerNorm,
        name: str = "attn",
        names: tuple[str, str] = ("up", "down"),
    ) -> None:
        super().__init__()
        self.name = name
        self.norm1 = norm(width)
        self.add_module(name, attention(width))
        self.norm2 = norm(width)
        self.mlp = MLP(width, ratio, act, names)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.get_submodule(self.name)(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Stage(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class GPT(nn.Module):
    """Input 2 x 8 token ids below 50."""

    def __init__(self, *blocks: nn.Module, width: int = 16, name: str = "h", tied: bool = False) -> None:
        super().__init__()
        self.name = name
        self.tokens = nn.Embedding(50, width)
        self.add_module(name, nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 50, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for block in self.get_submodule(self.name):  # type: ignore[attr-defined]
            x = block(x)
        return self.head(self.norm(x))


class Decoder(GPT):
    """The same under another name."""


class Lora(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        assert isinstance(base, nn.Linear)
        self.base_layer = base
        self.lora_a = nn.Linear(base.in_features, 2, bias=False)
        self.lora_b = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_b(self.lora_a(x))


class PeftLinear(nn.Module):
    """An adapter as PEFT has it: its type has the name of what is in it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


PeftLinear.__name__ = "Linear"


class Around(nn.Module):
    """A model around a model, called as it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def blocks(count: int = 12, **settings: object) -> list[nn.Module]:
    return [Block(**settings) for _ in range(count)]  # type: ignore[arg-type]


def gpt(count: int = 12, **settings: object) -> GPT:
    return GPT(*blocks(count, **settings))


def inserted() -> GPT:
    made = blocks()
    return GPT(*made[:4], Block(ratio=2), *made[4:])


def removed() -> GPT:
    made = blocks()
    made[4] = Block(ratio=2)
    return GPT(*made)


def staged() -> GPT:
    made = blocks()
    return GPT(*[Stage(*made[at : at + 4]) for at in (0, 4, 8)])


def moved() -> GPT:
    """The last norm of the model is now within the last block."""

    class Last(Block):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(16)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(super().forward(x))

    model = gpt()
    last = Last()
    last.__class__.__name__ = "Block"
    model.h[11] = last
    model.norm = nn.Identity()  # type: ignore[assignment]
    return model


def adapted(adapter: Callable[[nn.Linear], nn.Module] = Lora) -> GPT:
    """As LoRA does it: nothing learns but two small layers beside each projection."""
    model = gpt().requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, Attention):
            module.qkv = adapter(module.qkv)  # type: ignore[assignment]
    return model


def frozen(*paths: str) -> GPT:
    model = gpt()
    for path in paths:
        model.get_submodule(path).requires_grad_(False)
    return model


def in_eval(path: str) -> GPT:
    model = gpt()
    model.get_submodule(path).eval()
    return model


def step(model: nn.Module, batch: int = 2) -> ModelSummary:
    optimizer = torch.optim.AdamW(model.parameters())
    with summarycb.observe(model, optimizer) as observation:
        model(torch.zeros(batch, 8, dtype=torch.int64)).sum().backward()
        optimizer.step()
    assert observation.summary is not None
    return observation.summary


def distributed_step() -> ModelSummary:
    """In a group of one process."""
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{Path(folder, 'store')}", rank=0, world_size=1)
        try:
            return step(nn.parallel.DistributedDataParallel(gpt()))
        finally:
            distributed.destroy_process_group()


MADE: dict[str, Callable[[], ModelSummary]] = {
    "base": lambda: step(gpt()),
    "appended": lambda: step(gpt(13)),
    "inserted": lambda: step(inserted()),
    "removed": lambda: step(gpt(11)),
    "mlp wider": lambda: step(gpt(ratio=6)),
    "deeper, mlp wider": lambda: step(gpt(13, ratio=6)),
    "all wider": lambda: step(GPT(*blocks(width=32), width=32)),
    "ReLU": lambda: step(gpt(act=nn.ReLU)),
    "tokens frozen": lambda: step(frozen("tokens")),
    "a block frozen": lambda: step(frozen("h.3")),
    "all blocks frozen": lambda: step(frozen("h")),
    "leaves renamed": lambda: step(gpt(names=("fc1", "fc2"))),
    "attention renamed": lambda: step(gpt(name="mix")),
    "list renamed": lambda: step(GPT(*blocks(), name="layers")),
    "class renamed": lambda: step(Decoder(*blocks())),
    "norm moved": lambda: step(moved()),
    "LoRA": lambda: step(adapted()),
    "LoRA as in PEFT": lambda: step(Around(Around(adapted(PeftLinear)))),
    "checkpointed": lambda: step(GPT(*map(checkpoint_wrapper, blocks()))),
    "RMSNorm": lambda: step(gpt(norm=nn.RMSNorm)),
    "attention replaced": lambda: step(gpt(attention=Mean)),
    "in stages": lambda: step(staged()),
    "compiled": lambda: step(torch.compile(gpt(), backend="aot_eager")),  # type: ignore[arg-type]
    "DDP": distributed_step,
    "tied": lambda: step(GPT(*blocks(), tied=True)),
    "bfloat16": lambda: step(gpt().bfloat16()),
    "batch of 4": lambda: step(gpt(), 4),
    "a block in eval": lambda: step(in_eval("h.3")),
    "within another": lambda: step(nn.Sequential(gpt())),
    "within another, deeper": lambda: step(nn.Sequential(gpt(13))),
}  # fmt: skip


@cache
def made(name: str) -> ModelSummary:
    return MADE[name]()
