"""What surrounds user code in a worker kernel: slot, output, figures, environment."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nbtaskq.errors import DeserializationError
from nbtaskq.execution import Executor
from nbtaskq.hub.protocol import Flavor
from nbtaskq.worker.figures import show_figures
from nbtaskq.worker.interrupts import call_user
from nbtaskq.worker.run import Run

if TYPE_CHECKING:
    from nbtaskq.abc import Delivery
    from nbtaskq.message import Parcel
    from nbtaskq.serializers import Home
    from nbtaskq.worker.descriptors import Descriptors
    from nbtaskq.worker.environment import Environment
    from nbtaskq.worker.interrupts import Interrupts
    from nbtaskq.worker.output import Outputs
    from nbtaskq.worker.recorder import Recorder

#: senders' homes that are remembered
HOMES_KEPT = 256
#: seconds of a task that may have replaced a signal handler
LONG = 0.001


class Surroundings(NamedTuple):
    """What there is around user code in one process."""

    outputs: Outputs
    descriptors: Descriptors
    environment: Environment
    interrupts: Interrupts
    recorder: Recorder


class KernelExecutor(Executor):
    """Runs functions on the main thread of a worker kernel.

        prepare → begin → (unpack) → user code → executed → end → (pack) → release

    Parameters
    ----------
    surroundings : Surroundings
        What is prepared before a task and cleaned up after it.
    runs : dict of int to Run
        What is running, for the net thread too.
    home_of : callable
        Reads a sender's home from a function's parcel.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        runs: dict[int, Run],
        home_of: Callable[[Parcel], Home],
    ) -> None:
        self._outputs, self._descriptors, self._environment = surroundings[:3]
        self._interrupts, self._recorder = surroundings[3:]
        self._runs = runs
        self._home_of = home_of
        self._homes: dict[bytes, Home | None] = {}
        self._slots: dict[int, Run] = {}

    def prepare(self, delivery: Delivery) -> None:
        """Go where the sender is, so that function and arguments find their modules."""
        if not self._runs:
            self._environment.enter(self._home(delivery))

    def begin(self, delivery: Delivery, index: int) -> None:
        """Take the slot, then count output as this task's."""
        last = self._slots.get(index)
        if last is not None:
            self._tidy(last)
        task_id = delivery.task_id.encode()
        if not self._runs:
            self._recorder.forget_output()
        run = Run(task_id, delivery.token, index, time.time(), delivery.attempt)
        self._recorder.begin(index, task_id, run.token, run.started)
        self._slots[index] = self._runs[run.token] = run
        if delivery.flavor == Flavor.ASYNC:
            run.coroutine = asyncio.current_task()
            self._outputs.enter(run)
        else:
            self._outputs.sync = run

    def run(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call a synchronous function where an interrupt can end it."""
        return super().run(call_user, (function, args, kwargs, _show_figures), {})

    def executed(self, index: int) -> None:
        """Note that user code has ended; end a fork that came out of it."""
        if self._outputs.child:
            os._exit(os.EX_OK)
        self._recorder.executed(index)

    def end(self, delivery: Delivery, index: int) -> None:
        """Gather the last output and restore the environment, if no other task is running."""
        if delivery.flavor == Flavor.ASYNC:
            _show_figures()
        self._descriptors.drain()
        if len(self._runs) <= 1:
            self._environment.restore()
            if time.time() - self._slots[index].started > LONG:
                self._interrupts.reinstall()

    def release(self, delivery: Delivery) -> None:
        """Free the slot: the verdict is being handed over."""
        run = self._runs.pop(delivery.token, None)
        if run is None:
            return
        self._tidy(run)
        self._outputs.leave(run)
        if self._slots.get(run.index) is run:
            self._recorder.end(run.index)
            del self._slots[run.index]

    def _tidy(self, run: Run) -> None:
        """Remove what a task left behind; its value is serialized by now."""
        if run.leftovers is not None:
            leftovers, run.leftovers = run.leftovers, None
            leftovers()

    def _home(self, delivery: Delivery) -> Home | None:
        if delivery.code is None:
            return None
        digest, parcel = delivery.code
        if digest not in self._homes:
            if len(self._homes) >= HOMES_KEPT:
                self._homes.clear()
            try:
                self._homes[digest] = self._home_of(parcel)
            except DeserializationError:  # the receiver says so when it loads the function
                self._homes[digest] = None
        return self._homes[digest]


def _show_figures() -> None:
    if "matplotlib.pyplot" not in sys.modules:
        return
    try:
        show_figures()
    except Exception:
        traceback.print_exc()
