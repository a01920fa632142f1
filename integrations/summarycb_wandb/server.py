"""A run that is on W&B's server: read through the public API, and opened again to be written to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

from summarycb import serialize
from summarycb.errors import SummaryError, missing
from summarycb.report import PREFIX
from summarycb.tree import ModelSummary
from summarycb_wandb.contents import ARTIFACT, JSON, artifact_name

if TYPE_CHECKING:
    import wandb

SECONDS = 20
"""How long is waited for the server, each time that a run is opened or finished."""


def library() -> ModuleType:
    """The package ``wandb``."""
    try:
        import wandb
    except ModuleNotFoundError:
        raise missing("wandb", "wandb") from None
    return wandb


def download(where: str) -> ModelSummary:
    """The summary of ``<entity>/<project>/<run>``: the run's file, or, when that is gone, the newest artifact."""
    wandb = library()
    project, _, run_id = where.rpartition("/")
    with _named(f"no folder, and no {JSON} in a W&B run, {where!r}"), TemporaryDirectory() as folder:
        api = wandb.Api(timeout=SECONDS)
        files = list(api.run(where).files([JSON]))
        if files:
            files[0].download(root=folder, replace=True).close()
        else:
            api.artifact(f"{project}/{artifact_name(run_id)}:latest", type=ARTIFACT).download(root=folder)
        return serialize.read(Path(folder, JSON))


def runs(project: str) -> list[str]:
    """The ids of the runs of ``<entity>/<project>`` that have a summary, newest first."""
    wandb = library()
    with _named(f"no folder, and no W&B project, {project!r}"):
        found = wandb.Api(timeout=SECONDS).runs(project, order="-created_at", lazy=False, include_sweeps=False)
        return [run.id for run in found if any(name.startswith(f"{PREFIX}/") for name in run.summary_metrics)]


def run(where: str) -> Any:
    """``<entity>/<project>/<run>``, as the public API has it."""
    with _named(f"no W&B run {where!r}"):
        return library().Api(timeout=SECONDS).run(where)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """What the SDK raises, as for a run that is not there, no key or no answer, is told of ``what``."""
    try:
        yield
    except (library().Error, ValueError, OSError) as error:
        raise SummaryError(f"{what}: {error}") from error


@contextmanager
def resumed(where: str) -> Iterator[wandb.Run]:
    """The run, for as long as it is written to, beside whatever run is active here; it is finished then.

    One that is still running is not: what it logs itself would get into disorder.
    """
    wandb = library()
    entity, project, run_id = where.split("/")
    with _named(f"the W&B run {where!r} cannot be opened"):
        state = wandb.Api(timeout=SECONDS).run(where).state
    if state == "running":
        raise SummaryError(f"the W&B run {where!r} is still running; write to it where it runs: give the wandb.Run")
    with TemporaryDirectory() as folder:
        with _named(f"the W&B run {where!r} cannot be opened"):
            run = wandb.init(
                entity=entity, project=project, id=run_id, resume="must", reinit="create_new", mode="online",
                dir=folder,
                settings=wandb.Settings(
                    # nothing is told of this machine and this process, which are not those of the training
                    x_primary=False, x_disable_stats=True, disable_git=True, program="",
                    console="off", silent=True,
                    login_timeout=SECONDS, init_timeout=SECONDS, finish_timeout=SECONDS, finish_timeout_raises=True,
                ),
            )  # fmt: skip
        try:
            yield run
        finally:
            run.finish(exit_code=0)
