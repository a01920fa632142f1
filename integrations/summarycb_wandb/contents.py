"""What a run is given. Never by ``run.log``, which would move the step of the user's own log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from summarycb.names import escape
from summarycb.report import METRICS, PREFIX, Report

if TYPE_CHECKING:
    import wandb

JSON, TEXT = f"{PREFIX}.json", f"{PREFIX}.txt"
ARTIFACT = "model-summary"
"""The artifact's type; its name has the run's id in it."""
MOST_MODULES = 1_000
"""So many modules, the first ones, are in the config: W&B asks for less than 10,000 keys in all runs of a project."""
_MOST_KEY = 250


def fill(run: wandb.Run, report: Report, *, config: bool) -> None:
    """Write it all to an open run; one that is finished raises ``wandb.UsageError`` before anything is written."""
    if run.disabled:
        return
    import wandb

    run.summary.update(report.metrics)
    for unknown in {f"{PREFIX}/{metric.name}" for metric in METRICS} - set(report.metrics):
        del run.summary[unknown]  # an earlier report may have known it
    if config:
        run.config.update({PREFIX: None}, allow_val_change=True)  # wandb merges: modules that are gone would stay
        run.config.update({PREFIX: architecture(report)}, allow_val_change=True)
    for name, content in ((JSON, report.json), (TEXT, report.text)):
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
    lines = [(module_key(path), line) for path, line in report.leaves.items()]
    facts["modules"] = dict(lines[:MOST_MODULES])
    if len(lines) > MOST_MODULES:
        facts["modules_left_out"] = f"{len(lines) - MOST_MODULES:,} more, which are in {JSON}"
    return facts


def module_key(path: str) -> str:
    """The path with ``/`` for each ``.``, with which W&B does not find a key; other signs escaped, letters as they are.

    ``summarycb.names.unescape`` gives it back, once each ``/`` is a ``.`` again.
    """
    return escape(path, r"\w.-", _MOST_KEY).replace(".", "/") or "(root)"


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
