"""What a function reaches: the globals, closures, helpers and classes that travel with it."""

from __future__ import annotations

import dis
import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from nbtaskq.serializers.identity import functions_in
from nbtaskq.serializers.special import current_shell

_NAME_OPS = frozenset(
    {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
)
#: What is neither data nor travels by value.
_REFERENCES = (types.ModuleType, types.BuiltinFunctionType)
_names_of_code: weakref.WeakKeyDictionary[types.CodeType, tuple[str, ...]] = (
    weakref.WeakKeyDictionary()
)


def global_names(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that the code, and the code nested in it, may look up as globals."""
    names = _names_of_code.get(code)
    if names is None:
        names = tuple(dict.fromkeys(_scan(code)))
        _names_of_code[code] = names
    return names


def _scan(code: types.CodeType) -> Iterator[str]:
    # class bodies inside a function read globals by LOAD_NAME
    for instruction in dis.get_instructions(code):
        if instruction.opname in _NAME_OPS:
            yield instruction.argval
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from global_names(const)


class Capture(NamedTuple):
    """A piece of data that code reaches.

    Attributes
    ----------
    name : str
        The variable's name.
    value : object
        What it holds.
    is_global : bool
        Whether it is a global; otherwise it sits in a closure, a default or an attribute.
    """

    name: str
    value: Any
    is_global: bool


class Reach:
    """Everything that travels by value with a callable, found without pickling anything.

    Attributes
    ----------
    functions, classes : dict
        By `id`, each function and class from cells that is reached.
    data : list of Capture
        The rest: values that are neither code nor importable by name.
    """

    def __init__(self, root: Callable[..., Any], is_dynamic: Callable[[Any], bool]) -> None:
        self.functions: dict[int, types.FunctionType] = {}
        self.classes: dict[int, type] = {}
        self.data: list[Capture] = []
        self._is_dynamic = is_dynamic
        self._seen: dict[int, Any] = {}
        self._waiting: list[Capture] = [Capture("", root, False)]
        while self._waiting:
            self._visit(self._waiting.pop())

    def _visit(self, found: Capture) -> None:
        value = found.value
        if isinstance(value, types.FunctionType | type):
            if id(value) not in self._seen and self._is_dynamic(value):
                self._seen[id(value)] = value
                self._enter(value)
        elif isinstance(value, functools.partial):
            parts = (value.func, *value.args, *value.keywords.values())
            self._waiting += [found._replace(value=part) for part in parts]
        elif isinstance(value, types.MethodType):
            self._waiting.append(Capture("", value.__func__, False))
            self._waiting.append(found._replace(value=value.__self__))
        elif (inner := wrapped(value)) is not None:
            self._waiting.append(Capture("", inner, False))
        elif not isinstance(value, _REFERENCES) and value is not current_shell():
            self.data.append(found)

    def _enter(self, code: Any) -> None:
        if isinstance(code, type):
            self.classes[id(code)] = code
            self._waiting += [Capture("", part, False) for part in class_parts(code)]
        else:
            self.functions[id(code)] = code
            self._waiting += function_parts(code)


def wrapped(value: Any) -> Any:
    """Return what a caching or decorating object wraps, or None."""
    if isinstance(value, types.FunctionType | type):
        return None
    try:
        return vars(value).get("__wrapped__")
    except TypeError:
        return None


def function_parts(function: types.FunctionType) -> Iterator[Capture]:
    """Yield what a function holds: globals that exist, closure variables, defaults, attributes."""
    namespace = function.__globals__
    for name in global_names(function.__code__):
        if name in namespace:
            yield Capture(name, namespace[name], True)
    for name, value in closure_items(function):
        yield Capture(name, value, False)
    for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield Capture("", value, False)
    for name, value in vars(function).items():
        yield Capture(name, value, False)


def closure_items(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each closure variable that is bound."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # an empty cell: the variable is not bound yet
            continue


def class_parts(cls: type) -> Iterator[Any]:
    """Yield the code that a class consists of: functions, nested classes, bases."""
    for value in vars(cls).values():
        yield from functions_in(value)
        if isinstance(value, type) or wrapped(value) is not None:
            yield value
    yield from cls.__bases__


def approximate_size(value: Any) -> int:
    """Return about how many bytes a value holds; containers are sampled."""
    try:
        return _size(value, 0)
    except Exception:
        # attributes of a strange object may raise anything, and this is only an estimate
        return object.__sizeof__(value)


def _size(value: Any, depth: int) -> int:
    for measure in (_size_of_array, _size_of_frame):
        size = measure(value)
        if size is not None:
            return size
    size = sys.getsizeof(value, 64)
    if depth < 4:
        if isinstance(value, dict):
            size += _sampled(list(value.values()), depth)
        elif isinstance(value, list | tuple | set | frozenset):
            size += _sampled(list(value), depth)
        elif isinstance(attributes := getattr(value, "__dict__", None), dict):
            size += _sampled(list(attributes.values()), depth)
    return size


def _size_of_array(value: Any) -> int | None:
    nbytes = getattr(value, "nbytes", None)
    return nbytes if isinstance(nbytes, int) else None


def _size_of_frame(value: Any) -> int | None:
    usage = getattr(type(value), "memory_usage", None)
    if usage is None:
        return None
    return int(getattr(used := usage(value), "sum", lambda: used)())


def _sampled(items: list[Any], depth: int) -> int:
    sample = items[:: max(1, len(items) // 50)]
    total = sum(_size(item, depth + 1) for item in sample)
    return total * len(items) // max(1, len(sample))
