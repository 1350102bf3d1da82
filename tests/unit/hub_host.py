"""A hub's surroundings for tests: a store that commits on demand, clients, workers, pools.

The network is direct: a peer hears what the state sends to it at once, unless it is cut off.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from nbtaskq.hub import protocol as p
from nbtaskq.hub.actions import (
    Action,
    AppendOutput,
    ChangeTask,
    Check,
    Deliver,
    FinishTask,
    Found,
    InsertTask,
    Lease,
    LeaseTask,
    Lookup,
    Send,
    StoredTask,
)
from nbtaskq.hub.state import HubState
from nbtaskq.message import Buffer, TaskStatus

HERE = p.Environment("/env", "3.11")
_addresses = itertools.count(1)
P = TypeVar("P", bound="Peer")


class Row:
    """One task as a store keeps it."""

    def __init__(self, insert: InsertTask, now: float) -> None:
        self.insert = insert
        submission = insert.submission
        self.due = now + submission.delay if submission.delay > 0 else 0.0
        self.expires = now + submission.expires if submission.expires > 0 else 0.0
        self.lease: int | None = None
        self.attempts = 0
        self.reasons: tuple[str, ...] = ()
        self.outcomes: list[p.Outcome] = []
        self.notes: list[p.Note] = []


class Tables:
    """What is in the store at one moment."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.seqs: dict[bytes, int] = {}
        self.objects: dict[bytes, Buffer] = {}

    def apply(self, op: Any, now: float) -> None:
        if isinstance(op, InsertTask):
            task_id = op.submission.task_id
            assert task_id not in self.seqs, f"{task_id!r} is stored twice"
            assert op.seq not in self.rows, f"row {op.seq} is used twice"
            self.rows[op.seq] = Row(op, now)
            self.seqs[task_id] = op.seq
        elif isinstance(op, FinishTask):
            row = self.rows[op.seq]
            row.outcomes.append(op.outcome)
            row.lease = None
        elif isinstance(op, ChangeTask):
            row = self.rows[op.seq]
            row.attempts, row.reasons, row.lease = op.attempts, op.reasons, None
            row.due = now + op.due if op.due > 0 else 0.0
        elif isinstance(op, LeaseTask):
            self.rows[op.seq].lease = op.token
        elif isinstance(op, AppendOutput):
            self.rows[op.seq].notes.append(op.note)
        else:
            self.objects[op.digest] = op.body

    def by_id(self, task_id: bytes) -> Row | None:
        seq = self.seqs.get(task_id)
        return None if seq is None else self.rows[seq]

    def found(self, task_id: bytes) -> Found | None:
        row = self.by_id(task_id)
        if row is None:
            return None
        status = row.outcomes[0].status if row.outcomes else TaskStatus.QUEUED
        return Found(row.insert.seq, status, row.insert.checksum)

    def unended(self, now: float) -> Iterable[StoredTask]:
        for seq, row in sorted(self.rows.items()):
            if not row.outcomes:
                yield self._stored(seq, row, now)

    def _stored(self, seq: int, row: Row, now: float) -> StoredTask:
        s = row.insert.submission
        ended = [n for n in s.needs if (r := self.by_id(n)) is not None and r.outcomes]
        return StoredTask(
            seq,
            s.task_id,
            s.name,
            row.insert.owner,
            row.insert.notebook,
            row.insert.environment,
            row.insert.checksum,
            s.flavor,
            s.priority,
            max(0.0, row.due - now) if row.due else 0.0,
            (row.expires - now) or -1e-9 if row.expires else 0.0,
            s.at_most_once,
            row.lease is not None,
            row.attempts,
            tuple(n for n in s.needs if n not in ended),
            row.reasons,
            tuple(f for n in ended if (f := self.found(n)) is not None),
            row.lease or 0,
        )


class Peer:
    """One end of a connection to the hub, and what it heard."""

    role = p.Role.CLIENT

    def __init__(self, host: Host, name: str, environment: p.Environment = HERE) -> None:
        self.host = host
        self.name = name
        self.environment = environment
        self.address = b""
        self.heard: list[p.Outbound] = []

    def __repr__(self) -> str:
        return self.name

    def hello(self) -> p.Hello:
        return p.Hello(
            p.VERSION, self.role, self.name.encode(), self.environment, 1, name=self.name
        )

    def connect(self) -> None:
        """Say hello from a new address."""
        self.host.peers.pop(self.address, None)
        self.address = b"%d" % next(_addresses)
        self.host.peers[self.address] = self
        self.say(self.hello())

    def cut(self) -> None:
        """Lose the connection, and have the hub learn of it."""
        self.host.peers.pop(self.address, None)
        self.host.perform(self.host.state.lost(self.address, self.host.now))

    def say(self, message: Any, *buffers: Buffer) -> None:
        self.host.stimulate(self.address, message, buffers)

    def hear(self, message: Any, buffers: Sequence[Buffer]) -> None:
        self.heard.append(message)

    def of(self, kind: type) -> list[Any]:
        """Return what it heard of one kind."""
        return [message for message in self.heard if isinstance(message, kind)]

    def last(self, kind: type) -> Any:
        return self.of(kind)[-1]


class Client(Peer):
    def submit(self, *tasks: p.Submission, again: bool = False) -> int:
        number = next(self.host.numbers)
        self.say(p.Submit(number, list(tasks), again))
        return number

    def outcomes(self, task_id: str) -> list[p.Outcome]:
        """Return the ends that it was told of a task."""
        return [
            outcome
            for message in self.of(p.Finished)
            for outcome in message.outcomes
            if outcome.task_id == task_id.encode()
        ]

    def outcome(self, task_id: str) -> p.Outcome:
        (outcome,) = self.outcomes(task_id)
        return outcome

    def accepted(self, number: int) -> list[tuple[bytes, str, str]] | None:
        """Return the problems of an accepted batch; `None` while it is not accepted."""
        found = [m.problems for m in self.of(p.Accepted) if m.batch == number]
        return found[-1] if found else None

    def cancel(self, *task_ids: str) -> int:
        number = next(self.host.numbers)
        self.say(p.Cancel(number, [i.encode() for i in task_ids]))
        return number

    def word(self, number: int) -> Any:
        found = [m.body for m in self.of(p.Answer) if m.request == number]
        return found[0] if found else None


class Held(NamedTuple):
    task_id: bytes
    lease: Lease


class Worker(Peer):
    role = p.Role.WORKER

    def __init__(
        self, host: Host, name: str, environment: p.Environment = HERE, concurrency: int = 100
    ) -> None:
        super().__init__(host, name, environment)
        self.concurrency = concurrency
        #: deliveries that arrived, by token
        self.held: dict[int, Held] = {}
        self.number = 0

    def hello(self) -> p.Hello:
        return p.Hello(
            p.VERSION, self.role, self.name.encode(), self.environment, 1, name=self.name,
            holding=[(held.task_id, token) for token, held in self.held.items()],
            concurrency=self.concurrency,
        )  # fmt: skip

    def deliver(self, leases: Iterable[Held]) -> None:
        self.held.update((held.lease.token, held) for held in leases)

    def ids(self) -> list[str]:
        """Return the tasks that it holds, in order."""
        return [held.task_id.decode() for held in self.held.values()]

    def token(self, task_id: str) -> int:
        return next(t for t, held in self.held.items() if held.task_id == task_id.encode())

    def lease(self, task_id: str) -> Lease:
        return self.held[self.token(task_id)].lease

    def start(self, task_id: str) -> None:
        self.say(p.Started([(task_id.encode(), self.token(task_id), self.host.now)]))

    def verdict(
        self,
        task_id: str,
        kind: int = p.VerdictKind.RESULT,
        status: int = TaskStatus.SUCCEEDED,
        *,
        seconds: float = 1.0,
        delay: float = 0.0,
        body: bytes = b"",
        error: str = "",
    ) -> p.Verdict:
        outcome = p.Outcome(
            task_id.encode(), status, body or task_id.encode(), seconds=seconds, error=error
        )
        return p.Verdict(self.token(task_id), kind, outcome, delay)

    def settle(self, *task_ids: str, **options: Any) -> p.Settle:
        """Send one verdict for each of these; return the message."""
        self.number += 1
        message = p.Settle(self.number, [self.verdict(i, **options) for i in task_ids])
        for verdict in message.verdicts:
            del self.held[verdict.token]
        self.say(message)
        return message


class Pool(Peer):
    role = p.Role.POOL

    def renew(self, *workers: Worker) -> None:
        self.say(p.Renew([worker.name for worker in workers]))

    def report(
        self,
        worker: Worker,
        *running: str,
        reason: str = "was killed by signal 9",
        settled: int | None = None,
    ) -> None:
        """Say that a worker died while it ran these."""
        slots = [p.Slot(i.encode(), worker.token(i), 0.0) for i in running]
        number = worker.number if settled is None else settled
        self.say(p.Died(worker.name, reason, slots, number))


class Host:
    """Performs a state's actions; nothing is durable before `commit`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.epoch = 1
        self.numbers = itertools.count(1)
        self.tables = Tables()
        self.peers: dict[bytes, Peer] = {}
        #: address and task ids of each delivery
        self.deliveries: list[tuple[bytes, list[str]]] = []
        self._begin()
        self.state = HubState(self.epoch, 1, self.now)
        self.state.load([])

    def _begin(self) -> None:
        #: operations in order, the time of each, and how many are durable
        self.ops: list[tuple[Any, float]] = []
        self.durable = 0
        self.ids: dict[int, bytes] = {
            seq: row.insert.submission.task_id for seq, row in self.tables.rows.items()
        }
        #: lookups under way, in order
        self.reads: list[Check | Lookup] = []

    # -- what the state asks for -----------------------------------------------------------

    def stimulate(self, address: bytes, message: Any, buffers: Sequence[Buffer] = ()) -> None:
        self.perform(self.state.handle(address, message, buffers, self.now))

    def perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                if action.peer in self.peers:
                    self.peers[action.peer].hear(action.message, action.buffers)
            elif isinstance(action, Deliver):
                self._deliver(action)
            elif isinstance(action, Check | Lookup):
                self.reads.append(action)
            else:
                if isinstance(action, InsertTask):
                    self.ids[action.seq] = action.submission.task_id
                self.ops.append((action, self.now))
        assert self.state.written == len(self.ops)

    def _deliver(self, action: Deliver) -> None:
        self.deliveries.append((action.peer, [self.ids[x.seq].decode() for x in action.leases]))
        worker = self.peers.get(action.peer)
        if isinstance(worker, Worker):
            worker.deliver(Held(self.ids[lease.seq], lease) for lease in action.leases)

    # -- time and store --------------------------------------------------------------------

    def commit(self, number: int | None = None) -> None:
        """Make a prefix durable, all by default, then answer what was asked before it."""
        number = len(self.ops) if number is None else number
        for op, now in self.ops[self.durable : number]:
            self.tables.apply(op, now)
        self.durable = max(self.durable, number)
        self.answer()
        self.perform(self.state.committed(self.durable, self.now))

    def answer(self) -> None:
        """Answer the lookups with what is durable now."""
        while self.reads:
            action = self.reads.pop(0)
            known = ((i, self.tables.found(i)) for i in action.task_ids)
            found = {i: f for i, f in known if f is not None}
            if isinstance(action, Check):
                self.perform(
                    self.state.submit(action.peer, action.submit, action.buffers, found, self.now)
                )
            else:
                self._look_up(action)

    def _look_up(self, action: Lookup) -> None:
        outcomes, missing = [], []
        for task_id in action.task_ids:
            row = self.tables.by_id(task_id)
            if row is not None and row.outcomes:
                outcomes.append(row.outcomes[0])
            else:
                missing.append(task_id)
        peer = self.peers.get(action.peer)
        if peer is not None and outcomes:
            peer.hear(p.Finished(outcomes), ())
        if peer is not None and missing:
            peer.hear(p.Missing(missing), ())

    def settle(self) -> None:
        """Commit until nothing is left to be committed or answered."""
        while self.durable < len(self.ops) or self.reads:
            self.commit()

    def pass_time(self, seconds: float) -> None:
        """Let time go by, ticking at each deadline."""
        end = self.now + seconds
        while (at := self.state.deadline()) <= end:
            self.now = max(self.now, at)
            self.perform(self.state.tick(self.now))
            assert self.state.deadline() > at, "a deadline that no tick removes"
        self.now = end
        self.perform(self.state.tick(self.now))

    def crash(self) -> None:
        """Kill the hub, and start the next one with what was durable."""
        self.peers.clear()
        self.epoch += 1
        self._begin()
        rows = self.tables.rows
        self.state = HubState(self.epoch, max(rows, default=0) + 1, self.now)
        self.state.load(self.tables.unended(self.now))

    # -- peers -----------------------------------------------------------------------------

    def client(self, name: str = "alice", environment: p.Environment = HERE) -> Client:
        return _connected(Client(self, name, environment))

    def worker(
        self, name: str = "w1", environment: p.Environment = HERE, concurrency: int = 100
    ) -> Worker:
        return _connected(Worker(self, name, environment, concurrency))

    def pool(self, name: str = "pool") -> Pool:
        return _connected(Pool(self, name))

    def ended(self, task_id: str) -> p.Outcome:
        """Return how a task ended in the store."""
        row = self.tables.by_id(task_id.encode())
        assert row is not None, f"{task_id} is not stored"
        (outcome,) = row.outcomes
        return outcome


def _connected(peer: P) -> P:
    peer.connect()
    return peer


def task(
    task_id: str, name: str = "fit", *, needs: Sequence[str] = (), **fields: Any
) -> p.Submission:
    """Return a submission whose body is its id."""
    fields.setdefault("body", task_id.encode())
    return p.Submission(
        task_id.encode(), name, b"", needs=[need.encode() for need in needs], **fields
    )
