"""Four models that train, and a way to compare two trainings bit by bit."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, _pop_mode

from summarycb.collect import steps

STEPS = 3
HOOKS = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_with_kwargs", "_always_called"))]


class CNN(nn.Module):
    """BatchNorm that learns, one that is frozen in eval mode, and dropout. Input 4 x 3 x 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.frozen = nn.BatchNorm2d(8).requires_grad_(False).eval()
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = F.relu(self.norm(self.conv(image)))
        return self.head(self.drop(self.frozen(features)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Two blocks, a head that is tied to the embedding, and dropout. Input 2 x 10 token ids below 50."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(50, 16), nn.Embedding(10, 16)
        self.blocks = nn.ModuleList(Block(16, 4) for _ in range(2))
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class LSTM(nn.Module):
    """Two layers with dropout between them. Input 3 x 6 token ids below 20."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 12, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.tokens(ids))
        return self.head(states[:, -1])


class Translator(nn.Module):
    """``nn.Transformer`` with dropout. Input 2 x 7 x 16, the target is its first 5 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(16, 4, 1, 1, 32, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.transformer(x, x[:, :5]).mean(1))


def images(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(4, 3, 8, 8, generator=generator), torch.randint(5, (4,), generator=generator)


def token_pairs(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(50, (2, 10), generator=generator), torch.randint(50, (2, 10), generator=generator)


def sentences(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(20, (3, 6), generator=generator), torch.randint(5, (3,), generator=generator)


def sequences(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, 7, 16, generator=generator), torch.randint(5, (2,), generator=generator)


def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


@dataclass(frozen=True)
class Case:
    """A model and how it is trained; every random number comes from the seed, the batches from one of their own."""

    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[torch.Tensor, torch.Tensor]]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

    def make(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        random.seed(0)
        model = self.model()
        return model, self.optimizer(model.parameters())

    def batches(self, steps: int = STEPS) -> list[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(1)
        return [self.batch(generator) for _ in range(steps)]

    def train(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> list[torch.Tensor]:
        return [step(model, optimizer, x, y) for x, y in self.batches(steps)]


CASES = {
    "cnn": Case(CNN, images, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "gpt": Case(GPT, token_pairs, lambda p: torch.optim.AdamW(p, lr=0.01)),
    "lstm": Case(LSTM, sentences, lambda p: torch.optim.Adam(p, lr=0.01)),
    "transformer": Case(Translator, sequences, lambda p: torch.optim.RMSprop(p, lr=0.01)),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss = loss_of(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def bits(value: Any) -> Any:
    """``value`` with every tensor as its dtype, shape and bytes, so that ``==`` is bitwise equality."""
    if isinstance(value, torch.Tensor):
        value = getattr(value, "to_local", lambda: value)()  # of a DTensor, what this process has
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), data
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value


def everything(model: nn.Module, optimizer: torch.optim.Optimizer, losses: object) -> dict[str, Any]:
    """All that a training leaves behind: to be equal with and without observation."""
    return {
        "losses": bits(losses),
        "parameters": bits(dict(model.named_parameters())),
        "gradients": bits({name: p.grad for name, p in model.named_parameters()}),
        "buffers": bits(dict(model.named_buffers())),
        "optimizer": bits(optimizer.state_dict()),
        "random state": (bits(torch.get_rng_state()), bits(torch.cuda.get_rng_state_all()), random.getstate()),
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": hooks_of(model),
        "grad mode": torch.is_grad_enabled(),
    }


def hooks_of(model: nn.Module) -> dict[str, list[str]]:
    """What is in the hook dicts of each module, by name: the handles' ids count on through the process."""
    return {
        f"{name}.{kind}": [getattr(hook, "__qualname__", repr(hook)) for hook in found.values()]
        for name, module in model.named_modules()
        for kind in HOOKS
        if (found := getattr(module, kind))
    }


def left_behind(*models: nn.Module) -> dict[str, Any]:
    """What an observation could leave in the process and on the models; all of it empty when nothing is left."""
    from torch.optim import optimizer

    return {
        "hooks": [found for model in models for found in hooks_of(model)],
        "modes": list(_get_current_dispatch_mode_stack()),
        "pre hooks": list(optimizer._global_optimizer_pre_hooks),
        "post hooks": list(optimizer._global_optimizer_post_hooks),
    }


NOTHING: dict[str, Any] = {"hooks": [], "modes": [], "pre hooks": [], "post hooks": []}


def sweep() -> None:
    """Take off what a failed test has left, lest every later one fails with it."""
    from torch.optim import optimizer

    while _get_current_dispatch_mode_stack():
        _pop_mode()
    _python_dispatch._is_in_torch_dispatch_mode = _python_dispatch._is_in_non_infra_torch_dispatch_mode = False
    optimizer._global_optimizer_pre_hooks.clear()
    optimizer._global_optimizer_post_hooks.clear()
    steps._listeners.clear()
    steps._handles.clear()
    torch.compiler.set_stance("default")


def saved_by_autograd(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    """Bytes, without our help: the distinct storages that ``saved_tensors_hooks`` sees packed, and the loss."""
    known = {t.untyped_storage().data_ptr() for t in (x, y, *model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model(x), y)
    saved[loss.untyped_storage().data_ptr()] = loss.untyped_storage().nbytes()
    loss.backward()  # only now: a storage that is freed before would lend its address to another
    return sum(saved.values())


def leave_group() -> None:
    """Leave the process group as a process ends, when the threads of gloo have let go of our tensors.

    One that does so while Python ends aborts the process, also without ``watch`` (pytorch#190489; 30 of 120 processes
    whose gloo threads were given idle time only, with and without it). A barrier or ``destroy_process_group`` does
    not wait for them; a thread that still has to run is not asleep.
    """
    ends, rested = time.monotonic() + 30, 0
    while rested < 3 and time.monotonic() < ends:  # a thread that waits for the GIL is asleep, too, but not for long
        time.sleep(0.001)
        rested = rested + 1 if all(state == "S" for state in _states_of_others()) else 0
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _states_of_others() -> list[str]:
    """Of this process's other threads, where the system tells: R runs or is to run, S sleeps."""
    states = []
    for thread in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # it has ended
            if thread.name != str(threading.get_native_id()):
                states.append((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return states
