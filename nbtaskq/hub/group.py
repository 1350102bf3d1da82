"""The rows of one commit: store operations turned into few, large statements.

Each step of a statement gives the GIL away and has to win it back from the thread that serves
the sockets, up to 5 ms later. So rows go 256 to a statement, and what happened to a task within
one group is merged: one that came and ended never enters `pending`.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec

from nbtaskq.hub.actions import (
    AppendOutput,
    ChangeTask,
    FinishTask,
    InsertTask,
    LeaseTask,
    PutObject,
    StoreOp,
)
from nbtaskq.hub.blobs import INLINE, Blobs

#: Rows in one statement; 13 columns each, within SQLite's bound of 999 variables before 3.32.
ROWS = 256 if sqlite3.sqlite_version_info >= (3, 32) else 64

Row = tuple[Any, ...]

_INT_MAX = (1 << 63) - 1
_encode = msgspec.msgpack.Encoder().encode

_TASK = "INSERT OR IGNORE INTO task VALUES {}"
_PAYLOAD = "INSERT INTO payload VALUES {}"
_PENDING = "INSERT INTO pending VALUES {}"
_RESULT = "INSERT INTO result VALUES {}"
_OUTPUT = "INSERT OR IGNORE INTO output VALUES {}"
_OBJECT = "INSERT OR IGNORE INTO object VALUES {}"

_LEASE = "UPDATE pending SET lease = ? WHERE seq = ?"
_CHANGE = (
    "UPDATE pending SET due = ?, attempts = ?, reasons = coalesce(?, reasons), lease = NULL"
    " WHERE seq = ?"
)
_LABELS = (
    "UPDATE payload SET labels = ?, labels_crc = ?"
    " WHERE seq = ? AND EXISTS (SELECT 1 FROM pending WHERE pending.seq = payload.seq)"
)
_ENDED = "DELETE FROM pending WHERE seq IN ({})"
#: A task's row is new when its payload is not there yet.
_IS_NEW = (
    "SELECT task_id, NOT EXISTS (SELECT 1 FROM payload WHERE payload.seq = task.seq)"
    " FROM task WHERE seq = ?"
)
_LATE_RESULT = (
    "INSERT OR IGNORE INTO result SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?"
    " WHERE EXISTS (SELECT 1 FROM task WHERE seq = ?)"
)


def checked(data: bytes, parts: bytes | None) -> int:
    """Return the checksum over the two columns of a payload."""
    crc = zlib.crc32(data)
    return crc if parts is None else zlib.crc32(parts, crc)


class Origins:
    """The numbers of senders: owner, notebook and environment are the same for many tasks."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._known: dict[tuple[bytes, str, str], int] = {}

    def number(self, origin: tuple[bytes, str, str]) -> int:
        """Return the row of a sender, which may be added."""
        number = self._known.get(origin)
        if number is None:
            number = self._known[origin] = self._find(origin)
        return number

    def _find(self, origin: tuple[bytes, str, str]) -> int:
        if len(self._known) >= 10_000:
            self._known.clear()
        where = "owner = ? AND notebook = ? AND environment = ?"
        row = self._connection.execute(f"SELECT id FROM origin WHERE {where}", origin).fetchone()
        if row is not None:
            return int(row[0])
        cursor = self._connection.execute("INSERT INTO origin VALUES (NULL, ?, ?, ?)", origin)
        return int(cursor.lastrowid or 0)

    def forget(self) -> None:
        """Take in that a transaction was rolled back, and with it perhaps new senders."""
        self._known.clear()


class Group:
    """What one transaction writes: `add` everything, then `apply` once.

    First wins: a task whose id or number is taken is left out whole, and so is a second end.
    """

    def __init__(self, connection: sqlite3.Connection, blobs: Blobs, origins: Origins) -> None:
        self._connection = connection
        self._blobs = blobs
        self._origins = origins
        self._tasks: dict[int, Row] = {}
        self._payloads: dict[int, Row] = {}
        self._pending: dict[int, Row] = {}
        self._results: dict[int, Row] = {}
        #: ends of tasks that an earlier group stored
        self._ended: list[int] = []
        self._moves: list[tuple[str, Row]] = []
        self._outputs: list[Any] = []
        self._objects: list[Any] = []
        self._adders: dict[type, Callable[[Any, float], None]] = {
            InsertTask: self._insert,
            FinishTask: self._finish,
            LeaseTask: self._lease,
            ChangeTask: self._change,
            AppendOutput: self._output,
            PutObject: self._object,
        }

    def add(self, ops: Sequence[StoreOp], now: float) -> None:
        """Take in operations, and write what is large to files; `now` is the time of day."""
        adders = self._adders
        for op in ops:
            adders[type(op)](op, now)

    def apply(self) -> None:
        """Write all rows, inside the transaction that is open."""
        self._blobs.flush()
        if self._many(_TASK, 13, _flat(self._tasks)) < len(self._tasks):
            self._leave_out_known()
        self._many(_PAYLOAD, 6, _flat(self._payloads))
        self._many(_PENDING, 5, _flat(self._pending))
        for sql, moves in groupby(self._moves, key=itemgetter(0)):
            self._connection.executemany(sql, [_fitting(row) for _, row in moves])
        self._end()
        self._many(_OUTPUT, 3, self._outputs)
        self._many(_OBJECT, 5, self._objects)

    # -- operations ------------------------------------------------------------------------

    def _insert(self, op: InsertTask, now: float) -> None:
        seq, owner, notebook, environment, task, buffers, checksum = op
        if seq in self._tasks:
            return
        data, parts = self._blobs.pack(task, buffers)
        self._tasks[seq] = (
            seq,
            task.task_id,
            task.name,
            self._origins.number((owner, notebook, environment)),
            now,
            checksum,
            task.flavor,
            task.priority,
            now + task.expires if task.expires > 0 else 0.0,
            task.at_most_once,
            _encode(task.needs) if task.needs else None,
            task.batch or None,
            task.index,
        )
        self._payloads[seq] = (seq, checked(data, parts), data, parts, None, None)
        self._pending[seq] = (seq, now + task.delay if task.delay > 0 else 0.0, 0, None, None)

    def _finish(self, op: FinishTask, now: float) -> None:
        seq, end, buffers = op
        if seq in self._results:
            return
        data, parts = self._blobs.pack(end, buffers)
        size = len(end.body)
        if buffers:
            size += sum(memoryview(b).nbytes for b in buffers)
        self._results[seq] = (
            seq,
            end.status,
            end.started,
            end.seconds,
            end.worker,
            end.attempts,
            end.error,
            size,
            checked(data, parts),
            data,
            parts,
        )
        if self._pending.pop(seq, None) is None:
            self._ended.append(seq)

    def _lease(self, op: LeaseTask, now: float) -> None:
        self._moves.append((_LEASE, (op.token, op.seq)))

    def _change(self, op: ChangeTask, now: float) -> None:
        due = now + op.due if op.due > 0 else 0.0
        reasons = _encode(op.reasons) if op.reasons else None
        self._moves.append((_CHANGE, (due, op.attempts, reasons, op.seq)))
        if op.labels is not None:
            self._moves.append((_LABELS, (op.labels, zlib.crc32(op.labels), op.seq)))

    def _output(self, op: AppendOutput, now: float) -> None:
        self._outputs += (op.seq, op.note.number, op.note.content)

    def _object(self, op: PutObject, now: float) -> None:
        size = memoryview(op.body).nbytes
        body: object = op.body
        if size >= INLINE:
            self._blobs.put(op.digest.hex(), op.body)
            body = None
        refs = _encode(op.refs) if op.refs else None
        self._objects += (op.digest, refs, size, zlib.crc32(op.body), body)

    # -- writing ---------------------------------------------------------------------------

    def _many(self, template: str, width: int, values: list[Any]) -> int:
        """Run a statement over rows of `width` values; return how many rows it changed."""
        done = changed = 0
        size = ROWS
        while done < len(values):
            while size * width > len(values) - done:
                size >>= 1
            chunk = values[done : done + size * width]
            sql = _statement(template, width, size)
            try:
                changed += self._connection.execute(sql, chunk).rowcount
            except OverflowError:
                changed += self._connection.execute(sql, _fitting(chunk)).rowcount
            done += len(chunk)
        return changed

    def _leave_out_known(self) -> None:
        """Forget the tasks that were not inserted: their id or number was stored before."""
        strangers = set()
        for seq, row in list(self._tasks.items()):
            found = self._connection.execute(_IS_NEW, (seq,)).fetchone()
            if found == (row[1], 1):
                continue
            del self._tasks[seq], self._payloads[seq]
            unended = self._pending.pop(seq, None)
            if found is None or found[0] != row[1]:
                strangers.add(seq)
                self._results.pop(seq, None)
            elif unended is None:
                self._ended.append(seq)
        self._moves = [move for move in self._moves if move[1][-1] not in strangers]

    def _end(self) -> None:
        """Store how tasks ended, but for those that had ended, or that are not known."""
        if self._many(_ENDED, 1, self._ended) == len(self._ended):
            self._many(_RESULT, 11, _flat(self._results))
            return
        late = [self._results.pop(seq) for seq in self._ended]
        self._many(_RESULT, 11, _flat(self._results))
        self._connection.executemany(_LATE_RESULT, [(*_fitting(row), row[0]) for row in late])


@cache
def _statement(template: str, width: int, size: int) -> str:
    row = ", ".join("?" * width)
    return template.format(", ".join([f"({row})" if width > 1 else row] * size))


def _flat(rows: dict[int, Row]) -> list[Any]:
    return [value for row in rows.values() for value in row]


def _fitting(row: Iterable[Any]) -> list[Any]:
    """Return a row whose integers fit into SQLite's 64 bits; only nonsense does not."""
    return [max(-_INT_MAX, min(v, _INT_MAX)) if type(v) is int else v for v in row]
