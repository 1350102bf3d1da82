"""The hub's decisions, pure: stimuli in, actions out; no socket, no clock, no file.

    waiting ──► queued ──► leased (queued | running) ──► ended ──► durable ──► told
       ▲          ▲                │
       └──────────┴── retry, requeue, a worker's death

Every change that must survive is a store action; what may only be said once it is durable waits
in `_deferred` until the host calls `committed`. A task is dispatched while it is being stored:
if the hub dies in between, the client sends it again under the same id.

A lease is fenced by its token, (epoch << 40) + counter. The epoch is durable before the hub
answers anybody, so no token is handed out twice, and a verdict with another token is refused.
"""

from __future__ import annotations

import heapq
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

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
    PutObject,
    Send,
    StoredTask,
    StoreOp,
)
from nbtaskq.hub.dispatch import take_batch
from nbtaskq.hub.records import (
    Client,
    Ending,
    Estimates,
    Pool,
    ReadyQueue,
    TaskRecord,
    Worker,
)
from nbtaskq.message import Buffer, TaskStatus

#: seconds without a pool's word after which a worker's leases end
LEASE = 10.0
#: seconds that tasks of an earlier epoch wait for workers that still hold them
RECOVERY = 5.0
#: seconds that a death notice waits for results that are still in the socket
DRAIN = 0.02
#: seconds without a word after which a client counts as gone
CLIENT_SILENCE = 5.0
#: deaths of its worker that end a task
MAX_CRASHES = 2
#: larger values are sent when asked for
WITHHOLD = 1 << 20
#: results of tasks that are not stored yet, kept for their client's next try
MAX_PARKED = 10_000
#: outcomes in one message
OUTCOMES_PER_MESSAGE = 500


def checksum(submission: p.Submission, buffers: Sequence[Buffer]) -> int:
    """Return what tells two payloads under one id apart."""
    value = zlib.crc32(submission.body, zlib.crc32(submission.code))
    for buffer in buffers:
        value = zlib.crc32(buffer, value)
    return value


def withhold(outcome: p.Outcome, buffers: Sequence[Buffer], limit: int = WITHHOLD) -> bool:
    """Whether a value is too large to be sent unasked."""
    return len(outcome.body) + sum(memoryview(b).nbytes for b in buffers) > limit


def without_value(outcome: p.Outcome) -> p.Outcome:
    """Return the outcome as it is sent when its value is withheld."""
    return p.Outcome(
        outcome.task_id,
        outcome.status,
        started=outcome.started,
        seconds=outcome.seconds,
        worker=outcome.worker,
        attempts=outcome.attempts,
        error=outcome.error,
        withheld=True,
    )


class HubState:
    """Tasks, leases and peers of one hub.

    Parameters
    ----------
    epoch : int
        Durable number of this start of the hub.
    next_seq : int
        First row number that is free in the store.
    now : float
        Monotonic seconds, as in every other call.
    """

    def __init__(self, epoch: int, next_seq: int = 1, now: float = 0.0) -> None:
        self.epoch = epoch
        self.now = now
        self.tasks: dict[bytes, TaskRecord] = {}
        self.ending: dict[bytes, Ending] = {}
        self.clients: dict[bytes, Client] = {}
        self.workers: dict[str, Worker] = {}
        self.pools: dict[bytes, Pool] = {}
        self.queues: dict[str, ReadyQueue] = {}
        #: number of the last store action
        self.written = 0
        self._next_seq = next_seq
        self._next_token = (epoch << 40) + 1
        self._peers: dict[bytes, Client | Worker | Pool] = {}
        self._dependents: dict[bytes, list[TaskRecord]] = {}
        self._watchers: dict[bytes, set[bytes]] = {}
        self._eager: dict[bytes, set[bytes]] = {}
        self._cancels: dict[int, tuple[bytes, int]] = {}
        self._answers: dict[tuple[bytes, int], tuple[int, dict[str, str]]] = {}
        #: leases of an earlier epoch, held by a worker for tasks that are not stored here
        self._claims: dict[bytes, tuple[str, int]] = {}
        self._parked: dict[bytes, tuple[p.Outcome, Sequence[Buffer]]] = {}
        self._timers: list[tuple[float, int, TaskRecord, bool]] = []
        self._recovery_until = -math.inf
        self._recovering: list[TaskRecord] = []
        self._asked_environments: set[str] = set()
        self._deferred: deque[tuple[int, Callable[..., None], tuple[Any, ...]]] = deque()
        self._estimates = Estimates()
        self._last_busy = now
        self._out: list[Action] = []
        self._handlers: dict[type, Callable[..., None]] = {
            p.Put: self._put,
            p.Submit: self._submit,
            p.Wait: self._wait,
            p.Get: self._get,
            p.Cancel: self._cancel,
            p.Ping: self._ping,
            p.Settle: self._settle,
            p.Started: self._started,
            p.Output: self._output,
            p.Recalled: self._recalled,
            p.Renew: self._renew,
            p.Died: self._died,
        }

    # -- what the host calls ---------------------------------------------------------------

    def load(self, tasks: Iterable[StoredTask]) -> None:
        """Take over the unended tasks of an earlier epoch; call once, before anything else.

        They are not dispatched before their workers had a chance to say that they hold them.
        """
        for stored in tasks:
            task = TaskRecord(
                seq=stored.seq,
                task_id=stored.task_id,
                name=stored.name,
                owner=stored.owner,
                environment=stored.environment,
                checksum=stored.checksum,
                flavor=stored.flavor,
                priority=stored.priority,
                at_most_once=stored.at_most_once,
                attempts=stored.attempts,
                due=self.now + stored.due if stored.due > 0 else 0.0,
                expires_at=self.now + stored.expires if stored.expires else 0.0,
                token=-1 if stored.leased else 0,
                reasons=stored.reasons,
                recovering=True,
            )
            self.tasks[task.task_id] = task
            self._recovering.append(task)
            task.missing = len(stored.needs)
            for need in stored.needs:
                self._dependents.setdefault(need, []).append(task)
        self._recovery_until = self.now + RECOVERY

    def handle(
        self, peer: bytes, message: p.Inbound, buffers: Sequence[Buffer], now: float
    ) -> list[Action]:
        """Take in what a peer sent; `buffers` are the frames behind the message.

        Raises
        ------
        ValueError
            The message announces buffers that are not there; nothing was changed.
        """
        self.now = now
        if isinstance(message, p.Hello):
            self._hello(peer, message)
        else:
            known = self._peers.get(peer)
            handler = self._handlers.get(type(message))
            if known is None:
                self._send(peer, p.Refused("unknown_peer", "say hello first"))
            elif handler is not None:
                if isinstance(known, Client):
                    known.seen = now
                handler(known, message, buffers)
        return self._done()

    def submit(
        self,
        peer: bytes,
        message: p.Submit,
        buffers: Sequence[Buffer],
        found: Mapping[bytes, Found],
        now: float,
    ) -> list[Action]:
        """Go on with a `Check` when the store has answered."""
        self.now = now
        client = self._peers.get(peer)
        if isinstance(client, Client):
            self._store_batch(client, message, buffers, found)
        return self._done()

    def committed(self, number: int, now: float) -> list[Action]:
        """Go on with what waited for the store's operations up to `number`."""
        self.now = now
        told: dict[bytes, list[Ending]] = {}
        recorded: dict[bytes, int] = {}
        while self._deferred and self._deferred[0][0] <= number:
            _, method, args = self._deferred.popleft()
            if method == self._durable:
                self._durable(args[0], told)
            elif method == self._recorded:
                recorded[args[0]] = args[1]
            else:
                method(*args)
        for session, endings in told.items():
            self._tell(session, endings)
        for peer, last in recorded.items():
            self._send(peer, p.Recorded(last))
        return self._done()

    def tick(self, now: float) -> list[Action]:
        """Do what is due."""
        self.now = now
        while self._timers and self._timers[0][0] <= now:
            _, _, task, expires = heapq.heappop(self._timers)
            if expires:
                self._expire(task)
            elif task.status == TaskStatus.WAITING and task.due and task.due <= now:
                task.due = 0.0
                self._ready(task)
        for worker in list(self.workers.values()):
            if worker.died is not None and now >= worker.died_at + DRAIN:
                self._bury(worker, worker.died)
            elif now >= worker.lease_until:
                self._bury(worker, p.Died(worker.name, "stopped: no sign of life", [], 0))
        if self._recovering and self._recovery_ends():
            self._recover()
        return self._done()

    def deadline(self) -> float:
        """Return the time of the next `tick` that has something to do."""
        times = [w.died_at + DRAIN if w.died else w.lease_until for w in self.workers.values()]
        if self._timers:
            times.append(self._timers[0][0])
        if self._recovering:
            times.append(self._recovery_until)
        return min(times, default=math.inf)

    def lost(self, peer: bytes, now: float) -> list[Action]:
        """Take in that nothing can be sent to this peer any more.

        Its leases stay: only its pool's word, or the lease's end, takes them.
        """
        self.now = now
        known = self._peers.pop(peer, None)
        if known is not None and known.peer == peer:
            known.peer = None
        return self._done()

    def idle_seconds(self, now: float) -> float:
        """Return for how long there was no client and no unended task."""
        busy = self.tasks or any(
            c.peer is not None and now - c.seen < CLIENT_SILENCE for c in self.clients.values()
        )
        if busy:
            self._last_busy = now
        return now - self._last_busy

    def notebook_of(self, peer: bytes) -> str:
        """Return the notebook that a client named at hello."""
        known = self._peers.get(peer)
        return known.notebook if isinstance(known, Client) else ""

    def pool_peers(self) -> list[bytes]:
        """Return where orders go."""
        return [pool.peer for pool in self.pools.values() if pool.peer is not None]

    def holder(self, token: int) -> str | None:
        """Return the worker that holds a lease."""
        return next((w.name for w in self.workers.values() if token in w.held), None)

    def statistics(self) -> dict[str, Any]:
        """Return counts for the status display, plain data."""
        tasks = {"waiting": 0, "queued": 0, "running": 0}
        for task in self.tasks.values():
            tasks[str(TaskStatus(task.status))] += 1
        facts: dict[str, Any] = {}
        for pool in self.pools.values():
            facts.update(pool.facts)
        return {
            "epoch": self.epoch,
            "tasks": tasks,
            "workers": [
                {
                    "name": w.name,
                    "connected": w.peer is not None,
                    "holds": len(w.held),
                    "task": next((t.name for t in w.held.values()), None),
                }
                for w in self.workers.values()
            ],
            "clients": sum(c.peer is not None for c in self.clients.values()),
            "pools": sum(x.peer is not None for x in self.pools.values()),
            "facts": facts,
        }

    # -- small tools -----------------------------------------------------------------------

    def _done(self) -> list[Action]:
        self._dispatch()
        out, self._out = self._out, []
        return out

    def _send(
        self, peer: bytes | None, message: p.Outbound, buffers: Sequence[Buffer] = ()
    ) -> None:
        if peer is not None:
            self._out.append(Send(peer, message, buffers))

    def _store(self, operation: StoreOp) -> None:
        self.written += 1
        self._out.append(operation)

    def _defer(self, method: Callable[..., None], *args: Any) -> None:
        """Call a method once everything stored so far is durable."""
        self._deferred.append((self.written, method, args))

    def _peer_of(self, session: bytes) -> bytes | None:
        client = self.clients.get(session)
        return client.peer if client is not None else None

    def _audience(self, task: TaskRecord) -> list[bytes]:
        """Return the sessions that hear of a task."""
        watchers = self._watchers.get(task.task_id)
        return [task.owner, *(watchers - {task.owner})] if watchers else [task.owner]

    # -- hello -----------------------------------------------------------------------------

    def _hello(self, peer: bytes, hello: p.Hello) -> None:
        if hello.version != p.VERSION:
            text = f"this hub speaks protocol {p.VERSION}, you speak {hello.version}"
            self._send(peer, p.Refused("version", text))
            return
        try:
            role = p.Role(hello.role)
        except ValueError:
            self._send(peer, p.Refused("role", f"no such role: {hello.role!r}"))
            return
        self._send(peer, p.Welcome(p.VERSION, self.epoch, 0))
        known: Client | Worker | Pool
        if role is p.Role.CLIENT:
            known = self._client_hello(hello)
        elif role is p.Role.POOL:
            known = self.pools.setdefault(hello.session, Pool(hello.session))
            self._asked_environments.clear()
        else:
            known = self._worker_hello(hello)
        if known.peer is not None:
            self._peers.pop(known.peer, None)
        known.peer = peer
        self._peers[peer] = known
        if role is p.Role.POOL:
            self._ask_environments()

    def _client_hello(self, hello: p.Hello) -> Client:
        client = self.clients.setdefault(hello.session, Client(hello.session, hello.environment))
        client.environment = hello.environment
        client.notebook = hello.notebook
        client.seen = self.now
        return client

    def _worker_hello(self, hello: p.Hello) -> Worker:
        worker = self.workers.get(hello.name)
        if worker is None:
            worker = Worker(hello.name, hello.environment.key, hello.concurrency, held={})
            self.workers[hello.name] = worker
        worker.lease_until = self.now + LEASE
        holding = {token: task_id for task_id, token in hello.holding}
        undelivered = [token for token in worker.held if token not in holding]
        for token in reversed(undelivered):
            self._unlease(worker, token, front=True)
        stale = []
        for token, task_id in holding.items():
            if token not in worker.held and not self._claim(worker, task_id, token):
                stale.append(token)
        if stale:
            self._defer_recall(hello.name, stale)
        return worker

    def _defer_recall(self, name: str, tokens: list[int]) -> None:
        """Ask a worker to drop leases that are not valid any more, once it is known again."""

        def recall() -> None:
            worker = self.workers.get(name)
            if worker is not None:
                self._send(worker.peer, p.Recall(tokens))

        self._deferred.append((0, recall, ()))

    def _claim(self, worker: Worker, task_id: bytes, token: int) -> bool:
        """Give a lease of an earlier epoch back to the worker that still holds it."""
        task = self.tasks.get(task_id)
        if task is None:
            if task_id not in self.ending and token >> 40 < self.epoch:
                self._claims[task_id] = worker.name, token
            return task_id not in self.ending
        if task.worker and task.token < token < self.epoch << 40:
            self._unhold(self.workers[task.worker], task)
        elif task.worker or not task.recovering:
            return False
        task.recovering = False
        self._hold(worker, task, token)
        return True

    # -- submitting ------------------------------------------------------------------------

    def _put(self, _: Client, message: p.Put, buffers: Sequence[Buffer]) -> None:
        (body,) = p.take(buffers, 0, 1)
        self._store(PutObject(message.digest, body, tuple(message.refs)))

    def _submit(self, client: Client, message: p.Submit, buffers: Sequence[Buffer]) -> None:
        p.take(buffers, 0, sum(s.buffers for s in message.tasks))
        doubtful = [
            key
            for s in message.tasks
            for key in ([s.task_id, *s.needs] if message.again else s.needs)
            if key not in self.tasks and key not in self.ending
        ]
        here = {s.task_id for s in message.tasks}
        doubtful = [key for key in doubtful if message.again or key not in here]
        if doubtful and client.peer is not None:
            self._out.append(Check(client.peer, message, buffers, doubtful))
        else:
            self._store_batch(client, message, buffers, {})

    def _store_batch(
        self,
        client: Client,
        message: p.Submit,
        buffers: Sequence[Buffer],
        found: Mapping[bytes, Found],
    ) -> None:
        problems: list[tuple[bytes, str, str]] = []
        position = 0
        for submission in message.tasks:
            own = p.take(buffers, position, submission.buffers)
            position += submission.buffers
            problem = self._store_one(client, submission, own, found)
            if problem is not None:
                problems.append((submission.task_id, *problem))
        self._defer(self._accept, client.session, message.batch, problems)
        self._ask_environments()

    def _accept(self, session: bytes, batch: int, problems: list[tuple[bytes, str, str]]) -> None:
        self._send(self._peer_of(session), p.Accepted(batch, problems))

    def _store_one(
        self,
        client: Client,
        submission: p.Submission,
        buffers: Sequence[Buffer],
        found: Mapping[bytes, Found],
    ) -> tuple[str, str] | None:
        """Store a task; return code and sentence when it cannot be."""
        task_id = submission.task_id
        check = checksum(submission, buffers)
        known = self._known_checksum(task_id, found)
        if known is not None:
            self._watch(task_id, client.session)
            if known == check:
                return None
            return "conflict", "a task of this id exists with other contents"
        task = TaskRecord(
            seq=self._next_seq,
            task_id=task_id,
            name=submission.name,
            owner=client.session,
            environment=client.environment.key,
            checksum=check,
            flavor=submission.flavor,
            priority=submission.priority,
            at_most_once=submission.at_most_once,
            due=self.now + submission.delay if submission.delay > 0 else 0.0,
            expires_at=self.now + submission.expires if submission.expires > 0 else 0.0,
        )
        failed = self._resolve_needs(task, submission, found)
        if failed == "unknown":
            return "unknown_dependency", "a task that it depends on is not known"
        self._next_seq += 1
        self.tasks[task_id] = task
        self._store(
            InsertTask(
                task.seq,
                client.session,
                client.notebook,
                task.environment,
                submission,
                buffers,
                check,
            )
        )
        if failed is not None:
            self._finish(task, TaskStatus.FAILED, failed)
        elif not self._merge(task):
            self._enter(task)
        return None

    def _known_checksum(self, task_id: bytes, found: Mapping[bytes, Found]) -> int | None:
        if task_id in self.tasks:
            return self.tasks[task_id].checksum
        if task_id in self.ending:
            return self.ending[task_id].task.checksum
        return found[task_id].checksum if task_id in found else None

    def _watch(self, task_id: bytes, session: bytes) -> None:
        if task_id in self.tasks or task_id in self.ending:
            self._watchers.setdefault(task_id, set()).add(session)

    def _resolve_needs(
        self, task: TaskRecord, submission: p.Submission, found: Mapping[bytes, Found]
    ) -> str | None:
        """Note what a task waits for; return why it cannot run, or "unknown"."""
        seqs = []
        waiting = []
        failed = None
        for need in submission.needs:
            if need in self.tasks:
                seqs.append(self.tasks[need].seq)
                waiting.append(need)
            elif need in self.ending:
                seqs.append(self.ending[need].task.seq)
                waiting.append(need)
            elif need in found:
                seqs.append(found[need].seq)
                if found[need].status != TaskStatus.SUCCEEDED:
                    failed = f"{need.decode(errors='replace')} did not succeed"
            else:
                return "unknown"
        if failed is None:
            for need in waiting:
                self._dependents.setdefault(need, []).append(task)
            task.missing = len(waiting)
        task.needs = tuple(seqs)
        return failed

    def _merge(self, task: TaskRecord) -> bool:
        """Take a result or a lease that is older than the task's storing; return whether."""
        parked = self._parked.pop(task.task_id, None)
        if parked is not None:
            self._end(task, *parked)
            return True
        name, token = self._claims.pop(task.task_id, ("", 0))
        worker = self.workers.get(name)
        if worker is None:
            return False
        self._hold(worker, task, token)
        return True

    def _enter(self, task: TaskRecord) -> None:
        """Let a task wait, or be ready."""
        if task.expires_at:
            heapq.heappush(self._timers, (task.expires_at, task.seq, task, True))
        if task.due > self.now:
            task.status = TaskStatus.WAITING
            heapq.heappush(self._timers, (task.due, task.seq, task, False))
        else:
            task.due = 0.0
            self._ready(task)

    def _ready(self, task: TaskRecord, *, front: bool = False) -> None:
        if task.missing or task.due > self.now:
            task.status = TaskStatus.WAITING
            return
        queue = self.queues.get(task.environment)
        if queue is None:
            queue = self.queues[task.environment] = ReadyQueue()
        queue.push(task, front=front)

    def _expire(self, task: TaskRecord) -> None:
        if not task.worker and task.task_id in self.tasks:
            self._finish(task, TaskStatus.EXPIRED, "its `expires` had passed before it started")

    def _ask_environments(self) -> None:
        """Ask the pools for workers of environments that have tasks and no worker."""
        have = {w.environment for w in self.workers.values()}
        for client in self.clients.values():
            key = client.environment.key
            if key in have or key in self._asked_environments or not self.queues.get(key):
                continue
            body = {"prefix": client.environment.prefix, "minor": client.environment.minor}
            for peer in self.pool_peers():
                body["executable"] = client.environment.executable
                self._send(peer, p.Order(0, "environment", body))
                self._asked_environments.add(key)

    # -- leases ----------------------------------------------------------------------------

    def _dispatch(self) -> None:
        for environment, queue in self.queues.items():
            if not queue:
                continue
            workers = [w for w in self.workers.values() if w.environment == environment]
            while queue:
                taken = take_batch(queue, workers, self._estimates)
                if taken is None:
                    break
                self._lease(*taken)

    def _lease(self, worker: Worker, batch: list[TaskRecord]) -> None:
        leases = []
        durable_first = False
        for task in batch:
            self._hold(worker, task, self._next_token)
            self._next_token += 1
            leases.append(Lease(task.seq, task.token, task.attempts + 1, task.needs))
            if task.at_most_once:
                durable_first = True
                self._store(LeaseTask(task.seq, task.token))
        assert worker.peer is not None
        if durable_first:
            self._defer(self._deliver, worker.name, leases)
        else:
            self._out.append(Deliver(worker.peer, leases))

    def _deliver(self, name: str, leases: list[Lease]) -> None:
        """Hand out leases that had to be durable first."""
        worker = self.workers.get(name)
        if worker is None or worker.peer is None:
            return
        valid = [lease for lease in leases if lease.token in worker.held]
        self._out.append(Deliver(worker.peer, valid))

    def _hold(self, worker: Worker, task: TaskRecord, token: int) -> None:
        task.token = token
        task.worker = worker.name
        task.status = TaskStatus.QUEUED
        worker.held[token] = task
        worker.load += task.estimate

    def _unhold(self, worker: Worker, task: TaskRecord) -> None:
        worker.held.pop(task.token, None)
        worker.load = worker.load - task.estimate if worker.held else 0.0
        task.status = TaskStatus.WAITING
        task.worker = ""
        task.token = 0

    def _unlease(self, worker: Worker, token: int, *, front: bool) -> None:
        """Take a lease back, uncharged."""
        task = worker.held[token]
        self._unhold(worker, task)
        if task.at_most_once:
            self._store(ChangeTask(task.seq, task.attempts))
        self._ready(task, front=front)

    def _started(self, worker: Worker, message: p.Started, _: Sequence[Buffer]) -> None:
        changes: dict[bytes, list[tuple[bytes, int, str]]] = {}
        for task_id, token, _at in message.running:
            task = worker.held.get(token)
            if task is None or task.status == TaskStatus.RUNNING:
                continue
            task.status = TaskStatus.RUNNING
            for session in self._audience(task):
                changes.setdefault(session, []).append((task_id, task.status, worker.name))
        for session, rows in changes.items():
            self._send(self._peer_of(session), p.Progressed(rows))

    def _output(self, worker: Worker, message: p.Output, _: Sequence[Buffer]) -> None:
        notes: dict[bytes, list[p.Note]] = {}
        for note in message.notes:
            task = worker.held.get(note.token)
            if task is None:
                continue
            self._store(AppendOutput(task.seq, note))
            for session in self._audience(task):
                notes.setdefault(session, []).append(note)
        for session, own in notes.items():
            self._send(self._peer_of(session), p.Output(own))

    # -- verdicts --------------------------------------------------------------------------

    def _settle(self, worker: Worker, message: p.Settle, buffers: Sequence[Buffer]) -> None:
        p.take(buffers, 0, sum(v.outcome.buffers for v in message.verdicts))
        worker.settled = max(worker.settled, message.number)
        position = 0
        for verdict in message.verdicts:
            own = p.take(buffers, position, verdict.outcome.buffers)
            position += verdict.outcome.buffers
            task = worker.held.get(verdict.token)
            if task is not None:
                self._decide(worker, task, verdict, own)
            else:
                self._park(worker, verdict, own)
        if worker.peer is not None:
            self._defer(self._recorded, worker.peer, message.number)
        if worker.died is not None and worker.settled >= worker.died.settled:
            self._bury(worker, worker.died)

    def _recorded(self, peer: bytes, number: int) -> None:
        """Stand for `Recorded` in `_deferred`; `committed` sends one for each worker."""

    def _decide(
        self, worker: Worker, task: TaskRecord, verdict: p.Verdict, buffers: Sequence[Buffer]
    ) -> None:
        self._answer_cancel(verdict.token, task.task_id, "too_late")
        self._unhold(worker, task)
        if verdict.kind in (p.VerdictKind.RESULT, p.VerdictKind.REJECT):
            self._estimates.learn(task.name, verdict.outcome.seconds)
            self._end(task, self._signed(verdict.outcome, worker, task), buffers)
            return
        task.attempts += verdict.kind == p.VerdictKind.RETRY
        task.due = self.now + verdict.delay if verdict.delay > 0 else 0.0
        labels = verdict.labels or None
        self._store(ChangeTask(task.seq, task.attempts, max(0.0, verdict.delay), labels))
        self._enter(task)

    def _signed(self, outcome: p.Outcome, worker: Worker, task: TaskRecord) -> p.Outcome:
        """Return the outcome with what the hub knows better than the worker."""
        status = TaskStatus(outcome.status)
        return p.Outcome(
            task.task_id,
            status,
            outcome.body,
            outcome.buffers,
            outcome.started,
            outcome.seconds,
            worker.name,
            task.attempts + 1,
            outcome.error,
        )

    def _park(self, worker: Worker, verdict: p.Verdict, buffers: Sequence[Buffer]) -> None:
        """Keep a result of a task that this hub has not stored; drop one with an old token."""
        task_id = verdict.outcome.task_id
        name, token = self._claims.get(task_id, ("", 0))
        if name == worker.name and token == verdict.token:
            del self._claims[task_id]
            if verdict.kind == p.VerdictKind.RESULT and len(self._parked) < MAX_PARKED:
                self._parked[task_id] = verdict.outcome, buffers

    def _finish(self, task: TaskRecord, status: TaskStatus, error: str) -> None:
        """End a task by the hub's own decision."""
        outcome = p.Outcome(
            task.task_id, status, attempts=task.attempts, worker=task.worker, error=error
        )
        self._end(task, outcome, ())

    def _end(self, task: TaskRecord, outcome: p.Outcome, buffers: Sequence[Buffer]) -> None:
        """Let a task end: it is told once that is durable, or at once to who blocks on it."""
        if task.worker:
            self._unhold(self.workers[task.worker], task)
        elif task.status == TaskStatus.QUEUED:
            self.queues[task.environment].forget(task)
        task.status = outcome.status
        task.recovering = False
        del self.tasks[task.task_id]
        ending = Ending(task, outcome, buffers)
        self.ending[task.task_id] = ending
        self._store(FinishTask(task.seq, outcome, buffers))
        self._defer(self._durable, ending)
        for session in self._eager.pop(task.task_id, ()):
            self._tell_early(session, ending)

    # -- telling ---------------------------------------------------------------------------

    def _durable(self, ending: Ending, told: dict[bytes, list[Ending]]) -> None:
        """Go on with an end that is stored: tell it, and let dependents go."""
        task = ending.task
        del self.ending[task.task_id]
        for session in {*self._audience(task), *self._eager.pop(task.task_id, ())}:
            if session not in ending.told:
                told.setdefault(session, []).append(ending)
        self._watchers.pop(task.task_id, None)
        for dependent in self._dependents.pop(task.task_id, ()):
            if dependent.task_id not in self.tasks:
                continue
            if ending.outcome.status == TaskStatus.SUCCEEDED:
                self._met(dependent, task.seq)
            else:
                why = ending.outcome.error or str(TaskStatus(ending.outcome.status))
                name = f"{task.name} ({task.task_id.decode(errors='replace')})"
                self._finish(dependent, TaskStatus.FAILED, f"{name} did not succeed: {why}")

    def _met(self, dependent: TaskRecord, seq: int) -> None:
        dependent.missing -= 1
        if seq not in dependent.needs:
            dependent.needs = (*dependent.needs, seq)
        if not dependent.missing and not dependent.recovering:
            self._ready(dependent)

    def _tell(self, session: bytes, endings: list[Ending]) -> None:
        peer = self._peer_of(session)
        for start in range(0, len(endings), OUTCOMES_PER_MESSAGE):
            outcomes: list[p.Outcome] = []
            frames: list[Buffer] = []
            for ending in endings[start : start + OUTCOMES_PER_MESSAGE]:
                if withhold(ending.outcome, ending.buffers):
                    outcomes.append(without_value(ending.outcome))
                else:
                    outcomes.append(ending.outcome)
                    frames.extend(ending.buffers)
            self._send(peer, p.Finished(outcomes), frames)

    def _tell_early(self, session: bytes, ending: Ending) -> None:
        """Give a value to who blocks on it, before it is durable."""
        peer = self._peer_of(session)
        if peer is not None:
            ending.told = (*ending.told, session)
            self._send(peer, p.Finished([ending.outcome]), ending.buffers)

    def _wait(self, client: Client, message: p.Wait, _: Sequence[Buffer]) -> None:
        task_id = message.task_id
        if task_id in self.ending:
            self._tell_early(client.session, self.ending[task_id])
        elif task_id in self.tasks:
            self._eager.setdefault(task_id, set()).add(client.session)
        elif client.peer is not None:
            self._out.append(Lookup(client.peer, [task_id], values=True))

    def _get(self, client: Client, message: p.Get, _: Sequence[Buffer]) -> None:
        changes: list[tuple[bytes, int, str]] = []
        ended: list[bytes] = []
        for task_id in message.task_ids:
            self._watch(task_id, client.session)
            task = self.tasks.get(task_id)
            if task is not None:
                changes.append((task_id, task.status, task.worker))
                if message.values:
                    self._eager.setdefault(task_id, set()).add(client.session)
            elif task_id not in self.ending:
                ended.append(task_id)
        if changes:
            self._send(client.peer, p.Progressed(changes))
        if ended and client.peer is not None:
            self._out.append(Lookup(client.peer, ended, message.values))

    def _ping(self, known: Client | Worker | Pool, _: p.Ping, __: Sequence[Buffer]) -> None:
        idle = self.idle_seconds(self.now) if isinstance(known, Pool) else 0.0
        self._send(known.peer, p.Pong(idle))

    # -- cancelling ------------------------------------------------------------------------

    def _cancel(self, client: Client, message: p.Cancel, _: Sequence[Buffer]) -> None:
        """End what has not begun; what a worker holds needs the worker's word."""
        words: dict[bytes, str] = {}
        recalls: dict[str, list[int]] = {}
        for task_id in message.task_ids:
            task = self.tasks.get(task_id)
            if task is None:
                words[task_id] = "too_late"
            elif not task.worker:
                self._finish(task, TaskStatus.CANCELLED, "cancelled before it started")
                words[task_id] = "cancelled"
            elif task.status == TaskStatus.RUNNING or task.token in self._cancels:
                words[task_id] = "too_late"
            else:
                recalls.setdefault(task.worker, []).append(task.token)
                self._cancels[task.token] = client.session, message.request
        open_ = sum(map(len, recalls.values()))
        self._answers[client.session, message.request] = open_, {
            k.decode(errors="replace"): v for k, v in words.items()
        }
        for name, tokens in recalls.items():
            self._send(self.workers[name].peer, p.Recall(tokens))
        if not open_:
            self._answer(client.session, message.request)

    def _recalled(self, worker: Worker, message: p.Recalled, _: Sequence[Buffer]) -> None:
        for token in message.tokens:
            task = worker.held.get(token)
            if task is None:
                continue
            if token in self._cancels:
                self._answer_cancel(token, task.task_id, "cancelled")
                self._unhold(worker, task)
                self._finish(task, TaskStatus.CANCELLED, "cancelled before it started")
            else:
                self._unlease(worker, token, front=True)
        for token in message.kept:
            task = worker.held.get(token)
            if task is not None:
                self._answer_cancel(token, task.task_id, "too_late")

    def _answer_cancel(self, token: int, task_id: bytes, word: str) -> None:
        """Note the outcome of one recall; answer when the last is known."""
        asked = self._cancels.pop(token, None)
        if asked is None:
            return
        open_, words = self._answers[asked]
        words[task_id.decode(errors="replace")] = word
        self._answers[asked] = open_ - 1, words
        if open_ == 1:
            self._answer(*asked)

    def _answer(self, session: bytes, request: int) -> None:
        _, words = self._answers.pop((session, request))
        self._send(self._peer_of(session), p.Answer(request, ok=True, body=words))

    # -- the life and death of workers -----------------------------------------------------

    def _renew(self, pool: Pool, message: p.Renew, _: Sequence[Buffer]) -> None:
        pool.workers = message.workers
        pool.facts = message.facts
        for name in message.workers:
            worker = self.workers.get(name)
            if worker is not None:
                worker.lease_until = self.now + LEASE

    def _died(self, _: Pool, message: p.Died, __: Sequence[Buffer]) -> None:
        worker = self.workers.get(message.worker)
        if worker is None:
            self._charge([(slot, self.tasks.get(slot.task_id)) for slot in message.slots], message)
        elif worker.settled >= message.settled:
            self._bury(worker, message)
        else:
            worker.died = message
            worker.died_at = self.now

    def _bury(self, worker: Worker, died: p.Died) -> None:
        """Take all leases of a worker that is gone; charge what it was running."""
        del self.workers[worker.name]
        if worker.peer is not None:
            self._peers.pop(worker.peer, None)
        running = {slot.token: slot for slot in died.slots}
        begun = [(slot, worker.held.get(token)) for token, slot in running.items()]
        rest = [t for token, t in worker.held.items() if token not in running]
        tokens = {t.task_id: t.token for t in worker.held.values()}
        worker.held = {}
        for task_id, token in tokens.items():
            self._answer_cancel(token, task_id, "too_late")
        for task in reversed(rest):
            self._again(task)
        self._charge(begun, died)

    def _again(self, task: TaskRecord) -> None:
        """Queue a task whose worker is gone, uncharged."""
        task.worker = ""
        task.token = 0
        if task.at_most_once:
            self._store(ChangeTask(task.seq, task.attempts))
        self._ready(task, front=True)

    def _charge(self, begun: list[tuple[p.Slot, TaskRecord | None]], died: p.Died) -> None:
        """Decide about tasks that were running when their worker died."""
        running = [(slot, task) for slot, task in begun if task is not None]
        for slot, task in reversed(running):
            if task.task_id not in self.tasks or (task.worker and task.worker != died.worker):
                continue
            if task.token not in (0, -1, slot.token):
                continue
            task.worker = ""
            task.token = 0
            task.recovering = False
            if task.at_most_once:
                why = f"its worker {died.worker} {died.reason} while it ran"
                self._finish(task, TaskStatus.UNCERTAIN, why)
            elif died.reason.startswith("stopped"):
                self._again(task)
            elif len(running) > 1:
                task.alone = True
                self._again(task)
            else:
                self._crash(task, died)

    def _crash(self, task: TaskRecord, died: p.Died) -> None:
        tail = f"; last output:\n{died.tail}" if died.tail else ""
        task.reasons = (*task.reasons, f"worker {died.worker} {died.reason}{tail}")
        task.attempts += 1
        if len(task.reasons) >= MAX_CRASHES:
            task.attempts -= 1
            self._finish(task, TaskStatus.CRASHED, "\n".join(task.reasons))
            return
        self._store(ChangeTask(task.seq, task.attempts, reasons=task.reasons))
        self._ready(task, front=True)

    def _recovery_ends(self) -> bool:
        """Whether every worker that may hold a task of the last epoch has said hello."""
        if self.now >= self._recovery_until:
            return True
        if not self.pools or any(pool.workers is None for pool in self.pools.values()):
            return False
        expected = {name for pool in self.pools.values() for name in pool.workers or ()}
        return expected <= self.workers.keys()

    def _recover(self) -> None:
        """Queue what no worker holds, uncharged."""
        waiting, self._recovering = self._recovering, []
        self._claims.clear()
        for task in waiting:
            if not task.recovering:
                continue
            task.recovering = False
            if task.token == -1:
                self._finish(task, TaskStatus.UNCERTAIN, "the hub died while it may have run")
            elif task.task_id in self.tasks:
                self._enter(task)
