"""The traceback of a task as its author knows it: cells and libraries, not our machinery."""

from __future__ import annotations

import os
import sys
import traceback

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_MACHINERY = (
    "asyncio", "concurrent", "contextvars", "IPython", "ipykernel", "runpy", "threading",
    "tornado", "traitlets", "zmq",
)  # fmt: skip


def format_traceback(error: BaseException) -> str:
    """Return the traceback with the task's own frames, causes included.

    Frames of nbtaskq are left out everywhere; frames of the kernel and the event loop only above
    the task's first, because below it they are the task's business.
    """
    report = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    _keep_task_frames(report)
    return "".join(report.format())


def _keep_task_frames(report: traceback.TracebackException) -> None:
    report.stack = traceback.StackSummary.from_list(_task_frames(list(report.stack)))
    inner = (report.__cause__, report.__context__, *(report.exceptions or ()))
    for other in inner:
        if other is not None:
            _keep_task_frames(other)


def _task_frames(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    first = next((i for i, frame in enumerate(frames) if not _is_machinery(frame.filename)), None)
    if first is None:
        return frames
    return [frame for frame in frames[first:] if not frame.filename.startswith(_OURS)]


def _is_machinery(filename: str) -> bool:
    if filename.startswith((_OURS, "<frozen ")):
        return True
    return filename.startswith(_machinery_paths())


def _machinery_paths() -> tuple[str, ...]:
    """Return the files and folders of those modules; only imported ones can have frames."""
    paths = []
    for name in _MACHINERY:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None:
            package = os.path.basename(file) == "__init__.py"
            paths.append(os.path.dirname(file) + os.sep if package else file)
    return tuple(paths)
