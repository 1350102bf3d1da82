"""The placeholder of a name whose value a task is still computing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NoReturn

from nbtaskq.errors import ValuePending

if TYPE_CHECKING:
    from nbtaskq.client.handle import TaskHandle

#: what using a value means, but for attributes
_USES = """
    call len iter next reversed contains getitem setitem delitem bool int float complex index
    round array array_function array_ufunc enter exit aenter aexit await aiter anext fspath
    eq ne lt le gt ge neg pos abs invert bytes
    add sub mul matmul truediv floordiv mod divmod pow lshift rshift and xor or
    radd rsub rmul rmatmul rtruediv rfloordiv rmod rdivmod rpow rlshift rrshift rand rxor ror
"""


class Pending:
    """Stands for an output of a cell that runs elsewhere, until its value is there.

    Using it raises `ValuePending`. As an argument of another task it is a dependency: that task
    waits for the value.
    """

    __slots__ = ("_handle", "_name", "_since")

    def __init__(self, name: str, handle: TaskHandle[Any]) -> None:
        self._name = name
        self._handle = handle
        self._since = time.time()

    def __nbtaskq_task__(self) -> str:
        """Id of the task whose output this is."""
        return self._handle.task_id

    @property
    def __nbtaskq_output__(self) -> str:
        """Which output of the task this is."""
        return self._name

    def __getattr__(self, name: str) -> NoReturn:
        # displays and copies ask for these to find out what an object can do
        if name.startswith(("__", "_repr_", "_ipython_")):
            raise AttributeError(name)
        raise self._error()

    def __format__(self, spec: str) -> str:
        if spec:
            raise self._error()
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise self._error()

    __hash__ = object.__hash__

    def _error(self) -> ValuePending:
        return ValuePending(f"{self._state()}; {self._advice()}")

    def _state(self) -> str:
        handle = self._handle
        if not handle.done():
            return (
                f"`{self._name}` is still computed by `{handle.task_name}` "
                f"({duration(time.time() - self._since)} so far)"
            )
        error = "" if handle.facts is None else handle.facts.error
        if handle.facts is None or error:
            why = error or "it was not sent"
            return f"`{self._name}` was not computed: `{handle.task_name}` {handle.status}: {why}"
        return f"`{self._name}` has been computed by `{handle.task_name}` since this cell began"

    def _advice(self) -> str:
        short = self._handle.task_id[:8]
        if self._handle.done() and self._handle.facts is not None and self._handle.facts.error:
            return f"nq.attach({short!r}).result() raises its error"
        return f"nq.attach({short!r}).vars[{self._name!r}] waits for it"

    def __repr__(self) -> str:
        return f"<{self._state()}>"


def _refuse(self: Pending, *_: Any, **__: Any) -> NoReturn:
    raise self._error()


for _use in _USES.split():
    setattr(Pending, f"__{_use}__", _refuse)


def duration(seconds: float) -> str:
    """Return a time span as people say it: `4 ms`, `0.4 s`, `12 s`, `3 min 31 s`, `2 h 5 min`."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
