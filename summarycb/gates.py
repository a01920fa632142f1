"""Gates: limits that a comparison is held to, as ``params>+5%``. Must not import torch.

A gate is ``METRIC[:PATTERN] OP LIMIT``, and says what is *not* allowed: with ``params>+5%`` a model fails that has over
five percent more parameters. OP is one of ``>``, ``>=``, ``<``, ``<=`` and ``!=``. METRIC is a total of the step, or,
with a pattern, a figure of modules: each module whose path fits, in the first summary or in the second, is held to it
by itself, with all that is in it; so a gate holds for what was renamed, too. LIMIT is a number, with K, M, G or T
(decimal) or B, KiB, MiB, GiB or TiB, or a percentage.

What a limit is of: one with a sign, or in percent, is of the change, percent of the figure in the first summary; one
without is of the figure in the second. A bare 0 is of the change as well, since every figure is more than nothing.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal

from summarycb import units
from summarycb.changes import FIGURES, Delta, Figure, part
from summarycb.compare import TOTALS, Comparison, delta_json
from summarycb.compared import whole, writer
from summarycb.errors import SummaryError
from summarycb.match import Tree
from summarycb.tree import ModuleSummary, add

Outcome = Literal["passed", "failed", "undecided"]

OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = MappingProxyType(
    {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "!=": operator.ne}
)
UNITS = {
    "": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "%": 1,
}  # fmt: skip
_GATE = re.compile(r"(?P<metric>\w+)(?::(?P<pattern>.*?))?\s*(?P<operator>>=|<=|!=|>|<)\s*(?P<limit>[^<>!=]+)")
_LIMIT = re.compile(
    r"(?P<sign>[+-]?)(?P<number>(?:\d{1,3}(?:,\d{3}){1,9}|\d[\d_]{0,29})(?:\.\d{1,30})?|\.\d{1,30})\s*(?P<unit>[A-Za-z%]*)"
)
_MOST_NAMED, _MOST_PATH = 5, 200
"""So many modules are named in a verdict."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit, as :func:`parse` reads it: ``of`` is whether of the new value, of the change, or of it in percent."""

    text: str
    metric: str
    pattern: str | None
    operator: str
    limit: Fraction
    of: Literal["value", "change", "percent"]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure that a gate is of: of the module at ``path``, None for the whole step.

    ``beyond`` is how far it is beyond the limit, in the unit of the gate; infinite where it is a percentage of 0, and
    None where it cannot be told, for the ``reason``. What is below 0 is on the side that is allowed, unless the gate is
    ``!=``.
    """

    path: str | None
    figure: Delta
    beyond: Fraction | float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a gate in the comparison of the run ``a`` with the run ``b``.

    ``findings`` are those that decide it: all when it passed, else those beyond the limit, the worst first, and when
    there are none those of which it cannot be told. ``failed`` is whether the run is to be stopped for it.
    """

    gate: Gate
    a: str
    b: str
    outcome: Outcome
    failed: bool
    findings: tuple[Finding, ...]
    reason: str = ""
    """Why it is undecided, where that is so of all figures, or that it is of no module."""

    def __str__(self) -> str:
        allowed = " (allowed)" if self.outcome == "undecided" and not self.failed else ""
        return f"{self.outcome}{allowed}: {self.gate}: {self.reason or self._said()}"

    def _said(self) -> str:
        if self.gate.pattern is None:
            return _told(self.gate, self.findings[0], self.outcome)
        count = len(self.findings)
        modules = f"{count:,} module{'s' if count > 1 else ''}"
        if self.outcome == "passed":
            return modules
        told = [
            f"{units.clean(units.cut(one.path or '(root)', _MOST_PATH))} {_told(self.gate, one, self.outcome)}"
            for one in self.findings[:_MOST_NAMED]
        ]
        more = [f"and {count - _MOST_NAMED:,} more"] if count > _MOST_NAMED else []
        return f"{modules}: " + "; ".join(told + more)


def document(verdict: Verdict) -> dict[str, object]:
    """The verdict for JSON; ``beyond`` is in the unit of the gate."""
    return {
        "gate": verdict.gate.text,
        "a": verdict.a,
        "b": verdict.b,
        "outcome": verdict.outcome,
        "failed": verdict.failed,
        "text": str(verdict),
        "findings": [
            {
                "path": one.path,
                **delta_json(one.figure),
                "beyond": float(one.beyond) if isinstance(one.beyond, Fraction) else None,
                "reason": one.reason or None,
            }
            for one in verdict.findings
        ],
    }


def parse(text: str) -> Gate:
    """The gate that ``text`` says. Raises :class:`SummaryError` for what is none."""
    found = _GATE.fullmatch(text.strip()) if isinstance(text, str) else None
    limit = None if found is None else _LIMIT.fullmatch(found["limit"].strip())
    if found is None or limit is None:
        raise SummaryError(
            f"{text!r} is no gate: METRIC[:PATTERN] OP LIMIT, as in 'params>+5%' or 'saved_activations>512MiB'; OP is "
            f"{', '.join(OPERATORS)}, LIMIT a number with {', '.join(filter(None, UNITS))}, or none of these"
        )
    metric, pattern, unit = found["metric"], found["pattern"], limit["unit"]
    allowed = TOTALS if pattern is None else FIGURES
    if metric not in allowed:
        of = "a gate" if pattern is None else "a gate of modules"
        raise SummaryError(f"{text!r}: {metric!r} is no metric of {of}; allowed: {', '.join(allowed)}")
    if pattern == "":
        raise SummaryError(f"{text!r}: the pattern is empty; give one that fits paths of modules, or leave the ':' out")
    if unit not in UNITS or (unit.endswith("B") and writer(metric) is not units.nbytes):
        fitting = [one for one in UNITS if one and (writer(metric) is units.nbytes or not one.endswith("B"))]
        raise SummaryError(f"{text!r}: {unit!r} is no unit of {metric}; allowed: {', '.join(fitting)}, or none")
    amount = Fraction(re.sub("[_,]", "", limit["number"])) * UNITS[unit] * (-1 if limit["sign"] == "-" else 1)
    of_change = bool(limit["sign"]) or not amount
    return Gate(
        text.strip(),
        metric,
        pattern,
        found["operator"],
        amount,
        "percent" if unit == "%" else "change" if of_change else "value",
    )


def of(gates: Sequence[Gate | str]) -> tuple[Gate, ...]:
    """The gates that a user has listed. Raises :class:`SummaryError` for what is none."""
    try:
        given = None if isinstance(gates, str) else list(gates)
    except TypeError:
        given = None
    if given is None or not all(isinstance(gate, (str, Gate)) for gate in given):
        raise SummaryError(f"fail_on must be a list of gates such as 'params>+5%', not {gates!r}")
    return tuple([gate if isinstance(gate, Gate) else parse(gate) for gate in given])


def check(
    comparison: Comparison,
    gates: Sequence[Gate | str],
    *,
    allow_unknown: bool = False,
    allow_incomparable: bool = False,
) -> tuple[Verdict, ...]:
    """A verdict for each gate, in their order, of each pair of runs.

    A gate of a figure that is unknown, or of the change of one that is not comparable, cannot be decided, and fails.
    With ``allow_unknown`` the first does not, and with ``allow_incomparable`` the second is decided all the same.

    Raises :class:`SummaryError` for what is no gate, and where a pattern fits no module.
    """
    parsed = of(gates)
    verdicts = tuple(
        _verdict(pair, gate, allow_unknown, allow_incomparable) for pair in comparison.against for gate in parsed
    )
    for gate in parsed:
        if not any(verdict.findings for verdict in verdicts if verdict.gate is gate):
            raise SummaryError(f"{gate.text!r}: no module of {', '.join(comparison.names)} fits {gate.pattern!r}")
    return verdicts


def _verdict(pair: Comparison, gate: Gate, allow_unknown: bool, allow_incomparable: bool) -> Verdict:
    a, b = pair.names
    findings = [_judged(gate, path, figure) for path, figure in _figures(pair, gate)]
    if not findings:
        return Verdict(gate, a, b, "passed", False, (), f"no module fits {gate.pattern}")
    conditions = pair.incomparable.get(gate.metric, ())
    if conditions and gate.of != "value" and not allow_incomparable:
        said = "; ".join(str(one) for one in pair.differences if one.condition in conditions)
        return Verdict(gate, a, b, "undecided", True, tuple(findings), f"it may change with {said}")
    beyond = [one for one in findings if one.beyond is not None and OPERATORS[gate.operator](one.beyond, Fraction(0))]
    if beyond:
        beyond.sort(key=lambda one: abs(float(one.beyond or 0)), reverse=True)
        return Verdict(gate, a, b, "failed", True, tuple(beyond))
    if unknown := [one for one in findings if one.beyond is None]:
        return Verdict(gate, a, b, "undecided", not allow_unknown, tuple(unknown))
    return Verdict(gate, a, b, "passed", False, tuple(findings))


def _judged(gate: Gate, path: str | None, figure: Delta) -> Finding:
    measured: Figure = figure.b if gate.of == "value" else figure.delta
    if measured is None:
        runs = [name for name, value in (("first", figure.a), ("second", figure.b)) if value is None]
        which = "second" if gate.of == "value" else " and the ".join(runs)
        return Finding(path, figure, None, f"it is unknown in the {which}")
    if gate.of == "percent" and measured:
        if not figure.a:
            return Finding(path, figure, math.inf)  # more than any percentage of nothing
        measured = Fraction(100 * measured) / figure.a
    return Finding(path, figure, measured - gate.limit)


def _figures(pair: Comparison, gate: Gate) -> Iterator[tuple[str | None, Delta]]:
    """What the gate is of: the total, or each module that fits, with all that is in it.

    The first figure of a module that is new is of what is in it and was there before, as in a wrapper; in this way too
    the second figure of one that is gone.
    """
    if gate.pattern is None:
        yield None, pair.metrics[gate.metric]
        return
    a, b = pair.matching.a, pair.matching.b
    for place, module in enumerate(b.modules):
        partner = b.partner[place]
        known = [module.path] if partner is None else [module.path, a.modules[partner].path]
        if any(fnmatchcase(path, gate.pattern) for path in known):
            yield module.path, _sums(pair, gate.metric, _partners(b, a, place), [module])
    for place, module in enumerate(a.modules):
        if a.partner[place] is None and fnmatchcase(module.path, gate.pattern):
            yield module.path, _sums(pair, gate.metric, [module], _partners(a, b, place))


def _partners(tree: Tree, other: Tree, place: int) -> list[ModuleSummary]:
    """The module's partner, or else the partners of what is in it: subtrees, none of which is in another."""
    found, end = [], place + tree.sizes[place]
    while place < end:
        partner = tree.partner[place]
        if partner is not None:
            found.append(partner)
        place += 1 if partner is None else tree.sizes[place]
    tops: list[int] = []
    for partner in sorted(found):
        if not tops or partner not in other.within(tops[-1]):
            tops.append(partner)
    return [other.modules[top] for top in tops]


def _sums(pair: Comparison, metric: str, a: Sequence[ModuleSummary], b: Sequence[ModuleSummary]) -> Delta:
    sums = [add(*[getattr(module.total, metric) for module in modules]) for modules in (a, b)]
    return Delta(*map(part, sums, pair.scales.get(metric, (1, 1))))


_SIDES = {">": "over", ">=": "over", "<": "under", "<=": "under", "!=": "off"}


def _told(gate: Gate, finding: Finding, outcome: Outcome) -> str:
    """``1,000 → 1,100 (+100, +10 %), 50 over the limit``."""
    if finding.reason:
        return finding.reason
    a, b = finding.figure.a, finding.figure.b
    said = _amounts(gate.metric, b)[0]
    if gate.of != "value" and a is not None and b is not None:
        before, after = _amounts(gate.metric, a, b)
        share = f", {float(100 * (b - a) / a):+.4g} %" if a else ""
        said = f"{before} → {after} ({units.signed(_amounts(gate.metric, b - a)[0])}{share})"
    if outcome == "passed" or not gate.limit or finding.beyond is None:
        return said
    if not isinstance(finding.beyond, Fraction):
        return f"{said}, more than any percentage of 0"
    beyond = abs(finding.beyond) * (Fraction(a or 0, 100) if gate.of == "percent" else 1)
    side = f"{_amounts(gate.metric, beyond)[0]} {_SIDES[gate.operator]}" if beyond else "at"
    return f"{said}, {side} the limit"


def _amounts(metric: str, *values: Figure) -> list[str]:
    """Figures as a reader can tell them apart: with all digits where they differ in the last ones."""
    written = [_amount(metric, value, writer(metric)) for value in values]
    if len(set(written)) < len(set(values)):
        return [_amount(metric, value, units.exact) for value in values]
    return written


def _amount(metric: str, value: Figure, write: units.Writer) -> str:
    small = isinstance(value, Fraction) and value.denominator > 1 and abs(value) < 1000
    text = f"{float(value or 0):.4g}" if small else write(whole(value))
    return f"{text} B" if writer(metric) is units.nbytes and not text.endswith("B") else text
