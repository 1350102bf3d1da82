"""Which task waits for the results of which others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nbtaskq.hub.actions import Found, StoredTask
from nbtaskq.hub.board import Board
from nbtaskq.hub.records import Ending, TaskRecord
from nbtaskq.message import TaskStatus


class UnknownNeed(LookupError):
    """A task needs one that neither lives nor is stored."""


class Needs:
    """Holds tasks back until what they need has ended durably."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._dependents: dict[bytes, list[TaskRecord]] = {}

    def resolve(self, task: TaskRecord, ids: Sequence[bytes], found: Mapping[bytes, Found]) -> str:
        """Make a new task wait for these; return why it can never run, or an empty string.

        Raises
        ------
        UnknownNeed
            One of them is not known; the task waits for nothing.
        """
        rows: list[int] = []
        waiting: list[bytes] = []
        broken = ""
        for need in dict.fromkeys(ids):
            seq, ended = self._look(need, found)
            rows.append(seq)
            if ended is None:
                waiting.append(need)
            elif ended != TaskStatus.SUCCEEDED:
                broken = _broken(need, str(TaskStatus(ended)))
        task.needs = tuple(rows)
        if not broken:
            self._wait(task, waiting)
        return broken

    def _look(self, need: bytes, found: Mapping[bytes, Found]) -> tuple[int, int | None]:
        """Return row and end of a task; no end while it is not durable."""
        if need in self._board.tasks:
            return self._board.tasks[need].seq, None
        if need in self._board.ending:
            return self._board.ending[need].task.seq, None
        if need in found and found[need].status >= TaskStatus.SUCCEEDED:
            return found[need].seq, found[need].status
        raise UnknownNeed(need)

    def restore(self, task: TaskRecord, stored: StoredTask) -> str:
        """Make a loaded task wait again; return why it can never run, or an empty string."""
        broken = ""
        for need in stored.met:
            if need.status != TaskStatus.SUCCEEDED:
                broken = _broken(b"a task that it needs", str(TaskStatus(need.status)))
        if not all(need in self._board.tasks for need in stored.needs):
            return _broken(b"a task that it needs", "it is not stored any more")
        rows = [self._board.tasks[need].seq for need in stored.needs]
        task.needs = (*(need.seq for need in stored.met), *rows)
        self._wait(task, stored.needs)
        return broken

    def _wait(self, task: TaskRecord, needs: Sequence[bytes]) -> None:
        task.missing = len(needs)
        for need in needs:
            self._dependents.setdefault(need, []).append(task)

    def ended(self, ending: Ending) -> None:
        """Let go, or fail, the tasks that waited for this one."""
        dependents = self._dependents.pop(ending.task.task_id, None)
        for task in dependents or ():
            if self._board.tasks.get(task.task_id) is not task:
                continue
            if ending.outcome.status != TaskStatus.SUCCEEDED:
                why = ending.outcome.error or str(TaskStatus(ending.outcome.status))
                name = f"{ending.task.name} ({ending.task.task_id.decode(errors='replace')})"
                self._board.finish(task, TaskStatus.FAILED, _broken(name.encode(), why))
                continue
            task.missing -= 1
            if not task.missing and not task.worker and not task.recovering:
                self._board.ready(task)


def _broken(name: bytes, why: str) -> str:
    return f"{name.decode(errors='replace')} did not succeed: {why}"
