"""Where a function comes from: its directory, import paths and the source of its cells.

A task runs in its sender's directory, finds the sender's local modules, and its traceback shows
the cell's lines, which exist nowhere but in the sender's `linecache`.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import NamedTuple


class Home(NamedTuple):
    """The working directory and the added import paths of the process that froze a function."""

    cwd: str
    sys_path: tuple[str, ...]

    @classmethod
    def here(cls) -> Home:
        """Return this process's home."""
        cwd = _cwd()
        return cls(cwd, tuple(dict.fromkeys(_added_paths(cwd))))

    @contextlib.contextmanager
    def importable(self) -> Iterator[None]:
        """Make the home's modules importable within the block."""
        added = [path for path in (*self.sys_path, self.cwd) if path not in sys.path]
        sys.path.extend(added)
        try:
            yield
        finally:
            for path in added:
                with contextlib.suppress(ValueError):
                    sys.path.remove(path)


def _cwd() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # the directory was removed under the process
        return os.path.expanduser("~")


def _added_paths(cwd: str) -> Iterator[str]:
    for entry in sys.path:
        path = os.path.join(cwd, entry)
        if not path.endswith(".zip") and not path.startswith(_own_paths()):
            yield path.rstrip(os.sep) or os.sep


@cache
def _own_paths() -> tuple[str, ...]:
    """Folders that every process of this environment searches anyway.

    Not simply all below `sys.prefix`: with a prefix such as ``/usr`` users' modules lie there too.
    """
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    paths = [sysconfig.get_paths()[name] for name in names]
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    paths += [sysconfig.get_path(name, vars=base) for name in names]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(dict.fromkeys(paths))


def cell_sources(filenames: Iterable[str]) -> dict[str, str]:
    """Return the source of those files that exist only in `linecache`, as cells do."""
    found = {}
    for name in sorted(set(filenames)):
        if is_cell(name):
            found[name] = "".join(linecache.getlines(name))
    return found


def is_cell(filename: str) -> bool:
    """Whether this file's source is known and is no file: it cannot change."""
    entry = linecache.cache.get(filename)
    return entry is not None and len(entry) == 4 and not os.path.exists(filename)


def remember_sources(sources: Mapping[str, str]) -> None:
    """Put the sources of cells from elsewhere into `linecache`, for tracebacks."""
    for name, text in sources.items():
        if name not in linecache.cache:
            # without a modification time `linecache.checkcache` leaves the entry alone
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
