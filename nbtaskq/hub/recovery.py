"""The unended tasks of an earlier epoch, as the store gives them back after a restart."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator

import msgspec

from nbtaskq.hub.actions import Found, StoredTask
from nbtaskq.hub.queries import PAGE, PayloadReader

#: In the order of `StoredTask`. A moment that is exactly now has passed: 0 would mean none.
_PAGE = (
    "SELECT t.seq, t.task_id, t.name, o.owner, o.notebook, o.environment, t.checksum, t.flavor,"
    " t.priority, max(0.0, coalesce(p.due, 0.0) - :now),"
    " CASE WHEN t.expires > 0 THEN t.expires - :now - 1e-9 ELSE 0.0 END,"
    " t.at_most_once, p.lease, p.attempts, t.needs, p.reasons"
    " FROM pending p CROSS JOIN task t ON t.seq = p.seq JOIN origin o ON o.id = t.origin"
    " WHERE p.seq > :last ORDER BY p.seq LIMIT :page"
)

_ids = msgspec.msgpack.Decoder(tuple[bytes, ...])
_sentences = msgspec.msgpack.Decoder(tuple[str, ...])


def unended(connection: sqlite3.Connection, reader: PayloadReader) -> Iterator[StoredTask]:
    """Return the unended tasks in the order in which they were stored."""
    now = time.time()
    last = 0
    while rows := connection.execute(_PAGE, {"now": now, "last": last, "page": PAGE}).fetchall():
        for *facts, once, lease, attempts, needs, reasons in rows:
            waits_for, met = _split(needs, reader) if needs else ((), ())
            died = _sentences.decode(reasons) if reasons else ()
            leased = lease is not None
            rest = (once == 1, leased, attempts, waits_for, died, met, lease or 0)
            yield StoredTask._make((*facts, *rest))
        last = rows[-1][0]


def _split(needs: bytes, reader: PayloadReader) -> tuple[tuple[bytes, ...], tuple[Found, ...]]:
    """Return the needed tasks that have not ended, and what is known of those that have."""
    ids = _ids.decode(needs)
    ended = {i: f for i, f in reader.found(ids).items() if f.status >= 10}
    return (
        tuple(task_id for task_id in ids if task_id not in ended),
        tuple(ended[task_id] for task_id in ids if task_id in ended),
    )
