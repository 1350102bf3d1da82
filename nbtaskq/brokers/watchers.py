"""Who hears of which task: what a hub tells a client, handed to the senders of the messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nbtaskq.abc import Watcher
from nbtaskq.errors import UnknownTask
from nbtaskq.hub import protocol as p
from nbtaskq.message import Buffer


class Watchers:
    """The watchers of each task that has not ended.

    Any thread may add some; one thread hands news to them.
    """

    def __init__(self) -> None:
        self._of: dict[bytes, list[Watcher]] = {}

    def ids(self) -> list[bytes]:
        """Return the tasks that are watched."""
        return list(self._of)

    def add(self, task_id: bytes, watcher: Watcher) -> None:
        """Let a watcher hear of a task; it hears everything once."""
        watchers = self._of.setdefault(task_id, [])
        if watcher not in watchers:
            watchers.append(watcher)

    def remove(self, task_id: bytes, watcher: Watcher) -> None:
        """Tell a watcher no more of a task; without effect when it does not watch it."""
        watchers = self._of.get(task_id)
        if watchers is not None and watcher in watchers:
            watchers.remove(watcher)

    def forget(self, task_id: bytes) -> None:
        """Tell nobody of a task any more."""
        self._of.pop(task_id, None)

    # -- news ------------------------------------------------------------------------------

    def finished(self, outcomes: Iterable[p.Outcome], frames: Sequence[Buffer]) -> None:
        """Tell how tasks ended, each with the frames that are its own; that was the last word."""
        position = 0
        for outcome in outcomes:
            own = p.take(frames, position, outcome.buffers)
            position += outcome.buffers
            for watcher in self._of.pop(outcome.task_id, ()):
                watcher.on_outcome(outcome, own)

    def progressed(self, changes: Iterable[tuple[bytes, int, str]]) -> None:
        """Tell of tasks that changed without ending."""
        for task_id, status, worker in changes:
            for watcher in self._of.get(task_id, ()):
                watcher.on_progress(status, worker)

    def printed(self, notes: Iterable[p.Note]) -> None:
        """Tell what tasks have put out."""
        for note in notes:
            for watcher in self._of.get(note.task_id, ()):
                watcher.on_output(note.number, note.content)

    def missing(self, task_ids: Iterable[bytes]) -> None:
        """Tell that there are no such tasks."""
        for task_id in task_ids:
            for watcher in self._of.pop(task_id, ()):
                name = task_id.decode(errors="replace")
                watcher.on_refused(UnknownTask(f"the hub knows no task {name!r}"))
