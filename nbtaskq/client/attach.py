"""Handles and batches rebuilt from what the hub remembers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbtaskq.client.batch import Batch
from nbtaskq.client.handle import TaskHandle
from nbtaskq.errors import SerializationError
from nbtaskq.message import Parcel, TaskStatus

if TYPE_CHECKING:
    from nbtaskq.abc import Broker

#: seconds in which the ends of tasks that have ended arrive, even of a large batch
SETTLE = 5.0


def attached_handle(broker: Broker, row: dict[str, Any]) -> TaskHandle[Any]:
    """Return the handle of one stored task, which knows what the hub does, and follows it."""
    handle = _following(broker, row)
    _settle(handle, row, time.monotonic() + SETTLE)
    return handle


def _following(broker: Broker, row: dict[str, Any]) -> TaskHandle[Any]:
    args, kwargs = _call_of(broker, row)
    handle: TaskHandle[Any] = TaskHandle(broker, row["task_id"], row["name"], None, args, kwargs)
    handle.on_accepted()
    if not TaskStatus(row["status"]).ended:
        handle.on_progress(row["status"], row["worker"] or "")
    broker.watch(handle.task_id, handle)
    return handle


def _settle(handle: TaskHandle[Any], row: dict[str, Any], end: float) -> None:
    """Wait until a task that has ended is known here to have: its end is on the way."""
    if TaskStatus(row["status"]).ended:
        handle._wait_for("done", max(0.0, end - time.monotonic()), alone=False)


def attached_batch(
    broker: Broker, name: str, batch_id: str, rows: Sequence[dict[str, Any]]
) -> Batch[Any]:
    """Return the batch of stored tasks, in its input order."""
    handles = [_following(broker, row) for row in rows]
    end = time.monotonic() + SETTLE
    for handle, row in zip(handles, rows, strict=True):
        _settle(handle, row, end)
    return Batch(name, handles, batch_id)


def _call_of(broker: Broker, row: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the call's arguments as far as they can be read here."""
    body = row.get("body")
    if not body:
        return (), {}
    try:
        args, kwargs = broker.serializer.loads(Parcel(body))
    except SerializationError:  # large or dependent arguments are not shown
        return (), {}
    return args, kwargs
