"""What can be asked of the store. Queries run in the writer thread, between two commits.

Every call reads at most about 500 rows, so that it holds up the writer for a millisecond; ask
again for more.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from nbtaskq.errors import TaskCorrupt
from nbtaskq.hub.actions import Found
from nbtaskq.hub.blobs import Blobs
from nbtaskq.hub.group import checked
from nbtaskq.hub.protocol import Outcome, Submission
from nbtaskq.message import Buffer, TaskStatus

#: Rows in one page.
PAGE = 500

T = TypeVar("T")

#: a key and its row; no row for one whose bytes cannot be read
Selected = tuple[Any, tuple[Any, ...] | None]

_submission = msgspec.msgpack.Decoder(Submission)
_outcome = msgspec.msgpack.Decoder(Outcome)
_ids = msgspec.msgpack.Decoder(tuple[bytes, ...])

_PAYLOADS = (
    "SELECT t.seq, t.task_id, t.name, p.crc, p.data, p.parts, p.labels, p.labels_crc"
    " FROM payload p JOIN task t ON t.seq = p.seq WHERE p.seq IN ({})"
)
_OUTCOMES = (
    "SELECT t.seq, t.task_id, r.status, r.started, r.seconds, r.worker, r.attempts, r.error, r.crc,"
    " CASE WHEN {limit} < 0 OR r.size <= {limit} THEN r.data END, r.parts"
    " FROM task t CROSS JOIN result r ON r.seq = t.seq WHERE t.{column} IN ({{}})"
)
_FOUND = (
    "SELECT t.task_id, t.seq, r.status, t.checksum, p.due, t.needs"
    " FROM task t LEFT JOIN result r ON r.seq = t.seq LEFT JOIN pending p ON p.seq = t.seq"
    " WHERE t.task_id IN ({})"
)
_OBJECTS = "SELECT digest, refs, size, crc, body FROM object WHERE digest IN ({})"
_OUTPUTS = (
    "SELECT number, content FROM output WHERE seq = (SELECT seq FROM task WHERE task_id = ?)"
    " AND number > ? ORDER BY number LIMIT ?"
)


class Piece(NamedTuple):
    """One stored piece of a task's output: a Jupyter output message as JSON bytes."""

    number: int
    content: bytes


class PayloadReader:
    """The reads that give bytes back, checked."""

    def __init__(self, connection: sqlite3.Connection, blobs: Blobs) -> None:
        self._connection = connection
        self._blobs = blobs

    def payloads(
        self, seqs: Iterable[int]
    ) -> dict[int, tuple[Submission, Sequence[Buffer]] | TaskCorrupt]:
        """Return what tasks are called with, by `seq`; what is damaged is a `TaskCorrupt`."""
        return _each(self._select(_PAYLOADS, seqs), self._payload)

    def outcomes(
        self, task_ids: Iterable[bytes], values: bool, limit_bytes: int
    ) -> list[tuple[Outcome, Sequence[Buffer]]]:
        """Return how those of the tasks ended that have; the order is the one asked in.

        Without `values`, a value of more than `limit_bytes` is withheld. A damaged result is an
        outcome of status `CORRUPT`.
        """
        asked = list(task_ids)
        sql = _OUTCOMES.format(limit=-1 if values else int(limit_bytes), column="task_id")
        found = {key: self._ending(key, row) for key, row in self._select(sql, asked, column=1)}
        return [found[task_id] for task_id in asked if task_id in found]

    def outcomes_by_seq(self, seqs: Iterable[int]) -> dict[int, tuple[Outcome, Sequence[Buffer]]]:
        """Return how those of the tasks ended that have, with their values, by `seq`."""
        sql = _OUTCOMES.format(limit=-1, column="seq")
        return {seq: self._ending(b"", row) for seq, row in self._select(sql, seqs)}

    def found(self, task_ids: Iterable[bytes]) -> dict[bytes, Found]:
        """Return row, status and checksum of those of the tasks that are stored."""
        now = time.time()
        found = {}
        for page in _pages(task_ids):
            for row in self._connection.execute(_statement(_FOUND, len(page)), page):
                task_id, seq, status, checksum, due, needs = row
                if status is None:
                    waits = (due or 0.0) > now or needs is not None
                    status = TaskStatus.WAITING if waits else TaskStatus.QUEUED
                found[task_id] = Found(seq, status, checksum)
        return found

    def objects(
        self, digests: Iterable[bytes]
    ) -> dict[bytes, tuple[bytes, tuple[bytes, ...]] | TaskCorrupt]:
        """Return those of the objects that are stored; what is damaged is a `TaskCorrupt`."""
        return _each(self._select(_OBJECTS, digests), self._object)

    def outputs(self, task_id: bytes, after: int = -1, limit: int = PAGE) -> list[Piece]:
        """Return the pieces of a task's output behind number `after`, in order."""
        rows = self._connection.execute(_OUTPUTS, (task_id, after, limit))
        return [Piece(*row) for row in rows]

    # -- rows ------------------------------------------------------------------------------

    def _payload(self, row: tuple[Any, ...] | None) -> tuple[Submission, Sequence[Buffer]]:
        if row is None:
            raise TaskCorrupt("the stored bytes of the task cannot be read")
        _, task_id, name, crc, data, parts, labels, labels_crc = row
        task = _decoded(_submission, crc, data, parts, "task")
        if task.task_id != task_id or task.name != name:
            raise TaskCorrupt("the stored id or name of the task is damaged")
        if labels is not None:
            if zlib.crc32(labels) != labels_crc:
                raise TaskCorrupt("the stored labels of the task are damaged")
            task = msgspec.structs.replace(task, labels=labels)
        return self._blobs.unpack(task, parts)

    def _ending(
        self, task_id: bytes, row: tuple[Any, ...] | None
    ) -> tuple[Outcome, Sequence[Buffer]]:
        if row is None:
            error = "the stored bytes of its result cannot be read"
            return Outcome(task_id, TaskStatus.CORRUPT, error=error), ()
        facts = _outcome_of(row)
        if row[9] is None:
            return facts, ()
        try:
            end = _decoded(_outcome, row[8], row[9], row[10], "result")
            if end.task_id != facts.task_id or end.status != facts.status:
                raise TaskCorrupt("the stored id or status of the result is damaged")
            return self._blobs.unpack(end, row[10])
        except TaskCorrupt as error:
            return msgspec.structs.replace(
                facts, status=TaskStatus.CORRUPT, error=str(error), withheld=False
            ), ()

    def _object(self, row: tuple[Any, ...] | None) -> tuple[bytes, tuple[bytes, ...]]:
        if row is None:
            raise TaskCorrupt("the stored bytes of the object cannot be read")
        digest, refs, size, crc, body = row
        content = self._blobs.get(digest.hex(), size) if body is None else body
        if zlib.crc32(content) != crc:
            raise TaskCorrupt(f"the stored bytes of the object {digest.hex()} are damaged")
        return content, () if refs is None else _ids.decode(refs)

    # -- pages -----------------------------------------------------------------------------

    def _select(self, sql: str, keys: Iterable[Any], *, column: int = 0) -> Iterator[Selected]:
        """Yield what is there by its key, which the row has in `column`."""
        for page in _pages(keys):
            try:
                rows = self._connection.execute(_statement(sql, len(page)), page).fetchall()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                yield from self._one_by_one(sql, page)
            else:
                for row in rows:
                    yield row[column], row

    def _one_by_one(self, sql: str, keys: Collection[Any]) -> Iterator[Selected]:
        """Go round a damaged page of the file: it shall cost only the rows that are in it."""
        for key in dict.fromkeys(keys):
            try:
                row = self._connection.execute(_statement(sql, 1), (key,)).fetchone()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                yield key, None
            else:
                if row is not None:
                    yield key, row


def _each(selected: Iterable[Selected], read: Callable[[Any], T]) -> dict[Any, T | TaskCorrupt]:
    """Return what is read of each row; what is damaged costs no more than itself."""
    found: dict[Any, T | TaskCorrupt] = {}
    for key, row in selected:
        try:
            found[key] = read(row)
        except TaskCorrupt as error:
            found[key] = error
    return found


def _pages(keys: Iterable[Any]) -> Iterator[list[Any]]:
    """Return pages of a few sizes, the last key repeated, so that statements are prepared once."""
    asked = list(keys)
    for start in range(0, len(asked), PAGE):
        page = asked[start : start + PAGE]
        size = next(size for size in (1, 8, 64, PAGE) if size >= len(page))
        yield page + page[-1:] * (size - len(page))


def _statement(sql: str, size: int) -> str:
    return sql.format(", ".join("?" * size))


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _decoded(
    decoder: msgspec.msgpack.Decoder[Any], crc: int, data: bytes, parts: bytes | None, what: str
) -> Any:
    """Return the struct of a row; raise `TaskCorrupt` unless its bytes are as they were."""
    if not isinstance(data, bytes) or checked(data, parts) != crc:
        raise TaskCorrupt(f"the stored bytes of the {what} are damaged")
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise TaskCorrupt(f"the stored bytes of the {what} cannot be decoded") from error


def _outcome_of(row: tuple[Any, ...]) -> Outcome:
    """Return an outcome from the facts alone: its value is withheld."""
    _, task_id, status, started, seconds, worker, attempts, error = row[:8]
    return Outcome(
        task_id,
        status,
        started=started or 0.0,
        seconds=seconds or 0.0,
        worker=worker,
        attempts=attempts,
        error=error,
        withheld=True,
    )
