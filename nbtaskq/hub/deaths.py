"""The life and death of workers, and what a death costs the tasks.

What a worker was running when it died is charged with the death; two deaths end a task. What
it merely held is not. Of several that ran, nobody knows which one did it: they run again alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nbtaskq.hub import protocol as p
from nbtaskq.hub.actions import ChangeTask
from nbtaskq.hub.board import Board
from nbtaskq.hub.cancelling import Cancelling
from nbtaskq.hub.journal import Journal
from nbtaskq.hub.leasing import COUNTER_BITS, Leasing
from nbtaskq.hub.reclaiming import ANY, Reclaiming
from nbtaskq.hub.records import Pool, TaskRecord, Worker
from nbtaskq.hub.roster import LEASE, Roster
from nbtaskq.message import Buffer, TaskStatus

#: seconds that a death notice waits for more results that are still in the socket
DRAIN = 0.02
#: deaths of its worker that end a task
MAX_CRASHES = 2
#: how a pool's reason begins when it ended the worker on purpose: nothing is charged
ON_PURPOSE = "stopped"


class Deaths:
    """Believes a pool's word, or a pool's silence, that a worker is gone."""

    def __init__(
        self,
        journal: Journal,
        board: Board,
        roster: Roster,
        leasing: Leasing,
        cancelling: Cancelling,
        reclaiming: Reclaiming,
    ) -> None:
        self._journal = journal
        self._board = board
        self._roster = roster
        self._leasing = leasing
        self._cancelling = cancelling
        self._reclaiming = reclaiming

    # -- signs of life ---------------------------------------------------------------------

    def renew(self, pool: Pool, message: p.Renew, _: Sequence[Buffer]) -> None:
        """Let the leases of these workers last longer."""
        pool.seen = self._board.now
        pool.workers = message.workers
        pool.facts = message.facts
        for name in message.workers:
            worker = self._board.workers.get(name)
            if worker is not None:
                worker.lease_until = self._board.now + LEASE

    def died(self, pool: Pool, message: p.Died, _: Sequence[Buffer]) -> None:
        """Take in that a worker's process is gone, once its last results are read."""
        if pool.workers is not None and message.worker in pool.workers:
            pool.workers = [name for name in pool.workers if name != message.worker]
        self._roster.mark_dead(message.worker)
        worker = self._board.workers.get(message.worker)
        if worker is None:
            self._reclaiming.forget_claims(message.worker)
            self._charge(self._begun_before(message.slots), message)
        elif worker.died is None:
            worker.died = message
            self.heard(worker)

    def heard(self, worker: Worker) -> None:
        """Bury a worker whose last result has come; wait on while others are coming."""
        if worker.died is not None:
            worker.died_at = self._board.now
            if worker.settled >= worker.died.settled:
                self._bury(worker, worker.died)

    def tick(self) -> None:
        """Bury whose time has come."""
        for worker in list(self._board.workers.values()):
            if worker.died is not None:
                if self._board.now >= worker.died_at + DRAIN:
                    self._bury(worker, worker.died)
            elif self._board.now >= worker.lease_until:
                self._bury(worker, None)

    def deadline(self) -> float:
        """Return when `tick` has something to do."""
        return min(
            (
                worker.lease_until if worker.died is None else worker.died_at + DRAIN
                for worker in self._board.workers.values()
            ),
            default=math.inf,
        )

    # -- what becomes of the tasks ---------------------------------------------------------

    def _bury(self, worker: Worker, died: p.Died | None) -> None:
        """Take all leases of a worker.

        Without a notice, or without all its results, nobody knows what it had not begun.
        """
        begun = {slot.token for slot in died.slots} if died is not None else set()
        told_all = died is not None and worker.settled >= died.settled
        running: list[TaskRecord] = []
        for token, task in reversed(list(worker.held.items())):
            handed_out = token not in self._board.unsent
            was_running = task.status == TaskStatus.RUNNING
            self._board.unhold(worker, task)
            if task.at_most_once and handed_out and (token in begun or not told_all):
                self._cancelling.too_late(token, task)
                self._uncertain(task, worker.name, died)
            elif self._cancelling.given_back(token, task):
                continue
            elif token in begun:
                running.append(task)
            else:
                self._leasing.again(task, was_running=was_running)
        self._roster.remove(worker)
        self._reclaiming.forget_claims(worker.name)
        if died is not None:
            self._charge(running, died)

    def _begun_before(self, slots: Iterable[p.Slot]) -> list[TaskRecord]:
        """Return what a worker that this hub has never met was running, latest first."""
        tasks = []
        first = self._board.epoch << COUNTER_BITS
        for slot in slots:
            task = self._board.tasks.get(slot.task_id)
            if task is None or not task.recovering or slot.token >= first:
                continue
            if task.at_most_once and task.token not in (slot.token, ANY):
                continue
            task.recovering = False
            task.token = 0
            tasks.append(task)
        return tasks[::-1]

    def _charge(self, running: list[TaskRecord], died: p.Died) -> None:
        """Decide about tasks that ran when their worker died; the first comes first again."""
        for task in running:
            if task.at_most_once:
                self._uncertain(task, died.worker, died)
            elif died.reason.startswith(ON_PURPOSE):
                self._leasing.again(task, was_running=True)
            elif len(running) > 1:
                task.alone = True
                self._leasing.again(task, was_running=True)
            else:
                self._crash(task, died)

    def _crash(self, task: TaskRecord, died: p.Died) -> None:
        tail = f"; last output:\n{died.tail}" if died.tail else ""
        task.reasons = (*task.reasons, f"worker {died.worker} {died.reason}{tail}")
        if len(task.reasons) >= MAX_CRASHES:
            why = "\n".join(task.reasons)
            self._board.finish(task, TaskStatus.CRASHED, why, worker=died.worker)
            return
        task.attempts += 1
        self._journal.store(ChangeTask(task.seq, task.attempts, reasons=task.reasons))
        self._leasing.again(task, was_running=True)

    def _uncertain(self, task: TaskRecord, worker: str, died: p.Died | None) -> None:
        what = f"worker {worker} {died.reason}" if died else f"nothing was heard of worker {worker}"
        why = f"{what} while it may have run"
        self._board.finish(task, TaskStatus.UNCERTAIN, why, worker=worker)
