"""Hooks around sending and running a task."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbtaskq.abc.broker import Broker
    from nbtaskq.message import Message, Result


class Middleware:
    """Override what you need; each hook may be a plain or an `async` method.

    ``pre_*`` hooks run in the order of `with_middlewares`, ``post_*`` and `on_error` in reverse.
    A hook that is not overridden costs nothing.
    """

    broker: Broker

    def set_broker(self, broker: Broker) -> None:
        """Remember the broker that this middleware serves; called once when it is added."""
        self.broker = broker

    def startup(self) -> Awaitable[None] | None:
        """Run when the broker starts up, in clients and in workers."""
        return None

    def shutdown(self) -> Awaitable[None] | None:
        """Run when the broker shuts down."""
        return None

    def pre_send(self, message: Message) -> Message | Awaitable[Message]:
        """Run in the client before a message is sent; an error lands on the handle."""
        return message

    def post_send(self, message: Message) -> Awaitable[None] | None:
        """Run in the client after the message was handed over."""
        return None

    def pre_execute(self, message: Message) -> Message | Awaitable[Message]:
        """Run in the worker before the function."""
        return message

    def on_error(
        self, message: Message, result: Result[Any], exception: BaseException
    ) -> Awaitable[None] | None:
        """Run in the worker when the function raised."""
        return None

    def post_execute(self, message: Message, result: Result[Any]) -> Awaitable[None] | None:
        """Run in the worker after the function, before the result is recorded."""
        return None

    def post_save(self, message: Message, result: Result[Any]) -> Awaitable[None] | None:
        """Run in the worker once the result is recorded."""
        return None


def overrides(middleware: Middleware, hook: str) -> bool:
    """Whether a middleware has its own `hook`."""
    return getattr(type(middleware), hook) is not getattr(Middleware, hook)
