"""The dataflow of a real step: which call or operation each tensor came from. Every expected list is whole.

A line is a node and what it has read, each by its name in the graph; operations of one name are numbered.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import summarycb
from summarycb import ModelSummary, SummaryWarning
from summarycb.collect import dataflow as collector
from summarycb.collect import origins
from summarycb.graph import contract
from tests.trainings import CASES, NOTHING, everything, left_behind, loss_of


def lines(summary: ModelSummary, depth: int | None = None, **options: bool) -> list[str]:
    graph = contract(summary, depth=depth, **{"fold": False, **options})
    count = Counter(node.label for node in graph.nodes)
    seen = Counter[str]()
    names = []
    for node in graph.nodes:
        seen[node.label] += 1
        names.append(f"{node.label}.{seen[node.label]}" if count[node.label] > 1 else node.label)
    reads: list[list[str]] = [[] for _ in names]
    for edge in graph.edges:
        reads[edge.target].append(names[edge.source])
    return [f"{name} <- {', '.join(read)}" if read else name for name, read in zip(names, reads, strict=True)]


def module(forward: Callable[..., Any], **children: nn.Module) -> nn.Module:
    made = type("Made", (nn.Module,), {"forward": forward})()
    for name, child in children.items():
        made.add_module(name, child)
    return made


def observed(model: nn.Module, *inputs: torch.Tensor) -> ModelSummary:
    with summarycb.observe(model) as observation:
        output = model(*inputs)
        output = output["y"] if isinstance(output, dict) else output[0] if isinstance(output, tuple) else output
        output.sum().backward()
    assert observation.summary is not None
    assert observation.summary.incomplete == ()
    return observation.summary


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def holding(name: str, made: nn.Module) -> nn.Module:
    made.register_buffer(name, torch.zeros(2, 4))
    return made


class Any4(nn.Module):
    """Takes a vector of any length."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum().expand(4)


def in_place(self: Any, x: Any) -> Any:
    return self.b(F.relu_(self.a(x)))


def a_slice_is_written(self: Any, x: Any) -> Any:
    h = self.a(x).clone()
    h[:, :2] += self.b(x)[:, :2]
    return self.c(h)


def parts_are_written(self: Any, x: Any) -> Any:
    h = torch.zeros(2, 8)
    h[:, :4] = self.a(x)
    h[:, 4:] = self.b(x)
    return self.c(h[:, ::2])


def a_half_in_place(self: Any, x: Any) -> Any:
    h = self.a(x).clone()
    self.act(h[:, 2:])
    return self.b(h[:, :2]) + self.c(h[:, 2:])


def slots(self: Any, x: Any) -> Any:
    h = torch.empty(2, 8)
    h[:, ::2], h[:, 1::2] = self.a(x), self.b(x)
    return self.c(h[:, 4::2]) + self.d(h[:, 5::2]) * h[0, 0]


def written_over(self: Any, x: Any) -> Any:
    h = self.a(x).clone()
    h[:, :3] = self.b(x)[:, :3]
    h[:, 1:] = self.c(x)[:, 1:]
    return {"y": self.d(h[:, 1:]), "left": h[:, :1] + 1}


def masked(self: Any, x: Any) -> Any:
    h = self.a(x) + self.b(x)
    h[:, 0] = 0
    return {"y": self.c(h), "left": h[:, :1] * 2}


def a_row_of_columns(self: Any, x: Any) -> Any:
    h = self.a(x).clone()
    h[:, :2], h[:, 2:] = self.b(x)[:, :2], self.c(x)[:, 2:]
    return self.d(h[0])


def windows(self: Any, x: Any) -> Any:
    h = self.a(x).flatten()
    h[2:6] = self.b(x)[0]
    h[4:] = self.c(x)[0]
    h[:2] = 0
    return {"y": self.d(h[3:7]), "all": self.d(h)}


def a_view_that_overlaps_itself(self: Any, x: Any) -> Any:
    h = self.a(x).flatten()
    h[:5].unfold(0, 2, 1).copy_(self.b(x)[:1, :1])
    return self.c(h[:4]) + self.d(h)


def a_cache(self: Any, x: Any) -> Any:
    self.cache[:, :2] = self.k(x)[:, :2].detach()
    return self.q(x) * self.o(self.cache)


def a_row_of_ones(self: Any, x: Any) -> Any:
    return torch.ones_like(self.b(x)) * self.a(x) + torch.zeros_like(self.b(x)).bernoulli_(0.5)


class Keeps(nn.Module):
    """A leaf that writes what it is given into a tensor that another module holds, and into its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("own", torch.zeros(2, 4))

    def forward(self, cache: torch.Tensor, x: torch.Tensor) -> None:
        cache[:, :2] = x[:, :2]
        self.own.copy_(x)


def kept_by_a_leaf(self: Any, x: Any) -> Any:
    self.keep(self.cache, self.a(x).detach())
    return self.b(self.cache) * self.c(self.keep.own) * x.detach().requires_grad_()


def shared(self: Any, x: Any) -> Any:
    h = self.a(x)
    return self.b(h) + self.b(self.act(h).T.T)


def without_gradients(self: Any, x: Any) -> Any:
    h = self.a(x)
    with torch.no_grad():
        target = self.b(h)
    return {"y": self.c(h) * target.detach(), "target": target}


def in_a_tuple(self: Any, x: Any) -> Any:
    h, (c, _) = self.lstm(x)
    return self.a(h[:, -1]) + c[0], h


def views_by_modules(self: Any, x: Any) -> Any:
    h = self.flat(x * 2)
    return self.a(self.same(h)) + h.view(2, 4)


def reentrant(self: Any, x: Any) -> Any:
    h = self.a(x)
    return h + checkpoint(self.seq, h, use_reentrant=True)


def not_reentrant(self: Any, x: Any) -> Any:
    h = self.a(x)
    return h + checkpoint(self.seq, h, use_reentrant=False)


def joins(self: Any, x: Any) -> Any:
    a, b, c = self.a(x), self.b(x), torch.ones(4)
    return torch.cat([a @ b.T, a * b + c], 1)


X = torch.rand(2, 4)
LOSS = ["sum <- output", "loss <- sum"]
SEQUENTIAL = ["input", "a <- input", "seq.0 <- a", "seq.1 <- seq.0", "seq.2 <- seq.1", "add <- a, seq.2"]
FLOWS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor, list[str]]] = {
    "in place": (
        lambda: module(in_place, a=linear(), b=linear()),
        X,
        ["input", "a <- input", "relu_ <- a", "b <- relu_", "output <- b", *LOSS],
    ),
    "a slice is written in place, the whole is read": (
        lambda: module(a_slice_is_written, a=linear(), b=linear(), c=linear()),
        X,
        ["input", "a <- input", "b <- input", "add_ <- a, b", "c <- a, add_", "output <- c", *LOSS],
    ),
    "parts are written": (
        lambda: module(parts_are_written, a=linear(), b=linear(), c=linear()),
        X,
        ["input", "a <- input", "b <- input", "c <- a, b", "output <- c", *LOSS],
    ),
    "a module writes one half, the other is read": (
        lambda: module(a_half_in_place, a=linear(), act=nn.ReLU(inplace=True), b=nn.Linear(2, 4), c=nn.Linear(2, 4)),
        X,
        ["input", "a <- input", "act <- a", "b <- a", "c <- act", "add <- b, c", "output <- add", *LOSS],
    ),
    "slots that lie between each other": (
        lambda: module(slots, a=linear(), b=linear(), c=nn.Linear(2, 4), d=nn.Linear(2, 4)),
        X,
        [
            "input", "a <- input", "b <- input", "c <- a", "d <- b", "mul <- d, a", "add <- c, mul", "output <- add",
            *LOSS,
        ],
    ),
    "parts are written over": (
        lambda: module(written_over, a=linear(), b=linear(), c=linear(), d=nn.Linear(3, 4)),
        X,
        [
            # the last three columns are c's, so the first alone is b's; a runs, and nothing of it is read
            "input", "a <- input", "b <- input", "c <- input", "d <- c", "add <- b", "y <- d", "left <- add",
            "sum <- y", "loss <- sum",
        ],
    ),
    "columns are written, a row is read": (
        lambda: module(a_row_of_columns, a=linear(), b=linear(), c=linear(), d=linear()),
        X,
        ["input", "a <- input", "b <- input", "c <- input", "d <- b, c", "output <- d", *LOSS],
    ),
    "windows that overlap": (
        lambda: module(windows, a=linear(), b=linear(), c=linear(), d=Any4()),
        X,
        [
            "input", "a <- input", "b <- input", "c <- input", "d #1 <- b, c", "d #2 <- b, c", "y <- d #1",
            "all <- d #2", "sum <- y", "loss <- sum",
        ],
    ),
    "a view that overlaps itself is written": (
        lambda: module(a_view_that_overlaps_itself, a=linear(), b=linear(), c=Any4(), d=Any4()),
        X,
        [
            "input", "a <- input", "b <- input", "c <- a, b", "d <- a, b", "add <- c, d", "output <- add", *LOSS
        ],
    ),
    "a buffer keeps what a module gave": (
        lambda: holding("cache", module(a_cache, k=linear(), q=linear(), o=linear())),
        X,
        ["input", "k <- input", "q <- input", "o <- k", "mul <- q, o", "output <- mul", *LOSS],
    ),
    "a leaf writes into buffers, another's and its own": (
        lambda: holding("cache", module(kept_by_a_leaf, keep=Keeps(), a=linear(), b=linear(), c=linear())),
        X,
        [
            "input", "a <- input", "keep <- a", "b <- keep", "c <- keep", "mul.1 <- b, c", "mul.2 <- mul.1, input",
            "output <- mul.2", *LOSS,
        ],
    ),
    "what is made like a tensor has nothing of it": (
        lambda: module(a_row_of_ones, a=linear(), b=linear()),
        X,
        [
            "input", "b #1 <- input", "a <- input", "mul <- a", "b #2 <- input", "add <- mul", "output <- add", *LOSS
        ],
    ),
    "zeros are written": (
        lambda: module(masked, a=linear(), b=linear(), c=linear()),
        X,
        [
            "input", "a <- input", "b <- input", "add <- a, b", "c <- add", "y <- c", "sum <- y", "loss <- sum"
        ],
    ),
    "a shared module, a transposed view": (
        lambda: module(shared, a=linear(), b=linear(), act=nn.ReLU()),
        X,
        [
            "input", "a <- input", "b #1 <- a", "act <- a", "b #2 <- act", "add <- b #1, b #2", "output <- add", *LOSS
        ],
    ),
    "no_grad, detach, a dict": (
        lambda: module(without_gradients, a=linear(), b=linear(), c=linear()),
        X,
        [
            "input", "a <- input", "b <- a", "c <- a", "mul <- c, b", "y <- mul", "target <- b", "sum <- y",
            "loss <- sum",
        ],
    ),
    "an LSTM, a tuple": (
        lambda: module(in_a_tuple, lstm=nn.LSTM(4, 4, batch_first=True), a=linear()),
        torch.rand(2, 3, 4),
        [
            "input", "lstm <- input", "a <- lstm", "add <- a, lstm", "output 0 <- add", "output 1 <- lstm",
            "sum <- output 0", "loss <- sum",
        ],
    ),
    "modules that give views, or what they were given": (
        lambda: module(views_by_modules, flat=nn.Flatten(), same=nn.Identity(), a=linear()),
        torch.rand(2, 2, 2),
        ["input", "mul <- input", "flat <- mul", "a <- flat", "add <- a, flat", "output <- add", *LOSS],
    ),
    "a reentrant checkpoint": (
        lambda: module(reentrant, a=linear(), seq=nn.Sequential(linear(), nn.ReLU(), linear())),
        X,
        [*SEQUENTIAL, "output <- add", *LOSS],
    ),
    "a checkpoint": (
        lambda: module(not_reentrant, a=linear(), seq=nn.Sequential(linear(), nn.ReLU(), linear())),
        X,
        [*SEQUENTIAL, "output <- add", *LOSS],
    ),
    "joins, and what is made of nothing": (
        lambda: module(joins, a=linear(), b=linear()),
        X,
        [
            "input", "a <- input", "b <- input", "mm <- a, b", "mul <- a, b", "add <- mul", "cat <- mm, add",
            "output <- cat", *LOSS,
        ],
    ),
    "an encoder layer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0),
        torch.rand(2, 3, 4),
        [
            # the input projection is a product and a sum, attention one kernel, the output projection a function
            "input", "mm <- input", "add.1 <- mm", "sdpa <- add.1", "linear <- sdpa", "add.2 <- input, linear",
            "norm1 <- add.2", "linear1 <- norm1", "relu <- linear1", "linear2 <- relu", "add.3 <- norm1, linear2",
            "norm2 <- add.3", "output <- norm2", *LOSS,
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOWS)
def test_each_tensor_comes_from_what_made_it(name: str) -> None:
    build, x, expected = FLOWS[name]
    assert lines(observed(build(), x)) == expected


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)])
        self.pool, self.middle = nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ModuleList([nn.Conv2d(16, 4, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
            x = self.pool(x)
        x = self.middle(x)
        for up in self.up:
            x = up(torch.cat([skips.pop(), F.interpolate(x, scale_factor=2)], 1))
        return x


def test_the_skip_connections_of_a_u_net() -> None:
    assert lines(observed(UNet(), torch.rand(1, 3, 8, 8))) == [
        "input", "down.0 <- input", "pool #1 <- down.0", "down.1 <- pool #1", "pool #2 <- down.1", "middle <- pool #2",
        "upsample_nearest2d.1 <- middle", "cat.1 <- down.1, upsample_nearest2d.1", "up.0 <- cat.1",
        "upsample_nearest2d.2 <- up.0", "cat.2 <- down.0, upsample_nearest2d.2", "up.1 <- cat.2", "output <- up.1",
        *LOSS,
    ]  # fmt: skip


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.norm2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += x
        return self.relu(out)


def test_the_residuals_of_a_resnet() -> None:
    """Everything after the convolutions is in place; the second block reads what the first's last ReLU has written."""
    assert lines(observed(nn.Sequential(Residual(), Residual()), torch.rand(2, 3, 4, 4))) == [
        "input",
        "0.conv1 <- input", "0.norm1 <- 0.conv1", "0.relu #1 <- 0.norm1", "0.conv2 <- 0.relu #1", "0.norm2 <- 0.conv2",
        "add_.1 <- 0.norm2, input", "0.relu #2 <- add_.1",
        "1.conv1 <- 0.relu #2", "1.norm1 <- 1.conv1", "1.relu #1 <- 1.norm1", "1.conv2 <- 1.relu #1",
        "1.norm2 <- 1.conv2", "add_.2 <- 1.norm2, 0.relu #2", "1.relu #2 <- add_.2",
        "output <- 1.relu #2", *LOSS,
    ]  # fmt: skip


def test_a_gpt_and_its_loss() -> None:
    """Attention with dropout is math on the CPU. The tied weight is a parameter of both ends, the positions of none."""
    model, _ = CASES["gpt"].make()
    model.eval()
    [(x, y)] = CASES["gpt"].batches(1)
    with summarycb.observe(model) as observation:
        loss_of(model(x), y).backward()
    summary = observation.summary
    assert summary is not None
    block = [
        "{0}.norm1 <- {1}", "{0}.qkv <- {0}.norm1", "sdpa.{2} <- {0}.qkv", "{0}.out <- sdpa.{2}",
        "add.{3} <- {1}, {0}.out", "{0}.norm2 <- add.{3}", "{0}.mlp.0 <- {0}.norm2", "{0}.mlp.1 <- {0}.mlp.0",
        "{0}.mlp.2 <- {0}.mlp.1", "add.{4} <- add.{3}, {0}.mlp.2",
    ]  # fmt: skip
    assert lines(summary) == [
        "input", "tokens <- input", "add.1 <- tokens",
        *[line.format("0", "add.1", 1, 2, 3) for line in block],
        *[line.format("1", "add.3", 2, 4, 5) for line in block],
        "head <- add.5", "output <- head", "log_softmax <- output", "tensor", "nll_loss <- log_softmax, tensor",
        "loss <- nll_loss",
    ]  # fmt: skip
    given = lines(summary, depth=1, fold=True, parameters=True)
    assert given[:5] == [
        "input", "tokens <- tokens.weight, input", "tokens.weight", "positions.weight",
        "add <- tokens, positions.weight",
    ]  # fmt: skip
    assert "head <- blocks.0-1, tokens.weight" in given


def test_autocast_copies_pass_through() -> None:
    """The low-precision copies of the batch and the weights are no nodes; what is read is told as it is."""
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    with torch.autocast("cpu", torch.bfloat16):
        summary = observed(model, X)
    assert lines(summary) == ["input", "0 <- input", "1 <- 0", "2 <- 1", "output <- 2", *LOSS]
    graph = contract(summary, depth=None)
    assert [edge.tensor for edge in graph.edges[:3]] == ["[2, 4] float32", "[2, 4] bfloat16", "[2, 4] bfloat16"]


def test_only_what_leads_to_the_loss_is_told_of_what_ran_outside() -> None:
    """The penalty on a weight is part of the loss; the batch's making, a metric and clipping are not."""
    model = nn.Linear(4, 4, bias=False)
    with summarycb.observe(model) as observation:
        x = (X - X.mean()) / X.std()
        y = model(x)
        (y == x).float().mean()
        (y.sum() + model.weight.pow(2).sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert observation.summary is not None
    assert lines(observation.summary, parameters=True) == [
        "input", "weight", "mm <- input, weight", "output <- mm", "sum.1 <- output", "pow <- weight", "sum.2 <- pow",
        "add <- sum.1, sum.2", "loss <- add",
    ]  # fmt: skip


def test_inputs_and_targets_that_overlap_in_one_storage() -> None:
    """As of a language model; the edge of a slice has the slice's shape, and that into one what it is given."""
    model = nn.Linear(3, 3)
    tokens = torch.rand(2, 4)
    with summarycb.observe(model) as observation:
        F.mse_loss(model(tokens[:, :-1]), tokens[:, 1:]).backward()
    assert observation.summary is not None
    graph = contract(observation.summary)
    labels = [node.label for node in graph.nodes]
    assert [(labels[edge.source], labels[edge.target], edge.tensor) for edge in graph.edges] == [
        ("input", "linear", "[2, 3] float32"), ("linear", "output", "[2, 3] float32"),
        ("output", "mse_loss", "[2, 3] float32"), ("tensor", "mse_loss", "[2, 3] float32"),
        ("mse_loss", "loss", "[] float32"),
    ]  # fmt: skip


def test_the_shapes_of_the_parts_that_a_tensor_was_written_in() -> None:
    graph = contract(observed(FLOWS["parts are written"][0](), X))
    labels = [node.label for node in graph.nodes]
    assert [(labels[edge.source], edge.tensor) for edge in graph.edges if labels[edge.target] == "c"] == [
        ("a", "[2, 4] float32"), ("b", "[2, 4] float32")
    ]  # fmt: skip


def one_after_the_other(self: Any, x: Any) -> Any:
    h = torch.zeros(2, 4)
    for column in range(4):
        h[:, column] = self.a(x)[:, 0]
    return self.b(h[:, :1])


def test_more_parts_than_are_told_apart_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fourth joins the four: what reads the first seems to read them all."""
    build = FLOWS["in place"][0]
    model = module(one_after_the_other, a=build(), b=nn.Linear(1, 1))
    reads = ["b <- a #1", "b <- join"]
    for most, read in ((4, reads[0]), (3, reads[1])):
        monkeypatch.setattr(origins, "MOST_PARTS", most)
        summary = observed(model, X)
        assert read in lines(summary, depth=1)
        assert [note.kind for note in summary.notes] == ["dataflow"] * (most == 3)


class Outputs(nn.Module):
    """Two outputs that are one storage, or one tensor."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a = how, linear()

    def forward(self, x: torch.Tensor) -> Any:
        h = self.a(x)
        if self.how == "a part and the whole":
            return h[:, 0], h
        return {"logits": h, "other": h if self.how == "twice the same" else h.detach()}


@pytest.mark.parametrize("how", ["detached", "twice the same", "a part and the whole"])
def test_the_loss_is_of_the_output_that_it_was_made_of(how: str) -> None:
    summary = observed(Outputs(how), X) if how == "a part and the whole" else None
    if summary is None:
        with summarycb.observe(model := Outputs(how)) as observation:
            model(X)["logits"].sum().backward()
        summary = observation.summary
    assert summary is not None
    assert [line for line in lines(summary) if line.startswith("sum")] == [
        "sum <- output 0" if how == "a part and the whole" else "sum <- logits"
    ]


def test_each_of_two_losses_that_one_backward_begins_with() -> None:
    model = module(shared_ends, a=linear(), b=linear())
    with summarycb.observe(model) as observation:
        first, second = model(X)
        torch.autograd.backward([first.sum(), second.sum()])
    assert observation.summary is not None
    assert lines(observation.summary)[-4:] == [
        "sum.1 <- output 0", "sum.2 <- output 1", "loss 0 <- sum.1", "loss 1 <- sum.2"
    ]  # fmt: skip


def shared_ends(self: Any, x: Any) -> Any:
    return self.a(x), self.b(x)


def a_growing_prefix(self: Any, x: Any) -> Any:
    h, out = x, torch.zeros(2, 150, 4)
    for step in range(150):
        out[:, step] = self.a(h)
        h = out[:, : step + 1].mean(1)
    return h


def test_each_read_of_a_growing_prefix_is_of_all_that_was_written() -> None:
    """150 slices, the k-th read of k of them: 1 + ... + 150 = 11,325 edges into means."""
    summary = observed(module(a_growing_prefix, a=linear()), X)
    flow = summary.dataflow
    assert flow is not None
    assert sum(len(node.inputs) for node in flow.nodes if node.name == "mean") == 150 * 151 // 2


def test_it_is_of_what_ran_before_the_first_backward_and_says_so() -> None:
    model = linear()
    with summarycb.observe(model) as observation:
        model(X).sum().backward()
        model(X).sum().backward()
    summary = observation.summary
    assert summary is not None
    assert lines(summary) == ["input", "linear <- input", "output <- linear", *LOSS]
    assert [note.text for note in summary.notes if note.kind == "dataflow"] == [
        "the dataflow is of what ran before the first backward"
    ]


def test_a_forward_that_raises_leaves_what_led_to_it() -> None:
    model = nn.Sequential(linear(), nn.Linear(5, 4))
    with pytest.raises(RuntimeError), summarycb.observe(model) as observation:
        model(X)
    assert observation.summary is not None
    assert lines(observation.summary)[:2] == ["input", "0 <- input"]


def twice(self: Any, x: Any) -> Any:
    return self.norm(x) + self.norm(x * 2)


def test_a_layer_s_own_statistics_flow_to_nobody() -> None:
    """The second call counts on from what the first has written; that is for later steps, and no edge."""
    assert lines(observed(module(twice, norm=nn.BatchNorm1d(4)), X)) == [
        "input", "norm #1 <- input", "mul <- input", "norm #2 <- mul", "add <- norm #1, norm #2", "output <- add", *LOSS
    ]  # fmt: skip


def test_what_is_made_like_a_tensor_does_not_keep_it() -> None:
    """As a GAN's labels, ones like the logits; so the gradient that a backward begins with is made, too."""
    model = linear()
    with summarycb.observe(model):
        logits = model(torch.rand(2, 4))
        labels = torch.ones_like(logits)
        gone = weakref.ref(logits)
        del logits
        assert gone() is None
        del labels


def test_nothing_is_kept_alive() -> None:
    """What the forward lets go is gone at once, as without us: the storage, and the tensor that a module gave."""
    gone: list[bool] = []

    def forward(self: Any, x: Any) -> Any:
        with torch.no_grad():
            h = self.flat(self.a(x).view(2, 2, 2))
            refs = [weakref.ref(h), weakref.ref(h.untyped_storage())]
            del h
            gone.extend(ref() is None for ref in refs)
        return self.a(x)

    observed(module(forward, a=linear(), flat=nn.Flatten()), X)
    assert gone == [True, True]


@pytest.mark.parametrize("name", ["a slice is written in place, the whole is read", "a checkpoint"])
def test_the_training_is_bitwise_the_same(name: str) -> None:
    def train(watch: bool) -> tuple[dict[str, Any], nn.Module]:
        torch.manual_seed(0)
        model = FLOWS[name][0]()
        optimizer = torch.optim.Adam(model.parameters())
        hook = summarycb.watch(model, verbose=False) if watch else None
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(X).sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        if hook is not None:
            assert hook.summary is not None
            assert hook.summary.dataflow is not None
        return everything(model, optimizer, losses), model

    plain, watched = train(False), train(True)
    assert watched[0] == plain[0]
    assert left_behind(watched[1]) == NOTHING


@pytest.mark.parametrize("what", ["__init__", "enter", "op", "exit", "backward_begins"])
def test_a_fault_costs_the_dataflow_alone(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(collector.Flow, what, fail)
    model = nn.Sequential(linear(), linear())
    with pytest.warns(SummaryWarning, match="the dataflow"), summarycb.observe(model) as observation:
        model(X).sum().backward()
    summary = observation.summary
    assert summary is not None
    assert summary.dataflow is None
    assert summary.incomplete == ("the dataflow could not be observed (RuntimeError)",)
    assert summary.forward_macs == 2 * 2 * 4 * 4
    with pytest.raises(summarycb.SummaryError, match="no dataflow: the dataflow could not be observed"):
        summary.to_dot()


@pytest.mark.parametrize("what", ["MOST_NODES", "MOST_EDGES"])
def test_a_dataflow_that_is_too_large_is_not_kept(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, what, 3)
    summary = observed(nn.Sequential(linear(), linear()), X)
    assert summary.dataflow is None
    assert [note.kind for note in summary.notes] == ["dataflow"]


def test_it_comes_back_from_json_equal() -> None:
    summary = observed(UNet(), torch.rand(1, 3, 8, 8))
    assert ModelSummary.from_json(summary.to_json()).dataflow == summary.dataflow


LLAMA = [
    "input_ids", "embed_tokens <- input_ids", "rotary_emb", "input_layernorm <- embed_tokens",
    "q_proj <- input_layernorm", "k_proj <- input_layernorm", "v_proj <- input_layernorm",
    # rotary positions: q * cos + rotate_half(q) * sin, and the same of k
    "mul.1 <- q_proj, rotary_emb", "neg.1 <- q_proj", "cat.1 <- neg.1, q_proj", "mul.2 <- cat.1, rotary_emb",
    "add.1 <- mul.1, mul.2",
    "mul.3 <- k_proj, rotary_emb", "neg.2 <- k_proj", "cat.2 <- neg.2, k_proj", "mul.4 <- cat.2, rotary_emb",
    "add.2 <- mul.3, mul.4",
    "sdpa <- add.1, add.2, v_proj", "o_proj <- sdpa", "add.3 <- embed_tokens, o_proj",
    "post_attention_layernorm <- add.3", "gate_proj <- post_attention_layernorm", "act_fn <- gate_proj",
    "up_proj <- post_attention_layernorm", "mul.5 <- act_fn, up_proj", "down_proj <- mul.5",
    "add.4 <- add.3, down_proj",
    "norm <- add.4", "lm_head <- norm", "pad <- input_ids", "log_softmax <- lm_head", "nll_loss <- log_softmax, pad",
    "loss <- nll_loss", "logits <- lm_head",
]  # fmt: skip
BERT = [
    "input_ids", "word_embeddings <- input_ids", "token_type_embeddings",
    "add.1 <- word_embeddings, token_type_embeddings", "position_embeddings", "add.2 <- add.1, position_embeddings",
    "embeddings.LayerNorm <- add.2",
    # BertSelfOutput and BertOutput are given the residual; the second is taken apart at this depth
    "self <- embeddings.LayerNorm", "output <- self, embeddings.LayerNorm", "intermediate.dense <- output",
    "intermediate_act_fn <- intermediate.dense", "output.dense <- intermediate_act_fn", "add.3 <- output.dense, output",
    "output.LayerNorm <- add.3",
    "transform.dense <- output.LayerNorm", "transform_act_fn <- transform.dense",
    "transform.LayerNorm <- transform_act_fn", "decoder <- transform.LayerNorm", "log_softmax <- decoder",
    "nll_loss <- log_softmax, input_ids", "loss <- nll_loss", "logits <- decoder",
]  # fmt: skip
GPT2 = [
    "input_ids", "wte <- input_ids", "wpe", "add.1 <- wte, wpe", "drop <- add.1",
    "ln_1 <- drop", "attn <- ln_1", "add.2 <- attn, drop", "ln_2 <- add.2", "mlp <- ln_2", "add.3 <- add.2, mlp",
    "ln_f <- add.3", "lm_head <- ln_f", "pad <- input_ids", "log_softmax <- lm_head", "nll_loss <- log_softmax, pad",
    "loss <- nll_loss", "logits <- lm_head", "past_key_values <- attn",
]  # fmt: skip


@pytest.mark.parametrize(("name", "depth", "expected"), [("llama", 5, LLAMA), ("bert", 5, BERT), ("gpt2", 3, GPT2)])
def test_what_transformers_builds(name: str, depth: int, expected: list[str]) -> None:
    """Three layers, folded; GPT-2 has the cache on, as it is by default, which its layers are given and return."""
    import transformers

    common = {"vocab_size": 50, "bos_token_id": None, "eos_token_id": None}
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    ids = torch.randint(50, (2, 7))
    if name == "llama":
        config = transformers.LlamaConfig(**common, **size, num_key_value_heads=2, use_cache=False)
        model = transformers.LlamaForCausalLM(config)
    elif name == "bert":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**common, **size)).eval()
    else:
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**common, n_embd=16, n_layer=3, n_head=2))
    with summarycb.observe(model) as observation:
        model(input_ids=ids, labels=ids)["loss"].backward()
    assert observation.summary is not None
    assert lines(observation.summary, depth, fold=True) == expected
