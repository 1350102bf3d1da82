"""Rows of plain data from the store, for the answers to controls; one page a query."""

from __future__ import annotations

from typing import Any

from nbtaskq.errors import TaskCorrupt
from nbtaskq.hub.history import Reader
from nbtaskq.hub.queries import PAGE

#: bytes after which an answer has no more payloads or output
MOST_BYTES = 32 << 20

Row = dict[str, Any]


def history(wanted: Row, before: int | None, limit: int, reader: Reader) -> list[Row]:
    """Return a page of what is known of tasks, newest first."""
    return _named(reader.facts(**wanted, before_seq=before, limit=min(limit, PAGE)))


def find(key: str, notebook: str | None, reader: Reader) -> list[Row]:
    """Return the tasks that a key can mean."""
    return _named(reader.matching(key, notebook))


def pieces(task_id: bytes, after: int, reader: Reader) -> list[tuple[int, bytes]]:
    """Return the pieces of a task's output behind a number."""
    found: list[tuple[int, bytes]] = []
    size = 0
    while size < MOST_BYTES:
        page = reader.outputs(task_id, after)
        found += [(piece.number, piece.content) for piece in page]
        if len(page) < PAGE:
            break
        after = page[-1].number
        size += sum(len(piece.content) for piece in page)
    return found


class BatchRows:
    """The tasks of a batch, with the bytes of their arguments where that is asked.

    Arguments with large buffers, and those beyond `MOST_BYTES`, are left out.
    """

    def __init__(self, batch: bytes, payloads: bool) -> None:
        self._batch = batch
        self._payloads = payloads
        self._rows: list[Row] = []
        self._size = 0

    def read(self, reader: Reader) -> bool:
        """Read the next page; return whether there may be more."""
        before = self._rows[-1]["seq"] if self._rows else None
        page = history({"batch": self._batch}, before, PAGE, reader)
        if self._payloads and self._size < MOST_BYTES:
            self._add_payloads(page, reader)
        self._rows += page
        return len(page) == PAGE

    def in_order(self) -> list[Row]:
        """Return all that was read, in input order."""
        return sorted(self._rows, key=lambda row: (row["index"], row["seq"]))

    def _add_payloads(self, page: list[Row], reader: Reader) -> None:
        found = reader.payloads([row["seq"] for row in page])
        for row in page:
            payload = found.get(row["seq"])
            if payload is None or isinstance(payload, TaskCorrupt) or payload[1]:
                continue
            row["body"] = payload[0].body
            self._size += len(row["body"])


def _named(page: list[Row]) -> list[Row]:
    """Give each row the name under the key that peers use, too."""
    for row in page:
        row["name"] = row["task_name"]
    return page
