"""Keeps the hub running: its parent's view of it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys

from nbtaskq import process
from nbtaskq.errors import BrokerUnreachable
from nbtaskq.workspace import Workspace, write_private

#: Starts in a row that may fail before the next one has to wait.
PATIENCE = 5
#: Seconds between later starts, at most; clients wait longer, so what was repaired is tried.
LONGEST_DELAY = 4.0


class HubKeeper:
    """Starts the hub, and again at once when it dies.

    The cause of a hub's end before it has served is in the workspace's failure file, so that
    clients can say it: in the hub's own words, else the last line of its log. After some such
    starts in a row the next one waits.
    """

    def __init__(self, workspace: Workspace, module: str = "nbtaskq.hub") -> None:
        self._workspace = workspace
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._start_at = -math.inf
        self._failures = 0
        self._served = False
        self._stopping = False
        self._log_start = 0
        self._failure_before = 0

    @property
    def pid(self) -> int | None:
        """Of the running hub."""
        return self._process.pid if self._process else None

    def descriptors(self) -> list[int]:
        """Return what becomes readable when the hub ends."""
        return [self._pidfd] if self._pidfd >= 0 else []

    def step(self, now: float) -> None:
        """Notice its end, and start it when that is due."""
        if self._process is not None and self._process.poll() is not None:
            self._ended(self._process.returncode, now)
        if self._process is None and not self._stopping and now >= self._start_at:
            self._start()

    def deadline(self) -> float:
        """Return when `step` has something to do again, if nothing happens before."""
        return math.inf if self._process or self._stopping else self._start_at

    def serving(self) -> None:
        """Take in that the hub has welcomed somebody."""
        self._served = True
        self._failures = 0
        self._workspace.failure_file.unlink(missing_ok=True)

    def stop(self, grace: float) -> None:
        """Ask it to end, wait for that, and kill it when it takes longer than `grace`."""
        self._stopping = True
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._forget()

    def _start(self) -> None:
        log = self._workspace.log("hub")
        with process.open_log(log) as file:
            self._log_start = file.tell()
        self._failure_before = self._failure_time()
        self._served = False
        options = {"workspace": str(self._workspace.folder), "parent": os.getpid()}
        self._process = process.spawn(self._module, options, log=log)
        if sys.platform == "linux":
            self._pidfd = os.pidfd_open(self._process.pid)

    def _ended(self, status: int, now: float) -> None:
        self._forget()
        if self._stopping:
            return
        self._start_at = now
        if not self._served:
            self._failures += 1
            self._record_failure(status)
            if self._failures >= PATIENCE:
                self._start_at += min(LONGEST_DELAY, 2.0 ** (self._failures - PATIENCE))

    def _record_failure(self, status: int) -> None:
        if self._failure_time() != self._failure_before:
            return  # the hub has said it itself
        facts = {
            "error": BrokerUnreachable.__name__,
            "text": self._last_line() or f"the hub {process.describe_exit(status)}",
        }
        write_private(self._workspace.failure_file, json.dumps(facts).encode())

    def _failure_time(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self._workspace.failure_file.stat().st_mtime_ns
        return 0

    def _last_line(self) -> str:
        with self._workspace.log("hub").open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def _forget(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1
        self._process = None
