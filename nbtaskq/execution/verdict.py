"""How a delivery ended becomes the verdict on it.

    value ────► post_execute ──────────────► result
    error ────► on_error ──► retry, requeue
                   └───────► post_execute ─► result, or reject

What a hook raises or spoils ends the task, never the receiver.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any

from nbtaskq.abc import Serializer, Settlement
from nbtaskq.abc.middleware import Verdict
from nbtaskq.errors import SerializationError, TaskRejected
from nbtaskq.execution.hooks import Hooks, name_of, step
from nbtaskq.hub.protocol import Outcome, VerdictKind
from nbtaskq.message import Message, Parcel, Result, TaskStatus
from nbtaskq.serializers.exceptions import dump_exception

Steps = Generator[Awaitable[Any], Any, Settlement]


class Judge:
    """Runs the hooks behind a function, and writes its value or its error."""

    def __init__(self, serializer: Serializer) -> None:
        self._serializer = serializer

    def verdict(
        self,
        hooks: Hooks,
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
                if not hooks.post_execute:
                    return _settled(message, TaskStatus.SUCCEEDED, parcel, times)
        result: Result[Any] = Result(
            is_err=error is not None,
            return_value=value if error is None else None,
            error=error,
            execution_time=times[1],
            labels=message.labels,
        )
        if error is not None:
            again = yield from _after_error(hooks, message, result, error)
            if again is not None:
                outcome = Outcome(message.task_id.encode(), TaskStatus.FAILED, seconds=times[1])
                return Settlement(again.kind, outcome, (), again.delay, message.labels)
        for hook in hooks.post_execute:
            try:
                yield from step(hook(message, result))
            except Exception as caught:
                caught.add_note(f"raised by the hook {name_of(hook)}")
                error = error or caught
        if error is None and result.return_value is not value:
            try:
                parcel = self._dump(result.return_value)
            except SerializationError as caught:
                error = caught
        if error is None:
            return _settled(message, TaskStatus.SUCCEEDED, parcel, times)
        return self._failure(message, error, times)

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


def _after_error(
    hooks: Hooks, message: Message, result: Result[Any], error: BaseException
) -> Generator[Awaitable[Any], Any, Verdict | None]:
    """Run `on_error` hooks; the first verdict that one returns counts."""
    verdict: Verdict | None = None
    for hook in hooks.on_error:
        try:
            said = yield from step(hook(message, result, error))
        except Exception as caught:
            error.add_note(f"the hook {name_of(hook)} raised {caught!r}")
        else:
            verdict = verdict or said
    return verdict


def _settled(
    message: Message,
    status: TaskStatus,
    parcel: Parcel,
    times: tuple[float, float],
    error: str = "",
) -> Settlement:
    """Return the verdict that records an end; `times` are its start and its seconds."""
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
