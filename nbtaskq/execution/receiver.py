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
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from inspect import isawaitable
from typing import Any, Protocol

from nbtaskq.abc import Delivery, Middleware, Serializer, Settlement
from nbtaskq.abc.middleware import Verdict, overrides
from nbtaskq.errors import DependencyFailed, SerializationError, TaskRejected
from nbtaskq.execution.executors import Executor
from nbtaskq.hub.protocol import Flavor, Outcome, VerdictKind
from nbtaskq.message import Message, Parcel, Result, TaskStatus
from nbtaskq.serializers.exceptions import dump_exception, load_exception

Steps = Generator[Awaitable[Any], Any, Settlement]

#: loaded functions that a receiver keeps
FUNCTIONS_KEPT = 128


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


class Hooks:
    """The overridden hooks of some middlewares, in the order in which they run."""

    def __init__(self, middlewares: Sequence[Middleware]) -> None:
        def forward(name: str) -> list[Callable[..., Any]]:
            return [getattr(m, name) for m in middlewares if overrides(m, name)]

        self.pre_execute = forward("pre_execute")
        self.on_error = forward("on_error")[::-1]
        self.post_execute = forward("post_execute")[::-1]
        self.post_save = forward("post_save")[::-1]


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
        self._functions: OrderedDict[bytes, Callable[..., Any]] = OrderedDict()
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
            with _isolated(hook):
                await _maybe(hook(message, result))

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
                function = self._function(delivery)
                args, kwargs = self._arguments(delivery)
                if self._hooks.pre_execute:
                    message = Message(
                        delivery.task_id, delivery.task_name, delivery.labels, args, kwargs
                    )
                    for hook in self._hooks.pre_execute:
                        message = yield from _step(hook(message))
                    args, kwargs = message.args, message.kwargs
                begun = clock()
                try:
                    if delivery.flavor == Flavor.ASYNC:
                        value = yield from _step(function(*args, **kwargs))
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
        return (yield from self._verdict(message, value, error, (started, seconds)))

    def _function(self, delivery: Delivery) -> Callable[..., Any]:
        if delivery.code is None:
            function = self._source.find_function(delivery.task_name)
            if function is None:
                raise TaskRejected(
                    f"this worker knows no task named {delivery.task_name!r}; "
                    "import the module that defines it"
                )
            return function
        digest = delivery.code.digest
        known = self._functions.get(digest)
        if known is None:
            known = self._functions[digest] = self._serializer.thaw(delivery.code.parcel)
            if len(self._functions) > FUNCTIONS_KEPT:
                self._functions.popitem(last=False)
        else:
            self._functions.move_to_end(digest)
        return known

    def _arguments(self, delivery: Delivery) -> tuple[tuple[Any, ...], dict[str, Any]]:
        results = {}
        for task_id, (outcome, buffers) in delivery.results.items():
            if outcome.status != TaskStatus.SUCCEEDED:
                raise DependencyFailed(f"the result of {task_id} is not there: {outcome.error}")
            results[task_id] = self._serializer.loads(Parcel(outcome.body, buffers))
        args, kwargs = self._serializer.loads(delivery.parcel, results)
        return args, kwargs

    def _verdict(
        self,
        message: Message,
        value: Any,
        error: BaseException | None,
        times: tuple[float, float],
    ) -> Steps:
        """Run the hooks behind the function and make the verdict."""
        parcel = Parcel(b"")
        if error is None:
            try:
                parcel = self._dump(value)
            except SerializationError as caught:
                error = caught
            else:
                if not self._hooks.post_execute:
                    return _settled(message, TaskStatus.SUCCEEDED, parcel, times)
        result: Result[Any] = Result(
            is_err=error is not None,
            return_value=value if error is None else None,
            error=error,
            execution_time=times[1],
            labels=message.labels,
        )
        if error is not None:
            again = yield from self._after_error(message, result, error)
            if again is not None:
                outcome = Outcome(message.task_id.encode(), TaskStatus.FAILED, seconds=times[1])
                return Settlement(again.kind, outcome, (), again.delay, message.labels)
        for hook in self._hooks.post_execute:
            try:
                yield from _step(hook(message, result))
            except Exception as caught:
                caught.add_note(f"raised by the hook {_name_of(hook)}")
                error = error or caught
        if error is None and result.return_value is not value:
            try:
                parcel = self._dump(result.return_value)
            except SerializationError as caught:
                error = caught
        if error is None:
            return _settled(message, TaskStatus.SUCCEEDED, parcel, times)
        return self._failure(message, error, times)

    def _after_error(
        self, message: Message, result: Result[Any], error: BaseException
    ) -> Generator[Awaitable[Any], Any, Verdict | None]:
        """Run `on_error` hooks; the first verdict that one returns counts."""
        verdict: Verdict | None = None
        for hook in self._hooks.on_error:
            try:
                said = yield from _step(hook(message, result, error))
            except Exception as caught:
                error.add_note(f"the hook {_name_of(hook)} raised {caught!r}")
            else:
                verdict = verdict or said
        return verdict

    def _dump(self, value: Any) -> Parcel:
        parcel = self._serializer.dumps(value, root="result")
        if parcel.needs:
            raise SerializationError(
                f"the result contains the handle of task {parcel.needs[0]}; "
                "return its value, handle.result(), instead",
                "result",
            )
        return parcel

    def _failure(
        self, message: Message, error: BaseException, times: tuple[float, float]
    ) -> Settlement:
        parcel = dump_exception(self._serializer, error)
        rejected = isinstance(error, TaskRejected)
        status = TaskStatus.REJECTED if rejected else TaskStatus.FAILED
        return _settled(message, status, parcel, times, _summary(error))


def _settled(
    message: Message,
    status: TaskStatus,
    parcel: Parcel,
    times: tuple[float, float],
    error: str = "",
) -> Settlement:
    outcome = Outcome(
        message.task_id.encode(),
        status,
        parcel.body,
        len(parcel.buffers),
        times[0],
        times[1],
        error=error,
    )
    kind = VerdictKind.REJECT if status == TaskStatus.REJECTED else VerdictKind.RESULT
    return Settlement(kind, outcome, parcel.buffers)


def _summary(error: BaseException) -> str:
    """Return one bounded line for tables: type and message, whatever `__str__` does."""
    try:
        text = str(error)
    except BaseException as caught:
        text = f"<its __str__ raised {type(caught).__name__}>"
    line = " ".join(text[:1000].split())
    said = f"{type(error).__name__}: {line}"[:500] if line else type(error).__name__
    return said.encode(errors="backslashreplace").decode()  # lone surrogates cannot be sent


def _step(value: Any) -> Generator[Awaitable[Any], Any, Any]:
    """Return a hook's value, awaited if it must be."""
    if isawaitable(value):
        return (yield value)
    return value


async def _maybe(value: Any) -> Any:
    return await value if isawaitable(value) else value


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


@contextlib.contextmanager
def _isolated(hook: Callable[..., Any]) -> Generator[None]:
    """Report what a hook raises when the task's end is recorded already."""
    try:
        yield
    except Exception as caught:
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"nbtaskq: the hook {_name_of(hook)} raised", "exception": caught}
        )


def _name_of(hook: Callable[..., Any]) -> str:
    return getattr(hook, "__qualname__", repr(hook))
