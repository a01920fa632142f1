"""What a run is given. Never by ``run.log``, which would move the step of the user's own log."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from summarycb.errors import SummaryError
from summarycb.names import escape
from summarycb.report import IDENTITY, METRICS, PREFIX, Report
from summarycb.trackers import writing

if TYPE_CHECKING:
    import wandb

JSON, TEXT, COMPARISON = f"{PREFIX}.json", f"{PREFIX}.txt", f"{PREFIX}_comparison.md"
ARTIFACT = "model-summary"
"""The artifact's type; its name has the run's id in it."""
MOST_MODULES = 1_000
"""So many modules, the first ones, are in the config: W&B asks for less than 10,000 keys in all runs of a project."""
_KEYS = {*IDENTITY, "baseline", "modules", "modules_left_out"}
_MOST_KEY = 250


def fill(run: wandb.Run, report: Report, *, config: bool) -> None:
    """Write it all to an open run; one that is finished raises, before anything is written if it was so by then."""
    if run.disabled:
        return
    from wandb.errors import UsageError

    try:
        with writing(f"wandb:{run.id}"):
            _fill(run, report, config)
    except UsageError:  # its text is of a call that nobody made
        where = f"{run.entity or '<entity>'}/{run.project}/{run.id}"
        push = f"summarycb push FILE wandb:{where}"
        raise SummaryError(f"the run is finished; once W&B's server has it, write to it with `{push}`") from None


def _fill(run: wandb.Run, report: Report, config: bool) -> None:
    import wandb

    run.summary.update(report.metrics)
    for unknown in {f"{PREFIX}/{metric.name}" for metric in METRICS} - set(report.metrics):
        del run.summary[unknown]  # an earlier report may have known it
    if config:
        there = {} if run.config.get(PREFIX) is None else run.config[PREFIX]
        if isinstance(there, dict):  # else it is the user's own, and stays
            users = {key: value for key, value in there.items() if key not in _KEYS}
            run.config.update({PREFIX: None}, allow_val_change=True)  # wandb merges: modules that are gone would stay
            run.config.update({PREFIX: {**users, **architecture(report)}}, allow_val_change=True)
    files = {JSON: report.json, TEXT: report.text}
    if report.comparison is not None or Path(run.dir, COMPARISON).exists():
        files[COMPARISON] = report.compared
    for name, content in files.items():
        path = Path(run.dir, name)
        path.write_text(content, encoding="utf-8")
        run.save(path, base_path=run.dir, policy="now")
    run.summary[f"{PREFIX}/page"] = wandb.Html(report.html, inject=False, data_is_not_path=True)
    # an online run asks the server for these two, and raises when there is no answer: all else is on its way by then
    run.summary[f"{PREFIX}/table"] = _table(report)
    artifact = wandb.Artifact(artifact_name(run.id), ARTIFACT, metadata={**report.identity, **report.metrics})
    artifact.add_file(str(Path(run.dir, JSON)))
    run.log_artifact(artifact)


def architecture(report: Report) -> dict[str, object]:
    """What W&B's run comparer puts side by side: the identity, and a line for each module by its key."""
    facts: dict[str, object] = {name.removeprefix(f"{PREFIX}/"): fact for name, fact in report.identity.items()}
    modules = {}
    for path, line in islice(report.leaves.items(), MOST_MODULES):
        key, whole = module_key(path), module_key(path, most=sys.maxsize)
        modules[key] = line if key == whole else f"{whole} · {line}"
    facts["modules"] = modules
    if len(report.leaves) > MOST_MODULES:
        facts["modules_left_out"] = f"{len(report.leaves) - MOST_MODULES:,} more, which are in {JSON}"
    return facts


def module_key(path: str, most: int = _MOST_KEY) -> str:
    """The path with ``/`` for each ``.``, with which W&B does not find a key; other signs escaped, letters as they are.

    ``summarycb.names.unescape`` gives it back, once each ``/`` is a ``.`` again. A key that would be longer than
    ``most`` is cut: the line under it then begins with the whole of it.
    """
    return escape(path, r"\w.-", most).replace(".", "/") or "(root)"


def artifact_name(run_id: str) -> str:
    """The artifact of a run, in the letters that W&B allows; ``:latest`` is the newest summary."""
    return f"{PREFIX}-{escape(run_id, 'A-Za-z0-9_-', 100).replace('%', '.')}"


def _table(report: Report) -> wandb.Table:
    import wandb

    rows = [list(record.values()) for record in report.table]
    each_kind = {tuple(map(type, row)): row for row in rows}  # wandb takes seconds to find the types of 10,000 rows
    table = wandb.Table(columns=list(report.table[0]), data=list(each_kind.values()))
    table.data = rows
    return table
