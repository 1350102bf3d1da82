"""Orders in which tasks wait: for a worker, and for a moment."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator

from nbtaskq.hub.records import TaskRecord
from nbtaskq.message import TaskStatus

_QUEUED = TaskStatus.QUEUED
#: entries of ended tasks that are kept at least before they are cleared away
_CLUTTER = 1000


class ReadyQueue:
    """Tasks that may run now: higher priority first, then first in, first out.

    A task that ends here keeps its place, which is passed over later.
    """

    def __init__(self) -> None:
        self._lanes: dict[int, deque[TaskRecord]] = {}
        self._order: list[int] = []
        self._count = 0
        self._gone = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[TaskRecord]:
        for priority in self._order:
            yield from (t for t in self._lanes[priority] if t.status == _QUEUED)

    def push(self, task: TaskRecord, *, front: bool = False) -> None:
        """Add a task; `front` for one whose turn had come already."""
        lane = self._lanes.get(task.priority)
        if lane is None:
            lane = self._lanes[task.priority] = deque()
            self._order = sorted(self._lanes, reverse=True)
        task.status = _QUEUED
        self._count += 1
        if front:
            lane.appendleft(task)
        else:
            lane.append(task)

    def head(self) -> TaskRecord | None:
        """Return the next task without taking it."""
        while self._order:
            lane = self._lanes[self._order[0]]
            while lane:
                if lane[0].status == _QUEUED:
                    return lane[0]
                lane.popleft()
                self._gone -= 1
            del self._lanes[self._order.pop(0)]
        return None

    def urgent(self) -> int:
        """Return about how many tasks have the head's priority."""
        return len(self._lanes[self._order[0]]) if self._order else 0

    def take(self, most: int) -> list[TaskRecord]:
        """Remove the head and what follows it of its name, at most `most` tasks."""
        head = self.head()
        if head is None:
            return []
        lane = self._lanes[head.priority]
        batch = [lane.popleft()]
        name, flavor = head.name, head.flavor
        while len(batch) < most and lane and not head.alone:
            task = lane[0]
            if task.status != _QUEUED:
                lane.popleft()
                self._gone -= 1
            elif task.alone or task.name != name or task.flavor != flavor:
                break
            else:
                batch.append(lane.popleft())
        self._count -= len(batch)
        return batch

    def forget(self) -> None:
        """Count out one queued task that has ended."""
        self._count -= 1
        self._gone += 1
        if self._gone > max(self._count, _CLUTTER):
            self._lanes = {
                priority: deque(t for t in lane if t.status == _QUEUED)
                for priority, lane in self._lanes.items()
            }
            self._gone = 0


class Timers:
    """Moments at which something may have to be done about a task."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, TaskRecord]] = []
        self._added = 0
        self._gone = 0

    def add(self, at: float, task: TaskRecord) -> None:
        """Have the task come up at this time."""
        self._added += 1
        heapq.heappush(self._heap, (at, self._added, task))

    def next(self) -> float:
        """Return the first moment."""
        return self._heap[0][0] if self._heap else math.inf

    def due(self, now: float) -> Iterator[TaskRecord]:
        """Remove what has come up; tasks that ended meanwhile may be among it."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[2]

    def forget(self) -> None:
        """Count one task that has ended, so that its entries do not pile up."""
        self._gone += 1
        if self._gone > max(len(self._heap) // 2, _CLUTTER):
            self._heap = [e for e in self._heap if e[2].status < TaskStatus.SUCCEEDED]
            heapq.heapify(self._heap)
            self._gone = 0
