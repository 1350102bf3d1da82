"""What was sent and is not accepted yet, within bounds."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from nbtaskq.abc import Frozen, Watcher
from nbtaskq.errors import QueueFull
from nbtaskq.hub.protocol import Submission
from nbtaskq.message import Buffer

#: what the outbox holds at most, sent and not yet accepted included
MAX_TASKS = 50_000
MAX_BYTES = 64 << 20
#: messages that are taken at once
PIECE = 500


class Packet(NamedTuple):
    """A message in the outbox."""

    submission: Submission
    buffers: Sequence[Buffer]
    frozen: Frozen | None
    watcher: Watcher
    size: int
    #: the id was chosen by the user: other contents may be stored under it
    chosen_id: bool


class Outbox:
    """Messages that are not accepted yet, bounded in number and bytes.

    Any thread puts messages in; one takes them from `waiting`, and gives the room back.

    Parameters
    ----------
    notify : callable
        Called when there is something to take.
    """

    def __init__(self, notify: Callable[[], object]) -> None:
        self._notify = notify
        self.waiting: deque[Packet] = deque()
        self._room = threading.Condition()
        self._tasks = 0
        self._bytes = 0

    def put(self, packets: Sequence[Packet], timeout: float) -> None:
        """Take packets as room comes; raise `QueueFull` when for so long there is none."""
        for start in range(0, len(packets), PIECE):
            piece = packets[start : start + PIECE]
            size = sum(packet.size for packet in piece)
            with self._room:
                if not self._room.wait_for(partial(self._fits, len(piece), size), timeout):
                    raise QueueFull(
                        f"{self._tasks:,} messages ({self._bytes:,} bytes) wait for the hub to "
                        f"accept them and none was accepted for {timeout:g} s; "
                        f"{start} of {len(packets)} messages of this call were taken. "
                        "See `nbtaskq status`"
                    )
                self._tasks += len(piece)
                self._bytes += size
                self.waiting.extend(piece)
            self._notify()

    def _fits(self, tasks: int, size: int) -> bool:
        if not self._tasks:
            return True  # one larger than the outbox is admitted alone
        return self._tasks + tasks <= MAX_TASKS and self._bytes + size <= MAX_BYTES

    def release(self, packets: Sequence[Packet]) -> None:
        """Give the room of accepted packets back."""
        with self._room:
            self._tasks -= len(packets)
            self._bytes -= sum(packet.size for packet in packets)
            self._room.notify_all()

    def drain(self, timeout: float) -> int:
        """Wait until everything is accepted; return how many are not."""
        with self._room:
            self._room.wait_for(lambda: not self._tasks, timeout)
            return self._tasks
