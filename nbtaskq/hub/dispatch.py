"""Who gets the next task.

A worker runs either one synchronous task at a time or many coroutines. It is sent, of one task
name, at most `WINDOW` seconds of estimated work ahead; one task while its cost is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from nbtaskq.hub.protocol import Flavor
from nbtaskq.hub.records import Estimates, ReadyQueue, TaskRecord, Worker

#: seconds of estimated work that a worker may hold
WINDOW = 0.005
#: tasks in one batch, however short they are
LARGEST_BATCH = 256


def allowance(worker: Worker, task: TaskRecord, estimate: float | None) -> int:
    """Return how many tasks like this one the worker may be sent now."""
    if worker.peer is None or worker.died is not None or worker.paused:
        return 0
    if not worker.held:
        if task.alone or (estimate is None and task.flavor == Flavor.SYNC):
            return 1
    elif task.alone or _differs(worker, task):
        return 0
    if task.flavor == Flavor.ASYNC:
        return max(0, worker.concurrency - len(worker.held))
    if worker.held and (estimate is None or worker.load >= WINDOW):
        return 0
    assert estimate is not None
    room = int((WINDOW - worker.load) / estimate) + (not worker.held)
    return max(0, min(room, LARGEST_BATCH - len(worker.held)))


def _differs(worker: Worker, task: TaskRecord) -> bool:
    """Whether what the worker holds forbids adding this task to it."""
    other = next(iter(worker.held.values()))
    return other.alone or other.flavor != task.flavor


def choose(
    workers: Iterable[Worker], task: TaskRecord, estimate: float | None
) -> tuple[Worker, int] | None:
    """Return the least loaded worker that may take the task, and how many of its kind."""
    best: tuple[Worker, int] | None = None
    for worker in workers:
        room = allowance(worker, task, estimate)
        if room and (best is None or _rank(worker) < _rank(best[0])):
            best = worker, room
            if not worker.held:
                break
    return best


def _rank(worker: Worker) -> tuple[float, int]:
    return worker.load, len(worker.held)


def take_batch(
    queue: ReadyQueue, workers: list[Worker], estimates: Estimates
) -> tuple[Worker, list[TaskRecord]] | None:
    """Take from the queue what goes next to one worker, or `None` when nothing can."""
    head = queue.head()
    if head is None:
        return None
    estimate = estimates.get(head.name)
    choice = choose(workers, head, estimate)
    if choice is None:
        return None
    worker, room = choice
    share = math.ceil(len(queue) / max(1, sum(w.peer is not None for w in workers)))
    batch = [queue.pop()]
    while len(batch) < min(room, share):
        task = queue.head()
        if task is None or task.alone or task.name != head.name or task.flavor != head.flavor:
            break
        batch.append(queue.pop())
    cost = 0.0 if head.flavor == Flavor.ASYNC else math.inf if estimate is None else estimate
    for task in batch:
        task.estimate = cost
    return worker, batch
