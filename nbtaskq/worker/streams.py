"""What the kernel's own streams and messages become while a task runs."""

from __future__ import annotations

import os
from typing import Any

from ipykernel.iostream import OutStream
from jupyter_client.session import Session
from traitlets import Any as AnyTrait

from nbtaskq.worker.compat import is_iopub
from nbtaskq.worker.output import Outputs

#: message types that are output
OUTPUT_TYPES = frozenset(
    ("clear_output", "display_data", "error", "execute_result", "stream", "update_display_data")
)
_DESCRIPTORS = {"stdout": 1, "stderr": 2}


class TaskSession(Session):
    """A session whose output messages become a task's notes when a task sends them."""

    outputs: Outputs = AnyTrait()  # type: ignore[assignment]

    def send(
        self, stream: Any, msg_or_type: Any, content: Any = None, *rest: Any, **options: Any
    ) -> Any:
        """Send a message, or take it as output of the task that is running."""
        if self.outputs.child and is_iopub(stream):
            return None  # a fork must not touch the sockets of its parent
        given = isinstance(msg_or_type, dict)
        kind = msg_or_type["header"]["msg_type"] if given else msg_or_type
        if kind in OUTPUT_TYPES and is_iopub(stream):
            body = msg_or_type["content"] if given else content
            if self.outputs.display(kind, body or {}):
                return msg_or_type if given else None
        return super().send(stream, msg_or_type, content, *rest, **options)


class TaskStream(OutStream):
    """A kernel's stdout or stderr whose text becomes a task's notes when a task writes it."""

    def write(self, string: str) -> int | None:  # type: ignore[override]
        """Write text; returns its length."""
        outputs: Outputs = self.session.outputs
        if not isinstance(string, str):
            return super().write(string)
        if outputs.child:
            os.write(_DESCRIPTORS[self.name], string.encode(errors="replace"))
            return len(string)
        if outputs.write(self.name, string):
            return len(string)
        return super().write(string)

    def flush(self) -> None:
        """Send what was written outside tasks; a task's notes leave by themselves."""
        outputs: Outputs = self.session.outputs
        if not outputs.child and outputs.current() is None:
            super().flush()  # type: ignore[no-untyped-call]

    def fileno(self) -> int:
        """Return the descriptor that subprocesses write to; it is captured."""
        return _DESCRIPTORS[self.name]
