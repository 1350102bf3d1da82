"""How values and functions become bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nbtaskq.message import Object, Parcel


class Frozen(NamedTuple):
    """A function with everything it captures, as it was at one moment.

    Attributes
    ----------
    code : Object
        The function's pickle, content-addressed; its `refs` are the large buffers.
    objects : tuple of Object
        Those buffers, each under its own digest.
    captures : tuple of (str, int)
        Name and approximate size in bytes of each captured global that is data.
    """

    code: Object
    objects: tuple[Object, ...] = ()
    captures: tuple[tuple[str, int], ...] = ()

    @property
    def digest(self) -> bytes:
        """The digest that messages name."""
        return self.code.digest

    @property
    def nbytes(self) -> int:
        """Size in bytes, buffers included."""
        return sum(memoryview(o.body).nbytes for o in (self.code, *self.objects))


class Serializer(ABC):
    """Turns values and functions into bytes and back.

    `dumps` and `freeze` raise `SerializationError` with the path to what cannot travel;
    `loads` and `thaw` raise `DeserializationError`. Both may be called from any thread.
    """

    @abstractmethod
    def dumps(self, value: object, *, root: str = "value") -> Parcel:
        """Serialize `value`; `root` is what error paths start with, e.g. ``args``.

        A task handle anywhere inside is written as the result it stands for, and its id is
        listed in `Parcel.needs`.
        """

    @abstractmethod
    def loads(self, parcel: Parcel, results: Mapping[str, Any] | None = None) -> Any:
        """Rebuild the value; `results` gives the values of the tasks in `Parcel.needs`."""

    @abstractmethod
    def freeze(self, function: Callable[..., Any]) -> Frozen:
        """Serialize a function with the globals, helpers and classes it uses."""

    @abstractmethod
    def thaw(self, parcel: Parcel) -> Callable[..., Any]:
        """Rebuild a function from its object's body and its buffers."""
