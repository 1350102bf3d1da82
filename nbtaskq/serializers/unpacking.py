"""Loading pickles: arrays that may be written to, and the results of other tasks put in."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nbtaskq.errors import DeserializationError
from nbtaskq.message import Buffer, CellResult


def unpack(
    file: io.BytesIO, buffers: Sequence[Buffer], results: Mapping[str, Any] | None = None
) -> Any:
    """Load the next pickle of a file.

    Arrays over read-only memory could not be written to, which nobody expects of an argument:
    such buffers are copied. Writable ones (a private mapping) are used as they are.
    """
    return _Loader(file, buffers=_writable(buffers), results=results or {}).load()


def _writable(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    for buffer in buffers:
        yield bytearray(buffer) if memoryview(buffer).readonly else buffer


class _Loader(pickle.Unpickler):
    """The C unpickler, with the results of other tasks at hand."""

    def __init__(self, file: io.BytesIO, *, buffers: Any, results: Mapping[str, Any]) -> None:
        super().__init__(file, buffers=buffers)
        self._results = results

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name == "dependency":
            return self._result
        return super().find_class(module, name)

    def _result(self, task_id: str, output: str | None = None) -> Any:
        try:
            found = self._results[task_id]
        except KeyError:
            raise DeserializationError(
                f"This value contains the result of task {task_id}, which is not at hand"
            ) from None
        if isinstance(found, CellResult):
            return found.value if output is None else found.outputs[output]
        return found


def dependency(task_id: str, output: str | None = None) -> Any:
    """Stand in a pickle for the result of a task; `unpack` puts the result there."""
    raise DeserializationError(f"The result of task {task_id} is only known to `unpack`")
