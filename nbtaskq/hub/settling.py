"""What workers say of the tasks that they run."""

from __future__ import annotations

from collections.abc import Sequence

from nbtaskq.hub import protocol as p
from nbtaskq.hub.actions import AppendOutput, ChangeTask
from nbtaskq.hub.board import Board
from nbtaskq.hub.cancelling import Cancelling
from nbtaskq.hub.dispatch import Estimates
from nbtaskq.hub.journal import Journal
from nbtaskq.hub.reclaiming import Reclaiming
from nbtaskq.hub.records import TaskRecord, Worker
from nbtaskq.hub.roster import Roster
from nbtaskq.hub.telling import Telling
from nbtaskq.message import Buffer, TaskStatus

_RESULT, _REJECT = int(p.VerdictKind.RESULT), int(p.VerdictKind.REJECT)
_KINDS = frozenset(map(int, p.VerdictKind))
_ENDS = frozenset(int(status) for status in TaskStatus if status.ended)


def share_out(counts: Sequence[int], buffers: Sequence[Buffer]) -> list[Sequence[Buffer]]:
    """Give each part of a message as many buffers as it announced.

    Raises
    ------
    ValueError
        The counts do not fit what is there.
    """
    if any(counts) or buffers:
        if min(counts, default=0) < 0:
            raise ValueError("a negative number of buffers was announced")
        p.take(buffers, 0, sum(counts))
    shares: list[Sequence[Buffer]] = []
    position = 0
    for count in counts:
        shares.append(tuple(buffers[position : position + count]) if count else ())
        position += count
    return shares


class Settling:
    """Takes in starts, output and verdicts; a verdict with another token is dropped."""

    def __init__(
        self,
        journal: Journal,
        board: Board,
        roster: Roster,
        telling: Telling,
        cancelling: Cancelling,
        reclaiming: Reclaiming,
        estimates: Estimates,
    ) -> None:
        self._journal = journal
        self._board = board
        self._roster = roster
        self._telling = telling
        self._cancelling = cancelling
        self._reclaiming = reclaiming
        self._estimates = estimates
        #: worker → number of the last `Settle` that is durable and not acknowledged
        self._recorded: dict[str, tuple[Worker, int]] = {}

    def started(self, worker: Worker, message: p.Started, _: Sequence[Buffer]) -> None:
        """Take in what is running now."""
        for _id, token, _at in message.running:
            task = worker.held.get(token)
            if task is not None and task.status != TaskStatus.RUNNING:
                task.status = TaskStatus.RUNNING
                self._telling.changed(task)

    def output(self, worker: Worker, message: p.Output, _: Sequence[Buffer]) -> None:
        """Store output and pass it on."""
        notes: dict[bytes, list[p.Note]] = {}
        for note in message.notes:
            task = worker.held.get(note.token)
            if task is None:
                continue
            self._journal.store(AppendOutput(task.seq, note))
            for session in self._telling.audience(task):
                notes.setdefault(session, []).append(note)
        for session, own in notes.items():
            self._journal.send(self._roster.peer_of(session), p.Output(own))

    # -- verdicts --------------------------------------------------------------------------

    def settle(self, worker: Worker, message: p.Settle, buffers: Sequence[Buffer]) -> None:
        """Take in verdicts; they are acknowledged when they are durable."""
        verdicts = message.verdicts
        shares = share_out([v.outcome.buffers for v in verdicts], buffers)
        for verdict in verdicts:
            if verdict.kind not in _KINDS or (
                verdict.kind == _RESULT and verdict.outcome.status not in _ENDS
            ):
                raise ValueError(f"no such verdict: {verdict.kind}, {verdict.outcome.status}")
        held = worker.held
        for verdict, own in zip(verdicts, shares, strict=True):
            task = held.get(verdict.token)
            if task is None:
                self._reclaiming.park(worker, verdict, own)
            elif verdict.kind == _RESULT or verdict.kind == _REJECT:
                self._result(worker, task, verdict, own)
            else:
                self._rerun(worker, task, verdict)
        worker.stuck = False
        worker.moved = self._board.now
        worker.count(message.number)
        self._journal.after_commit(self._durable, (worker, worker.settled))

    def _result(
        self, worker: Worker, task: TaskRecord, verdict: p.Verdict, buffers: Sequence[Buffer]
    ) -> None:
        outcome = verdict.outcome
        self._cancelling.too_late(verdict.token, task)
        succeeded = verdict.kind == _RESULT and outcome.status == TaskStatus.SUCCEEDED
        self._estimates.learn(task.name, outcome.seconds, succeeded=succeeded)
        self._board.end(task, signed(verdict, worker.name, task), buffers)

    def _rerun(self, worker: Worker, task: TaskRecord, verdict: p.Verdict) -> None:
        self._board.unhold(worker, task)
        if self._cancelling.given_back(verdict.token, task):
            return
        task.attempts += verdict.kind == p.VerdictKind.RETRY
        delay = verdict.delay if verdict.delay > 0 else 0.0
        task.due = self._board.now + delay if delay else 0.0
        self._journal.store(
            ChangeTask(task.seq, task.attempts, delay, verdict.labels or None, task.reasons)
        )
        self._board.enter(task)
        if task.status < TaskStatus.SUCCEEDED:
            self._telling.changed(task)

    # -- acknowledgement -------------------------------------------------------------------

    def _durable(self, settled: tuple[Worker, int]) -> None:
        worker, number = settled
        self._recorded[worker.name] = worker, number

    def flush(self) -> None:
        """Acknowledge what is durable, once for each worker."""
        if self._recorded:
            recorded, self._recorded = self._recorded, {}
            for worker, number in recorded.values():
                self._journal.send(worker.peer, p.Recorded(number))


def signed(verdict: p.Verdict, worker: str, task: TaskRecord) -> p.Outcome:
    """Return a verdict's outcome with what the hub knows better than the worker."""
    outcome = verdict.outcome
    attempts = task.attempts + 1
    status = TaskStatus.REJECTED if verdict.kind == _REJECT else outcome.status
    if (
        outcome.task_id == task.task_id
        and outcome.worker == worker
        and outcome.attempts == attempts
        and outcome.status == status
        and not outcome.withheld
    ):
        return outcome
    return p.Outcome(
        task.task_id,
        status,
        outcome.body,
        outcome.buffers,
        outcome.started,
        outcome.seconds,
        worker,
        attempts,
        outcome.error,
    )
