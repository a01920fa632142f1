"""What summarycb and its peers say of the same models, beside what is true.

    python benchmarks/peers.py [--only NAME] [--write]

``truth.py`` derives the truth. Every tool gets a copy of its own of the same model in train(), is called as its
documentation advises, and is shown with what it said or with the kind of exception it raised.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import io
import logging
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from truth import BATCH, CASES, OUTPUTS, Case, Net, Step, plain

import summarycb
from summarycb.units import count, nbytes

RESULTS = Path(__file__).parents[1] / "docs" / "peers.md"

# The tools. Each yields what it offers as it finds it: elements, and MACs.

PARAMS, FORWARD, STEP = "params", "forward", "step"
Told = Iterator[tuple[str, int | None]]


def ours(step: Step) -> Told:
    with summarycb.observe(step.model) as observation:
        step.run()
    summary = observation.summary
    assert summary is not None
    yield PARAMS, summary.total_params
    yield FORWARD, summary.forward_macs
    yield STEP, None if summary.step_flops is None else summary.step_flops // 2


def flop_counter(step: Step) -> Told:
    with FlopCounterMode(display=False) as forward:
        loss = step.forward()
    yield FORWARD, forward.get_total_flops() // 2
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    yield STEP, (forward.get_total_flops() + backward.get_total_flops()) // 2


def deepspeed(step: Step) -> Told:
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    profiler = FlopsProfiler(step.model)
    profiler.start_profile()
    loss = step.forward()
    yield PARAMS, profiler.get_total_params()
    yield FORWARD, profiler.get_total_macs()
    profiler.end_profile()
    loss.backward()


def lightning(step: Step) -> Told:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = step.model
            self.example_input_array = (step.x, step.y)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            return self.model(x, y)

    summary = ModelSummary(Module(), max_depth=-1)
    yield PARAMS, summary.total_parameters
    yield FORWARD, summary.total_flops // 2


def torchinfo(step: Step) -> Told:
    from torchinfo import summary

    result = summary(step.model, input_data=(step.x, step.y), verbose=0)
    yield PARAMS, result.total_params
    yield FORWARD, result.total_mult_adds


def fvcore(step: Step) -> Told:
    from fvcore.nn import FlopCountAnalysis, parameter_count

    yield PARAMS, parameter_count(step.model)[""]
    found = FlopCountAnalysis(step.model, (step.x, step.y)).by_operator()
    yield FORWARD, sum(int(found[name]) for name in ("addmm", "bmm", "conv", "einsum", "linear", "matmul", "mm"))


def calflops(step: Step) -> Told:
    from calflops import calculate_flops

    _, macs, params = calculate_flops(
        step.model, args=[step.x, step.y], include_backPropagation=True, print_results=False, output_as_string=False
    )
    yield PARAMS, params
    yield FORWARD, int(macs) // 3  # it takes a step for three forwards
    yield STEP, int(macs)


def thop(step: Step) -> Told:
    from thop import profile

    macs, params = profile(step.model, inputs=(step.x, step.y), verbose=False)
    yield PARAMS, int(params)
    yield FORWARD, int(macs)


def ptflops(step: Step) -> Told:
    from ptflops import get_model_complexity_info

    macs, params = get_model_complexity_info(
        step.model,
        (1,),
        input_constructor=lambda _: {"x": step.x, "y": step.y},
        backend="aten",
        as_strings=False,
        print_per_layer_stat=False,
    )
    if macs is None:
        raise GaveUp
    yield PARAMS, params
    yield FORWARD, macs


def torchtnt(step: Step) -> Told:
    from torchtnt.utils.module_summary import get_module_summary

    yield PARAMS, get_module_summary(step.model).num_parameters
    summary = get_module_summary(step.model, module_args=(step.x, step.y))
    yield FORWARD, int(summary.flops_forward)
    yield STEP, int(summary.flops_forward) + int(summary.flops_backward)


class GaveUp(Exception):
    """The tool printed what went wrong, and returned None."""


@dataclass(frozen=True)
class Tool:
    name: str
    package: str
    ask: Callable[[Step], Told]
    offers: tuple[str, ...]
    call: str
    around: bool = False
    """It watches the real step; the others run the model by themselves, before it."""

    @property
    def version(self) -> str:
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"


BOTH, ALL = (PARAMS, FORWARD), (PARAMS, FORWARD, STEP)
TOOLS = (
    Tool("summarycb", "summarycb", ours, ALL, "`observe(model)` around the real step", around=True),
    Tool(
        "FlopCounterMode",
        "torch",
        flop_counter,
        (FORWARD, STEP),
        "around the forward, and around the backward, of the real step; its FLOPs, halved",
        around=True,
    ),
    Tool(
        "DeepSpeed",
        "deepspeed",
        deepspeed,
        BOTH,
        "`FlopsProfiler(model)`, started and ended around the forward of the real step; its MACs",
        around=True,
    ),
    Tool(
        "Lightning",
        "lightning",
        lightning,
        BOTH,
        "`ModelSummary(module, max_depth=-1)` with `example_input_array`; its FLOPs, halved",
    ),
    Tool("torchinfo", "torchinfo", torchinfo, BOTH, '`summary(model, input_data=..., verbose=0)`; its "mult-adds"'),
    Tool(
        "fvcore",
        "fvcore",
        fvcore,
        BOTH,
        "`FlopCountAnalysis(model, inputs).by_operator()` without normalization and pooling; its FLOPs are MACs",
    ),
    Tool(
        "calflops",
        "calflops",
        calflops,
        ALL,
        "`calculate_flops(model, args=..., include_backPropagation=True)`; its MACs, for the forward a third",
    ),
    Tool("thop", "thop", thop, BOTH, "`profile(model, inputs=...)`; its MACs"),
    Tool(
        "ptflops",
        "ptflops",
        ptflops,
        BOTH,
        "`get_model_complexity_info` with `input_constructor` and the backend `aten`; its MACs",
    ),
    Tool(
        "torchtnt",
        "torchtnt",
        torchtnt,
        ALL,
        "`get_module_summary(model, module_args=...)`, which runs a backward, too; its FLOPs are MACs",
    ),
)

# Asking them


def figures(tool: Tool, step: Step) -> dict[str, int | str | None]:
    """What a tool says of a copy of the step; the kind of exception where it raised before it could."""
    own = copy.deepcopy(step)
    torch.manual_seed(1)
    found: dict[str, int | str | None] = {}
    with quiet(), torch_restored():
        try:
            found.update(tool.ask(own))
        except Exception as error:
            found = {key: found.get(key, kind(error)) for key in tool.offers}
    return found


def kind(error: Exception) -> str:
    return type(error.__cause__ or error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def torch_restored() -> Iterator[list[str]]:
    """Some tools replace functions of torch, and leave them replaced when they fail; yields the names of those left."""
    before, left = functions(), list[str]()
    try:
        yield left
    finally:
        for (owner, name), function in before.items():
            if getattr(owner, name) != function:
                left.append(name)
                setattr(owner, name, function)


def functions() -> dict[tuple[Any, str], Any]:
    names: list[tuple[Any, str]] = [(owner, name) for owner in (torch, F) for name in vars(owner)]
    names += [(torch.Tensor, name) for name in dir(torch.Tensor)]  # most of them are inherited
    found = {(owner, name): getattr(owner, name) for owner, name in names}
    return {place: value for place, value in found.items() if callable(value)}


# The tables: a head, and rows of cells

Table = tuple[list[str], list[list[str]]]


def against(figure: int | str | None, truth: int, write: Callable[[int], str] = count) -> str:
    """The figure where it is exact, elsewhere how far it is off."""
    if figure is None:
        return "?"
    if isinstance(figure, str):
        return figure
    if figure == truth:
        return write(figure)
    error = 100 * (figure - truth) / truth
    digits = next(digits for digits in range(1, 12) if float(f"{error:.{digits}f}"))
    return f"{error:+,.{digits}f} %"


def model_tables(cases: Iterable[Case]) -> dict[str, Table]:
    """For each of what is offered: what is true and what the tools say, and how often they are exact."""
    tools = {key: [tool for tool in TOOLS if key in tool.offers] for key in ALL}
    tables: dict[str, Table] = {key: (["", "truth", *[t.name for t in tools[key]]], []) for key in ALL}
    exact = {key: [0] * len(tools[key]) for key in ALL}
    for case in cases:
        started = time.perf_counter()
        step = case.step()
        distinct = sum(parameter.numel() for parameter in step.model.parameters())
        found = {tool.name: figures(tool, step) for tool in TOOLS}
        for key, truth in ((PARAMS, distinct), (FORWARD, case.truth.forward), (STEP, case.truth.step)):
            told = [found[tool.name][key] for tool in tools[key]]
            tables[key][1].append([case.name, count(truth), *[against(figure, truth) for figure in told]])
            exact[key] = [n + (figure == truth) for n, figure in zip(exact[key], told, strict=True)]
        print(f"{case.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    for key, (_, rows) in tables.items():
        rows.append(["exact", f"of {len(rows)}", *map(str, exact[key])])
    return tables


def fine_tuning() -> Step:
    """A small model within a step: one of its BatchNorms is frozen, and gradients have been accumulated."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.Dropout(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, OUTPUTS),
    )
    step = plain(body, torch.randn(BATCH, 3, 16, 16), BATCH, OUTPUTS)
    step.model.train()
    body[1].eval()
    step.run()
    return step


STATE = ("train/eval flags", "BatchNorm", "random state", "gradients")
LEFT = ("hooks", "state_dict keys", "attributes")


def state(step: Step) -> dict[str, list[Any]]:
    buffers = dict(step.model.named_buffers())
    gradients = [torch.zeros(1) if p.grad is None else p.grad.clone() for p in step.model.parameters()]
    statistics = [buffers[name].clone() for name in buffers if "running" in name or "tracked" in name]
    flags = [module.training for module in step.model.modules()]
    return dict(zip(STATE, (flags, statistics, [torch.get_rng_state()], gradients), strict=True))


def left_on(step: Step) -> dict[str, int]:
    attributes = [vars(module) for module in step.model.modules()]
    hooks = sum(len(value) for held in attributes for name, value in held.items() if name.endswith("_hooks"))
    return dict(zip(LEFT, (hooks, len(step.model.state_dict()), sum(map(len, attributes))), strict=True))


def same(a: list[Any], b: list[Any]) -> bool:
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


def effects() -> Table:
    """What is other than before a tool ran the model, or than after the same step without the tool around it."""
    table: Table = (["", "extra forwards", *STATE, "left behind"], [])
    for tool in TOOLS:
        step, untouched = fine_tuning(), fine_tuning()
        torch.manual_seed(1)
        if tool.around:
            untouched.run()
        expected, before, forwards = state(untouched), left_on(untouched), Net.forwards
        torch.manual_seed(1)
        with quiet(), torch_restored() as replaced:
            try:
                list(tool.ask(step))
            except Exception as error:
                table[1].append([tool.name, kind(error), *[""] * (len(STATE) + 1)])
                continue
        found, after = state(step), left_on(step)
        left = {name: after[name] - before[name] for name in LEFT} | {"functions of torch replaced": len(replaced)}
        table[1].append(
            [
                tool.name,
                str(Net.forwards - forwards - tool.around),
                *["as before" if same(found[name], expected[name]) else "changed" for name in STATE],
                ", ".join(f"{number} {name}" for name, number in left.items() if number) or "nothing",
            ]
        )
    return table


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Address -> bytes of the distinct storages."""
    found = [tensor.untyped_storage() for tensor in tensors if isinstance(tensor, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def held(step: Step) -> tuple[int, int]:
    """Bytes that the forward leaves for backward, and of those with all else that the step holds."""
    optimizer = torch.optim.AdamW(step.model.parameters())
    there = storages([*step.model.parameters(), *step.model.buffers(), step.x, step.y])
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.update(storages([tensor]))  # it is kept alive for backward, so its address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step.forward()
    saved.update(storages([loss]))
    loss.backward()
    optimizer.step()
    activations = sum(size for address, size in saved.items() if address not in there)
    of_optimizer = [tensor for tensors in optimizer.state.values() for tensor in tensors.values()]
    there |= storages([*[parameter.grad for parameter in step.model.parameters()], *of_optimizer])
    return activations, activations + sum(there.values())


def held_by_ours(step: Step) -> tuple[int | None, int | None]:
    optimizer = torch.optim.AdamW(step.model.parameters())
    with summarycb.observe(step.model) as observation:
        step.run()
        optimizer.step()
    assert observation.summary is not None
    memory = observation.summary.memory
    kinds = (memory.parameters, memory.buffers, memory.gradients, memory.optimizer_state, memory.batch)
    known = [size for size in (*kinds, memory.saved_activations) if size is not None]
    return memory.saved_activations, sum(known) if len(known) > len(kinds) else None


def held_by_torchinfo(step: Step) -> tuple[int | str, int | str]:
    try:
        from torchinfo import summary

        found = summary(step.model, input_data=(step.x, step.y), verbose=0)
    except Exception as error:
        return kind(error), kind(error)
    passes = found.total_output_bytes
    return passes, found.total_input + passes + found.total_param_bytes


def memory(cases: Iterable[Case]) -> Table:
    sizes = ('torchinfo "Forward/backward pass size"', 'torchinfo "Estimated Total Size"')
    head = ["", "saved, truth", "summarycb", sizes[0], "whole step, truth", "summarycb", sizes[1]]
    table: Table = (head, [])
    for case in cases:
        if not case.memory:
            continue
        step, row = case.step(), [case.name]
        told = []
        for tool in (held, held_by_ours, held_by_torchinfo):
            own = copy.deepcopy(step)
            torch.manual_seed(1)
            with quiet():
                told.append(tool(own))
        for truth, *others in zip(*told, strict=True):
            row += [nbytes(truth), *[against(size, truth, nbytes) for size in others]]
        table[1].append(row)
    return table


def markdown(table: Table) -> str:
    """A table that is aligned as text, too."""
    head, rows = table
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = [f"{'':-<{width}}" if column == 0 else f"{'':-<{width - 1}}:" for column, width in enumerate(widths)]
    lines = [
        [cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(pairs)]
        for pairs in (zip(line, widths, strict=True) for line in (head, *rows))
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


INTRODUCTION = """
# summarycb and its peers

Written by `python benchmarks/peers.py --write`; `make peers` prints the same. A figure that is written out is exact, to
its last digit; any other is shown as how far it is off. A name such as `RuntimeError` is what the tool raised instead.

The truth is no tool's. `benchmarks/truth.py` derives it from each model's configuration: one MAC for each
multiply-accumulate of a matrix product, a convolution or attention, dense. It gives the published 4.089 (ResNet-50),
17.564 (ViT-B/16), 4.456 (ConvNeXt-T) and 4.491 (Swin-T) GMACs. Weights are random; the batch is 1, with 224 pixels or
128 tokens, and other sizes are in that file. Every tool gets the model in train(), in a wrapper that takes tensors by
position and returns the loss, which all of them accept.
"""

ABOUT_FORWARD = """
- **Attention**: of torch's fused operation FlopCounterMode, and Lightning with it, know the kernels of CUDA and not
  the CPU's; fvcore, calflops, thop and ptflops know none. In training BERT, GPT-2, T5 and nn.TransformerEncoder have
  dropout in it, and Swin and T5 a bias with a gradient: then torch runs single products on the CPU, and FlopCounterMode
  is exact. Lightning runs the model in eval() without gradients, ptflops in eval(), where more of it is fused.
- **Mixtral**: the experts run as `_grouped_mm`, for which none but summarycb has a formula.
- **LSTM**: one fused operation a layer, which most do not know. DeepSpeed's and calflops' rules for recurrent layers
  and for `einsum` add to their FLOPs and not to their MACs.
- **nn.TransformerEncoder** in eval() without gradients runs attention and its projections as one operation; Lightning
  does not know it, and thop meets no modules in it.
- **torchinfo** multiplies a layer's weights by the batch and not by the tokens; where the class name contains "Conv",
  as in GPT-2's `Conv1D`, by the width of the output, too. It counts biases and normalization.
- **thop** knows classes of modules: no products outside of them, and no `Conv1D`. It counts normalization and the
  element-wise work of an LSTM. **ptflops** counts biases.
- **fvcore** reads the cost of an `einsum` from NumPy's text, which is rounded. **calflops** misses the `@` in Mamba.
- **torchtnt** passes the output of each module through an autograd function, in which the tensors of a `ModelOutput`
  lose their gradient; its backward then raises.
"""

ABOUT_PARAMS = """
The truth is the elements of distinct tensors. torchinfo and torchtnt count a tied weight in each place; thop misses
parameters of modules for which it has no rule, and those outside a layer. FlopCounterMode counts none.
"""

ABOUT_STEP = """
The truth has the forward once more for each operand's gradient that is needed; the data's is not.

- **FlopCounterMode and torchtnt** ignore the groups of a convolution in the gradient of its weight.
- **calflops** multiplies the forward by 3; DeepSpeed's engine does so as well when it prints rates, not shown here.
- **summarycb on the LSTM**: the fused backward computes the gradient of the initial state as well, which nothing needs.
  summarycb counts what runs: both layers' hidden weights once more, for one token of each sequence.
"""

ABOUT_EFFECTS = """
A small CNN amid fine-tuning: in train() with one BatchNorm frozen in eval(), with dropout and accumulated gradients.
What a tool runs by itself is compared with before; what is around the real step, with the same step without it.
"""

ABOUT_MEMORY = """
Saved: the distinct storages that autograd saves (`saved_tensors_hooks`) and that of the loss, without the weights,
buffers and batch. The whole step: those, gradients and AdamW's state, too. torchinfo takes twice the output of each
layer that has parameters, and to that adds weights and inputs, but neither gradients nor an optimizer.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="What summarycb and its peers say of the same models.")
    parser.add_argument("--only", default="", help="only the models whose name contains this")
    parser.add_argument("--write", action="store_true", help="write docs/peers.md")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write keeps the results of all models; leave --only out")
    cases = [case for case in CASES if options.only.lower() in case.name.lower()]
    if not cases:
        parser.error(f"no model is named {options.only!r}; there are " + ", ".join(case.name for case in CASES))
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)  # on a busy machine several wait for each other at every operation

    tables = model_tables(cases)
    transformers = importlib.metadata.version("transformers")
    parts = [
        INTRODUCTION,
        "## MACs of the forward",
        markdown(tables[FORWARD]),
        ABOUT_FORWARD,
        "## Parameters",
        markdown(tables[PARAMS]),
        ABOUT_PARAMS,
        "## MACs of the step, forward and backward",
        markdown(tables[STEP]),
        ABOUT_STEP,
        "## What it does beside counting",
        markdown(effects()),
        ABOUT_EFFECTS,
        "## Memory",
        markdown(memory(cases)),
        ABOUT_MEMORY,
        "## How each was called",
        markdown((["", "version", "call"], [[tool.name, tool.version, tool.call] for tool in TOOLS])),
        f"On the CPU, with transformers {transformers} and Python {platform.python_version()}.",
    ]
    document = "\n\n".join(part.strip("\n") for part in parts) + "\n"
    print(document)
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(document, encoding="utf-8")
        print("written: docs/peers.md", file=sys.stderr)


if __name__ == "__main__":
    main()
