"""Drives a real store as the hub's server does, but waits where the server polls."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nbtaskq.hub.actions import FinishTask, InsertTask, PutObject, StoredTask, StoreOp
from nbtaskq.hub.history import Reader
from nbtaskq.hub.protocol import Outcome, Submission
from nbtaskq.hub.store import Store
from nbtaskq.message import Buffer, TaskStatus

HERE = Path(__file__).parent

#: No wait of a test is longer than this.
LIMIT = 20.0


class Driver:
    """A store that is open and writing."""

    def __init__(self, folder: Path, *, start: bool = True) -> None:
        self.folder = folder
        self.store = Store.open(folder)
        self.durable = 0
        self.answers: dict[int, Any] = {}
        self._news = threading.Event()
        if start:
            self.start()

    def start(self) -> None:
        self.store.start(self._news.set)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + LIMIT
        while not condition():
            assert self._news.wait(end - time.monotonic()), "the store did not answer in time"
            self._news.clear()
            self.durable, finished = self.store.collect()
            self.answers |= dict(finished)

    def write(self, *ops: StoreOp) -> None:
        """Return when the operations are durable."""
        number = self.store.write(ops)
        self.until(lambda: self.durable >= number)

    def ask(self, query: Callable[[Reader], Any]) -> Any:
        """Return what a query gives, or raise what it raises."""
        ticket = self.store.read(query)
        self.until(lambda: ticket in self.answers)
        answer = self.answers.pop(ticket)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.store.close()

    def reopened(self) -> tuple[Driver, list[StoredTask]]:
        """Close, open again, and return the unended tasks as well."""
        self.close()
        again = Driver(self.folder, start=False)
        unended = list(again.store.unended())
        again.start()
        return again, unended


def task_id(seq: int) -> bytes:
    return f"task-{seq:06d}".encode()


def insert(
    seq: int,
    *,
    buffers: Sequence[Buffer] = (),
    notebook: str = "a.ipynb",
    checksum: int = 77,
    **fields: Any,
) -> InsertTask:
    fields = {"task_id": task_id(seq), "name": "train", "labels": b"", "body": b"args"} | fields
    task = Submission(buffers=len(buffers), **fields)
    return InsertTask(seq, b"owner", notebook, "/usr|3.11", task, buffers, checksum)


def finish(
    seq: int,
    body: bytes = b"value",
    buffers: Sequence[Buffer] = (),
    status: int = TaskStatus.SUCCEEDED,
    **fields: Any,
) -> FinishTask:
    fields = {"started": 1.5, "seconds": 2.5, "worker": "w1", "attempts": 1} | fields
    fields = {"task_id": task_id(seq)} | fields
    end = Outcome(status=status, body=body, buffers=len(buffers), **fields)
    return FinishTask(seq, end, buffers)


def noise(size: int) -> bytes:
    """Bytes of which no two calls give the same."""
    return os.urandom(size)


def environment() -> dict[str, str]:
    """Return the environment of a child that can import what this process can."""
    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path}


def crashed(folder: Path, script: str) -> None:
    """Run a script that uses a store in `folder`, in a process that is killed at its end."""
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom store_driver import *\n"
        f"driver = Driver(Path(sys.argv[1]))\n{script}\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], env=environment(),
        timeout=30, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def fill(folder: Path) -> Path:
    """Leave a closed store with three unended and three ended tasks."""
    driver = Driver(folder)
    driver.write(*(insert(seq, labels=b"labels") for seq in range(1, 7)))
    driver.write(*(finish(seq) for seq in range(4, 7)), PutObject(b"d1", b"object", ()))
    driver.close()
    return folder
