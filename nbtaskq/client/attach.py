"""Handles and batches rebuilt from what the hub remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbtaskq.client.batch import Batch
from nbtaskq.client.handle import TaskHandle
from nbtaskq.errors import SerializationError
from nbtaskq.message import Parcel

if TYPE_CHECKING:
    from nbtaskq.abc import Broker


def attached_handle(broker: Broker, row: dict[str, Any]) -> TaskHandle[Any]:
    """Return the handle of one stored task and let it follow the task."""
    args, kwargs = _call_of(broker, row)
    handle: TaskHandle[Any] = TaskHandle(broker, row["task_id"], row["name"], None, args, kwargs)
    handle.on_accepted()
    broker.watch(handle.task_id, handle)
    return handle


def attached_batch(
    broker: Broker, name: str, batch_id: str, rows: Sequence[dict[str, Any]]
) -> Batch[Any]:
    """Return the batch of stored tasks, in its input order."""
    return Batch(name, [attached_handle(broker, row) for row in rows], batch_id)


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
