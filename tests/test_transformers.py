"""The callback for the Trainer of Hugging Face transformers: the first step of each training, and its runs."""

from __future__ import annotations

import copy
import gc
import importlib
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, Trainer
from transformers import TrainingArguments as Arguments
from transformers.integrations import TensorBoardCallback

import summarycb
import summarycb_transformers
from summarycb.errors import SummaryError, SummaryWarning
from summarycb.publish import Publisher
from summarycb.report import Report, structure
from summarycb_tensorboard import TensorBoardTracker
from summarycb_transformers import ModelSummaryCallback
from tests.test_faults import plant
from tests.trainings import NOTHING, bits, everything, hooks_of, left_behind

pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
]

ROWS, LENGTH, WIDTH, INNER, WORDS, LAYERS = 2, 6, 8, 12, 20, 2
TOKENS = ROWS * LENGTH
# a layer: q, k, v and output, both products of attention (2 heads of 4), gate, up and down
LAYER = TOKENS * (4 * WIDTH * WIDTH + 2 * LENGTH * WIDTH + 3 * WIDTH * INNER)
FORWARD = LAYERS * LAYER + TOKENS * WIDTH * WORDS


def llama() -> Any:
    torch.manual_seed(0)
    random.seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
            num_attention_heads=2, attention_dropout=0.1,
        )
    )  # fmt: skip


def texts() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(WORDS, (LENGTH,), generator=generator) for _ in range(12)]
    return [{"input_ids": row, "labels": row} for row in rows]


class Losses(Trainer):
    """A Trainer that keeps the loss of each batch; ``fails`` is the batch at which it raises, before its backward."""

    fails: int | None = None

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), bits(loss)]
        if len(self.losses) == self.fails:
            raise ZeroDivisionError("the user's own")
        return loss


def trainer(folder: Path, *callbacks: Any, model: Any = None, **arguments: Any) -> Losses:
    settings: dict[str, Any] = {
        "max_steps": 3, "per_device_train_batch_size": ROWS, "use_cpu": True, "save_strategy": "no",
        "disable_tqdm": True, "report_to": "none", "logging_steps": 1,
    } | arguments  # fmt: skip
    model = llama() if model is None else model
    args = Arguments(str(folder), **settings)
    return Losses(model, args, train_dataset=texts(), eval_dataset=texts()[:4], callbacks=list(callbacks))


def result(run: Losses) -> dict[str, Any]:
    return everything(run.model, run.optimizer.optimizer, run.losses)  # type: ignore[attr-defined,union-attr]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch._dynamo.reset()


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "evaluation first": {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 1},
    "accumulation": {"gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
    "checkpointing": {"gradient_checkpointing": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "compiled" else []) for name in SETTINGS]
)
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler looks at it
def test_nothing_changes_and_the_first_step_is_summarized(name: str, tmp_path: Path) -> None:
    """Losses, weights, gradients, optimizer, random state, flags and hooks: bitwise, after three steps.

    And a model that is compiled has as many graphs as without us.
    """
    callback = ModelSummaryCallback(verbose=False)
    graphs = []
    plain, observed = trainer(tmp_path, **SETTINGS[name]), trainer(tmp_path, callback, **SETTINGS[name])
    for run in (plain, observed):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(2)
        if name == "evaluation first":
            run.evaluate()
            assert callback.summary is None
        run.train()
        graphs.append((counters["stats"]["unique_graphs"], dict(counters["frames"])))
    assert left_behind() == NOTHING
    assert result(observed) == result(plain)
    assert graphs[0] == graphs[1]
    assert (graphs[0][0] > 0) == (name == "compiled")
    summary = callback.summary
    assert summary is not None
    assert summary.incomplete == ()
    batches = 2 if name == "accumulation" else 1
    assert [note.kind for note in summary.notes] == (["forwards", "backwards", "dataflow"] if batches == 2 else [])
    assert (summary.root.type_name, summary.root.calls) == ("LlamaForCausalLM", batches)
    assert list(summary.modules)[:3] == ["", "model", "model.embed_tokens"]
    assert summary.forward_macs == batches * FORWARD
    assert summary.backward_macs == 2 * batches * FORWARD  # an embedding's output needs its gradient, too
    # a checkpoint runs each layer again, up to its last product: no backward needs what that makes
    again = LAYERS * (LAYER - TOKENS * WIDTH * INNER)
    assert summary.root.total.recompute_macs == (again if name == "checkpointing" else 0)
    known = summary.environment
    assert known.precision == ("bfloat16 autocast" if name == "bf16" else "float32")
    assert (known.framework, known.strategy, known.world_size) == ("transformers", "DistributedType.NO", 1)
    assert (known.optimizer, known.training) == ("AdamW", True)


def test_every_training_is_observed_and_is_in_the_trainers_run(tmp_path: Path) -> None:
    """A training, and one that is resumed, each beside the Trainer's own event file."""
    callback = ModelSummaryCallback(verbose=False)
    run = trainer(tmp_path, callback, report_to="tensorboard", save_strategy="steps", save_steps=2)
    run.train()
    first = callback.summary
    assert first is not None
    (folder,) = (tmp_path / "runs").iterdir()
    # ours comes first: where there is a later file, TensorBoard's slower loader never goes back to an earlier one
    assert [path.name.endswith(structure(first)) for path in sorted(folder.iterdir())] == [True, False]
    assert summarycb.load(f"tensorboard:{folder}") == first
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    second = callback.summary
    assert second is not None
    assert summarycb.load(f"tensorboard:{folder}") == second  # the newest
    # what differs is that the optimizer's state is there from the start
    starts = [summary.memory.timeline[0].optimizer_state for summary in (first, second)]
    assert starts == [0, first.memory.optimizer_state]
    assert second.step_flops == first.step_flops
    assert left_behind(run.model) == NOTHING


def test_a_training_of_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer's writer is closed before our turn comes as training ends: the summary is waited for before that."""
    waited_for = threading.Event()
    write, flush = TensorBoardTracker.write, Publisher.flush

    def write_late(self: TensorBoardTracker, report: Report, *, step: int) -> None:
        assert waited_for.wait(10)
        write(self, report, step=step)

    def flushes(self: Publisher) -> None:
        waited_for.set()
        flush(self)

    monkeypatch.setattr(TensorBoardTracker, "write", write_late)
    monkeypatch.setattr(Publisher, "flush", flushes)
    callback = ModelSummaryCallback(verbose=False)
    trainer(tmp_path, callback, report_to="tensorboard", max_steps=1).train()
    (folder,) = (tmp_path / "runs").iterdir()
    assert summarycb.load(f"tensorboard:{folder}") == callback.summary


def test_a_name_is_the_trainers_writer(tmp_path: Path) -> None:
    """One that the user has made himself; what is not there does not stop the others."""
    from torch.utils.tensorboard import SummaryWriter

    callback = ModelSummaryCallback(trackers=["wandb", "tensorboard"], verbose=False)
    writer = SummaryWriter(str(tmp_path / "mine"))
    with pytest.warns(SummaryWarning, match=r"^the model summary was not written to 'wandb': 'wandb': "):
        trainer(tmp_path, callback, TensorBoardCallback(writer)).train()
    assert summarycb.load(f"tensorboard:{tmp_path}/mine") == callback.summary


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With a database of the test's own."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.create_experiment("tests", artifact_location=tmp_path.as_uri())
    mlflow.set_experiment("tests")
    return mlflow


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_and_wandb(mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs that the Trainer's own callbacks begin.

    MLflow's ends with each training, and that of a second one begins as late as with its first log.
    """
    import wandb

    wandb.teardown()  # it remembers the folder in which another test began
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    callback = ModelSummaryCallback(verbose=False)
    run = trainer(tmp_path, callback, report_to=["mlflow", "wandb"], logging_steps=2, max_steps=6)  # one epoch
    runs = []
    try:
        for _ in range(2):
            run.train()
            runs.append(mlflow.last_active_run())
            assert runs[-1] is not None
            assert summarycb.load(f"mlflow:{runs[-1].info.run_id}") == callback.summary
        assert wandb.run is not None
        folder = Path(wandb.run.dir).parent
    finally:
        wandb.finish()
    assert len({one.info.run_id for one in runs if one}) == 2
    assert summarycb.load(f"wandb:{folder}") == callback.summary
    assert [thread for thread in threading.enumerate() if thread.name.startswith("summarycb-")] == []


@pytest.mark.slow
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_second_training_that_raises_before_its_first_log(
    dropped: bool, mlflow: Any, tmp_path: Path, copies: Path
) -> None:
    """No run was begun for it: the summary is in a file, and no thread waits for that run."""
    callback = ModelSummaryCallback(verbose=False)
    run = trainer(tmp_path, callback, report_to="mlflow", logging_steps=100)
    run.train()
    assert not copies.exists()
    run.fails = len(run.losses) + 2
    with pytest.raises(ZeroDivisionError):
        run.train()
    second = callback.summary
    (writing,) = [thread for thread in threading.enumerate() if thread.name.startswith("summarycb-")]
    flush = callback._watch._publisher.flush  # type: ignore[union-attr]
    if dropped:
        del run, callback
        gc.collect()
    else:
        run.fails = None
        run.train()
    writing.join(10)
    assert not writing.is_alive()
    (copy,) = copies.iterdir()
    assert summarycb.load(copy) == second
    with pytest.warns(SummaryWarning, match=r"^the model summary was not written to 'mlflow': 'mlflow': "):
        flush()


@pytest.mark.parametrize("again", [False, True], ids=["dropped", "trained again"])
def test_a_step_that_raises(again: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error is the user's; nothing is left when the Trainer is dropped; a new ``train()`` is observed anew."""
    callback = ModelSummaryCallback(depth=0)
    run = trainer(tmp_path, callback)
    run.fails = 1
    with pytest.raises(ZeroDivisionError, match=r"^the user's own$"):
        run.train()
    assert callback.summary is None
    if again:
        run.train()
        assert callback.summary is not None
        assert (callback.summary.root.calls, callback.summary.incomplete) == (1, ())
        assert (callback.summary.forward_macs, callback.summary.backward_macs) == (FORWARD, 2 * FORWARD)
        assert hooks_of(run.model) == {}  # type: ignore[arg-type]
        assert capsys.readouterr().out.count("step    training") == 1
    else:
        del run, callback
        gc.collect()
    assert left_behind() == NOTHING


class Adapted(nn.Module):
    """As PEFT wraps a model: the base is frozen, and small products are added to some of its layers."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base_model = base.requires_grad_(False)
        self.config = base.config
        for layer in base.model.layers:
            layer.self_attn.q_proj = LoRA(layer.self_attn.q_proj)

    def forward(self, **inputs: Any) -> Any:
        return self.base_model(**inputs)


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A, self.lora_B = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def test_a_model_with_adapters(tmp_path: Path) -> None:
    callback = ModelSummaryCallback(verbose=False)
    trainer(tmp_path, callback, model=Adapted(llama()), remove_unused_columns=False).train()
    summary = callback.summary
    assert summary is not None
    adapters = 2 * WIDTH + WIDTH * 2
    assert summary.trainable_params == LAYERS * adapters
    assert summary.forward_macs == FORWARD + LAYERS * TOKENS * adapters
    assert summary.memory.gradients == 4 * LAYERS * adapters
    # both products of the adapters' backward, but for the first layer's input, which needs no gradient
    lora = summary["base_model.model.layers.0.self_attn.q_proj.lora_A"]
    assert lora.total.backward_macs == TOKENS * 2 * WIDTH


def test_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A classifier with a mask; what is printed says where it ran."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=INNER
    )
    run = trainer(tmp_path, ModelSummaryCallback(depth=1), model=BertForSequenceClassification(config))
    mask = torch.ones(LENGTH, dtype=torch.long)
    run.train_dataset = [{"attention_mask": mask, **row, "labels": torch.tensor(1)} for row in texts()]
    run.train()
    printed = capsys.readouterr().out
    assert "step    training · cpu · float32 · AdamW · transformers · DistributedType.NO" in printed
    assert [line.split()[:2] for line in printed.splitlines() if line.startswith(("├", "└", "("))] == [
        ["├", "bert"],
        ["├", "dropout"],
        ["└", "classifier"],
        ["(outside)", "loss,"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": True}, "depth must be None"),
        ({"columns": "params"}, "columns must be a list of names"),
        ({"timeout": -1}, "timeout must be a number of seconds"),
        ({"trackers": None}, "trackers must be a list"),
        ({"trackers": ["comet"]}, "unknown tracker 'comet'"),
    ],
)
def test_a_wrong_argument_raises_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SummaryError, match=message):
        ModelSummaryCallback(**arguments)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "summarycb_transformers")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'summarycb\[transformers\]'"):
        importlib.import_module("summarycb_transformers")


@pytest.mark.parametrize("fault", ["_trainer", "_writers", "open_targets", "watch"])
def test_a_fault_does_not_reach_the_training(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trainer(tmp_path)
    plain.train()
    callback = ModelSummaryCallback(trackers=["tensorboard"], verbose=False)
    plant(monkeypatch, summarycb_transformers, fault)
    observed = trainer(tmp_path, callback)
    with pytest.warns(SummaryWarning, match=r"^the model summary could not be made: Planted: on purpose$"):
        observed.train()
    assert result(observed) == result(plain)
    assert callback.summary is None


@pytest.mark.parametrize("train_first", [False, True])
def test_a_copy(train_first: bool, tmp_path: Path) -> None:
    """As a search for hyperparameters makes it before it trains."""
    again: Callable[[Any], Any] = copy.deepcopy
    callback = again(ModelSummaryCallback(depth=1, verbose=False))
    if train_first:
        trainer(tmp_path, callback).train()
    trainer(tmp_path, callback).train()
    assert callback.summary is not None
