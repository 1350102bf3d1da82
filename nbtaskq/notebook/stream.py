"""Shows a task's output in the running cell as it comes; for front ends that only run through."""

from __future__ import annotations

import json
import queue
import sys
from typing import TYPE_CHECKING, Any

from nbtaskq.client.waiting import NUDGE

if TYPE_CHECKING:
    from nbtaskq.client.handle import TaskHandle


def is_headless(shell: Any) -> bool:
    """Whether the running cell's front end takes no input: nbclient, nbval, papermill."""
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return False
    parent = kernel.get_parent("shell") or {}
    return parent.get("content", {}).get("allow_stdin") is False


def follow(handle: TaskHandle[Any]) -> None:
    """Show output until the task has ended, then the rest of it.

    Raises
    ------
    BrokerUnreachable
        No hub answers, and none can be started.
    """
    news: queue.SimpleQueue[None] = queue.SimpleQueue()
    shown = _Shown()

    def wake() -> None:
        news.put(None)

    handle._when("changed", wake)
    handle._when("done", wake)
    try:
        while not handle.done():
            try:
                news.get(timeout=NUDGE)
            except queue.Empty:
                handle._check_trouble()
                handle._nudge("done")
            shown.show(handle._notes)
    except KeyboardInterrupt:
        print(f"Stopped waiting; `{handle.task_name}` goes on. "
              f"nq.attach({handle.task_id[:8]!r}) has its handle.")  # fmt: skip
        raise
    finally:
        handle._forget(wake)
    if handle.facts is not None:
        handle._fill_output()
        shown.show(handle._notes, gaps=True)


class _Shown:
    """Which pieces of output have been shown; they come numbered from 0."""

    def __init__(self) -> None:
        self._next = 0

    def show(self, notes: dict[int, bytes], *, gaps: bool = False) -> None:
        """Show what is next; what lies behind a gap only if the gap will not be filled."""
        for number in sorted(number for number in list(notes) if number >= self._next):
            if number > self._next and not gaps:
                return
            show_piece(json.loads(notes[number]))
            self._next = number + 1


def show_piece(piece: dict[str, Any]) -> None:
    """Show one Jupyter output message here; errors are raised elsewhere."""
    from IPython import display

    clear: Any = display.clear_output
    publish: Any = display.publish_display_data
    kind = piece.get("output_type")
    if kind == "stream":
        stream = sys.stderr if piece.get("name") == "stderr" else sys.stdout
        stream.write(piece["text"])
        stream.flush()
    elif kind == "clear_output":
        clear(wait=bool(piece.get("wait")))
    elif "data" in piece:
        publish(
            piece["data"],
            piece.get("metadata") or {},
            transient=piece.get("transient") or {},
            update=kind == "update_display_data",
        )
