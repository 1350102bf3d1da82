"""Verdicts on their way to the hub, kept until it has stored them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from nbtaskq.abc import Delivery, Settlement
from nbtaskq.hub.protocol import Outcome, Settle, Verdict, VerdictKind, encode_labels
from nbtaskq.message import Buffer, TaskStatus

#: verdicts in one message
BATCH = 64
#: bytes of a result's body; MessagePack knows none longer, and its buffers do not count
LONGEST = (1 << 32) - 1

Entry = tuple[Delivery, Settlement]


class Letter(NamedTuple):
    """One `Settle` with its buffers, and who waits until it is stored."""

    message: Settle
    buffers: list[Buffer]
    waiters: list[Callable[[], object]]


class Verdicts:
    """Verdicts handed over by any thread; numbered, sent and kept by the net thread.

    Numbers start at 1 and grow by one with each letter.
    """

    def __init__(self) -> None:
        self._outbox: deque[tuple[Entry, Callable[[], object] | None]] = deque()
        self._unrecorded: deque[Letter] = deque()
        self._number = 0

    def __len__(self) -> int:
        return len(self._outbox)

    def add(self, settled: Sequence[Entry], waiter: Callable[[], object] | None) -> None:
        """Hand verdicts over; `waiter` is called when the last of them is stored."""
        for entry in settled[:-1]:
            self._outbox.append((entry, None))
        for entry in settled[-1:]:
            self._outbox.append((entry, waiter))

    def letters(self) -> Iterator[Letter]:
        """Make letters of all that was handed over."""
        while self._outbox:
            count = min(BATCH, len(self._outbox))
            yield self._write([self._outbox.popleft() for _ in range(count)])

    def unrecorded(self) -> Iterator[Letter]:
        """Give the letters that may have to be sent again, in order."""
        yield from self._unrecorded

    def recorded(self, number: int) -> Iterator[int]:
        """Let go of the letters up to a number; yield the tokens of their deliveries."""
        while self._unrecorded and self._unrecorded[0].message.number <= number:
            letter = self._unrecorded.popleft()
            for waiter in letter.waiters:
                waiter()
            for verdict in letter.message.verdicts:
                yield verdict.token

    def _write(self, entries: list[tuple[Entry, Callable[[], object] | None]]) -> Letter:
        self._number += 1
        verdicts = [_verdict(*entry) for entry, _ in entries]
        buffers = [
            buffer
            for verdict, ((_, settlement), _) in zip(verdicts, entries, strict=True)
            if verdict.outcome.buffers
            for buffer in settlement.buffers
        ]
        waiters = [waiter for _, waiter in entries if waiter is not None]
        letter = Letter(Settle(self._number, verdicts), buffers, waiters)
        self._unrecorded.append(letter)
        return letter


def _verdict(delivery: Delivery, settlement: Settlement) -> Verdict:
    kind = settlement.kind
    again = kind in (VerdictKind.RETRY, VerdictKind.REQUEUE)
    if len(settlement.outcome.body) > LONGEST:
        return _unsendable(delivery, f"its result is over {LONGEST:,} bytes; write it to a file")
    try:
        labels = encode_labels(settlement.labels) if again and settlement.labels else b""
    except (TypeError, ValueError, OverflowError) as error:
        return _unsendable(delivery, f"a hook gave it a label that cannot be sent: {error}")
    return Verdict(delivery.token, kind, settlement.outcome, settlement.delay, labels)


def _unsendable(delivery: Delivery, why: str) -> Verdict:
    """Return the verdict on a delivery whose own verdict cannot be written down."""
    outcome = Outcome(delivery.task_id.encode(), TaskStatus.REJECTED, error=why)
    return Verdict(delivery.token, VerdictKind.REJECT, outcome)
