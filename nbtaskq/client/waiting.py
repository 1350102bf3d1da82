"""What a broker tells of one sent message, and waiting for it.

    accepted ──► changed … ──► done ──► value        told by the broker, from any thread
        └── refused: nothing more comes

A value that was too large to be sent unasked comes after `done`, once somebody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nbtaskq.errors import BrokerUnreachable, ResultTimeout
from nbtaskq.hub.protocol import Outcome
from nbtaskq.message import Buffer, TaskStatus

if TYPE_CHECKING:
    from nbtaskq.abc import Broker

#: seconds between looks at whether waiting is in vain, and nudges for what was not pushed
NUDGE = 1.0

#: one for all: it is held for a few instructions, and a batch has many thousands of handles
_lock = threading.Lock()


class Waiting:
    """One sent message as its broker knows it: the `Watcher` behind a handle."""

    def __init__(self, broker: Broker, task_id: str, task_name: str) -> None:
        self.task_id = task_id
        self.task_name = task_name
        #: whether a thread or a coroutine blocks on this one task
        self.awaited = False
        self._broker = broker
        #: False while hooks still hold the message back
        self._handed_over = True
        self._accepted = False
        self._refused: BaseException | None = None
        self._status = TaskStatus.QUEUED
        self._worker = ""
        self._outcome: Outcome | None = None
        self._buffers: Sequence[Buffer] = ()
        self._notes: dict[int, bytes] = {}
        self._callbacks: list[tuple[str, Callable[[], None]]] = []

    # -- what the broker tells -------------------------------------------------------------

    def on_accepted(self) -> None:
        """Take in that the message is stored."""
        # with the lock, or who looks and then registers at this very moment would never be told
        with _lock:
            self._accepted = True
        self._notify("accepted")

    def on_refused(self, error: BaseException) -> None:
        """Take in that the message was not stored."""
        with _lock:
            if self._outcome is not None or self._accepted:
                return
            self._refused = error
        self._notify("accepted", "done", "value")

    def on_progress(self, status: int, worker: str) -> None:
        """Take in a change that is not an end."""
        with _lock:
            self._accepted = True
            if self._outcome is None:
                self._status = TaskStatus(status)
                self._worker = worker
        self._notify("accepted", "changed")

    def on_output(self, number: int, content: bytes) -> None:
        """Take in a piece of output."""
        self._notes[number] = content
        self._notify("changed")

    def on_outcome(self, outcome: Outcome, buffers: Sequence[Buffer]) -> None:
        """Take in the end; the first one counts, a withheld value may follow."""
        with _lock:
            known = self._outcome
            if known is not None and not (known.withheld and not outcome.withheld):
                return
            self._accepted = True
            self._status = TaskStatus(outcome.status)
            self._worker = outcome.worker
            self._buffers = buffers
            # last: from now on other threads take the task for ended
            self._outcome = outcome
        self._notify("accepted", "changed", "done", *(() if outcome.withheld else ("value",)))

    def _notify(self, *moments: str) -> None:
        if not self._callbacks:
            return
        with _lock:
            now = [call for moment, call in self._callbacks if moment in moments]
            self._callbacks = [
                (m, c) for m, c in self._callbacks if m == "changed" or m not in moments
            ]
        for call in now:
            call()

    def _when(self, moment: str, call: Callable[[], None]) -> None:
        """Call back once at a moment (for "changed": each time), at once if it has passed."""
        with _lock:
            passed = self._passed(moment)
            if not passed:
                self._callbacks.append((moment, call))
        if passed:
            call()

    def _passed(self, moment: str) -> bool:
        if self._refused is not None:
            return moment != "changed"
        if moment == "accepted":
            return self._accepted
        if moment == "value":
            return self._outcome is not None and not self._outcome.withheld
        return moment == "done" and self._outcome is not None

    def _forget(self, call: Callable[[], None]) -> None:
        with _lock:
            self._callbacks = [(m, c) for m, c in self._callbacks if c is not call]

    def hold_back(self) -> None:
        """Note that hooks still work on the message: the broker does not know it yet."""
        self._handed_over = False

    def hand_over(self) -> None:
        """Note that the broker gets the message now."""
        self._handed_over = True

    # -- until a moment has come -----------------------------------------------------------

    def _wait_for(self, moment: str, timeout: float | None, *, alone: bool = True) -> bool:
        """Block until a moment has come; return whether it has.

        Who waits for one task alone gets its value before that is durable.
        """
        if self._passed(moment) or (timeout is not None and timeout <= 0):
            return self._passed(moment)
        turn = threading.Lock()
        turn.acquire()
        release = _once(turn.release)
        self._when(moment, release)
        end = None if timeout is None else time.monotonic() + timeout
        try:
            if alone:
                self._nudge(moment)
            while not self._passed(moment):
                left = NUDGE if end is None else min(NUDGE, end - time.monotonic())
                if left <= 0:
                    return False
                if not turn.acquire(timeout=left) and not self._passed(moment):
                    self._check_trouble()
                    self._nudge(moment)
            return True
        finally:
            self._forget(release)

    def _nudge(self, moment: str) -> None:
        """Say that somebody blocks on this task; the broker answers with what it knows."""
        if moment in ("done", "value") and self._refused is None and self._handed_over:
            self.awaited = moment == "value"
            self._broker.watch(self.task_id, self, value=self.awaited)

    def _check_trouble(self) -> None:
        trouble = self._broker.trouble()
        if trouble is not None:
            kind = type(trouble) if isinstance(trouble, BrokerUnreachable) else BrokerUnreachable
            raise kind(
                f"{self.task_name} ({self.task_id[:8]}) cannot be waited for: {trouble}"
            ) from trouble

    async def _await(self, moment: str, timeout: float | None = None) -> None:
        """Wait for a moment without blocking the loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def resolve() -> None:
            if not future.done():
                future.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits
                loop.call_soon_threadsafe(resolve)

        self._when(moment, wake)
        end = None if timeout is None else loop.time() + timeout
        try:
            self._nudge(moment)
            while not future.done():
                left = NUDGE if end is None else min(NUDGE, end - loop.time())
                if left <= 0:
                    raise self._timeout(timeout)
                done, _ = await asyncio.wait({future}, timeout=left)
                if not done:
                    self._check_trouble()
                    self._nudge(moment)
        finally:
            self._forget(wake)

    def _timeout(self, timeout: float | None) -> ResultTimeout:
        return ResultTimeout(
            f"{self.task_name} ({self.task_id[:8]}) is {self._status} after {timeout:g} s; "
            "it goes on, and result() may be called again"
        )


def _once(call: Callable[[], Any]) -> Callable[[], None]:
    """Return a callable that calls `call` the first time only."""
    left = [call]

    def first() -> None:
        with contextlib.suppress(IndexError):
            left.pop()()

    return first
