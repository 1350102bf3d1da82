"""Handing tasks to workers, and taking them back unstarted.

A lease is fenced by its token, (epoch << 40) + counter. The epoch is durable before the hub
answers anybody, so no token is handed out twice, and a verdict with another token is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nbtaskq.hub import protocol as p
from nbtaskq.hub.actions import ChangeTask, Deliver, Lease, LeaseTask
from nbtaskq.hub.board import Board
from nbtaskq.hub.cancelling import Cancelling
from nbtaskq.hub.dispatch import Estimates, take_batch
from nbtaskq.hub.journal import Journal
from nbtaskq.hub.records import TaskRecord, Worker
from nbtaskq.hub.roster import Staffing
from nbtaskq.hub.telling import Telling
from nbtaskq.message import Buffer, TaskStatus

#: seconds without a verdict after which a worker's unstarted tasks are called back
STUCK = 0.1
#: bits of a token below its epoch
COUNTER_BITS = 40


class Leasing:
    """Gives tasks to workers under new tokens."""

    def __init__(
        self,
        journal: Journal,
        board: Board,
        telling: Telling,
        cancelling: Cancelling,
        staffing: Staffing,
    ) -> None:
        self.estimates = Estimates()
        self._journal = journal
        self._board = board
        self._telling = telling
        self._cancelling = cancelling
        self._staffing = staffing
        self._next_token = (board.epoch << COUNTER_BITS) + 1

    # -- out -------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Hand out all that can be handed out now."""
        for environment, queue in self._board.queues.items():
            if not queue:
                continue
            workers = [w for w in self._board.workers.values() if w.environment == environment]
            if not workers:
                self._staffing.need(environment)
            while queue and (taken := take_batch(queue, workers, self.estimates)) is not None:
                self._lease(*taken)

    def _lease(self, worker: Worker, batch: list[TaskRecord]) -> None:
        token, hold = self._next_token, self._board.hold
        leases = []
        durable_first = False
        for task in batch:
            hold(worker, task, token)
            leases.append(Lease(task.seq, token, task.attempts + 1, task.needs))
            if task.at_most_once:
                durable_first = True
                self._journal.store(LeaseTask(task.seq, token))
            token += 1
        self._next_token = token
        if durable_first:
            self._board.unsent.update(lease.token for lease in leases)
            self._journal.after_commit(self._deliver, (worker, leases))
        elif worker.peer is not None:
            self._journal.out.append(Deliver(worker.peer, leases))

    def _deliver(self, promised: tuple[Worker, list[Lease]]) -> None:
        """Hand out leases that had to be durable first, unless they were taken back."""
        worker, leases = promised
        self._board.unsent.difference_update(lease.token for lease in leases)
        valid = [lease for lease in leases if lease.token in worker.held]
        if valid and worker.peer is not None:
            self._journal.out.append(Deliver(worker.peer, valid))

    def corrupt(self, holder: str | None, token: int, error: str) -> None:
        """End a leased task whose stored bytes are damaged, unless it was taken back."""
        if holder is not None:
            task = self._board.workers[holder].held[token]
            self._cancelling.too_late(token, task)
            self._board.finish(task, TaskStatus.CORRUPT, error)

    # -- back ------------------------------------------------------------------------------

    def give_back(self, worker: Worker, token: int) -> None:
        """Take a lease back from a worker that has not begun it."""
        task = worker.held[token]
        self._board.unhold(worker, task)
        if not self._cancelling.given_back(token, task):
            self.again(task)

    def again(self, task: TaskRecord, *, was_running: bool = False) -> None:
        """Queue a task that nobody holds any more, uncharged."""
        if task.at_most_once:
            self._journal.store(ChangeTask(task.seq, task.attempts, reasons=task.reasons))
        self._board.ready(task, front=True)
        if was_running and task.status < TaskStatus.SUCCEEDED:
            self._telling.changed(task)

    def recalled(self, worker: Worker, message: p.Recalled, _: Sequence[Buffer]) -> None:
        """Take in what a worker gives back, and what it has begun."""
        for token in reversed(message.tokens):
            if token in worker.held:
                self.give_back(worker, token)
        for token in message.kept:
            if token in worker.held:
                self._cancelling.too_late(token, worker.held[token])

    # -- workers that are stuck in one task ------------------------------------------------

    def call_back(self) -> None:
        """Call back what workers hold behind a task that takes longer than was thought."""
        for worker in self._board.workers.values():
            if self._board.now >= self._stuck_at(worker):
                worker.stuck = True
                tokens = list(worker.held)[1:]
                if tokens:
                    self._journal.send(worker.peer, p.Recall(tokens))

    def deadline(self) -> float:
        """Return when a worker will count as stuck."""
        return min(map(self._stuck_at, self._board.workers.values()), default=math.inf)

    @staticmethod
    def _stuck_at(worker: Worker) -> float:
        held = worker.held
        if not held or worker.stuck or worker.peer is None or worker.died is not None:
            return math.inf
        if next(iter(held.values())).flavor == p.Flavor.ASYNC:
            return math.inf
        return worker.moved + STUCK
