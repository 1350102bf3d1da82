"""Finds the part of a value that cannot be pickled, and says where it sits.

Runs only after a failure. It takes the value apart the way pickle does, tries the parts, and
follows the first that fails, within bounds of time and depth.
"""

from __future__ import annotations

import functools
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from nbtaskq.serializers.captures import closure_items, global_names, wrapped
from nbtaskq.serializers.identity import ATOMS, functions_in
from nbtaskq.serializers.private import is_dynamic, pack

_MAX_SECONDS = 2.0
_MAX_DEPTH = 50
_FEW = 32
_TOO_DEEP = "it is nested too deeply"


class Culprit(NamedTuple):
    """The part that cannot be pickled: its path, and pickle's reason."""

    path: str
    reason: str


class Place(NamedTuple):
    """A path: steps from a variable, and where that variable is when it is a captured one."""

    steps: str
    within: str = ""

    def to(self, step: str) -> Place:
        """Return the place one step further in."""
        return self._replace(steps=self.steps + step)

    def __str__(self) -> str:
        if not self.within:
            return self.steps or "the function"
        if self.within.partition(" ")[2].startswith(f"{self.steps!r} "):
            return self.within
        return f"{self.steps} in {self.within}"


Part = tuple[Place, Any]


def find_culprit(value: object, root: str, error: BaseException) -> Culprit:
    """Return the innermost part of `value` that fails, as far as it is found in time."""
    search = _Search(time.monotonic() + _MAX_SECONDS)
    place, found, reason = Place(root), value, _reason(error)
    for depth in range(_MAX_DEPTH):
        parts = _call_parts(value) if depth == 0 and root == "call" else _parts(found, place)
        failing = search.first_failing(list(_collected(parts)))
        if failing is None or (depth > 1 and reason == _TOO_DEEP):
            break
        place, found, reason = failing
    return Culprit(str(place), reason)


class _Search:
    """Tries parts until its time is up; from then on none counts as failing."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def first_failing(self, parts: list[Part]) -> tuple[Place, Any, str] | None:
        """Return the first part that fails; many parts are halved, not tried one by one."""
        while len(parts) > _FEW:
            half = len(parts) // 2
            first = [part for _, part in parts[:half]]
            parts = parts[:half] if self._failure(first) is not None else parts[half:]
        for place, part in parts:
            reason = self._failure(part)
            if reason is not None:
                return place, part, reason
        return None

    def _failure(self, value: Any) -> str | None:
        if type(value) in ATOMS or time.monotonic() > self._deadline:
            return None
        try:
            pack(value, live=True)
        except (Exception, SystemExit) as error:
            return _reason(error)
        return None


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    try:
        text = str(error)
    except Exception:
        text = ""
    return text if isinstance(error, TypeError) and text else f"{type(error).__name__}: {text}"


def _collected(parts: Iterator[Part]) -> Iterator[Part]:
    """Yield parts up to the first error: taking a hostile object apart may raise anything."""
    try:
        yield from parts
    except (Exception, SystemExit):
        return


def _call_parts(call: Any) -> Iterator[Part]:
    args, kwargs = call
    yield Place("args"), args
    yield Place("kwargs"), kwargs


def _parts(value: Any, place: Place) -> Iterator[Part]:
    """Yield the parts that pickle would visit, each with its place."""
    for kinds, take_apart in _KINDS:
        if isinstance(value, kinds):
            return take_apart(value, place)
    return _object_parts(value, place)


def _dict_parts(value: dict[Any, Any], place: Place) -> Iterator[Part]:
    for key, item in list(value.items()):
        yield place.to(f".keys() {_short(key)}"), key
        yield place.to(f"[{_short(key)}]"), item


def _sequence_parts(value: Sequence[Any], place: Place) -> Iterator[Part]:
    fields = getattr(type(value), "_fields", None)
    for index, item in enumerate(value):
        yield place.to(f".{fields[index]}" if fields else f"[{index}]"), item


def _set_parts(value: set[Any], place: Place) -> Iterator[Part]:
    for item in value:
        yield place.to(f" element {_short(item)}"), item


def _function_parts(function: types.FunctionType, place: Place) -> Iterator[Part]:
    if not is_dynamic(function):
        return
    name = f"{function.__qualname__.rpartition('<locals>.')[2]}()"
    for key in global_names(function.__code__):
        if key in function.__globals__:
            yield Place(key, f"global {key!r} captured by {name}"), function.__globals__[key]
    for key, item in closure_items(function):
        yield Place(key, f"variable {key!r} captured by {name}"), item
    for key, item in _defaults(function):
        yield Place(key, f"default {key!r} of {name}"), item
    for key, item in vars(function).items():
        yield Place(f"{function.__name__}.{key}"), item


def _defaults(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    values = function.__defaults__ or ()
    count = function.__code__.co_argcount
    yield from zip(function.__code__.co_varnames[count - len(values) : count], values, strict=True)
    yield from (function.__kwdefaults__ or {}).items()


def _class_parts(cls: type, place: Place) -> Iterator[Part]:
    if not is_dynamic(cls):
        return
    for base in cls.__bases__:
        yield Place(base.__qualname__), base
    for name, attribute in vars(cls).items():
        for function in functions_in(attribute):
            yield Place(f"{cls.__qualname__}.{name}"), function
        if not name.startswith("__"):
            yield Place(f"{cls.__qualname__}.{name}"), attribute


def _partial_parts(value: functools.partial[Any], place: Place) -> Iterator[Part]:
    yield place.to(".func"), value.func
    yield from _sequence_parts(value.args, place.to(".args"))
    yield from _dict_parts(value.keywords, place.to(".keywords"))


def _method_parts(value: types.MethodType, place: Place) -> Iterator[Part]:
    yield place.to(".__self__"), value.__self__
    yield place.to(".__func__"), value.__func__


def _object_parts(value: Any, place: Place) -> Iterator[Part]:
    """Yield the parts of an object's own reduction; a raising one makes the object the culprit."""
    inner = wrapped(value)
    if inner is not None:
        yield place, inner
    if type(value).__module__.startswith("pandas.") and hasattr(value, "columns"):
        for name, column in value.items():
            yield place.to(f"[{_short(name)}]"), list(column)
    reduced = value.__reduce_ex__(5)
    if isinstance(reduced, str):
        return
    function, args, state, items, pairs = (*reduced, None, None, None)[:5]
    yield from _state_parts(state, place)
    for index, item in enumerate(items or ()):
        yield place.to(f"[{index}]"), item
    for key, item in pairs or ():
        yield place.to(f"[{_short(key)}]"), item
    label = ".args" if isinstance(value, BaseException) else ".__reduce__()"
    for index, item in enumerate(args):
        if item is not type(value):
            yield place.to(f"{label}[{index}]"), item
    # code last: what the user put into the value is the likelier mistake
    yield Place(type(value).__qualname__), type(value)
    yield place.to(".__reduce__()"), function


def _state_parts(state: Any, place: Place) -> Iterator[Part]:
    halves = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    for half in halves:
        if isinstance(half, dict):
            for name, item in half.items():
                yield place.to(f".{name}"), item
        elif half is not None:
            yield place.to(".__getstate__()"), half


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
    return text if len(text) <= 40 else f"{text[:37]}..."


_KINDS: tuple[tuple[Any, Callable[[Any, Place], Iterator[Part]]], ...] = (
    (dict, _dict_parts),
    ((list, tuple), _sequence_parts),
    ((set, frozenset), _set_parts),
    (types.FunctionType, _function_parts),
    (type, _class_parts),
    (functools.partial, _partial_parts),
    (types.MethodType, _method_parts),
)
