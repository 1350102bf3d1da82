"""The client's thread that talks to the hub: outbox out, news in.

Whatever is not accepted yet is kept and sent again, under the same ids, after each reconnect;
what is accepted is asked for. So a hub that was killed and came back loses nothing of ours.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from nbtaskq.abc import Frozen, Watcher
from nbtaskq.brokers.outbox import Outbox, Packet
from nbtaskq.brokers.watchers import Watchers
from nbtaskq.errors import (
    BrokerUnreachable,
    NbTaskQError,
    ProtocolMismatch,
    QueueFull,
    SendError,
    TaskIdConflict,
    WorkerStartError,
)
from nbtaskq.hub import protocol as p
from nbtaskq.hub.link import Link
from nbtaskq.launcher import ensure_running, failure
from nbtaskq.message import Buffer, Object
from nbtaskq.workspace import Workspace

#: what goes into one message
BATCH_TASKS = 500
BATCH_BYTES = 4 << 20
#: seconds without a hub after which one is started, and after which waiting is in vain
START_AFTER = 0.3
UNREACHABLE_AFTER = 5.0
#: seconds for which new work ends for the same reason as the work before it
FRESH = 2.0
#: seconds that the interpreter's end waits for the outbox
EXIT_TIMEOUT = 5.0
#: ids in one question
IDS_PER_GET = 1000


class Sent(NamedTuple):
    """A batch on its way: kept until it is accepted."""

    packets: list[Packet]
    objects: list[Object]
    doubtful: bool


_ERRORS: dict[str, type[SendError]] = {"conflict": TaskIdConflict, "full": QueueFull}


class Connection:
    """A client's session with the hub; its thread starts with the first use."""

    def __init__(
        self,
        workspace: Workspace,
        environment: p.Environment,
        *,
        notebook: str = "",
        workers: int | None = None,
    ) -> None:
        self.workspace = workspace
        self.trouble: BaseException | None = None
        #: why no worker comes up, as the hub said last
        self.start_error: WorkerStartError | None = None
        self._environment = environment
        self._notebook = notebook
        self._workers = workers
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._session = os.urandom(8)
        self._outbox = Outbox(self._wake)
        self._sent: dict[int, Sent] = {}
        self._known: set[bytes] = set()
        self._numbers = itertools.count(1)
        self._watchers = Watchers()
        #: chosen ids that are not accepted yet: other contents may be stored under them
        self._unsure: set[bytes] = set()
        #: messages that were sent as awaited; the question that follows is answered by that
        self._announced: set[bytes] = set()
        self._asked: dict[int, tuple[p.Wire, Future[Any]]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._asleep = False
        self._closing = False
        #: whether a hub has ever answered; from then on a `down` is respected, but by new work
        self._met = False
        self._wanted = False
        self._welcome = threading.Event()
        self._lost_since = time.monotonic()
        self._troubled_at = -math.inf
        self._start_at = 0.0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        #: held while it is decided whether waiting is in vain
        self._patience = threading.Lock()
        self._wake_in, self._wake_out = -1, -1

    # -- for any thread --------------------------------------------------------------------

    def put(self, packets: Sequence[Packet], timeout: float) -> None:
        """Hand messages over; their watchers hear the rest."""
        self._ensure_thread()
        if not self._welcome.is_set():
            self._hope()
        for packet in packets:
            if packet.chosen_id:
                # its end may be that of another message; only the acceptance tells
                self._unsure.add(packet.submission.task_id)
            else:
                self._watchers.add(packet.submission.task_id, packet.watcher)
        try:
            self._outbox.put(packets, timeout)
        except QueueFull:
            for packet in packets:
                self._watchers.forget(packet.submission.task_id)
            raise

    def watch(self, task_id: str, watcher: Watcher, value: bool) -> None:
        """Let a watcher follow a task; with `value`, as somebody who blocks on it."""
        self._ensure_thread()
        key = task_id.encode()

        def ask() -> None:
            if key in self._announced:
                self._announced.discard(key)
                return  # the message itself said that somebody blocks on it
            if key in self._unsure:
                return  # its acceptance is on the way, and then its end is asked for
            self._watchers.add(key, watcher)
            self._link.send(p.Wait(key) if value else p.Get([key]))

        self._call(ask)

    def control(self, verb: str, body: Any) -> Future[Any]:
        """Ask something; the answer comes in the future, again after a reconnect if need be."""
        self._ensure_thread()
        future: Future[Any] = Future()
        request = next(self._numbers)
        message: p.Wire
        if verb == "cancel":
            message = p.Cancel(request, [task_id.encode() for task_id in body])
        else:
            message = p.Control(request, verb, body)
        try:
            p.encode(message)
        except (TypeError, ValueError, OverflowError) as error:  # lone surrogates, foreign types
            raise NbTaskQError(
                f"{verb!r} cannot ask the hub about {body!r:.200}: {error}"
            ) from error

        def ask() -> None:
            self._asked[request] = message, future
            if self.trouble is not None:
                self._fail_questions(self.trouble)
            else:
                self._link.send(message)

        self._call(ask)
        return future

    def wait_welcome(self, timeout: float) -> None:
        """Wait until the hub has answered; raise why it has not."""
        self._ensure_thread()
        if not self._welcome.is_set():
            self._hope(again=True)
        end = time.monotonic() + timeout
        while not self._welcome.wait(0.1):
            if self.trouble is not None:
                raise self.trouble
            if time.monotonic() >= end:
                raise BrokerUnreachable(
                    f"the hub of {self.workspace.folder} has not answered for {timeout:g} s; "
                    "see `nbtaskq logs`"
                )

    def _hope(self, *, again: bool = False) -> None:
        """Let the hub be started, and forget why it was not there unless that is fresh."""
        begun, self._wanted = self._wanted, True
        old = time.monotonic() - self._troubled_at > FRESH
        down = self.workspace.is_down
        # what `down` stopped was not missed before now: patience begins with the first to want it
        with self._patience:
            if (self.trouble is not None and (again or old or down)) or (down and not begun):
                self.trouble = None
                self._lost_since = time.monotonic()
                self._start_at = 0.0

    def close(self, timeout: float = EXIT_TIMEOUT) -> int:
        """Send what is left and end the thread; return how many messages were not accepted."""
        thread = self._thread
        if thread is None or self._pid != os.getpid():
            return 0
        left = self._outbox.drain(timeout if self.trouble is None else 0.0)
        self._closing = True
        self._call(lambda: None)
        thread.join(timeout)
        self._thread = None
        return left

    def _at_exit(self) -> None:
        left = self.close()
        if left:
            print(
                f"nbtaskq: {left} messages were not accepted by the hub of "
                f"{self.workspace.folder} and are lost: {self.trouble or 'it did not answer'}",
                file=sys.__stderr__,
            )

    def _ensure_thread(self) -> None:
        thread = self._thread
        if thread is not None and thread.is_alive() and self._pid == os.getpid():
            return
        with self._lock:
            if self._pid != os.getpid():
                self._reset()  # a forked child is a session of its own
            if self._thread is None or not self._thread.is_alive():
                self._wake_in, self._wake_out = os.pipe()
                os.set_blocking(self._wake_in, False)
                os.set_blocking(self._wake_out, False)
                self._closing = False
                self._welcome.clear()
                self._thread = threading.Thread(
                    target=self._run, name="nbtaskq connection", daemon=True
                )
                self._thread.start()
                # before daemon threads are frozen, and while modules are whole
                threading._register_atexit(self._at_exit)  # type: ignore[attr-defined]

    def _call(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        self._wake()

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            with contextlib.suppress(BlockingIOError, OSError):
                os.write(self._wake_out, b"x")

    # -- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        self._lost_since = time.monotonic()
        self._start_if_absent()
        self._link = Link(self.workspace.hub_address, self._hello)
        poller = zmq.Poller()
        for socket in self._link.sockets:
            poller.register(socket, zmq.POLLIN)
        poller.register(self._wake_in, select.POLLIN)
        try:
            while not self._closing:
                self._round(poller)
        except Exception as error:
            # who waits must not wait for ever; the next use starts another thread
            failed = BrokerUnreachable(f"the connection to the hub failed here: {error!r}")
            failed.__cause__ = error
            self._give_up(failed)
            raise
        finally:
            self._link.close(0.2)
            self._fail_questions(BrokerUnreachable("this client has been shut down"))
            os.close(self._wake_in)
            os.close(self._wake_out)

    def _round(self, poller: zmq.Poller) -> None:
        self._asleep = True
        busy = self._calls or (self._outbox.waiting and self._link.welcomed)
        events = dict(poller.poll(0 if busy else 250))
        self._asleep = False
        if self._wake_in in events:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_in, 4096)
        try:
            for message, frames in self._link.receive():
                self._take(message, frames)
            self._link.tick()
        except ProtocolMismatch as error:
            self._give_up(error)
        # questions about a message must not overtake it
        for _ in range(len(self._calls)):
            call = self._calls.popleft()
            if self._link.welcomed:
                self._send_outbox()
            call()
        if self._link.welcomed:
            self._send_outbox()
        else:
            self._while_away()

    def _hello(self) -> p.Hello:
        return p.Hello(
            p.VERSION,
            p.Role.CLIENT,
            self._session,
            self._environment,
            os.getpid(),
            notebook=self._notebook,
        )

    # -- without a hub ---------------------------------------------------------------------

    def _while_away(self) -> None:
        """Start a hub if there is none; after a while say that waiting is in vain."""
        now = time.monotonic()
        if self._welcome.is_set():
            self._welcome.clear()
            self._lost_since = now
        if now - self._lost_since > START_AFTER and now >= self._start_at:
            self._start_if_absent()
        with self._patience:
            if now - self._lost_since > UNREACHABLE_AFTER and self.trouble is None:
                self._give_up(self._reason())

    def _start_if_absent(self) -> None:
        self._start_at = time.monotonic() + 1.0
        if self.workspace.is_down and self._met and not self._wanted:
            return
        try:
            ensure_running(self.workspace, self._workers, executable=self._environment.executable)
        except NbTaskQError as error:
            self._give_up(error)

    def _reason(self) -> BaseException:
        """Return why the hub does not come up, as far as it left word."""
        folder = self.workspace.folder
        if self.workspace.is_down:
            return BrokerUnreachable(f"{folder} was stopped by `down`; `up` starts it again")
        known = failure(self.workspace)
        if known is not None:
            return known
        last = _last_line(self.workspace.log("supervisor"))
        return BrokerUnreachable(f"no hub answers for {folder}; see `nbtaskq logs`. {last}".strip())

    def _give_up(self, error: BaseException) -> None:
        self.trouble = error
        self._troubled_at = time.monotonic()
        self._fail_questions(error)

    def _fail_questions(self, error: BaseException) -> None:
        asked, self._asked = self._asked, {}
        for _, future in asked.values():
            if not future.done():
                future.set_exception(error)

    # -- sending ---------------------------------------------------------------------------

    def _send_outbox(self) -> None:
        waiting = self._outbox.waiting
        while waiting and self._link.welcomed:
            packets: list[Packet] = []
            size = 0
            doubtful = False
            while waiting and len(packets) < BATCH_TASKS and size < BATCH_BYTES:
                packet = waiting.popleft()
                size += packet.size
                doubtful = doubtful or packet.chosen_id
                packets.append(packet)
            number = next(self._numbers)
            sent = self._sent[number] = Sent(packets, self._objects(packets), doubtful)
            self._send(number, sent, again=doubtful)

    def _objects(self, packets: list[Packet]) -> list[Object]:
        """Return what must be put before some tasks, unless the hub has it durably."""
        found: dict[bytes, Object] = {}
        last: Frozen | None = None
        for packet in packets:
            frozen = packet.frozen
            if frozen is None or frozen is last or frozen.digest in self._known:
                continue
            last = frozen
            for item in (*frozen.objects, frozen.code):
                if item.digest not in self._known:
                    found[item.digest] = item
        return list(found.values())

    def _send(self, number: int, sent: Sent, *, again: bool) -> None:
        for item in sent.objects:
            self._link.send(p.Put(item.digest, list(item.refs)), [item.body])
        frames = [buffer for packet in sent.packets for buffer in packet.buffers]
        tasks = [packet.submission for packet in sent.packets]
        awaited = [x.submission.task_id for x in sent.packets if x.watcher.awaited]
        self._announced.update(awaited)
        self._link.send(p.Submit(number, tasks, again, awaited), frames)

    # -- what comes ------------------------------------------------------------------------

    def _take(self, message: p.Outbound, frames: list[Buffer]) -> None:
        if isinstance(message, p.Finished):
            for batch in message.accepted:
                self._accepted(batch, [])
            self._announced.difference_update(outcome.task_id for outcome in message.outcomes)
            self._watchers.finished(message.outcomes, frames)
        elif isinstance(message, p.Accepted):
            self._accepted(message.batch, message.problems)
        elif isinstance(message, p.Progressed):
            self._watchers.progressed(message.changes)
        elif isinstance(message, p.Output):
            self._watchers.printed(message.notes)
        elif isinstance(message, p.Pong):
            text = f"{message.trouble}\nThe tasks stay queued; see `nbtaskq logs`"
            self.start_error = WorkerStartError(text) if message.trouble else None
        elif isinstance(message, p.Answer):
            self._answered(message)
        elif isinstance(message, p.Welcome):
            self._welcomed()
        elif isinstance(message, p.Missing):
            self._watchers.missing(message.keys)

    def _welcomed(self) -> None:
        """Take up the thread again with a hub that may know nothing of what was not accepted."""
        self.trouble = None
        for number, sent in list(self._sent.items()):
            again = sent.doubtful or self._met
            self._sent[number] = sent._replace(doubtful=again)
            self._send(number, sent, again=again)
        pending = {s.submission.task_id for sent in self._sent.values() for s in sent.packets}
        # a copy, because other threads go on sending
        pending |= {packet.submission.task_id for packet in list(self._outbox.waiting)}
        known = [key for key in self._watchers.ids() if key not in pending]
        for start in range(0, len(known), IDS_PER_GET):
            self._link.send(p.Get(known[start : start + IDS_PER_GET]))
        for message, _ in list(self._asked.values()):
            self._link.send(message)
        self._met = True
        self._wanted = False
        self._welcome.set()

    def _accepted(self, batch: int, troubled: list[tuple[bytes, str, str]]) -> None:
        sent = self._sent.pop(batch, None)
        if sent is None:
            return
        self._outbox.release(sent.packets)
        self._known.update(item.digest for item in sent.objects)
        problems = {key: (code, text) for key, code, text in troubled}
        for packet in sent.packets:
            task_id = packet.submission.task_id
            problem = problems.get(task_id)
            if problem is None:
                if task_id in self._unsure:
                    self._watchers.add(task_id, packet.watcher)
                packet.watcher.on_accepted()
            else:
                self._refuse(packet, *problem)
        if sent.doubtful:
            # it may have ended long ago, and then nobody tells it again unasked
            keys = [packet.submission.task_id for packet in sent.packets]
            self._unsure.difference_update(keys)
            self._link.send(p.Get(keys, values=True))

    def _refuse(self, packet: Packet, code: str, text: str) -> None:
        submission = packet.submission
        name = f"{submission.name} ({submission.task_id.decode(errors='replace')[:20]})"
        packet.watcher.on_refused(_ERRORS.get(code, SendError)(f"{name} was not stored: {text}"))
        self._watchers.remove(submission.task_id, packet.watcher)

    def _answered(self, message: p.Answer) -> None:
        _, future = self._asked.pop(message.request, (None, None))
        if future is None or not future.set_running_or_notify_cancel():
            return
        if message.ok:
            future.set_result(message.body)
        else:
            future.set_exception(NbTaskQError(str(message.body)))


def _last_line(log: Path) -> str:
    """Return how a log ends, in words for a message; empty when there is none."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return f"{log.name} ends with: {lines[-1][:500]}" if lines else ""
