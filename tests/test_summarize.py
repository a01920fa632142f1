"""summarize(): one call on a model and an input, which leaves the model as it was, also when it fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import summarycb
from summarycb.errors import SummaryError
from summarycb.specs import TensorSpec
from tests.trainings import CASES, NOTHING, Case, bits, hooks_of, left_behind


def state(model: nn.Module) -> dict[str, Any]:
    """All that summarize() could touch, by identity where it is an object and bit by bit."""
    return {
        "parameters": [(name, id(p), p.requires_grad, bits(p)) for name, p in model.named_parameters()],
        "buffers": [(name, id(b), bits(b)) for name, b in model.named_buffers()],
        "gradients": [(name, id(p.grad), bits(p.grad)) for name, p in model.named_parameters()],
        "training": [(name, module.training) for name, module in model.named_modules()],
        "hooks": hooks_of(model),
        "random state": (bits(torch.get_rng_state()), random.getstate()),
        "grad mode": torch.is_grad_enabled(),
    }


def trained(case: Case) -> nn.Module:
    """A model with gradients, statistics and mixed flags, as amid a training."""
    model, optimizer = case.make()
    case.train(model, optimizer, steps=2)
    next(model.children()).eval()
    return model


@pytest.mark.parametrize("mode", ["same", "train", "eval"])
@pytest.mark.parametrize("backward", [False, True])
def test_the_model_is_left_as_it_was(case: Case, mode: Any, backward: bool) -> None:
    """Flags of every module, BatchNorm's statistics, gradients, hooks, random state: the objects and their bits."""
    model = trained(case)
    [(x, _)] = case.batches(1)
    before = state(model)
    summary = summarycb.summarize(model, (x,), mode=mode, backward=backward)
    assert state(model) == before
    assert left_behind(model) == NOTHING
    assert summary.incomplete == ()
    assert summary.observed == ("step" if backward else "forward")


@pytest.mark.parametrize("device", [None, "meta"])
@pytest.mark.parametrize("backward", [False, True])
def test_the_model_is_left_as_it_was_when_it_fails(case: Case, device: str | None, backward: bool) -> None:
    """The model's own error goes through."""
    model = trained(case)
    handle = list(model.modules())[-1].register_forward_hook(lambda *_: 1 / 0)  # type: ignore[arg-type,return-value]
    [(x, _)] = case.batches(1)
    before = state(model)
    with pytest.raises(ZeroDivisionError):
        summarycb.summarize(model, (x,), mode="train", device=device, backward=backward)
    assert state(model) == before
    handle.remove()
    assert left_behind(model) == NOTHING


def test_it_is_the_observed_forward(case: Case) -> None:
    """The same tree as under observe(), by value."""
    model, _ = case.make()
    [(x, _)] = case.batches(1)
    with summarycb.observe(model) as observation, torch.no_grad():
        model(x)
    assert observation.summary is not None
    summary = summarycb.summarize(model, (x,))
    assert summary.root == observation.summary.root
    assert (summary.forward_macs, summary.observed) == (observation.summary.forward_macs, "forward")


def test_with_backward_it_is_the_observed_step(case: Case) -> None:
    model, _ = case.make()
    [(x, _)] = case.batches(1)
    with summarycb.observe(model) as observation:
        model(x).sum().backward()
    model.zero_grad()
    assert observation.summary is not None
    summary = summarycb.summarize(model, (x,), backward=True)
    assert summary.backward_macs == observation.summary.backward_macs
    assert summary.memory.gradients == observation.summary.memory.gradients
    assert summary.root == observation.summary.root


def test_without_an_input() -> None:
    """Structure and parameters: everything about a step is unknown, not 0."""
    model = CASES["cnn"].model()
    summary = summarycb.summarize(model)
    assert (summary.observed, summary.total_params, summary.total_buffers) == ("structure", 301, 34)
    assert (summary.forward_macs, summary.memory.saved_activations, summary["conv"].calls) == (None, None, None)
    assert summary.memory.parameters == 301 * 4
    assert summary.notes == summary.incomplete == ()


@pytest.mark.parametrize("input_size", [(2, 3), [2, 3], torch.Size([2, 3]), [(2, 3)], ([2, 3],)])
def test_forms_of_input_size(input_size: Any) -> None:
    """A shape, as torchinfo's users write it, or a list of shapes; the batch is in it."""
    summary = summarycb.summarize(nn.Linear(3, 4), input_size=input_size)
    assert summary[""].inputs == (TensorSpec((2, 3), "float32", "cpu"),)
    assert summary.forward_macs == 2 * 3 * 4


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Embedding(7, 4), nn.Embedding(1000, 4)
        self.ids: torch.Tensor | None = None

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        self.ids = ids
        return scale * (self.small(ids) + self.large(ids)) * mask.unsqueeze(-1)


def test_several_shapes_and_dtypes() -> None:
    """Indices are valid for every embedding, and not all the same; booleans are booleans."""
    model = Two()
    summary = summarycb.summarize(model, input_size=[(3, 50), (3, 50)], dtypes=[torch.int64, torch.bool])
    assert summary[""].inputs == (TensorSpec((3, 50), "int64", "cpu"), TensorSpec((3, 50), "bool", "cpu"))
    assert model.ids is not None
    assert set(model.ids.unique().tolist()) == set(range(7))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.int32, torch.uint8]
)
def test_dtypes(dtype: torch.dtype) -> None:
    summary = summarycb.summarize(nn.Identity(), input_size=(2, 3), dtypes=[dtype])
    assert summary[""].outputs == TensorSpec((2, 3), str(dtype).removeprefix("torch."), "cpu")


def test_args_and_kwargs() -> None:
    """As to ``torch.export.export``."""
    ids = torch.zeros(1, 2, dtype=torch.int64)
    summary = summarycb.summarize(Two(), (ids,), {"mask": ids, "scale": 2.0})
    assert str(summary[""].inputs) == "{0: [1, 2], mask: [1, 2], scale: float}"
    assert summary[""].outputs == TensorSpec((1, 2, 4), "float32", "cpu")


def test_mode() -> None:
    """The flags while it runs; eval statistics for eval."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout())
    model[1].eval()
    seen: list[list[bool]] = []
    model.register_forward_hook(lambda *_: seen.append([m.training for m in model.modules()]))
    for mode in ("same", "train", "eval"):
        summarycb.summarize(model, input_size=(2, 3), mode=mode)
    assert seen == [[True, True, False], [True, True, True], [False, False, False]]


@pytest.mark.parametrize("backward", [False, True])
def test_on_the_meta_device(case: Case, backward: bool) -> None:
    """A model on the CPU stays there; the figures are those of the real run."""
    model = trained(case)
    [(x, _)] = case.batches(1)
    before = state(model)
    summary = summarycb.summarize(model, (x,), device="meta", backward=backward, mode="train")
    assert state(model) == before
    real = summarycb.summarize(model, (x,), backward=backward, mode="train")
    assert summary.incomplete == ()
    assert summary.environment.device == "meta"
    assert (summary.total_params, summary.forward_macs) == (real.total_params, real.forward_macs)
    if backward:
        # the CPU's kernel for an LSTM also computes the gradient of the initial states, which nobody asks for:
        # 2 layers x 3 sentences x 48 gates x 12 units; meta has no such kernel
        more = 2 * 3 * 48 * 12 if case is CASES["lstm"] else 0
        assert summary.backward_macs == real.backward_macs - more  # type: ignore[operator]


def test_a_model_on_the_meta_device_needs_no_device() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 4)
    summary = summarycb.summarize(model, input_size=(2, 3), backward=True)
    assert (summary.forward_macs, summary.backward_macs) == (24, 24)
    assert model.weight.grad is None


def test_a_tied_parameter_stays_tied_on_the_meta_device() -> None:
    model = CASES["gpt"].model()
    summary = summarycb.summarize(model, input_size=(2, 10), dtypes=[torch.int64], device="meta")
    assert summary["head"].own_params == 0
    assert model.get_submodule("head").weight is model.get_submodule("tokens").weight


def test_a_buffer_that_the_forward_makes() -> None:
    """A cache that is filled, replaced or added in the forward is afterwards what it was."""

    class Caches(nn.Module):
        cache: torch.Tensor | None
        table: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("cache", None)
            self.register_buffer("table", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.cache = x + 1
            self.table = torch.ones(9)
            self.register_buffer("extra", x)
            return x

    model = Caches()
    table = model.table
    summarycb.summarize(model, input_size=(2, 3))
    assert model.cache is None
    assert model.table is table
    assert dict(model.named_buffers()) == {"table": table}


@pytest.mark.parametrize(
    ("output", "macs"),
    [
        (lambda y: {"loss": y.mean(), "logits": y}, 24),
        (lambda y: {"logits": y}, 24),
        (lambda y: (y, y.long(), None), 24),
        (lambda y: [y.half(), y.double()], 24),
    ],
    ids=["loss", "dict", "tuple", "dtypes"],
)
def test_what_backward_starts_from(output: Callable[[torch.Tensor], Any], macs: int) -> None:
    """The loss of the output, or the sum of its floating-point tensors."""

    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return output(super().forward(x))

    summary = summarycb.summarize(Model(3, 4), input_size=(2, 3), backward=True)
    assert (summary.forward_macs, summary.backward_macs) == (24, macs)


def test_backward_without_anything_to_start_from() -> None:
    model = nn.Linear(3, 4).requires_grad_(False)
    with pytest.raises(SummaryError, match="the output holds no floating-point tensor that requires gradients"):
        summarycb.summarize(model, input_size=(2, 3), backward=True)
    assert left_behind(model) == NOTHING


def test_a_model_that_is_watched_is_not_disturbed() -> None:
    """A summary of a dummy input before training is not the first step."""
    case = CASES["cnn"]
    model, optimizer = case.make()
    hook = summarycb.watch(model, verbose=False)
    summarycb.summarize(model, input_size=(1, 3, 8, 8))
    case.train(model, optimizer, steps=1)
    assert hook.summary is not None
    assert (hook.summary[""].calls, hook.summary.memory.batch) == (1, 4 * 3 * 8 * 8 * 4)


LINEAR = nn.Linear(3, 4)
WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "model": (lambda: summarycb.summarize("net"), "model must be a torch.nn.Module, not str"),  # type: ignore[arg-type]
    "args": (
        lambda: summarycb.summarize(LINEAR, torch.zeros(2, 3)),  # type: ignore[arg-type]
        r"args must be a tuple of positional inputs, as in \(x,\), not Tensor",
    ),
    "kwargs": (
        lambda: summarycb.summarize(LINEAR, kwargs=[1]),  # type: ignore[arg-type]
        "kwargs must be a mapping of names to inputs, not list",
    ),
    "kwargs without names": (
        lambda: summarycb.summarize(LINEAR, kwargs={0: torch.zeros(2, 3)}),  # type: ignore[dict-item]
        "kwargs must be a mapping of names to inputs; 0 is no name",
    ),
    "backward": (
        lambda: summarycb.summarize(LINEAR, input_size=(2, 3), backward="no"),  # type: ignore[arg-type]
        "backward must be True or False, not 'no'",
    ),
    "mode": (
        lambda: summarycb.summarize(LINEAR, mode="test"),  # type: ignore[arg-type]
        "mode must be 'same', 'train' or 'eval', not 'test'",
    ),
    "both": (
        lambda: summarycb.summarize(LINEAR, (torch.zeros(2, 3),), input_size=(2, 3)),
        "give either args and kwargs or input_size, not both",
    ),
    "input_size text": (
        lambda: summarycb.summarize(LINEAR, input_size="23"),
        r"input_size must be a shape such as \(1, 3, 224, 224\), or a list of shapes, not '23'",
    ),
    "input_size number": (lambda: summarycb.summarize(LINEAR, input_size=3), "input_size must be .*, not 3"),  # type: ignore[arg-type]
    "input_size negative": (lambda: summarycb.summarize(LINEAR, input_size=(-1, 3)), r"not \(-1, 3\)"),
    "input_size float": (lambda: summarycb.summarize(LINEAR, input_size=(2.0, 3)), r"not \(2.0, 3\)"),  # type: ignore[arg-type]
    "input_size bool": (lambda: summarycb.summarize(LINEAR, input_size=(True, 3)), r"not \(True, 3\)"),
    "dtypes alone": (
        lambda: summarycb.summarize(LINEAR, dtypes=[torch.int64]),
        "dtypes says how input_size is to be filled; without input_size there is nothing to fill",
    ),
    "dtypes too few": (
        lambda: summarycb.summarize(LINEAR, input_size=[(2, 3), (2, 3)], dtypes=[torch.int64]),
        r"dtypes must hold one torch.dtype for each of the 2 shapes, not \[torch.int64\]",
    ),
    "dtypes text": (
        lambda: summarycb.summarize(LINEAR, input_size=(2, 3), dtypes=["int64"]),  # type: ignore[list-item]
        r"dtypes must hold one torch.dtype for each of the 1 shapes, not \['int64'\]",
    ),
    "dtypes one": (
        lambda: summarycb.summarize(LINEAR, input_size=(2, 3), dtypes=torch.int64),  # type: ignore[arg-type]
        "dtypes must hold one torch.dtype for each of the 1 shapes, not torch.int64",
    ),
    "device": (
        lambda: summarycb.summarize(LINEAR, input_size=(2, 3), device="gpu"),
        "device must be a torch.device or its name, such as 'cpu', 'cuda:0' or 'meta', not 'gpu'",
    ),
    "backward of nothing": (
        lambda: summarycb.summarize(LINEAR, backward=True),
        "backward=True needs an input: give args and kwargs, or input_size",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", list(WRONG))
def test_a_wrong_argument_raises_at_once(wrong: str) -> None:
    """With what was given and what is allowed."""
    call, message = WRONG[wrong]
    with pytest.raises(SummaryError, match=message):
        call()


def test_a_70_billion_parameter_llama() -> None:
    """A training step at 4,096 tokens on the meta device, every product derived by hand."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, heads, kv_heads, inner, words, tokens = 8192, 80, 64, 8, 28672, 128256, 4096
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=inner, vocab_size=words, max_position_embeddings=8192, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        ids = torch.zeros(1, tokens, dtype=torch.int64)
    summary = summarycb.summarize(model, kwargs={"input_ids": ids, "labels": ids}, mode="train", backward=True)

    width = hidden // heads
    attention = 2 * hidden * hidden + 2 * hidden * kv_heads * width  # queries and output; keys and values
    feed_forward = 3 * hidden * inner
    layer = attention + feed_forward + 2 * hidden  # two norms
    assert summary.total_params == 2 * words * hidden + layers * layer + hidden == 70_553_706_496

    products = tokens * (attention + feed_forward)
    scores = 2 * heads * tokens * tokens * width  # QK^T and AV, the causal mask not discounted
    head = tokens * hidden * words
    assert summary["model.layers.0"].forward_macs == products + scores
    assert summary["lm_head"].forward_macs == head
    assert summary.forward_macs == layers * (products + scores) + head == 306_669_254_868_992
    assert summary.backward_macs == 2 * summary.forward_macs  # every product's two operands need a gradient
    assert summary.memory.gradients == summary.memory.parameters == 70_553_706_496 * 4
    assert summary.incomplete == ()


def test_functional_dropout_leaves_the_random_state() -> None:
    """Numbers drawn in the forward are not drawn from the user's stream."""

    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(x + torch.rand_like(x), 0.5)

    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    summarycb.summarize(Noisy(), input_size=(2, 3))
    assert torch.equal(torch.rand(4), expected)


def test_random_numbers_of_python_and_numpy_are_not_the_users() -> None:
    class Augmenting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * random.random() * float(np.random.rand())

    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)
    summarycb.summarize(Augmenting(), input_size=(2, 3))
    assert (random.random(), np.random.rand()) == expected


def test_a_lazy_parameter_hides_no_buffer() -> None:
    """The bytes of the weights are unknown until they are made; those of the buffers are not."""
    memory = summarycb.summarize(nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3))).memory
    assert (memory.parameters, memory.buffers) == (None, 4 * 3 + 4 * 3 + 8)  # two averages, and a count of 64 bits
