"""What clients hear of tasks: theirs, and those that they asked for.

A notice is a hint. It reaches who is connected; who comes back asks with `Get`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

from nbtaskq.hub import protocol as p
from nbtaskq.hub.actions import Lookup
from nbtaskq.hub.board import Board
from nbtaskq.hub.journal import Journal
from nbtaskq.hub.records import Client, Ending, TaskRecord
from nbtaskq.hub.roster import Roster
from nbtaskq.message import Buffer

#: larger values are sent when asked for
WITHHOLD = 1 << 20
#: outcomes, and about how many bytes of them, in one message
OUTCOMES_PER_MESSAGE = 500
BYTES_PER_MESSAGE = 8 << 20


def withhold(outcome: p.Outcome, buffers: Sequence[Buffer], limit: int = WITHHOLD) -> bool:
    """Whether a value is too large to be sent unasked."""
    return _size(outcome, buffers) > limit


def without_value(outcome: p.Outcome) -> p.Outcome:
    """Return the outcome as it is sent when its value is withheld."""
    return p.Outcome(
        outcome.task_id,
        outcome.status,
        started=outcome.started,
        seconds=outcome.seconds,
        worker=outcome.worker,
        attempts=outcome.attempts,
        error=outcome.error,
        withheld=True,
    )


def _size(outcome: p.Outcome, buffers: Sequence[Buffer]) -> int:
    size = len(outcome.body)
    return size + sum(memoryview(b).nbytes for b in buffers) if buffers else size


class Wish(enum.IntEnum):
    """How a session wants to hear of a task's end; more includes less."""

    HEAR = 0
    VALUE = 1
    EARLY = 2


class Telling:
    """Gathers what each session is to hear of one stimulus, and sends it at its end."""

    def __init__(self, journal: Journal, board: Board, roster: Roster) -> None:
        self._journal = journal
        self._board = board
        self._roster = roster
        #: task → session → wish, beside the owner's, who hears anyway
        self._wishes: dict[bytes, dict[bytes, Wish]] = {}
        self._ends: dict[bytes, list[Ending]] = {}
        self._changes: dict[bytes, list[tuple[bytes, int, str]]] = {}

    # -- questions -------------------------------------------------------------------------

    def wish(self, task_id: bytes, session: bytes, wish: Wish = Wish.HEAR) -> None:
        """Let a session hear of a task that has not ended durably.

        What it was told already may have been lost: that is why it asks.
        """
        ending = self._board.ending.get(task_id)
        if ending is not None:
            ending.told = tuple(s for s in ending.told if s != session)
        wishes = self._wishes.setdefault(task_id, {})
        wishes[session] = max(wish, wishes.get(session, wish))

    def wait(self, client: Client, message: p.Wait, _: Sequence[Buffer]) -> None:
        """Give a value to who blocks on it, before it is durable."""
        task_id = message.task_id
        if task_id in self._board.ending:
            self._tell_early(client.session, self._board.ending[task_id])
        elif task_id in self._board.tasks:
            self.wish(task_id, client.session, Wish.EARLY)
        elif client.peer is not None:
            self._journal.out.append(Lookup(client.peer, [task_id], values=True))

    def get(self, client: Client, message: p.Get, _: Sequence[Buffer]) -> None:
        """Say where tasks are; tell of their ends, now or later."""
        wish = Wish.VALUE if message.values else Wish.HEAR
        changes: list[tuple[bytes, int, str]] = []
        ended: list[bytes] = []
        for task_id in message.task_ids:
            task = self._board.tasks.get(task_id)
            if task is not None:
                changes.append((task_id, task.status, task.worker))
            if task is not None or task_id in self._board.ending:
                self.wish(task_id, client.session, wish)
            else:
                ended.append(task_id)
        if changes:
            self._journal.send(client.peer, p.Progressed(changes))
        self.look_up(client.peer, ended, values=message.values)

    def look_up(self, peer: bytes | None, task_ids: list[bytes], *, values: bool) -> None:
        """Have the store tell of tasks that have ended durably."""
        if task_ids and peer is not None:
            self._journal.out.append(Lookup(peer, task_ids, values))

    # -- news ------------------------------------------------------------------------------

    def audience(self, task: TaskRecord) -> Iterable[bytes]:
        """Return the sessions that hear of a task."""
        wishes = self._wishes.get(task.task_id)
        return {task.owner, *wishes} if wishes else (task.owner,)

    def changed(self, task: TaskRecord) -> None:
        """Tell that a task is somewhere else now."""
        row = task.task_id, int(task.status), task.worker
        for session in self.audience(task):
            self._changes.setdefault(session, []).append(row)

    def ended(self, endings: Iterable[Ending]) -> None:
        """Give values to who blocks on them."""
        for ending in endings if self._wishes else ():
            wishes = self._wishes.get(ending.task.task_id, {})
            for session, wish in wishes.items():
                if wish is Wish.EARLY:
                    self._tell_early(session, ending)

    def durable(self, ending: Ending) -> None:
        """Tell of an end that is stored."""
        owner = ending.task.owner
        wishes = self._wishes.pop(ending.task.task_id, None)
        if wishes is None:
            self._ends.setdefault(owner, []).append(ending)
            return
        for session in {owner, *wishes}.difference(ending.told):
            if wishes.get(session, Wish.HEAR) >= Wish.VALUE:
                self._send(session, [ending.outcome], ending.buffers)
            else:
                self._ends.setdefault(session, []).append(ending)

    def flush(self) -> None:
        """Send what has been gathered."""
        if self._changes:
            changes, self._changes = self._changes, {}
            for session, rows in changes.items():
                self._journal.send(self._roster.peer_of(session), p.Progressed(rows))
        if self._ends:
            ends, self._ends = self._ends, {}
            for session, endings in ends.items():
                if self._roster.peer_of(session) is not None:
                    self._tell(session, endings)

    def _tell(self, session: bytes, endings: list[Ending]) -> None:
        outcomes: list[p.Outcome] = []
        frames: list[Buffer] = []
        room = BYTES_PER_MESSAGE
        for ending in endings:
            outcome, buffers = ending.outcome, ending.buffers
            size = _size(outcome, buffers)
            if size > WITHHOLD:
                outcome, buffers, size = without_value(outcome), (), 0
            if len(outcomes) == OUTCOMES_PER_MESSAGE or size > room:
                self._send(session, outcomes, frames)
                outcomes, frames, room = [], [], BYTES_PER_MESSAGE
            outcomes.append(outcome)
            frames.extend(buffers)
            room -= size
        self._send(session, outcomes, frames)

    def _tell_early(self, session: bytes, ending: Ending) -> None:
        if self._send(session, [ending.outcome], ending.buffers):
            ending.told = (*ending.told, session)

    def _send(self, session: bytes, outcomes: list[p.Outcome], buffers: Sequence[Buffer]) -> bool:
        peer = self._roster.peer_of(session)
        self._journal.send(peer, p.Finished(outcomes), buffers)
        return peer is not None
