"""nbtaskq: notebook cells that keep running.

    import nbtaskq as nq

    @nq.task
    def fit(depth): ...

    runs = fit.map([4, 8, 16])      # returns at once; worker kernels do the work
    runs.to_frame()                 # waits; one row a task

The layers, each importing only from those to its left:

    errors, message, filesystems, workspace, process, launcher → hub → abc
    → serializers, middlewares → client, frames → execution → brokers → worker
    → supervisor → session → notebook, cli

A task's way: `client` → `brokers` → `hub` → `worker` → `execution`, and its end the way back.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: where each public name lives; imported when it is first used
_HOMES = {
    # what a notebook says
    "task": "session",
    "up": "session",
    "down": "session",
    "status": "session",
    "scale": "session",
    "restart": "session",
    "attach": "session",
    "history": "session",
    "logs": "session",
    "default_broker": "session",
    "set_default_broker": "session",
    "gather": "client",
    "wait": "client",
    "as_completed": "client",
    # brokers
    "Broker": "abc",
    "InMemoryBroker": "brokers",
    "ZeroMQBroker": "brokers",
    # what one holds
    "Task": "client",
    "Kicker": "client",
    "TaskHandle": "client",
    "Batch": "client",
    "Message": "message",
    "Result": "message",
    "TaskStatus": "message",
    "AckType": "message",
    "Event": "message",
    # plugs
    "Middleware": "abc",
    "SimpleRetryMiddleware": "middlewares",
    "Serializer": "abc",
    "Receiver": "execution",
    "Workspace": "workspace",
    # errors
    "NbTaskQError": "errors",
    "TaskError": "errors",
    "ResultTimeout": "errors",
}

__all__ = [*_HOMES, "errors", "load_ipython_extension", "unload_ipython_extension"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name == "errors":
        return import_module("nbtaskq.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'nbtaskq' has no attribute {name!r}")
    value = getattr(import_module(f"nbtaskq.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext nbtaskq`: register the magics."""
    from nbtaskq.notebook import load_ipython_extension as load

    load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext nbtaskq`: leave nothing behind."""
    from nbtaskq.notebook import unload_ipython_extension as unload

    unload(shell)


if TYPE_CHECKING:
    from nbtaskq import errors as errors
    from nbtaskq.abc import Broker as Broker
    from nbtaskq.abc import Middleware as Middleware
    from nbtaskq.abc import Serializer as Serializer
    from nbtaskq.brokers import InMemoryBroker as InMemoryBroker
    from nbtaskq.brokers import ZeroMQBroker as ZeroMQBroker
    from nbtaskq.client import Batch as Batch
    from nbtaskq.client import Kicker as Kicker
    from nbtaskq.client import Task as Task
    from nbtaskq.client import TaskHandle as TaskHandle
    from nbtaskq.client import as_completed as as_completed
    from nbtaskq.client import gather as gather
    from nbtaskq.client import wait as wait
    from nbtaskq.errors import NbTaskQError as NbTaskQError
    from nbtaskq.errors import ResultTimeout as ResultTimeout
    from nbtaskq.errors import TaskError as TaskError
    from nbtaskq.execution import Receiver as Receiver
    from nbtaskq.message import AckType as AckType
    from nbtaskq.message import Event as Event
    from nbtaskq.message import Message as Message
    from nbtaskq.message import Result as Result
    from nbtaskq.message import TaskStatus as TaskStatus
    from nbtaskq.middlewares import SimpleRetryMiddleware as SimpleRetryMiddleware
    from nbtaskq.session import attach as attach
    from nbtaskq.session import default_broker as default_broker
    from nbtaskq.session import down as down
    from nbtaskq.session import history as history
    from nbtaskq.session import logs as logs
    from nbtaskq.session import restart as restart
    from nbtaskq.session import scale as scale
    from nbtaskq.session import set_default_broker as set_default_broker
    from nbtaskq.session import status as status
    from nbtaskq.session import task as task
    from nbtaskq.session import up as up
    from nbtaskq.workspace import Workspace as Workspace
