"""What an operation does with data, by its schema: which tensors it reads, makes and writes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch


class Kind:
    """What an operation does with data, by its schema."""

    def __init__(self, func: Any) -> None:
        self.func = func  # kept, so that its id remains its own
        schema = getattr(func, "_schema", None)
        arguments = [] if schema is None else schema.arguments
        name = str(func) if schema is None else schema.name.partition("::")[2]
        self._writes = [
            argument.name if argument.kwarg_only else place
            for place, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        self._overwrites = frozenset(
            argument.name if argument.kwarg_only else place
            for place, argument in enumerate(arguments)
            if argument.is_out or (place == 0 and name in _OVERWRITE)
        )
        returns = [] if schema is None else schema.returns
        self.name = _NAMES.get(name) or name.removeprefix("_").removeprefix("native_").removesuffix("_forward")
        if "scaled_dot_product" in name:
            self.name = "sdpa"
        aliases = bool(returns) and not self._writes and all(returned.alias_info is not None for returned in returns)
        lifts = name == "lift_fresh"  # of torch.tensor, whose own making is not seen
        self.views = (aliases and not lifts) or name in ("_unsafe_view", "_reshape_alias")
        self.copies = name in ("clone", "_to_copy", "copy_")
        self.ones = name == "ones_like"
        self.makes = (
            lifts
            or name.endswith("_like")
            or name.startswith("new_")
            or (schema is not None and not any("Tensor" in str(argument.type) for argument in arguments))
        )

    def reads(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """The tensors whose values it uses."""
        if self.makes:
            return []
        if self._overwrites:
            args = tuple([value for place, value in enumerate(args) if place not in self._overwrites])
            kwargs = {name: value for name, value in kwargs.items() if name not in self._overwrites}
        return operands((*args, *kwargs.values()) if kwargs else args)

    def writes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> list[torch.Tensor]:
        """The tensors that it has made or written to, each once."""
        made = [out] if isinstance(out, torch.Tensor) else operands((out,))
        if self._writes:
            written = [args[p] if isinstance(p, int) else kwargs[p] for p in self._writes if _given(p, args, kwargs)]
            made += [tensor for tensor in operands(written) if all(tensor is not other for other in made)]
        return made


_NAMES = {
    "constant_pad_nd": "pad",
    "addmm": "linear",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "nll_loss_forward": "nll_loss",
    "nll_loss2d_forward": "nll_loss",
    "convolution": "conv",
}


_OVERWRITE = {
    *("copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "exponential_"),
    *("bernoulli_", "cauchy_", "geometric_", "log_normal_"),
}
"""Of what they write to they read nothing."""


def _given(place: int | str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return place < len(args) if isinstance(place, int) else place in kwargs


def operands(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among the arguments or results of an operation."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += operands(value)
        elif isinstance(value, Mapping):
            found += operands(value.values())
    return found
