"""The worker's loop: listen → decode → hooks → execute → settle.

    source.listen_many ──► pre_execute ──► function ──► on_error, post_execute
                                                              │
    source.settle_now  ◄── verdict (result | retry | requeue | reject) ──► post_save

One delivery is one generator. It yields only when a hook or a function gave something to await;
until then it is driven as a plain function, without an asyncio task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from inspect import isawaitable
from typing import Any, Protocol

from nbtaskq.abc import Delivery, Middleware, Serializer, Settlement
from nbtaskq.execution.executors import Executor
from nbtaskq.execution.hooks import Hooks, isolated, step
from nbtaskq.execution.loading import Loader
from nbtaskq.execution.verdict import Judge, Steps
from nbtaskq.hub.protocol import Flavor, VerdictKind
from nbtaskq.message import Message, Parcel, Result, TaskStatus
from nbtaskq.serializers.exceptions import load_exception


class Source(Protocol):
    """The side of a broker that a receiver needs."""

    def listen_many(self) -> AsyncIterator[Sequence[Delivery]]:
        """Yield batches of deliveries until there will be no more."""

    def settle_now(self, settled: Sequence[tuple[Delivery, Settlement]]) -> None:
        """Hand verdicts over without waiting."""

    async def settle_many(self, settled: Sequence[tuple[Delivery, Settlement]]) -> None:
        """Hand verdicts over; return once they are recorded."""

    def find_function(self, task_name: str) -> Callable[..., Any] | None:
        """Return the function of a delivery that brings no code."""


class Receiver:
    """Runs what a source delivers.

    Synchronous functions run one at a time on the thread of `run`; coroutines run concurrently,
    up to `max_async_tasks`. User code can end a delivery only with a verdict: whatever it raises,
    `SystemExit` included, becomes the task's error.

    Parameters
    ----------
    source : Source
        Where deliveries come from and verdicts go to.
    serializer : Serializer
        Reads arguments and writes results.
    middlewares : sequence of Middleware
        Their `pre_execute`, `on_error`, `post_execute` and `post_save` hooks are called.
    executor : Executor
        Surrounds and runs the functions.
    guard : callable
        Gives an async context manager that is held while a batch of synchronous tasks runs.
    max_async_tasks : int
        Coroutines that run at the same time.
    """

    def __init__(
        self,
        source: Source,
        serializer: Serializer,
        middlewares: Sequence[Middleware] = (),
        *,
        executor: Executor | None = None,
        guard: Callable[[], contextlib.AbstractAsyncContextManager[Any]] | None = None,
        max_async_tasks: int = 100,
    ) -> None:
        self._source = source
        self._serializer = serializer
        self._hooks = Hooks(middlewares)
        self._executor = executor or Executor()
        self._guard = guard or contextlib.nullcontext
        self._loader = Loader(serializer, source.find_function)
        self._judge = Judge(serializer)
        self._slots = set(range(max_async_tasks))
        self._room = asyncio.Semaphore(max_async_tasks)
        self._running: set[asyncio.Task[None]] = set()

    def use_middlewares(self, middlewares: Sequence[Middleware]) -> None:
        """Call the hooks of these from the next delivery on."""
        self._hooks = Hooks(middlewares)

    async def run(self) -> None:
        """Receive until the source ends, then wait for what is still running."""
        async for batch in self._source.listen_many():
            async with self._guard():
                await self._run_batch(batch)
        if self._running:
            await asyncio.wait(self._running)

    async def _run_batch(self, batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            if delivery.flavor == Flavor.ASYNC:
                await self._room.acquire()
                self._spawn(self._run_async(delivery))
                continue
            steps = self._steps(delivery, 0)
            try:
                awaitable = next(steps)
            except StopIteration as stop:
                self._settle(delivery, stop.value)
            else:
                self._settle(delivery, await _drive(steps, awaitable))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run_async(self, delivery: Delivery) -> None:
        index = self._slots.pop()
        try:
            steps = self._steps(delivery, index)
            self._settle(delivery, await _drive(steps))
        finally:
            self._slots.add(index)
            self._room.release()

    def _settle(self, delivery: Delivery, settlement: Settlement) -> None:
        if self._hooks.post_save and settlement.kind == VerdictKind.RESULT:
            self._spawn(self._finish(delivery, settlement))
        else:
            self._source.settle_now(((delivery, settlement),))

    async def _finish(self, delivery: Delivery, settlement: Settlement) -> None:
        """Settle, and run `post_save` once the end is recorded."""
        await self._source.settle_many(((delivery, settlement),))
        message = self._message(delivery)
        parcel = Parcel(settlement.outcome.body, settlement.buffers)
        failed = settlement.outcome.status != TaskStatus.SUCCEEDED
        if failed:
            loaded: Any = load_exception(self._serializer, parcel)
        else:
            loaded = self._serializer.loads(parcel)
        result: Result[Any] = Result(
            is_err=failed,
            return_value=None if failed else loaded,
            error=loaded if failed else None,
            execution_time=settlement.outcome.seconds,
            labels=message.labels,
        )
        for hook in self._hooks.post_save:
            with isolated(hook):
                said = hook(message, result)
                if isawaitable(said):
                    await said

    # -- one delivery ----------------------------------------------------------------------

    def _message(self, delivery: Delivery) -> Message:
        return Message(delivery.task_id, delivery.task_name, delivery.labels)

    def _steps(self, delivery: Delivery, index: int) -> Steps:
        """Run one delivery; yield what must be awaited, return the verdict."""
        message = self._message(delivery)
        started = time.time()
        clock = time.perf_counter
        begun = clock()
        seconds = 0.0
        value: Any = None
        error: BaseException | None = None
        try:
            # unpacking runs the user's code too: what dies of it must be known
            self._executor.begin(delivery, index)
            try:
                function = self._loader.function(delivery)
                args, kwargs = self._loader.arguments(delivery)
                if self._hooks.pre_execute:
                    message = Message(
                        delivery.task_id, delivery.task_name, delivery.labels, args, kwargs
                    )
                    for hook in self._hooks.pre_execute:
                        message = yield from step(hook(message))
                    args, kwargs = message.args, message.kwargs
                begun = clock()
                try:
                    if delivery.flavor == Flavor.ASYNC:
                        value = yield from step(function(*args, **kwargs))
                    else:
                        value = self._executor.run(function, args, kwargs)
                        if isawaitable(value):
                            value = yield value
                finally:
                    seconds = clock() - begun
            finally:
                self._executor.executed(index)
                self._executor.end(delivery, index)
        except BaseException as caught:
            # without a loop, this delivery is being abandoned; else user code has raised it
            if isinstance(caught, GeneratorExit) and asyncio._get_running_loop() is None:
                raise
            error = caught
        times = started, seconds
        return (yield from self._judge.verdict(self._hooks, message, value, error, times))


async def _drive(steps: Steps, awaitable: Awaitable[Any] | None = None) -> Settlement:
    """Await what a delivery yields until it returns its verdict."""
    try:
        if awaitable is None:
            awaitable = next(steps)
        while True:
            try:
                value = await awaitable
            except BaseException as caught:
                awaitable = steps.throw(caught)
            else:
                awaitable = steps.send(value)
    except StopIteration as stop:
        settlement: Settlement = stop.value
        return settlement
