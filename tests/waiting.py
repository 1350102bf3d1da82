"""How tests wait: for a condition, and not for longer than they say."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: seconds that a condition gets to come true
LIMIT = 15.0


def until(condition: Callable[[], Any], what: str, limit: float = LIMIT) -> Any:
    """Return the first true value of a condition; fail when it stays false."""
    end = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < end, f"within {limit:g} s never: {what}"
        time.sleep(0.01)
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    return False
