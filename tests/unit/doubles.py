"""Small real processes and sockets that stand at the other end of what is tested."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zmq

from nbtaskq.hub.protocol import VERSION, Hello, Pong, Welcome, Wire, decode_inbound, encode
from nbtaskq.workspace import Workspace
from tests.waiting import until

M = TypeVar("M")

#: what a child must have on its path to import nbtaskq
ROOT = Path(__file__).parents[2]

#: A worker that comes up, holds one task and started a process of its own.
WORKER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from nbtaskq.process import die_with_parent, read_options
from nbtaskq.worker.recorder import Recorder

options = read_options()
die_with_parent(options["parent"])
mood = os.environ.get("MOOD", "")
print("hello from the log", file=sys.stderr, flush=True)
if mood == "early":
    sys.exit(3)
recorder = Recorder.open(Path(options["recorder"]))
if mood == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mood == "task":
    grandchild = subprocess.Popen(["sleep", "300"])
    recorder.write_output(b"epoch 3\\n%d\\n" % grandchild.pid)
    recorder.settled = 7
    recorder.begin(5, b"abc", 42, 1.5)
recorder.ready = True
while True:
    signal.pause()
"""

#: A hub that only lives; the test itself may bind its address.
HUB = """
import os, signal, sys
from nbtaskq.process import die_with_parent, read_options

die_with_parent(read_options()["parent"])
if os.environ.get("HUB_MOOD") == "fatal":
    sys.exit("The store is not a database: move it away.")
signal.pause()
"""


@contextlib.contextmanager
def workspace_with_stand_ins(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """Give a workspace beside the modules `standin_worker` and `standin_hub`."""
    (folder / "standin_worker.py").write_text(WORKER)
    (folder / "standin_hub.py").write_text(HUB)
    patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{folder}")
    with tempfile.TemporaryDirectory() as short:  # pytest's folders are too long for sockets
        patch.setenv("JUPYTER_RUNTIME_DIR", short)
        yield Workspace.at(folder / ".nbtaskq").create()


class HubDouble:
    """A ROUTER that welcomes everybody and keeps what it is told."""

    def __init__(self, address: str, *, idle: float = 0.0, refuse: Wire | None = None) -> None:
        self.received: list[tuple[bytes, Any]] = []
        self.idle = idle
        self.refuse = refuse
        self.epoch = 1
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.set_hwm(0)
        self.socket.bind(address)

    def close(self) -> None:
        self._context.destroy(linger=0)

    def __enter__(self) -> HubDouble:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def send(self, peer: bytes, message: Wire, *buffers: bytes) -> None:
        self.socket.send_multipart([peer, encode(message), *buffers])

    def serve(self) -> None:
        """Read and answer all that is there."""
        while self.socket.poll(0):
            peer, first, *buffers = self.socket.recv_multipart()
            message = decode_inbound(first)
            self.received.append((peer, message))
            self.buffers = buffers
            if isinstance(message, Hello):
                self.send(peer, self.refuse or Welcome(VERSION, self.epoch, 1))
            elif type(message).__name__ == "Ping":
                self.send(peer, Pong(self.idle))

    def all(self, kind: type[M]) -> Iterator[M]:
        return (message for _, message in self.received if isinstance(message, kind))

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Serve until a condition holds."""

        def look() -> Any:
            self.serve()
            return condition()

        return until(look, what)

    def expect(self, kind: type[M], test: Callable[[M], bool] = lambda _: True) -> M:
        """Return the first message of a kind that passes a test, waiting for it."""

        def look() -> M | None:
            return next((message for message in self.all(kind) if test(message)), None)

        found: M = self.until(look, f"{kind.__name__} arrives")
        return found
