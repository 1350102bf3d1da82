"""What all brokers share: the registry of tasks, the decorator, middlewares, lifecycle."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Sequence
from inspect import isawaitable
from typing import Any, ParamSpec, Self, TypeVar, overload

from nbtaskq.abc import Broker, Envelope, Middleware, Serializer, Watcher
from nbtaskq.abc.middleware import overrides
from nbtaskq.client.definition import check_name
from nbtaskq.client.task import Task
from nbtaskq.errors import TaskDefinitionError
from nbtaskq.hub.protocol import Outcome, Submission, encode_labels
from nbtaskq.message import Buffer, Event, Message
from nbtaskq.middlewares import SimpleRetryMiddleware
from nbtaskq.serializers.default import DillSerializer

P = ParamSpec("P")
R = TypeVar("R")

Handler = Callable[["BaseBroker"], Any]


class Registry(dict[str, Task[..., Any]]):
    """Tasks by name."""

    def add(self, task: Task[P, R]) -> Task[P, R]:
        """Remember a task; another function under a known name warns, a cell run again does not."""
        known = self.get(task.task_name)
        if known is not None and not _same_place(known.function, task.function):
            warnings.warn(
                f"two different functions are tasks named {task.task_name!r}; the later one "
                "counts. Give one of them a name: @task('another_name')",
                stacklevel=4,
            )
        self[task.task_name] = task
        return task


class BaseBroker(Broker):
    """A broker with a registry of tasks, middlewares and event handlers.

    It starts with a `SimpleRetryMiddleware`, which acts on the label `max_retries`.
    """

    def __init__(self, serializer: Serializer | None = None) -> None:
        self.serializer = serializer or DillSerializer()
        self.middlewares: list[Middleware] = []
        self.tasks = Registry()
        self._handlers: dict[Event, list[Handler]] = {event: [] for event in Event}
        self.with_middlewares(SimpleRetryMiddleware())

    # -- tasks -----------------------------------------------------------------------------

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self, task_name: str | None = None, /, **labels: Any
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...
    def task(self, function: Any = None, /, **labels: Any) -> Any:
        """Make a function a task of this broker: `@b.task`, `@b.task("name", priority=1)`."""
        if callable(function):
            return self.register_task(function, **labels)
        if function is not None:
            check_name(function)
        return lambda f: self.register_task(f, task_name=function, **labels)

    def register_task(
        self, function: Callable[P, R], *, task_name: str | None = None, **labels: Any
    ) -> Task[P, R]:
        """Make a function a task and remember it under its name; the same cell replaces itself."""
        return self.tasks.add(Task(function, self, task_name, labels))

    def find_task(self, task_name: str) -> Task[..., Any] | None:
        """Return the task of this name, if it is known here."""
        return self.tasks.get(task_name)

    def get_all_tasks(self) -> dict[str, Task[..., Any]]:
        """Return all tasks that are known here, by name."""
        return dict(self.tasks)

    # -- building --------------------------------------------------------------------------

    def with_middlewares(self, *middlewares: Middleware) -> Self:
        """Add middlewares; one of a class that is there already takes its place."""
        for middleware in middlewares:
            if not isinstance(middleware, Middleware):
                raise TaskDefinitionError(
                    f"{middleware!r:.80} is not a middleware; pass an instance of a subclass "
                    "of nbtaskq.Middleware"
                )
            middleware.set_broker(self)
            same = [i for i, m in enumerate(self.middlewares) if type(m) is type(middleware)]
            if same:
                self.middlewares[same[0]] = middleware
            else:
                self.middlewares.append(middleware)
        self.pre_send_hooks = [m.pre_send for m in self.middlewares if overrides(m, "pre_send")]
        self.post_send_hooks = [
            m.post_send for m in reversed(self.middlewares) if overrides(m, "post_send")
        ]
        return self

    def with_serializer(self, serializer: Serializer) -> Self:
        """Use another serializer."""
        self.serializer = serializer
        return self

    def on_event(self, *events: Event) -> Callable[[Handler], Handler]:
        """Call a function, plain or async, with the broker when one of the events happens."""

        def register(handler: Handler) -> Handler:
            for event in events:
                self._handlers[event].append(handler)
            return handler

        return register

    async def happen(self, event: Event) -> None:
        """Run the handlers of an event, in the order in which they were registered."""
        for handler in self._handlers[event]:
            said = handler(self)
            if isawaitable(said):
                await said

    async def start_middlewares(self) -> None:
        """Run the `startup` hooks."""
        for middleware in self.middlewares:
            said = middleware.startup()
            if isawaitable(said):
                await said

    async def stop_middlewares(self) -> None:
        """Run the `shutdown` hooks, the last one first."""
        for middleware in reversed(self.middlewares):
            said = middleware.shutdown()
            if isawaitable(said):
                await said

    async def __aenter__(self) -> Self:
        await self.startup()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    # -- sending one -----------------------------------------------------------------------

    async def kick(self, envelope: Envelope) -> None:
        """Send one message; return once it is accepted."""
        await self.kick_many((envelope,))

    async def kick_many(self, envelopes: Sequence[Envelope]) -> None:
        """Send messages in order; return once all are accepted."""
        loop = asyncio.get_running_loop()
        waits = [_Acceptance(loop.create_future(), loop.call_soon_threadsafe) for _ in envelopes]
        self.submit(envelopes, waits)
        for wait in waits:
            await wait.future


class _Acceptance(Watcher):
    """Waits for one message to be accepted."""

    awaited = False

    def __init__(self, future: Any, call: Callable[..., Any]) -> None:
        self.future = future
        self._call = call

    def _resolve(self, error: BaseException | None) -> None:
        if not self.future.done():
            if error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(error)

    def on_accepted(self) -> None:
        self._call(self._resolve, None)

    def on_refused(self, error: BaseException) -> None:
        self._call(self._resolve, error)

    def on_progress(self, status: int, worker: str) -> None:
        """Nothing: only the acceptance counts."""

    def on_output(self, number: int, content: bytes) -> None:
        """Nothing: only the acceptance counts."""

    def on_outcome(self, outcome: Outcome, buffers: Sequence[Buffer]) -> None:
        self._call(self._resolve, None)


def submission_of(envelope: Envelope) -> Submission:
    """Return an envelope as the hub's protocol has it; its buffers travel beside it."""
    message, parcel = envelope.message, envelope.parcel
    return Submission(
        message.task_id.encode(),
        message.task_name,
        _labels_of(message),
        parcel.body,
        len(parcel.buffers),
        envelope.frozen.digest if envelope.frozen is not None else b"",
        envelope.flavor,
        envelope.priority,
        envelope.delay,
        envelope.expires,
        envelope.at_most_once,
        [need.encode() for need in parcel.needs],
        envelope.batch,
        envelope.place,
    )


def _labels_of(message: Message) -> bytes:
    try:
        return encode_labels(message.labels)
    except (TypeError, ValueError, OverflowError) as error:
        raise TaskDefinitionError(
            f"the labels of {message.task_name} cannot be sent: {error}. Labels are numbers of up "
            "to 64 bits, texts, bytes, None, dates, and lists and dicts of these"
        ) from error


def _same_place(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two functions are the same definition, run again."""
    first, second = getattr(one, "__code__", None), getattr(other, "__code__", None)
    if first is None or second is None:
        return one is other
    if one.__module__ == "__main__" and other.__module__ == "__main__":
        return bool(first.co_qualname == second.co_qualname)
    places = {(code.co_filename, code.co_qualname) for code in (first, second)}
    return len(places) == 1
