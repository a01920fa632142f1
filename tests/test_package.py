"""The package as it is installed: lazy names, missing extras, what the wheel holds, and documents that run."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import summarycb
from tests.literal import SUMMARY

ROOT = Path(__file__).parent.parent
PUBLIC = [
    "Column",
    "Comparison",
    "GateError",
    "ModelSummary",
    "ModelSummaryCallback",
    "ModuleSummary",
    "SummaryError",
    "SummaryWarning",
    "TensorSpec",
    "Tracker",
    "compare",
    "load",
    "observe",
    "register_formula",
    "summarize",
    "watch",
]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_else() -> None:
    heavy = "torch rich lightning pytorch_lightning tensorboard wandb mlflow pandas numpy"
    code = f"import sys, summarycb; dir(summarycb); print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert run(code) == "[]"


HEAVY = {
    "torch", "lightning", "tensorboard", "wandb", "mlflow", "pandas", "numpy", "matplotlib", "jinja2",
    "importlib.metadata", "fractions", "rich.cells", "rich.text", "rich.console",
    "summarycb.compare", "summarycb.gates", "summarycb.render.html",
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ("--version", set()),
        ("compare --help", {"summarycb.compare"}),  # which metrics there are
        ("compare a.json missing.json", {"summarycb.compare"}),
        ("compare a.json b.json", {"summarycb.compare", "rich.cells"}),
        ("compare a.json b.json --format json", {"summarycb.compare", "rich.cells"}),
        (
            "compare a.json b.json --fail-on params>+5%",
            {"summarycb.compare", "rich.cells", "summarycb.gates", "fractions"},
        ),
        ("show a.json", {"rich.cells"}),
    ],
)
def test_a_command_imports_what_it_needs(arguments: str, needed: set[str], tmp_path: Path) -> None:
    """The command starts within 100 ms: what takes long to import is imported where it is used."""
    for name in ("a.json", "b.json"):
        SUMMARY.save(tmp_path / name)
    code = (
        "import os, sys; from summarycb.cli import main\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "try:\n"
        f"    main({arguments.split()!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print('imported:', *({HEAVY!r} & sys.modules.keys()))"
    )
    assert set(run(code).splitlines()[-1].split()) == {"imported:", *needed}


def test_the_public_names() -> None:
    assert summarycb.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(summarycb))
    with pytest.raises(AttributeError, match="module 'summarycb' has no attribute 'wacth'"):
        summarycb.wacth  # type: ignore[attr-defined]  # noqa: B018


def test_a_function_is_not_hidden_by_the_submodule_of_its_name() -> None:
    code = (
        "import summarycb.watch, summarycb.compare, summarycb.cli, summarycb\n"
        "print(*[type(getattr(summarycb, n)).__name__ for n in ('watch', 'observe', 'compare', 'summarize')])"
    )
    assert run(code) == "function function function function"


@pytest.mark.parametrize(
    ("name", "blocked", "extra"),
    [
        ("watch", ["torch"], "torch"),
        ("summarize", ["torch"], "torch"),
        ("ModelSummaryCallback(depth=2)", ["lightning", "pytorch_lightning"], "lightning"),
    ],
)
def test_what_is_missing_is_said_with_the_install_command(name: str, blocked: list[str], extra: str) -> None:
    code = (
        "import importlib.abc, sys\n"
        "class Gone(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {blocked!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "import summarycb\n"
        "try:\n"
        f"    summarycb.{name}\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    assert run(code) == f"{blocked[0]} is not installed; install it with: pip install 'summarycb[{extra}]'"


@pytest.mark.slow
def test_the_wheel_holds_the_core_the_integrations_and_the_schema(tmp_path: Path) -> None:
    build = (
        "import sys; from hatchling.builders.wheel import WheelBuilder as Builder\n"
        "print(*Builder('.').build(directory=sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    names = zipfile.ZipFile(done.stdout.split()[-1]).namelist()
    held = {name for name in names if not re.match(r"summarycb-[^/]*\.dist-info/", name)}
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "summarycb", "integrations"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.split()
    assert held == {name.removeprefix("integrations/") for name in tracked if name != "integrations/README.md"}
    assert {"summarycb/py.typed", "summarycb/summary.schema.json", "summarycb_lightning/py.typed"} <= held


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.filterwarnings("ignore")  # what Lightning says of a tiny training is not ours
def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of the README, in order, with the names that a reader has."""
    import torch
    from lightning.pytorch import Trainer
    from torch import nn
    from torch.utils.tensorboard import SummaryWriter

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    x, y = torch.randn(2, 16), torch.tensor([0, 1])
    names = {
        "Trainer": lambda **kwargs: Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", **kwargs),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "loss_fn": nn.functional.cross_entropy,
        "writer": SummaryWriter(str(tmp_path / "runs")),
        "loader": [(x, y)],
        "x": x,
        "y": y,
    }
    assert len(BLOCKS) == 7
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    names["hook"].flush()  # type: ignore[attr-defined]
    assert names["hook"].summary.forward_macs == 2 * (16 * 8 + 8 * 4)  # type: ignore[attr-defined]
    assert summarycb.load(f"tensorboard:{tmp_path}/runs") == names["hook"].summary  # type: ignore[attr-defined]
    assert summarycb.load("base.json") == names["summary"]


def test_the_step_that_breaks_in_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch import nn

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    models = importlib.import_module("models")
    model = models.TopicsGPT()
    model.h[3].mlp[2] = nn.Linear(128, 64)
    with pytest.raises(RuntimeError), summarycb.observe(model) as observation:
        model(torch.zeros(16, 64, dtype=torch.long))
    assert observation.summary is not None
    _, shown, _ = re.findall(r"```text\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert observation.summary.to_text().startswith(shown + "\n")


def test_the_comparison_in_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPT with a block more, and ReLU in place of GELU."""
    import torch
    from torch import nn

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    models = importlib.import_module("models")

    def summary(layers: int, activation: type[nn.Module]) -> summarycb.ModelSummary:
        model = models.TopicsGPT(layers)
        for block in model.h:
            block.mlp[1] = activation()
        optimizer = torch.optim.AdamW(model.parameters())
        with summarycb.observe(model, optimizer) as observation:
            tokens = torch.zeros(16, 65, dtype=torch.long)
            nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
            optimizer.step()
        assert observation.summary is not None
        return observation.summary

    *_, shown = re.findall(r"```text\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert str(summarycb.compare(summary(4, nn.GELU), summary(5, nn.ReLU))) == shown


def test_each_tick_of_the_set_ups_has_its_test() -> None:
    """The README's table links each tick to a file and names a test in it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ticks = re.findall(r'\[✓\]\((tests/\w+\.py) "(\w+)"\)', readme)
    assert len(ticks) == readme.count("✓") > 0
    lacking = [(file, test) for file, test in ticks if f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert lacking == []
