"""Who gets the next task.

A worker runs either one synchronous task at a time or many coroutines. It is sent, of one task
name, at most `WINDOW` of estimated work ahead; one task while its cost is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable

from nbtaskq.hub.protocol import Flavor
from nbtaskq.hub.queues import ReadyQueue
from nbtaskq.hub.records import UNKNOWN, TaskRecord, Worker

#: nanoseconds of estimated work that a worker may hold
WINDOW = 5_000_000
#: tasks in one batch, however short they are
LARGEST_BATCH = 256


class Estimates:
    """Nanoseconds that a task of a name takes, learnt from its ends."""

    #: what a task costs its worker even when the function does nothing
    FLOOR = 20_000

    def __init__(self) -> None:
        self._costs: dict[str, int] = {}

    def get(self, name: str) -> int | None:
        """Return the estimate, or `None` for a name that never succeeded."""
        return self._costs.get(name)

    def learn(self, name: str, seconds: float, *, succeeded: bool = True) -> None:
        """Take in one duration; growth is believed sooner than decline.

        A failure may come early in the work, so it never makes an estimate or lowers one.
        """
        # written so that NaN falls to the floor
        cost = int(min(seconds * 1e9, UNKNOWN)) if seconds * 1e9 > self.FLOOR else self.FLOOR
        old = self._costs.get(name)
        if old is None:
            if succeeded:
                self._costs[name] = cost
        elif cost > old:
            self._costs[name] = (old + cost) // 2
        elif succeeded and cost < old:
            self._costs[name] = old - (old - cost) // 10


def allowance(worker: Worker, task: TaskRecord, estimate: int | None) -> int:
    """Return how many tasks like this one the worker may be sent now."""
    if worker.peer is None or worker.died is not None:
        return 0
    held = worker.held
    if task.flavor == Flavor.ASYNC:
        if held and (task.alone or _differs(held, task)):
            return 0
        return 1 if task.alone else max(0, worker.concurrency - len(held))
    if not held:
        if task.alone or estimate is None:
            return 1
        return min(WINDOW // estimate + 1, LARGEST_BATCH)
    if task.alone or estimate is None or worker.stuck or _differs(held, task):
        return 0
    return max(0, min((WINDOW - worker.load) // estimate, LARGEST_BATCH - len(held)))


def _differs(held: dict[int, TaskRecord], task: TaskRecord) -> bool:
    """Whether what a worker holds forbids adding this task to it."""
    other = next(iter(held.values()))
    return other.alone or other.flavor != task.flavor


def choose(
    workers: Iterable[Worker], task: TaskRecord, estimate: int | None
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


def _rank(worker: Worker) -> tuple[int, int]:
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
    # of equal priority only: a worker must not begin with less urgent ones beside it
    share = -(-queue.urgent() // max(1, sum(w.peer is not None for w in workers)))
    batch = queue.take(min(room, share))
    cost = 0 if head.flavor == Flavor.ASYNC else UNKNOWN if estimate is None else estimate
    for task in batch:
        task.estimate = cost
    return worker, batch
