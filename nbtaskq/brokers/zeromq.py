"""The broker of notebooks: messages go to a hub over ZeroMQ, and outlive this process.

    kiq ──► outbox ──► connection thread ──► hub ──► workers
                             │    ▲           │
    handles ◄────────────────┘    └───────────┘  accepted · progress · output · outcome

Deliveries go to worker kernels, which have a connection of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self

from nbtaskq.abc import Delivery, Envelope, Frozen, Serializer, Settlement, Watcher
from nbtaskq.brokers.base import BaseBroker, submission_of
from nbtaskq.brokers.connection import Connection
from nbtaskq.brokers.outbox import Packet
from nbtaskq.client.freezer import Freezer
from nbtaskq.errors import PayloadTooLarge
from nbtaskq.hub.protocol import Environment
from nbtaskq.message import Event
from nbtaskq.workspace import Workspace

#: bytes of one message, buffers included
MAX_PAYLOAD = 2 << 30


class ZeroMQBroker(BaseBroker):
    """Sends to the hub of a workspace, and starts that hub when there is none.

    Parameters
    ----------
    workspace : Workspace or None
        Whose hub; by default the one that belongs to the current folder.
    serializer : Serializer or None
        By default functions travel through dill and data through pickle.
    workers : int or None
        Worker kernels to start with, if this broker has to start the hub.
    send_timeout : float
        Seconds that `kiq` waits for room in the outbox before it raises `QueueFull`.
    notebook : str
        Name under which this client's tasks are found again.
    """

    def __init__(
        self,
        workspace: Workspace | None = None,
        serializer: Serializer | None = None,
        *,
        workers: int | None = None,
        send_timeout: float = 5.0,
        notebook: str = "",
    ) -> None:
        super().__init__(serializer)
        self.workspace = workspace or Workspace.find()
        self._freezer = Freezer(self.serializer)
        self._send_timeout = send_timeout
        self._started = False
        self.connection = Connection(
            self.workspace, Environment.here(), notebook=notebook, workers=workers
        )

    # -- lifecycle -------------------------------------------------------------------------

    async def startup(self) -> None:
        """Connect, and start the hub if there is none; raises `BrokerUnreachable`."""
        if self._started:
            return
        self._started = True
        await asyncio.to_thread(self.connection.wait_welcome, 10.0)
        await self.happen(Event.CLIENT_STARTUP)
        await self.start_middlewares()

    async def shutdown(self) -> None:
        """Send what is in the outbox and disconnect; the hub goes on."""
        if self._started:
            self._started = False
            await self.stop_middlewares()
            await self.happen(Event.CLIENT_SHUTDOWN)
        await asyncio.to_thread(self.connection.close)

    # -- sending ---------------------------------------------------------------------------

    def with_serializer(self, serializer: Serializer) -> Self:
        """Use another serializer, for functions too."""
        super().with_serializer(serializer)
        self._freezer = Freezer(serializer)
        return self

    def prepare(self, task_name: str, function: Callable[..., Any]) -> Frozen | None:
        """Return the function with what it captures, as it is now."""
        return self._freezer.freeze(function)

    def submit(self, envelopes: Sequence[Envelope], watchers: Sequence[Watcher]) -> None:
        """Put messages into the outbox; waits for room up to the send timeout."""
        packets = []
        for envelope, watcher in zip(envelopes, watchers, strict=True):
            size = envelope.parcel.nbytes
            if size > MAX_PAYLOAD:
                raise PayloadTooLarge(
                    f"the arguments of {envelope.message.task_name} are {size:,} bytes; the limit "
                    f"is {MAX_PAYLOAD:,}. Write them to a file and send its path"
                )
            packets.append(
                Packet(
                    submission_of(envelope),
                    envelope.parcel.buffers,
                    envelope.frozen,
                    watcher,
                    size,
                    envelope.chosen_id,
                )
            )
        self.connection.put(packets, self._send_timeout)

    def watch(self, task_id: str, watcher: Watcher, *, value: bool = False) -> None:
        """Follow a task of anybody."""
        self.connection.watch(task_id, watcher, value)

    def trouble(self) -> BaseException | None:
        """Return why no hub answers at the moment, or `None`."""
        return self.connection.trouble or self.connection.start_error

    async def control(self, verb: str, body: Any = None) -> Any:
        """Ask or order something of the hub."""
        future = self.connection.control(verb, body)
        return await asyncio.wrap_future(future)

    # -- receiving -------------------------------------------------------------------------

    def listen(self) -> AsyncIterator[Delivery]:
        """Deliveries go to worker kernels, which the hub's supervisor starts."""
        raise NotImplementedError(
            "a ZeroMQBroker's deliveries are received by worker kernels: `nbtaskq up`"
        )

    async def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """See `listen`."""
        raise NotImplementedError("deliveries of a ZeroMQBroker are settled by worker kernels")
