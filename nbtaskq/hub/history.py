"""What is known of stored tasks without their payloads: rows for `history`, `attach`, `status`."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection
from typing import Any

from nbtaskq.hub.queries import PAGE, PayloadReader
from nbtaskq.message import TaskStatus

#: Columns of a fact; a row becomes a dict.
COLUMNS = (
    "seq", "task_id", "task_name", "status", "submitted", "started", "seconds", "worker",
    "attempts", "error", "notebook", "batch", "index",
)  # fmt: skip

#: Status of a task as far as the store can tell; who runs is known to the hub's state alone.
_STATUS = (
    "coalesce(r.status, CASE WHEN p.due > :now OR t.needs IS NOT NULL"
    f" THEN {TaskStatus.WAITING:d} ELSE {TaskStatus.QUEUED:d} END)"
)
_COLUMNS = (
    f"SELECT t.seq, t.task_id, t.name, {_STATUS}, t.submitted, r.started, r.seconds,"
    " coalesce(r.worker, ''), coalesce(r.attempts, p.attempts, 0), coalesce(r.error, ''),"
    " o.notebook, t.batch, t.number"
)
_ORIGIN = " LEFT JOIN origin o ON o.id = t.origin"
#: Where a scan starts: at all tasks, at the few unended ones, at those that did not succeed.
_ALL = " FROM task t LEFT JOIN result r ON r.seq = t.seq LEFT JOIN pending p ON p.seq = t.seq"
_UNENDED = " FROM pending p CROSS JOIN task t ON t.seq = p.seq LEFT JOIN result r ON r.seq = p.seq"
_FAILED = (
    " FROM result r INDEXED BY result_not_succeeded CROSS JOIN task t ON t.seq = r.seq"
    " LEFT JOIN pending p ON p.seq = r.seq"
)
_FILTERS = {
    "name": "t.name = :name",
    "notebook": "t.origin IN (SELECT id FROM origin WHERE notebook = :notebook)",
    "batch": "t.batch = :batch",
    "task_id": "t.task_id = :task_id",
    "prefix": "t.seq IN (SELECT seq FROM task WHERE task_id >= :prefix AND task_id < :behind)",
}


class Reader(PayloadReader):
    """All reads of a store."""

    def facts(
        self,
        *,
        name: str | None = None,
        notebook: str | None = None,
        status: Collection[int] = (),
        batch: bytes | None = None,
        prefix: str | None = None,
        before_seq: int | None = None,
        limit: int = PAGE,
    ) -> list[dict[str, Any]]:
        """Return what is known of tasks, newest first, at most 500.

        Parameters
        ----------
        status
            Empty for all. The store cannot tell waiting, queued and running tasks apart, so one
            of these stands for all three.
        prefix
            How the task's id begins.
        before_seq
            Only older ones: the `seq` of the last row of the page before.

        Returns
        -------
        list of dict
            With the keys of `COLUMNS`; times are Unix times, `None` when there is none; `batch`
            is hexadecimal, empty for none.
        """
        given: dict[str, Any] = {"name": name, "notebook": notebook, "batch": batch}
        if prefix:
            start = prefix.encode()
            given |= {"prefix": start, "behind": start + b"\xff" * 64}
        if before_seq is not None:
            given["before"] = before_seq
        return self._facts({k: v for k, v in given.items() if v is not None}, status, limit)

    def matching(self, key: str, notebook: str | None = None) -> list[dict[str, Any]]:
        """Return the tasks that `key` can mean: an id, a name, or the beginning of an id.

        A whole id or name comes before a beginning, which counts from four characters on.
        Of the tasks of a name, newest first, those of `notebook` shadow all others.
        """
        exact = self._facts({"task_id": key.encode()}, (), 1)
        if exact:
            return exact
        named = self.facts(name=key, notebook=notebook) or self.facts(name=key)
        if named or len(key) < 4:
            return named
        return self.facts(prefix=key)

    def sizes(self) -> dict[str, Any]:
        """Return the bytes on disk and the number of tasks in each status."""
        one = self._connection.execute
        waiting = f"SELECT count(*) {_UNENDED} WHERE {_STATUS} = {TaskStatus.WAITING:d}"
        counts = {
            TaskStatus(status): count
            for status, count in one(
                "SELECT status, count(*) FROM result INDEXED BY result_not_succeeded"
                " WHERE status > 10 GROUP BY status"
            )
        }
        tasks, unended = (
            one(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("task", "pending")
        )
        counts[TaskStatus.WAITING] = one(waiting, {"now": time.time()}).fetchone()[0]
        counts[TaskStatus.QUEUED] = unended - counts[TaskStatus.WAITING]
        counts[TaskStatus.SUCCEEDED] = 0
        counts[TaskStatus.SUCCEEDED] = tasks - sum(counts.values())
        files, blob_bytes = self._blobs.size()
        return {
            "file": self._file_bytes(),
            "blobs": blob_bytes,
            "blob_files": files,
            "tasks": tasks,
            "counts": {str(status): counts[status] for status in sorted(counts)},
        }

    def _facts(
        self, given: dict[str, Any], status: Collection[int], limit: int
    ) -> list[dict[str, Any]]:
        source, seq, conditions = _source(frozenset(status))
        conditions += [_FILTERS[key] for key in given if key in _FILTERS]
        if "before" in given:
            conditions.append(f"{seq} < :before")
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        order = f" ORDER BY {seq} DESC LIMIT :limit"
        limits = {"now": time.time(), "limit": max(0, min(limit, PAGE))}
        rows = self._connection.execute(
            _COLUMNS + source + _ORIGIN + where + order, {**given, **limits}
        )
        return [_fact(row) for row in rows]

    def _file_bytes(self) -> int:
        pages, size = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "page_size")
        )
        return int(pages * size)


def _source(status: frozenset[int]) -> tuple[str, str, list[str]]:
    """Return the tables to scan for these statuses, the column of `seq`, and the condition."""
    ends = {int(s) for s in status if s >= TaskStatus.SUCCEEDED}
    listed = f"r.status IN ({', '.join(map(str, sorted(ends)))})"
    if not status:
        return _ALL, "t.seq", []
    if not ends:
        return _UNENDED, "p.seq", []
    if ends < status:
        return _ALL, "t.seq", [f"({listed} OR r.status IS NULL)"]
    if TaskStatus.SUCCEEDED in ends:
        return _ALL, "t.seq", [listed]
    return _FAILED, "r.seq", ["r.status > 10", listed]


def _fact(row: sqlite3.Row | tuple[Any, ...]) -> dict[str, Any]:
    fact = dict(zip(COLUMNS, row, strict=True))
    fact["task_id"] = row[1].decode(errors="replace")
    fact["started"] = row[5] or None
    fact["batch"] = row[11].hex() if row[11] else ""
    return fact
