"""The hub's state against a hostile world: hypothesis chooses what happens, and in which order.

Messages travel on connections that keep their order and may break anywhere; stored operations
become durable in prefixes; the hub may crash after any of them. `NBTASKQ_HISTORIES` sets how
many histories are tried.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

from hub_host import Client as DirectClient
from hub_host import Held, Host, Pool, task
from hub_host import Worker as DirectWorker
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from nbtaskq.hub import protocol as p
from nbtaskq.hub.actions import Action, Deliver, FinishTask, LeaseTask, Send
from nbtaskq.hub.deaths import MAX_CRASHES
from nbtaskq.message import Buffer, TaskStatus

HISTORIES = int(os.environ.get("NBTASKQ_HISTORIES", "300"))
IDS = [f"t{n}" for n in range(12)]
VERDICTS = list(p.VerdictKind)


class Wire:
    """What is under way between one peer and the hub; each direction keeps its order."""

    def __repr__(self) -> str:
        return f"Wire(up={list(self.up)}, down={list(self.down)})"

    def __init__(self) -> None:
        self.up: deque[tuple[Any, Sequence[Buffer]]] = deque()
        self.down: deque[Any] = deque()


class World(Host):
    """A host whose network is slow: everything waits in a `Wire` until it is delivered."""

    def __init__(self) -> None:
        super().__init__()
        self.wires: dict[bytes, Wire] = {}
        self.tokens: set[int] = set()
        self.addresses = itertools.count(1)

    def perform(self, actions: Iterable[Action]) -> None:
        actions = list(actions)
        super().perform(a for a in actions if not isinstance(a, Send | Deliver))
        for action in actions:
            if isinstance(action, Deliver):
                for lease in action.leases:
                    assert lease.token not in self.tokens, "a token was handed out twice"
                    self.tokens.add(lease.token)
        for action in actions:
            if isinstance(action, Send) and action.peer in self.wires:
                self.wires[action.peer].down.append(action.message)
            elif isinstance(action, Deliver) and action.peer in self.wires:
                held = [Held(self.ids[lease.seq], lease) for lease in action.leases]
                self.wires[action.peer].down.append(held)

    def crash(self) -> None:
        self.wires.clear()
        super().crash()


class Slow:
    """A peer whose words wait in its wire; nothing is understood before `Welcome`."""

    world: World
    welcomed = False

    def connect(self: Any) -> None:
        self.host.wires.pop(self.address, None)
        self.host.peers.pop(self.address, None)
        self.address = b"%d" % next(self.host.addresses)
        self.host.peers[self.address] = self
        self.host.wires[self.address] = Wire()
        self.welcomed = False
        self.say(self.hello())

    def say(self: Any, message: Any, *buffers: Buffer) -> None:
        wire = self.host.wires.get(self.address)
        if wire is not None:
            wire.up.append((message, buffers))

    def cut(self: Any, *, noticed: bool) -> None:
        """Break the connection; what was under way to the hub may still be read."""
        wire = self.host.wires.get(self.address)
        if wire is not None:
            wire.down.clear()
            if noticed:
                self.host.perform(self.host.state.lost(self.address, self.host.now))

    def hear(self: Any, message: Any, buffers: Sequence[Buffer]) -> None:
        if isinstance(message, p.Welcome):
            self.welcomed = True
            self.on_welcome()
        elif isinstance(message, p.Refused):
            assert message.code in ("unknown_peer", "dead"), message
            if message.code == "unknown_peer" and self.welcomed:
                self.welcomed = False
                self.say(self.hello())
        elif self.welcomed:
            self.on_message(message)


class Client(Slow, DirectClient):
    """Sends again what was not accepted, and asks for what it was not told."""

    def __init__(self, host: Host, name: str) -> None:
        super().__init__(host, name)
        self.unaccepted: dict[int, list[p.Submission]] = {}
        self.wanted: set[bytes] = set()
        self.told: dict[bytes, p.Outcome] = {}
        self.questions: set[int] = set()

    def send(self, tasks: list[p.Submission], again: bool) -> None:
        number = next(self.host.numbers)
        self.unaccepted[number] = tasks
        self.say(p.Submit(number, tasks, again))

    def on_welcome(self) -> None:
        for number, tasks in self.unaccepted.items():
            self.say(p.Submit(number, tasks, True))
        if self.wanted:
            self.say(p.Get(sorted(self.wanted)))

    def on_message(self, message: Any) -> None:
        if isinstance(message, p.Accepted) and message.batch in self.unaccepted:
            refused = {key for key, _, _ in message.problems}
            for submission in self.unaccepted.pop(message.batch):
                if submission.task_id not in refused | self.told.keys():
                    self.wanted.add(submission.task_id)
        elif isinstance(message, p.Finished):
            for outcome in message.outcomes:
                self.wanted.discard(outcome.task_id)
                self.told[outcome.task_id] = outcome
        elif isinstance(message, p.Missing):
            lost = self.wanted.intersection(message.keys)
            assert not lost, f"accepted, and unknown to the hub: {lost}"
        elif isinstance(message, p.Answer):
            self.questions.discard(message.request)


class Worker(Slow, DirectWorker):
    """Runs what it is given in order; keeps verdicts until they are recorded."""

    def __init__(self, host: Host, name: str) -> None:
        super().__init__(host, name)
        self.running: int | None = None
        self.unrecorded: dict[int, p.Settle] = {}

    def hello(self) -> p.Hello:
        unrecorded = [
            (v.outcome.task_id, v.token) for m in self.unrecorded.values() for v in m.verdicts
        ]
        holding = [(held.task_id, token) for token, held in self.held.items()]
        return p.Hello(
            p.VERSION, self.role, self.name.encode(), self.environment, 1, name=self.name,
            holding=holding + unrecorded,
        )  # fmt: skip

    def on_welcome(self) -> None:
        for message in self.unrecorded.values():
            self.say(message)
        if self.running is not None:
            self.say(p.Started([(self.held[self.running].task_id, self.running, 0.0)]))

    def on_message(self, message: Any) -> None:
        if isinstance(message, list):
            self.deliver(message)
        elif isinstance(message, p.Recorded):
            for number in [n for n in self.unrecorded if n <= message.number]:
                del self.unrecorded[number]
        elif isinstance(message, p.Recall):
            given = [t for t in message.tokens if t in self.held and t != self.running]
            for token in given:
                del self.held[token]
            self.say(p.Recalled(given, [t for t in message.tokens if t not in given]))

    def begin(self) -> None:
        """Start the next task."""
        if self.running is None and self.held:
            self.running = next(iter(self.held))
            held = self.held[self.running]
            self.host.began(self, held)
            self.say(p.Started([(held.task_id, self.running, 0.0)]))

    def finish(self, kind: int, status: int, seconds: float, delay: float) -> None:
        """End the running task with a verdict."""
        if self.running is None:
            return
        held = self.held.pop(self.running)
        self.running = None
        self.number += 1
        outcome = p.Outcome(held.task_id, status, b"%d" % held.lease.token, seconds=seconds)
        verdict = p.Verdict(held.lease.token, kind, outcome, delay)
        self.host.decided(held, kind)
        self.unrecorded[self.number] = p.Settle(self.number, [verdict])
        self.say(self.unrecorded[self.number])


class Machine(RuleBasedStateMachine):
    """One history."""

    def __init__(self) -> None:
        super().__init__()
        self.world = Recording()
        self.clients = [Client(self.world, name) for name in ("alice", "bob")]
        self.pool: SlowPool = SlowPool(self.world, "pool")
        self.workers: list[Worker] = []
        self.names = (f"w{n}" for n in itertools.count(1))

    @initialize(workers=st.integers(1, 3))
    def begin(self, workers: int) -> None:
        for peer in (*self.clients, self.pool):
            peer.connect()
        for _ in range(workers):
            self.new_worker()
        self.quiet()

    @property
    def peers(self) -> list[Any]:
        return [*self.clients, self.pool, *self.workers]

    def new_worker(self) -> None:
        worker = Worker(self.world, next(self.names))
        self.workers.append(worker)
        worker.connect()

    # -- the network -----------------------------------------------------------------------

    def step_up(self, address: bytes) -> None:
        """Let the hub read one message."""
        wire = self.world.wires[address]
        if wire.up:
            message, buffers = wire.up.popleft()
            self.world.stimulate(address, message, buffers)

    def step_down(self, address: bytes) -> None:
        """Let a peer read one message."""
        wire = self.world.wires[address]
        peer = self.world.peers.get(address)
        if wire.down and peer is not None:
            peer.hear(wire.down.popleft(), ())

    @precondition(lambda self: any(w.up or w.down for w in self.world.wires.values()))
    @rule(data=st.data(), count=st.integers(1, 6))
    def deliver(self, data: st.DataObject, count: int) -> None:
        busy = [a for a, wire in self.world.wires.items() if wire.up or wire.down]
        address = data.draw(st.sampled_from(busy))
        for _ in range(count):
            self.step_up(address)
            self.step_down(address)

    @rule()
    def quiet(self) -> None:
        """Deliver everything."""
        for _ in range(1000):
            busy = [a for a, wire in self.world.wires.items() if wire.up or wire.down]
            if not busy:
                return
            for address in busy:
                if address in self.world.wires:
                    self.step_up(address)
                    self.step_down(address)
        raise AssertionError("the peers never fall silent")

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """Deliver a message twice."""
        busy = [wire for wire in self.world.wires.values() if wire.up]
        if busy:
            wire = data.draw(st.sampled_from(busy))
            wire.up.appendleft(wire.up[0])

    @rule(data=st.data(), noticed=st.booleans(), kept=st.integers(0, 5))
    def reconnect(self, data: st.DataObject, noticed: bool, kept: int) -> None:
        """Break a connection in the middle of what is under way, and make a new one."""
        peer = data.draw(st.sampled_from(self.peers))
        wire = self.world.wires.get(peer.address)
        if wire is None:
            return
        for _ in range(kept):
            self.step_up(peer.address)
        peer.cut(noticed=noticed)
        peer.connect()

    # -- clients ---------------------------------------------------------------------------

    @rule(
        client=st.integers(0, 1),
        ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=4),
        needs=st.sampled_from([[], [], [], *([n] for n in IDS), ["t1", "t2"], ["t3", "t3"]]),
        delay=st.sampled_from([0.0, 0.0, 0.0, 1.0, 20.0]),
        expires=st.sampled_from([0.0, 0.0, 0.0, 3.0]),
        once=st.booleans(),
        priority=st.integers(0, 1),
        flavor=st.sampled_from([0, 0, 0, 1]),
    )
    def submit(
        self,
        client: int,
        ids: list[str],
        needs: list[str],
        delay: float,
        expires: float,
        once: bool,
        priority: int,
        flavor: int,
    ) -> None:
        sender = self.clients[client]
        if not sender.welcomed:
            return
        tasks = [
            task(
                i,
                f"f{flavor}",
                needs=[n for n in needs if n < i],
                delay=delay,
                expires=expires,
                at_most_once=once,
                priority=priority,
                flavor=flavor,
            )
            for i in ids
        ]
        # an id that is one's own choice may have been stored before
        sender.send(tasks, True)

    @rule(client=st.integers(0, 1), task_id=st.sampled_from(IDS), values=st.booleans())
    def ask(self, client: int, task_id: str, values: bool) -> None:
        self.clients[client].say(p.Get([task_id.encode()], values))

    @rule(client=st.integers(0, 1), task_id=st.sampled_from(IDS))
    def wait(self, client: int, task_id: str) -> None:
        self.clients[client].say(p.Wait(task_id.encode()))

    @rule(client=st.integers(0, 1), ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=3))
    def cancel(self, client: int, ids: list[str]) -> None:
        self.clients[client].cancel(*ids)

    # -- workers ---------------------------------------------------------------------------

    @precondition(lambda self: any(w.held for w in self.workers))
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        busy = [w for w in self.workers if w.held]
        data.draw(st.sampled_from(busy)).begin()

    @precondition(lambda self: any(w.held for w in self.workers))
    @rule(
        data=st.data(),
        kind=st.sampled_from([0, 0, 0, 0, *VERDICTS]),
        status=st.sampled_from([TaskStatus.SUCCEEDED] * 3 + [TaskStatus.FAILED]),
        seconds=st.sampled_from([0.0, 0.0005, 3.0]),
        delay=st.sampled_from([0.0, 2.0]),
    )
    def finish(
        self, data: st.DataObject, kind: int, status: int, seconds: float, delay: float
    ) -> None:
        busy = [w for w in self.workers if w.held]
        worker = data.draw(st.sampled_from(busy))
        worker.begin()
        worker.finish(kind, status, seconds, delay)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), read=st.integers(0, 6), noticed=st.booleans())
    def kill_worker(self, data: st.DataObject, read: int, noticed: bool) -> None:
        """Kill a worker; the pool says so, and its last words may still be under way."""
        worker = data.draw(st.sampled_from(self.workers))
        self.workers.remove(worker)
        for _ in range(read):
            if worker.address in self.world.wires:
                self.step_up(worker.address)
        worker.cut(noticed=noticed)
        self.pool.bury(worker)
        self.new_worker()

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def freeze_worker(self, data: st.DataObject) -> None:
        """Stop a worker until its leases are over; it goes on as a zombie then."""
        worker = data.draw(st.sampled_from(self.workers))
        for _ in range(3):
            self.world.pass_time(4.0)
            self.pool.renew(*(w for w in self.workers if w is not worker))
            while self.pool.address in self.world.wires and (
                self.world.wires[self.pool.address].up
            ):
                self.step_up(self.pool.address)

    # -- hub and time ----------------------------------------------------------------------

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        low, high = self.world.durable, len(self.world.ops)
        self.world.commit(data.draw(st.integers(low, high)))

    @rule()
    def renew(self) -> None:
        self.pool.renew(*self.workers)

    @rule(seconds=st.sampled_from([0.03, 0.3, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """Kill the hub; the peers find the next one, in any order."""
        self.commit(data)
        self.world.crash()
        for peer in data.draw(st.permutations(self.peers)):
            peer.connect()

    # -- what must hold --------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        """What is true at every moment.

        - Whatever the store holds has ended or lives, never both, never neither.
        - Each task has one recorded end.
        - A task is in a queue exactly when nobody holds it and nothing must happen first;
          the counters say as much.
        - What a worker holds is a living task whose current token is the one it is held by.
        - A task is charged with at most two deaths.
        - A task that may run at most once was begun at most once, but for its own verdicts.
        """
        state, tables = self.world.state, self.world.future()
        living = {i for i, row in tables.items() if not row}
        assert living == state.tasks.keys()
        assert all(len(ends) <= 1 for ends in tables.values())
        held = [(w, t, task) for w in state.workers.values() for t, task in w.held.items()]
        assert len({id(task) for _, _, task in held}) == len(held)
        for worker, token, record in held:
            assert (record.token, record.worker) == (token, worker.name)
            assert state.tasks[record.task_id] is record
            assert not record.recovering
        for worker in state.workers.values():
            assert worker.load == sum(task.estimate for task in worker.held.values())
        queued = []
        for queue in state._board.queues.values():
            assert len(queue) == len(list(queue))
            queued += queue
        assert len({id(task) for task in queued}) == len(queued)
        for record in queued:
            assert not record.worker and not record.missing and not record.recovering
            assert record.due <= self.world.now
            assert state.tasks[record.task_id] is record
        for record in state.tasks.values():
            assert len(record.reasons) < MAX_CRASHES
            free = not (record.worker or record.missing or record.recovering or record.due)
            assert free == any(t is record for t in queued)
        assert not state._board.fresh and not state._journal.out

    def teardown(self) -> None:
        """Let everything come to rest: every accepted task ends, and its owner hears of it."""
        for peer in self.peers:
            if peer.address not in self.world.wires or not peer.welcomed:
                peer.connect()
        for _ in range(60):
            self.rest()
            self.holds()
            if not self.unfinished():
                break
        assert not self.world.state.tasks, (self.world.state.tasks, self.world.state.workers)
        for client in self.clients:
            assert not client.unaccepted, (client, client.unaccepted)
            assert not client.wanted, (client, client.wanted)
            assert not client.questions
        assert not any(worker.unrecorded for worker in self.workers)
        assert self.world.state.deadline() > self.world.now
        self.nothing_is_left_behind()

    def unfinished(self) -> bool:
        return bool(
            self.world.state.tasks
            or self.world.state.ending
            or any(c.unaccepted or c.wanted for c in self.clients)
            or any(w.unrecorded for w in self.workers)
        )

    def rest(self) -> None:
        """Let everybody do its work for a while; a link asks whether it is still known."""
        for peer in self.peers:
            peer.say(p.Ping())
        self.pool.renew(*self.workers)
        self.quiet()
        self.world.settle()
        self.quiet()
        for worker in self.workers:
            for _ in range(len(worker.held)):
                worker.begin()
                worker.finish(p.VerdictKind.RESULT, TaskStatus.SUCCEEDED, 0.001, 0.0)
        self.quiet()
        self.world.settle()
        self.quiet()
        self.world.pass_time(1.0)

    def nothing_is_left_behind(self) -> None:
        state = self.world.state
        assert not state.ending
        assert not state._board.unsent
        assert not state._cancelling._asked and not state._cancelling._later
        assert not state._telling._wishes
        assert not state._needs._dependents
        assert all(not worker.held and not worker.load for worker in state.workers.values())


class SlowPool(Slow, Pool):
    """Renews leases, and reports deaths until it is sure to be heard."""

    def __init__(self, host: Host, name: str) -> None:
        super().__init__(host, name)
        self.deaths: list[p.Died] = []

    def bury(self, worker: Worker) -> None:
        slots = []
        if worker.running is not None:
            held = worker.held[worker.running]
            slots = [p.Slot(held.task_id, worker.running, 0.0)]
        died = p.Died(worker.name, "was killed by signal 9", slots, worker.number)
        self.deaths.append(died)
        self.say(died)

    def on_welcome(self) -> None:
        for died in self.deaths:
            self.say(died)

    def on_message(self, message: Any) -> None:
        pass


class Recording(World):
    """Remembers what ran, to judge the promise of at-most-once."""

    def __init__(self) -> None:
        super().__init__()
        #: tokens of at-most-once tasks
        self.once: set[int] = set()
        self.begun: Counter[bytes] = Counter()
        self.allowed: Counter[bytes] = Counter()

    def began(self, worker: Worker, held: Held) -> None:
        if held.lease.token in self.once:
            runs = self.begun[held.task_id] = self.begun[held.task_id] + 1
            assert runs <= 1 + self.allowed[held.task_id], f"{held.task_id!r} ran twice"

    def decided(self, held: Held, kind: int) -> None:
        if kind in (p.VerdictKind.RETRY, p.VerdictKind.REQUEUE):
            self.allowed[held.task_id] += 1

    def perform(self, actions: Iterable[Action]) -> None:
        actions = list(actions)
        self.once.update(a.token for a in actions if isinstance(a, LeaseTask))
        super().perform(actions)

    def future(self) -> dict[bytes, list[p.Outcome]]:
        """Return the ends of all tasks as they will be when all is durable."""
        ends = {
            row.insert.submission.task_id: list(row.outcomes) for row in self.tables.rows.values()
        }
        for op, _ in self.ops[self.durable :]:
            if hasattr(op, "submission"):
                assert op.submission.task_id not in ends
                ends[op.submission.task_id] = []
            elif isinstance(op, FinishTask):
                ends[op.outcome.task_id].append(op.outcome)
        return ends


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=HISTORIES,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
