"""examples/ci: each file is read, and its commands run for real, in a repository whose pull request widens a model."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

import summarycb

CI = Path(__file__).parent.parent / "examples" / "ci"
WORKFLOW: dict[Any, Any] = yaml.safe_load((CI / "model-summary.yml").read_text())
STEPS = WORKFLOW["jobs"]["compare"]["steps"]
COMMANDS = {step["name"]: step["run"] for step in STEPS if "run" in step}
HOOK = yaml.safe_load((CI / "pre-commit-config.yaml").read_text())["repos"][0]["hooks"][0]
MARKER = "<!-- model-summary -->\n"


def summary(width: int) -> summarycb.ModelSummary:
    return summarycb.summarize(
        nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2)), input_size=(2, 4), backward=True
    )


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, timeout=30)


def readme_fixture() -> str:
    """The README's test with ``model_summary_snapshot``, of a model that takes what it says."""
    blocks = re.findall(r"```python\n(.*?)```", (CI.parents[1] / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "model_summary_snapshot" in block]
    given = "import summarycb\nfrom torch import nn\nmodel = nn.Sequential(nn.Linear(16, 16), nn.ReLU())\n"
    return given + str(block)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Main has a model of width 8, the pull request one of 16; it is the merge of both that is checked out."""
    folder = tmp_path / "repository"
    folder.mkdir()

    git(folder, "init", "--initial-branch", "main")
    git(folder, "commit", "--allow-empty", "-m", "empty")
    summary(8).save(folder / "model_summary.json")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "the model")
    git(folder, "switch", "-c", "wider")
    summary(16).save(folder / "model_summary.json")
    git(folder, "commit", "-am", "wider")
    git(folder, "switch", "main")
    git(folder, "commit", "--allow-empty", "-m", "other work")
    git(folder, "merge", "wider", "--no-ff", "--no-edit")
    return folder


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | here | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def workflow(step: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """As GitHub runs it on its Linux machines."""
    given = {"GITHUB_STEP_SUMMARY": str(folder / "page.md")} | WORKFLOW["env"] | environment
    return run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", COMMANDS[step]], folder, **given)


class GitHub(BaseHTTPRequestHandler):
    """The two requests on comments that the workflow makes, as GitHub documents them."""

    comments: list[dict[str, Any]]

    def answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200 if self.headers["Authorization"] == "Bearer secret" else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> str:
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"]
        assert isinstance(text, str)
        return text

    def do_GET(self) -> None:
        assert self.path == "/repos/o/r/issues/7/comments?per_page=100"
        self.answer(self.comments)

    def do_POST(self) -> None:
        assert self.path == "/repos/o/r/issues/7/comments"
        url = f"http://{self.headers['Host']}/repos/o/r/issues/comments/{len(self.comments)}"
        self.comments.append({"user": {"login": "github-actions[bot]"}, "body": self.body(), "url": url})
        self.answer(self.comments[-1])

    def do_PATCH(self) -> None:
        self.comments[int(self.path.rpartition("/")[2])]["body"] = self.body()
        self.answer({})

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def github() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    # a user who quotes the marker is left alone
    GitHub.comments = [{"user": {"login": "somebody"}, "body": MARKER, "url": "http://127.0.0.1:1/none"}]
    with ThreadingHTTPServer(("127.0.0.1", 0), GitHub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", GitHub.comments
        finally:
            server.shutdown()
            thread.join(10)


def test_the_workflow_may_do_no_more_than_comment_and_pins_its_actions() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert set(WORKFLOW[True]) == {"pull_request"}  # YAML 1.1 reads `on` as true; never pull_request_target
    used = [step["uses"] for step in STEPS if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in used)
    # what a pull request says of itself is never a part of a command
    assert "${{" not in "".join(COMMANDS.values())


def test_the_pull_request_has_one_comment_which_follows_it(
    repository: Path, github: tuple[str, list[dict[str, Any]]]
) -> None:
    """58 parameters to 114: a gate fails, and the comment is written all the same; then again, in its place."""
    url, comments = github
    environment = {"GITHUB_API_URL": url, "GITHUB_REPOSITORY": "o/r", "NUMBER": "7", "TOKEN": "secret"}
    compared = workflow("Compare", repository)
    assert compared.returncode == 1, compared.stderr
    assert "params>+5%" in compared.stdout + compared.stderr
    commented = workflow("Comment", repository, **environment)
    assert (commented.returncode, commented.stderr) == (0, "")
    title, _, table = summarycb.compare(summary(8), summary(16)).to_markdown().partition("\n\n")
    *_, body = (comment["body"] for comment in comments)
    # 58 to 114 is more than 5 %; a summary made without a step has saved nothing that is known
    assert body.startswith(f"{MARKER}{title}\n\n- **gate**: failed: params")
    assert body.rstrip().endswith(table.rstrip())
    assert len(comments) == 2
    assert (repository / "page.md").read_text() == comments[1]["body"]

    summary(8).save(repository / "model_summary.json")
    (repository / "page.md").unlink()
    compared = workflow("Compare", repository)
    assert compared.returncode == 0, compared.stderr
    assert workflow("Comment", repository, **environment).returncode == 0
    assert len(comments) == 2
    assert comments[1]["body"] == (repository / "page.md").read_text() != body


@pytest.mark.parametrize("broken", ["torn", "removed"])
def test_a_summary_that_cannot_be_read_is_said_in_the_comment(repository: Path, broken: str) -> None:
    """And not an empty one over that which was good."""
    if broken == "torn":
        (repository / "model_summary.json").write_text("{}")
        why = "model_summary.json: not a model summary: it has no schema_version"
    else:
        (repository / "model_summary.json").unlink()
        why = "model_summary.json: No such file or directory"
    done = workflow("Compare", repository)
    assert (done.returncode, done.stderr) == (2, f"summarycb: {why}\n")
    assert (repository / "page.md").read_text() == f"{MARKER}The summary cannot be compared:\n\n{done.stderr}"


def test_a_pull_request_that_brings_the_first_summary_shows_it(repository: Path) -> None:
    os.rename(repository / "model_summary.json", repository / "first.json")
    done = workflow("Compare", repository, SUMMARY="first.json")
    assert done.returncode == 0, done.stderr
    assert (repository / "page.md").read_text().strip() == (MARKER + summary(16).to_markdown()).strip()


def test_a_summary_that_the_readme_s_fixture_stores_passes_as_long_as_it_is_the_same(repository: Path) -> None:
    """With the path that the workflow names for it, and the hook takes it, too: no gate is of what is unknown."""
    (stored,) = re.findall(r"tests/__model_summaries__/\S+\.json", (CI / "model-summary.yml").read_text())
    test = repository / "tests" / "test_model.py"
    test.parent.mkdir()
    test.write_text(readme_fixture())
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", ".", "-c", os.devnull, "-p", "summarycb.pytest_plugin"]
    update = [sys.executable, "-m", "pytest", *options, "--model-summary-update", str(test)]
    made = run(update, repository, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert made.returncode == 0, made.stdout
    assert re.search(HOOK["files"], stored)
    assert workflow("Compare", repository, SUMMARY=stored).returncode == 0  # the first of it
    git(repository, "add", ".")
    git(repository, "commit", "-m", "stored")
    git(repository, "commit", "--allow-empty", "-m", "other work")
    done = workflow("Compare", repository, SUMMARY=stored)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_hook_says_what_changed_and_refuses_what_a_gate_does(repository: Path) -> None:
    """As pre-commit calls it: the words of the entry, then the files that are committed."""
    assert re.search(HOOK["files"], "model_summary.json")
    (repository / "new model_summary.json").write_bytes((repository / "model_summary.json").read_bytes())
    command = [*shlex.split(HOOK["entry"]), "new model_summary.json", "model_summary.json"]
    same = run(command, repository)
    assert (same.returncode, same.stderr) == (0, "")
    summary(32).save(repository / "model_summary.json")
    wider = run(command, repository)
    assert wider.returncode == 1
    assert "params            114 → 226 (+112, +98.2 %)" in wider.stdout  # 7 for each of the width, and 2
    assert "params>+5%" in wider.stdout + wider.stderr
