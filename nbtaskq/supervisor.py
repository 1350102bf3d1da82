"""The supervisor: parent of the hub and of the worker kernels. `python -m nbtaskq.supervisor`.

    supervisor ─┬─ hub                the main thread spawns all of them, because they die
                ├─ w1, w2 …           with the thread that spawned them, and then waits for:
                └─ guard              messages · the end of a process · signals

It is detached from the notebook that started it and ends by itself after an idle time.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from nbtaskq.errors import HubAlreadyRunning, ProtocolMismatch
from nbtaskq.hub.keeper import HubKeeper
from nbtaskq.hub.protocol import (
    VERSION,
    Died,
    Environment,
    Hello,
    Order,
    Pong,
    Renew,
    Reply,
    Role,
    Welcome,
)
from nbtaskq.process import Lock, read_options
from nbtaskq.worker.guard import Guard
from nbtaskq.worker.pool import WorkerPool
from nbtaskq.workspace import Workspace, write_private

if TYPE_CHECKING:
    from nbtaskq.hub.link import Link

#: Seconds between two words to the hub that the workers live; a lease lasts longer.
RENEW_EVERY = 1.0
#: Seconds without work and clients after which it ends.
IDLE = 600.0
#: Seconds that the workers, then the hub, get to end by themselves.
GRACE = 3.0

_log = logging.getLogger("nbtaskq.supervisor")


@dataclass(frozen=True)
class Settings:
    """What a supervisor is started with."""

    workspace: Workspace
    workers: int | None = None
    executable: str = sys.executable
    idle: float = IDLE
    worker_module: str = "nbtaskq.worker.kernel"
    hub_module: str = "nbtaskq.hub"


class Supervisor:
    """Runs the hub and a worker pool for each environment, and does what the hub orders.

    Attributes
    ----------
    stop_requested : bool
        To be set by a signal handler, which must do no more.
    """

    def __init__(self, settings: Settings) -> None:
        self.stop_requested = False
        self._settings = settings
        self._workspace = settings.workspace
        self._environment = Environment.here(settings.executable)
        self._session = os.urandom(16)
        self._ids = itertools.count(1)
        self._hub = HubKeeper(self._workspace, settings.hub_module)
        self._guard = Guard()
        self._pools = {self._environment.key: self._pool(settings.executable, settings.workers)}
        self._notices: list[Died] = []
        self._stop_at: float | None = None
        self._idle_since = self._renew_at = time.monotonic()
        self._verbs: dict[str, Callable[[dict[str, Any]], object]] = {
            "scale": self._scale,
            "restart": self._restart,
            "environment": self._add_environment,
            "workers": self._list_workers,
            "stop": self._order_stop,
        }

    def run(self, wake: int) -> None:
        """Serve until stopped or idle; `wake` becomes readable when a signal has come."""
        now = time.monotonic()
        self._hub.step(now)
        self._step(now)
        # the hub and the workers come up while this process imports zmq
        from nbtaskq.hub.link import Link

        address = self._workspace.hub_address
        self._link: Link = Link(address, self._hello, on_welcome=self._welcomed)
        try:
            while not self._finished():
                self._wait(wake)
                self._listen()
                self._step(time.monotonic())
                self._report(time.monotonic())
        finally:
            self._close()

    def stop(self) -> None:
        """Begin to end: workers first."""
        if self._stop_at is None:
            self._stop_at = time.monotonic()
            for pool in self._pools.values():
                pool.stop(GRACE, self._stop_at)

    # -- the loop --------------------------------------------------------------------------

    def _finished(self) -> bool:
        workers = any(pool.children for pool in self._pools.values())
        return self._stop_at is not None and not workers

    def _wait(self, wake: int) -> None:
        now = time.monotonic()
        sources = [wake, *self._hub.descriptors()]
        deadlines = [now + 0.5, self._renew_at, self._hub.deadline()]
        for pool in self._pools.values():
            sources += pool.descriptors()
            deadlines.append(pool.deadline(now))
        self._link.wait(min(deadlines) - now, sources)
        _drain(wake)
        if self.stop_requested:
            self.stop()

    def _listen(self) -> None:
        try:
            for message, _ in self._link.receive():
                if isinstance(message, Order):
                    self._obey(message)
                elif isinstance(message, Pong):
                    self._idle(message.idle)
        except ProtocolMismatch:
            _log.exception("The hub refuses its own supervisor; both end.")
            self.stop()

    def _step(self, now: float) -> None:
        self._hub.step(now)
        for pool in self._pools.values():
            self._notices += pool.step(now)
        self._guard.watch(
            child.pid for pool in self._pools.values() for child in pool.children.values()
        )

    def _report(self, now: float) -> None:
        """Tell the hub of deaths, and each second of those that live."""
        self._link.tick(now)
        while self._notices and self._link.send(self._notices[0]):
            _log.info("%s %s", self._notices[0].worker, self._notices[0].reason)
            del self._notices[0]
        if now >= self._renew_at:
            self._renew_at = now + RENEW_EVERY
            self._link.send(self._renewal(now))
        if not self._link.welcomed and now - self._idle_since > self._settings.idle:
            self.stop()  # a hub that does not come up is no reason to stay for ever

    def _renewal(self, now: float) -> Renew:
        pools = self._pools.values()
        workers = {name: facts for pool in pools for name, facts in pool.facts(now).items()}
        facts = {
            "pid": os.getpid(),
            "target": sum(pool.size for pool in pools),
            "start_error": next((pool.start_error for pool in pools if pool.start_error), ""),
            "workers": workers,
        }
        return Renew([name for pool in pools for name in pool.living()], facts)

    def _idle(self, seconds: float) -> None:
        if seconds <= 0:
            self._idle_since = time.monotonic()
        elif seconds >= self._settings.idle:
            _log.info("Nothing to do for %.0f s.", seconds)
            self.stop()

    def _close(self) -> None:
        self._report(time.monotonic())
        self._link.close(linger=0.5)
        self._hub.stop(GRACE)
        self._guard.close()

    # -- the hub ---------------------------------------------------------------------------

    def _hello(self) -> Hello:
        return Hello(
            VERSION, Role.POOL, self._session, self._environment, os.getpid(), "supervisor"
        )

    def _welcomed(self, _: Welcome) -> None:
        self._hub.serving()
        self._renew_at = self._idle_since = time.monotonic()

    def _obey(self, order: Order) -> None:
        verb = self._verbs.get(order.verb)
        try:
            if verb is None:
                raise ValueError(f"no such order: {order.verb!r}")
            reply = Reply(order.request, ok=True, body=verb(order.body or {}))
        except (ValueError, TypeError, KeyError, OSError) as error:
            reply = Reply(order.request, ok=False, body=f"{order.verb}: {error}")
        # who hears that the order was obeyed finds the hub knowing it
        self._link.send(self._renewal(time.monotonic()))
        if order.request:
            self._link.send(reply)

    # -- orders ----------------------------------------------------------------------------

    def _scale(self, body: dict[str, Any]) -> dict[str, int]:
        """Have `n` workers; without `exact` never fewer than there are."""
        pool = self._pools[body.get("environment") or self._environment.key]
        wanted = int(body["n"])
        if wanted < 0:
            raise ValueError(f"{wanted} is no number of workers")
        pool.scale(wanted if body.get("exact") else max(wanted, pool.size), time.monotonic())
        return {"n": pool.size}

    def _restart(self, body: dict[str, Any]) -> None:
        for pool in self._pools.values():
            pool.restart(time.monotonic(), body.get("workers"))

    def _add_environment(self, body: dict[str, Any]) -> None:
        environment = Environment(body["prefix"], body["minor"], body.get("executable", ""))
        if environment.key in self._pools or self._stop_at is not None:
            return
        if not os.access(environment.executable, os.X_OK):
            raise ValueError(f"there is no Python at {environment.executable!r}")
        self._pools[environment.key] = self._pool(environment.executable, self._settings.workers)

    def _list_workers(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [
            {"name": name, "environment": key, **facts}
            for key, pool in self._pools.items()
            for name, facts in pool.facts(now).items()
        ]

    def _order_stop(self, _: dict[str, Any]) -> None:
        self.stop()

    def _pool(self, executable: str, size: int | None) -> WorkerPool:
        module = self._settings.worker_module
        return WorkerPool(
            self._workspace, self._ids, size=size, executable=executable, module=module
        )


def _drain(wake: int) -> None:
    try:
        while os.read(wake, 512):
            pass
    except BlockingIOError:
        pass


def _wake_on_signals(supervisor: Supervisor) -> int:
    """Have SIGTERM, SIGINT and SIGHUP ask for the end; return what becomes readable for them.

    SIGCHLD wakes too, for systems where the end of a process has no descriptor.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)

    def handle(signum: int, _: FrameType | None) -> None:
        if signum != signal.SIGCHLD:
            supervisor.stop_requested = True

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(signum, handle)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def serve(settings: Settings) -> None:
    """Run a supervisor on a workspace whose lock is held, and clean up after it."""
    workspace = settings.workspace
    workspace.sweep_runtime()
    workspace.clear_down()
    os.chdir(workspace.folder)  # the notebook's folder may be removed while this process lives
    supervisor = Supervisor(settings)
    wake = _wake_on_signals(supervisor)
    facts = {"pid": os.getpid(), "started": time.time(), "version": VERSION}
    write_private(workspace.supervisor_file, json.dumps(facts).encode())
    try:
        supervisor.run(wake)
    finally:
        workspace.sweep_runtime(keep=(workspace.failure_file,))


def main() -> None:
    """Take the workspace's lock and serve; end at once when another supervisor does."""
    options = read_options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    workspace = Workspace.at(options.pop("workspace")).create()
    lock = Lock(workspace.supervisor_lock)
    handle = options.pop("lock", None)
    try:
        if handle is None:
            lock.acquire()
        else:
            lock.adopt(handle)
    except HubAlreadyRunning as running:
        _log.info("%s", running)
        return
    try:
        serve(Settings(workspace, **options))
    finally:
        lock.release()


if __name__ == "__main__":
    main()
