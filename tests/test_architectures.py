"""Whole architectures of others: one real training step of each, against counts that share nothing with ours."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import summarycb
from summarycb.tree import ModelSummary, add
from tests.architectures import KEPT, NAMES, UNKNOWN, Batch, build
from tests.trainings import everything


@pytest.fixture(autouse=True, scope="module")
def _transformers_is_silent() -> Iterator[None]:
    from transformers import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of(name: str) -> None:
    """Nothing of the step changes, nothing of it is missed, and every figure is the one that was measured apart."""
    model, left = train(name)
    summary, left_observed, warned = observe(name)
    measured = measure(name)

    assert (summary.incomplete, warned) == ((), [])
    assert left_observed == left
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert summary.total_params == sum(parameters(model).values())

    unknown = {note.text.split()[0] for note in summary.notes if note.kind == "unknown"}
    assert unknown == measured.uncounted == UNKNOWN.get(name, set())
    macs = (summary.forward_macs, summary.backward_macs)
    assert macs == ((None, None) if unknown else (measured.macs["forward"], measured.macs["backward"]))
    rows = [module.own for module in summary.modules.values()]
    assert macs == (
        add(summary.outside.forward_macs, *[row.forward_macs for row in rows]),
        add(summary.outside.backward_macs, *[row.backward_macs for row in rows]),
    )
    assert unknown or summary.recompute_flops == 2 * measured.macs["recompute"]

    assert summary.memory.batch == measured.batch
    assert add(summary.memory.saved_activations, summary.memory.weight_copies) == measured.saved


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The rows of the batch are told apart by the first output that can be trained; the others are dropped."""
    outputs = [value for value in model(**batch).values() if isinstance(value, torch.Tensor)]
    output = next(value for value in outputs if value.requires_grad and value.ndim > 1)
    return F.cross_entropy(output.flatten(1), torch.arange(len(output)))


def train(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A step that nobody observes, and all that it leaves behind."""
    model, batch = build(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = loss_of(model, batch)
    loss.backward()
    optimizer.step()
    return model, everything(model, optimizer, loss.detach())


def observe(name: str) -> tuple[ModelSummary, dict[str, Any], list[str]]:
    """The same step observed, all that it leaves behind, and what the package warned of."""
    model, batch = build(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with summarycb.observe(model, optimizer) as observation:
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
    ours = [str(warning.message) for warning in caught if issubclass(warning.category, summarycb.SummaryWarning)]
    assert observation.summary is not None
    return observation.summary, everything(model, optimizer, loss.detach()), ours


def parameters(model: nn.Module) -> dict[int, int]:
    """Distinct parameters and their elements, by a walk of our own."""
    found = [p for module in model.modules() for p in module._parameters.values() if p is not None]
    return {id(parameter): parameter.numel() for parameter in found}


@dataclass
class Measured:
    """What the step computes, in MACs by phase, and what its forward saves, in bytes."""

    macs: Counter[str]
    uncounted: set[str]
    saved: int
    batch: int


def measure(name: str) -> Measured:
    """The same step, measured without the package."""
    model, batch = build(name)
    packed = Packed([*model.parameters(), *model.buffers(), *batch.values()])
    with Contractions() as contractions:
        with torch.autograd.graph.saved_tensors_hooks(packed.pack, lambda tensor: tensor):
            loss = loss_of(model, batch)
        # the loss is alive, too, though nothing needs its value
        saved = packed.bytes([loss, *KEPT.get(name, lambda _: ())(model)], model.buffers())
        contractions.phase = "backward"
        loss.backward()
    given = {storage._cdata: storage.nbytes() for storage in (t.untyped_storage() for t in batch.values())}
    return Measured(contractions.macs, contractions.uncounted, saved, sum(given.values()))


class Packed:
    """The distinct storages that autograd saves, but for those that were there before the step."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        self._known = known  # alive, for a storage that is freed would lend its address to another
        self._addresses = {tensor.untyped_storage()._cdata for tensor in known}
        self._packed: dict[int, tuple[StorageWeakRef, int]] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self._note(tensor)
        # an output that a node saves comes with the node: returned as it is, it would keep its own graph alive
        return tensor.detach()

    def bytes(self, also: Iterable[torch.Tensor], buffers: Iterable[torch.Tensor]) -> int:
        """Bytes of those that are alive now, with what ``also`` is: a graph that was dropped has given back its own.

        What the step has put in the place of a buffer is a buffer.
        """
        for tensor in also:
            self._note(tensor)
        for buffer in buffers:
            self._packed.pop(buffer.untyped_storage()._cdata, None)
        return sum(size for storage, size in self._packed.values() if not storage.expired())

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._addresses and storage._cdata not in self._packed:
            # which keeps the address, though not the memory
            self._packed[storage._cdata] = StorageWeakRef(storage), storage.nbytes()


class Contractions(TorchDispatchMode):
    """Counts by computing: a contraction of operands that are full of ones adds up one 1 for each of its MACs.

    So the sum of what it returns is their number, whatever its dimensions mean: no size is looked at. A gradient
    pairs the same values as the forward that it belongs to, each once, and is counted as that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase = "forward"
        self.macs: Counter[str] = Counter()
        self.uncounted: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in ("mm", "bmm", "_grouped_mm"):
            self._count(func(*ones(*args[:2]), *args[2:], **(kwargs or {})))
        elif name in ("addmm", "baddbmm"):
            self._count(torch.matmul(*ones(*args[1:3])))
        elif name == "convolution":
            x, weight, _bias, *how = args
            self._count(convolution(x, weight, *how))
        elif name == "convolution_backward":
            _grad, x, weight, _bias, *how, wanted = args
            self._count(*[convolution(x, weight, *how)] * sum(wanted[:2]))
        elif name == "_scaled_dot_product_flash_attention_for_cpu":
            self._count(*attention(*args[:3]))
        elif name == "_scaled_dot_product_flash_attention_for_cpu_backward":
            scores, attended = attention(*args[1:4])
            self._count(scores, scores, attended, attended)  # of Q and K, and of V and the probabilities
            self._count(scores, phase="recompute")  # which were not kept
        elif name == "mkldnn_rnn_layer":
            self._count(*lstm(*args[:3]))
        elif name == "mkldnn_rnn_layer_backward":
            self._count(*lstm(*args[:3]) * 2)
        elif CONTRACTS.search(name) and name not in NO_CONTRACTION:
            self.uncounted.add(str(func))
        return out

    def _count(self, *results: torch.Tensor, phase: str | None = None) -> None:
        for result in results:
            self.macs[phase or self.phase] += int(result.sum(dtype=torch.complex128).real)


CONTRACTS = re.compile("mm|mv|dot|matmul|linear|conv|attention|rnn|lstm|gru|einsum|dist|fft|linalg|solve|cholesky")
"""In the names of ops: one of these is counted above, or has to be unknown."""
NO_CONTRACTION = {
    "linalg_vector_norm",
    "upsample_bilinear2d", "upsample_bilinear2d_backward", "upsample_linear1d", "upsample_linear1d_backward",
    "_cdist_forward",  # of up to 25 rows, as here, it is squares of differences; of more, it would be a product
}  # fmt: skip


def ones(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [torch.ones_like(tensor) for tensor in tensors]


def convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    _output_padding: list[int],
    groups: int,
) -> torch.Tensor:
    """Counted dense, which is with the padding: it is of ones like the rest, and what is cut off is not."""
    x, weight = ones(x, weight)
    if not transposed:
        x = F.pad(x, [size for size in reversed(padding) for _ in range(2)], value=1)
    none = [0] * len(stride)
    return torch.ops.aten.convolution(x, weight, None, stride, none, dilation, transposed, none, groups)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """QK^T and AV, dense; several heads may share one of K and V."""
    q, k, v = ones(q, k, v)
    k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], 1) for tensor in (k, v))
    scores = q @ k.mT
    return scores, torch.ones_like(scores) @ v


def lstm(x: torch.Tensor, w_input: torch.Tensor, w_hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every token and every state that it meets, times the weights of all gates."""
    x, w_input, w_hidden = ones(x, w_input, w_hidden)
    return x @ w_input.T, x.new_ones(*x.shape[:-1], w_hidden.shape[1]) @ w_hidden.T
