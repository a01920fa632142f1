"""A real TensorBoard for a test: on a free port of this machine, bounded in time, stopped at the end."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def serving(logdir: Path, *options: str, seconds: float = 600) -> Iterator[str]:
    """Its address."""
    program = Path(sys.executable).with_name("tensorboard")
    command = [program, "--logdir", logdir, "--host", "127.0.0.1", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    ends = threading.Timer(seconds, process.kill)  # whatever happens here
    ends.start()
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                yield found[0]
                break
        else:
            pytest.fail("".join(lines))
    finally:
        process.terminate()
        process.communicate()
        ends.cancel()
