"""Where store, blobs, logs and sockets live, and who may touch them.

    <workspace>/            0700   hub.lock  supervisor.lock  down  .gitignore
        store/  blobs/  logs/
    <runtime>/              0700   hub.sock  failure.json  supervisor.json  w1.rec …

The workspace keeps what must last. The runtime folder, a hashed one of the Jupyter runtime
directory, holds what lives as long as the processes do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nbtaskq.errors import WorkspaceError
from nbtaskq.filesystems import file_system, is_network

NAME = ".nbtaskq"
VARIABLE = "NBTASKQ_WORKSPACE"

#: The kernel's limit for a socket's path is 104 to 108 bytes.
LONGEST_SOCKET = 100
#: The longest name that a socket in the runtime folder gets.
_SOCKET_NAME = "kernel-w99999-5"


@dataclass(frozen=True)
class Workspace:
    """One workspace: paths only, until `create` makes or verifies its folders.

    Attributes
    ----------
    folder : Path
        The workspace itself, absolute, parents resolved.
    note : str
        Why it is not where one would look for it; empty otherwise.
    """

    folder: Path
    note: str = ""

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Workspace:
        """Return the workspace at this very folder, whether or not it exists."""
        given = Path(os.path.abspath(Path(path).expanduser()))
        return cls(Path(os.path.realpath(given.parent)) / given.name)

    @classmethod
    def find(cls, start: Path | None = None) -> Workspace:
        """Return the workspace that work in `start` (default: the current folder) belongs to.

        The environment variable NBTASKQ_WORKSPACE decides, else the nearest existing
        workspace of this user from `start` up to the home folder, else it is a new one in
        `start`. Where that is read-only or on a network, local state holds it and `note` says so.
        """
        named = os.environ.get(VARIABLE)
        if named:
            return cls.at(named)
        start = Path(os.path.realpath(start or Path.cwd()))
        beside = _nearest(start) or start / NAME
        trouble = _trouble(beside)
        folder = _state_folder() / _digest(beside) if trouble else beside
        if _trouble(folder) == trouble:  # none, or elsewhere would be no better
            return cls(beside)
        return cls(folder, f"{beside.parent} {trouble}; the workspace is {folder}")

    def create(self) -> Workspace:
        """Make the folders that are missing and verify all; safe to call again.

        Raises
        ------
        WorkspaceError
            A folder cannot be made, or is not private to this user.
        """
        made = not os.path.lexists(self.folder)
        with _explained(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            private_folder(self.folder)
            if made:
                write_private(self.folder / ".gitignore", b"*\n")
            for folder in (self.store_folder, self.blobs, self.logs):
                private_folder(folder)
            self.runtime.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            private_folder(self.runtime)
        return self

    @property
    def exists(self) -> bool:
        """Whether there is a folder to look into."""
        return self.folder.is_dir()

    @property
    def store_folder(self) -> Path:
        """The hub's database."""
        return self.folder / "store"

    @property
    def blobs(self) -> Path:
        """Large buffers, each a file."""
        return self.folder / "blobs"

    @property
    def logs(self) -> Path:
        """What hub, supervisor and workers wrote to their standard output and error."""
        return self.folder / "logs"

    @property
    def hub_lock(self) -> Path:
        """Held by the hub as long as it lives."""
        return self.folder / "hub.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the supervisor as long as it lives."""
        return self.folder / "supervisor.lock"

    @cached_property
    def runtime(self) -> Path:
        """The folder of sockets and flight recorders."""
        folder = jupyter_runtime() / f"nbtaskq-{self.digest}"
        if len(os.fsencode(folder / _SOCKET_NAME)) <= LONGEST_SOCKET:
            return folder
        return Path(f"/tmp/nbtaskq-{os.getuid()}-{self.digest}")

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that stand for the folder's real path."""
        return _digest(self.folder)

    @property
    def hub_address(self) -> str:
        """Where the hub's socket is bound."""
        return f"ipc://{self.runtime / 'hub.sock'}"

    @property
    def supervisor_file(self) -> Path:
        """JSON facts about the running supervisor; there once it is at work."""
        return self.runtime / "supervisor.json"

    @property
    def failure_file(self) -> Path:
        """JSON facts about why the hub does not come up; gone once it serves."""
        return self.runtime / "failure.json"

    def recorder(self, worker_id: str) -> Path:
        """Return the path of a worker's flight recorder."""
        return self.runtime / f"{worker_id}.rec"

    def log(self, name: str) -> Path:
        """Return the path of the log of `hub`, `supervisor`, or a worker."""
        return self.logs / f"{name}.log"

    def kernel_sockets(self, worker_id: str) -> Path:
        """Return the prefix of a worker kernel's own Jupyter sockets."""
        return self.runtime / f"kernel-{worker_id}"

    def connection_file(self, worker_id: str) -> Path:
        """Return the path where `jupyter console --existing` looks for a worker kernel."""
        return jupyter_runtime() / f"nbtaskq-worker-{self.digest[:8]}-{worker_id}.json"

    def sweep_runtime(self, *, keep: Container[Path] = ()) -> None:
        """Remove what processes that are gone left behind; for the holder of the lock only."""
        for path in self.runtime.iterdir():
            if path not in keep:
                path.unlink(missing_ok=True)
        for path in jupyter_runtime().glob(self.connection_file("*").name):
            path.unlink(missing_ok=True)

    @property
    def is_down(self) -> bool:
        """Whether the user said `down`, so that nothing may start it but `up`."""
        return (self.folder / "down").exists()

    def mark_down(self) -> None:
        """Remember that the user said `down`."""
        write_private(self.folder / "down", b"")

    def clear_down(self) -> None:
        """Forget that the user said `down`."""
        (self.folder / "down").unlink(missing_ok=True)


# -- private files -------------------------------------------------------------------------


def private_folder(path: Path) -> None:
    """Make a folder that only this user can enter, or verify that the existing one is such."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    problem = _problem(found)
    if problem:
        raise WorkspaceError(
            f"nbtaskq keeps private files in {path}, which {problem}. "
            f"Others could read or replace them. {_remedy(path, found)}"
        )


def write_private(path: Path, data: bytes) -> None:
    """Put a file in place at once, readable by this user alone; a link is not followed."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(draft, path)


def _problem(found: os.stat_result) -> str:
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(found.st_mode):
        return "is not a folder"
    if found.st_uid != os.getuid():
        return f"belongs to user {found.st_uid}, not to you ({os.getuid()})"
    if stat.S_IMODE(found.st_mode) & 0o077:
        return f"is open to others (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


def _remedy(path: Path, found: os.stat_result) -> str:
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
        return f"Look through it, then run: chmod 700 {path}"
    return f"Remove it, or choose another folder with the environment variable {VARIABLE}."


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except WorkspaceError:
        raise
    except OSError as error:
        raise WorkspaceError(
            f"The workspace {folder} cannot be made: {error}. "
            f"Choose another folder with the environment variable {VARIABLE}."
        ) from error


# -- where ---------------------------------------------------------------------------------


def jupyter_runtime() -> Path:
    """Return Jupyter's runtime directory; jupyter_core is asked only where it must be."""
    named = os.environ.get("JUPYTER_RUNTIME_DIR")
    if named:
        return Path(os.path.realpath(named))
    from jupyter_core.paths import jupyter_runtime_dir

    return Path(os.path.realpath(jupyter_runtime_dir()))


def _digest(path: Path) -> str:
    return hashlib.blake2b(os.fsencode(os.path.realpath(path)), digest_size=8).hexdigest()


def _nearest(start: Path) -> Path | None:
    """Return the first workspace of this user from `start` upwards, not above home."""
    home = Path(os.path.realpath(Path.home()))
    for folder in (start, *start.parents):
        if _is_mine(folder / NAME):
            return folder / NAME
        if folder == home:
            return None
    return None


def _is_mine(path: Path) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _trouble(folder: Path) -> str:
    """Say why a workspace cannot live here; empty if it can."""
    ground = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(ground, os.W_OK):
        return "is read-only"
    kind = file_system(ground)
    return f"is on a network file system ({kind})" if is_network(kind) else ""


def _state_folder() -> Path:
    """Return the local folder for state: the user's own, or one of this host."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    own = Path(os.path.realpath(base)) / "nbtaskq"
    host = Path(f"/var/tmp/nbtaskq-{os.getuid()}")
    if is_network(file_system(own)) and not is_network(file_system(host)):
        private_folder(host)
        return host
    return own
