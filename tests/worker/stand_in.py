"""A stand-in for the hub: a ROUTER that hands out tasks by hand and notes what comes back."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import zmq

from nbtaskq.hub import protocol as p
from nbtaskq.message import Parcel, TaskStatus
from nbtaskq.serializers import DillSerializer, load_exception
from nbtaskq.worker.recorder import Recorder

SERIALIZER = DillSerializer()
PATIENCE = 20.0


class Hub:
    """One socket, driven by the test's own thread; `pump` until something is so."""

    def __init__(self, folder: Path) -> None:
        self.address = f"ipc://{folder}/hub"
        self.context = zmq.Context()
        self.received: list[tuple[p.Inbound, list[bytes]]] = []
        self.peer = b""
        self.objects: dict[bytes, tuple[list[bytes], bytes]] = {}
        self.records = True
        self.epoch = 0
        self._tokens = itertools.count(1)
        self.bind()

    def bind(self) -> None:
        self.epoch += 1
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(self.address)

    def unbind(self) -> None:
        self.socket.close()

    def close(self) -> None:
        self.socket.close()
        self.context.term()

    # -- talking ---------------------------------------------------------------------------

    def send(self, message: p.Wire, buffers: Any = ()) -> None:
        self.socket.send_multipart([self.peer, p.encode(message), *buffers])

    def pump(self, until: Callable[[], Any], patience: float = PATIENCE) -> Any:
        """Serve until the condition gives something; fail when it does not in time."""
        deadline = time.monotonic() + patience
        while not (found := until()):
            left = deadline - time.monotonic()
            assert left > 0, f"not in time; received {[m for m, _ in self.received][-20:]}"
            if self.socket.poll(min(left, 0.05) * 1000):
                self._serve(self.socket.recv_multipart())
        return found

    def _serve(self, frames: list[bytes]) -> None:
        message = p.decode_inbound(frames[1])
        if not isinstance(message, p.Ping):
            self.received.append((message, frames[2:]))
        if isinstance(message, p.Hello):
            self.peer = frames[0]
            self.send(p.Welcome(p.VERSION, self.epoch, os.getpid()))
        elif isinstance(message, p.Ping):
            self.send(p.Pong())
        elif isinstance(message, p.Fetch):
            self._give(message.digests)
        elif isinstance(message, p.Settle) and self.records:
            self.send(p.Recorded(message.number))

    def _give(self, digests: list[bytes]) -> None:
        for digest in digests:
            if digest in self.objects:
                refs, body = self.objects[digest]
                self.send(p.Given(digest, refs), [body])
            else:
                self.send(p.Missing([digest]))

    def of(self, kind: type) -> list[Any]:
        return [message for message, _ in self.received if isinstance(message, kind)]

    # -- tasks -----------------------------------------------------------------------------

    def assignment(
        self, function: Callable[..., Any] | bytes, *args: Any, name: str = "", **options: Any
    ) -> p.Assignment:
        """Make a task; its function can be fetched, unless it is given as a bare digest."""
        kwargs = options.pop("kwargs", {})
        token = next(self._tokens)
        parcel = SERIALIZER.dumps((args, kwargs), root="call")
        digest = function if isinstance(function, bytes) else self.freeze(function)
        return p.Assignment(
            task_id=f"t{token}".encode(),
            token=token,
            name=name or getattr(function, "__name__", "lost"),
            labels=p.encode_labels(options.pop("labels", {})),
            body=parcel.body,
            buffers=len(parcel.buffers),
            code=digest,
            flavor=options.pop("flavor", p.Flavor.SYNC),
            attempt=options.pop("attempt", 1),
            **options,
        )

    def freeze(self, function: Callable[..., Any]) -> bytes:
        frozen = SERIALIZER.freeze(function)
        for thing in (frozen.code, *frozen.objects):
            self.objects[thing.digest] = list(thing.refs), bytes(thing.body)
        return frozen.digest

    def assign(self, *tasks: p.Assignment) -> None:
        self.send(p.Assign(list(tasks)))

    def verdict(self, task: p.Assignment) -> p.Verdict | None:
        return next(
            (v for s in self.of(p.Settle) for v in s.verdicts if v.token == task.token), None
        )

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Task:
        """Run one task to its end."""
        task = self.assignment(function, *args, **options)
        self.assign(task)
        self.pump(lambda: self.verdict(task))
        return Task(self, task)


class Task:
    """A task that has ended."""

    def __init__(self, hub: Hub, task: p.Assignment) -> None:
        self.hub = hub
        self.task = task
        verdict = hub.verdict(task)
        assert verdict is not None
        self.verdict = verdict
        self.status = TaskStatus(verdict.outcome.status)

    @property
    def value(self) -> Any:
        if self.status != TaskStatus.SUCCEEDED:
            raise self.error
        return SERIALIZER.loads(Parcel(self.verdict.outcome.body, self._buffers()))

    @property
    def error(self) -> BaseException:
        return load_exception(SERIALIZER, Parcel(self.verdict.outcome.body, self._buffers()))

    def _buffers(self) -> list[bytes]:
        for message, frames in self.hub.received:
            if isinstance(message, p.Settle):
                position = 0
                for verdict in message.verdicts:
                    if verdict.token == self.task.token:
                        return frames[position : position + verdict.outcome.buffers]
                    position += verdict.outcome.buffers
        return []

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What was put out before the verdict came."""
        notes = []
        for message, _ in self.hub.received:
            if isinstance(message, p.Output):
                notes += [n for n in message.notes if n.token == self.task.token]
            if isinstance(message, p.Settle) and self.verdict in message.verdicts:
                break
        assert [n.number for n in notes] == sorted({n.number for n in notes})
        assert all(n.task_id == self.task.task_id for n in notes)
        return [msgspec.json.decode(n.content) for n in notes]

    def text(self, name: str = "stdout") -> str:
        return "".join(n["text"] for n in self.notes if n.get("name") == name)


class Worker:
    """A real worker kernel."""

    def __init__(self, hub: Hub, folder: Path, parent: int | None = None) -> None:
        self.recorder = Recorder.create(folder / "w1.rec")
        self.connection_file = folder / "nbtaskq-worker-test-w1.json"
        self.log = folder / "w1.log"
        self.options = {
            "address": hub.address,
            "worker": "w1",
            "recorder": str(folder / "w1.rec"),
            "connection_file": str(self.connection_file),
            "parent": parent or os.getpid(),
            "workspace": str(folder),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "nbtaskq.worker.kernel"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={k: v for k, v in os.environ.items() if not k.startswith("JPY_")},
            )
        assert self.process.stdin is not None
        with self.process.stdin as pipe:
            pipe.write(json.dumps(self.options).encode())

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def interrupt(self, task: p.Assignment) -> None:
        self.recorder.cancel_target = task.token
        os.kill(self.pid, signal.SIGINT)

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.recorder.close()


@contextlib.contextmanager
def started(folder: Path) -> Iterator[tuple[Hub, Worker]]:
    """Give a hub and a worker that has said hello."""
    folder.mkdir(mode=0o700, exist_ok=True)
    hub = Hub(folder)
    worker = Worker(hub, folder)
    worker.start()
    try:
        hub.pump(lambda: hub.of(p.Hello))
        yield hub, worker
    except BaseException:
        print(worker.log.read_text()[-5000:])
        raise
    finally:
        worker.stop()
        hub.close()
