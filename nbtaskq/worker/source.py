"""What the hub assigned, as a receiver's source."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

from nbtaskq.abc import Delivery, Settlement
from nbtaskq.worker.executor import KernelExecutor
from nbtaskq.worker.inbox import Inbox
from nbtaskq.worker.net import Net

#: seconds of work between two turns of the event loop
SLICE = 0.005


class HubSource:
    """The side of the hub that a receiver needs.

    Each delivery is taken just before it is run, so that all others can be called back.

    Parameters
    ----------
    net : Net
        Carries verdicts.
    inbox : Inbox
        What `net` has received.
    executor : KernelExecutor
        Told of each delivery before it is unpacked and when its verdict is handed over.
    """

    def __init__(self, net: Net, inbox: Inbox, executor: KernelExecutor) -> None:
        self._net = net
        self._inbox = inbox
        self._executor = executor

    async def listen_many(self) -> AsyncIterator[Sequence[Delivery]]:
        """Yield deliveries one by one, with a turn of the event loop after each slice."""
        while True:
            await self._inbox.wait()
            end = time.monotonic() + SLICE
            while (delivery := self._inbox.take()) is not None:
                self._executor.prepare(delivery)
                yield (delivery,)
                if time.monotonic() > end:
                    await asyncio.sleep(0)
                    end = time.monotonic() + SLICE

    def settle_now(self, settled: Sequence[tuple[Delivery, Settlement]]) -> None:
        """Hand verdicts over without waiting."""
        for delivery, _ in settled:
            self._executor.release(delivery)
        self._net.settle(settled)

    async def settle_many(self, settled: Sequence[tuple[Delivery, Settlement]]) -> None:
        """Hand verdicts over; return once the hub has stored them."""
        for delivery, _ in settled:
            self._executor.release(delivery)
        loop = asyncio.get_running_loop()
        recorded = asyncio.Event()
        self._net.settle(settled, lambda: loop.call_soon_threadsafe(recorded.set))
        await recorded.wait()

    def find_function(self, task_name: str) -> Callable[..., object] | None:
        """Return None: a delivery of the hub always brings its code."""
        return None
