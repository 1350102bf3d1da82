"""Storing what clients send, each id once."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nbtaskq.hub import protocol as p
from nbtaskq.hub.actions import Check, Found, InsertTask, PutObject
from nbtaskq.hub.board import Board
from nbtaskq.hub.journal import Journal
from nbtaskq.hub.needs import Needs, UnknownNeed
from nbtaskq.hub.reclaiming import Reclaiming
from nbtaskq.hub.records import Client, TaskRecord
from nbtaskq.hub.roster import Roster
from nbtaskq.hub.settling import share_out, signed
from nbtaskq.hub.telling import Telling, Wish
from nbtaskq.message import Buffer, TaskStatus

Problem = tuple[bytes, str, str]


def checksum(submission: p.Submission, buffers: Sequence[Buffer]) -> int:
    """Return what tells two payloads under one id apart."""
    value = zlib.crc32(submission.name.encode(errors="replace"))
    value = zlib.crc32(submission.body, zlib.crc32(submission.code, value))
    for buffer in buffers:
        value = zlib.crc32(buffer, value)
    return value


class Receipt(NamedTuple):
    """What a client hears of one `Submit` once that is durable."""

    session: bytes
    batch: int
    problems: list[Problem]
    #: tasks that had ended before they were sent again
    ended: list[bytes]


class Submitting:
    """Takes in tasks and objects.

    Parameters
    ----------
    next_seq : int
        First row number that is free.
    limit : int
        Unended tasks beyond which more are refused as `full`.
    """

    def __init__(
        self,
        journal: Journal,
        board: Board,
        roster: Roster,
        telling: Telling,
        needs: Needs,
        reclaiming: Reclaiming,
        *,
        next_seq: int,
        limit: int,
    ) -> None:
        self._journal = journal
        self._board = board
        self._roster = roster
        self._telling = telling
        self._needs = needs
        self._reclaiming = reclaiming
        self._next_seq = next_seq
        self._limit = limit
        #: names as one object each, however often they come
        self._names: dict[str, str] = {}

    def put(self, _: object, message: p.Put, buffers: Sequence[Buffer]) -> None:
        """Store an object."""
        (body,) = p.take(buffers, 0, 1)
        self._journal.store(PutObject(message.digest, body, tuple(message.refs)))

    def submit(self, client: Client, message: p.Submit, buffers: Sequence[Buffer]) -> None:
        """Store tasks, after a look into the store when it may know some of them."""
        share_out([s.buffers for s in message.tasks], buffers)
        doubtful = self._doubtful(message)
        if doubtful:
            client.checking = message.batch
            # also for one that is lost: what it had sent is stored, and told when it comes back
            self._journal.out.append(Check(client.address, message, buffers, doubtful))
        else:
            self.store(client, message, buffers, {})

    def _doubtful(self, message: p.Submit) -> list[bytes]:
        """Return ids to look up: all that matter, if one of them does not live here.

        One that lives now may have ended durably before the store answers.
        """
        tasks, ending = self._board.tasks, self._board.ending
        here = {s.task_id for s in message.tasks} if not message.again else set()
        ids: dict[bytes, None] = {}
        missing = False
        for submission in message.tasks:
            keys = [submission.task_id, *submission.needs] if message.again else submission.needs
            for key in keys:
                if key not in here:
                    ids[key] = None
                    missing = missing or (key not in tasks and key not in ending)
        return list(ids) if missing else []

    def store(
        self,
        client: Client,
        message: p.Submit,
        buffers: Sequence[Buffer],
        found: Mapping[bytes, Found],
    ) -> None:
        """Store tasks; `found` is what the store knew of the ids that were looked up."""
        receipt = Receipt(client.session, message.batch, [], [])
        shares = share_out([s.buffers for s in message.tasks], buffers)
        for submission, own in zip(message.tasks, shares, strict=True):
            check = checksum(submission, own)
            known = self._known_checksum(submission.task_id, found)
            if known is not None:
                self._repeated(client, submission, known == check, receipt)
            elif len(self._board.tasks) >= self._limit:
                text = f"{self._limit} tasks wait already; send again when some have ended"
                receipt.problems.append((submission.task_id, "full", text))
            else:
                task = self._record(client, submission, check)
                self._store_one(client, task, submission, own, found, message.again, receipt)
        self._journal.after_commit(self._accept, receipt)
        for task_id in message.awaited:
            if task_id in self._board.tasks:
                self._telling.wish(task_id, client.session, Wish.EARLY)

    def _accept(self, receipt: Receipt) -> None:
        peer = self._roster.peer_of(receipt.session)
        self._journal.send(peer, p.Accepted(receipt.batch, receipt.problems))
        self._telling.look_up(peer, receipt.ended, values=False)

    def _known_checksum(self, task_id: bytes, found: Mapping[bytes, Found]) -> int | None:
        task = self._board.tasks.get(task_id)
        if task is not None:
            return task.checksum
        if task_id in self._board.ending:
            return self._board.ending[task_id].task.checksum
        return found[task_id].checksum if task_id in found else None

    def _repeated(
        self, client: Client, submission: p.Submission, same: bool, receipt: Receipt
    ) -> None:
        """Let the sender of a known task hear of it, unless its payload is another."""
        task_id = submission.task_id
        if not same:
            text = "a task of this id exists with other contents"
            receipt.problems.append((task_id, "conflict", text))
        elif task_id in self._board.tasks or task_id in self._board.ending:
            self._telling.wish(task_id, client.session)
        else:
            receipt.ended.append(task_id)

    def _record(self, client: Client, submission: p.Submission, check: int) -> TaskRecord:
        now, name = self._board.now, submission.name
        delay, expires = submission.delay, submission.expires
        return TaskRecord(
            self._next_seq,
            submission.task_id,
            self._names.setdefault(name, name),
            client.session,
            client.environment_key,
            check,
            submission.flavor,
            submission.priority,
            submission.at_most_once,
            now + delay if delay > 0 else 0.0,
            now + expires if expires > 0 else 0.0,
        )

    def _store_one(
        self,
        client: Client,
        task: TaskRecord,
        submission: p.Submission,
        buffers: Sequence[Buffer],
        found: Mapping[bytes, Found],
        again: bool,
        receipt: Receipt,
    ) -> None:
        broken = ""
        if submission.needs:
            try:
                broken = self._needs.resolve(task, submission.needs, found)
            except UnknownNeed:
                text = "a task that it depends on is not known"
                receipt.problems.append((task.task_id, "unknown_dependency", text))
                return
        self._next_seq += 1
        self._board.add(task)
        self._journal.store(
            InsertTask(
                task.seq,
                client.session,
                client.notebook,
                task.environment,
                submission,
                buffers,
                task.checksum,
            )
        )
        if broken:
            self._board.finish(task, TaskStatus.FAILED, broken)
        else:
            self._start(task, again)

    def _start(self, task: TaskRecord, again: bool) -> None:
        """Let a stored task go, unless its fate was known before it was stored."""
        parked = self._reclaiming.merge(task) if self._reclaiming.remembers else None
        if parked is not None:
            self._board.end(task, signed(parked.verdict, parked.worker, task), parked.buffers)
        elif not task.worker:
            if again and self._reclaiming.active and not task.at_most_once:
                self._reclaiming.await_holder(task)
            else:
                self._board.enter(task)
