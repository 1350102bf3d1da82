"""All unended tasks, and the few moves that they make.

    waiting ──► queued ──► held (queued | running) ──► ended ──► durable
       ▲          ▲               │
       └──────────┴───────────────┘  retry, requeue, recall, a worker's death

A task is in a queue exactly while its status is `QUEUED` and no worker holds it.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbtaskq.hub.actions import FinishTask
from nbtaskq.hub.journal import Journal
from nbtaskq.hub.protocol import Outcome
from nbtaskq.hub.queues import ReadyQueue, Timers
from nbtaskq.hub.records import Ending, TaskRecord, Worker
from nbtaskq.message import Buffer, TaskStatus

_WAITING, _QUEUED = TaskStatus.WAITING, TaskStatus.QUEUED


class Board:
    """The one truth about tasks; only these methods move a task.

    Attributes
    ----------
    now : float
        Time of the stimulus that is being handled.
    tasks : dict
        Unended tasks by id.
    ending : dict
        Tasks whose end is decided and not yet durable.
    fresh : list of Ending
        Ends that this stimulus brought.
    """

    def __init__(self, journal: Journal, epoch: int, now: float) -> None:
        self.epoch = epoch
        self.now = now
        self.tasks: dict[bytes, TaskRecord] = {}
        self.ending: dict[bytes, Ending] = {}
        self.workers: dict[str, Worker] = {}
        self.queues: dict[str, ReadyQueue] = {}
        #: leases that are not handed out before they are durable
        self.unsent: set[int] = set()
        self.timers = Timers()
        self.fresh: list[Ending] = []
        self._journal = journal

    def add(self, task: TaskRecord) -> None:
        """Take in a task; it does not move before `enter` or `hold`."""
        self.tasks[task.task_id] = task
        if task.expires_at:
            self.timers.add(task.expires_at, task)

    def enter(self, task: TaskRecord) -> None:
        """Let a task wait for its time, or be ready."""
        if task.due > self.now:
            self.timers.add(task.due, task)
        else:
            task.due = 0.0
        self.ready(task)

    def ready(self, task: TaskRecord, *, front: bool = False) -> None:
        """Queue a task that nobody holds, unless something must still happen first."""
        if task.expires_at and task.expires_at <= self.now:
            self._expire(task)
        elif task.missing or task.due > self.now:
            task.status = _WAITING
        else:
            queue = self.queues.get(task.environment)
            if queue is None:
                queue = self.queues[task.environment] = ReadyQueue()
            queue.push(task, front=front)

    def wake(self) -> None:
        """Move the tasks whose time has come."""
        for task in self.timers.due(self.now):
            if task.status >= TaskStatus.SUCCEEDED or task.worker or task.recovering:
                continue
            if task.expires_at and task.expires_at <= self.now:
                self._expire(task)
            elif task.status == _WAITING and task.due and task.due <= self.now:
                task.due = 0.0
                self.ready(task)

    def hold(self, worker: Worker, task: TaskRecord, token: int) -> None:
        """Give a task that is in no queue to a worker."""
        task.token = token
        task.worker = worker.name
        task.status = _QUEUED
        task.recovering = False
        if not worker.held:
            worker.moved = self.now
            worker.stuck = False
        worker.held[token] = task
        worker.load += task.estimate

    def unhold(self, worker: Worker, task: TaskRecord) -> None:
        """Take a task from its worker; it is in no queue then."""
        del worker.held[task.token]
        worker.load -= task.estimate
        task.status = _WAITING
        task.worker = ""
        task.token = 0

    def end(self, task: TaskRecord, outcome: Outcome, buffers: Sequence[Buffer] = ()) -> None:
        """Let a task end; that is told once it is durable."""
        if task.worker:
            self.unhold(self.workers[task.worker], task)
        elif task.status == _QUEUED:
            # its place in the queue is recognized by the status that is set below
            task.status = outcome.status
            self.queues[task.environment].forget()
        task.status = outcome.status
        task.recovering = False
        if task.due or task.expires_at:
            self.timers.forget()
        ending = Ending(task, outcome, buffers)
        del self.tasks[task.task_id]
        self.ending[task.task_id] = ending
        self.fresh.append(ending)
        self._journal.store(FinishTask(task.seq, outcome, buffers))

    def finish(self, task: TaskRecord, status: TaskStatus, error: str, *, worker: str = "") -> None:
        """End a task by the hub's own decision; `worker` is who was running it."""
        attempts = task.attempts + bool(worker)
        outcome = Outcome(task.task_id, status, worker=worker, attempts=attempts, error=error)
        self.end(task, outcome)

    def _expire(self, task: TaskRecord) -> None:
        self.finish(task, TaskStatus.EXPIRED, "its `expires` passed while it waited to be run")
