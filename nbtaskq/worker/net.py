"""The net thread: everything between this worker and the hub, and never user code.

    hub ── Assign, Recall, Given ──► net thread ──► Inbox ────► main thread
    hub ◄── Settle, Output, Started ── net thread ◄── Verdicts ── main thread

Its peers write to the wake pipe only when the thread sleeps and would sleep too long.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import zmq

from nbtaskq.abc import Delivery, Settlement
from nbtaskq.errors import ProtocolMismatch
from nbtaskq.hub import protocol as p
from nbtaskq.hub.link import BEAT, Link
from nbtaskq.message import Buffer
from nbtaskq.worker.arrivals import Arrivals, unpacked, without_code
from nbtaskq.worker.inbox import Inbox
from nbtaskq.worker.output import TaskOutput
from nbtaskq.worker.recorder import Recorder
from nbtaskq.worker.run import Run
from nbtaskq.worker.verdicts import BATCH, Letter, Verdicts

#: seconds that a verdict waits for others while there is more to run
GATHER = 0.002
#: seconds that the first piece of output waits for more
LINGER = 0.005
#: seconds between two messages with output
PACE = 0.05
#: seconds after which a task counts as running rather than passing by
NOTICEABLE = 0.02
#: bytes of notes in one message
LETTER = 1 << 20


class Place(NamedTuple):
    """Where a worker is: the hub's address, and the worker's name."""

    address: str
    worker_id: str


class Net(threading.Thread):
    """Speaks with the hub for one worker.

    Parameters
    ----------
    place : Place
        Where the hub is, and this worker's name.
    inbox : Inbox
        Gets the deliveries that can be run.
    recorder : Recorder
        Learns the number of each `Settle` before it is sent.
    runs : dict of int to Run
        What is running, by token; kept by the main thread.
    complain : callable
        Called with a reason when this thread cannot go on; does not return.
    """

    def __init__(
        self,
        place: Place,
        *,
        inbox: Inbox,
        recorder: Recorder,
        runs: dict[int, Run],
        complain: Callable[[str], object],
    ) -> None:
        super().__init__(name="net", daemon=True)
        self._place = place
        self._inbox = inbox
        self._recorder = recorder
        self._runs = runs
        self._complain = complain
        self._session = os.urandom(16)
        self._verdicts = Verdicts()
        self._arrivals = Arrivals()
        self._outputs: deque[TaskOutput] = deque()
        #: deliveries that the hub gave and has no end of, by token
        self._held: dict[int, bytes] = {}
        self._output_at = 0.0
        self._verdicts_at = 0.0
        self._sleeping = False
        self._awake_at = 0.0
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    # -- called by other threads -----------------------------------------------------------

    def settle(
        self,
        settled: Sequence[tuple[Delivery, Settlement]],
        waiter: Callable[[], object] | None = None,
    ) -> None:
        """Hand verdicts over; `waiter` is called when the hub has stored the last of them."""
        self._verdicts.add(settled, waiter)
        if self._sleeping:
            gather = GATHER if self._gathers() else 0.0
            if self._awake_at > time.monotonic() + gather:
                self._wake()

    def offer(self, output: TaskOutput) -> None:
        """Note that a task's output has something to send."""
        self._outputs.append(output)
        if self._sleeping and self._awake_at > time.monotonic() + PACE:
            self._wake()

    def finish(self, timeout: float) -> None:
        """Send what is settled and end, within so many seconds."""
        self._stopping = True
        self._wake()
        self.join(timeout)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it will wake
            os.write(self._wake_write, b"x")

    def _gathers(self) -> bool:
        """Whether verdicts may wait for others."""
        return len(self._verdicts) < BATCH and bool(self._runs or self._inbox)

    # -- the thread ------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `finish`; a worker that cannot speak with its hub ends."""
        try:
            self._serve()
        except ProtocolMismatch as error:
            self._complain(str(error))
        except BaseException:
            self._complain(traceback.format_exc())

    def _serve(self) -> None:
        link = Link(self._place.address, self._hello)
        poller = zmq.Poller()
        for socket in link.sockets:
            poller.register(socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        while not self._stopping:
            events = dict(poller.poll(self._sleep_ms()))
            self._sleeping = False
            if self._wake_read in events:
                os.read(self._wake_read, 4096)
            self._turn(link)
        self._send_outputs(link)
        self._send_verdicts(link)
        link.close(linger=0.2)

    def _turn(self, link: Link) -> None:
        for message, frames in link.receive():
            self._handle(link, message, frames)
        now = time.monotonic()
        self._pass_on(link)
        if self._verdicts and self._verdicts_due(now):
            self._send_outputs(link)
            self._send_verdicts(link)
        elif self._outputs and self._outputs_due(now):
            self._send_outputs(link)
        self._announce(link)
        link.tick(now)

    def _sleep_ms(self) -> int:
        """Say for how long to sleep; what comes from now on wakes the thread if need be."""
        now = time.monotonic()
        wake = now + BEAT
        if self._outputs:
            wake = min(wake, self._output_at)
        if self._verdicts:
            wake = min(wake, self._verdicts_at)
        if self._expects_running():
            wake = min(wake, now + NOTICEABLE)
        self._awake_at = wake
        self._sleeping = True
        # what came before this line did not wake the thread
        if self._verdicts and not (self._verdicts_at and self._gathers()):
            wake = now
        if self._outputs and not self._output_at:
            wake = now
        return max(0, math.ceil((wake - now) * 1000))

    # -- what the hub says -----------------------------------------------------------------

    def _hello(self) -> p.Hello:
        return p.Hello(
            p.VERSION,
            p.Role.WORKER,
            self._session,
            p.Environment.here(),
            os.getpid(),
            name=self._place.worker_id,
            holding=[(task_id, token) for token, task_id in self._held.items()],
        )

    def _handle(self, link: Link, message: p.Outbound, frames: list[Buffer]) -> None:
        if isinstance(message, p.Assign):
            self._recorded(message.recorded)
            self._assign(message, frames)
        elif isinstance(message, p.Recorded):
            self._recorded(message.number)
        elif isinstance(message, p.Given):
            self._arrivals.given(message.digest, message.refs, frames[0])
        elif isinstance(message, p.Missing):
            self._arrivals.missing(message.keys)
        elif isinstance(message, p.Recall):
            self._recall(link, set(message.tokens))
        elif isinstance(message, p.Welcome):
            self._greet_again(link)

    def _recorded(self, number: int) -> None:
        for token in self._verdicts.recorded(number):
            self._held.pop(token, None)

    def _assign(self, message: p.Assign, frames: list[Buffer]) -> None:
        for task, delivery in unpacked(message, frames):
            if task.token not in self._held:
                self._held[task.token] = task.task_id
                self._arrivals.add(delivery, task.code)

    def _recall(self, link: Link, tokens: set[int]) -> None:
        given_back = self._inbox.recall(tokens) | self._arrivals.recall(tokens)
        for token in given_back:
            self._held.pop(token, None)
        link.send(p.Recalled(sorted(given_back), sorted(tokens - given_back)))

    def _greet_again(self, link: Link) -> None:
        """Tell a hub that may be another one what it does not know."""
        self._arrivals.ask_again()
        for run in list(self._runs.values()):
            run.announced = False
        self._send_outputs(link)
        for letter in self._verdicts.unrecorded():
            link.send(letter.message, letter.buffers)

    def _pass_on(self, link: Link) -> None:
        ready, lost, wanted = self._arrivals.sort()
        if ready:
            self._inbox.put(ready)
        for delivery in lost:
            self._verdicts.add([(delivery, without_code(delivery))], None)
        if wanted and link.send(p.Fetch(wanted)):
            self._arrivals.asked(wanted)

    # -- what the hub is told --------------------------------------------------------------

    def _verdicts_due(self, now: float) -> bool:
        if not self._verdicts_at:
            self._verdicts_at = now + GATHER
        return now >= self._verdicts_at or not self._gathers()

    def _send_verdicts(self, link: Link) -> None:
        self._verdicts_at = 0.0
        for letter in self._verdicts.letters():
            self._send_letter(link, letter)

    def _send_letter(self, link: Link, letter: Letter) -> None:
        # before it is sent: a death notice says up to which number the hub must read
        self._recorder.settled = letter.message.number
        link.send(letter.message, letter.buffers)

    def _outputs_due(self, now: float) -> bool:
        if not self._output_at:
            self._output_at = now + LINGER
        return now >= self._output_at

    def _send_outputs(self, link: Link) -> None:
        """Send all notes; called before verdicts, so that a task's notes come first."""
        if not link.welcomed:
            self._output_at = time.monotonic() + BEAT
            return
        notes: list[p.Note] = []
        while self._outputs:
            notes.extend(self._outputs.popleft().take())
        for part in _parts(notes):
            link.send(p.Output(part))
        self._output_at = 0.0

    def _expects_running(self) -> bool:
        runs = list(self._runs.values())
        return any(not run.announced for run in runs) or (not runs and len(self._inbox) > 0)

    def _announce(self, link: Link) -> None:
        before = time.time() - NOTICEABLE
        runs = [r for r in list(self._runs.values()) if not r.announced and r.started <= before]
        if runs and link.send(p.Started([(r.task_id, r.token, r.started) for r in runs])):
            for run in runs:
                run.announced = True


def _parts(notes: Iterable[p.Note]) -> Iterable[list[p.Note]]:
    """Divide notes into messages of a bounded size."""
    part: list[p.Note] = []
    size = 0
    for note in notes:
        part.append(note)
        size += len(note.content)
        if size >= LETTER:
            yield part
            part, size = [], 0
    if part:
        yield part
