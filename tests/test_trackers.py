"""What goes into TensorBoard, W&B and MLflow comes back equal, and none of them can hold up or break training.

Real parts only: event files, an offline W&B run, MLflow on sqlite.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from summarycb.errors import SummaryError, SummaryWarning
from summarycb.publish import Publisher
from summarycb.report import Report
from summarycb.serialize import load
from summarycb.specs import Nested, Opaque, ParameterSpec, TensorSpec
from summarycb.step import Environment, Memory, Moment, Note
from summarycb.trackers import check_names, names, open_reference, resolve, wrap
from summarycb.tree import ModelSummary, ModuleSummary, Work
from tests.literal import group

# mlflow 3.17 uses an option that SQLAlchemy 2.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

IMAGE = TensorSpec((2, 3), "float32", "cpu")
WEIGHT = ParameterSpec("weight", (4, 3), "float32", "cpu", True, 48, gradient=48, optimizer_state=96)
LINEAR = ModuleSummary(
    "größe|`0`", "größe|`0`", "Linear", "in_features=3, out_features=4", True, (WEIGHT,), (),
    (group(1, (IMAGE,), TensorSpec((2, 4), "float32", "cpu"), Work(24, 48, 0, 24, 0)),),
)  # fmt: skip
ODD = ModuleSummary(
    "<b>层 🙂</b>", "<b>层 🙂</b>", "Odd",
    call_groups=(
        group(2, Nested("dict", (("x", (IMAGE, None)), ("mode", Opaque("str")))), None, Work(2**60, None, 0, 0, 0)),
    ),
)  # fmt: skip
SUMMARY = ModelSummary(
    ModuleSummary("", "", "Net", call_groups=(group(1, None, None, Work(0, 0, 0, 0, 0)),), children=(LINEAR, ODD)),
    outside=Work(0, 0, 0, 8, 0),
    memory=Memory(48, 0, 48, 96, 32, 0, 24, Moment("backward", "größe|`0`", 48, 0, 48, 96, 32, 0, 24, 56)),
    environment=Environment("0.1.0", torch="2.13.0", device="cpu"),
    optimizer_macs=0,
    notes=(Note("unknown", 'no formula for "mylib::op"', "<b>层 🙂</b>"),),
)
METRICS = {
    "model_summary/total_params": 12,  # 4 x 3
    "model_summary/trainable_params": 12,
    "model_summary/total_buffers": 0,
    "model_summary/forward_macs": 24 + 2**60,  # 2 x 3 x 4, and the odd module's
    "model_summary/forward_flops": 2 * (24 + 2**60),
    "model_summary/memory_parameters_bytes": 48,  # backward and step are unknown: no metric
    "model_summary/memory_buffers_bytes": 0,
    "model_summary/memory_gradients_bytes": 48,
    "model_summary/memory_optimizer_state_bytes": 96,
    "model_summary/memory_saved_activations_bytes": 32,
    "model_summary/memory_weight_copies_bytes": 0,
    "model_summary/memory_batch_bytes": 24,
    "model_summary/memory_peak_bytes": 304,
}
NEWER = replace(SUMMARY, optimizer_macs=7)
KINDS = ["tensorboard", "wandb", "mlflow"]


@dataclass
class Store:
    native: Any
    reference: str
    folder: Path  # everything that was stored


@pytest.fixture
def report() -> Report:
    return Report(SUMMARY)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Any]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "tb")) as writer:
        yield writer


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in {"MODE": "offline", "SILENT": "true", "ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("DATA", "CACHE", "CONFIG"):  # artifacts wait there, not in the folder of the run
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    wandb = importlib.import_module("wandb")
    yield wandb
    wandb.finish()


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"  # once: its migrations take seconds


@pytest.fixture
def mlflow(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    mlflow = importlib.import_module("mlflow")
    mlflow.set_tracking_uri(mlflow_uri)
    mlflow.set_experiment(experiment_id=mlflow.create_experiment(str(tmp_path), (tmp_path / "artifacts").as_uri()))
    yield mlflow
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    library = request.getfixturevalue({"tensorboard": "writer"}.get(request.param, request.param))
    if request.param == "tensorboard":
        return Store(library, f"tensorboard:{tmp_path / 'tb'}", tmp_path / "tb")
    if request.param == "wandb":
        run = library.init(project="p", dir=tmp_path)
        return Store(run, f"wandb:{Path(run.dir).parent}", Path(run.dir))
    run = library.start_run()
    return Store(run, f"mlflow:{run.info.run_id}", tmp_path / "artifacts")


def write(target: object, summary: ModelSummary = SUMMARY, step: int = 0) -> Any:
    (tracker,) = resolve([target])
    tracker.write(Report(summary), step=step)
    return tracker


# --- every tracker --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_what_is_read_equals_what_was_written(store: Store) -> None:
    tracker = write(store.native)
    assert tracker.read() == load(store.reference) == open_reference(store.reference).read() == SUMMARY


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_a_second_report_takes_the_place_of_the_first(store: Store) -> None:
    """A training that is resumed writes again; the newest summary counts."""
    tracker = write(store.native)
    tracker.write(Report(NEWER), step=5)
    assert tracker.read() == load(store.reference) == NEWER


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_reading_where_nothing_is_names_the_place(store: Store) -> None:
    with pytest.raises(SummaryError, match=r"model.summary") as caught:
        load(store.reference)
    assert store.reference.partition(":")[2] in str(caught.value)


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_no_path_of_the_machine_is_stored(store: Store, tmp_path: Path) -> None:
    write(store.native)
    files = [f for f in store.folder.rglob("*") if f.is_file() and ("summary" in f.name or "tfevents" in f.name)]
    assert files
    assert not [f for f in files if str(tmp_path).encode() in f.read_bytes()]


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_a_background_thread_may_write(store: Store) -> None:
    publisher = Publisher([wrap(store.native)], timeout=60)
    publisher.publish(Report(SUMMARY), step=3)
    publisher.flush()  # a warning would be an error here
    assert load(store.reference) == SUMMARY


@pytest.mark.parametrize("store", ["wandb", "mlflow"], indirect=True)
def test_of_two_reports_at_once_the_run_has_one_whole(store: Store) -> None:
    """As of two models that are watched in one run: the second is written while the first is halfway."""
    halfway, written = threading.Event(), threading.Event()

    class Halfway(Report):
        @cached_property
        def json(self) -> str:
            halfway.set()
            written.wait(1)  # in vain, where one waits for the other
            return super().json

    other = replace(SUMMARY, root=replace(SUMMARY.root, children=(ODD,)))  # has no parameters
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(wrap(store.native).write, Halfway(SUMMARY), step=0)
        assert halfway.wait(60)
        second = threads.submit(wrap(store.native).write, Report(other), step=0)
        second.add_done_callback(lambda _: written.set())
        assert (first.result(60), second.result(60)) == (None, None)
    if store.reference.startswith("wandb"):
        totals = dict(store.native.summary)
    else:
        totals = importlib.import_module("mlflow").MlflowClient().get_run(store.native.info.run_id).data.metrics
    assert (load(store.reference), totals["model_summary/total_params"]) == (other, 0)


def test_foreign_objects_are_nobodys() -> None:
    from torch import nn

    look_alikes = [type(name, (), {"log_dir": "x", "dir": "x"})() for name in ("SummaryWriter", "Run", "WandbLogger")]
    for target in [None, 1, "runs/exp1", object(), nn.Linear(1, 1), *look_alikes]:
        assert wrap(target) is None


def test_a_library_that_is_missing_is_named_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("wandb", "mlflow", "tensorboard.backend.event_processing.event_accumulator"):
        monkeypatch.setitem(sys.modules, module, None)
    calls = [
        ("wandb", lambda: open_reference("wandb")),
        ("mlflow", lambda: open_reference("mlflow:abc")),
        ("tensorboard", lambda: load("tensorboard:runs")),
    ]
    for name, call in calls:
        with pytest.raises(ModuleNotFoundError) as caught:
            call()
        assert str(caught.value) == f"{name} is not installed; install it with: pip install 'summarycb[{name}]'"
        assert caught.value.name == name


# --- Lightning's loggers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning_loggers_are_taken(package: str, tmp_path: Path, wandb: Any, mlflow: Any, mlflow_uri: str) -> None:
    loggers = importlib.import_module(f"{package}.loggers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, on some versions of the trackers
        mine = [
            loggers.TensorBoardLogger(str(tmp_path)),
            loggers.WandbLogger(offline=True, save_dir=tmp_path),
            loggers.MLFlowLogger(tmp_path.name + package, tracking_uri=mlflow_uri, artifact_location=tmp_path.as_uri()),
        ]
        trackers = resolve(mine)
    for tracker in trackers:
        tracker.write(Report(SUMMARY), step=1)
    assert [tracker.read() for tracker in trackers] == [SUMMARY] * 3
    mine[0].finalize("success")


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning_dummies_are_nobodys(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``fast_dev_run``, and on every rank but the first, Lightning gives objects that have every attribute."""
    loggers = importlib.import_module(f"{package}.loggers")
    dummy = importlib.import_module(f"{package}.loggers.logger").DummyLogger()
    assert wrap(dummy) is None
    assert wrap(dummy.experiment) is None
    with pytest.raises(SummaryError, match="no tracker takes 'DummyLogger'"):
        resolve([dummy])
    rank_zero = importlib.import_module(
        "lightning.fabric" if "." in package else "lightning_fabric"
    ).utilities.rank_zero
    monkeypatch.setattr(rank_zero.rank_zero_only, "rank", 1)
    for logger in (
        loggers.TensorBoardLogger(str(tmp_path)),
        loggers.WandbLogger(offline=True, save_dir=tmp_path),
        loggers.MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/m.db"),
    ):
        assert wrap(logger) is None


# --- TensorBoard ----------------------------------------------------------------------------------------------------


def test_tensorboard_holds_scalars_text_and_json(writer: Any, report: Report, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(writer, step=3)
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    # all but 2**60 + 24 fit a 32-bit float exactly, and that one is rounded to 2**60
    assert {name: events.Scalars(name)[0].value for name in METRICS} == {
        **METRICS,
        "model_summary/forward_macs": 2**60,
        "model_summary/forward_flops": 2**61,
    }
    assert {events.Scalars(name)[0].step for name in METRICS} == {3}
    (text,) = events.Tensors("model_summary/text/text_summary")
    assert text.tensor_proto.string_val[0].decode() == f"```\n{report.text}\n```"
    (stored,) = events.Tensors("model_summary/json")
    assert stored.tensor_proto.string_val[0] == report.json.encode()
    assert list(events.PluginTagToContent("summarycb")) == ["model_summary/json"]


def test_tensorboard_keeps_the_summary_through_much_logging_and_a_restart(tmp_path: Path) -> None:
    """Neither TensorBoard's reservoir of ten tensors a tag nor a purge of later steps may lose it."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(12):
            write(writer, NEWER if step == 11 else SUMMARY, step)
    with SummaryWriter(str(tmp_path), purge_step=1) as writer:
        writer.add_scalar("loss", 1.0, 1)
    assert load(f"tensorboard:{tmp_path}") == NEWER


def test_tensorboard_writes_to_a_log_directory(tmp_path: Path) -> None:
    assert write(f"tensorboard:{tmp_path}").read() == SUMMARY


def test_tensorboard_needs_a_log_directory() -> None:
    with pytest.raises(
        SummaryError, match="'tensorboard' names no run: give a SummaryWriter, or 'tensorboard:<logdir>'"
    ):
        resolve(["tensorboard"])
    with pytest.raises(SummaryError, match="no model summary in the TensorBoard log directory '/nowhere'"):
        load("tensorboard:/nowhere")


def test_tensorboardx_writers_are_taken(tmp_path: Path) -> None:
    library = pytest.importorskip("tensorboardX")
    with library.SummaryWriter(str(tmp_path)) as writer:
        tracker = write(writer)
    assert tracker.read() == SUMMARY  # closed first: tensorboardX's flush does not wait for its own queue


# --- MLflow ---------------------------------------------------------------------------------------------------------


def test_mlflow_holds_metrics_table_text_and_json(mlflow: Any, report: Report, capfd: pytest.CaptureFixture) -> None:
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        mlflow.log_table({"mine": [1]}, "mine.json")
    run_id = run.info.run_id
    for step in (3, 4):
        assert write(run_id, step=step).read() == SUMMARY  # by id, after the run has ended, and twice
    output = capfd.readouterr().err
    assert "Downloading" not in output

    assert client.get_run(run_id).data.metrics == {k: float(v) for k, v in METRICS.items()}
    assert [m.step for m in client.get_metric_history(run_id, "model_summary/total_params")] == [3]
    names = [f.path for f in client.list_artifacts(run_id)]
    assert names == ["mine.json", *(f"model_summary{end}" for end in (".html", ".json", ".txt", "_table.json"))]
    artifacts = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "model_summary.json").read_bytes() == report.json.encode()
    assert (artifacts / "model_summary.txt").read_bytes() == report.text.encode()
    table = json.loads((artifacts / "model_summary_table.json").read_bytes())
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == report.table
    tables = json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"])
    assert tables == [{"path": p, "type": "table"} for p in ("mine.json", "model_summary_table.json")]
    frame = mlflow.load_table("model_summary_table.json", run_ids=[run_id])
    assert list(frame["path"]) == ["", "größe|`0`", "<b>层 🙂</b>"]


def test_mlflow_bare_name_is_the_active_run_and_starts_none(mlflow: Any) -> None:
    with pytest.raises(SummaryError, match="'mlflow': no MLflow run is active"):
        resolve(["mlflow"])
    with mlflow.start_run() as run:
        publisher = Publisher(resolve(["mlflow"]), timeout=60)
        publisher.publish(Report(SUMMARY), step=0)
        publisher.flush()
    assert [r.info.run_id for r in mlflow.search_runs(output_format="list")] == [run.info.run_id]
    assert load(f"mlflow:{run.info.run_id}") == SUMMARY


def test_mlflow_run_that_does_not_exist_is_named_without_a_password(mlflow: Any, mlflow_uri: str) -> None:
    with pytest.raises(SummaryError, match=f"MLflow run 'nope' at {mlflow_uri}: .*nope"):
        load("mlflow:nope")
    mlflow.set_tracking_uri("http://me:secret@127.0.0.1:9")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(SummaryError, match=r"MLflow run 'nope' at http://127\.0\.0\.1:9: "):
            load("mlflow:nope")


# --- discovery ------------------------------------------------------------------------------------------------------


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_names_are_listed_and_adapters_imported_without_any_library() -> None:
    libraries = "{'torch', 'tensorboard', 'wandb', 'mlflow', 'pandas'}"
    code = "import sys; from summarycb.trackers import names; print(names(), [m for m in sys.modules if 'cb_' in m])"
    assert run_python(code) == "['mlflow', 'tensorboard', 'wandb'] []"
    code = (
        f"import sys, summarycb_tensorboard, summarycb_wandb, summarycb_mlflow; print({libraries} & set(sys.modules))"
    )
    assert run_python(code) == "set()"


def test_an_unknown_name_is_answered_with_the_allowed_ones() -> None:
    with pytest.raises(SummaryError) as caught:
        check_names(["nope"])
    assert str(caught.value) == (
        "unknown tracker 'nope'; allowed are the names mlflow, tensorboard, wandb, a reference such as "
        "'mlflow:<run_id>', or a native run, writer or logger"
    )
    with pytest.raises(SummaryError, match="trackers must be a list of trackers, not 'wandb'"):
        resolve("wandb")


GOOD = """
class Tracker:
    def __init__(self, where): self.where = where
    @classmethod
    def wrap(cls, target): return cls("wrapped") if isinstance(target, bytearray) else None
    @classmethod
    def open(cls, reference): return cls(reference)
    def write(self, report, *, step): self.written = (report.summary, step)
    def read(self): return self.written[0]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``install(module, name, source)`` makes an installed package with one entry point, as pip would."""

    def install(module: str, name: str, source: str) -> None:
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[summarycb.trackers]\n{name} = {module}:Tracker\n")
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def test_a_strangers_tracker_is_found_like_ours(install: Any) -> None:
    install("stranger_a", "stranger", GOOD)
    assert names() == ["mlflow", "stranger", "tensorboard", "wandb"]
    wrapped, opened = resolve([bytearray(), "stranger:here"])
    assert (wrapped.where, opened.where) == ("wrapped", "stranger:here")
    own = type(opened)("mine")
    assert resolve([own]) == [own]  # an adapter itself is taken as it is


def test_two_trackers_of_one_name_are_both_named(install: Any, writer: Any) -> None:
    install("twin_a", "twin", GOOD)
    install("twin_b", "twin", GOOD)
    with pytest.raises(
        SummaryError, match=r"several installed packages offer a tracker named 'twin': .*uninstall all but"
    ) as e:
        open_reference("twin:x")
    assert "twin_a:Tracker" in str(e.value)
    assert "twin_b:Tracker" in str(e.value)
    with pytest.warns(SummaryWarning, match="'twin' could not be asked for SummaryWriter: several installed packages"):
        assert type(wrap(writer)).__name__ == "TensorBoardTracker"


BAD = "tracker 'bad' (bad_plugin:Tracker)"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('boom')", f"{BAD} cannot be imported: RuntimeError: boom"),
        ("", f"{BAD} cannot be imported: AttributeError: module 'bad_plugin' has no attribute 'Tracker'"),
        (GOOD.replace("def read", "def reed"), f"{BAD} lacks read"),
    ],
    ids=["raises on import", "no such class", "lacks a method"],
)
def test_a_broken_tracker_is_named_and_the_others_work(install: Any, writer: Any, source: str, message: str) -> None:
    install("bad_plugin", "bad", source)
    with pytest.raises(SummaryError) as caught:
        resolve(["bad"])
    assert str(caught.value) == message
    with pytest.warns(SummaryWarning) as warned:
        wrapped = [type(wrap(writer)).__name__ for _ in range(2)]
    assert wrapped == ["TensorBoardTracker"] * 2
    assert [str(w.message) for w in warned] == [  # once in a process
        f"tracker 'bad' could not be asked for SummaryWriter: {message}"
    ]
