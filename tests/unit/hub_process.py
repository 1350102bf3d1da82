"""A real hub process, and peers that talk to it through plain DEALER sockets."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import zmq

from nbtaskq.hub import protocol as p
from nbtaskq.workspace import Workspace

M = TypeVar("M", bound=p.Wire)

ENVIRONMENT = p.Environment("/usr", "3.11", sys.executable)
TIMEOUT = 10.0


class Peer:
    """One connection; what was not asked for yet waits in `waiting`."""

    def __init__(
        self,
        address: str,
        role: str = "client",
        *,
        name: str = "",
        session: bytes | None = None,
        notebook: str = "",
        holding: Sequence[tuple[bytes, int]] = (),
        greet: bool = True,
    ) -> None:
        self.session = session or os.urandom(8)
        self.waiting: list[tuple[p.Wire, list[bytes]]] = []
        self._settles = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)
        if greet:
            environment, pid = ENVIRONMENT, os.getpid()
            hello = p.Hello(
                p.VERSION, role, self.session, environment, pid, name, notebook, list(holding)
            )
            self.send(hello)
            self.welcome = self.receive(p.Welcome)[0]

    def send(self, message: p.Wire, *buffers: bytes) -> None:
        """Send a message."""
        self.socket.send_multipart([p.encode(message), *buffers])

    def receive(self, kind: type[M], timeout: float = TIMEOUT) -> tuple[M, list[bytes]]:
        """Return the next message of a kind, with its buffers; the others wait."""
        for index, (message, buffers) in enumerate(self.waiting):
            if isinstance(message, kind):
                del self.waiting[index]
                return message, buffers
        end = time.monotonic() + timeout
        while self.socket.poll(max(0, 1000 * (end - time.monotonic()))):
            frames = self.socket.recv_multipart()
            message = p.decode_outbound(frames[0])
            if isinstance(message, kind):
                return message, frames[1:]
            self.waiting.append((message, frames[1:]))
        raise AssertionError(f"no {kind.__name__} within {timeout} s, but {self.waiting}")

    def quiet(self, kind: type[p.Wire]) -> bool:
        """Return whether nothing of this kind came before an answer to what is asked now."""
        self.send(p.Ping())
        self.receive(p.Pong)
        return not any(isinstance(message, kind) for message, _ in self.waiting)

    def submit(self, *ids: bytes, batch: int = 1, again: bool = False, **more: Any) -> p.Accepted:
        """Submit tasks of the name `f`, each with its id as its body, and wait until accepted."""
        self.send(p.Submit(batch, [p.Submission(i, "f", b"", i, **more) for i in ids], again))
        return self.receive(p.Accepted)[0]

    def assigned(self) -> p.Assignment:
        """Return the one task of the next `Assign`."""
        (task,) = self.receive(p.Assign)[0].tasks
        return task

    def settle(self, task: p.Assignment, value: bytes = b"value", *buffers: bytes) -> None:
        """Settle a task with a value."""
        self._settles += 1
        outcome = p.Outcome(task.task_id, 10, value, len(buffers), seconds=1e-5)
        self.send(p.Settle(self._settles, [p.Verdict(task.token, 0, outcome)]), *buffers)

    def ask(self, verb: str, body: Any = None, timeout: float = TIMEOUT) -> p.Answer:
        """Return the answer to a control."""
        self.send(p.Control(1, verb, body))
        return self.receive(p.Answer, timeout)[0]

    def close(self) -> None:
        """Disconnect."""
        self.socket.close()
        self._context.term()


class Hub:
    """A workspace, and the hub process that serves it."""

    def __init__(self, folder: Path) -> None:
        os.environ["JUPYTER_RUNTIME_DIR"] = str(folder / "run")
        self.workspace = Workspace.at(folder / "ws").create()
        self.process: subprocess.Popen[bytes] | None = None
        self.peers: list[Peer] = []

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start a hub process."""
        process = subprocess.Popen(
            [sys.executable, "-m", "nbtaskq.hub"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        options = {"workspace": str(self.workspace.folder), "parent": os.getpid()}
        with process.stdin as pipe:
            pipe.write(json.dumps(options).encode())
        return process

    def refused_start(self) -> tuple[int, str]:
        """Start a hub that cannot serve; return its exit status and what it said."""
        process = self.spawn()
        assert process.stderr is not None
        with process.stderr as pipe:
            said = pipe.read().decode()
        return process.wait(TIMEOUT), said

    def start(self) -> None:
        """Start the hub, and wait until it answers."""
        self.process = self.spawn()
        self.peer(greet=True)

    def kill(self, signum: int = signal.SIGKILL) -> int:
        """End the hub and all connections; return its exit status."""
        assert self.process is not None
        self.process.send_signal(signum)
        status = self.process.wait(TIMEOUT)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.process = None
        for peer in self.peers:
            peer.close()
        self.peers.clear()
        return status

    def peer(self, role: str = "client", **options: Any) -> Peer:
        """Connect a peer."""
        peer = Peer(self.workspace.hub_address, role, **options)
        self.peers.append(peer)
        return peer

    def worker(self, name: str = "w1", **options: Any) -> Peer:
        """Connect a worker."""
        return self.peer("worker", name=name, **options)


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Give a hub on a new workspace; everything is gone afterwards."""
    before = os.environ.get("JUPYTER_RUNTIME_DIR")
    folder = Path(tempfile.mkdtemp(prefix="hub"))  # short: it holds a socket
    hub = Hub(folder)
    try:
        hub.start()
        yield hub
    finally:
        if hub.process is not None:
            hub.kill()
        shutil.rmtree(folder)
        os.environ.pop("JUPYTER_RUNTIME_DIR")
        if before is not None:
            os.environ["JUPYTER_RUNTIME_DIR"] = before
