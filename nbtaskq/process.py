"""Processes: locks with an owner, children that die with their parent, and how they ended.

A child gets its options as JSON on its standard input, never in its arguments, which every
user of the host can read.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from nbtaskq.errors import HubAlreadyRunning, WorkspaceError

#: A log that has grown beyond this is set aside once when its process starts anew.
LONGEST_LOG = 5_000_000

_PR_SET_PDEATHSIG = 1


# -- children ------------------------------------------------------------------------------


def spawn(
    module: str,
    options: Mapping[str, Any],
    *,
    log: Path,
    detach: bool = False,
    pass_fds: Sequence[int] = (),
    executable: str = sys.executable,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `python -m module` in a session of its own and hand it its options.

    Parameters
    ----------
    module : str
        What to run; it calls `read_options`.
    options : mapping
        Plain data.
    log : Path
        File of mode 0600 to which its standard output and error are appended.
    detach : bool
        It outlives this process; until then a thread waits for its end, so that no zombie stays.
    pass_fds : sequence of int
        Descriptors that it inherits; no others are open in it.
    executable : str
        The Python that runs it.
    env : mapping, optional
        Its environment, instead of a copy of this process's.
    """
    with open_log(log) as output:
        process = subprocess.Popen(
            # -P: a file zmq.py in the current folder must not stand in for the real one
            [executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=pass_fds,
            env=_clean(os.environ if env is None else env),
        )
    _tell(process, options)
    if detach:
        threading.Thread(target=process.wait, name=f"wait-{process.pid}", daemon=True).start()
    return process


def read_options() -> dict[str, Any]:
    """Return what `spawn` was given; standard input is /dev/null from then on."""
    if sys.stdin is None or sys.stdin.isatty():
        raise SystemExit("This module is started by `nbtaskq up`, not by hand.")
    options: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return options


def open_log(path: Path) -> IO[bytes]:
    """Open a private log for appending; one that has grown too long is set aside first."""
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_size > LONGEST_LOG:
            os.replace(path, path.with_suffix(".old.log"))
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o600), "ab")


def _clean(env: Mapping[str, str]) -> dict[str, str]:
    # JPY_PARENT_PID would make a worker kernel end when it is not a child of the notebook
    # server; JPY_SESSION_NAME would give it the name of the notebook that happened to start it.
    return {name: value for name, value in env.items() if not name.startswith("JPY_")}


def _tell(process: subprocess.Popen[bytes], options: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    # a child that dies at once is noticed by whoever waits for it
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(json.dumps(options).encode())


# -- parents -------------------------------------------------------------------------------


def die_with_parent(parent_pid: int) -> None:
    """Make sure that this process ends when its parent does, however that ends.

    To be called by the child itself. On Linux the kernel sends SIGKILL when the *thread* that
    spawned this process ends, so children are spawned from the parent's main thread only.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent_pid,), name="parent", daemon=True).start()
    if os.getppid() != parent_pid:  # it was gone before we asked
        _end()


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(0.5)
    _end()


def _end() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)


def describe_exit(status: int) -> str:
    """Say how a process ended; a negative status is a signal, as `Popen.returncode` has it."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = f" ({signal.Signals(-status).name})"
    except ValueError:
        name = ""
    return f"killed by signal {-status}{name}"


def kill_group(pgid: int, signum: int = signal.SIGKILL) -> None:
    """Send a signal to all processes of a group; an empty group is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, signum)


# -- locks ---------------------------------------------------------------------------------


class Lock:
    """A file whose lock one process holds, with its pid inside; it ends with the process.

    The file stays when the lock is released, so a lock that nobody holds can be taken over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises
        ------
        HubAlreadyRunning
            Another process holds it; its pid is named.
        """
        handle = _open_lock(self.path)
        if not _take(handle):
            pid = _read_pid(handle)
            os.close(handle)
            raise HubAlreadyRunning(
                f"Process {pid} already serves {self.path.parent} (it holds {self.path.name}). "
                f"Use it, or stop it with `nbtaskq down`."
            )
        self._handle = handle
        self._write(os.getpid())

    def fileno(self) -> int:
        """Return the descriptor of the lock that is held; who inherits it can `adopt` it."""
        assert self._handle is not None
        return self._handle

    def hand_over(self, pid: int) -> None:
        """Leave the lock to a process that has inherited it."""
        self._write(pid)
        os.close(self.fileno())
        self._handle = None

    def adopt(self, handle: int) -> None:
        """Hold the lock that another process has taken and handed over."""
        os.set_inheritable(handle, False)
        self._handle = handle
        self._write(os.getpid())

    def release(self) -> None:
        """Give the lock back; without effect when it is not held."""
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def _write(self, pid: int) -> None:
        os.ftruncate(self.fileno(), 0)
        os.pwrite(self.fileno(), b"%d\n" % pid, 0)

    @staticmethod
    def holder(path: Path) -> int | None:
        """Return the pid of the lock's holder (0 if it has not said so yet), None if free."""
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return None if _flock(handle, fcntl.LOCK_SH) else _read_pid(handle)
        finally:
            os.close(handle)


def _open_lock(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
        os.close(handle)
        raise WorkspaceError(f"The lock {path} is not a file of yours; remove it.")
    return handle


def _take(handle: int) -> bool:
    """Take the exclusive lock; what `holder` holds for a moment does not count as taken."""
    for _ in range(100):
        if _flock(handle, fcntl.LOCK_EX):
            return True
        if not _flock(handle, fcntl.LOCK_SH):
            return False  # held exclusively: somebody's
        fcntl.flock(handle, fcntl.LOCK_UN)
    return False


def _flock(handle: int, mode: int) -> bool:
    try:
        fcntl.flock(handle, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(handle: int) -> int:
    text = os.pread(handle, 32, 0).strip()
    return int(text) if text.isdigit() else 0
