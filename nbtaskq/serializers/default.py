"""The default serializer: C pickle for data, by-value code for cells, dill for the rest."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from nbtaskq.abc.serializer import Frozen, Serializer
from nbtaskq.errors import DeserializationError, SerializationError
from nbtaskq.message import Object, Parcel, digest_of
from nbtaskq.serializers.home import Home, cell_sources, remember_sources
from nbtaskq.serializers.identity import ATOMS

#: Values that say how a task ended. A handle in them is the task's own business, no dependency.
_ENDS = frozenset({"result", "exception"})


class DillSerializer(Serializer):
    """Serializes what a notebook holds: data, functions and classes from cells, handles.

    Classes from cells keep their identity: `isinstance` holds in the task, on its result, between
    messages, and in the next kernel session when the class is defined again with the same source.
    Buffers of 1 MB and more travel beside the pickle, as they were at the time of the call.
    """

    def dumps(self, value: object, *, root: str = "value") -> Parcel:
        """Serialize `value`.

        `root` is what error paths start with. With ``"call"`` the value is ``(args, kwargs)``,
        and paths read ``args[2].conn`` or ``kwargs['lock']``. Handles stand for the results of
        their tasks, except below the roots ``"result"`` and ``"exception"``, where they stay
        handles.
        """
        if _is_plain_call(value):
            return Parcel(pickle.dumps(value, 5))
        from nbtaskq.serializers.private import pack

        try:
            packed = pack(value, live=root in _ENDS)
        except (Exception, SystemExit) as error:
            raise _refusal(value, root, error) from error
        return Parcel(packed.body, packed.buffers, packed.needs)

    def loads(self, parcel: Parcel, results: Mapping[str, Any] | None = None) -> Any:
        """Rebuild the value; arrays in it are writable and nobody else's."""
        if not parcel.buffers and not parcel.needs:
            try:
                return pickle.loads(parcel.body)
            except Exception as error:
                raise _unreadable("a value", error) from error
        from nbtaskq.serializers.unpacking import unpack

        try:
            return unpack(io.BytesIO(parcel.body), parcel.buffers, results)
        except DeserializationError:
            raise
        except Exception as error:
            raise _unreadable("a value", error) from error

    def freeze(self, function: Callable[..., Any]) -> Frozen:
        """Serialize a function with the globals, helpers and classes it uses.

        The bytes also carry the sender's directory, its import paths and the source of the cells,
        see `thaw_home`. Handles among the globals stay handles.
        """
        from nbtaskq.serializers.private import pack

        try:
            packed = pack(function, live=True)
            captures = _captured_data(function)
        except (Exception, SystemExit) as error:
            raise _refusal(function, "", error) from error
        header = (*Home.here(), cell_sources(packed.filenames))
        body = pickle.dumps(header, 5) + packed.body
        refs = tuple(map(digest_of, packed.buffers))
        objects = tuple(
            Object(d, b) for d, b in dict(zip(refs, packed.buffers, strict=True)).items()
        )
        return Frozen(Object(digest_of(body, *refs), body, refs), objects, captures)

    def thaw(self, parcel: Parcel) -> Callable[..., Any]:
        """Rebuild a function from its object's body and its buffers, in the order of its refs."""
        from nbtaskq.serializers.unpacking import unpack

        try:
            file = io.BytesIO(parcel.body)
            cwd, sys_path, sources = pickle.load(file)
            remember_sources(sources)
            with Home(cwd, sys_path).importable():
                function: Callable[..., Any] = unpack(file, parcel.buffers)
        except DeserializationError:
            raise
        except Exception as error:
            raise _unreadable("a function", error) from error
        return function

    def thaw_home(self, parcel: Parcel) -> Home:
        """Return where a frozen function comes from, without loading the function."""
        try:
            cwd, sys_path, _ = pickle.load(io.BytesIO(parcel.body))
        except Exception as error:
            raise _unreadable("a function", error) from error
        return Home(cwd, sys_path)


def _is_plain_call(value: object) -> bool:
    """Whether this is ``(args, kwargs)`` with nothing in it that needs more than plain pickle."""
    if type(value) is not tuple or len(value) != 2:
        return False
    args, kwargs = value
    return (
        type(args) is tuple
        and type(kwargs) is dict
        and ATOMS.issuperset(map(type, args))
        and ATOMS.issuperset(map(type, kwargs.values()))
    )


def _captured_data(function: Callable[..., Any]) -> tuple[tuple[str, int], ...]:
    from nbtaskq.serializers.captures import Reach, approximate_size
    from nbtaskq.serializers.private import is_dynamic

    data = Reach(function, is_dynamic).data
    sizes = {c.name: approximate_size(c.value) for c in data if c.is_global}
    return tuple(sorted(sizes.items()))


def _refusal(value: object, root: str, error: BaseException) -> SerializationError:
    if isinstance(error, SerializationError) and error.path:
        return error
    from nbtaskq.serializers.paths import find_culprit

    culprit = find_culprit(value, root, error)
    return SerializationError(
        f"{culprit.path} cannot be serialized: {culprit.reason}. Create it inside the task, or "
        f"pass what is needed to create it there",
        culprit.path,
    )


def _unreadable(what: str, error: Exception) -> DeserializationError:
    if isinstance(error, ModuleNotFoundError):
        missing = f"module {error.name!r} cannot be imported in this process"
        advice = "Install it here, or put its file beside the notebook"
    elif isinstance(error, AttributeError | ImportError):
        missing = f"a name is missing in this process: {error}"
        advice = "Its module here is another version, or was edited after it was imported"
    else:
        missing = f"{type(error).__name__}: {error}"
        advice = "The bytes are damaged, or a class they use has changed"
    return DeserializationError(f"Cannot load {what}: {missing}. {advice}")
