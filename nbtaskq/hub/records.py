"""What the hub remembers of tasks, workers, clients and pools while they live."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from nbtaskq.hub.protocol import Died, Environment, Outcome
from nbtaskq.message import Buffer, TaskStatus


class TaskRecord(msgspec.Struct, gc=False):
    """An unended task; its payload is in the host's keeping, under `seq`.

    A million of them wait in memory: ids are bytes, names are shared strings.
    """

    seq: int
    task_id: bytes
    name: str
    owner: bytes
    environment: str
    checksum: int
    flavor: int = 0
    priority: int = 0
    at_most_once: bool = False
    status: int = TaskStatus.WAITING
    #: fences the current lease; 0 when there is none
    token: int = 0
    worker: str = ""
    attempts: int = 0
    due: float = 0.0
    expires_at: float = 0.0
    #: estimated seconds it was leased with
    estimate: float = 0.0
    #: unended tasks whose results it needs
    missing: int = 0
    needs: tuple[int, ...] = ()
    #: one sentence for each death it is charged with
    reasons: tuple[str, ...] = ()
    #: several ran when their worker died: run again with nothing beside it
    alone: bool = False
    #: loaded after a restart and perhaps still held by a worker
    recovering: bool = False


class Ending(msgspec.Struct, gc=False):
    """A task that has ended but whose end is not yet durable."""

    task: TaskRecord
    outcome: Outcome
    buffers: Sequence[Buffer]
    #: sessions that have the value already
    told: tuple[bytes, ...] = ()


class Client(msgspec.Struct):
    """A session of a client; it outlives its connections."""

    session: bytes
    environment: Environment
    peer: bytes | None = None
    notebook: str = ""
    seen: float = 0.0


class Worker(msgspec.Struct):
    """A worker kernel and what it holds."""

    name: str
    environment: str
    concurrency: int
    peer: bytes | None = None
    #: token → task, in the order in which they were sent
    held: dict[int, TaskRecord] = {}
    #: estimated seconds of work it holds; infinite while one is unknown
    load: float = 0.0
    #: number of the last `Settle` that arrived
    settled: int = 0
    lease_until: float = 0.0
    paused: bool = False
    #: its death notice waits for results that are still in the socket
    died: Died | None = None
    died_at: float = 0.0


class Pool(msgspec.Struct):
    """A supervisor: the parent of workers, and who takes orders."""

    session: bytes
    peer: bytes | None = None
    #: worker ids of its last `Renew`; `None` before the first
    workers: list[str] | None = None
    facts: dict[str, object] = {}


class ReadyQueue:
    """Tasks that may run now: higher priority first, then first in, first out."""

    def __init__(self) -> None:
        self._lanes: dict[int, deque[TaskRecord]] = {}
        self._order: list[int] = []
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def push(self, task: TaskRecord, *, front: bool = False) -> None:
        """Add a task; `front` for one whose turn had come already."""
        lane = self._lanes.get(task.priority)
        if lane is None:
            lane = self._lanes[task.priority] = deque()
            self._order = sorted(self._lanes, reverse=True)
        task.status = TaskStatus.QUEUED
        self.count += 1
        if front:
            lane.appendleft(task)
        else:
            lane.append(task)

    def head(self) -> TaskRecord | None:
        """Return the next task without taking it; those cancelled meanwhile are passed over."""
        for priority in self._order:
            lane = self._lanes[priority]
            while lane:
                if lane[0].status == TaskStatus.QUEUED:
                    return lane[0]
                lane.popleft()
        return None

    def pop(self) -> TaskRecord:
        """Take the task that `head` returned."""
        task = self.head()
        if task is None:
            raise IndexError("pop from an empty queue")
        self._lanes[task.priority].popleft()
        self.count -= 1
        return task

    def forget(self, task: TaskRecord) -> None:
        """Count out a queued task that ended; its place is passed over later."""
        self.count -= 1

    def __iter__(self) -> Iterator[TaskRecord]:
        for priority in self._order:
            yield from (t for t in self._lanes[priority] if t.status == TaskStatus.QUEUED)


class Estimates:
    """Seconds that a task of a name takes, learnt from its ends."""

    #: what a task costs its worker even when the function does nothing
    FLOOR = 20e-6

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def get(self, name: str) -> float | None:
        """Return the estimate, or `None` for a name that never ended."""
        return self._seconds.get(name)

    def learn(self, name: str, seconds: float) -> None:
        """Take in one duration; growth is believed sooner than decline."""
        seconds = max(seconds, self.FLOOR)
        old = self._seconds.get(name)
        if old is None:
            self._seconds[name] = seconds
        else:
            weight = 0.5 if seconds > old else 0.1
            self._seconds[name] = old + weight * (seconds - old)
