"""Promise 4 as a matrix: every fault, in each way to observe, with warnings as they are and with warnings as errors.

In each the training completes with everything bitwise what it is without the package, nothing is left behind, the user
is told once what is missing, and what there is of a summary can be stored, read and shown.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import random
import re
import subprocess
import sys
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt
from rich.cells import cell_len
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

import summarycb
from summarycb import formulas
from summarycb.errors import SummaryError, SummaryWarning
from summarycb.progress import Progress
from summarycb.tree import ModelSummary
from tests.test_faults import COLLECTORS, FAULTS, LATER, OBSERVE, Broken, Planted, plant
from tests.trainings import NOTHING, everything, left_behind, step

DELIVER, SERIALIZE, TERMINAL, VIEW = (
    importlib.import_module(f"summarycb.{name}") for name in ("deliver", "serialize", "render.terminal", "view")
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '(train|val|predict)_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),  # Lightning 2.6 on torch 2.13
]


class Small(nn.Module):
    """Four layers, one after the other, whatever their names are. Input 4 x 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop, self.head = (
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.25), nn.Linear(4, 5),
        )  # fmt: skip
        self.order = [self.first, self.norm, self.drop, self.head]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.order:
            x = layer(x)
        return x


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(4, 3, generator=generator), torch.randint(5, (4,), generator=generator)) for _ in range(3)]


# --- ways to observe --------------------------------------------------------------------------------------------------


@dataclass
class Options:
    trackers: tuple[object, ...] = ()
    verbose: bool = False
    timeout: float = 60.0  # that a machine is slow is no fault


Losses = list[torch.Tensor]
Way = Callable[[Small, torch.optim.Optimizer, Options | None], tuple[nn.Module, Losses, ModelSummary | None]]


def watch(
    model: Small, optimizer: torch.optim.Optimizer, options: Options | None
) -> tuple[nn.Module, Losses, ModelSummary | None]:
    hook = None if options is None else summarycb.watch(model, **vars(options))
    losses = [step(model, optimizer, x, y) for x, y in batches()]
    if hook is not None:
        hook.close()
    return model, losses, None if hook is None else hook.summary


def observe(
    model: Small, optimizer: torch.optim.Optimizer, options: Options | None
) -> tuple[nn.Module, Losses, ModelSummary | None]:
    first, *rest = batches()
    observation = None if options is None else summarycb.observe(model)
    with contextlib.nullcontext() if observation is None else observation:
        losses = [step(model, optimizer, *first)]
    losses += [step(model, optimizer, x, y) for x, y in rest]
    return model, losses, None if observation is None else observation.summary


def callback(
    model: Small, optimizer: torch.optim.Optimizer, options: Options | None
) -> tuple[nn.Module, Losses, ModelSummary | None]:
    import lightning.pytorch as L

    class Lit(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.losses = model, list[torch.Tensor]()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.losses.append(loss.detach())
            return loss

        def configure_optimizers(self) -> Any:
            return optimizer

        def train_dataloader(self) -> Any:
            return DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]

    lit = Lit()
    callbacks = [] if options is None else [summarycb.ModelSummaryCallback(**vars(options))]
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    L.Trainer(callbacks=callbacks, max_epochs=1, accelerator="cpu", log_every_n_steps=1, **quiet).fit(lit)
    return lit, lit.losses, None if options is None else callbacks[0].summary


PLAIN_LOOPS: tuple[Way, ...] = (watch, observe)
WITH_TRACKERS: tuple[Way, ...] = (watch, callback)
ALL: tuple[Way, ...] = (watch, observe, callback)


Method = Callable[..., Any]


def raises(*_: Any, **__: Any) -> Any:
    raise Planted("on purpose")


def returns(value: Any) -> Method:
    return lambda *_, **__: value


@dataclass(frozen=True)
class Row:
    """A model that is not what one expects, and what the user is told of it, if anything."""

    reshape: Callable[[Small], Any] = lambda model: None
    """Changes what the model consists of, before its optimizer is made."""
    methods: dict[str, Any] = field(default_factory=dict)
    """What the classes of the model and of two of its layers have in place of what they inherit."""
    metaclass: type = type
    ways: tuple[Way, ...] = ALL


def train(way: Way, row: Row, options: Options | None) -> tuple[dict[str, Any], ModelSummary | None]:
    """All that is there after a training, and the summary."""
    torch.manual_seed(0)
    random.seed(0)
    model = Small()
    row.reshape(model)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    changed = [model, model.order[0], model.order[-1]] if row.methods or row.metaclass is not type else []
    kinds = [type(module) for module in changed]
    for module, kind in zip(changed, kinds, strict=True):
        module.__class__ = row.metaclass(kind.__name__, (kind,), dict(row.methods))
    whole, losses, summary = way(model, optimizer, options)
    for module, kind in zip(changed, kinds, strict=True):
        module.__class__ = kind  # so that it can be looked at
    assert left_behind(whole) == NOTHING
    return everything(whole, optimizer, losses), summary


@contextlib.contextmanager
def told(as_errors: bool, caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What the user is told: by warnings or, where these are errors, in the log."""
    said: list[str] = []
    with warnings.catch_warnings(record=not as_errors) as caught:
        warnings.simplefilter("error" if as_errors else "always", SummaryWarning)
        yield said
    said += [str(w.message) for w in caught or () if issubclass(w.category, SummaryWarning)]
    said += [record.getMessage() for record in caplog.records if record.name == "summarycb"]


def check(summary: ModelSummary) -> None:
    """It can be stored, read and shown without harm."""
    stored = summary.to_json().encode()
    assert ModelSummary.from_json(stored.decode()) == summary
    for width in (40, 100):
        lines = summary.to_text(depth=None, width=width).split("\n")
        assert max(map(cell_len, lines)) <= width
        assert [c for line in lines for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")] == []
    kinds = [token.type for token in MarkdownIt().enable("table").parse(summary.to_markdown(depth=1))]
    rows = 1 + len(summary.root.children) + (summary.observed != "structure")
    cells = rows * kinds.count("th_open")
    assert (kinds.count("table_open"), kinds.count("tr_open"), kinds.count("td_open")) == (1, 1 + rows, cells)


def under(name: str) -> Row:
    """The last layer, and a parameter of it, have this name."""

    def rename(model: Small) -> None:
        model._modules[name] = model._modules.pop("head")
        head = model.order[-1]
        head._parameters[name] = nn.Parameter(torch.ones(2))
        head._buffers[name] = torch.ones(3)

    return Row(rename)


def nested(depth: int, **more: Any) -> Row:
    def nest(model: Small) -> None:
        for _ in range(depth):
            model.order[-1] = nn.Sequential(model.order[-1])
        model.head = model.order[-1]

    return Row(nest, **more)


def cycle(model: Small) -> None:
    model.norm.above = model
    model.drop.itself = model.drop


def long_list(model: Small) -> None:
    model.more = nn.ModuleList(nn.Identity() for _ in range(5_000))


class Touchy(nn.Parameter):
    numel = element_size = dim = size = stride = nelement = storage_offset = type = raises
    __repr__ = __str__ = __len__ = __bool__ = __eq__ = __iter__ = __contains__ = __format__ = raises
    __hash__ = torch.Tensor.__hash__


def touchy(model: Small) -> None:
    model.head.weight = Touchy(model.head.weight.detach())


def no_buffer(model: Small) -> None:
    model.register_buffer("nothing", None)
    model.head.register_parameter("nothing", None)


def unknown_attribute(self: nn.Module, name: str) -> Any:
    try:
        return nn.Module.__getattr__(self, name)
    except AttributeError:
        raise Planted(name) from None


class NameRaises(type):
    __name__ = property(raises)


class NameLies(type):
    __name__ = property(returns(7))


HEALTHY = "nothing odd"
WALKS = [f"{named}{what}" for named in ("", "named_") for what in ("modules", "parameters", "children", "buffers")]
REPRS = ["extra_repr", "__repr__", "__str__", "__len__", "__bool__"]
NAMES = {
    "dots": "a.b..c",
    "slashes": "a/b\\c//",
    "quotes": """ 'a"b`c``d' """,
    "HTML": "<script>alert('&amp;')</script><!-- ",
    "Markdown": "a|b\\|c\\",
    "newlines": "a\nb\r\nc\rd\x0be\x0cf\x85g\u2028h\u2029",
    "ANSI escapes": "\x1b[31mred\x1b]0;title\x07\x9b2J\x7f\0\b",
    "wide": "层🙂é\u200d\u202e",
    "a lone surrogate": "a\ud800b",
    "nothing": "",
    "10,000 characters": "x" * 10_000,
}
MODELS: dict[str, Row] = {
    HEALTHY: Row(),
    "__getattr__ raises": Row(methods={"__getattr__": unknown_attribute}),
    **{f"{name} raises": Row(methods={name: raises}) for name in REPRS},
    "__eq__ raises": Row(methods={"__eq__": raises, "__hash__": object.__hash__}),
    "__hash__ raises": Row(methods={"__hash__": raises}, ways=PLAIN_LOOPS),
    "__len__ is 0": Row(methods={"__len__": returns(0)}),
    "__bool__ is False": Row(methods={"__bool__": returns(False)}),
    "__eq__ is True": Row(methods={"__eq__": returns(True), "__hash__": returns(1)}, ways=PLAIN_LOOPS),
    "extra_repr is None": Row(methods={"extra_repr": returns(None)}),
    "extra_repr is odd": Row(methods={"extra_repr": returns("\x1b[31m|\n\ud800" + "x" * 10_000)}),
    **{f"{name} raises": Row(methods={name: raises}, ways=PLAIN_LOOPS) for name in (*WALKS, "state_dict")},
    **{f"{name} lies": Row(methods={name: returns(iter([3, (4, 5)]))}, ways=PLAIN_LOOPS) for name in WALKS},
    "state_dict lies": Row(methods={"state_dict": returns(3)}),
    "training raises": Row(methods={"training": property(raises)}, ways=PLAIN_LOOPS),
    "training lies": Row(methods={"training": property(returns("yes"), returns(None))}),
    "__name__ of the class raises": Row(metaclass=NameRaises),
    "__name__ of the class is a number": Row(metaclass=NameLies),
    **{f"a name of {kind}": under(name) for kind, name in NAMES.items()},
    "a cycle": Row(cycle, ways=PLAIN_LOOPS),
    "100 deep": nested(100),
    "1,000 deep": nested(1_000),
    "a list of 5,000": Row(long_list),
    "a parameter whose methods raise": Row(touchy),
    "a buffer that is None": Row(no_buffer),
}


@cache
def plain(way: Way, name: str) -> dict[str, Any]:
    return train(way, MODELS[name], None)[0]


@cache
def whole(way: Way) -> ModelSummary | None:
    return train(way, MODELS[HEALTHY], Options())[1]


@pytest.fixture
def deep() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.parametrize("as_errors", [False, True], ids=["warnings", "errors"])
@pytest.mark.parametrize(
    ("way", "name"),
    [pytest.param(way, name, id=f"{way.__name__}-{name}") for name, row in MODELS.items() for way in row.ways],
)
def test_a_model_that_is_odd(
    way: Way, name: str, as_errors: bool, deep: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = plain(way, name)
    options = Options(trackers=() if way is observe else (f"tensorboard:{tmp_path}",))
    with told(as_errors, caplog) as said:
        found, summary = train(way, MODELS[name], options)
    assert found == expected
    assert said == []
    assert summary is not None
    check(summary)
    if way is not observe:
        assert summarycb.load(f"tensorboard:{tmp_path}") == summary


# --- faults of the package, its trackers and the machine --------------------------------------------------------------


@dataclass
class Place:
    """Where a fault is planted."""

    patch: pytest.MonkeyPatch
    folder: Path
    at_end: contextlib.ExitStack


@dataclass(frozen=True)
class Fault:
    """What fails, what the user is told, as a regular expression, and whether figures are missing for it."""

    plant: Callable[[Place], Options | None]
    says: str | None
    lost: bool = False
    ways: tuple[Way, ...] = WITH_TRACKERS


def inside(where: Any, name: str, nth: int = 1) -> Fault:
    """A part of the package."""
    return Fault(lambda place: plant(place.patch, where, name, nth), INCOMPLETE, lost=True, ways=ALL)


def formula(place: Place) -> None:
    place.patch.setitem(formulas._registered, "aten::addmm", raises)
    place.at_end.callback(formulas._answers.clear)
    formulas._answers.clear()


def renderer(where: Any, name: str, tracker: bool = False) -> Callable[[Place], Options]:
    def plant_it(place: Place) -> Options:
        plant(place.patch, where, name)
        return Options(trackers=(f"tensorboard:{place.folder}",)) if tracker else Options(verbose=True)

    return plant_it


class Exits(Broken):
    def write(self, report: object, *, step: int) -> None:
        raise SystemExit(3)


class Hangs(Broken):
    """Until the test is over."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def write(self, report: object, *, step: int) -> None:
        self.released.wait()


def hang(place: Place) -> Options:
    tracker = Hangs()
    place.at_end.callback(tracker.released.set)
    return Options(trackers=(tracker,), timeout=0.05)


def no_thread(place: Place) -> Options:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    place.patch.setattr(threading.Thread, "start", start)
    return Options(trackers=(Broken(),))


def installed(source: str, *targets: str) -> Callable[[Place], Options]:
    """A tracker of this source is found first; without ``targets`` a writer of TensorBoard's is given."""

    def install(place: Place) -> Options:
        about = place.folder / "bad-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
        (about / "entry_points.txt").write_text("[summarycb.trackers]\nbad = bad_tracker:Bad\n")
        (place.folder / "bad_tracker.py").write_text(source)
        place.patch.syspath_prepend(place.folder)
        place.patch.delitem(sys.modules, "bad_tracker", raising=False)
        return Options(trackers=targets or (place.at_end.enter_context(SummaryWriter(str(place.folder))),))

    return install


BAD = """
class Bad:
    def fail(*_, **__): raise OSError("on purpose")
    wrap = classmethod(lambda cls, target: None)
    open = write = read = fail
"""


def disk(*options: str) -> Callable[[Place], Options]:
    """A file system of its own, mounted so."""

    def mount(place: Place) -> Options:
        # a path that root cannot write to, and a disk that is full, take a file system of their own
        if subprocess.run(["mount", "-t", "tmpfs", *options, "none", place.folder], capture_output=True).returncode:
            pytest.skip("only root can mount a file system")
        place.at_end.callback(subprocess.run, ["umount", "-l", place.folder], check=True)
        if "size" in options[-1]:
            (place.folder / "rest").write_bytes(bytes(4096))
        return Options(trackers=(f"tensorboard:{place.folder}",))

    return mount


def no_folder(place: Place) -> Options:
    file = place.folder / "file"
    file.touch()
    return Options(trackers=(f"tensorboard:{file}/run",))


def output(make: Callable[[Place], Any]) -> Callable[[Place], Options]:
    """Standard output is this."""

    def replace(place: Place) -> Options:
        stream = make(place)
        if stream is not None:
            place.at_end.enter_context(contextlib.suppress(OSError))
            place.at_end.callback(stream.close)  # what could not be written is tried again
        place.patch.setattr(sys, "stdout", stream)
        return Options(verbose=True)

    return replace


def closed(place: Place) -> Any:
    stream = io.StringIO()
    stream.close()
    return stream


def full_disk(place: Place) -> Any:
    return Path("/dev/full").open("w")


def pipe(place: Place, full: bool) -> Any:
    reader, writer = os.pipe()
    if full:
        place.at_end.callback(os.close, reader)
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(1024))
    else:
        os.close(reader)
    return os.fdopen(writer, "w")


INCOMPLETE = r"the model summary is incomplete: .*Planted: on purpose"
NOT_PRINTED = "the model summary could not be printed: "
NOT_SHOWN = "the model summary could not be shown and sent: Planted"
NOT_ASKED = "tracker 'bad' could not be asked for SummaryWriter: "
NOT_WRITTEN = "the model summary was not written to "
EVERY_FAULT: dict[str, Fault] = {
    **{f"{name} raises": inside(where, method) for name, (where, method, _) in FAULTS.items()},
    **{f"{name} raises later": inside(*FAULTS[name][:2], 5) for name in LATER},
    "the hooks cannot be put on": inside(OBSERVE, "hook"),
    "the mode cannot be entered": inside(OBSERVE, "Mode"),
    "an operation cannot be classified": inside(COLLECTORS, "classify", 5),
    "what an operation makes cannot be told": inside(COLLECTORS, "makes", 5),
    "the optimizer cannot be asked": inside(Progress, "_parameters"),
    "a formula raises": Fault(formula, "the model summary is incomplete: MACs of aten.addmm", lost=True, ways=ALL),
    "select raises": Fault(renderer(TERMINAL, "select"), NOT_PRINTED + "Planted"),
    "the renderer raises": Fault(renderer(TERMINAL, "_layout"), NOT_PRINTED + "Planted"),
    "the renderer raises for a tracker": Fault(
        renderer(TERMINAL, "_layout", tracker=True), NOT_WRITTEN + "TensorBoardTracker: Planted"
    ),
    "the JSON cannot be made": Fault(renderer(SERIALIZE, "dumps", tracker=True), NOT_WRITTEN + "TensorBoardTracker"),
    "show raises": Fault(renderer(DELIVER, "show"), NOT_SHOWN, ways=(watch,)),
    "the report raises": Fault(renderer(DELIVER, "Report"), NOT_SHOWN, ways=(watch,)),
    "a tracker raises in write": Fault(lambda place: Options(trackers=(Broken(),)), NOT_WRITTEN + "Broken: Planted"),
    "a tracker exits in write": Fault(lambda place: Options(trackers=(Exits(),)), NOT_WRITTEN + "Exits: SystemExit: 3"),
    "a tracker raises in wrap": Fault(installed(BAD.replace("wrap = ", "wrap = fail #")), NOT_ASKED + "OSError"),
    "a tracker raises at import": Fault(installed("1 / 0"), NOT_ASKED + ".*ZeroDivisionError"),
    "a tracker raises at open": Fault(installed(BAD, "bad:there"), NOT_WRITTEN + "'bad:there': OSError: on purpose"),
    "a tracker that is asked for raises at import": Fault(
        installed("1 / 0", "bad:there"), NOT_WRITTEN + "'bad:there': .*ZeroDivisionError", ways=(callback,)
    ),
    "a tracker hangs": Fault(hang, NOT_WRITTEN + r"Hangs: no answer within 0\.05 s; it is saved in "),
    "no thread can be started": Fault(no_thread, NOT_WRITTEN + "Broken: RuntimeError: can't start new thread; it"),
    "the disk is full": Fault(disk("-o", "size=4k"), NOT_WRITTEN + r"TensorBoardTracker: OSError: \[Errno 28\]"),
    "the disk is nearly full": Fault(disk("-o", "size=8k"), NOT_WRITTEN + r"TensorBoardTracker: OSError: \[Errno 28\]"),
    "the folder is read-only": Fault(disk("-o", "ro"), NOT_WRITTEN + r"TensorBoardTracker: OSError: \[Errno 30\]"),
    "the folder is in a file": Fault(no_folder, NOT_WRITTEN + "TensorBoardTracker: (NotADirectory|FileExists)Error"),
    "standard output is closed": Fault(output(closed), NOT_PRINTED + "ValueError: I/O operation on closed file"),
    "there is no standard output": Fault(output(lambda place: None), None),
    "standard output is on a full disk": Fault(output(full_disk), NOT_PRINTED + "OSError"),
    "standard output is a full pipe": Fault(output(partial(pipe, full=True)), NOT_PRINTED + "BlockingIOError"),
    "standard output is a pipe without a reader": Fault(
        output(partial(pipe, full=False)), NOT_PRINTED + "BrokenPipeError"
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of a SummaryWriter's own thread
@pytest.mark.parametrize("as_errors", [False, True], ids=["warnings", "errors"])
@pytest.mark.parametrize(
    ("way", "name"),
    [pytest.param(way, name, id=f"{way.__name__}-{name}") for name, row in EVERY_FAULT.items() for way in row.ways],
)
def test_a_fault(way: Way, name: str, as_errors: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fault, expected, healthy = EVERY_FAULT[name], plain(way, HEALTHY), whole(way)
    with contextlib.ExitStack() as at_end:
        patch = at_end.enter_context(pytest.MonkeyPatch.context())
        with told(as_errors, caplog) as said:
            options = fault.plant(Place(patch, tmp_path, at_end))
            found, summary = train(way, MODELS[HEALTHY], options or Options())
    assert found == expected
    assert len(said) == (fault.says is not None)
    assert all(re.match(fault.says or "", message) for message in said), said
    assert summary is not None
    assert (summary != healthy, summary.incomplete != ()) == (fault.lost, fault.lost)
    check(summary)


@pytest.mark.parametrize("options", ["size=4k", "ro"])
def test_a_summary_that_cannot_be_saved(options: str, tmp_path: Path) -> None:
    """Who saves hears of it, and what is left of the file is not taken for a summary."""
    summary = whole(watch)
    assert summary is not None
    with contextlib.ExitStack() as at_end, pytest.MonkeyPatch.context() as patch:
        disk("-o", options)(Place(patch, tmp_path, at_end))
        with pytest.raises(OSError, match=r"No space left|Read-only"):
            summary.save(tmp_path / "base.json")
        with pytest.raises(SummaryError, match=r"base\.json: (not a model summary in JSON|No such file)"):
            summarycb.load(tmp_path / "base.json")
