"""The road between clients and workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from nbtaskq.hub.protocol import Flavor, Outcome, VerdictKind
from nbtaskq.message import Buffer, Message, Parcel

if TYPE_CHECKING:
    from nbtaskq.abc.middleware import Middleware
    from nbtaskq.abc.serializer import Frozen, Serializer


class Envelope(NamedTuple):
    """A message ready to be sent: payload serialized, options read from its labels."""

    message: Message
    parcel: Parcel
    frozen: Frozen | None = None
    flavor: Flavor = Flavor.SYNC
    priority: int = 0
    delay: float = 0.0
    expires: float = 0.0
    at_most_once: bool = False
    batch: bytes = b""
    #: place in the batch
    place: int = 0
    #: the id was chosen by the user, so that it may be taken
    chosen_id: bool = False


class Code(NamedTuple):
    """A frozen function as a worker receives it."""

    digest: bytes
    parcel: Parcel


class Delivery(NamedTuple):
    """One attempt at one task, handed to a receiver. Its code is at hand.

    `labels` are this delivery's own and may be changed; `results` are the outcomes, with their
    buffers, of the tasks that its arguments need.
    """

    task_id: str
    task_name: str
    labels: dict[str, Any]
    parcel: Parcel
    token: int
    attempt: int = 1
    flavor: Flavor = Flavor.SYNC
    code: Code | None = None
    results: Mapping[str, tuple[Outcome, Sequence[Buffer]]] = {}


class Settlement(NamedTuple):
    """The receiver's verdict on a delivery.

    `outcome` is what is recorded for `RESULT` and `REJECT`; `RETRY` runs the task again after
    `delay` seconds and counts the attempt, `REQUEUE` runs it again and does not.
    """

    kind: VerdictKind
    outcome: Outcome
    buffers: Sequence[Buffer] = ()
    delay: float = 0.0
    labels: dict[str, Any] | None = None


class Watcher(Protocol):
    """What a broker tells the sender of a message; called from any thread, must not block."""

    #: somebody blocks on this one message: its value is wanted as soon as it is known
    awaited: bool

    def on_accepted(self) -> None:
        """Tell that the message is stored durably: it will be run."""

    def on_refused(self, error: BaseException) -> None:
        """Tell that the message was not stored and will never run."""

    def on_progress(self, status: int, worker: str) -> None:
        """Tell that the task changed without ending."""

    def on_output(self, number: int, content: bytes) -> None:
        """Give a numbered piece of output: a Jupyter output message as JSON."""

    def on_outcome(self, outcome: Outcome, buffers: Sequence[Buffer]) -> None:
        """Tell how the task ended."""


class Broker(ABC):
    """Carries messages to receivers and their ends back.

    Order
        Messages of one client, priority and delay are delivered in the order of `submit`.
    Loss
        What was accepted is delivered until a receiver has settled it.
    Duplication
        A delivery whose receiver vanished before settling is delivered again, with a new token;
        a settlement with an old token is refused. One task id is stored once.

    The client's side is `submit`, `watch` and `control`, the worker's `listen` and `settle`; the
    batch forms `kick_many`, `listen_many` and `settle_many` fall back on the single ones.
    """

    serializer: Serializer
    middlewares: list[Middleware]
    #: the overridden hooks of the middlewares, in the order in which they run
    pre_send_hooks: Sequence[Callable[[Message], Any]] = ()
    post_send_hooks: Sequence[Callable[[Message], Any]] = ()

    def prepare(self, task_name: str, function: Callable[..., Any]) -> Frozen | None:
        """Return a function as it travels; `None` where receivers look it up by its name.

        Called at each send; raises `SerializationError` for what cannot travel.
        """
        return None

    @abstractmethod
    async def startup(self) -> None:
        """Get ready to send; raises `BrokerUnreachable`. Calling it twice is harmless."""

    @abstractmethod
    async def shutdown(self) -> None:
        """Send what is on its way and let go of all resources."""

    @abstractmethod
    async def kick(self, envelope: Envelope) -> None:
        """Send one message; return once it is accepted.

        Raises
        ------
        SendError
            The message is not stored, and why.
        """

    async def kick_many(self, envelopes: Sequence[Envelope]) -> None:
        """Send messages in order; return once all are accepted."""
        for envelope in envelopes:
            await self.kick(envelope)

    @abstractmethod
    def listen(self) -> AsyncIterator[Delivery]:
        """Yield deliveries until the broker shuts down."""

    async def listen_many(self) -> AsyncIterator[Sequence[Delivery]]:
        """Yield batches of deliveries."""
        async for delivery in self.listen():
            yield (delivery,)

    @abstractmethod
    async def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """Record a verdict. A refused one (old token) is dropped silently."""

    async def settle_many(self, settled: Sequence[tuple[Delivery, Settlement]]) -> None:
        """Record verdicts, in order."""
        for delivery, settlement in settled:
            await self.settle(delivery, settlement)

    @abstractmethod
    def submit(self, envelopes: Sequence[Envelope], watchers: Sequence[Watcher]) -> None:
        """Hand messages over without waiting; each watcher hears what becomes of its message.

        Raises
        ------
        QueueFull
            The outbox stayed full for the send timeout; its text says how many were taken.
        """

    def trouble(self) -> BaseException | None:
        """Return why waiting is in vain at the moment, or `None`."""
        return None

    @abstractmethod
    def watch(self, task_id: str, watcher: Watcher, *, value: bool = False) -> None:
        """Tell `watcher` what becomes of a task, now and later.

        `value` says that somebody blocks on it: the value comes as soon as it is known, large
        or not. Safe to call again; an unknown id is refused with `UnknownTask`.
        """

    @abstractmethod
    async def control(self, verb: str, body: Any = None) -> Any:
        """Ask or order something of the broker's server: plain data in, plain data out."""
