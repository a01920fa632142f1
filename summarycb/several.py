"""several(): what is not the same in all of three or more runs, a column for each. Must not import torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from summarycb.changes import Change, Edit, fitting, numberless, of_one, pattern, total
from summarycb.compare import Comparison
from summarycb.compared import MARKS, SILENT, WORDS, Shown, at_level, chosen, headline_names, title, whole, writer
from summarycb.details import settings, settings_text
from summarycb.tree import ModuleSummary
from summarycb.view import Heading, Row, View

SAME, ABSENT = "=", "-"
_LEAST_TEXT = 6


@dataclass(eq=False)
class _Line:
    """A row in the making: modules of the first run whose paths differ in numbers alone, and that all runs treat alike.

    A cell is None where the module was within one that is gone: it is in the row of that. With a ``mark`` they are only
    new, or gone, in some runs: how many is said.
    """

    what: str
    place: float
    cells: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    edits: list[Sequence[Sequence[Edit]]] = field(default_factory=list)
    mark: str = ""

    def fits(self, other: _Line) -> bool:
        """Whether it says nothing else."""
        return all(None in (x, y) or x == y for x, y in zip(self.cells, other.cells, strict=True))

    def take(self, other: _Line) -> None:
        """Both as one row."""
        self.cells = [y if x is None else x for x, y in zip(self.cells, other.cells, strict=True)]
        self.paths += other.paths
        self.edits += other.edits

    def row(self, fit: Callable[[Sequence[str]], int]) -> Row:
        """As it is shown; ``fit`` is :func:`summarycb.changes.fitting` of the first run."""
        before = 0 if self.mark == MARKS["added"] else len(self.paths)
        whole = fit(self.paths) == before
        path = pattern(self.paths, whole) or "(root)"
        if not self.mark:
            cells = [ABSENT if cell is None else cell for cell in self.cells]
            return Row("", path, (), (self.what, *cells), len(self.paths))
        counts = [sum(map(len, edits)) for edits in zip(*self.edits, strict=True)]
        cells = [
            ABSENT if self.mark == MARKS["added"] else "",
            *[f"{self.mark}{count}" if count else SAME for count in counts],
        ]
        return Row("", f"{self.mark} {path}", (), (self.what, *cells))

    def size(self, figure: str) -> float:
        """The largest change of a figure in any run."""
        by_run = zip(*self.edits, strict=True)
        sums = [total([edit.figures[figure].delta for each in edits for edit in each]) for edits in by_run]
        return max([abs(float(change or 0)) for change in sums])


def several(comparison: Comparison, shown: Shown) -> View:
    """The conditions, totals and modules that differ, each with what all runs have there."""
    pairs = comparison.against
    numbers = [f"[{number}]" for number in range(1, len(pairs) + 2)]
    totals = list(_totals(pairs))
    asked = [[row for row in chosen(pair.rows, shown) if shown.only or row.kind not in SILENT] for pair in pairs]
    if shown.depth is None:
        lines = sorted(_lines(comparison, asked), key=lambda line: line.place)
        if (sort := shown.sort) is not None:
            lines.sort(key=lambda line: line.size(sort), reverse=True)
        fit = fitting(comparison.a.root, numberless)
        rows = [line.row(fit) for line in lines]
    else:
        rows = list(_at_depth(asked, shown.depth))
    if shown.most is not None and len(rows) > shown.most:
        rest = len(rows) - shown.most + 1
        rows[shown.most - 1 :] = [Row("", f"… {rest:,} more rows", (), ("",) * (len(numbers) + 1))]
    rows = [*_conditions(pairs), *totals, *rows]
    least = max([len(cell) for row in totals for cell in row.cells], default=0)
    per = [("per", (f"{comparison.per}: work and saved activations",))] if comparison.per is not None else []
    return View(
        title=f"{comparison.a.root.type_name}, {len(comparison.summaries)} runs",
        headline=(*[(f"[{n}]", (name,)) for n, name in enumerate(comparison.names, start=1) if name != str(n)], *per),
        columns=(
            Heading("what", "left", least=_LEAST_TEXT),
            *[Heading(number, "left", least=max(least, _LEAST_TEXT)) for number in numbers],
        ),
        rows=tuple(rows),
        notes=tuple(_notes(pairs, shown)) if rows or any(pair.rows for pair in pairs) else ("nothing changed",),
    )


def _conditions(pairs: Sequence[Comparison]) -> Iterator[Row]:
    conditions: dict[str, list[str]] = {}
    for number, pair in enumerate(pairs, start=1):
        for difference in pair.differences:
            cells = conditions.setdefault(difference.condition, [difference.a, *[SAME] * len(pairs)])
            cells[number] = difference.b
    for condition, cells in conditions.items():
        yield Row("", condition, (), ("", *cells))


def _totals(pairs: Sequence[Comparison]) -> Iterator[Row]:
    for name in dict.fromkeys([name for pair in pairs for name in headline_names(pair)]):
        values = [pairs[0].metrics[name].a, *[pair.metrics[name].b for pair in pairs]]
        if len(set(values)) > 1:
            cells = [writer(name)(whole(value)) for value in values]
            marks = ["", *[" *" * (name in pair.incomparable) for pair in pairs]]
            yield Row("", title(name), (), ("", *[f"{cell}{mark}" for cell, mark in zip(cells, marks, strict=True)]))


def _lines(comparison: Comparison, asked: Sequence[Sequence[Change]]) -> Iterator[_Line]:
    """A row for each module of the first run, or pattern, of which something is asked for; and for what is new."""
    silent = any(row.kind in SILENT for rows in asked for row in rows)
    told = {id(edit.a) for rows in asked for row in rows for edit in row.edits if edit.a is not None}
    by_run: list[dict[int, list[Edit]]] = [defaultdict(list) for _ in asked]
    for found, pair in zip(by_run, comparison.against, strict=True):
        for edit in [edit for row in pair.rows for edit in row.edits]:
            if silent or edit.kind not in SILENT:
                # of what was gathered at the top of a subtree the top itself may be none
                for one in {id(one) for one in (edit.a, *edit.modules_a) if one is not None}:
                    found[one].append(edit)
    lines: dict[tuple[str, str], list[_Line]] = defaultdict(list)
    alone: dict[tuple[str, str, str], _Line] = {}
    modules = list(comparison.a.root.walk())
    for place, module in enumerate(modules):
        if id(module) not in told:
            continue
        edits = [found.get(id(module), []) for found in by_run]
        gone = [edit for each in edits for edit in each]
        if all(edit.kind == "removed" and edit.a is module for edit in gone):
            key = ("-", numberless(module.path), _size(module, gone[0].modules_a))
            line = alone.setdefault(key, _Line(key[2], place, mark="-"))
            line.paths.append(module.path)
            line.edits.append(edits)
        else:
            line = _line(module, edits, place)
            lines[numberless(module.path), line.what].append(line)
    ends = _ends(modules)
    for run, rows in enumerate(asked):
        for edit in [edit for row in rows for edit in row.edits if edit.kind == "added"]:
            assert edit.b is not None
            key = ("+", numberless(edit.path), _size(edit.b, edit.modules_b))
            if key not in alone:
                alone[key] = _Line(key[2], _after(edit.path, ends), mark="+")
            alone[key].paths.append(edit.path)
            alone[key].edits.append([[edit] if other == run else [] for other in range(len(asked))])
    yield from alone.values()
    for alike in lines.values():
        yield from _together(alike)


def _size(module: ModuleSummary, modules: Sequence[ModuleSummary]) -> str:
    return module.type_name + (f" ({len(modules)} modules)" if len(modules) > 1 else "")


def _together(lines: Sequence[_Line]) -> list[_Line]:
    """As rows: each with the first row that says nothing else, sought among those alike in the run that has fewest."""
    rows: list[_Line] = []
    having: dict[tuple[int, str | None], dict[float, _Line]] = defaultdict(dict)
    for line in lines:
        known = [(having[run, cell], having[run, None]) for run, cell in enumerate(line.cells) if cell is not None]
        same, unknown = min(known, key=lambda found: len(found[0]) + len(found[1]))
        fitting = [row for row in (*same.values(), *unknown.values()) if row.fits(line)]
        if fitting:
            row = min(fitting, key=lambda row: row.place)
            row.take(line)
        else:
            rows.append(row := line)
        for run, cell in enumerate(row.cells):
            having[run, cell][row.place] = row
    return rows


def _ends(modules: Sequence[ModuleSummary]) -> dict[str, int]:
    """The place of the last module within each, itself if there is none."""
    ends: dict[str, int] = {}
    for place, module in reversed([*enumerate(modules)]):
        end = ends.setdefault(module.path, place)
        ends.setdefault(module.path.rpartition(".")[0], end)
    return ends


def _after(path: str, ends: dict[str, int]) -> float:
    """Behind all that is in what a new module is in."""
    above = path.rpartition(".")[0]
    while above not in ends:
        above = above.rpartition(".")[0]
    return ends[above] + 0.5


def _line(module: ModuleSummary, edits: Sequence[Sequence[Edit]], place: int) -> _Line:
    """Its type and settings that differ, as each run has them, and in words what else differs from the first."""
    own = [[edit for edit in each if edit.a is module] for each in edits]
    turned = [{key: both for edit in each for key, both in _turned(edit).items()} for each in own]
    first = {key: values[0] for each in turned for key, values in each.items()}
    cells: list[str | None] = [", ".join(first.values())]
    for each, here, now in zip(edits, own, turned, strict=True):
        values = ", ".join([now[key][1] if key in now else value for key, value in first.items()]) if now else ""
        if any(edit.kind in ("removed", "unwrapped") for edit in each if edit.a is not module):
            cells.append(None)
        elif not each:
            cells.append(SAME)
        else:
            said = [*map(_where, here), values, *map(_else, here)]
            said += [of_one(edit.details) for edit in each if edit.a is not module]
            cells.append("; ".join(filter(None, said)) or MARKS[each[0].kind])
    what = ", ".join([key for key in first if isinstance(key, str)]) or (module.type_name if first else "")
    return _Line(what, place, cells, [module.path], [own])


def _turned(edit: Edit) -> dict[str | int, tuple[str, str]]:
    if edit.a is None or edit.b is None:
        return {}
    if edit.a.type_name != edit.b.type_name:
        return {"type": (edit.a.type_name, edit.b.type_name)}
    differing = settings(edit.a.config, edit.b.config).items()
    return {key: (ABSENT if a is None else a, ABSENT if b is None else b) for key, (a, b) in differing}


def _where(edit: Edit) -> str:
    if edit.kind == "removed":
        return ABSENT
    if edit.a is None or edit.kind not in ("renamed", "moved", "regrouped", "wrapped", "unwrapped"):
        return ""
    before, path = edit.a.path, edit.path
    if edit.kind == "renamed":
        path = path.rpartition(".")[2]
    elif before and edit.kind == "wrapped" and path.startswith(f"{before}."):
        path = path[len(before) :]
    elif numberless(before) != before:
        path = numberless(path)
    return f"{MARKS[edit.kind]} {path}"


def _else(edit: Edit) -> str:
    """What the words of a change say besides the type and the settings."""
    if edit.a is None or edit.b is None:
        return ""
    known = (f"{edit.a.type_name} → {edit.b.type_name}", settings_text(edit.a.config, edit.b.config))
    return "; ".join([said for said in edit.details.split("; ") if said not in known])


def _at_depth(asked: Sequence[Sequence[Change]], depth: int) -> Iterator[Row]:
    """How many changes of each kind there are within what is at this depth."""
    found: dict[str, list[Counter[str]]] = defaultdict(lambda: [Counter() for _ in asked])
    for run, rows in enumerate(asked):
        for edit in [edit for row in rows for edit in row.edits]:
            found[at_level(edit.path if edit.a is None else edit.a.path, depth)][run][edit.kind] += 1
    for path, kinds in found.items():
        told = [[f"{count} {WORDS.get(kind, kind)}" for kind, count in each.items()] for each in kinds]
        yield Row("", path or "(root)", (), ("", "", *[", ".join(each) or SAME for each in told]))


def _notes(pairs: Sequence[Comparison], shown: Shown) -> Iterator[str]:
    yield "rows that are the same in all runs are not shown; = is as in [1], - is not there, +2 are two more"
    runs: dict[str, list[str]] = defaultdict(list)
    for number, pair in enumerate(pairs, start=2):
        for condition in dict.fromkeys(c for names in pair.incomparable.values() for c in names):
            runs[condition].append(f"[{number}]")
    if runs:
        told = ", ".join([f"{condition} {' '.join(numbers)}" for condition, numbers in runs.items()])
        yield f"* says nothing of the model alone, because it changes with: {told}"
    if shown.only or shown.depth is not None:
        yield "not all rows are shown" if shown.only else "rows below the depth are counted"
