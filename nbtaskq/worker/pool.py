"""The worker pool: starts, watches and replaces worker kernels.

    start ─► starting ─► ready ─► death ─► Died to the hub ─► start (another id)
                └─ death before ready ─► back-off ─► start

A death is noticed at once, through a descriptor that the supervisor polls. The pool knows no
sockets: `step` returns the notices, the supervisor sends them.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

from nbtaskq.hub.protocol import Died
from nbtaskq.worker.child import Child, Recipe
from nbtaskq.worker.resources import available_cpus
from nbtaskq.workspace import Workspace

#: Seconds that a worker gets to end by itself.
GRACE = 5.0
#: Logs of workers that are kept when the workers are gone.
KEPT_LOGS = 20
#: Seconds between looks at workers that come up while others wait for that.
_GLANCE = 0.1

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class StartLimit:
    """How many workers may be started now, when earlier ones ended before they were ready."""

    #: Failed starts within `window` seconds, at most.
    limit = 10
    window = 30.0
    first_delay, longest_delay = 0.1, 10.0

    def __init__(self) -> None:
        self._failures: deque[float] = deque()
        self._streak = 0

    def failed(self, now: float) -> None:
        """Count a worker that ended before it was ready."""
        self._failures.append(now)
        self._streak += 1

    def succeeded(self) -> None:
        """Forget the streak of failures: one has come up."""
        self._streak = 0

    def allowance(self, now: float, starting: int) -> int:
        """Return how many may be started while this many are not yet ready."""
        while self._failures and self._failures[0] <= now - self.window:
            self._failures.popleft()
        if now < self.not_before():
            return 0
        most = 1 if self._streak else self.limit - len(self._failures)
        return max(0, most - starting)

    def not_before(self) -> float:
        """Return the time of the next start."""
        if not self._failures or not self._streak:
            return -math.inf
        delay = min(self.longest_delay, self.first_delay * 2.0 ** min(self._streak - 1, 20))
        soonest = self._failures[-1] + delay
        if len(self._failures) >= self.limit:
            soonest = max(soonest, self._failures[0] + self.window)
        return soonest


class WorkerPool:
    """The worker kernels of one environment.

    Parameters
    ----------
    workspace : Workspace
        Already created.
    ids : iterator of int
        Where numbers for new workers come from; shared by the pools of a supervisor.
    size : int, optional
        How many; by default two, or fewer where the container has fewer processors.
    executable : str
        The Python that runs them.
    module : str
        What they run.

    Attributes
    ----------
    start_error : str
        Why the last worker did not come up; empty once one has.
    """

    def __init__(
        self,
        workspace: Workspace,
        ids: Iterator[int],
        *,
        size: int | None = None,
        executable: str = sys.executable,
        module: str = "nbtaskq.worker.kernel",
    ) -> None:
        self.size = min(2, available_cpus()) if size is None else size
        self.start_error = ""
        self.executable = executable
        self.children: dict[str, Child] = {}
        self._workspace = workspace
        self._ids = ids
        self._module = module
        self._starts = StartLimit()
        self._starting: set[str] = set()

    def descriptors(self) -> list[int]:
        """Return what becomes readable when a worker ends."""
        return [child.pidfd for child in self.children.values() if child.pidfd >= 0]

    def step(self, now: float) -> list[Died]:
        """Do what is due and return the deaths that were noticed."""
        self._notice_ready()
        notices = [self._bury(child, now) for child in self._ended()]
        for child in self.children.values():
            if now >= child.kill_at:
                child.kill()
        self._start_missing(now)
        return notices

    def deadline(self, now: float) -> float:
        """Return when `step` has something to do again, if nothing happens before."""
        times = [child.kill_at for child in self.children.values()]
        if self._missing():
            times.append(now + _GLANCE if self._starting else self._starts.not_before())
        return min(times, default=math.inf)

    def living(self) -> list[str]:
        """Return the ids of workers whose processes are there and not suspended."""
        return [child.worker_id for child in self.children.values() if not child.stopped]

    def facts(self, now: float) -> dict[str, dict[str, Any]]:
        """Return what is known of each worker's process."""
        return {name: child.facts(now) for name, child in self.children.items()}

    def scale(self, size: int, now: float) -> None:
        """Have so many workers; of too many, the idle and then the newest end."""
        self.size = max(0, size)
        staying = [child for child in self.children.values() if not child.stopping]
        staying.sort(key=lambda child: (not child.idle, -child.started))
        for child in staying[: max(0, len(staying) - self.size)]:
            child.stop("stopped: fewer workers are wanted", GRACE, now)

    def restart(self, now: float, worker_ids: list[str] | None = None) -> None:
        """End workers, by default all, and start others in their place."""
        for name, child in self.children.items():
            if worker_ids is None or name in worker_ids:
                child.stop("stopped: restarted", GRACE, now)

    def stop(self, grace: float, now: float) -> None:
        """End all workers; those that are there after `grace` seconds are killed."""
        self.size = 0
        for child in self.children.values():
            child.stop("stopped: the workers were shut down", grace, now)

    # -- births and deaths -----------------------------------------------------------------

    def _missing(self) -> int:
        return max(0, self.size - len(self.children))

    def _start_missing(self, now: float) -> None:
        count = self._missing()
        if count:
            count = min(count, self._starts.allowance(now, len(self._starting)))
        for _ in range(count):
            try:
                child = Child(f"w{next(self._ids)}", self._workspace, self._recipe())
            except OSError as error:  # the executable is gone, or no process can be made
                self._failed(f"{self.executable} cannot be started: {error}", now)
                return
            self.children[child.worker_id] = child
            self._starting.add(child.worker_id)

    def _recipe(self) -> Recipe:
        threads = max(1, available_cpus() // max(1, self.size))
        env = dict.fromkeys(_THREADS, str(threads)) | os.environ
        return Recipe(self._module, self.executable, threads, env)

    def _notice_ready(self) -> None:
        for name in [name for name in self._starting if self.children[name].ready]:
            self._starting.remove(name)
            self._starts.succeeded()
            self.start_error = ""

    def _ended(self) -> list[Child]:
        return [child for child in self.children.values() if child.ended()]

    def _bury(self, child: Child, now: float) -> Died:
        died = child.bury()
        del self.children[child.worker_id]
        if child.worker_id in self._starting:
            self._starting.remove(child.worker_id)
            if not child.stopping:
                self._failed(f"{died.reason} before it was ready\n{died.tail}".strip(), now)
        child.close()
        self._prune_logs()
        return died

    def _failed(self, why: str, now: float) -> None:
        self._starts.failed(now)
        self.start_error = why

    def _prune_logs(self) -> None:
        keep = {self._workspace.log(name) for name in self.children}
        logs = [path for path in self._workspace.logs.glob("w*.log") if path not in keep]
        logs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in logs[KEPT_LOGS:]:
            path.unlink(missing_ok=True)
