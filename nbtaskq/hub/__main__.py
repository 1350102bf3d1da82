"""`python -m nbtaskq.hub`: one hub, as the supervisor starts it."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import sys
from types import FrameType

from nbtaskq.errors import HubAlreadyRunning, NbTaskQError, StoreError
from nbtaskq.hub.server import HubServer
from nbtaskq.hub.store import Store
from nbtaskq.process import Lock, die_with_parent, read_options
from nbtaskq.workspace import Workspace, write_private

#: exit status when another hub serves this workspace, and when this one cannot serve it
RUNNING, FAILED = 2, 3
#: seconds that the writer thread may keep the GIL from the thread that serves the socket
SWITCH = 0.001
#: open files that are enough, and that every system allows
MOST_FILES = 8192

_log = logging.getLogger("nbtaskq.hub")


def serve(workspace: Workspace) -> None:
    """Serve a workspace, whose lock is held, until SIGTERM or SIGINT."""
    store = Store.open(workspace.store_folder)
    for notice in store.notices:
        _log.warning("%s", notice)
    # whoever may remove the socket of another process is sure that there is none: by the lock
    (workspace.runtime / "hub.sock").unlink(missing_ok=True)
    server = HubServer(workspace.hub_address, store)

    def end(_: int, __: FrameType | None) -> None:
        server.stop()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    # a signal that comes just before the poll must end the poll, or the handler waits for it
    signal.set_wakeup_fd(server.waker, warn_on_full_buffer=False)
    sys.setswitchinterval(SWITCH)
    gc.collect()
    gc.freeze()
    try:
        server.run()
    finally:
        signal.set_wakeup_fd(-1)
        server.close()


def fail(workspace: Workspace, error: NbTaskQError) -> None:
    """Leave the cause where clients look for it, and on standard error, in one line."""
    facts = {"error": type(error).__name__, "text": str(error)}
    if not isinstance(error, HubAlreadyRunning):
        write_private(workspace.failure_file, json.dumps(facts).encode())
    print(str(error).replace("\n", " "), file=sys.stderr)


def main() -> int:
    """Take the workspace's lock and serve; return the exit status."""
    options = read_options()
    if options.get("parent"):
        die_with_parent(options["parent"])
    os.umask(0o077)
    _allow_peers()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    workspace = Workspace.at(options["workspace"])
    try:
        workspace.create()
        with Lock(workspace.hub_lock):
            serve(workspace)
    except HubAlreadyRunning as error:
        fail(workspace, error)
        return RUNNING
    except StoreError as error:
        fail(workspace, error)
        return FAILED
    return 0


def _allow_peers() -> None:
    """Raise the number of open files, of which each peer takes one, where it is a low default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
