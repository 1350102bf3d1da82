"""Plays the store and the network for a `HubState`; everything is durable at once."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from nbtaskq.abc import Delivery
from nbtaskq.hub import protocol as p
from nbtaskq.hub.actions import (
    Action,
    ChangeTask,
    Check,
    Deliver,
    FinishTask,
    Found,
    InsertTask,
    Lease,
    Lookup,
    Send,
)
from nbtaskq.hub.state import HubState
from nbtaskq.message import Buffer, Parcel


class _Stored:
    """What is kept of a task: its payload, its labels, its end."""

    __slots__ = ("buffers", "checksum", "ending", "labels", "seq", "submission")

    def __init__(self, operation: InsertTask) -> None:
        self.seq = operation.seq
        self.submission = operation.submission
        self.buffers = operation.buffers
        self.checksum = operation.checksum
        self.labels = operation.submission.labels
        self.ending: FinishTask | None = None


class MemoryHost:
    """Performs what the state asks for, one action after the other.

    Parameters
    ----------
    take : callable
        Gets each message for a peer, with its buffers.
    deliver : callable
        Gets the deliveries for the worker.
    """

    def __init__(
        self,
        take: Callable[[p.Outbound, Sequence[Buffer]], None],
        deliver: Callable[[list[Delivery]], None],
    ) -> None:
        #: held while the state decides and its decisions are performed
        self.lock = threading.RLock()
        self._take = take
        self._deliver = deliver
        self._state = HubState(epoch=1, now=time.monotonic())
        self._stored: dict[int, _Stored] = {}
        self._by_id: dict[bytes, _Stored] = {}
        self._actions: deque[Action] = deque()
        self._performing = False

    def feed(self, peer: bytes, message: p.Inbound, frames: Sequence[Buffer] = ()) -> None:
        """Give the state a message of a peer."""
        with self.lock:
            self._perform(self._state.handle(peer, message, frames, time.monotonic()))

    def tick(self) -> None:
        """Let the state do what is due."""
        with self.lock:
            self._perform(self._state.tick(time.monotonic()))

    def due_in(self) -> float:
        """Return the seconds until something is due."""
        with self.lock:
            deadline = self._state.deadline()
        return math.inf if deadline == math.inf else max(0.0, deadline - time.monotonic())

    def statistics(self) -> dict[str, Any]:
        """Return the state's counts."""
        with self.lock:
            return self._state.statistics()

    def _perform(self, actions: list[Action]) -> None:
        """Queue actions; the outermost call performs them in order, then reports them durable."""
        self._actions.extend(actions)
        if self._performing:
            return
        self._performing = True
        try:
            while self._actions:
                while self._actions:
                    self._do(self._actions.popleft())
                self._actions.extend(self._state.committed(self._state.written, time.monotonic()))
        finally:
            self._performing = False

    def _do(self, action: Action) -> None:
        if isinstance(action, Send):
            self._take(action.message, action.buffers)  # type: ignore[arg-type]
        elif isinstance(action, Deliver):
            self._deliver([self._delivery(lease) for lease in action.leases])
        elif isinstance(action, InsertTask):
            stored = _Stored(action)
            self._stored[action.seq] = self._by_id[action.submission.task_id] = stored
        elif isinstance(action, ChangeTask):
            if action.labels is not None:
                self._stored[action.seq].labels = action.labels
        elif isinstance(action, FinishTask):
            self._stored[action.seq].ending = action
        elif isinstance(action, Lookup):
            self._look_up(action)
        elif isinstance(action, Check):
            self._check(action)

    def _delivery(self, lease: Lease) -> Delivery:
        stored = self._stored[lease.seq]
        submission = stored.submission
        endings = [self._stored[seq].ending for seq in lease.needs]
        results = {e.outcome.task_id.decode(): (e.outcome, e.buffers) for e in endings if e}
        return Delivery(
            submission.task_id.decode(),
            submission.name,
            p.decode_labels(stored.labels),
            Parcel(submission.body, stored.buffers, tuple(results)),
            lease.token,
            lease.attempt,
            p.Flavor(submission.flavor),
            None,
            results,
        )

    def _look_up(self, action: Lookup) -> None:
        for task_id in action.task_ids:
            stored = self._by_id.get(task_id)
            if stored is not None and stored.ending is not None:
                self._take(p.Finished([stored.ending.outcome]), stored.ending.buffers)
            else:
                self._take(p.Missing([task_id]), ())

    def _check(self, action: Check) -> None:
        found = {
            task_id: Found(stored.seq, stored.ending.outcome.status, stored.checksum)
            for task_id in action.task_ids
            if (stored := self._by_id.get(task_id)) is not None and stored.ending is not None
        }
        self._perform(
            self._state.submit(action.peer, action.submit, action.buffers, found, time.monotonic())
        )
