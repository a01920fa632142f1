"""The pictures in the README: of the demo's GPT a terminal, a light and a dark browser, and figures for papers; of the
sweep's five runs their comparison, in a terminal and a browser, and the page of two of them.

    python examples/pictures.py FOLDER

Needs Debian's chromium, or another one on the PATH, and no network.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as L
import sweep
import torch
from models import TopicsGPT, topics
from PIL import Image
from rich.console import Console

import summarycb
from summarycb import Comparison, ModelSummary, ModelSummaryCallback
from summarycb.references import expand
from summarycb.render.terminal import render
from summarycb.view import View, select

WIDTH, PAGE = 100, 1180  # columns of a terminal, CSS pixels of a page
REPORT, COMPARISON, RUNS = 2480, 1400, 1290
"""How much of each page is shown, in CSS pixels: of a report down to memory through the step."""
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px }}
.{unique_id}-title {{ font: bold 18px sans-serif }}
{styles}
</style>
<defs>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""
"""rich's own, without the font that it would fetch."""


def main(folder: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    folder.mkdir(parents=True, exist_ok=True)
    summary = observed()
    terminal(select(summary), "python train.py", folder / "terminal.svg")
    summary.plot_costs(metric="saved_activations").savefig(folder / "costs.png", dpi=180)
    summary.plot_memory().savefig(folder / "memory.png", dpi=180)
    for scheme in ("light", "dark"):
        page(summary, scheme, REPORT, folder / f"report-{scheme}.png")
    runs = swept()
    terminal(runs.view(), "summarycb compare tensorboard:sweep_output/tensorboard", folder / "runs.svg")
    page(runs, "light", RUNS, folder / "runs.png")
    page(runs.against[-1], "light", COMPARISON, folder / "comparison.png")


def observed() -> ModelSummary:
    """A real training, of one step."""
    torch.manual_seed(0)
    callback = ModelSummaryCallback(trackers=())
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(max_steps=1, accelerator="cpu", callbacks=[callback], **settings).fit(TopicsGPT(), topics())
    assert callback.summary is not None
    return callback.summary


def swept() -> Comparison:
    """The runs of examples/sweep.py, as they are called there."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        sweep.main(Path("sweep_output"))
        return summarycb.compare(*expand("tensorboard:sweep_output/tensorboard"))


def terminal(view: View, title: str, path: Path) -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, highlight=False)
    for line in render(view, WIDTH):
        console.print(line, soft_wrap=True)
    path.write_text(console.export_svg(title=title, code_format=SVG, unique_id="terminal"))


def page(shown: ModelSummary | Comparison, scheme: str, height: int, path: Path) -> None:
    """What a browser shows that prefers this colour scheme."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("chromium is not installed; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        written = shown.save(Path(folder, "report.html"))
        command = [
            chromium,
            *FLAGS,
            f"--user-data-dir={folder}/profile",
            f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
            f"--window-size={PAGE},{height}",
            f"--screenshot={path.resolve()}",
            written.as_uri(),
        ]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
    Image.open(path).quantize(dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures"))
