"""Freezes a function for each send, and pays for it only when something has changed."""

from __future__ import annotations

import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from nbtaskq.abc.serializer import Frozen, Serializer
from nbtaskq.serializers.special import current_shell

if TYPE_CHECKING:
    from nbtaskq.client.watch import Large, Watch


class LargeCaptureWarning(UserWarning):
    """A task captures a global that is too large to be compared at each send."""


class _Entry(NamedTuple):
    """A frozen function with what it reached then."""

    ref: weakref.ref[Any]
    watch: Watch
    frozen: Frozen
    cell: int
    surroundings: tuple[str, list[str]]


class Freezer:
    """Keeps the frozen form of functions for as long as they live and stay unchanged.

    A change is seen in the function, in its helpers and classes, and in the globals that they
    read: names bound anew, and data of up to 10 MB changed in place. Larger data is frozen once
    per execution of a cell, with a `LargeCaptureWarning`. Outside of IPython all is one cell.

    Parameters
    ----------
    serializer : Serializer
        What freezes. May be called from any thread.
    """

    def __init__(self, serializer: Serializer) -> None:
        self._serializer = serializer
        self._entries: dict[int, _Entry] = {}
        self._lock = threading.RLock()

    def freeze(self, function: Callable[..., Any]) -> Frozen:
        """Return the function's frozen form as of now.

        Raises
        ------
        SerializationError
            It, or something that it captures, cannot travel.
        """
        cell = _current_cell()
        with self._lock:
            entry = self._entries.get(id(function))
            if entry is not None and _holds(entry, function, cell):
                return entry.frozen
            fresh = self._renewed(function, cell)
        if entry is None or entry.cell != cell:
            _warn_of(fresh.watch.large, function, cell)
        else:
            known = {large.name for large in entry.watch.large}
            _warn_of([e for e in fresh.watch.large if e.name not in known], function, cell)
        return fresh.frozen

    def _renewed(self, function: Callable[..., Any], cell: int) -> _Entry:
        from nbtaskq.client.watch import Watch

        # looked at before it is frozen: what changes in between is seen at the next send
        watch, surroundings = Watch(function), _surroundings()
        frozen = self._serializer.freeze(function)
        key = id(function)
        try:
            ref = weakref.ref(function, lambda _: self._entries.pop(key, None))
        except TypeError:
            # cannot be told from a later object at the same address: freeze it each time
            return _Entry(lambda: None, watch, frozen, cell, surroundings)  # type: ignore[arg-type]
        entry = self._entries[key] = _Entry(ref, watch, frozen, cell, surroundings)
        return entry


def _holds(entry: _Entry, function: Callable[..., Any], cell: int) -> bool:
    if entry.ref() is not function or (entry.watch.large and entry.cell != cell):
        return False
    return entry.surroundings == _surroundings() and entry.watch.unchanged(function)


def _surroundings() -> tuple[str, list[str]]:
    """Return directory and import paths; they travel with the function."""
    try:
        return os.getcwd(), sys.path.copy()
    except FileNotFoundError:  # the directory is gone
        return "", sys.path.copy()


def _current_cell() -> int:
    """Return the number of the running cell, 0 outside of IPython."""
    shell = current_shell()
    return shell.execution_count if shell is not None else 0


def _warn_of(captures: list[Large], function: Callable[..., Any], cell: int) -> None:
    name = getattr(function, "__name__", type(function).__name__)
    where = f"In [{cell}]" if cell else "this program"
    for large in captures:
        warnings.warn(
            f"{name}() captures {large.name!r}, about {large.nbytes / 1e6:,.0f} MB. It is sent "
            f"once per cell execution: changes inside it later in {where} are not seen. Pass it "
            f"as an argument to send it with each call",
            LargeCaptureWarning,
            stacklevel=_level_of_the_user(),
        )


def _level_of_the_user() -> int:
    """Return the stack level of the first caller that is not ours, for a warning of its line."""
    frame = sys._getframe(1)
    level = 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("nbtaskq."):
        frame = frame.f_back
        level += 1
    return level
