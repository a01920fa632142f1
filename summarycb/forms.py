"""What a summary is written as: the methods ``to_<form>``, and which file name holds which form. Must not import torch.

What makes a form is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from summarycb.errors import SummaryError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from summarycb.tree import ModelSummary

FORMATS = {
    "json": ".json",
    "html": ".html",
    "text": ".txt",
    "markdown": ".md",
    "csv": ".csv",
    "svg": ".svg",
    "dot": ".dot",
    "mermaid": ".mmd",
    "speedscope": ".speedscope.json",
}
"""Each form by the suffix of its files; the summary's method ``to_<form>`` makes it."""
COMPARED = ("text", "markdown", "html", "json")
"""Those that a comparison has too."""


def method(form: str) -> Callable[..., str]:
    """The summary's method that makes ``form``, one of ``FORMATS``."""
    made: Callable[..., str] = getattr(Forms, f"to_{form}")
    return made


def form_of(path: Path, forms: Collection[str] = FORMATS.keys()) -> str:
    """Which of ``forms`` a file of this name holds; SummaryError where the suffix is of none."""
    fitting = [form for form in forms if path.name.endswith(FORMATS[form])]
    if not fitting:
        allowed = ", ".join([FORMATS[form] for form in forms])
        raise SummaryError(f"cannot save to {path.name!r}: the file name must end in {allowed}")
    return max(fitting, key=lambda form: len(FORMATS[form]))


def write(text: str, target: Path) -> Path:
    """One line break ends the file. Half a surrogate pair in a name is written as its escape, which JSON reads back.

    The OSError of a file that cannot be written says in its ``strerror`` what was attempted, too.
    """
    text = text if text.endswith("\n") else f"{text}\n"
    try:
        target.write_bytes(text.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        nowhere = isinstance(error, FileNotFoundError) and not target.parent.exists()
        reason = f"the folder {target.parent} does not exist" if nowhere else error.strerror
        raise OSError(error.errno, f"cannot write {target}: {reason}") from None
    return target


class Forms:
    """The part of a :class:`~summarycb.tree.ModelSummary` that writes it, told apart from its figures."""

    @property
    def _summary(self) -> ModelSummary:
        return cast("ModelSummary", self)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(
        self,
        *,
        depth: int | None = 3,
        columns: Sequence[str] | None = None,
        width: int = 100,
        ascii_only: bool = False,
        sort: str | None = None,
        top: int | None = None,
        filter: str | None = None,
        metric: str = "forward_macs",
        fold: bool = True,
    ) -> str:
        """The summary as plain text, at most ``width`` columns wide; ``depth=None`` shows every module.

        Where blocks that repeat are folded, levels that would make more than 30 rows are closed. What the arguments
        mean is in :class:`~summarycb.view.Selection`.
        """
        from summarycb.render.terminal import to_text
        from summarycb.view import Selection, select

        view = select(self._summary, Selection(depth, columns, sort, top, filter, metric, fold))
        return to_text(view, width=width, ascii_only=ascii_only)

    def to_markdown(
        self,
        *,
        depth: int | None = 3,
        columns: Sequence[str] | None = None,
        sort: str | None = None,
        top: int | None = None,
        filter: str | None = None,
        metric: str = "forward_macs",
        fold: bool = True,
    ) -> str:
        """The summary as a Markdown table with its headline and notes; the arguments are those of :meth:`to_text`."""
        from summarycb.render.markdown import to_markdown
        from summarycb.view import Selection, select

        return to_markdown(select(self._summary, Selection(depth, columns, sort, top, filter, metric, fold)))

    def to_html(
        self,
        *,
        depth: int | None = 3,
        columns: Sequence[str] | None = None,
        metric: str = "forward_macs",
        fold: bool = True,
    ) -> str:
        """The summary as a page in one file, which :func:`summarycb.load` reads too.

        All modules are in its tree, of which ``depth`` levels are open at first; ``metric`` is what its bars show at
        first. The arguments mean what they mean in :class:`~summarycb.view.Selection`.
        """
        from summarycb.render.html import to_html
        from summarycb.view import Selection

        return to_html(self._summary, Selection(depth, columns, metric=metric, fold=fold))

    def _repr_html_(self) -> str:
        """What a notebook shows: the headline and the tree, without a script."""
        from summarycb.render.html import to_fragment

        return to_fragment(self._summary)

    def to_csv(self, *, outside: bool = False) -> str:
        """One line a module, as in :meth:`to_dataframe`; empty where unknown.

        Names are written as they are, so that they come back. A spreadsheet takes one that begins with ``=``, ``+``,
        ``-`` or ``@`` for a formula: import the columns of a model that is not your own as text.
        """
        from summarycb.render.exports import to_csv

        return to_csv(self._summary, outside=outside)

    def to_dataframe(self, *, outside: bool = False) -> DataFrame:
        """One row a module, index = path, real dtypes (``Int64`` with NA where unknown). Needs pandas.

        ``outside=True`` adds the row ``(outside)``, so that the ``own_`` columns sum to the step's figures.
        """
        from summarycb.render.frame import to_dataframe

        return to_dataframe(self._summary, outside=outside)

    def to_speedscope(self) -> str:
        """Flame graphs of the module tree as JSON for https://www.speedscope.app: params, MACs, saved activations."""
        from summarycb.render.exports import to_speedscope

        return to_speedscope(self._summary)

    def plot_costs(self, *, metric: str = "forward_macs", depth: int | None = None) -> Figure:
        """A figure with a bar for each block, in the colours of the types of module that are in it. Needs matplotlib.

        ``metric`` is a column of figures that add up. A block is ``depth`` levels below the root, where a module that
        is never called, as a ``ModuleList``, is no level; None is the first level that has some.
        """
        from summarycb.render.plot import plot_costs

        return plot_costs(self._summary, metric=metric, depth=depth)

    def plot_memory(self) -> Figure:
        """A figure of the bytes that were alive through the step, by kind, with the peak. Needs matplotlib."""
        from summarycb.render.plot import plot_memory

        return plot_memory(self._summary)

    def to_svg(
        self,
        *,
        depth: int | None = 2,
        parameters: bool = False,
        fold: bool = True,
        layout: Literal["fast-sugiyama", "dot"] = "fast-sugiyama",
    ) -> str:
        """The dataflow drawn as SVG. Needs the ``report`` extra, or with ``layout="dot"`` graphviz's program.

        ``depth`` is how many calls within one another are told apart, and None all. What repeats is drawn once, unless
        ``fold`` is off. ``parameters`` draws them too.
        """
        from summarycb.graph import contract
        from summarycb.render.graph import to_svg

        return to_svg(contract(self._summary, depth=depth, fold=fold, parameters=parameters), layout=layout)

    def to_dot(self, *, depth: int | None = 2, parameters: bool = False, fold: bool = True) -> str:
        """The dataflow in graphviz's language; the arguments are those of :meth:`to_svg`."""
        from summarycb.graph import contract
        from summarycb.render.graph import to_dot

        return to_dot(contract(self._summary, depth=depth, fold=fold, parameters=parameters))

    def to_mermaid(self, *, depth: int | None = 2, parameters: bool = False, fold: bool = True) -> str:
        """The dataflow as Mermaid, which GitHub draws in Markdown; the arguments are those of :meth:`to_svg`."""
        from summarycb.graph import contract
        from summarycb.render.graph import to_mermaid

        return to_mermaid(contract(self._summary, depth=depth, fold=fold, parameters=parameters))

    def to_json(self) -> str:
        """The tree itself as JSON, with its ``schema_version``; :meth:`from_json` gives an equal summary back."""
        from summarycb.serialize import dumps

        return dumps(self._summary)

    @staticmethod
    def from_json(text: str) -> ModelSummary:
        """The summary that :meth:`to_json` wrote. Raises :class:`SummaryError` for anything else."""
        from summarycb.serialize import loads

        return loads(text)

    def save(self, path: str | Path) -> Path:
        """Write to ``path`` what its suffix says, and return it.

        ``.json`` is the summary itself and ``.html`` a page that holds it: :func:`summarycb.load` reads both. ``.txt``,
        ``.md``, ``.csv`` and ``.speedscope.json`` are renderings, and ``.svg``, ``.dot`` and ``.mmd`` its dataflow.
        """
        target = Path(path)
        return write(method(form_of(target))(self._summary), target)
