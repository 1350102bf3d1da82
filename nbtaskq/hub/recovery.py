"""The unended tasks of an earlier epoch, as the store gives them back after a restart."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from nbtaskq.hub.actions import Found, StoredTask
from nbtaskq.hub.queries import PAGE, PayloadReader

_PAGE = (
    "SELECT t.seq, t.task_id, t.name, o.owner, o.notebook, o.environment, t.checksum, t.flavor,"
    " t.priority, p.due, t.expires, t.at_most_once, p.lease, p.attempts, t.needs, p.reasons"
    " FROM pending p CROSS JOIN task t ON t.seq = p.seq JOIN origin o ON o.id = t.origin"
    " WHERE p.seq > ? ORDER BY p.seq LIMIT ?"
)

_ids = msgspec.msgpack.Decoder(tuple[bytes, ...])
_sentences = msgspec.msgpack.Decoder(tuple[str, ...])


def unended(connection: sqlite3.Connection, reader: PayloadReader) -> Iterator[StoredTask]:
    """Return the unended tasks in the order in which they were stored."""
    now = time.time()
    last = 0
    while rows := connection.execute(_PAGE, (last, PAGE)).fetchall():
        for row in rows:
            yield _stored(row, now, reader)
        last = rows[-1][0]


def _stored(row: tuple[Any, ...], now: float, reader: PayloadReader) -> StoredTask:
    seq, task_id, name, owner, notebook, environment, checksum, flavor, priority = row[:9]
    due, expires, at_most_once, lease, attempts, needs, reasons = row[9:]
    waits_for, met = _split(needs, reader)
    return StoredTask(
        seq=seq,
        task_id=task_id,
        name=name,
        owner=owner,
        notebook=notebook,
        environment=environment,
        checksum=checksum,
        flavor=flavor,
        priority=priority,
        due=max(0.0, due - now) if due else 0.0,
        # a moment that is exactly now has passed; 0 would mean that there is none
        expires=(expires - now) or -1e-9 if expires else 0.0,
        at_most_once=bool(at_most_once),
        leased=lease is not None,
        attempts=attempts,
        needs=waits_for,
        reasons=_sentences.decode(reasons) if reasons else (),
        met=met,
    )


def _split(
    needs: bytes | None, reader: PayloadReader
) -> tuple[tuple[bytes, ...], tuple[Found, ...]]:
    """Return the needed tasks that have not ended, and what is known of those that have."""
    if needs is None:
        return (), ()
    ids = _ids.decode(needs)
    ended = {i: f for i, f in reader.found(ids).items() if f.status >= 10}
    return (
        tuple(task_id for task_id in ids if task_id not in ended),
        tuple(ended[task_id] for task_id in ids if task_id in ended),
    )
