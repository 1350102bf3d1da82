"""Handles and batches as small HTML that reads well without its styles and without a kernel.

Whatever comes from a task is escaped. Nothing is in the present tense: it stays in the file.
"""

from __future__ import annotations

import html
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nbtaskq.message import TaskStatus
from nbtaskq.notebook.pending import duration

if TYPE_CHECKING:
    from nbtaskq.client.batch import Batch
    from nbtaskq.client.handle import TaskHandle

_ICONS = {TaskStatus.WAITING: "○", TaskStatus.QUEUED: "○", TaskStatus.RUNNING: "●",
          TaskStatus.SUCCEEDED: "✓"}  # fmt: skip
_MUTED = "color: var(--jp-ui-font-color2, #666)"
_RED = "color: var(--jp-error-color1, #c62828)"
#: longest text of one value
_LONGEST = 200
#: different errors that are listed
_ERRORS = 5


def handle_html(handle: TaskHandle[Any]) -> str:
    """Return one task: state, name, times, place, what it used, its error."""
    status = handle.status
    end = handle.facts
    words = [f"<b>{icon(status)} {escape(status)}</b>", f"<code>{escape(handle.task_name)}</code>"]
    if handle.arguments:
        words.append(escape(_call(handle.arguments)))
    if end is not None and end.started:
        words += [duration(end.seconds), _span(end.started, end.seconds), escape(end.worker)]
        if end.attempts > 1:
            words.append(f"attempt {end.attempts}")
    elif handle.worker:
        words.append(escape(handle.worker))
    words.append(f"id {escape(handle.task_id[:8])}")
    lines = [" &nbsp; ".join(words), *_notes(handle)]
    return "".join(f"<div>{line}</div>" for line in lines)


def batch_html(batch: Batch[Any]) -> str:
    """Return a batch: how many are in each state, and its errors, each once with a count."""
    states = Counter(handle.status for handle in batch)
    counts = " &nbsp; ".join(
        f"{count} {icon(status)} {escape(status)}" for status, count in sorted(states.items())
    )
    lines = [f"<b><code>{escape(batch.name)}</code> × {len(batch)}</b> &nbsp; {counts}"]
    if not all(handle.done() for handle in batch):
        lines.append(f'<span style="{_MUTED}">as of {_clock(time.time())} UTC</span>')
    errors = Counter(h.facts.error for h in batch if h.facts is not None and h.facts.error)
    for text, count in errors.most_common(_ERRORS):
        lines.append(f'<span style="{_RED}">✗ {count} × {escape(text)}</span>')
    if len(errors) > _ERRORS:
        lines.append(f"… and {len(errors) - _ERRORS} other errors")
    return "".join(f"<div>{line}</div>" for line in lines)


def icon(status: TaskStatus) -> str:
    """Return the character of a state."""
    return _ICONS.get(status, "✗")


def escape(text: object) -> str:
    """Return text for HTML; control characters are left out, long text is cut."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return html.escape(plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…")


def _notes(handle: TaskHandle[Any]) -> list[str]:
    """Return the muted lines below a task."""
    notes = []
    used = [name for name, value in handle.captured.items() if _is_data(value)]
    if used:
        notes.append("used " + ", ".join(map(escape, used)))
    if not handle.done():
        key = escape(repr(handle.task_id[:8]))
        notes.append(f"as of {_clock(time.time())} UTC; <code>nq.attach({key})</code> finds it")
    lines = [f'<span style="{_MUTED}">{note}</span>' for note in notes]
    if handle.facts is not None and handle.facts.error:
        lines.append(f'<span style="{_RED}">{escape(handle.facts.error)}</span>')
    elif handle.facts is None and handle.done():
        lines.append(f'<span style="{_RED}">not sent: {escape(handle.exception(0))}</span>')
    return lines


def _is_data(value: Any) -> bool:
    """Whether a captured value is neither code nor a module."""
    return not callable(value) and not hasattr(value, "__spec__")


def _call(arguments: dict[str, Any]) -> str:
    from nbtaskq.client.handle import arguments_text

    return f"({arguments_text(arguments)})"


def _span(started: float, seconds: float) -> str:
    """Return when it ran, as `14:01–14:04 UTC` with the day."""
    first, last = _clock(started)[:5], _clock(started + seconds)[:5]
    times = first if first == last else f"{first}–{last}"
    return f"{datetime.fromtimestamp(started, UTC):%Y-%m-%d} {times} UTC"


def _clock(instant: float) -> str:
    return f"{datetime.fromtimestamp(instant, UTC):%H:%M:%S}"
