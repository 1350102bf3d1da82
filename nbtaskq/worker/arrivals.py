"""Deliveries whose functions may still be on their way; they leave in the order they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from nbtaskq.abc import Delivery, Settlement
from nbtaskq.hub import protocol as p
from nbtaskq.message import Buffer, Parcel, TaskStatus
from nbtaskq.worker.codes import Codes


def unpacked(
    message: p.Assign, frames: Sequence[Buffer]
) -> Iterator[tuple[p.Assignment, Delivery]]:
    """Yield what the hub assigned, each with the buffers that are its own."""
    position = 0
    for task in message.tasks:
        buffers = p.take(frames, position, task.buffers)
        position += task.buffers
        results: dict[str, tuple[p.Outcome, Sequence[Buffer]]] = {}
        for outcome in task.results:
            own = p.take(frames, position, outcome.buffers)
            position += outcome.buffers
            results[outcome.task_id.decode()] = outcome, own
        yield (
            task,
            Delivery(
                task.task_id.decode(),
                task.name,
                p.decode_labels(task.labels),
                Parcel(task.body, buffers, needs=tuple(results)),
                task.token,
                task.attempt,
                p.Flavor(task.flavor),
                None,
                results,
            ),
        )


def without_code(delivery: Delivery) -> Settlement:
    """Return the verdict on a delivery whose function nobody has."""
    error = (
        f"the hub has not stored the function of {delivery.task_name!r}; "
        "send the task again, which sends its function too"
    )
    outcome = p.Outcome(delivery.task_id.encode(), TaskStatus.REJECTED, error=error)
    return Settlement(p.VerdictKind.REJECT, outcome)


class Arrivals:
    """Puts deliveries and the objects of their functions together; for the net thread alone."""

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
