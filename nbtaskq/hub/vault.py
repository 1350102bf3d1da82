"""Payloads, results and objects at hand, so that dispatch seldom waits for the store.

    stored ──► hot ──► durable ──► (over the bound: dropped, read again when it is dispatched)
                 └──► ended: freed

What is not durable is always at hand. Tasks run about in the order in which they came, so over
the bound the newest are dropped, and a page that is read brings the tasks behind it along.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from nbtaskq.errors import TaskCorrupt
from nbtaskq.hub.actions import ChangeTask, FinishTask, InsertTask, Lease, PutObject, StoreOp
from nbtaskq.hub.history import Reader
from nbtaskq.hub.protocol import Assign, Assignment, Outcome, Submission
from nbtaskq.message import Buffer, TaskStatus

#: bytes of payloads that stay at hand once they are durable
HOT = 64 << 20
#: bytes of objects, and of results that other tasks need
SHELF = 64 << 20
#: rows that are read at once, and in one statement; bytes that are read ahead, about
PAGE, STEP, AHEAD = 500, 64, 4 << 20
#: bytes that a payload takes beside its body
OVERHEAD = 512

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: a submission with its buffers, and its size
Payload = tuple[Submission, Sequence[Buffer], int]
Stored = tuple[Submission, Sequence[Buffer]] | TaskCorrupt
Ended = tuple[Outcome, Sequence[Buffer]]

#: stands for a result that the store has no more
_GONE: Ended = Outcome(b"", TaskStatus.CORRUPT, error="the result is not stored any more"), ()


def weigh(body: Buffer, buffers: Iterable[Buffer] = ()) -> int:
    """Return the bytes that this takes in memory, about."""
    return OVERHEAD + len(body) + sum(memoryview(b).nbytes for b in buffers)


class Shelf(Generic[K, V]):
    """Things up to a size: those not used for longest go first, but never before durable."""

    def __init__(self, bound: int) -> None:
        self.size = 0
        self._bound = bound
        self._items: dict[K, tuple[V, int, int]] = {}

    def put(self, key: K, value: V, size: int, number: int = 0) -> None:
        """Keep a thing that is durable from store operation `number` on."""
        old = self._items.pop(key, None)
        self.size += size - (old[1] if old is not None else 0)
        self._items[key] = value, size, number

    def get(self, key: K) -> V | None:
        """Return a thing, which counts as used now."""
        item = self._items.pop(key, None)
        if item is None:
            return None
        self._items[key] = item
        return item[0]

    def trim(self, durable: int) -> None:
        """Let go what is over the bound."""
        if self.size <= self._bound:
            return
        for key, (_, size, number) in list(self._items.items()):
            if number <= durable:
                del self._items[key]
                self.size -= size
                if self.size <= self._bound:
                    return


class Delivery:
    """An `Assign` under way: its leases, and what was read for it so far."""

    def __init__(self, peer: bytes, leases: list[Lease]) -> None:
        self.peer = peer
        self.leases = leases
        self.payloads: dict[int, Payload] = {}
        self.results: dict[int, Ended] = {}


class PageRead(NamedTuple):
    """What a page read: payloads that a delivery needs, some behind them, and results."""

    payloads: dict[int, Stored]
    ahead: dict[int, Stored]
    results: dict[int, Ended]


class Page(NamedTuple):
    """Rows to be read for a delivery; `ahead` are payloads that will be needed next."""

    payloads: list[int]
    ahead: list[int]
    results: list[int]

    def read(self, reader: Reader) -> PageRead:
        """Ask the store; in its thread."""
        ahead: dict[int, Stored] = {}
        size = start = 0
        while start < len(self.ahead) and size < AHEAD:
            some = reader.payloads(self.ahead[start : start + STEP])
            ahead |= some
            size += sum(weigh(x[0].body, x[1]) for x in some.values() if isinstance(x, tuple))
            start += STEP
        return PageRead(reader.payloads(self.payloads), ahead, reader.outcomes_by_seq(self.results))


class Vault:
    """What the hub keeps at hand of its store.

    Parameters
    ----------
    unended : container of bytes
        Ids of the tasks that have not ended; only their payloads are worth keeping.
    """

    def __init__(self, unended: Container[bytes], *, hot: int = HOT, shelf: int = SHELF) -> None:
        self.size = 0
        #: digest → body and refs
        self.objects: Shelf[bytes, tuple[Buffer, Sequence[bytes]]] = Shelf(shelf)
        self._bound = hot
        self._unended = unended
        self._hot: dict[int, Payload] = {}
        self._labels: dict[int, bytes] = {}
        #: ids that a hot task needs: their results are kept when they end
        self._needed: set[bytes] = set()
        self._results: Shelf[int, Ended] = Shelf(shelf)
        #: number of the last operation of a group, and what it stored
        self._fresh: deque[tuple[int, list[int]]] = deque()
        self._number = 0

    def absorb(self, operations: list[StoreOp]) -> None:
        """Take in what the store is about to be given, in that order."""
        hot = self._hot
        fresh = []
        for op in operations:
            # the two kinds that come by the thousand are taken apart without attribute look-ups
            if type(op) is InsertTask:
                seq, _, _, _, task, parts, _ = op
                size = OVERHEAD + len(task.body) if not parts else weigh(task.body, parts)
                hot[seq] = task, parts, size
                self.size += size
                fresh.append(seq)
                if task.needs:
                    self._needed.update(task.needs)
            elif type(op) is FinishTask:
                seq, outcome, frames = op
                if outcome.task_id in self._needed:
                    self._results.put(seq, (outcome, frames), weigh(outcome.body, frames))
                self._forget(seq)
            elif isinstance(op, ChangeTask) and op.labels is not None:
                self._labels[op.seq] = op.labels
            elif isinstance(op, PutObject):
                number = self._number + len(operations)
                self.objects.put(op.digest, (op.body, op.refs), weigh(op.body), number)
        self._number += len(operations)
        if fresh:
            self._fresh.append((self._number, fresh))

    def durable(self, number: int) -> None:
        """Drop what is over the bounds and stored by now."""
        while self._fresh and self._fresh[0][0] <= number:
            _, seqs = self._fresh.popleft()
            while self.size > self._bound and seqs:
                self._drop(seqs.pop())
        self.objects.trim(number)
        self._results.trim(number)

    def page(self, delivery: Delivery) -> Page | None:
        """Return what must be read before a delivery can be assembled, or `None`."""
        hot, read = self._hot, delivery.payloads
        payloads = [x.seq for x in delivery.leases if x.seq not in hot and x.seq not in read]
        results = [
            need
            for lease in delivery.leases
            if lease.needs
            for need in lease.needs
            if need not in delivery.results and not self._lend(need, delivery)
        ]
        if not payloads and not results:
            return None
        ahead: list[int] = []
        if payloads:
            after = max(payloads) + 1
            ahead = [s for s in range(after, after + PAGE - len(payloads)) if s not in hot]
        return Page(payloads[:PAGE], ahead, results[:PAGE])

    def take(self, delivery: Delivery, page: Page, found: PageRead) -> dict[int, str]:
        """Take in what was read; return what is wrong with payloads that are damaged."""
        damaged: dict[int, str] = {}
        for seq in page.payloads:
            payload = found.payloads.get(seq)
            if isinstance(payload, tuple):
                delivery.payloads[seq] = *payload, 0
            else:
                damaged[seq] = str(payload or "the stored bytes of the task are gone")
        for seq in page.results:
            delivery.results[seq] = found.results.get(seq) or _GONE
        for seq, payload in found.ahead.items():
            if isinstance(payload, tuple) and seq not in self._hot:
                task, buffers = payload
                if task.task_id in self._unended:
                    size = weigh(task.body, buffers)
                    self._hot[seq] = task, buffers, size
                    self.size += size
        return damaged

    def assemble(self, delivery: Delivery) -> tuple[Assign, list[Buffer]]:
        """Return the message of a delivery, and its frames."""
        hot, labels = self._hot, self._labels
        tasks: list[Assignment] = []
        frames: list[Buffer] = []
        for seq, token, attempt, needs in delivery.leases:
            task, buffers, _ = hot.get(seq) or delivery.payloads[seq]
            frames += buffers
            results: list[Outcome] = []
            for need in needs:
                outcome, parts = delivery.results[need]
                results.append(outcome)
                frames += parts
            tasks.append(
                Assignment(
                    task.task_id,
                    token,
                    task.name,
                    labels.get(seq, task.labels),
                    task.body,
                    task.buffers,
                    task.code,
                    task.flavor,
                    attempt,
                    results,
                )
            )
        return Assign(tasks), frames

    def _lend(self, need: int, delivery: Delivery) -> bool:
        found = self._results.get(need)
        if found is not None:
            delivery.results[need] = found
        return found is not None

    def _drop(self, seq: int) -> Payload | None:
        payload = self._hot.pop(seq, None)
        if payload is not None:
            self.size -= payload[2]
        return payload

    def _forget(self, seq: int) -> None:
        payload = self._drop(seq)
        if payload is not None and payload[0].needs:
            self._needed.difference_update(payload[0].needs)
        if self._labels:
            self._labels.pop(seq, None)
