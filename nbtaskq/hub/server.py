"""The hub's poll loop: joins the socket, the pure state, the vault and the store.

    ROUTER ──► decode ──► state.handle ──► actions ──► send · store.write · store.read
    wake pipe ◄── writer thread: something is durable, or was read ──► state.committed

Nothing in here waits but the poll. The store is only ever asked; the wake pipe says when it has
answered.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import zmq

from nbtaskq.hub.actions import Action, Check, Deliver, Found, Lookup, Send, StoreOp
from nbtaskq.hub.controls import Controls
from nbtaskq.hub.history import Reader
from nbtaskq.hub.lookups import Lookups
from nbtaskq.hub.protocol import Control, Fetch, Inbound, Refused, Reply
from nbtaskq.hub.reading import Reading
from nbtaskq.hub.router import Router
from nbtaskq.hub.state import HubState
from nbtaskq.hub.store import Store
from nbtaskq.hub.vault import Delivery, Page, PageRead, Vault
from nbtaskq.message import Buffer

#: messages that are read before what they led to is stored
DRAIN = 300
#: store operations under way from which on nothing more is read from the socket
BACKLOG = 20_000
#: after a standstill longer than this, nobody counts as silent for so long
STANDSTILL, GRACE = 1.0, 3.0
#: seconds for which a poll lasts at most, and while nothing is read from the socket
LONGEST, DEAF = 60.0, 1.0


class HubServer:
    """One hub on one socket.

    Parameters
    ----------
    address : str
        Where to bind; the folder of an ipc path must be private.
    store : Store
        Open, and not started.

    Attributes
    ----------
    waker : int
        Descriptor whose writing makes the loop turn; for `signal.set_wakeup_fd`.
    """

    def __init__(self, address: str, store: Store) -> None:
        now = time.monotonic()
        self._store = store
        self._router = Router(address)
        self._reading = Reading(store)
        self._state = HubState(store.epoch, store.next_seq, now)
        stored = list(store.unended())
        self._state.load(stored)
        self._vault = Vault(self._state.tasks)
        send, read = self._router.send, self._reading.read
        self._lookups = Lookups(self._state, self._vault, send, read)
        notebooks = {task.owner: task.notebook for task in stored}
        self._controls = Controls(self._state, notebooks, send=send, read=read, facts=self._facts)
        self._ops: list[StoreOp] = []
        self._durable = 0
        #: peers whose delivery is being read, and what follows it
        self._late: dict[bytes, deque[Send | Deliver]] = {}
        self._stopping = False
        self._heard = self._tick_from = now
        self._wake, self.waker = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self.waker, False)
        self._deaf, self._open = zmq.Poller(), zmq.Poller()
        self._deaf.register(self._wake, zmq.POLLIN)
        self._open.register(self._wake, zmq.POLLIN)
        self._open.register(self._router.socket, zmq.POLLIN)

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
        self._router.close()
        self._store.close()
        os.close(self._wake)
        os.close(self.waker)

    # -- one turn --------------------------------------------------------------------------

    def _turn(self) -> None:
        listening = self._store.backlog < BACKLOG
        wait = self._wait(time.monotonic(), listening)
        poller = self._open if listening else self._deaf
        ready = dict(poller.poll(math.ceil(wait * 1000)))
        now = time.monotonic()
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 65_536)
        idle = self._router.socket not in ready
        if not idle:
            for peer, message, buffers in self._router.receive(DRAIN):
                self._take(peer, message, buffers, now)
        self._collect(now)
        if listening:
            self._notice_standstill(now, wait)
            if (idle or self._router.drained) and now >= self._tick_from:
                self._perform(self._state.tick(now))
        self._controls.orders.tick(now)
        self._reading.tick(now)
        self._router.send_receipts(now)
        while self._router.lost:
            self._perform(self._state.lost(self._router.lost.pop(), now))
        if self._ops:
            ops, self._ops = self._ops, []
            written = self._store.write(ops)
            assert written == self._state.written, (written, self._state.written)

    def _wait(self, now: float, listening: bool) -> float:
        """Return for how many seconds there is nothing to do."""
        parts = (self._controls.orders, self._reading, self._router)
        at = min(part.deadline() for part in parts)
        at = min(at, max(self._state.deadline(), self._tick_from) if listening else now + DEAF)
        return min(max(at - now, 0.001), LONGEST)

    def _notice_standstill(self, now: float, wait: float) -> None:
        """After nothing was read for long, hear everybody before anybody counts as silent."""
        if now - self._heard > wait + STANDSTILL:
            self._tick_from = now + GRACE
        self._heard = now

    def _collect(self, now: float) -> None:
        """Go on with what the store has read and written, in this order: no read is too late."""
        durable, completed = self._store.collect()
        self._reading.answered(completed, now)
        if durable > self._durable:
            self._durable = durable
            self._vault.durable(durable)
        self._perform(self._state.committed(durable, now))

    def _notify(self) -> None:
        """Wake the poll; a pipe that is full wakes it, too."""
        with contextlib.suppress(BlockingIOError):
            os.write(self.waker, b"\0")

    def _facts(self) -> dict[str, Any]:
        failed = self._store.failed
        return {
            "malformed": dict(self._router.malformed),
            "trouble": "" if failed is None else f"the store cannot be written: {failed}",
            "notices": self._store.notices,
            "backlog": self._store.backlog,
        }

    # -- messages --------------------------------------------------------------------------

    def _take(self, peer: bytes, message: Inbound, buffers: Sequence[Buffer], now: float) -> None:
        try:
            actions = self._state.handle(peer, message, buffers, now)
        except ValueError:
            self._router.drop("contradictory")
            return
        self._perform(actions)
        if isinstance(message, (Control, Fetch, Reply)) and not _refused(actions):
            if isinstance(message, Control):
                self._controls.control(peer, message)
            elif isinstance(message, Fetch):
                self._lookups.fetch(peer, message.digests)
            else:
                self._controls.orders.reply(peer, message)

    # -- actions ---------------------------------------------------------------------------

    def _perform(self, actions: list[Action]) -> None:
        """Store first, so that what is dispatched is at hand; then send."""
        ops = [a for a in actions if not isinstance(a, (Send, Deliver, Lookup, Check))]
        if ops:
            self._vault.absorb(ops)
            self._ops += ops
        if len(ops) < len(actions):
            self._act(a for a in actions if isinstance(a, (Send, Deliver, Lookup, Check)))

    def _act(self, actions: Iterable[Send | Deliver | Lookup | Check]) -> None:
        for action in actions:
            if isinstance(action, Check):
                query = partial(_find, action.task_ids)
                self._reading.read(query, partial(self._checked, action))
            elif isinstance(action, Lookup):
                self._lookups.look_up(action)
            elif action.peer in self._late:
                self._late[action.peer].append(action)
            elif isinstance(action, Send):
                self._router.send(*action)
            else:
                self._deliver(Delivery(action.peer, action.leases))

    def _checked(self, action: Check, found: dict[bytes, Found]) -> None:
        now = time.monotonic()
        self._perform(self._state.submit(action.peer, action.submit, action.buffers, found, now))

    # -- deliveries ------------------------------------------------------------------------

    def _deliver(self, delivery: Delivery) -> None:
        """Send an `Assign`; when something for it must be read first, what follows it waits."""
        page = self._vault.page(delivery)
        if page is not None:
            self._late.setdefault(delivery.peer, deque())
            self._reading.read(page.read, partial(self._paged, delivery, page))
            return
        message, frames = self._vault.assemble(delivery)
        if message.tasks:
            self._router.send(delivery.peer, message, frames)
        following = self._late.pop(delivery.peer, None)
        if following:
            self._act(following)

    def _paged(self, delivery: Delivery, page: Page, found: PageRead) -> None:
        """Go on with a delivery; leases that ended meanwhile are left out."""
        holder = self._state.holder
        damaged = self._vault.take(delivery, page, found)
        delivery.leases = [lease for lease in delivery.leases if holder(lease.token) is not None]
        for lease in [lease for lease in delivery.leases if lease.seq in damaged]:
            delivery.leases.remove(lease)
            self._perform(self._state.corrupt(lease.token, damaged[lease.seq], time.monotonic()))
        self._deliver(delivery)


def _find(task_ids: list[bytes], reader: Reader) -> dict[bytes, Found]:
    return reader.found(task_ids)


def _refused(actions: list[Action]) -> bool:
    return any(isinstance(a, Send) and isinstance(a.message, Refused) for a in actions)
