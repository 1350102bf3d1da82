"""Tells whether a function, and all that it reaches, is still what it was.

Each function, class and wrapper that is reached is a holder: it has values in a fixed order
(globals by name, closure variables, defaults, attributes). Code, modules and immutable values
are compared by identity, other data by a digest of its content. Values are referenced weakly
where Python allows it, so that watching a function keeps neither it nor its data alive.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from nbtaskq.client.fingerprint import TooLarge, fingerprint
from nbtaskq.serializers.captures import approximate_size, global_names, wrapped
from nbtaskq.serializers.identity import ATOMS, functions_in
from nbtaskq.serializers.private import is_dynamic
from nbtaskq.serializers.special import current_shell

#: Data of more bytes than this is not read again for each send.
LIMIT = 10_000_000

_MISSING = object()
_BY_IDENTITY = (types.ModuleType, types.BuiltinFunctionType, types.CodeType, property)
Named = tuple[str, Any]


class Large(NamedTuple):
    """A captured value that is too large to be read for each send."""

    name: str
    nbytes: int


class Watch:
    """What a callable reached at one moment.

    Attributes
    ----------
    large : list of Large
        Data that is only compared by identity because of its size.
    """

    def __init__(self, root: Callable[..., Any]) -> None:
        self.large: list[Large] = []
        self._holders: list[_Holder] = []
        self._known: dict[int, object] = {}
        self._waiting: list[Any] = []
        self._root = self._expectation("", root)
        while self._waiting:
            holder = _Holder(self._waiting.pop())
            holder.expected = [self._expectation(*item) for item in holder.items()]
            self._holders.append(holder)
        # only needed while building; it would keep everything alive
        self._known.clear()

    def unchanged(self, root: Callable[..., Any]) -> bool:
        """Whether everything is what it was, large data by identity only."""
        return self._root.met_by(root) and all(holder.unchanged() for holder in self._holders)

    def _expectation(self, name: str, value: Any) -> _Expectation:
        if type(value) in ATOMS or value is _MISSING:
            return _Same(value)
        for part in (value, *functions_in(value)):
            self._enter(part)
        if isinstance(value, _BY_IDENTITY) or id(value) in self._known or name.startswith("__"):
            return _same(value)
        if isinstance(value, types.FunctionType | type) or value is current_shell():
            return _same(value)
        return self._content(name, value)

    def _enter(self, value: Any) -> None:
        """Note a holder to look into."""
        if id(value) not in self._known and _is_holder(value):
            self._known[id(value)] = value
            self._waiting.append(value)

    def _content(self, name: str, value: Any) -> _Expectation:
        try:
            found = fingerprint(value, LIMIT)
        except TooLarge:
            self.large.append(Large(name or type(value).__name__, approximate_size(value)))
            return _same(value)
        except Exception:
            # pickle refuses it; `freeze` says so, or dill takes it
            return _same(value)
        for code in found.code:
            self._enter(code)
        return _Content(found.digest)


class _Expectation(Protocol):
    def met_by(self, value: Any) -> bool: ...


class _Same:
    """Exactly this object, which is kept alive."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def met_by(self, value: Any) -> bool:
        return value is self._value


class _SameAlive:
    """Exactly this object, which may go."""

    __slots__ = ("_ref",)

    def __init__(self, value: Any) -> None:
        self._ref = weakref.ref(value)

    def met_by(self, value: Any) -> bool:
        return self._ref() is value


def _same(value: Any) -> _Expectation:
    try:
        return _SameAlive(value)
    except TypeError:
        return _Same(value)


class _Content:
    """Any object with this content."""

    __slots__ = ("_digest",)

    def __init__(self, digest: bytes) -> None:
        self._digest = digest

    def met_by(self, value: Any) -> bool:
        try:
            return fingerprint(value, LIMIT).digest == self._digest
        except Exception:
            return False


class _Holder:
    """An object that holds values, and what is expected of them."""

    __slots__ = ("_ref", "_values", "expected")

    def __init__(self, subject: Any) -> None:
        self._ref = weakref.ref(subject)
        self._values = next(values for kind, values in _HOLDERS if isinstance(subject, kind))
        self.expected: list[_Expectation] = []

    def items(self) -> list[Named]:
        return list(self._values(self._ref()))

    def unchanged(self) -> bool:
        subject = self._ref()
        if subject is None:
            return False
        items = list(self._values(subject))
        if len(items) != len(self.expected):
            return False
        for expected, (_, value) in zip(self.expected, items, strict=True):
            if not expected.met_by(value):
                return False
        return True


def _is_holder(value: Any) -> bool:
    if isinstance(value, types.FunctionType | type):
        return is_dynamic(value)
    return isinstance(value, functools.partial | types.MethodType) or wrapped(value) is not None


def _function_values(function: types.FunctionType) -> Iterable[Named]:
    lookup = function.__globals__.get
    code = function.__code__
    items = [(name, lookup(name, _MISSING)) for name in global_names(code)]
    items.append(("__code__", code))
    if function.__closure__:
        cells = zip(code.co_freevars, function.__closure__, strict=True)
        items += [(name, _cell_value(cell)) for name, cell in cells]
    if function.__defaults__:
        items += [("default", value) for value in function.__defaults__]
    if function.__kwdefaults__:
        items += function.__kwdefaults__.items()
    if function.__dict__:
        items += [(name.lstrip("_"), value) for name, value in function.__dict__.items()]
    return items


def _cell_value(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return _MISSING


def _class_values(cls: type) -> Iterator[Named]:
    yield from vars(cls).items()
    for base in cls.__bases__:
        yield "__base__", base


def _partial_values(value: functools.partial[Any]) -> Iterator[Named]:
    yield "func", value.func
    for item in (*value.args, *value.keywords.values()):
        yield "argument", item


def _method_values(method: types.MethodType) -> Iterator[Named]:
    yield "__func__", method.__func__
    yield "self", method.__self__


def _wrapper_values(value: Any) -> Iterator[Named]:
    yield "__wrapped__", wrapped(value)


_HOLDERS: tuple[tuple[Any, Callable[[Any], Iterable[Named]]], ...] = (
    (types.FunctionType, _function_values),
    (type, _class_values),
    (functools.partial, _partial_values),
    (types.MethodType, _method_values),
    (object, _wrapper_values),
)
