"""Objects that pickle refuses or gets wrong, and how each is taken apart and put together."""

from __future__ import annotations

import _thread
import dataclasses
import functools
import sys
import threading
import types
from typing import Any

_CACHE_TYPE = type(functools.lru_cache(lambda: None))
_SENTINELS = {
    type(getattr(dataclasses, name)): name
    for name in ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY")
    if hasattr(dataclasses, name)
}


def _reduce_method(method: types.MethodType) -> Any:
    if method.__name__ == "get_ipython" and method.__self__ is current_shell():
        return shell_getter, ()
    return NotImplemented


def _reduce_cache(cached: Any) -> Any:
    """Take an `lru_cache` wrapper apart: what it wraps, its parameters, its attributes."""
    if _importable(cached):
        return NotImplemented
    parameters = cached.cache_parameters()
    state = {k: v for k, v in vars(cached).items() if k != "cache_parameters"}
    return rebuild_cache, (cached.__wrapped__, parameters["maxsize"], parameters["typed"]), state


def rebuild_cache(function: Any, maxsize: int | None, typed: bool) -> Any:
    """Return an empty `lru_cache` around the function."""
    return functools.lru_cache(maxsize, typed)(function)


def _reduce_exception(error: BaseException) -> Any:
    """Take an exception apart without relying on its ``__init__`` accepting its ``args``."""
    kind = type(error)
    plain = (
        kind.__reduce__ is BaseException.__reduce__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and isinstance(kind.__init__, types.FunctionType)
        and not isinstance(kind.__new__, types.FunctionType)
    )
    if not plain:
        return NotImplemented
    return rebuild_exception, (kind, error.args), vars(error) or None


def rebuild_exception(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Make an exception of this type with these `args`, without calling its ``__init__``."""
    error = kind.__new__(kind, *args)
    error.args = args
    return error


def _reduce_sentinel(sentinel: Any) -> Any:
    # dataclasses compares these by identity, which an ordinary pickle loses
    return getattr, (dataclasses, _SENTINELS[type(sentinel)])


def _reduce_lock(_: Any) -> Any:
    # a fresh one: a copy of a held lock would never be released
    return threading.Lock, ()


def _reduce_rlock(_: Any) -> Any:
    return threading.RLock, ()


SPECIAL: tuple[tuple[Any, Any], ...] = (
    (types.MethodType, _reduce_method),
    (_CACHE_TYPE, _reduce_cache),
    (BaseException, _reduce_exception),
    (tuple(_SENTINELS), _reduce_sentinel),
    (_thread.LockType, _reduce_lock),
    (type(threading.RLock()), _reduce_rlock),
)


def current_shell() -> Any:
    """Return the IPython shell of this process, or None."""
    ipython = sys.modules.get("IPython")
    getter = getattr(ipython, "get_ipython", None)
    return None if getter is None else getter()


def shell_getter() -> Any:
    """Return this process's `get_ipython`."""
    from IPython import get_ipython

    return get_ipython


def _importable(obj: Any) -> bool:
    """Whether the object is found under its module and qualified name elsewhere too."""
    found = sys.modules.get(obj.__module__) if obj.__module__ != "__main__" else None
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is obj
