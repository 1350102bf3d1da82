"""From calls to envelopes: check, serialize, `pre_send`, hand over, `post_send`."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, NamedTuple

from nbtaskq.abc import Broker, Envelope
from nbtaskq.client.handle import TaskHandle
from nbtaskq.client.options import SendOptions, read_options
from nbtaskq.client.portal import portal
from nbtaskq.errors import SendError, TaskArgumentError
from nbtaskq.message import Message, new_task_id

if TYPE_CHECKING:
    from nbtaskq.client.definition import Definition

Call = tuple[tuple[Any, ...], dict[str, Any]]

#: stands in a row for the value of an iterable that has no more
_ENDED = object()


class Plan(NamedTuple):
    """What the messages of one send have in common."""

    task: Definition[..., Any]
    broker: Broker
    labels: Mapping[str, Any]
    task_id: str | None = None
    batch: bytes = b""


def send(plan: Plan, calls: Iterable[Call]) -> list[TaskHandle[Any]]:
    """Send one message for each call; nothing is sent unless every call fits and serializes."""
    broker, task = plan.broker, plan.task
    options = read_options(plan.labels)
    frozen = broker.prepare(task.task_name, task.function)
    dumps = broker.serializer.dumps
    name, flavor, check = task.task_name, task.flavor, task.check_call
    handles: list[TaskHandle[Any]] = []
    envelopes: list[Envelope] = []
    for place, (args, kwargs) in enumerate(calls):
        check(args, kwargs)
        task_id = plan.task_id or new_task_id()
        parcel = dumps((args, kwargs), root="call")
        message = Message(task_id, name, dict(plan.labels), args, kwargs)
        envelopes.append(
            Envelope(
                message, parcel, frozen, flavor, *options, plan.batch, place, bool(plan.task_id)
            )
        )
        handles.append(TaskHandle(broker, task_id, name, task, args, kwargs))
    if broker.pre_send_hooks or broker.post_send_hooks:
        for envelope, handle in zip(envelopes, handles, strict=True):
            _send_through_hooks(broker, envelope, handle)
    else:
        broker.submit(envelopes, handles)
    return handles


def _send_through_hooks(broker: Broker, envelope: Envelope, handle: TaskHandle[Any]) -> None:
    """Run the hooks here until one must be awaited; the rest then runs in the background."""
    message = envelope.message
    hooks = iter(broker.pre_send_hooks)
    for hook in hooks:
        said = hook(message)
        if isawaitable(said):
            handle.hold_back()
            portal.start(_go_on(broker, envelope, handle, said, hooks))
            return
        message = said
    _submit(broker, envelope, message, handle)
    _after_sending(broker, message)


def _after_sending(broker: Broker, message: Message) -> None:
    """Run the `post_send` hooks; the message is sent, so what one raises is only told."""
    for hook in broker.post_send_hooks:
        try:
            said = hook(message)
        except Exception as error:
            _tell(message, error)
        else:
            if isawaitable(said):
                portal.start(_awaited(message, said))


async def _awaited(message: Message, said: Any) -> None:
    try:
        await said
    except Exception as error:
        _tell(message, error)


def _tell(message: Message, error: Exception) -> None:
    warnings.warn(
        f"{message.task_name} was sent, and then a post_send hook raised {error!r}",
        RuntimeWarning,
        stacklevel=2,
    )


async def _go_on(
    broker: Broker, envelope: Envelope, handle: TaskHandle[Any], said: Any, hooks: Iterable[Any]
) -> None:
    try:
        message = await said
        for hook in hooks:
            message = hook(message)
            if isawaitable(message):
                message = await message
        _submit(broker, envelope, message, handle)
    except Exception as error:
        failure = SendError(
            f"{envelope.message.task_name} was not sent: a pre_send hook raised {error!r}"
        )
        failure.__cause__ = error
        handle.on_refused(failure)
    else:
        _after_sending(broker, message)


def _submit(broker: Broker, envelope: Envelope, message: Message, handle: TaskHandle[Any]) -> None:
    """Hand a message over as the hooks left it."""
    options: SendOptions = read_options(
        {k: v for k, v in message.labels.items() if not k.startswith("_")}
    )
    parcel = envelope.parcel
    if message.changed or message is not envelope.message:
        parcel = broker.serializer.dumps((message.args, message.kwargs), root="call")
    handle.hand_over()
    changed = envelope._replace(message=message, parcel=parcel, **options._asdict())
    broker.submit([changed], [handle])


def calls_of_map(iterables: Sequence[Iterable[Any]]) -> Iterator[Call]:
    """Yield the calls of `map`: one for each row of the iterables.

    Raises
    ------
    TaskArgumentError
        One of them has ended before the others.
    """
    for row in itertools.zip_longest(*iterables, fillvalue=_ENDED):
        for place, value in enumerate(row, 1):
            if value is _ENDED:
                raise TaskArgumentError(
                    f"map() takes equally long iterables, and number {place} of {len(row)} is "
                    "shorter than another; nothing was sent"
                )
        yield row, {}


def calls_of_starmap(rows: Iterable[Iterable[Any]]) -> Iterable[Call]:
    """Return the calls of `starmap`: one for each row, its items being the arguments."""
    for row in rows:
        if not isinstance(row, Iterable):
            raise TaskArgumentError(
                f"starmap takes rows such as [(1, 2), (3, 4)], and {row!r:.60} is none; "
                "for one argument a call use map"
            )
        yield tuple(row), {}


def calls_of_sweep(grid: Mapping[str, Iterable[Any]]) -> Iterable[Call]:
    """Return the calls of `sweep`: every combination, the last keyword varying fastest.

    Raises
    ------
    TaskArgumentError
        A keyword has no list of values.
    """
    for name, given in grid.items():
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise TaskArgumentError(
                f"sweep({name}={given!r:.60}) takes a list of values; write {name}=[…]"
            )
    names = list(grid)
    values = [list(v) for v in grid.values()]
    return (((), dict(zip(names, row, strict=True))) for row in itertools.product(*values))
