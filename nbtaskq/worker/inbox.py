"""Deliveries that have arrived and not begun."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Collection, Iterable

from nbtaskq.abc import Delivery


class Inbox:
    """Filled and called back by the net thread, emptied by the thread of an event loop.

    A delivery is either taken or called back, never both.
    """

    def __init__(self) -> None:
        self._ready: deque[Delivery] = deque()
        self._lock = threading.Lock()
        self._asleep: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def __len__(self) -> int:
        return len(self._ready)

    def put(self, deliveries: Iterable[Delivery]) -> None:
        """Add deliveries, and wake the loop if it waits for some."""
        with self._lock:
            self._ready.extend(deliveries)
        asleep = self._asleep
        if asleep is not None and self._ready:
            loop, event = asleep
            loop.call_soon_threadsafe(event.set)

    def take(self) -> Delivery | None:
        """Remove and return the next delivery."""
        with self._lock:
            return self._ready.popleft() if self._ready else None

    async def wait(self) -> None:
        """Return once there may be something to take."""
        event = asyncio.Event()
        self._asleep = asyncio.get_running_loop(), event
        try:
            if not self._ready:
                await event.wait()
        finally:
            self._asleep = None

    def recall(self, tokens: Collection[int]) -> set[int]:
        """Remove these deliveries as far as they have not been taken; return their tokens."""
        with self._lock:
            found = {d.token for d in self._ready if d.token in tokens}
            if found:
                self._ready = deque(d for d in self._ready if d.token not in found)
        return found
