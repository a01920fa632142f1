"""What a tracker is handed: a summary with its renderings, and the names under which totals are written.

Must not import torch.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

from summarycb.exits import native
from summarycb.specs import spec_text
from summarycb.tree import ModelSummary, ModuleSummary
from summarycb.units import clean
from summarycb.view import Selection, select

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from summarycb.compare import Comparison
    from summarycb.render.exports import Cell

PREFIX = "model_summary"
"""Every metric, tag and file that is written to a tracker begins with this."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A total that every tracker gets as ``model_summary/<name>``, where it is known; the names do not change."""

    name: str
    unit: Literal["elements", "MACs", "FLOPs", "bytes"]
    of: Callable[[ModelSummary], int | None]
    text: str


def _memory(figure: str) -> Callable[[ModelSummary], int | None]:
    return lambda summary: getattr(summary.memory, figure)


def _over_ranks(place: int) -> Callable[[ModelSummary], int | None]:
    def of(summary: ModelSummary) -> int | None:
        ranks = summary.over_ranks("peak")
        return None if ranks is None else ranks[place].memory.peak

    return of


METRICS = (
    Metric("total_params", "elements", lambda s: s.total_params, "parameters, shared ones once"),
    Metric("trainable_params", "elements", lambda s: s.trainable_params, "those with requires_grad"),
    Metric("total_buffers", "elements", lambda s: s.total_buffers, "buffers"),
    Metric("forward_macs", "MACs", lambda s: s.forward_macs, "multiply-accumulates of the forward, of the whole batch"),
    Metric("forward_flops", "FLOPs", lambda s: s.forward_flops, "2 for each MAC of the forward"),
    Metric("backward_flops", "FLOPs", lambda s: s.backward_flops, "2 for each MAC of the backward"),
    Metric("step_flops", "FLOPs", lambda s: s.step_flops, "forward, backward and optimizer, nothing computed again"),
    Metric("hardware_flops", "FLOPs", lambda s: s.hardware_flops, "what ran, recomputation included"),
    Metric("memory_parameters_bytes", "bytes", _memory("parameters"), "parameters"),
    Metric("memory_buffers_bytes", "bytes", _memory("buffers"), "buffers"),
    Metric("memory_gradients_bytes", "bytes", _memory("gradients"), "gradients at the end of the step"),
    Metric("memory_optimizer_state_bytes", "bytes", _memory("optimizer_state"), "the optimizers' state"),
    Metric("memory_saved_activations_bytes", "bytes", _memory("saved_activations"), "what the forward saved"),
    Metric("memory_weight_copies_bytes", "bytes", _memory("weight_copies"), "copies of weights, as of autocast"),
    Metric("memory_batch_bytes", "bytes", _memory("batch"), "the inputs"),
    Metric("memory_peak_bytes", "bytes", _memory("peak"), "the most that tensors held at once"),
    Metric("memory_allocator_peak_bytes", "bytes", _memory("allocator_peak"), "the most that the allocator held"),
    Metric("all_ranks_flops", "FLOPs", lambda s: s.all_ranks_flops if s.ranks else None, "the step of all processes"),
    Metric("ranks_memory_peak_min_bytes", "bytes", _over_ranks(0), "the lowest peak of a process"),
    Metric("ranks_memory_peak_max_bytes", "bytes", _over_ranks(1), "the highest peak of a process"),
)


def _inputs(summary: ModelSummary) -> str | None:
    inputs = summary.entry.inputs
    return None if inputs is None else spec_text(inputs)


IDENTITY: dict[str, Callable[[ModelSummary], str | int | None]] = {
    "model": lambda s: s.root.type_name,
    "structure": lambda s: structure(s),
    "inputs": _inputs,
    "device": lambda s: s.environment.device,
    "precision": lambda s: s.environment.precision,
    "optimizer": lambda s: s.environment.optimizer,
    "framework": lambda s: s.environment.framework,
    "strategy": lambda s: s.environment.strategy,
    "world_size": lambda s: s.environment.world_size,
    "torch": lambda s: s.environment.torch,
    "summarycb": lambda s: s.environment.summarycb,
}
"""Each text of :attr:`Report.identity`."""


@dataclass(frozen=True)
class Report:
    """A summary with its renderings, each made once and when first asked for; an adapter hands them over as is."""

    summary: ModelSummary
    selection: Selection = field(default_factory=Selection)
    comparison: Comparison | None = None
    """With the baseline that the run was given."""

    @cached_property
    def metrics(self) -> dict[str, int]:
        """The totals of :data:`METRICS` by full name (``model_summary/forward_macs``); unknown ones are left out."""
        figures = {f"{PREFIX}/{metric.name}": metric.of(self.summary) for metric in METRICS}
        return {name: value for name, value in figures.items() if value is not None}

    @cached_property
    def identity(self) -> dict[str, str]:
        """Which model this is and under what it ran, as short texts by full name; what is unknown is left out.

        ``model_summary/structure`` is equal for equal architectures: 16 hexadecimal digits of a SHA-256 over path,
        type, settings, parameters and buffers of every module. ``model_summary/baseline`` is that of the baseline.
        """
        facts = {name: of(self.summary) for name, of in IDENTITY.items()}
        if self.comparison is not None:
            facts["baseline"] = structure(self.comparison.a)
        texts = {f"{PREFIX}/{name}": clean(str(fact)) for name, fact in facts.items() if fact}
        return {name: _bounded(text, whole=text) for name, text in texts.items()}

    @property
    def compared(self) -> str:
        """The comparison with the baseline, in Markdown, or that there is none: it takes the place of an older one."""
        none = "The newest model summary was compared with no baseline.\n"
        return none if self.comparison is None else self.comparison.to_markdown()

    @cached_property
    def leaves(self) -> dict[str, str]:
        """Each module that has no children, or parameters of its own, in a line by path: what a diff of runs is of.

        A line that leaves something out ends with eight digits of a hash of all.
        """
        return {
            module.path: _line(module)
            for module in self.summary.root.walk()
            if module.shared_with is None and (module.parameters or not module.children)
        }

    @cached_property
    def table(self) -> list[dict[str, Cell]]:
        """One record a module, in definition order; exact numbers, None where unknown."""
        from summarycb.render.exports import records

        return records(self.summary)

    @cached_property
    def text(self) -> str:
        """The hierarchy as the terminal shows it, without colours."""
        from summarycb.render.terminal import to_text  # rich, which writing to a tracker need not have

        return to_text(select(self.summary, self.selection))

    @cached_property
    def html(self) -> str:
        """The page, which needs no other file and no network, and holds the whole summary."""
        return self.summary.to_html()

    @cached_property
    def json(self) -> str:
        """The whole summary; what a tracker stores of it must come back byte for byte."""
        return self.summary.to_json()

    @cached_property
    def images(self) -> dict[str, bytes]:
        """PNG files by name: memory through the step and what each block costs; none where matplotlib is missing."""
        plots: dict[str, Callable[[], Figure]] = {"memory": self.summary.plot_memory}
        plots |= {metric: partial(self.summary.plot_costs, metric=metric) for metric in _PLOTTED}
        found: dict[str, bytes] = {}
        for name, plot in plots.items():
            file = io.BytesIO()
            try:
                with native() as in_time:
                    if not in_time:
                        return found
                    plot().savefig(file, format="png", dpi=150)
            except ModuleNotFoundError:
                return {}
            except Exception:  # nothing is known of it, or it cannot be drawn: no reason to lose all else
                continue
            found[name] = file.getvalue()
        return found


_PLOTTED = ("forward_macs", "params", "saved_activations")
_MOST_TEXT = 1_000
_MOST_NAMED = 8


def structure(summary: ModelSummary) -> str:
    """16 hexadecimal digits that two summaries share when their architectures are the same."""
    modules = [
        (
            *(module.path, module.type_name, module.config, module.shared_with),
            [(p.name, p.shape, p.dtype, p.trainable, p.shared_with) for p in module.parameters],
            [(b.name, b.shape, b.dtype, b.persistent, b.shared_with) for b in module.buffers],
        )
        for module in summary.root.walk()
    ]
    return hashlib.sha256(json.dumps(modules).encode()).hexdigest()[:16]


def _line(module: ModuleSummary) -> str:
    """``Linear(in_features=4, out_features=2, bias=True) · weight [2, 4], bias [2] float32 · frozen``."""
    held = module.parameters
    dtypes = {p.dtype for p in held}
    named = [f"{p.name} {p.shape_text}" + (f" {p.dtype}" if len(dtypes) > 1 else "") for p in held]
    frozen = [p.name for p in held if not p.trainable]

    def line(most: int) -> str:
        facts = [
            f"{module.type_name}({module.config})",
            *([" ".join([_listed(named, most), *(dtypes if len(dtypes) == 1 else [])])] if held else []),
            *(["frozen" if len(frozen) == len(held) else f"frozen: {_listed(frozen, most)}"] if frozen else []),
        ]
        return clean(" · ".join(facts))

    return _bounded(line(_MOST_NAMED), whole=line(len(held)))


def _listed(names: list[str], most: int) -> str:
    return ", ".join(names[:most] + [f"{len(names) - most} more"] * (len(names) > most))


def _bounded(text: str, whole: str) -> str:
    """``text``, which is ``whole`` or a part of it; where that says more, the first digits of its hash are the end."""
    if text == whole and len(text) <= _MOST_TEXT:
        return text
    mark = f" · #{hashlib.sha256(whole.encode(errors='surrogatepass')).hexdigest()[:8]}"
    return text[: _MOST_TEXT - len(mark)] + mark
