"""What the state asks of its host, in order, and what waits until the store has written it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from nbtaskq.hub.actions import Action, Send, StoreOp
from nbtaskq.hub.protocol import Outbound
from nbtaskq.message import Buffer

T = TypeVar("T")


class Journal:
    """Actions of the stimulus that is being handled, and promises for when it is durable.

    Attributes
    ----------
    out : list of Action
        Actions so far.
    written, durable : int
        Numbers of the last store action, and of the last one that is durable.
    """

    def __init__(self) -> None:
        self.out: list[Action] = []
        self.written = 0
        self.durable = 0
        self._waiting: deque[tuple[int, Callable[[Any], None], Any]] = deque()

    def send(self, peer: bytes | None, message: Outbound, buffers: Sequence[Buffer] = ()) -> None:
        """Send to a peer; nothing happens when there is none."""
        if peer is not None:
            self.out.append(Send(peer, message, buffers))

    def store(self, operation: StoreOp) -> None:
        """Store something; it counts as done only once it is durable."""
        self.written += 1
        self.out.append(operation)

    def after_commit(self, call: Callable[[T], None], argument: T) -> None:
        """Call this when everything stored so far is durable."""
        self._waiting.append((self.written, call, argument))

    def commit(self, number: int) -> None:
        """Take in that everything up to this number is durable."""
        self.durable = max(self.durable, number)

    def keep_promises(self) -> bool:
        """Make the calls whose time has come; return whether there were any."""
        waiting, durable = self._waiting, self.durable
        called = False
        while waiting and waiting[0][0] <= durable:
            _, call, argument = waiting.popleft()
            call(argument)
            called = True
        return called

    def take(self) -> list[Action]:
        """Return the actions of this stimulus and begin the next one."""
        out, self.out = self.out, []
        return out
