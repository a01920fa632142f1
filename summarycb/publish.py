"""Publisher: writes reports to trackers in the background, and saves what was not written. Must not import torch."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from summarycb.exits import at_exit
from summarycb.forms import write
from summarycb.report import PREFIX, Report
from summarycb.trackers import Tracker, Unopened, reason, warn

FOLDER = "SUMMARYCB_DIR"
"""The environment variable that names the folder of what was not written; without it, ``model_summaries``."""
_MOST_WAITING = 8


class Publisher:
    """Writes reports to each tracker in a thread of its own; the caller never waits for one until :meth:`flush`.

    ``timeout`` bounds, in seconds, how long ``flush`` waits for all of them together. What could not be written is
    saved in a local file, which :func:`summarycb.load` reads and ``summarycb push`` writes later, and said in one
    warning.
    """

    def __init__(self, trackers: Iterable[Tracker], timeout: float = 10.0) -> None:
        self._timeout = timeout
        self._not_at_exit: Callable[[], object] | None = None
        self._begin(trackers)

    def _begin(self, trackers: Iterable[Tracker]) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._copies = _Copies()
        self._jobs = [_Job(tracker, self._lock, self._copies, self._written) for tracker in trackers]

    def _forget_other_process(self) -> None:
        """A fork copies what is being written, and locks that are held, but no thread: the parent writes it."""
        if self._process != os.getpid():
            self._begin([job.tracker for job in self._jobs])

    def publish(self, report: Report, *, step: int) -> None:
        """Start writing; returns at once.

        A tracker is given its reports one after another: behind one that it was given up waiting for, the next waits.
        """
        self._forget_other_process()
        with self._lock:
            if self._jobs and self._not_at_exit is None:
                self._not_at_exit = at_exit(self.flush)
            for job in self._jobs:
                job.add(report, step)

    def _written(self) -> None:
        """A tracker has its reports: with nothing to wait for and nothing to say, the exit need not know of this."""
        with self._lock:
            if not any(job.waiting or job.failures for job in self._jobs):
                self._leave_exit()

    def _leave_exit(self) -> None:
        self._not_at_exit, take_back = None, self._not_at_exit
        if take_back is not None:
            take_back()

    def flush(self) -> None:
        """Wait until everything is written or the time is over, then say once what was not, and where it is."""
        self._forget_other_process()
        deadline = time.monotonic() + self._timeout
        why = "no answer before the wait was interrupted"
        try:
            for job in self._jobs:
                job.wait(deadline)
            why = f"no answer within {self._timeout:g} s"
        finally:
            for job in self._jobs:
                job.end(why)
            with self._lock:
                reasons = [f"{job.name}: {failure}" for job in self._jobs for failure in job.take_failures()]
            saved = self._copies.take()
            self._leave_exit()
            if reasons:
                warn(f"the model summary was not written to {'; '.join(reasons)}; {saved}")


class _Copies:
    """Reports as local files, each once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[int, tuple[Report, str]] = {}  # with the report, so that its id remains its own

    def save(self, report: Report, step: int) -> None:
        with self._lock:
            if id(report) not in self._told:
                self._told[id(report)] = report, _save(report, step)

    def take(self) -> str:
        """Where those are of which this was not said yet."""
        with self._lock:
            told, self._told = self._told, {}
        return "; ".join([where for _, where in told.values()])


def _save(report: Report, step: int) -> str:
    """Says where it is saved and how to write it later, or why it is not."""
    name = f"{PREFIX}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}.json"
    faults = []
    for folder in (Path(os.environ.get(FOLDER) or "model_summaries"), Path(tempfile.gettempdir())):
        path = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            saved = write(report.json, path).absolute()
            return f"it is saved in {saved}; 'summarycb push --step {step} FILE TRACKER' writes it later"
        except Exception as error:
            faults.append(reason(error))
            with contextlib.suppress(OSError):
                path.unlink()
    return f"nor could it be saved: {'; '.join(faults)}"


@dataclass(eq=False)
class _Job:
    """What is being written to one tracker, the first of ``waiting``, and what could not be, each reason once.

    ``given_up`` is the report that it was said of that the tracker has not answered, for as long as it does not.
    """

    tracker: Tracker
    lock: threading.RLock
    copies: _Copies
    when_idle: Callable[[], None]
    waiting: deque[tuple[Report, int]] = field(default_factory=deque)
    failures: dict[str, None] = field(default_factory=dict)
    given_up: Report | None = None
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.tracker.name if isinstance(self.tracker, Unopened) else type(self.tracker).__name__

    def add(self, report: Report, step: int) -> None:
        """To be called with the lock, for which a new thread waits: it begins when the caller goes on."""
        full = len(self.waiting) == _MOST_WAITING
        if not full:
            self.waiting.append((report, step))
            if len(self.waiting) > 1:
                return  # the thread comes to it
        try:
            if full:
                self._start(self._fail, report, step, f"did not come to more than {_MOST_WAITING} reports")
            else:
                self._start(self._write)
        except RuntimeError as error:  # the process may have no more threads
            if not full:
                self.waiting.pop()
            self._fail(report, step, reason(error))

    def _start(self, what: Callable[..., None], *args: object) -> None:
        # a daemon: a tracker that never answers must not keep the process from ending
        thread = threading.Thread(target=what, args=args, name=f"summarycb-{self.name}", daemon=True)
        thread.start()
        self.threads = [*[thread for thread in self.threads if thread.is_alive()], thread]

    def _write(self) -> None:
        idle = False
        while not idle:
            with self.lock:
                report, step = self.waiting[0]
            try:
                self.tracker.write(report, step=step)
            except BaseException as error:  # the thread ends here: a SystemExit, too, would be lost without a word
                self._fail(report, step, reason(error))
            with self.lock:
                self.waiting.popleft()
                self.given_up = None
                idle = not self.waiting
        self.when_idle()

    def _fail(self, report: Report, step: int, why: str) -> None:
        with self.lock:
            if report is self.given_up:
                return
            self.failures[why] = None
        self.copies.save(report, step)  # at once: the process may be killed before anybody waits

    def take_failures(self) -> list[str]:
        """The reasons that were not said yet; to be called with the lock."""
        failures, self.failures = self.failures, {}
        return list(failures)

    def wait(self, deadline: float) -> None:
        if [report for report, _ in self.waiting] == [self.given_up]:
            return  # it was waited for already
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def end(self, why: str) -> None:
        """Give up what is not written yet; what is being written now may still be."""
        with self.lock:
            for report, step in self.waiting:
                self._fail(report, step, why)
            while len(self.waiting) > 1:
                self.waiting.pop()
            self.given_up = self.waiting[0][0] if self.waiting else None
