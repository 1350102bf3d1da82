"""A worker kernel: `python -m nbtaskq.worker.kernel`, options as JSON on standard input.

    main thread   the kernel's event loop: console cells, and the receiver with its tasks
    net thread    one DEALER to the hub

It is a whole ipykernel with sockets of its own, so that `jupyter console --existing` attaches.
"""

from __future__ import annotations

import asyncio
import builtins
import faulthandler
import getpass
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQInteractiveShell
from tornado.ioloop import IOLoop
from traitlets import Any as AnyTrait
from traitlets import Type, default
from traitlets.config import Config

from nbtaskq.client.current import set_factory
from nbtaskq.execution import Receiver
from nbtaskq.middlewares import SimpleRetryMiddleware
from nbtaskq.process import die_with_parent, read_options
from nbtaskq.serializers import DillSerializer
from nbtaskq.worker.compat import (
    plain_progress_bars,
    service_threads,
    shell_guard,
    without_debugger,
    without_fork_pipe,
)
from nbtaskq.worker.descriptors import Descriptors
from nbtaskq.worker.environment import Environment
from nbtaskq.worker.executor import KernelExecutor, Surroundings
from nbtaskq.worker.inbox import Inbox
from nbtaskq.worker.interrupts import Interrupts
from nbtaskq.worker.net import Net, Place
from nbtaskq.worker.output import Outputs
from nbtaskq.worker.recorder import Recorder
from nbtaskq.worker.run import Run
from nbtaskq.worker.source import HubSource
from nbtaskq.worker.streams import TaskSession
from nbtaskq.workspace import VARIABLE, Workspace

if TYPE_CHECKING:
    from nbtaskq.abc import Broker

#: seconds that a worker takes to send its last verdicts when it is asked to end
LAST_WORDS = 0.5


class Options(msgspec.Struct):
    """What the pool tells a worker."""

    address: str
    worker: str
    recorder: str
    connection_file: str
    parent: int
    workspace: str = ""
    kernel_sockets: str = ""
    threads: int = 0

    @property
    def sockets(self) -> str:
        """Prefix of the kernel's own sockets, in the recorder's private folder."""
        beside = str(Path(self.recorder).parent / f"kernel-{self.worker}")
        return self.kernel_sockets or beside


class WorkerShell(ZMQInteractiveShell):
    """A shell in which `exit()` ends a task, not the worker; in a console cell it ends both."""

    def ask_exit(self) -> None:
        """Leave the running code."""
        hook: Any = self.displayhook
        if hook.session.outputs.current() is not None:
            raise SystemExit
        super().ask_exit()  # type: ignore[no-untyped-call]


class WorkerKernel(IPythonKernel):
    """A kernel whose console cells and tasks take turns on the main thread."""

    shell_class = Type(WorkerShell)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self.turn = asyncio.Lock()
        #: held by a cell with top-level `await` until its names are removed
        self.cells = asyncio.Lock()
        self.in_console = False

    async def execute_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Run a console cell when no batch of tasks is running."""
        if threading.current_thread() is not threading.main_thread():  # a subshell
            await super().execute_request(stream, ident, parent)  # type: ignore[no-untyped-call]
            return
        async with self.turn:
            self.in_console = True
            try:
                await super().execute_request(stream, ident, parent)  # type: ignore[no-untyped-call]
            finally:
                self.in_console = False

    def pre_handler_hook(self) -> None:
        """Leave SIGINT to the worker's own handler."""

    def post_handler_hook(self) -> None:
        """Leave SIGINT to the worker's own handler."""


class WorkerApp(IPKernelApp):
    """The application around a worker's kernel: nothing of the user's profile is run or kept."""

    kernel_class = Type(WorkerKernel)
    outputs = AnyTrait()

    @default("session")
    def _session_default(self) -> TaskSession:
        return TaskSession(parent=self, outputs=self.outputs)

    def load_config_file(self, *args: Any, **kwargs: Any) -> None:
        """Pass over the user's configuration of interactive kernels."""

    def init_code(self) -> None:
        """Run no startup files."""

    def init_signal(self) -> None:
        """Leave signals to `Interrupts`."""


def make_app(options: Options, outputs: Outputs) -> WorkerApp:
    """Build the kernel with its sockets and streams."""
    app: WorkerApp = WorkerApp.instance(
        outputs=outputs,
        transport="ipc",
        ip=options.sockets,
        connection_file=options.connection_file,
        outstream_class="nbtaskq.worker.streams.TaskStream",
        capture_fd_output=False,
        parent_handle=0,
        log_level=logging.CRITICAL,
        config=Config({"HistoryManager": {"enabled": False}}),
    )
    mask = os.umask(0o077)  # for the sockets; tasks get the user's
    try:
        with without_debugger(), without_fork_pipe():
            app.initialize([])  # type: ignore[no-untyped-call]
    finally:
        os.umask(mask)
    plain_progress_bars(app.kernel.shell)
    outputs.exempt |= service_threads(app)
    return app


class Worker:
    """The parts of a worker process, joined."""

    def __init__(self, options: Options) -> None:
        self._log = os.dup(2)
        faulthandler.enable(self._log)
        # what a dying process says must not pass through a pipe that dies with it
        sys.__stderr__ = os.fdopen(self._log, "w", buffering=1)  # type: ignore[misc]
        runs: dict[int, Run] = {}
        self._inbox = Inbox()
        self._recorder = Recorder.open(Path(options.recorder))
        self._net = Net(
            Place(options.address, options.worker),
            inbox=self._inbox,
            recorder=self._recorder,
            runs=runs,
            complain=self._complain,
        )
        self._outputs = Outputs(self._recorder, self._net.offer)
        self._app = make_app(options, self._outputs)
        self._kernel: WorkerKernel = self._app.kernel
        self._receiver = self._make_receiver(runs)

    def _make_receiver(self, runs: dict[int, Run]) -> Receiver:
        serializer = DillSerializer()
        descriptors = Descriptors(self._outputs.write)
        descriptors.capture()
        interrupts = Interrupts(
            self._outputs,
            self._recorder,
            runs,
            in_console=lambda: self._kernel.in_console,
            terminate=self._terminate,
        )
        interrupts.install()
        surroundings = Surroundings(
            self._outputs, descriptors, Environment(), interrupts, self._recorder
        )
        executor = KernelExecutor(surroundings, runs, serializer.thaw_home)
        return Receiver(
            HubSource(self._net, self._inbox, executor),
            serializer,
            [SimpleRetryMiddleware()],
            executor=executor,
            guard=lambda: shell_guard(self._kernel),
        )

    def run(self) -> None:
        """Serve console and hub until somebody ends this process."""
        refuse_input()
        IOLoop.current().add_callback(self._receive)
        self._app.start()  # type: ignore[no-untyped-call]
        self._terminate()

    async def _receive(self) -> None:
        self._net.start()
        assert self._net.ident is not None
        self._outputs.exempt.add(self._net.ident)
        self._recorder.ready = True
        try:
            await self._receiver.run()
        except Exception:
            self._complain(traceback.format_exc())

    def _complain(self, why: str) -> None:
        """End a process that can do nothing useful any more, with a reason in its log."""
        os.write(self._log, f"{why}\n".encode(errors="replace"))
        os._exit(os.EX_SOFTWARE)

    def _terminate(self) -> None:
        self._net.finish(LAST_WORDS)
        self._app.cleanup_connection_file()  # type: ignore[no-untyped-call]


def refuse_input() -> None:
    """Let `input` and `getpass` say why they cannot work; console cells have their own."""

    def refuse(*_: object, **__: object) -> str:
        raise EOFError(
            "A task runs in the background, where nobody can answer input(); "
            "pass the value as an argument."
        )

    builtins.input = refuse
    getpass.getpass = refuse


def main() -> None:
    """Run the worker that the options on standard input describe."""
    options = msgspec.convert(read_options(), Options)
    die_with_parent(options.parent)
    sys.argv = [""]
    _let_tasks_send(options.workspace)
    Worker(options).run()


def _let_tasks_send(workspace: str) -> None:
    """Make the hub that this worker serves the default broker of the tasks that it runs."""
    os.environ[VARIABLE] = workspace

    def make() -> Broker:
        from nbtaskq.brokers.zeromq import ZeroMQBroker

        return ZeroMQBroker(Workspace.at(workspace))

    set_factory(make)


if __name__ == "__main__":
    # the kernel puts a module of its own in the place of `__main__`
    from nbtaskq.worker import kernel

    kernel.main()
