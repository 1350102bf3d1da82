"""The peer's end of the road to the hub: one DEALER socket, used by one thread.

    peer                                hub
     │── (connection completed) ──────── │   a monitor tells
     │── Hello ────────────────────────► │   before anything else
     │ ◄──────────────────────── Welcome │   only now may others be sent
     │── Ping … ◄──────────────── Pong … │   silence for 3 s counts as disconnected

Nothing is kept for a hub that is away: `send` says so, and the owner sends again when
the next `Welcome` comes. The owner polls `sockets` or calls `wait`, then `receive` and `tick`.
"""

from __future__ import annotations

import enum
import math
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
import zmq

from nbtaskq.errors import ProtocolMismatch
from nbtaskq.hub.protocol import (
    VERSION,
    Hello,
    Outbound,
    Ping,
    Refused,
    Welcome,
    Wire,
    decode_outbound,
    encode,
)
from nbtaskq.message import Buffer

#: Seconds of silence after which the hub is asked whether it is there.
BEAT = 0.5
#: Seconds of silence after which the connection is made anew.
SILENCE = 3.0
#: Smaller buffers are copied, larger ones are handed over.
COPY_BELOW = 65_536
#: Messages that one call of `receive` gives at most.
DRAIN = 300

_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
_PING = encode(Ping())


class _State(enum.Enum):
    AWAY = 0  # no connection
    GREETING = 1  # hello is due or sent
    WELCOMED = 2
    REFUSED = 3  # until that hub is replaced


class Link:
    """A connection to the hub that comes back by itself and says hello first each time.

    Parameters
    ----------
    address : str
        Where the hub is bound.
    hello : callable
        Gives the `Hello` of this moment.
    context : zmq.Context, optional
        Whose I/O thread to use; by default its own.
    on_welcome : callable, optional
        Called with each `Welcome`, before `receive` gives it.

    Attributes
    ----------
    epoch : int
        Of the hub that welcomed last; 0 before the first time.
    malformed : int
        Messages that could not be read and were skipped.
    """

    def __init__(
        self,
        address: str,
        hello: Callable[[], Hello],
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        *,
        on_welcome: Callable[[Welcome], None] | None = None,
    ) -> None:
        self.epoch = 0
        self.malformed = 0
        self._address = address
        self._hello = hello
        self._on_welcome = on_welcome
        self._state = _State.AWAY
        self._greeted = False
        self._heard = self._pinged = self._ticked = time.monotonic()
        self._own = zmq.Context() if context is None else None
        self._socket = _dealer(context or self._own)
        self._monitor = self._socket.get_monitor_socket(_EVENTS)
        self._socket.connect(address)

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """What the owner polls for reading; any of them means `receive`."""
        return self._socket, self._monitor

    @property
    def welcomed(self) -> bool:
        """Whether the hub knows this peer now."""
        return self._state is _State.WELCOMED

    def wait(self, timeout: float, others: Iterable[int] = ()) -> None:
        """Return when something has arrived, one of `others` is readable, or time is up."""
        poller = zmq.Poller()
        for source in (*self.sockets, *others):
            poller.register(source, zmq.POLLIN)
        poller.poll(math.ceil(max(0.0, timeout) * 1000))

    def send(self, message: Wire, buffers: Sequence[Buffer] = ()) -> bool:
        """Hand a message over; False, and nothing is kept, when the hub is away.

        Large buffers are not copied and must not change any more.
        """
        if self._state is not _State.WELCOMED:
            return False
        return self._send(encode(message), buffers)

    def receive(self) -> Iterator[tuple[Outbound, list[Buffer]]]:
        """Give what has arrived, `Welcome` and `Refused` too, without waiting.

        Raises
        ------
        ProtocolMismatch
            The hub speaks another version; it stays refused until that hub is replaced.
        """
        self._notice()
        for _ in range(DRAIN):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._heard = time.monotonic()
            try:
                message = decode_outbound(frames[0].buffer)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.malformed += 1
                continue
            if self._state is _State.GREETING and not isinstance(message, (Welcome, Refused)):
                continue  # of the last connection: what it gave was not in our hello
            self._obey(message)
            yield message, [_content(frame) for frame in frames[1:]]

    def tick(self, now: float | None = None) -> None:
        """Keep the connection alive; to be called twice a second, after `receive`."""
        now = time.monotonic() if now is None else now
        if now - self._ticked > 2 * BEAT:
            # this process was held up, which says nothing about the hub
            self._heard = max(self._heard, now - BEAT)
        self._ticked = now
        self._notice()
        if self._state is _State.REFUSED:
            return
        if now - self._heard > SILENCE:
            self._reconnect(now)
        elif self._state is _State.GREETING:
            self._greet()
        elif self.welcomed and now - max(self._heard, self._pinged) >= BEAT:
            self._pinged = now
            self._send(_PING, ())

    def close(self, linger: float = 0.0) -> None:
        """Disconnect; what was sent last gets `linger` seconds to leave."""
        self._state = _State.AWAY
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close(round(linger * 1000))
        if self._own is not None:
            self._own.term()

    # -- connection ------------------------------------------------------------------------

    def _notice(self) -> None:
        """Read what the monitor saw: connections lost and made."""
        while True:
            try:
                frames = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            event, _ = struct.unpack("=hi", frames[0])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._begin()
            elif event == zmq.EVENT_DISCONNECTED:
                self._state = _State.AWAY
        self._greet()

    def _begin(self) -> None:
        self._state = _State.GREETING
        self._greeted = False
        self._heard = time.monotonic()

    def _greet(self) -> None:
        if self._state is _State.GREETING and not self._greeted:
            # the socket learns of its new connection only when it looks at its commands
            self._socket.getsockopt(zmq.EVENTS)
            self._greeted = self._send(encode(self._hello()), ())

    def _obey(self, message: Outbound) -> None:
        if isinstance(message, Welcome) and self._state is not _State.AWAY:
            self._state = _State.WELCOMED
            self.epoch = message.epoch
            if self._on_welcome is not None:
                self._on_welcome(message)
        elif isinstance(message, Refused):
            self._refused(message)

    def _refused(self, message: Refused) -> None:
        if message.code == "unknown_peer":
            # several may come for one reason; the hello under way answers them all
            if self._state is _State.WELCOMED:
                self._begin()
                self._greet()
            return
        self._state = _State.REFUSED
        if message.code == "version":
            raise ProtocolMismatch(
                f"This process speaks version {VERSION} of nbtaskq's protocol; the running hub "
                f"refuses it: {message.text} Stop it with `nbtaskq down`, then start again."
            )

    def _reconnect(self, now: float) -> None:
        self._state = _State.AWAY
        self._heard = now
        self._socket.disconnect(self._address)
        self._socket.connect(self._address)

    # -- frames ----------------------------------------------------------------------------

    def _send(self, first: bytes, buffers: Sequence[Buffer]) -> bool:
        last = len(buffers)
        sent = self._part(first, more=last > 0)
        if not sent:
            return False
        for index, buffer in enumerate(buffers, 1):
            # after a loss in the middle the rest must still be offered: the socket drops it,
            # where otherwise it would drop the next message
            sent = self._part(buffer, more=index < last) and sent
        return sent

    def _part(self, data: Buffer, *, more: bool) -> bool:
        flags = zmq.NOBLOCK | zmq.SNDMORE if more else zmq.NOBLOCK
        copy = len(data) < COPY_BELOW if isinstance(data, bytes) else False
        try:
            self._socket.send(data, flags, copy=copy)
        except zmq.Again:
            return False
        return True


def _dealer(context: zmq.Context[zmq.Socket[bytes]] | None) -> zmq.Socket[bytes]:
    assert context is not None
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a hub that is not there
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 3000)
    socket.copy_threshold = COPY_BELOW
    return socket


def _content(frame: zmq.Frame) -> Buffer:
    return frame.bytes if len(frame) < COPY_BELOW else frame.buffer
