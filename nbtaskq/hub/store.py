"""The hub's store: one SQLite file, one connection, one writer thread.

    server thread ── write(ops), read(query) ──► inbox ──► writer: take all, one commit, answer
                  ◄── collect() ◄── notify() ──────────────────┘

What is queued while a commit is under way makes up the next one. An operation counts when its
number comes back through `collect`; it then survives a power cut.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nbtaskq.errors import StoreError
from nbtaskq.hub import recovery, schema, soundness
from nbtaskq.hub.actions import StoredTask, StoreOp
from nbtaskq.hub.blobs import Blobs
from nbtaskq.hub.group import Group, Origins
from nbtaskq.hub.history import Reader
from nbtaskq.process import Lock

#: Seconds for which a group gathers: the start and the end of a short task share a commit, and
#: the writer does not compete with the server thread while that passes the task on.
GATHER = 0.002
#: A group of so many operations does not wait for more.
ENOUGH = 200
#: Operations in one commit, unless one `write` has more.
GROUP = 5000
#: Pauses between tries of a commit that fails, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
#: Seconds for which `close` goes on trying to commit.
CLOSING = 5.0


class Completed(NamedTuple):
    """A finished read: the ticket that `read` gave, and its value, or the exception it raised."""

    ticket: int
    value: Any


class _Batch(NamedTuple):
    ops: Sequence[StoreOp]
    now: float


class _Read(NamedTuple):
    ticket: int
    query: Callable[[Reader], object]
    fresh: bool


class _Opened(NamedTuple):
    connection: sqlite3.Connection
    blobs: Blobs
    lock: Lock


class Store:
    """What the hub must not forget.

    Opened by `Store.open`; then `unended`, then `start`; from there on everything goes through
    `write`, `read` and `collect`, which one thread calls and none of which waits.

    Attributes
    ----------
    epoch : int
        Number of this opening; durably larger than all before.
    next_seq : int
        The first number that no task has.
    notices : list of str
        Damage that was found at opening and got over, a sentence each.
    failed : Exception or None
        Why the last commit failed. It is tried again until it works; nothing is given up.
    """

    def __init__(self, opened: _Opened, notices: list[str]) -> None:
        self._connection, self._blobs, self._lock = opened
        self._reader = Reader(self._connection, self._blobs)
        self._origins = Origins(self._connection)
        self._inbox: queue.SimpleQueue[_Batch | _Read | None] = queue.SimpleQueue()
        self._batches: deque[_Batch] = deque()
        self._reads: deque[_Read] = deque()
        self._completed: deque[Completed] = deque()
        self._written = self._durable = self._tickets = 0
        self._retry_at = self._pause = self._close_by = 0.0
        self._notify: Callable[[], None] = _nobody
        self._thread: threading.Thread | None = None
        self._closed = False
        self.notices = notices
        self.failed: Exception | None = None
        self.epoch = self._next_epoch()
        last = self._connection.execute("SELECT max(seq) FROM task").fetchone()[0]
        self.next_seq: int = (last or 0) + 1

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open the store of a workspace, or create it.

        Raises
        ------
        StoreError
            It cannot be used; one line says why and what to do. The file is as it was.
        """
        soundness.check_folder(folder)
        lock = soundness.lock(folder / schema.FILE)
        try:
            connection, notices = schema.connect(folder)
        except BaseException:
            lock.release()
            raise
        try:
            return cls(_Opened(connection, Blobs(folder / "blobs"), lock), notices)
        except (OSError, sqlite3.Error) as error:
            connection.close()
            lock.release()
            raise schema.translated(folder / schema.FILE, error) from error

    def unended(self) -> Iterator[StoredTask]:
        """Return the unended tasks, oldest first; only before `start`."""
        return recovery.unended(self._connection, self._reader)

    def start(self, notify: Callable[[], None]) -> None:
        """Start to write; `notify` is called from the writer when there is something to collect."""
        self._notify = notify
        self._thread = threading.Thread(target=self._run, name="nbtaskq-store", daemon=True)
        self._thread.start()

    def write(self, ops: Sequence[StoreOp]) -> int:
        """Queue operations, which become durable together; return the number of the last."""
        if ops:
            self._written += len(ops)
            self._inbox.put(_Batch(ops, time.time()))
        return self._written

    def read(self, query: Callable[[Reader], object], *, fresh: bool = True) -> int:
        """Queue a query, which sees all that was written before; return its ticket.

        One that need not be `fresh` is answered even while nothing can be written.
        """
        self._tickets += 1
        self._inbox.put(_Read(self._tickets, query, fresh))
        return self._tickets

    def collect(self) -> tuple[int, list[Completed]]:
        """Return the number of the last durable operation, and the reads that have finished."""
        durable = self._durable
        finished = []
        while self._completed:
            finished.append(self._completed.popleft())
        return durable, finished

    @property
    def backlog(self) -> int:
        """How many operations are queued and not durable."""
        return self._written - self._durable

    def close(self) -> None:
        """Write what is queued, and close.

        Raises
        ------
        StoreError
            Something could not be written within five seconds, and is lost.
        """
        if self._closed:
            return
        self._closed = True
        self._inbox.put(None)
        if self._thread is None:
            self._run()
        else:
            self._thread.join(12 * CLOSING)
            if self._thread.is_alive():
                raise StoreError("the store's disk does not answer; its writer was left behind")
        self._connection.close()
        self._lock.release()
        if self.backlog:
            raise StoreError(f"{self.backlog} changes could not be stored: {self.failed}")

    # -- the writer ------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._done():
            self._take()
            if self._batches and time.monotonic() >= self._retry_at:
                self._commit()
            self._answer()

    def _done(self) -> bool:
        """Whether it is told to close, and nothing is left or it has tried for long enough."""
        if not self._close_by:
            return False
        return not self._batches or time.monotonic() >= self._close_by

    def _take(self) -> None:
        """Take all that is queued; wait only when there is nothing to do."""
        wait = max(0.0, self._retry_at - time.monotonic()) if self._batches else None
        if self._close_by and wait is None:
            return
        try:
            self._sort(self._inbox.get(timeout=wait))
            if self._batches and not self._reads and self.backlog < ENOUGH:
                time.sleep(GATHER)
            while True:
                self._sort(self._inbox.get_nowait())
        except queue.Empty:
            return

    def _sort(self, item: _Batch | _Read | None) -> None:
        if isinstance(item, _Batch):
            self._batches.append(item)
        elif item is not None:
            self._reads.append(item)
        else:
            self._close_by = time.monotonic() + CLOSING

    def _commit(self) -> None:
        """Write the next group in one transaction, or leave it queued for another try."""
        batches, count = self._next_group()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            group = Group(self._connection, self._blobs, self._origins)
            for batch in batches:
                group.add(batch.ops, batch.now)
            group.apply()
            self._connection.execute("COMMIT")
        except Exception as error:
            self._take_back(error)
            return
        for _ in batches:
            self._batches.popleft()
        self._durable += count
        self.failed = None
        self._pause = self._retry_at = 0.0
        self._notify()

    def _next_group(self) -> tuple[list[_Batch], int]:
        batches: list[_Batch] = []
        count = 0
        for batch in self._batches:
            if batches and count + len(batch.ops) > GROUP:
                break
            batches.append(batch)
            count += len(batch.ops)
        return batches, count

    def _take_back(self, error: Exception) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._origins.forget()
        self._pause = min(LONGEST_PAUSE, 2 * self._pause or FIRST_PAUSE)
        self._retry_at = time.monotonic() + self._pause
        news = self.failed is None
        self.failed = error
        if news:
            self._notify()

    def _answer(self) -> None:
        """Answer the reads that may be: a fresh one has to see what is still to be written."""
        waiting = [read for read in self._reads if read.fresh and self._batches]
        for read in self._reads:
            if not (read.fresh and self._batches):
                self._completed.append(self._ask(read))
                self._notify()
        self._reads = deque(waiting)

    def _ask(self, read: _Read) -> Completed:
        try:
            return Completed(read.ticket, read.query(self._reader))
        except Exception as error:
            return Completed(read.ticket, error)

    def _next_epoch(self) -> int:
        self._connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'epoch'")
        row = self._connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
        return int(row[0])


def _nobody() -> None:
    """Stand for the one to be notified before there is one."""
