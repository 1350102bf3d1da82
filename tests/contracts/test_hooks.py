"""Middlewares: which hook runs when, sync or async, and what one may change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import nbtaskq as nq
from nbtaskq.errors import SendError, SerializationError, TaskDefinitionError


class Tracing(nq.Middleware):
    """Notes each hook under a name."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name = name
        self.seen = seen

    def note(self, hook: str) -> None:
        self.seen.append(f"{self.name}.{hook}")


class First(Tracing):
    def startup(self) -> None:
        self.note("startup")

    def shutdown(self) -> None:
        self.note("shutdown")

    def pre_send(self, message: nq.Message) -> nq.Message:
        self.note("pre_send")
        return message

    def post_send(self, message: nq.Message) -> None:
        self.note("post_send")

    def pre_execute(self, message: nq.Message) -> nq.Message:
        self.note("pre_execute")
        return message

    def on_error(self, message: nq.Message, result: Any, exception: BaseException) -> None:
        self.note(f"on_error({type(exception).__name__})")

    def post_execute(self, message: nq.Message, result: Any) -> None:
        self.note("post_execute")

    def post_save(self, message: nq.Message, result: nq.Result[Any]) -> None:
        self.note(f"post_save({result.return_value})")


class Second(Tracing):
    async def pre_send(self, message: nq.Message) -> nq.Message:
        await asyncio.sleep(0)
        self.note("pre_send")
        return message

    async def pre_execute(self, message: nq.Message) -> nq.Message:
        await asyncio.sleep(0)
        self.note("pre_execute")
        return message

    async def on_error(self, message: nq.Message, result: Any, exception: BaseException) -> None:
        await asyncio.sleep(0)
        self.note("on_error")

    async def post_execute(self, message: nq.Message, result: Any) -> None:
        await asyncio.sleep(0)
        self.note("post_execute")


@pytest.fixture
def seen() -> list[str]:
    return []


@pytest.fixture
def broker() -> Iterator[nq.InMemoryBroker]:
    made = nq.InMemoryBroker()
    yield made
    asyncio.run(made.shutdown())


def test_pre_hooks_run_as_declared_and_post_hooks_reversed(
    broker: nq.InMemoryBroker, seen: list[str]
) -> None:
    broker.with_middlewares(First("a", seen), Second("b", seen))

    @broker.task
    def double(x: int) -> int:
        return 2 * x

    assert double.kiq(4).result(10) == 8
    asyncio.run(broker.shutdown())
    sending = [hook for hook in seen if "send" in hook]
    assert sending == ["a.pre_send", "b.pre_send", "a.post_send"]
    # a worker need not wait for the sender's last hook
    assert [hook for hook in seen if "send" not in hook] == [
        "a.pre_execute",
        "b.pre_execute",
        "b.post_execute",
        "a.post_execute",
        "a.post_save(8)",
        "a.shutdown",
    ]


def test_an_error_is_told_in_reverse_order(broker: nq.InMemoryBroker, seen: list[str]) -> None:
    broker.with_middlewares(First("a", seen), Second("b", seen))

    @broker.task
    def fail() -> None:
        raise LookupError

    assert isinstance(fail.kiq().exception(10), LookupError)
    assert [s for s in seen if "error" in s] == ["b.on_error", "a.on_error(LookupError)"]


def test_startup_runs_once_when_the_broker_starts(
    broker: nq.InMemoryBroker, seen: list[str]
) -> None:
    broker.with_middlewares(First("a", seen))

    async def main() -> None:
        async with broker:
            assert seen == ["a.startup"]

    asyncio.run(main())
    assert seen == ["a.startup", "a.shutdown"]


def test_labels_may_be_changed_in_place_and_arguments_assigned(
    broker: nq.InMemoryBroker,
) -> None:
    class Changing(nq.Middleware):
        def pre_send(self, message: nq.Message) -> nq.Message:
            message.labels["who"] = "me"
            message.args = (message.args[0] + 1,)
            return message

        def pre_execute(self, message: nq.Message) -> nq.Message:
            message.args = (message.args[0], message.labels["who"])
            return message

    broker.with_middlewares(Changing())

    @broker.task
    def tell(x: int, who: str = "nobody") -> tuple[int, str]:
        return x, who

    assert tell.kiq(1).result(10) == (2, "me")


def test_an_error_in_pre_send_lands_on_the_caller_or_the_handle(
    broker: nq.InMemoryBroker,
) -> None:
    class Refusing(nq.Middleware):
        async def pre_send(self, message: nq.Message) -> nq.Message:
            raise PermissionError("not today")

    broker.with_middlewares(Refusing())

    @broker.task
    def add(x: int) -> int:
        return x

    handle = add.kiq(1)
    with pytest.raises(SendError, match="not today") as caught:
        handle.result(10)
    assert isinstance(caught.value.__cause__, PermissionError)
    assert handle.done()


def test_an_error_in_post_send_is_told_and_the_message_is_on_its_way(
    broker: nq.InMemoryBroker,
) -> None:
    class Failing(nq.Middleware):
        def post_send(self, message: nq.Message) -> None:
            raise RuntimeError("too late")

    broker.with_middlewares(Failing())

    @broker.task
    def add(x: int) -> int:
        return x

    with pytest.warns(RuntimeWarning, match="was sent, and then a post_send hook raised"):
        handle = add.kiq(1)
    assert handle.result(10) == 1


def test_waiting_ends_when_the_receiver_has_died(broker: nq.InMemoryBroker) -> None:
    @broker.on_event(nq.Event.WORKER_STARTUP)
    def refuse(b: nq.Broker) -> None:
        raise OSError("no")

    @broker.task
    def add(x: int) -> int:
        return x

    with pytest.raises(nq.errors.BrokerUnreachable, match="no"):
        add.kiq(1).result(10)


def test_a_raising_hook_ends_the_task_with_its_error(broker: nq.InMemoryBroker) -> None:
    class Raising(nq.Middleware):
        def post_execute(self, message: nq.Message, result: Any) -> None:
            raise RuntimeError("hook broke")

    broker.with_middlewares(Raising())

    @broker.task
    def add(x: int) -> int:
        return x

    with pytest.raises(RuntimeError, match="hook broke"):
        add.kiq(1).result(10)


def test_a_hook_that_puts_an_unsendable_value_into_the_result_fails_the_task_alone(
    broker: nq.InMemoryBroker,
) -> None:
    class Spoils(nq.Middleware):
        def post_execute(self, message: nq.Message, result: nq.Result[Any]) -> None:
            if message.labels.get("spoil"):
                result.return_value = (i for i in range(3))

    @broker.task
    def one() -> int:
        return 1

    broker.with_middlewares(Spoils())
    with pytest.raises(SerializationError, match="generator"):
        one.kicker().with_labels(spoil=True).kiq().result(10)
    assert one.kiq().result(10) == 1


def test_what_is_no_middleware_is_refused(broker: nq.InMemoryBroker) -> None:
    with pytest.raises(TaskDefinitionError, match="not a middleware"):
        broker.with_middlewares(First)  # type: ignore[arg-type]


def test_event_handlers_run_plain_or_async(broker: nq.InMemoryBroker, seen: list[str]) -> None:
    @broker.on_event(nq.Event.CLIENT_STARTUP)
    def plain(b: nq.Broker) -> None:
        seen.append("client")

    @broker.on_event(nq.Event.WORKER_STARTUP)
    async def later(b: nq.Broker) -> None:
        await asyncio.sleep(0)
        seen.append("worker")

    async def main() -> None:
        async with broker:
            pass

    asyncio.run(main())
    assert sorted(seen) == ["client", "worker"]
