"""The hub's poll loop: joins the socket, the pure state, the vault and the store.

    ROUTER ──► decode ──► state.handle ──► actions ──► send · store.write · store.read
    wake pipe ◄── writer thread: something is durable, or was read ──► state.committed

Nothing in here waits but the poll. The store is only ever asked; the wake pipe says when it has
answered.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import zmq

from nbtaskq.hub import protocol as p
from nbtaskq.hub.actions import Action, Check, Deliver, Lookup, Send, StoreOp
from nbtaskq.hub.controls import Controls
from nbtaskq.hub.lookups import Lookups, Query
from nbtaskq.hub.state import HubState
from nbtaskq.hub.store import Store
from nbtaskq.hub.vault import Delivery, Page, Vault
from nbtaskq.message import Buffer

#: messages that are read before what they led to is stored
DRAIN = 300
#: frames from this size on are not copied
NO_COPY = 65_536
#: store operations under way from which on nothing more is read from the socket
BACKLOG = 20_000
#: after a standstill longer than this, nobody counts as silent for so long
STANDSTILL, GRACE = 1.0, 3.0
#: seconds after which a read that failed is tried again, and for which a poll lasts at most
AGAIN, LONGEST = 1.0, 60.0

_SENDS = frozenset((Send, Deliver, Lookup, Check))

_log = logging.getLogger(__name__)


class HubServer:
    """One hub on one socket.

    Parameters
    ----------
    address : str
        Where to bind; the folder of an ipc path must be private.
    store : Store
        Open, and not started.
    """

    def __init__(self, address: str, store: Store) -> None:
        now = time.monotonic()
        self.malformed: Counter[str] = Counter()
        self._store = store
        self._state = HubState(store.epoch, store.next_seq, now)
        stored = list(store.unended())
        self._state.load(stored)
        self._vault = Vault(self._state.tasks)
        self._lookups = Lookups(self._state, self._vault, self._send, self._read)
        self._controls = Controls(
            self._state,
            {task.owner: task.notebook for task in stored},
            send=self._send,
            read=self._read,
            facts=self._facts,
        )
        self._ops: list[StoreOp] = []
        self._durable = 0
        #: what is asked of the store, and what goes on with the answer
        self._asked: dict[int, tuple[Query, Callable[[Any], None], bool]] = {}
        self._ask_again: deque[tuple[float, tuple[Query, Callable[[Any], None], bool]]] = deque()
        #: peers whose delivery is being read, and what follows it
        self._late: dict[bytes, deque[Action]] = {}
        self._lost: set[bytes] = set()
        self._stopping = False
        self._heard = self._tick_from = now
        self._complained = -math.inf
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._waker, False)
        self._context = zmq.Context()
        self._socket = _router(self._context, address)
        self._deaf, self._open = zmq.Poller(), zmq.Poller()
        self._deaf.register(self._wake, zmq.POLLIN)
        self._open.register(self._wake, zmq.POLLIN)
        self._open.register(self._socket, zmq.POLLIN)

    def run(self) -> None:
        """Serve until `stop`."""
        self._store.start(self._notify)
        while not self._stopping:
            self._turn()

    def stop(self) -> None:
        """Make `run` return soon; for signal handlers and other threads."""
        self._stopping = True
        self._notify()

    def close(self) -> None:
        """Let go of the peers, then store what is under way; raises `StoreError`."""
        self._socket.close(linger=200)
        try:
            self._store.close()
        finally:
            self._context.term()
            os.close(self._wake)
            os.close(self._waker)

    # -- one turn --------------------------------------------------------------------------

    def _turn(self) -> None:
        listening = self._store.backlog < BACKLOG
        wait = self._wait(time.monotonic())
        poller = self._open if listening else self._deaf
        ready = dict(poller.poll(math.ceil(wait * 1000)))
        now = time.monotonic()
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 65_536)
        drained = self._socket not in ready or self._receive(now)
        if listening:
            if now - self._heard > wait + STANDSTILL:
                self._tick_from = now + GRACE
            self._heard = now
        self._collect(now)
        if listening and drained and now >= self._tick_from:
            self._perform(self._state.tick(now))
        self._controls.orders.tick(now)
        while self._lost:
            self._perform(self._state.lost(self._lost.pop(), now))
        if self._ops:
            ops, self._ops = self._ops, []
            written = self._store.write(ops)
            assert written == self._state.written, (written, self._state.written)

    def _wait(self, now: float) -> float:
        """Return for how many seconds there is nothing to do."""
        at = min(max(self._state.deadline(), self._tick_from), self._controls.orders.deadline())
        if self._ask_again:
            at = min(at, self._ask_again[0][0])
        return min(max(at - now, 0.001), LONGEST)

    def _collect(self, now: float) -> None:
        """Go on with what the store has read and written, in this order: no read is too late."""
        while self._ask_again and self._ask_again[0][0] <= now:
            query, then, fresh = self._ask_again.popleft()[1]
            self._read(query, then, fresh=fresh)
        durable, completed = self._store.collect()
        for ticket, value in completed:
            question = self._asked.pop(ticket)
            if isinstance(value, BaseException):
                self._complain(f"a read failed: {value!r}", now)
                self._ask_again.append((now + AGAIN, question))
            else:
                question[1](value)
        if durable > self._durable:
            self._durable = durable
            self._vault.durable(durable)
        self._perform(self._state.committed(durable, now))

    def _read(self, query: Query, then: Callable[[Any], None], *, fresh: bool = False) -> None:
        """Ask the store; one that cannot write must still be able to answer."""
        ticket = self._store.read(query, fresh=fresh and self._store.failed is None)
        self._asked[ticket] = query, then, fresh

    def _notify(self) -> None:
        """Wake the poll; a pipe that is full wakes it, too."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    # -- receiving -------------------------------------------------------------------------

    def _receive(self, now: float) -> bool:
        """Take in what has arrived; return whether that was all."""
        receive = self._socket.recv_multipart
        for _ in range(DRAIN):
            try:
                frames = receive(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return True
            self._take(frames, now)
        return False

    def _take(self, frames: list[zmq.Frame], now: float) -> None:
        if len(frames) < 2:
            self._count("empty", now)
            return
        peer = frames[0].bytes
        try:
            message = p.decode_inbound(frames[1].buffer)
        except (ValueError, RecursionError):
            self._count("undecodable", now)
            return
        buffers = [f.bytes if len(f) < NO_COPY else f.buffer for f in frames[2:]]
        try:
            actions = self._state.handle(peer, message, buffers, now)
        except ValueError:
            self._count("buffers", now)
            return
        self._perform(actions)
        if isinstance(message, (p.Control, p.Fetch, p.Reply)) and not _refused(actions):
            if isinstance(message, p.Control):
                self._controls.control(peer, message)
            elif isinstance(message, p.Fetch):
                self._lookups.fetch(peer, message.digests)
            else:
                self._controls.orders.reply(peer, message)

    def _count(self, code: str, now: float) -> None:
        self.malformed[code] += 1
        self._complain(f"malformed messages were dropped: {dict(self.malformed)}", now)

    def _complain(self, text: str, now: float) -> None:
        """Log at most one line a second."""
        if now >= self._complained + 1.0:
            self._complained = now
            _log.warning("%s", text)

    def _facts(self) -> dict[str, Any]:
        failed = self._store.failed
        return {
            "malformed": dict(self.malformed),
            "trouble": "" if failed is None else f"the store cannot be written: {failed}",
            "notices": self._store.notices,
            "backlog": self._store.backlog,
        }

    # -- actions ---------------------------------------------------------------------------

    def _perform(self, actions: list[Action]) -> None:
        """Store first, so that what is dispatched is at hand; then send."""
        ops = [action for action in actions if type(action) not in _SENDS]
        if ops:
            self._vault.absorb(ops)  # type: ignore[arg-type]
            self._ops += ops  # type: ignore[arg-type]
        if len(ops) < len(actions):
            self._act(action for action in actions if type(action) in _SENDS)

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Check):
                query = partial(_found, action.task_ids)
                self._read(query, partial(self._checked, action))
            elif isinstance(action, Lookup):
                self._lookups.look_up(action)
            elif action.peer in self._late:  # type: ignore[union-attr]
                self._late[action.peer].append(action)  # type: ignore[union-attr]
            elif isinstance(action, Send):
                self._send(*action)
            elif isinstance(action, Deliver):
                self._deliver(Delivery(action.peer, action.leases))

    def _send(self, peer: bytes, message: p.Wire, buffers: Sequence[Buffer] = ()) -> None:
        if isinstance(message, p.Welcome):
            message = p.Welcome(message.version, message.epoch, os.getpid())
        try:
            # what is smaller than the socket's copy_threshold is copied all the same
            self._socket.send_multipart([peer, p.encode(message), *buffers], copy=False)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._lost.add(peer)

    def _checked(self, action: Check, found: dict[bytes, Any]) -> None:
        now = time.monotonic()
        self._perform(self._state.submit(action.peer, action.submit, action.buffers, found, now))

    # -- deliveries ------------------------------------------------------------------------

    def _deliver(self, delivery: Delivery) -> None:
        """Send an `Assign`; when something for it must be read first, what follows it waits."""
        page = self._vault.page(delivery)
        if page is not None:
            self._late.setdefault(delivery.peer, deque())
            self._read(page.read, partial(self._paged, delivery, page))
            return
        message, frames = self._vault.assemble(delivery)
        if message.tasks:
            self._send(delivery.peer, message, frames)
        following = self._late.pop(delivery.peer, None)
        if following:
            self._act(following)

    def _paged(self, delivery: Delivery, page: Page, found: Any) -> None:
        """Go on with a delivery; leases that ended meanwhile are left out."""
        holder = self._state.holder
        damaged = self._vault.take(delivery, page, found)
        delivery.leases = [lease for lease in delivery.leases if holder(lease.token) is not None]
        for lease in [lease for lease in delivery.leases if lease.seq in damaged]:
            delivery.leases.remove(lease)
            self._perform(self._state.corrupt(lease.token, damaged[lease.seq], time.monotonic()))
        self._deliver(delivery)


def _found(task_ids: list[bytes], reader: Any) -> Any:
    return reader.found(task_ids)


def _refused(actions: list[Action]) -> bool:
    return any(isinstance(a, Send) and isinstance(a.message, p.Refused) for a in actions)


def _router(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 200)
    socket.setsockopt(zmq.BACKLOG, 512)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 3000)
    socket.copy_threshold = NO_COPY
    socket.bind(address)
    return socket
