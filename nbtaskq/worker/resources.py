"""What this host gives: processors, and what processes use of it."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")


class Usage(NamedTuple):
    """What one process uses now."""

    stopped: bool
    cpu_seconds: float
    rss: int


def usage(pid: int) -> Usage | None:
    """Return what a process uses, None if it is gone."""
    if sys.platform == "linux":
        return _usage_linux(pid)
    return _usage_psutil(pid)


def _usage_linux(pid: int) -> Usage | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # the name in parentheses may hold blanks and parentheses itself
    fields = text[text.rindex(")") + 2 :].split()
    ticks = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return Usage(fields[0] in "Tt", ticks, int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))


def _usage_psutil(pid: int) -> Usage | None:
    import psutil

    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        stopped = process.status() == psutil.STATUS_STOPPED
        return Usage(stopped, times.user + times.system, process.memory_info().rss)
    except psutil.Error:
        return None


def available_cpus() -> int:
    """Return how many processors this process may use: its affinity and its container's limit."""
    if sys.platform == "linux":
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    return max(1, min(cpus, math.ceil(min(_quotas(), default=cpus))))


def _quotas() -> list[float]:
    """Return the processor limits of this process's control groups and of those around them."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                found += _quotas_of(controllers, path)
    return found


def _quotas_of(controllers: str, path: str) -> list[float]:
    root = CGROUPS / controllers if controllers else CGROUPS
    inner = Path(path.lstrip("/"))
    folders = [root / folder for folder in (inner, *inner.parents)]
    return [quota for folder in folders if (quota := cpu_quota(folder)) is not None]


def cpu_quota(folder: Path) -> float | None:
    """Return the processors that a control group, of either version, is limited to."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((folder / name).read_text() for name in names).split()
        except OSError:
            continue
        if len(words) == 2 and words[0].isdigit() and int(words[1]):
            return int(words[0]) / int(words[1])
    return None


def oom_kills() -> int:
    """Return how many processes of this control group were killed for want of memory."""
    for line in _memory_events().splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return 0


def _memory_events() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for file in _event_files(controllers, path.lstrip("/")):
                if file.exists():
                    return file.read_text()
    return ""


def _event_files(controllers: str, path: str) -> list[Path]:
    if controllers == "memory":
        name, root = "memory.oom_control", CGROUPS / "memory"
    elif controllers == "":
        name, root = "memory.events", CGROUPS
    else:
        return []
    return [root / path / name, root / name]
