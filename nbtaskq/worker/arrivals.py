"""Deliveries whose functions may still be on their way; they leave in the order they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from nbtaskq.abc import Delivery
from nbtaskq.message import Buffer
from nbtaskq.worker.codes import Codes


class Arrivals:
    """Used by the net thread alone."""

    def __init__(self) -> None:
        self._codes = Codes()
        self._waiting: deque[tuple[Delivery, bytes]] = deque()
        self._asked: set[bytes] = set()

    def add(self, delivery: Delivery, digest: bytes) -> None:
        """Take a delivery in; an empty digest stands for no code."""
        self._waiting.append((delivery, digest))

    def given(self, digest: bytes, refs: Sequence[bytes], body: Buffer) -> None:
        """Take an object in."""
        self._asked.discard(digest)
        self._codes.add(digest, refs, body)

    def missing(self, digests: Iterable[bytes]) -> None:
        """Take in that nobody has these objects."""
        for digest in digests:
            self._asked.discard(digest)
            self._codes.mark_unknown(digest)

    def asked(self, digests: Iterable[bytes]) -> None:
        """Do not ask for these again."""
        self._asked.update(digests)

    def ask_again(self) -> None:
        """Ask for everything again: the hub that was asked may be gone."""
        self._asked.clear()
        self._codes.forget_unknown()

    def recall(self, tokens: set[int]) -> set[int]:
        """Remove these deliveries; return the tokens of those that were here."""
        found = {delivery.token for delivery, _ in self._waiting if delivery.token in tokens}
        if found:
            kept = (entry for entry in self._waiting if entry[0].token not in found)
            self._waiting = deque(kept)
        return found

    def sort(self) -> tuple[list[Delivery], list[Delivery], list[bytes]]:
        """Return what can be run, what never can, and the digests that must be asked for.

        A delivery that waits for its function holds back those behind it.
        """
        ready: list[Delivery] = []
        lost: list[Delivery] = []
        while self._waiting:
            delivery, digest = self._waiting[0]
            if digest:
                code = self._codes.get(digest)
                if code is None and not self._codes.is_lost(digest):
                    break
                if code is None:
                    lost.append(delivery)
                else:
                    ready.append(delivery._replace(code=code))
            else:
                ready.append(delivery)
            self._waiting.popleft()
        if not self._waiting:
            self._codes.forget_unknown()
        return ready, lost, self._wanted()

    def _wanted(self) -> list[bytes]:
        wanted: dict[bytes, None] = {}
        for digest in dict.fromkeys(digest for _, digest in self._waiting if digest):
            if self._codes.get(digest) is None and not self._codes.is_lost(digest):
                wanted.update(dict.fromkeys(self._codes.missing(digest)))
        return [digest for digest in wanted if digest not in self._asked]
