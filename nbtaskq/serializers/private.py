"""The one place that touches private names of cloudpickle and dill.

Two picklers share one set of reductions. The first is C: cloudpickle's, at C pickle's speed for
data. What it refuses goes through dill's, which is pure Python but knows weak references, `super`
objects and more. Functions and classes are built in two phases in both (first empty, then
filled), with one globals dict for all functions of a pickle, so that mutual recursion works and a
helper's ``global count; count += 1`` is seen by its caller. dill's own function pickling
(`recurse=True`) gives each function globals of its own, where that count stays 0.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import threading
import types
import warnings
import weakref
from datetime import datetime_CAPI
from typing import Any, NamedTuple

import cloudpickle
from cloudpickle import cloudpickle as cp

from nbtaskq.message import Buffer
from nbtaskq.serializers.captures import global_names
from nbtaskq.serializers.identity import ATOMS, class_id
from nbtaskq.serializers.special import SPECIAL, current_shell
from nbtaskq.serializers.unpacking import dependency

#: Buffers of this many bytes and more travel beside the pickle.
OUT_OF_BAND = 1 << 20

_PROTOCOL = 5
_POINTER_TYPE = type(datetime_CAPI)
_FILE_TYPES = (io.RawIOBase, io.BufferedIOBase, io.TextIOWrapper)
_MEMORY_FILES = (io.BytesIO, io.StringIO)
_UNTOUCHED: frozenset[type] = frozenset({*ATOMS, list, dict, tuple, set, frozenset, bytearray})
#: Entries that Python adds to a class's dict when instances or annotations are first asked for.
_APPEARING = ("__slotnames__", "__annotations__")

_class_lock = threading.RLock()
#: Classes that came out of a pickle; only these are filled from the next pickle that has them.
_rebuilt: weakref.WeakSet[type] = weakref.WeakSet()


class Packed(NamedTuple):
    """What a pickler made of a value."""

    body: bytes
    buffers: tuple[Buffer, ...]
    needs: tuple[str, ...]
    filenames: frozenset[str]


def pack(value: object, *, live: bool) -> Packed:
    """Pickle a value; `live` handles travel as handles, others as the results they stand for."""
    try:
        return _pack_with(_CPickler, value, live)
    except RecursionError:
        raise
    except (Exception, SystemExit) as refusal:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", category=pickle.PickleError)  # type: ignore[arg-type]
                return _pack_with(_dill_pickler(), value, live)
        except (Exception, SystemExit):
            # the C pickler's words are about the value; dill's are often about dill
            raise refusal from None


def _pack_with(pickler_type: Any, value: object, live: bool) -> Packed:
    file = io.BytesIO()
    buffers: list[Buffer] = []

    def in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND:
            return True
        # the value may change after it was sent: keep what it is now
        buffers.append(raw if raw.readonly else bytes(raw))
        return False

    pickler = pickler_type(file, protocol=_PROTOCOL, buffer_callback=in_band)
    notes = pickler.take_notes(live)
    pickler.dump(value)
    return Packed(file.getvalue(), tuple(buffers), tuple(notes.needs), frozenset(notes.filenames))


class _Notes:
    """What one run of a pickler finds out beside the bytes."""

    __slots__ = ("filenames", "live", "needs", "plain")

    def __init__(self, live: bool) -> None:
        self.live = live
        self.needs: dict[str, None] = {}
        self.filenames: set[str] = set()
        self.plain: set[type] = set(_UNTOUCHED)


class _Reductions:
    """How special objects are taken apart, for both picklers."""

    notes: _Notes

    def take_notes(self, live: bool) -> _Notes:
        self.notes = _Notes(live)
        return self.notes

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind in self.notes.plain:
            return NotImplemented
        if issubclass(kind, type):
            return _reduce_class(obj)
        if kind is types.FunctionType:
            return self._reduce_function(obj)
        return self._reduce_other(obj, kind)

    def _reduce_function(self, function: types.FunctionType) -> Any:
        if not is_dynamic(function):
            return NotImplemented
        code = function.__code__
        self.notes.filenames.add(code.co_filename)
        reduced = cp.Pickler._dynamic_function_reduce(self, function)
        captured = reduced[2][1]["__globals__"]
        for name in global_names(code):
            if name in function.__globals__:
                captured.setdefault(name, function.__globals__[name])
        return reduced

    def _reduce_other(self, obj: Any, kind: type) -> Any:
        for test, reduce in SPECIAL:
            if issubclass(kind, test):
                return reduce(obj)
        if not self.notes.live and hasattr(kind, "__nbtaskq_task__"):
            task_id = obj.__nbtaskq_task__()
            self.notes.needs[task_id] = None
            return dependency, (task_id, *_output_of(obj))
        shell = current_shell()
        if shell is not None and obj is shell:
            return current_shell, ()
        self.notes.plain.add(kind)
        return NotImplemented


class _CPickler(_Reductions, cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's C pickler with these reductions."""

    #: without cloudpickle's `dump`, which hides a RecursionError
    dump = pickle.Pickler.dump


@functools.cache
def _dill_pickler() -> type:
    """Return dill's pickler with these reductions.

    dill is imported here, not above: it looks `__main__` up at its import, which in a kernel
    must come after the kernel put its own there.
    """
    import dill

    class DillPickler(_Reductions, dill.Pickler):  # type: ignore[misc]
        _function_getnewargs = cp.Pickler._function_getnewargs

        def __init__(self, file: Any, *, protocol: int, buffer_callback: Any) -> None:
            super().__init__(file, protocol, buffer_callback=buffer_callback, recurse=True)
            self.globals_ref: dict[int, Any] = {}

        def reducer_override(self, obj: Any) -> Any:
            reduced = super().reducer_override(obj)
            kind = type(obj)
            if reduced is not NotImplemented or kind in _UNTOUCHED:
                return reduced
            _refuse_outside_resources(obj, kind)
            reduce = cp.Pickler._dispatch_table.get(kind)
            return NotImplemented if reduce is None else reduce(obj)

    return DillPickler


def _refuse_outside_resources(obj: Any, kind: type) -> None:
    """Refuse what dill would take but no other process can use.

    dill opens a file again under its name and mode, and mode ``w`` empties it; a pointer from
    another process crashes.
    """
    if kind is _POINTER_TYPE or (
        isinstance(obj, _FILE_TYPES) and not isinstance(obj, _MEMORY_FILES)
    ):
        raise pickle.PicklingError(f"cannot pickle {kind.__name__!r} object")


def is_dynamic(code: Any) -> bool:
    """Whether a function or class travels by value: no module elsewhere has it under its name."""
    return not cp._should_pickle_by_reference(code)


def _reduce_class(cls: type) -> Any:
    if cls not in cp._BUILTIN_TYPE_NAMES and is_dynamic(cls):
        identify(cls)
        maker, arguments, state, *_ = cp._dynamic_class_reduce(cls)
        for name in _APPEARING:
            # bytes, and so digests, must not depend on who looked at the class before
            if not state[0].get(name) or name == "__slotnames__":
                state[0].pop(name, None)
        slotted = "__slots__" in vars(cls) and not issubclass(cls, tuple)
        if slotted and maker is cp._make_skeleton_class:
            # slots exist from a class's creation or not at all
            arguments[3]["__slots__"] = state[0].pop("__slots__")
        return build_class, (cls.__qualname__, maker, arguments), state, None, None, fill_class
    return cp._class_reduce(cls)


def build_class(qualname: str, maker: Any, arguments: tuple[Any, ...]) -> type:
    """Return the class of this id: the one defined here, one rebuilt before, or a new empty one."""
    key = arguments[-2]
    with _class_lock:
        known = _defined_here(qualname, key) or cp._DYNAMIC_CLASS_TRACKER_BY_ID.get(key)
        if known is not None:
            return known
        built: type = maker(*arguments)
        built.__qualname__ = qualname
        _rebuilt.add(built)
        return built


def fill_class(cls: type, state: Any) -> None:
    """Give a rebuilt class its attributes; one that was defined here keeps its own."""
    if cls in _rebuilt:
        cp._class_setstate(cls, state)


def identify(cls: type) -> str:
    """Return the id under which a class travels.

    It is a digest of name and source, so that a stored result finds the class again that the
    next kernel session defines. Classes that no name leads to may share their source (a factory
    makes one at each call): the first in a process has the digest, others a random id.
    """
    with _class_lock:
        known = cp._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(cls)
        if known is not None:
            return known  # type: ignore[no-any-return]
        named = _main_attribute(cls.__qualname__) is cls
        key = class_id(cls, _base_id)
        if "<locals>" in cls.__qualname__ or (not named and key in cp._DYNAMIC_CLASS_TRACKER_BY_ID):
            return cp._get_or_create_tracker_id(cls)  # type: ignore[no-any-return]
        with cp._DYNAMIC_CLASS_TRACKER_LOCK:
            cp._DYNAMIC_CLASS_TRACKER_BY_CLASS[cls] = key
            cp._DYNAMIC_CLASS_TRACKER_BY_ID[key] = cls
        return key


def _base_id(base: type) -> str:
    return identify(base) if is_dynamic(base) else f"{base.__module__}.{base.__qualname__}"


def _defined_here(qualname: str, key: str) -> type | None:
    found = _main_attribute(qualname)
    if isinstance(found, type) and is_dynamic(found) and identify(found) == key:
        return found
    return None


def _main_attribute(qualname: str) -> Any:
    found: Any = sys.modules.get("__main__")
    for name in qualname.split("."):
        try:
            found = vars(found).get(name)
        except TypeError:
            return None
    return found


def _output_of(handle: Any) -> tuple[str, ...]:
    """Return which output of a cell a handle stands for; nothing for its value."""
    output = getattr(handle, "__nbtaskq_output__", None)
    return () if output is None else (output,)
