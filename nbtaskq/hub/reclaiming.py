"""After a restart of the hub: workers claim what they still hold of the last epoch.

A stored task waits until its worker's hello claims it, or nobody can any more. Of a task that
is held but not stored (the hub died before the commit) the claim, or its result, is parked until
the client sends the task again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nbtaskq.hub import protocol as p
from nbtaskq.hub.actions import StoredTask
from nbtaskq.hub.board import Board
from nbtaskq.hub.cancelling import Cancelling
from nbtaskq.hub.journal import Journal
from nbtaskq.hub.leasing import COUNTER_BITS, Leasing
from nbtaskq.hub.needs import Needs
from nbtaskq.hub.records import UNKNOWN, TaskRecord, Worker
from nbtaskq.hub.roster import Roster
from nbtaskq.message import Buffer, TaskStatus

#: seconds that tasks of an earlier epoch wait for workers that still hold them
RECOVERY = 5.0
#: seconds that results of tasks that are not stored wait for their client
PARKING = 60.0
#: how many, and how many bytes of them
MAX_PARKED = 10_000
MAX_PARKED_BYTES = 64 << 20
#: stands for the token of a stored lease that the store did not name
ANY = -1


class Parked(NamedTuple):
    """A result of a task that is not stored yet."""

    worker: str
    verdict: p.Verdict
    buffers: Sequence[Buffer]


class Reclaiming:
    """Gives leases of an earlier epoch back to who still holds them."""

    def __init__(
        self,
        journal: Journal,
        board: Board,
        roster: Roster,
        needs: Needs,
        leasing: Leasing,
        cancelling: Cancelling,
    ) -> None:
        self._journal = journal
        self._board = board
        self._roster = roster
        self._needs = needs
        self._leasing = leasing
        self._cancelling = cancelling
        self._first_token = board.epoch << COUNTER_BITS
        self._until = -math.inf
        self._parked_until = -math.inf
        #: whether a worker may still claim something
        self.active = False
        self._recovering: list[TaskRecord] = []
        #: task → why it can never run
        self._broken: dict[bytes, str] = {}
        #: task that is not stored → worker and token
        self._claims: dict[bytes, tuple[str, int]] = {}
        self._parked: dict[bytes, Parked] = {}
        self._parked_bytes = 0

    # -- the store's tasks -----------------------------------------------------------------

    def load(self, tasks: Iterable[StoredTask]) -> None:
        """Take over what an earlier epoch left; nothing of it moves yet."""
        shared: dict[object, object] = {}
        held_back = []
        for stored in tasks:
            task = _record(stored, self._board.now, shared)
            self._board.add(task)
            self._recovering.append(task)
            if stored.needs or stored.met:
                held_back.append((task, stored))
        for task, stored in held_back:
            broken = self._needs.restore(task, stored)
            if broken:
                self._broken[task.task_id] = broken
        self._until = self._board.now + RECOVERY
        self._parked_until = self._board.now + PARKING
        self.active = bool(self._recovering) or self._board.epoch > 1

    @property
    def remembers(self) -> bool:
        """Whether there are claims or results of tasks that are not stored."""
        return bool(self._claims or self._parked)

    def await_holder(self, task: TaskRecord) -> None:
        """Hold back a task that its client sent before the hub died: it may be running."""
        task.recovering = True
        self._recovering.append(task)

    def tick(self) -> None:
        """End the wait when it is over."""
        if self.active:
            if self._board.now >= self._until:
                self._recover(everything=True)
                self.active = False
                self._cancelling.resume()
            elif self._all_are_here():
                self._recover(everything=False)
                self.active = bool(self._recovering)
                self._cancelling.resume()
        if self._board.now >= self._parked_until:
            self._claims.clear()
            self._parked.clear()
            self._parked_bytes = 0

    def deadline(self) -> float:
        """Return when `tick` has something to do."""
        if self.active:
            return self._until
        return self._parked_until if self._claims or self._parked else math.inf

    def _all_are_here(self) -> bool:
        """Whether every worker that may hold a task of the last epoch has said hello."""
        pools = self._roster.pools.values()
        if not pools or any(pool.workers is None for pool in pools):
            return False
        return all(name in self._board.workers for pool in pools for name in pool.workers or ())

    def _recover(self, *, everything: bool) -> None:
        """Queue what no worker claimed, uncharged.

        A worker that no pool speaks for may come late. What runs twice then may do so, but for
        at-most-once tasks that were handed out: these wait to the end, or for `everything`.
        """
        waiting, self._recovering = self._recovering, []
        for task in waiting:
            if not task.recovering:
                continue
            if task.token and not everything:
                self._recovering.append(task)
                continue
            task.recovering = False
            broken = self._broken.get(task.task_id)
            if task.token:
                task.token = 0
                why = "the hub was restarted and no worker knows what became of it"
                self._board.finish(task, TaskStatus.UNCERTAIN, why)
            elif broken is not None:
                self._board.finish(task, TaskStatus.FAILED, broken)
            else:
                self._board.enter(task)
        if not self._recovering:
            self._broken.clear()

    # -- claims ----------------------------------------------------------------------------

    def reconcile(self, worker: Worker, holding: Iterable[tuple[bytes, int]]) -> None:
        """Compare what a worker says it holds with what it should."""
        holds = {token: task_id for task_id, token in holding}
        self.forget_claims(worker.name)
        for token in reversed([t for t in worker.held if t not in holds]):
            self._leasing.give_back(worker, token)
        void = [
            token
            for token, task_id in holds.items()
            if token not in worker.held and not self._claim(worker, task_id, token)
        ]
        recall = void + self._cancelling.asked_of(list(worker.held))
        if recall:
            self._journal.send(worker.peer, p.Recall(recall))

    def _claim(self, worker: Worker, task_id: bytes, token: int) -> bool:
        """Give a lease of an earlier epoch back to its worker; return whether it is valid."""
        if token >= self._first_token:
            return False
        task = self._board.tasks.get(task_id)
        if task is None:
            return task_id not in self._board.ending and self._claim_unknown(worker, task_id, token)
        if task.recovering:
            if task.at_most_once and task.token not in (token, ANY):
                return False
        elif not task.worker or task.at_most_once or task.token >= token:
            return False
        else:
            # an older lease of the task was claimed before: this one superseded it
            older = self._board.workers[task.worker]
            self._journal.send(older.peer, p.Recall([task.token]))
            self._cancelling.too_late(task.token, task)
            self._board.unhold(older, task)
        task.estimate = UNKNOWN
        self._board.hold(worker, task, token)
        return True

    def _claim_unknown(self, worker: Worker, task_id: bytes, token: int) -> bool:
        _, known = self._claims.get(task_id, ("", 0))
        if token <= known or self._board.now >= self._parked_until:
            return False
        if len(self._claims) >= MAX_PARKED:
            return False
        self._claims[task_id] = worker.name, token
        return True

    def forget_claims(self, name: str) -> None:
        """Drop what a worker claimed: it is gone, or claims anew."""
        for task_id in [i for i, (owner, _) in self._claims.items() if owner == name]:
            del self._claims[task_id]

    # -- results ---------------------------------------------------------------------------

    def park(self, worker: Worker, verdict: p.Verdict, buffers: Sequence[Buffer]) -> None:
        """Keep a claimed result of a task that is not stored; drop one with a void token."""
        task_id = verdict.outcome.task_id
        if self._claims.get(task_id) != (worker.name, verdict.token):
            return
        del self._claims[task_id]
        if verdict.kind in (p.VerdictKind.RESULT, p.VerdictKind.REJECT):
            size = len(verdict.outcome.body) + sum(memoryview(b).nbytes for b in buffers)
            if self._parked_bytes + size <= MAX_PARKED_BYTES and len(self._parked) < MAX_PARKED:
                self._parked[task_id] = Parked(worker.name, verdict, buffers)
                self._parked_bytes += size

    def merge(self, task: TaskRecord) -> Parked | None:
        """Let a new task be held by who claimed it, or return its result."""
        parked = self._parked.pop(task.task_id, None)
        if parked is not None:
            return parked
        name, token = self._claims.pop(task.task_id, ("", 0))
        worker = self._board.workers.get(name)
        if worker is not None:
            self._board.hold(worker, task, token)
        return None


def _record(stored: StoredTask, now: float, shared: dict[object, object]) -> TaskRecord:
    """Make a record of what the store gave; equal names and owners become one object."""

    def share(value: object) -> object:
        return shared.setdefault(value, value)

    return TaskRecord(
        stored.seq,
        stored.task_id,
        share(stored.name),  # type: ignore[arg-type]
        share(stored.owner),  # type: ignore[arg-type]
        share(stored.environment),  # type: ignore[arg-type]
        stored.checksum,
        stored.flavor,
        stored.priority,
        stored.at_most_once,
        now + stored.due if stored.due > 0 else 0.0,
        now + stored.expires if stored.expires else 0.0,
        stored.attempts,
        stored.reasons,
        token=(stored.token or ANY) if stored.leased else 0,
        recovering=True,
    )
