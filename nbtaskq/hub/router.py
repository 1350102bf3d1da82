"""The hub's socket: messages in and out, malformed ones counted and dropped."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import zmq

from nbtaskq.hub.protocol import (
    Accepted,
    Assign,
    Finished,
    Inbound,
    Recorded,
    Welcome,
    Wire,
    decode_inbound,
    encode,
)
from nbtaskq.message import Buffer

#: frames from this size on are not copied
NO_COPY = 65_536
#: connections that wait to be taken, and milliseconds for which one may take to greet
QUEUE, GREETING = 512, 3000
#: seconds that a receipt waits for company
RECEIPTS = 0.002
#: milliseconds that what was sent last has to leave
LINGER = 200

_log = logging.getLogger(__name__)


class Router:
    """One ROUTER socket, whose peers are known by the ids that it gives them.

    Attributes
    ----------
    malformed : Counter
        How many messages were dropped, by the reason.
    lost : set of bytes
        Peers to whom nothing could be sent; the owner empties it.
    """

    def __init__(self, address: str) -> None:
        self.malformed: Counter[str] = Counter()
        self.lost: set[bytes] = set()
        self.drained = True
        self._receipts: dict[bytes, list[Accepted | Recorded]] = {}
        self._receipts_at = math.inf
        self._complained = -math.inf
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.BACKLOG, QUEUE)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, GREETING)
        self.socket.copy_threshold = NO_COPY
        self.socket.bind(address)

    def receive(self, limit: int) -> Iterator[tuple[bytes, Inbound, Sequence[Buffer]]]:
        """Give what has arrived, up to so many messages; `drained` says whether that was all."""
        receive = self.socket.recv_multipart
        self.drained = False
        for _ in range(limit):
            try:
                frames = receive(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                self.drained = True
                return
            if len(frames) < 2:
                self.drop("empty")
                continue
            try:
                message = decode_inbound(frames[1].buffer)
            except (ValueError, RecursionError):
                self.drop("undecodable")
                continue
            buffers = [f.bytes if len(f) < NO_COPY else f.buffer for f in frames[2:]]
            yield frames[0].bytes, message, buffers

    def send(self, peer: bytes, message: Wire, buffers: Sequence[Buffer] = ()) -> None:
        """Send a message; a peer that is gone joins `lost`.

        A receipt travels with the next message to its peer, or alone a little later: waking a
        peer's threads costs more than the receipt is worth.
        """
        if isinstance(message, Recorded) or (
            isinstance(message, Accepted) and not message.problems
        ):
            self._receipts.setdefault(peer, []).append(message)
            self._receipts_at = min(self._receipts_at, time.monotonic() + RECEIPTS)
            return
        if isinstance(message, Welcome):
            message = Welcome(message.version, message.epoch, os.getpid())
        receipts = self._receipts.pop(peer, None)
        if receipts:
            message = self._together(peer, message, receipts)
        self._send(peer, message, buffers)

    def _together(self, peer: bytes, message: Wire, receipts: list[Accepted | Recorded]) -> Wire:
        """Return the message with the receipts in it, if it can hold them; else send them."""
        if isinstance(message, Finished):
            batches = [receipt.batch for receipt in receipts if isinstance(receipt, Accepted)]
            return Finished(message.outcomes, batches)
        if isinstance(message, Assign):
            return Assign(message.tasks, max(r.number for r in receipts if isinstance(r, Recorded)))
        for receipt in receipts:
            self._send(peer, receipt, ())
        return message

    def send_receipts(self, now: float) -> None:
        """Send the receipts that have waited for long enough."""
        if now < self._receipts_at:
            return
        waiting, self._receipts, self._receipts_at = self._receipts, {}, math.inf
        for peer, receipts in waiting.items():
            for receipt in receipts:
                self._send(peer, receipt, ())

    def deadline(self) -> float:
        """Return when receipts are due."""
        return self._receipts_at

    def _send(self, peer: bytes, message: Wire, buffers: Sequence[Buffer]) -> None:
        try:
            if buffers:
                # what is smaller than the socket's copy_threshold is copied all the same
                self.socket.send_multipart([peer, encode(message), *buffers], copy=False)
            else:
                self.socket.send_multipart([peer, encode(message)])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.lost.add(peer)

    def drop(self, reason: str) -> None:
        """Count a message that is dropped; log at most one line a second."""
        self.malformed[reason] += 1
        now = time.monotonic()
        if now >= self._complained + 1.0:
            self._complained = now
            _log.warning("malformed messages were dropped: %s", dict(self.malformed))

    def close(self) -> None:
        """Disconnect everybody."""
        self.socket.close(linger=LINGER)
        self._context.term()
