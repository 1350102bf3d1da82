"""Ending tasks that have not begun; what a worker holds needs the worker's word."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nbtaskq.hub import protocol as p
from nbtaskq.hub.board import Board
from nbtaskq.hub.journal import Journal
from nbtaskq.hub.records import Client, TaskRecord
from nbtaskq.hub.roster import Roster
from nbtaskq.message import Buffer, TaskStatus


class Request(msgspec.Struct, eq=False):
    """One `Cancel` and its answer so far."""

    session: bytes
    number: int
    words: dict[str, str] = {}
    #: tasks of which no word is known yet
    unknown: int = 0


class Cancelling:
    """Answers each `Cancel` with `cancelled` or `too_late` for every task."""

    def __init__(self, journal: Journal, board: Board, roster: Roster) -> None:
        self._journal = journal
        self._board = board
        self._roster = roster
        #: tokens that workers were asked to give back
        self._asked: dict[int, list[Request]] = {}
        self._later: list[tuple[Client, p.Cancel]] = []

    def cancel(self, client: Client, message: p.Cancel, _: Sequence[Buffer]) -> None:
        """Begin to end tasks."""
        tasks = self._board.tasks
        ids = list(dict.fromkeys(message.task_ids))
        if any(i in tasks and tasks[i].recovering for i in ids):
            # a worker of the last epoch may hold it: `resume` goes on when that is known
            self._later.append((client, message))
            return
        request = Request(client.session, message.request)
        recalls: dict[str, list[int]] = {}
        for task_id in ids:
            task = tasks.get(task_id)
            if task is None:
                self._say(request, task_id, "too_late")
            elif self._asks(request, task):
                recalls.setdefault(task.worker, []).append(task.token)
        for name, tokens in recalls.items():
            self._journal.send(self._board.workers[name].peer, p.Recall(tokens))
        self._answer_if_complete(request)

    def _asks(self, request: Request, task: TaskRecord) -> bool:
        """End a task, or say that it is too late, or return that its worker must be asked."""
        if not task.worker or task.token in self._board.unsent:
            self._finish(task)
            self._say(request, task.task_id, "cancelled")
        elif task.status == TaskStatus.RUNNING:
            self._say(request, task.task_id, "too_late")
        else:
            request.unknown += 1
            self._asked.setdefault(task.token, []).append(request)
            return True
        return False

    def resume(self) -> None:
        """Go on with what waited for the end of recovery."""
        later, self._later = self._later, []
        for client, message in later:
            self.cancel(client, message, ())

    def asked_of(self, tokens: Sequence[int]) -> list[int]:
        """Return which of these leases a worker was asked to give back."""
        return [token for token in tokens if token in self._asked]

    def given_back(self, token: int, task: TaskRecord) -> bool:
        """End a task that nobody runs any more; return whether that had been asked for."""
        requests = self._asked.pop(token, None)
        if requests is None:
            return False
        self._finish(task)
        self._settle(requests, task.task_id, "cancelled")
        return True

    def too_late(self, token: int, task: TaskRecord) -> None:
        """Take in that a task began before it could be called back."""
        if self._asked:
            self._settle(self._asked.pop(token, []), task.task_id, "too_late")

    def _finish(self, task: TaskRecord) -> None:
        self._board.finish(task, TaskStatus.CANCELLED, "it was cancelled before it ran")

    def _settle(self, requests: list[Request], task_id: bytes, word: str) -> None:
        for request in requests:
            self._say(request, task_id, word)
            request.unknown -= 1
            self._answer_if_complete(request)

    @staticmethod
    def _say(request: Request, task_id: bytes, word: str) -> None:
        request.words[task_id.decode(errors="replace")] = word

    def _answer_if_complete(self, request: Request) -> None:
        if not request.unknown:
            self._journal.after_commit(self._answer, request)

    def _answer(self, request: Request) -> None:
        peer = self._roster.peer_of(request.session)
        self._journal.send(peer, p.Answer(request.number, ok=True, body=request.words))
