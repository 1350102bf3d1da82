"""Orders that a pool takes, passed on by the hub.

    client ── Control ──► hub ── Order ──► pool
           ◄── Answer ───     ◄── Reply ──

An order that comes before its pool waits for it; so does its sender, within bounds.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from nbtaskq.hub.lookups import Send
from nbtaskq.hub.protocol import Answer, Order, Reply
from nbtaskq.hub.state import HubState

#: seconds that an order waits for a pool to connect, and for its answer
POOL_COMES = 3.0
POOL_ANSWERS = 60.0

VERBS = ("scale", "restart", "workers")


class Asked(msgspec.Struct):
    """An order under way: who asked, and which pools have still to answer."""

    peer: bytes
    request: int
    verb: str
    body: dict[str, Any]
    until: float
    pools: set[bytes] = set()


class Orders:
    """Passes orders to the pools, and their replies back."""

    def __init__(self, state: HubState, send: Send) -> None:
        self._state = state
        self._send = send
        self._number = 0
        self._waiting: list[Asked] = []
        self._ordered: dict[int, Asked] = {}

    def order(self, asked: Asked, now: float) -> None:
        """Pass an order to the pools, or keep it until one comes."""
        pools = self._state.pool_peers()
        if pools:
            asked.until = now + POOL_ANSWERS
            asked.pools = set(pools)
            self._number += 1
            self._ordered[self._number] = asked
            for pool in pools:
                self._send(pool, Order(self._number, asked.verb, asked.body))
        elif now < asked.until:
            self._waiting.append(asked)
        else:
            self._refuse(
                asked,
                f"no supervisor is connected to the hub, and none came in {POOL_COMES:g} s; "
                "start one with `nbtaskq up`",
            )

    def reply(self, pool: bytes, reply: Reply) -> None:
        """Pass a pool's answer on."""
        asked = self._ordered.get(reply.request)
        if asked is None or pool not in asked.pools:
            return
        asked.pools.discard(pool)
        # of several pools, the first that refuses, or else the last, speaks for all
        if not reply.ok or not asked.pools:
            del self._ordered[reply.request]
            self._send(asked.peer, Answer(asked.request, reply.ok, reply.body))

    def tick(self, now: float) -> None:
        """Pass on what waited for a pool, and give up what waited too long."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for asked in waiting:
                self.order(asked, now)
        if self._ordered:
            for number in [n for n, asked in self._ordered.items() if now >= asked.until]:
                asked = self._ordered.pop(number)
                self._refuse(asked, f"the supervisor has not answered for {POOL_ANSWERS:g} s")

    def deadline(self) -> float:
        """Return the time of the next `tick` that has something to do."""
        times = [asked.until for asked in (*self._waiting, *self._ordered.values())]
        return min(times, default=math.inf)

    def _refuse(self, asked: Asked, why: str) -> None:
        self._send(asked.peer, Answer(asked.request, False, f"{asked.verb}: {why}"))
