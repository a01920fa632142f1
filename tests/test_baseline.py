"""A run is compared with a baseline as it starts, and a gate that fails stops it before the second step."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import summarycb
import summarycb_accelerate
import summarycb_fabric
import summarycb_transformers
from summarycb import GateError, ModelSummary, SummaryError
from summarycb.compare import Comparison
from summarycb.errors import SummaryWarning
from summarycb.trackers import open_reference
from summarycb_lightning import ModelSummaryCallback
from tests.lightning_trainings import MARKS, all_of, lit, trainer
from tests.trainings import NOTHING, everything, left_behind

# mlflow 3.17 uses an option that SQLAlchemy 2.1 deprecates
pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")]
ROOT = Path(__file__).parent.parent
GATE = "params>+50%"
# 8 x 16 + 16 and 16 x 6 + 6; twice as wide 8 x 32 + 32 and 32 x 6 + 6
NARROW, WIDE = 246, 486
BROKEN = r"^\w+ against baseline: failed: params>\+50%: 246 → 486 \(\+240, \+97\.56 %\), 117 over the limit$"
# 240 / 246, and of 123


class Loop:
    """Three steps of a plain loop, of which ``losses`` are what was made."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 6))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.losses: list[torch.Tensor] = []

    def train(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            self.optimizer.zero_grad()
            loss = self.model(torch.rand(5, 8, generator=generator)).square().mean()
            loss.backward()
            self.losses.append(loss.detach())
            self.optimizer.step()
        return everything(self.model, self.optimizer, self.losses)


def watched(width: int, **settings: Any) -> ModelSummary:
    loop = Loop(width)
    hook = summarycb.watch(loop.model, **{"verbose": False, **settings})
    assert loop.train() == Loop(width).train()
    assert hook.summary is not None
    hook.close()
    return hook.summary


@pytest.fixture(scope="module")
def narrow() -> ModelSummary:
    return watched(16)


COMPARED = """\
Sequential
compared          baseline → this run
params            246 → 486 (+240, +97.6 %)
forward MACs      1,120 → 2,240 (+1,120, +100.0 %)
backward FLOPs    3,200 → 6,400 (+3,200, +100.0 %)
step FLOPs        5,440 → 10.88 K (+5,440, +100.0 %)
saved activations 444 B → 764 B (+320 B, +72.1 %)
peak              2.461 KiB → 4.711 KiB (+2.250 KiB, +91.4 %)

module            what                     Δ params Δ fwd MACs Δ bwd FLOPs Δ saved act.
───────────────────────────────────────────────────────────────────────────────────────
~ 0               out_features=16 → 32         +144       +640      +1,280          0 B
· 1               output [5, 16] → [5, 32]        0          0           0       +320 B
~ 2               in_features=16 → 32           +96       +480      +1,920          0 B
= sum of the rows                              +240     +1,120      +3,200       +320 B

1 of 4 modules is unchanged; a row of + or - has all that is in it, another its modules without
their children
~ resized, · did other work
"""


def test_the_comparison_is_printed_below_the_summary_and_the_training_is_the_same(
    narrow: ModelSummary, capsys: pytest.CaptureFixture[str]
) -> None:
    """``watched`` compares the training bit by bit; a baseline that is equal says so, too."""
    summary = watched(32, verbose=True, baseline=narrow, fail_on=["params>+98%"])
    assert capsys.readouterr().out == f"{summary.to_text()}\n\n{COMPARED}"


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What is written to, by the reference that reads it."""
    mlflow: Any = importlib.import_module("mlflow")
    wandb: Any = importlib.import_module("wandb")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = mlflow.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment) as flow:
        pass
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(project="p", dir=tmp_path) as run:
        folder = Path(run.dir).parent
        board = f"tensorboard:{tmp_path}/board"
        yield {board: board, f"mlflow:{flow.info.run_id}": f"mlflow:{flow.info.run_id}", f"wandb:{folder}": run}
    mlflow.set_tracking_uri(None)


@pytest.mark.slow
def test_every_tracker_has_the_comparison_and_is_a_baseline(
    narrow: ModelSummary, tracked: dict[str, Any], tmp_path: Path
) -> None:
    """Of the run that a gate stops, too: what is written is there when the error is raised."""
    loop = Loop(32)
    targets = list(tracked.values())
    hook = summarycb.watch(loop.model, trackers=targets, timeout=120, verbose=False, baseline=narrow, fail_on=[GATE])
    with pytest.raises(GateError, match=BROKEN):
        loop.train()
    assert len(loop.losses) == 1
    assert left_behind(loop.model) == NOTHING
    assert hook.summary is not None
    markdown = Comparison((narrow, hook.summary), ("baseline", "this run")).to_markdown()
    board, _, run = tracked
    kept = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = kept.EventAccumulator(board.removeprefix("tensorboard:"), {"tensors": 0}).Reload()
    (event,) = events.Tensors("model_summary/comparison/text_summary")
    assert event.tensor_proto.string_val == [markdown.encode()]
    (artifact,) = (tmp_path / "artifacts").rglob("model_summary_comparison.md")
    assert artifact.read_text() == markdown
    assert (Path(run.removeprefix("wandb:")) / "files/model_summary_comparison.md").read_text() == markdown
    for reference in tracked:
        assert open_reference(reference).read() == hook.summary  # type: ignore[union-attr]
        watched(32, baseline=reference, fail_on=["params>+0%", "forward_macs>+0%", "saved_activations>+0%"])
    # a run that goes on without a baseline: what was told of an older one does not stay
    watched(32, trackers=targets, timeout=120)
    none = "The newest model summary was compared with no baseline.\n"
    assert artifact.read_text() == none
    assert (Path(run.removeprefix("wandb:")) / "files/model_summary_comparison.md").read_text() == none


class Logged:
    """A tracker that says when it was written to."""

    wrap = open = read = print

    def __init__(self) -> None:
        self.written: list[Any] = []

    def write(self, report: Any, *, step: int) -> None:
        self.written.append((report.summary.total_params, report.comparison.metrics["params"].a))


def test_a_gate_stops_a_fit_before_its_second_step(L: ModuleType, tmp_path: Path) -> None:
    """The loggers have the summary by then, and the fit has ended as by any error; one that passes changes nothing."""
    first = ModelSummaryCallback(trackers=[], verbose=False)
    plain = lit(L)
    runner = trainer(L, tmp_path, first)
    runner.fit(plain)
    assert first.summary is not None
    first.summary.save(tmp_path / "base.json")
    tracker = Logged()
    # the convolution has 8 x 27 weights and 8 biases
    settings: dict[str, Any] = {"baseline": tmp_path / "base.json", "trackers": [tracker], "verbose": False}

    same = lit(L)
    other = trainer(L, tmp_path, ModelSummaryCallback(fail_on=["params>+0%"], **settings))
    other.fit(same)
    assert all_of(other, same) == all_of(runner, plain)
    total = first.summary.total_params
    assert tracker.written == [(total, total)]

    grown = lit(L)
    grown.more = nn.Linear(100, 100, bias=False)
    stopped = trainer(L, tmp_path, ModelSummaryCallback(fail_on=["params>+50%"], **settings))
    with pytest.raises(GateError, match=r"params>\+50%"):
        stopped.fit(grown)
    assert (len(grown.losses), stopped.global_step) == (1, 1)
    assert tracker.written[1:] == [(total + 10_000, total)]
    assert left_behind(grown) == NOTHING


def fabric(loop: Loop, folder: Path, settings: dict[str, Any]) -> None:
    from lightning.fabric import Fabric

    one = Fabric(accelerator="cpu", devices=1, callbacks=[summarycb_fabric.ModelSummaryCallback(**settings)])
    loop.model, loop.optimizer = one.setup(loop.model, loop.optimizer)
    loop.train()


def accelerate(loop: Loop, folder: Path, settings: dict[str, Any]) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    one = Accelerator(cpu=True)
    try:
        loop.model, loop.optimizer = one.prepare(loop.model, loop.optimizer)
        summarycb_accelerate.watch(one, loop.model, **settings)
        loop.train()
    finally:
        AcceleratorState._reset_state()
        PartialState._reset_state()


def transformers(loop: Loop, folder: Path, settings: dict[str, Any]) -> None:
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = loop.model

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            loss = self.inner(x).square().mean()
            loop.losses.append(loss.detach())
            return {"loss": loss}

    rows = [{"x": torch.rand(8)} for _ in range(15)]
    arguments = TrainingArguments(
        str(folder), max_steps=3, per_device_train_batch_size=5, use_cpu=True, save_strategy="no", disable_tqdm=True,
        report_to="none",
    )  # fmt: skip
    callback = summarycb_transformers.ModelSummaryCallback(**settings)
    Trainer(Model(), arguments, train_dataset=rows, callbacks=[callback]).train()  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.parametrize("train", [fabric, accelerate, transformers])
def test_a_gate_stops_the_loop_of_each_framework(train: Any, narrow: ModelSummary, tmp_path: Path) -> None:
    loop = Loop(32)
    with pytest.raises(GateError, match=BROKEN):
        train(loop, tmp_path, {"baseline": narrow, "fail_on": [GATE], "trackers": [], "verbose": False})
    assert len(loop.losses) == 1
    assert left_behind(loop.model) == NOTHING


UNREADABLE = {
    "none.json": r"none\.json: No such file or directory",
    "torn.json": r"torn\.json: not a model summary in JSON",
    "tensorboard:none": "no model summary in the TensorBoard log directory '.*/none'",
}


@pytest.mark.parametrize("reference", UNREADABLE)
def test_a_baseline_that_cannot_be_read(
    reference: str, lightning: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning, and the training goes on; with a gate an error: of a file at once, of a tracker's run at setup."""
    monkeypatch.chdir(tmp_path)
    Path("torn.json").write_text('{"schema_version": 1,')
    said = f"the baseline '{reference}' cannot be read: .*{UNREADABLE[reference]}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched(16, baseline=reference)
        runner = trainer(lightning, tmp_path, ModelSummaryCallback(trackers=[], verbose=False, baseline=reference))
        for _ in range(2):
            runner.fit(lit(lightning))
    told = [str(one.message) for one in caught if one.category is SummaryWarning]
    assert len(told) == 2  # one for each of the two hooks
    assert all(re.fullmatch(f"{said}.*; nothing is compared", text) for text in told)
    with pytest.raises(SummaryError, match=said):
        summarycb.watch(Loop(16).model, baseline=reference, fail_on=[GATE])
    model = lit(lightning)
    with pytest.raises(SummaryError, match=said):
        trainer(lightning, tmp_path, ModelSummaryCallback(baseline=reference, fail_on=[GATE])).fit(model)
    assert model.losses == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baseline": 3}, "baseline must be a ModelSummary, a file or a reference such as 'mlflow:<run_id>', not 3"),
        ({"fail_on": [GATE]}, "fail_on needs a baseline to compare with"),
        ({"baseline": "base.json", "fail_on": GATE}, "fail_on must be a list of gates"),
        ({"baseline": "base.json", "fail_on": ["params is large"]}, "params is large"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda **settings: summarycb.watch(Loop(16).model, **settings),
        ModelSummaryCallback,
        summarycb_fabric.ModelSummaryCallback,
        summarycb_transformers.ModelSummaryCallback,
    ],
)
def test_a_wrong_argument_raises_at_once(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SummaryError, match=message):
        make(**settings)


def test_a_comparison_that_fails_is_one_warning_and_with_a_gate_stops_the_run(
    narrow: ModelSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can say that the gate holds; so it does not."""

    def raises(self: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Comparison, "rows", property(raises))
    monkeypatch.setattr(Comparison, "metrics", property(raises))
    loop = Loop(32)
    summarycb.watch(loop.model, verbose=False, baseline=narrow, fail_on=[GATE])
    with pytest.raises(GateError, match="Sequential could not be compared with the baseline: RuntimeError: a fault"):
        loop.train()
    assert len(loop.losses) == 1
    with pytest.warns(SummaryWarning, match="could not be printed: RuntimeError: a fault of ours"):
        watched(32, baseline=narrow, verbose=True)


def test_a_step_that_raises_is_not_compared(narrow: ModelSummary, capsys: pytest.CaptureFixture[str]) -> None:
    """Its figures are of a part of it; the error is the user's own."""
    loop = Loop(32)
    with (
        pytest.raises(RuntimeError, match="mat1 and mat2"),
        summarycb.watch(loop.model, baseline=narrow, fail_on=[GATE]),
    ):
        loop.model(torch.rand(5, 7))
    assert "params            " not in capsys.readouterr().out


def test_a_gate_at_the_end_of_the_process_is_a_warning(narrow: ModelSummary, tmp_path: Path) -> None:
    """A step by hand has no end but the next forward, and there is none."""
    narrow.save(tmp_path / "base.json")
    script = (
        "import torch, summarycb\n"
        "model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 6))\n"
        f"hook = summarycb.watch(model, baseline='base.json', fail_on=['{GATE}'], verbose=False)\n"
        "model(torch.rand(5, 8)).square().mean().backward()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0
    assert "SummaryWarning: Sequential against base.json: failed: params>+50%" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_every_rank_stops(narrow: ModelSummary, tmp_path: Path) -> None:
    """Two processes of a plain loop and of Lightning: rank zero decides, where each has figures of its own."""
    narrow.save(tmp_path / "base.json")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    torchrun += ["-m", "tests.torchrun_gates", str(tmp_path)]
    done = subprocess.run(torchrun, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    # at once: three times 60 s would be longer than all of this may take
    assert [one.pop("a rank that raises") for one in found] == [
        {"raised": "GateError", "rank": 0},
        {"raised": "KeyError", "rank": 1},
    ]
    assert found[0] == found[1]
    failed = "against base.json: failed: params>+50%: 246 → 486 (+240, +97.56 %), 117 over the limit"
    batch = found[0]["the batch of rank zero"]["raised"]
    changes = "undecided: forward_macs>+50%: it may change with input: [5, 8] → [10, 8]"
    assert batch == f"GateError: Sequential against base.json: {changes}"
    assert found[0] == {
        "narrow": {"raised": None, "steps": 3},
        "wide": {"raised": f"GateError: Sequential {failed}", "steps": 1},
        "the batch of rank zero": {"raised": batch, "steps": 1},
        "the batch of rank one": {"raised": None, "steps": 3},
        "unreadable": {
            "raised": "GateError: Sequential could not be compared with the baseline: the baseline "
            f"'{tmp_path}/none.json' cannot be read: {tmp_path}/none.json: No such file or directory",
            "steps": 1,
        },
        "unreadable elsewhere": {"raised": None, "steps": 3},
        "lightning": {"raised": f"GateError: Module {failed}", "steps": 1},
    }
