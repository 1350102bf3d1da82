"""One worker kernel's process, as the pool that started it sees it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbtaskq import process
from nbtaskq.hub.protocol import Died
from nbtaskq.worker.recorder import Recorder
from nbtaskq.worker.resources import oom_kills, usage
from nbtaskq.workspace import Workspace

#: Lines of the log that a death notice or a failed start quotes.
LOG_LINES = 20


@dataclass(frozen=True)
class Recipe:
    """How a pool starts its workers."""

    module: str
    executable: str
    threads: int
    env: Mapping[str, str]


class Child:
    """A started worker kernel.

    Attributes
    ----------
    worker_id : str
        Its name; never given to another one.
    pidfd : int
        Readable when the process has ended; -1 where the system has no such thing.
    stopping : str
        Why it was asked to end; empty while it shall go on.
    kill_at : float
        When it is killed if it has not ended by then.
    """

    def __init__(self, worker_id: str, workspace: Workspace, recipe: Recipe) -> None:
        self.worker_id = worker_id
        self.started = time.monotonic()
        self.stopping = ""
        self.kill_at = math.inf
        self._workspace = workspace
        self._oom_kills = oom_kills()
        self._cpu = (self.started, 0.0)
        self._log = workspace.log(worker_id)
        self._log_start = _size(self._log)
        path = workspace.recorder(worker_id)
        path.unlink(missing_ok=True)  # of an earlier supervisor that was killed
        self.recorder = Recorder.create(path)
        try:
            self._process = process.spawn(
                recipe.module,
                self._options(recipe),
                log=self._log,
                executable=recipe.executable,
                env=recipe.env,
            )
        except OSError:
            self.recorder.unlink()
            raise
        self.pid = self._process.pid
        self.pidfd = _pidfd(self.pid)

    def _options(self, recipe: Recipe) -> dict[str, Any]:
        return {
            "address": self._workspace.hub_address,
            "worker": self.worker_id,
            "recorder": str(self.recorder.path),
            "connection_file": str(self._workspace.connection_file(self.worker_id)),
            "kernel_sockets": str(self._workspace.kernel_sockets(self.worker_id)),
            "parent": os.getpid(),
            "workspace": str(self._workspace.folder),
            "threads": recipe.threads,
        }

    @property
    def ready(self) -> bool:
        """Whether it has come up."""
        return self.recorder.ready

    @property
    def idle(self) -> bool:
        """Whether it runs no task."""
        return not self.recorder.slots()

    @property
    def stopped(self) -> bool:
        """Whether its process is suspended (SIGSTOP) and so cannot keep its lease."""
        found = usage(self.pid)
        return found is not None and found.stopped

    def facts(self, now: float) -> dict[str, Any]:
        """Return pid, state, bytes of memory, processor per cent since last asked, seconds up."""
        facts: dict[str, Any] = {"pid": self.pid, "uptime": round(now - self.started, 1)}
        found = usage(self.pid)
        if found is not None:
            then, before = self._cpu
            self._cpu = (now, found.cpu_seconds)
            spent = (found.cpu_seconds - before) / max(now - then, 0.01)
            facts |= {"rss": found.rss, "cpu": round(100 * spent, 1)}
        facts["state"] = self._state(found is not None and found.stopped)
        return facts

    def _state(self, suspended: bool) -> str:
        if self.stopping:
            return "stopping"
        if suspended:
            return "suspended"
        return "up" if self.ready else "starting"

    # -- the end ---------------------------------------------------------------------------

    def stop(self, reason: str, grace: float, now: float) -> None:
        """Ask it to end, and set the time of its killing; the first reason stays."""
        self.stopping = self.stopping or reason
        self.kill_at = min(self.kill_at, now + grace)
        os.kill(self.pid, signal.SIGTERM)  # not through Popen, which would reap it

    def kill(self) -> None:
        """End it and everything that it started, now."""
        self.kill_at = math.inf
        process.kill_group(self.pid)

    def ended(self) -> bool:
        """Whether the process has ended; it is not reaped, so that its group stays its own."""
        if sys.platform == "darwin":  # has no waitid before Python 3.13
            return self._process.poll() is not None
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, flags) is not None

    def bury(self) -> Died:
        """Read the record of an ended process, end what it left behind, and reap it."""
        slots, settled = self.recorder.slots(), self.recorder.settled
        words = [text for text in (self.recorder.tail(), self.log_tail()) if text]
        process.kill_group(self.pid)
        how = self._describe(self._process.wait())
        reason = f"{self.stopping} ({how})" if self.stopping else how
        return Died(self.worker_id, reason, slots, settled, "\n".join(words))

    def close(self) -> None:
        """Remove its files, but for the log."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.recorder.unlink()
        self._workspace.connection_file(self.worker_id).unlink(missing_ok=True)
        sockets = self._workspace.kernel_sockets(self.worker_id)
        for path in sockets.parent.glob(f"{sockets.name}-*"):
            path.unlink(missing_ok=True)

    def log_tail(self) -> str:
        """Return the last lines that it wrote to its log."""
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            file.seek(max(self._log_start, _size(self._log) - 16_384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-LOG_LINES:])
        return ""

    def _describe(self, status: int) -> str:
        how = process.describe_exit(status)
        if status == -signal.SIGKILL and oom_kills() > self._oom_kills:
            return f"{how}: out of memory"
        return how


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        size = path.stat().st_size
        return 0 if size > process.LONGEST_LOG else size
    return 0


def _pidfd(pid: int) -> int:
    if sys.platform == "linux":
        return os.pidfd_open(pid)
    return -1
