"""Hooks around sending and running a task."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, NamedTuple

from nbtaskq.hub.protocol import VerdictKind

if TYPE_CHECKING:
    from nbtaskq.abc.kick import SupportsKick
    from nbtaskq.message import Message, Result


class Verdict(NamedTuple):
    """What `on_error` may return instead of nothing: the task runs again.

    A retry counts as an attempt, a requeue does not. `delay` is in seconds.
    """

    kind: VerdictKind
    delay: float = 0.0

    @classmethod
    def retry(cls, delay: float = 0.0) -> Verdict:
        """Run the task again, as a new attempt."""
        return cls(VerdictKind.RETRY, delay)

    @classmethod
    def requeue(cls, delay: float = 0.0) -> Verdict:
        """Run the task again as if this attempt had not been."""
        return cls(VerdictKind.REQUEUE, delay)


class Middleware:
    """Override what you need; each hook may be a plain or an `async` method.

    ``pre_*`` hooks run in the order of `with_middlewares`, ``post_*`` and `on_error` in reverse.
    A hook that is not overridden costs nothing.
    """

    broker: SupportsKick

    def set_broker(self, broker: SupportsKick) -> None:
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
    ) -> Verdict | Awaitable[Verdict | None] | None:
        """Run in the worker when the function raised; a returned verdict runs it again."""
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
