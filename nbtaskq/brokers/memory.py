"""A broker inside this process: the hub's own state, without sockets and without a store.

For tests and for trying things out: tasks run on a background thread of this process, by the
same receiver and under the same rules as in worker kernels, and end with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import Any, Self

from nbtaskq.abc import Delivery, Envelope, Middleware, Serializer, Settlement, Watcher
from nbtaskq.brokers.base import BaseBroker, submission_of
from nbtaskq.brokers.memory_host import MemoryHost
from nbtaskq.brokers.watchers import Watchers
from nbtaskq.client.portal import Portal
from nbtaskq.errors import NbTaskQError, SendError, TaskIdConflict
from nbtaskq.execution import Receiver
from nbtaskq.hub import protocol as p
from nbtaskq.message import Buffer, Event

_CLIENT = b"client"
_WORKER = b"worker"
_POOL = b"pool"
_ENVIRONMENT = p.Environment("here", "")


class InMemoryBroker(BaseBroker):
    """Runs tasks on a thread of this process.

    Parameters
    ----------
    serializer : Serializer or None
        Arguments and results travel through it, as they would between processes.
    max_async_tasks : int
        Coroutines that run at the same time.
    """

    def __init__(self, serializer: Serializer | None = None, *, max_async_tasks: int = 100) -> None:
        self._receiver: Receiver | None = None
        super().__init__(serializer)
        self._max_async_tasks = max_async_tasks
        self._portal = Portal("nbtaskq memory")
        self._starting = threading.Lock()
        self._receiving: Future[None] | None = None
        self._failure: BaseException | None = None
        self._reset()

    def _reset(self) -> None:
        self._host = MemoryHost(self._take, self._deliver)
        self._watchers = Watchers()
        self._inbox: deque[Delivery] = deque()
        self._arrived: asyncio.Event | None = None
        self._answers: dict[int, Any] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._settles = 0
        self._batches = 0
        self._open_batches: dict[int, Sequence[tuple[bytes, Watcher]]] = {}
        self._stopping = False

    def with_middlewares(self, *middlewares: Middleware) -> Self:
        """Add middlewares; a receiver that runs already uses them from the next delivery on."""
        super().with_middlewares(*middlewares)
        if self._receiver is not None:
            self._receiver.use_middlewares(self.middlewares)
        return self

    # -- lifecycle -------------------------------------------------------------------------

    async def startup(self) -> None:
        """Start the receiver; done by the first `submit` too."""
        self._start()
        await self.happen(Event.CLIENT_STARTUP)
        await self.start_middlewares()

    def _start(self) -> None:
        with self._starting:
            if self._receiving is not None:
                return
            for peer, role, name in (
                (_CLIENT, p.Role.CLIENT, ""),
                (_POOL, p.Role.POOL, ""),
                (_WORKER, p.Role.WORKER, "memory"),
            ):
                hello = p.Hello(
                    p.VERSION,
                    role,
                    peer,
                    _ENVIRONMENT,
                    0,
                    name,
                    concurrency=self._max_async_tasks,
                )
                self._host.feed(peer, hello)
            self._receiving = self._portal.start(self._receive())
            self._receiving.add_done_callback(self._ended)

    def _ended(self, receiving: Future[None]) -> None:
        """Remember why nothing is received any more, for those who wait."""
        if not receiving.cancelled():
            self._failure = receiving.exception()

    def trouble(self) -> BaseException | None:
        """Return what ended the receiver, or `None`."""
        return self._failure

    async def _receive(self) -> None:
        self._arrived = asyncio.Event()
        self._stirred = asyncio.Event()
        self._arrived.set()
        await self.happen(Event.WORKER_STARTUP)
        receiver = self._receiver = Receiver(
            self, self.serializer, self.middlewares, max_async_tasks=self._max_async_tasks
        )
        beat = asyncio.create_task(self._keep_alive())
        try:
            await receiver.run()
        finally:
            self._stopping = True
            self._stirred.set()
            await beat
            await self.happen(Event.WORKER_SHUTDOWN)

    async def _keep_alive(self) -> None:
        """Renew the worker's lease, and let the state do what is due."""
        while not self._stopping:
            self._host.feed(_POOL, p.Renew(["memory"]))
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stirred.wait(), min(1.0, self._host.due_in()))
            self._host.tick()

    async def shutdown(self) -> None:
        """Wait for what is running, then stop; what is queued is gone."""
        receiving, self._receiving = self._receiving, None
        if receiving is not None:
            self._stopping = True
            self._ring()
            # what ended it before was told by `trouble` to those who waited
            await asyncio.gather(asyncio.wrap_future(receiving), return_exceptions=True)
            await self.stop_middlewares()
            await self.happen(Event.CLIENT_SHUTDOWN)
        self._portal.close()
        self._reset()

    # -- the client's side -----------------------------------------------------------------

    def prepare(self, task_name: str, function: Callable[..., Any]) -> None:
        """Remember the function: the receiver of this process looks it up by its name."""
        self._functions[task_name] = function

    def submit(self, envelopes: Sequence[Envelope], watchers: Sequence[Watcher]) -> None:
        """Take messages; they run on the background thread."""
        self._start()
        tasks = [submission_of(envelope) for envelope in envelopes]
        frames = [buffer for envelope in envelopes for buffer in envelope.parcel.buffers]
        with self._host.lock:
            self._batches += 1
            number = self._batches
            own = [(s.task_id, w) for s, w in zip(tasks, watchers, strict=True)]
            self._open_batches[number] = own
            for task_id, watcher in own:
                self._watchers.add(task_id, watcher)
            self._host.feed(_CLIENT, p.Submit(number, tasks, again=True), frames)
        self._ring()

    def watch(self, task_id: str, watcher: Watcher, *, value: bool = False) -> None:
        """Follow a task."""
        self._start()
        key = task_id.encode()
        with self._host.lock:
            self._watchers.add(key, watcher)
            self._host.feed(_CLIENT, p.Get([key], values=True))

    async def control(self, verb: str, body: Any = None) -> Any:
        """Answer what a hub would, as far as there is something to tell."""
        if verb == "cancel":
            with self._host.lock:
                self._host.feed(_CLIENT, p.Cancel(0, [task_id.encode() for task_id in body]))
                return self._answers.pop(0)
        if verb == "output":
            return []
        if verb == "status":
            return self._host.statistics()
        raise NbTaskQError(f"an in-memory broker has no answer to {verb!r}")

    # -- the worker's side -----------------------------------------------------------------

    def find_function(self, task_name: str) -> Callable[..., Any] | None:
        """Return the function that was sent last under this name."""
        return self._functions.get(task_name)

    async def listen(self) -> AsyncIterator[Delivery]:
        """Yield deliveries one by one."""
        async for batch in self.listen_many():
            for delivery in batch:
                yield delivery

    async def listen_many(self) -> AsyncIterator[Sequence[Delivery]]:
        """Yield what has arrived, until shutdown."""
        assert self._arrived is not None
        while not self._stopping:
            await self._arrived.wait()
            self._arrived.clear()
            batch = []
            while self._inbox:
                batch.append(self._inbox.popleft())
            if batch:
                yield batch

    def settle_now(self, settled: Sequence[tuple[Delivery, Settlement]]) -> None:
        """Record verdicts; in memory that is at once."""
        verdicts = [
            p.Verdict(
                delivery.token,
                s.kind,
                s.outcome,
                s.delay,
                p.encode_labels(s.labels) if s.labels is not None else b"",
            )
            for delivery, s in settled
        ]
        frames = [buffer for _, s in settled for buffer in s.buffers]
        with self._host.lock:
            self._settles += 1
            self._host.feed(_WORKER, p.Settle(self._settles, verdicts), frames)

    async def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """Record a verdict."""
        self.settle_now(((delivery, settlement),))

    async def settle_many(self, settled: Sequence[tuple[Delivery, Settlement]]) -> None:
        """Record verdicts."""
        self.settle_now(settled)

    # -- what the state says ---------------------------------------------------------------

    def _deliver(self, deliveries: list[Delivery]) -> None:
        self._inbox.extend(deliveries)
        self._ring()

    def _ring(self) -> None:
        """Wake the receiver, and who watches the clock."""
        if self._arrived is not None:
            self._portal.loop.call_soon_threadsafe(self._arrived.set)
            self._portal.loop.call_soon_threadsafe(self._stirred.set)

    def _take(self, message: p.Outbound, buffers: Sequence[Buffer]) -> None:
        if isinstance(message, p.Finished):
            self._watchers.finished(message.outcomes, buffers)
        elif isinstance(message, p.Accepted):
            self._accepted(message)
        elif isinstance(message, p.Progressed):
            self._watchers.progressed(message.changes)
        elif isinstance(message, p.Missing):
            self._watchers.missing(message.keys)
        elif isinstance(message, p.Answer):
            self._answers[message.request] = message.body
        elif isinstance(message, p.Recall):
            self._recall(message.tokens)

    def _accepted(self, message: p.Accepted) -> None:
        problems = {key: (code, text) for key, code, text in message.problems}
        for task_id, watcher in self._open_batches.pop(message.batch, ()):
            problem = problems.get(task_id)
            if problem is None:
                watcher.on_accepted()
                continue
            kind = TaskIdConflict if problem[0] == "conflict" else SendError
            watcher.on_refused(kind(f"{task_id.decode()} was not stored: {problem[1]}"))

    def _recall(self, tokens: list[int]) -> None:
        """Give back what has not begun."""
        waiting = {delivery.token: delivery for delivery in self._inbox}
        given = [token for token in tokens if token in waiting]
        for token in given:
            self._inbox.remove(waiting[token])
        kept = [token for token in tokens if token not in waiting]
        self._host.feed(_WORKER, p.Recalled(given, kept))
