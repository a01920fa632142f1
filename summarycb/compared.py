"""view(): what is shown of a comparison, of two summaries or of more. Must not import torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from summarycb import units
from summarycb.changes import FIGURES, KINDS, Change, Delta, Figure, total
from summarycb.compare import Comparison
from summarycb.errors import SummaryError
from summarycb.tree import OUTSIDE
from summarycb.view import MOST_ROWS, Heading, Row, View, check_depth

MARKS = {
    "added": "+", "removed": "-", "moved": "↷", "wrapped": "⊂", "unwrapped": "⊃", "regrouped": "⊞", "renamed": "→",
    "replaced": "≠", "resized": "~", "changed": "~", "figures": "·", "shapes": "·",
}  # fmt: skip
SILENT = ("figures", "shapes")
"""What the same module did otherwise."""
COLUMNS = {
    "params": "Δ params",
    "forward_macs": "Δ fwd MACs",
    "backward_macs": "Δ bwd FLOPs",
    "saved_activations": "Δ saved act.",
}
HEADLINE = ("params", "forward_macs", "backward_flops", "step_flops", "saved_activations", "memory_peak")
_LEAST_WHAT = 16
WORDS = {"figures": "did other work", "shapes": "did it on other shapes"}
"""What is said of the kinds whose names are for ``only``."""
_IN_BYTES = ("saved_activations", "weight_copies", "gradients", "optimizer_state")


@dataclass(frozen=True, slots=True)
class Shown:
    """Which rows are shown, and in which order. What is not allowed raises SummaryError as it is made.

    ``depth`` is how many levels below the root are told apart; what is below is summed in one row; None is every level.
    ``sort`` is a figure, by which rows are sorted, the largest change first. ``only`` is kinds of change, or patterns
    of paths as a shell has them. ``most`` is how many rows there are at most; the rest are summed in one, and None is
    no end.
    """

    depth: int | None = None
    sort: str | None = None
    only: Sequence[str] = ()
    most: int | None = MOST_ROWS

    def __post_init__(self) -> None:
        check_depth(self.depth)
        if self.sort is not None and self.sort not in FIGURES:
            raise SummaryError(f"sort must be None or a figure, not {self.sort!r}; allowed: {', '.join(FIGURES)}")
        only = self.only if isinstance(self.only, Iterable) and not isinstance(self.only, str) else [None]
        object.__setattr__(self, "only", tuple(only))
        if not all(isinstance(one, str) and one for one in self.only):
            raise SummaryError(f"only must be a list of kinds of change or patterns of paths, not {self.only!r}")
        if self.most is not None and (type(self.most) is not int or self.most < 1):
            raise SummaryError(f"most (--rows) must be None (all rows) or an integer from 1 on, not {self.most!r}")


def view(comparison: Comparison, shown: Shown = Shown()) -> View:
    """Of two summaries what changed, row by row; of more a column for each, with the rows that differ."""
    check_patterns(comparison, shown)
    if len(comparison.summaries) == 2:
        return _of_two(comparison, shown)
    from summarycb.several import several

    return several(comparison, shown)


def check_patterns(comparison: Comparison, shown: Shown) -> None:
    """Raises :class:`SummaryError` where a pattern of ``shown.only`` fits no module of any of the summaries."""
    paths = {module.path for summary in comparison.summaries for module in summary.root.walk()} | {OUTSIDE}
    for one in shown.only:
        if one not in KINDS and not any(fnmatchcase(path, one) for path in paths):
            raise SummaryError(f"only={one!r} fits no module, and is no kind of change; these are {', '.join(KINDS)}")


def chosen(rows: Sequence[Change], shown: Shown) -> list[Change]:
    """The rows that are asked for, in that order."""
    kinds = {one for one in shown.only if one in KINDS}
    patterns = [one for one in shown.only if one not in KINDS]
    kept = [
        row
        for row in rows
        if (not kinds or row.kind in kinds)
        and (not patterns or any(fnmatchcase(edit.path, pattern) for edit in row.edits for pattern in patterns))
    ]
    if shown.sort is not None:
        sort = shown.sort
        kept.sort(key=lambda row: abs(float(row.figures[sort].delta or 0)), reverse=True)
    return kept


def _of_two(comparison: Comparison, shown: Shown) -> View:
    a, b = comparison.a, comparison.b
    rows = chosen(comparison.rows, shown)
    silent = [row for row in rows if not shown.only and row.kind in SILENT and not _adds(row)]
    told = [row for row in rows if row not in silent]
    lines = list(_at_depth(told, shown.depth)) if shown.depth is not None else [_Line.of(row) for row in told]
    if shown.most is not None and len(lines) > shown.most:
        rest = lines[shown.most - 1 :]
        lines[shown.most - 1 :] = [
            _Line(f"… {len(rest):,} more rows", "", 1, [d for line in rest for d in line.deltas])
        ]
    shown_rows = [Row("", line.label, (), (line.details, *_cells(line.deltas)), line.times) for line in lines]
    if lines:
        shown_rows.append(Row("", "= sum of the rows", (), ("", *_cells([d for line in lines for d in line.deltas]))))
    names = dict.fromkeys((a.root.type_name, b.root.type_name))
    return View(
        title=" → ".join(names),
        headline=tuple(_headline(comparison)),
        columns=(
            Heading("what", "left", "what", least=_LEAST_WHAT),
            *[Heading(title + _mark(comparison, name).strip(), key=f"delta_{name}") for name, title in COLUMNS.items()],
        ),
        rows=tuple(shown_rows),
        notes=tuple(_notes(comparison, told, silent, shown)),
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """A row in the making: ``deltas`` are of all that it stands for, each by figure."""

    label: str
    details: str
    times: int
    deltas: list[dict[str, Figure]]

    @classmethod
    def of(cls, row: Change) -> _Line:
        return cls(label(row), _details(row), row.times, [_deltas(row)])


def label(row: Change) -> str:
    """The mark of the kind and the path; of both paths, ``h.*.attn → mix``, what they begin with once."""
    before, path = row.before, row.path or "(root)"
    if before is None:
        return f"{MARKS[row.kind]} {path}"
    above = before.rpartition(".")[0]
    if before and row.path.startswith(f"{before}."):
        path = row.path[len(before) :]
    elif above and row.path.startswith(f"{above}."):
        path = row.path[len(above) + 1 :]
    return f"{MARKS[row.kind]} {before or '(root)'} → {path}"


def _details(row: Change) -> str:
    """What changed; where no column tells of it, the figures too."""
    deltas = {name: figure.delta for name, figure in row.figures.items() if figure.delta}
    if row.kind not in SILENT or not deltas.keys().isdisjoint(COLUMNS):
        return row.details
    said = [f"{title(name)} {units.signed(writer(name)(whole(delta)))}" for name, delta in deltas.items()]
    return ", ".join(filter(None, [row.details, *said]))


def _adds(row: Change) -> bool:
    """Whether it has a part in what the totals differ by."""
    return any(figure.a != figure.b for figure in row.figures.values())


def _deltas(row: Change) -> dict[str, Figure]:
    return {name: figure.delta for name, figure in row.figures.items()}


def _at_depth(rows: Sequence[Change], depth: int) -> Iterator[_Line]:
    """What is deeper than ``depth`` levels is one row with what it is in."""
    groups: dict[str, list[Change]] = defaultdict(list)
    for row in rows:
        groups[at_level(row.path, depth)].append(row)
    for path, within in groups.items():
        if len(within) == 1 and within[0].path == path:
            yield _Line.of(within[0])
            continue
        kinds: dict[str, int] = defaultdict(int)
        for row in within:
            kinds[row.kind] += row.times
        said = ", ".join(f"{count} {WORDS.get(kind, kind)}" for kind, count in kinds.items())
        yield _Line(f"~ {path or '(root)'}", said, 1, [_deltas(row) for row in within])


def at_level(path: str, depth: int) -> str:
    """What a module is in, or it itself, so many levels below the root."""
    return ".".join(path.split(".")[:depth]) if path != OUTSIDE else OUTSIDE


def _cells(deltas: Sequence[dict[str, Figure]]) -> tuple[str, ...]:
    sums = {name: total([each[name] for each in deltas]) for name in COLUMNS}
    backward = sums["backward_macs"]
    return (
        units.signed(units.exact(whole(sums["params"]))),
        units.signed(units.count(whole(sums["forward_macs"]))),
        units.signed(units.count(whole(None if backward is None else 2 * backward))),
        units.signed(units.nbytes(whole(sums["saved_activations"]))),
    )


def whole(value: Figure) -> int | None:
    """For showing: what is for one sample or token is rounded."""
    return None if value is None else round(value)


def percent(figure: Delta) -> str:
    """By how much of what there was a figure changed; both are known, and it was not 0."""
    assert figure.delta is not None
    assert figure.a
    share = float(100 * figure.delta / figure.a)
    if figure.delta and abs(share) < 0.05:
        return f"<0.1 % {'more' if share > 0 else 'less'}"
    return f"{share:+,.1f} %"


def title(name: str) -> str:
    """A total's name as it is shown."""
    words = name.removeprefix("memory_") if name in ("memory_peak", "memory_optimizer_state") else name
    return words.replace("_", " ").replace("macs", "MACs").replace("flops", "FLOPs")


def writer(name: str) -> units.Writer:
    """How a total is written: elements with all digits, bytes and work by their size."""
    if "bytes" in name or name.startswith("memory_") or name in _IN_BYTES:
        return units.nbytes
    return units.exact if "params" in name or name == "buffers" else units.count


def _headline(comparison: Comparison) -> Iterator[tuple[str, tuple[str, ...]]]:
    if comparison.names != ("1", "2"):
        yield "compared", (" → ".join(comparison.names),)
    if comparison.differences:
        yield "differs", tuple(map(str, comparison.differences))
    if comparison.per is not None:
        yield "per", (f"{comparison.per}: work and saved activations",)
    for name in headline_names(comparison):
        figure, write = comparison.metrics[name], writer(name)
        change = figure.delta
        relative = f", {percent(figure)}" if change and figure.a else ""
        values = [write(whole(value)) for value in (figure.a, figure.b)]
        said = f"{values[0]} → {values[1]} ({units.signed(write(whole(change)))}{relative})"
        yield title(name), (f"{values[0] if change == 0 else said}{_mark(comparison, name)}",)


def headline_names(comparison: Comparison) -> tuple[str, ...]:
    """The totals that are told first."""
    return (*HEADLINE, *_besides(comparison))


def _besides(comparison: Comparison) -> Iterator[str]:
    """The totals that changed in another way than those beside them.

    Of what is frozen, of another optimizer, and of what runs again in backward, as with checkpoints.
    """
    params, trainable, state, step, hardware = (
        comparison.metrics[name].delta
        for name in ("params", "trainable_params", "memory_optimizer_state", "step_flops", "hardware_flops")
    )
    if trainable != params:
        yield "trainable_params"
    if state and not params:
        yield "memory_optimizer_state"
    if hardware and not step:
        yield "hardware_flops"


def _mark(comparison: Comparison, name: str) -> str:
    return " *" if name in comparison.incomparable else ""


def _notes(comparison: Comparison, told: Sequence[Change], silent: Sequence[Change], shown: Shown) -> Iterator[str]:
    unchanged, modules = comparison.unchanged, sum(1 for _ in comparison.a.root.walk())
    if not comparison.rows:
        yield "nothing changed"
    else:
        alone = "; a row of + or - has all that is in it, another its modules without their children"
        same = f"{unchanged:,} of {modules:,} module{'s' * (modules > 1)} {'is' if unchanged == 1 else 'are'} unchanged"
        yield same + (alone if told and shown.depth is None else "")
    marks: dict[str, list[str]] = defaultdict(list)
    for kind in [kind for kind in KINDS if any(row.kind == kind for row in told)]:
        marks[MARKS[kind]].append(WORDS.get(kind, kind))
    if marks and shown.depth is None:
        yield ", ".join([f"{mark} {' or '.join(words)}" for mark, words in marks.items()])
    if not comparison.comparable:
        conditions = dict.fromkeys(c for names in comparison.incomparable.values() for c in names)
        yield f"* says nothing of the model alone, because it changes with: {', '.join(conditions)}"
        if comparison.per is None and ("input" in conditions or "forwards in the step" in conditions):
            yield "if the batch alone differs, per='sample' compares the work for one sample"
    if silent:
        count = sum(row.times for row in silent)
        more = f"{count:,} more module{'s' * (count > 1)}"
        yield f"{more} did the same work on other shapes or dtypes (--only shapes, only=['shapes'] in Python)"
    if shown.only:
        yield f"only the rows that were asked for are shown: {', '.join(shown.only)}"
    if shown.depth is not None:
        yield "rows below the depth are summed"
