"""The client's side of starting and stopping: the supervisor is spawned, never imported."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from nbtaskq import errors
from nbtaskq.errors import BrokerUnreachable, HubAlreadyRunning, NbTaskQError
from nbtaskq.process import Lock, spawn
from nbtaskq.workspace import Workspace, jupyter_runtime

MODULE = "nbtaskq.supervisor"


def ensure_running(
    workspace: Workspace,
    workers: int | None = None,
    executable: str = sys.executable,
    *,
    idle: float | None = None,
) -> bool:
    """Start the supervisor of a workspace unless one is at work; return whether it was started.

    It is detached, outlives this process, and comes up in the background. To be called again
    when nothing answers for a while: the one that was at work may just have been ending.

    Parameters
    ----------
    workspace : Workspace
        It is created when it is missing.
    workers : int, optional
        How many workers a new supervisor starts with.
    executable : str
        The Python of supervisor, hub and workers.
    idle : float, optional
        Seconds without work and clients after which it ends.

    Raises
    ------
    WorkspaceError
        The workspace cannot be used.
    BrokerUnreachable
        No process can be started.
    """
    try:
        return _ensure_running(workspace, workers, executable, idle)
    except NbTaskQError:
        raise
    except OSError as error:
        raise BrokerUnreachable(
            f"No hub can be started for {workspace.folder} with {executable}: {error}"
        ) from error


def _ensure_running(
    workspace: Workspace, workers: int | None, executable: str, idle: float | None
) -> bool:
    workspace.create()
    lock = Lock(workspace.supervisor_lock)
    try:
        lock.acquire()
    except HubAlreadyRunning:
        return False
    try:
        workspace.failure_file.unlink(missing_ok=True)
        options: dict[str, Any] = {"lock": lock.fileno()}
        options |= {"workspace": str(workspace.folder), "workers": workers}
        if idle is not None:
            options["idle"] = idle
        child = spawn(
            MODULE,
            options,
            log=workspace.log("supervisor"),
            detach=True,
            pass_fds=[lock.fileno()],  # held without a gap, so nobody starts another one
            executable=executable,
            env=os.environ | {"JUPYTER_RUNTIME_DIR": str(jupyter_runtime())},
        )
        lock.hand_over(child.pid)
    finally:
        lock.release()
    return True


def running(workspace: Workspace) -> int | None:
    """Return the pid of the workspace's supervisor, None when there is none."""
    if not workspace.exists:
        return None
    return Lock.holder(workspace.supervisor_lock)


def failure(workspace: Workspace) -> NbTaskQError | None:
    """Return why the hub does not come up, as the error to raise; None when nothing is known."""
    try:
        facts = json.loads(workspace.failure_file.read_bytes())
    except (OSError, ValueError):
        return None
    kind = getattr(errors, str(facts.get("error")), BrokerUnreachable)
    return kind(str(facts.get("text")))


def stop_running(workspace: Workspace, timeout: float = 10.0) -> bool:
    """End the supervisor, its hub and its workers; return whether there was one.

    To be used when the hub does not answer. What does not end within `timeout` is killed; the
    workspace's data stays.
    """
    pid = running(workspace)
    if not pid or not _is_supervisor(pid):
        return False
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)
        if _wait_for_end(workspace, pid, timeout):
            break
    return True


def _is_supervisor(pid: int) -> bool:
    """Tell the holder of the lock from a stranger that got its number."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return MODULE.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return False
    import psutil

    with contextlib.suppress(psutil.Error):
        return MODULE in psutil.Process(pid).cmdline()
    return False


def _wait_for_end(workspace: Workspace, pid: int, timeout: float) -> bool:
    if sys.platform == "linux":
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                poller = select.poll()  # unlike select.select, also for descriptors over 1023
                poller.register(pidfd, select.POLLIN)
                return bool(poller.poll(timeout * 1000))
            finally:
                os.close(pidfd)
        return True
    deadline = time.monotonic() + timeout
    while running(workspace) == pid:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
