"""SIGINT ends the task it is meant for, and nothing else; SIGTERM ends the worker in order.

Whether user code is running is read from the interrupted frames, which costs nothing as long as
nobody interrupts: `call_user` on the stack, and none of our own code above it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbtaskq.worker.output import Outputs
    from nbtaskq.worker.recorder import Recorder
    from nbtaskq.worker.run import Run

#: An interrupt in these modules would leave output, messages or pickles half done.
WHOLE = (
    "nbtaskq.serializers",
    "nbtaskq.worker.output",
    "nbtaskq.worker.streams",
    "nbtaskq.worker.net",
    "nbtaskq.worker.inbox",
    "jupyter_client.session",
    "ipykernel.iostream",
)
#: seconds after which an interrupt is tried again that met one of them
AGAIN = 0.005


def call_user(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    finish: Callable[[], None],
) -> Any:
    """Call user code, then `finish`; the frame of this call marks what may be interrupted."""
    try:
        return function(*args, **kwargs)
    finally:
        finish()


class Interrupts:
    """The signal handlers of a worker, for the main thread.

    Parameters
    ----------
    outputs : Outputs
        Knows the synchronous task that is running.
    recorder : Recorder
        Holds the token of the delivery that a SIGINT is meant for.
    runs : dict of int to Run
        What is running.
    in_console : callable
        Whether a console cell is running, which SIGINT interrupts as in every kernel.
    terminate : callable
        Called by SIGTERM, before the signal's own effect.
    """

    def __init__(
        self,
        outputs: Outputs,
        recorder: Recorder,
        runs: dict[int, Run],
        *,
        in_console: Callable[[], bool],
        terminate: Callable[[], None],
    ) -> None:
        self._outputs = outputs
        self._recorder = recorder
        self._runs = runs
        self._in_console = in_console
        self._terminate = terminate

    def install(self) -> None:
        """Handle the signals from now on; forks of this process do as processes usually do."""
        signal.signal(signal.SIGINT, self._interrupted)
        signal.signal(signal.SIGTERM, self._terminated)
        # Python forgets a signal that meets a fork before its handlers are reset: hold it back
        mask = _Mask()
        os.register_at_fork(
            before=mask.hold, after_in_parent=mask.release, after_in_child=mask.release_in_child
        )

    def reinstall(self) -> None:
        """Take the handlers back from a task that replaced them."""
        if signal.getsignal(signal.SIGINT) != self._interrupted:
            signal.signal(signal.SIGINT, self._interrupted)
        if signal.getsignal(signal.SIGTERM) != self._terminated:
            signal.signal(signal.SIGTERM, self._terminated)

    def _interrupted(self, signum: int, frame: FrameType | None) -> None:
        if self._in_console():
            signal.default_int_handler(signum, frame)
        target = self._recorder.cancel_target
        run = self._outputs.sync
        if run is not None and run.token == target:
            self._interrupt_sync(frame)
        elif target in self._runs:
            coroutine = self._runs[target].coroutine
            if coroutine is not None:
                coroutine.get_loop().call_soon_threadsafe(coroutine.cancel)

    def _interrupt_sync(self, frame: FrameType | None) -> None:
        whole = False
        while frame is not None and frame.f_code is not call_user.__code__:
            whole = whole or frame.f_globals.get("__name__", "").startswith(WHOLE)
            frame = frame.f_back
        if frame is None:
            return
        if not whole:
            raise KeyboardInterrupt
        threading.Timer(AGAIN, os.kill, (os.getpid(), signal.SIGINT)).start()

    def _terminated(self, signum: int, frame: FrameType | None) -> None:
        self._terminate()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


class _Mask(threading.local):
    """Holds the signals back while the calling thread forks."""

    def hold(self) -> None:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})

    def release(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def release_in_child(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.release()
