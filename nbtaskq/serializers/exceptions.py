"""Exceptions as results: they always arrive, if need be as a stand-in, with their traceback.

A parcel of `dump_exception` is a small plain description around the exception's own pickle, so
that a reader that cannot load the exception (its module is missing there) still learns its type,
its message and its traceback.
"""

from __future__ import annotations

import builtins
import io
import pickle
from typing import Any, NamedTuple

from nbtaskq.abc.serializer import Serializer
from nbtaskq.errors import DeserializationError, RemoteTraceback, SerializationError
from nbtaskq.message import Parcel
from nbtaskq.serializers.traces import format_traceback


class Description(NamedTuple):
    """What is told of an exception without loading it."""

    module: str
    name: str
    message: str
    base: str
    notes: tuple[str, ...] = ()


def dump_exception(serializer: Serializer, error: BaseException) -> Parcel:
    """Serialize an exception with its traceback; this succeeds for every exception.

    The exception itself travels if its pickle loads again here; else the same without the
    attributes that cannot travel; else only what `describe` says of it.
    """
    trace = _safely_formatted(error)
    inner = _own_parcel(serializer, error) or _own_parcel(serializer, _bare(serializer, error))
    body = (tuple(describe(error)), trace, inner.body if inner is not None else None)
    return Parcel(pickle.dumps(body, 5), inner.buffers if inner is not None else ())


def load_exception(serializer: Serializer, parcel: Parcel) -> BaseException:
    """Return the exception, or its stand-in, with the remote traceback as its cause."""
    try:
        description, trace, body = pickle.load(io.BytesIO(parcel.body))
        described = Description(*description)
    except Exception as problem:
        raise DeserializationError(f"Cannot load an exception: {problem}") from problem
    error = _loaded(serializer, body, parcel) if body is not None else None
    if not isinstance(error, BaseException):
        error = stand_in(described)
    error.__cause__ = RemoteTraceback(trace)
    return error


def describe(error: BaseException) -> Description:
    """Return the exception's type, message, closest builtin base and notes."""
    kind = type(error)
    notes = getattr(error, "__notes__", ())
    texts = tuple(str(n) for n in notes) if isinstance(notes, list | tuple) else ()
    return Description(
        kind.__module__, kind.__qualname__, _message(error), _builtin_base(kind).__name__, texts
    )


def stand_in(described: Description) -> BaseException:
    """Return an exception that names, prints and is caught like the described one.

    Its class is made here, a subclass of the original's closest builtin base, so that
    ``except ValueError`` still catches what was derived from `ValueError`.
    """
    base = getattr(builtins, described.base)
    namespace = {
        "__module__": described.module,
        "__qualname__": described.name,
        "__doc__": "Stands for an exception that could not travel.",
        "__init__": _init,
        "__str__": lambda self: described.message,
        "__reduce__": lambda self: (_rebuild_stand_in, tuple(described)),
    }
    kind = type(described.name.rpartition(".")[2], (base,), namespace)
    error: BaseException = kind(described.message)
    for note in described.notes:
        error.add_note(note)
    return error


def _init(self: BaseException, *args: object) -> None:
    self.args = args


def _rebuild_stand_in(*description: Any) -> BaseException:
    return stand_in(Description(*description))


def _builtin_base(kind: type[BaseException]) -> type[BaseException]:
    for base in kind.__mro__:
        # a group cannot be made without the exceptions in it
        group = issubclass(base, BaseExceptionGroup)
        if base.__module__ == "builtins" and base is not object and not group:
            return base
    return Exception


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:
        return f"<its message cannot be made: {type(problem).__name__}>"


def _safely_formatted(error: BaseException) -> str:
    try:
        return format_traceback(error)
    except Exception as problem:
        # user code runs here: `__str__`, `__notes__`, attribute access
        found = type(error).__qualname__
        return f"{found}: its traceback cannot be shown, because of {type(problem).__name__}\n"


def _own_parcel(serializer: Serializer, error: BaseException | None) -> Parcel | None:
    """Return the exception's pickle, if it loads again in this process."""
    if error is None:
        return None
    try:
        parcel = serializer.dumps(error, root="exception")
        again = serializer.loads(parcel)
    except (Exception, SystemExit):
        return None
    return parcel if isinstance(again, BaseException) else None


def _loaded(serializer: Serializer, body: bytes, parcel: Parcel) -> Any:
    try:
        return serializer.loads(Parcel(body, parcel.buffers))
    except DeserializationError:
        return None


def _bare(serializer: Serializer, error: BaseException) -> BaseException | None:
    """Return a copy without what cannot travel, if its message stays the same."""
    kind = type(error)
    try:
        copy = kind.__new__(kind, *error.args)
        copy.args = tuple(a if _travels(serializer, a) else repr(a) for a in error.args)
        for name, value in vars(error).items():
            if _travels(serializer, value):
                setattr(copy, name, value)
        same = str(copy) == str(error)
    except Exception:
        return None
    return copy if same else None


def _travels(serializer: Serializer, value: object) -> bool:
    try:
        serializer.dumps(value, root="exception")
    except SerializationError:
        return False
    return True
