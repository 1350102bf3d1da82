"""What tasks share in a process, and what each of them finds as it should be."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbtaskq.serializers import Home


class Environment:
    """Folder, module path, environment variables, warning filters and streams between tasks.

    What did not change is compared by identity, so that a task that touches nothing pays about
    two microseconds. A process that goes on with tasks of one sender stays in its folder.
    """

    def __init__(self) -> None:
        self._base = os.getcwd(), list(sys.path)
        self._home: Home | None = None
        self._cwd, self._path = self._base
        self._variables: dict[Any, Any] = dict(_variables())
        self._filters: list[Any] = list(warnings.filters)
        self._streams = sys.stdout, sys.stderr

    def enter(self, home: Home | None) -> None:
        """Go to the folder of a task's sender, with its additions to `sys.path`.

        Where that folder does not exist, the task runs in this worker's own.
        """
        if home != self._home:
            self._home = home
            self._cwd, self._path = self._base
            if home is not None:
                added = [entry for entry in home.sys_path if entry not in self._path]
                self._path = [*added, *self._path]
                if os.path.isdir(home.cwd):
                    self._cwd = home.cwd
        self._place()

    def restore(self) -> None:
        """Put everything back."""
        self._place()
        if _variables() != self._variables:
            self._restore_variables()
        if warnings.filters != self._filters:
            warnings.resetwarnings()  # it also forgets what was warned about already
            warnings.filters[:] = self._filters  # type: ignore[index]
        if sys.stdout is not self._streams[0] or sys.stderr is not self._streams[1]:
            sys.stdout, sys.stderr = self._streams

    def _place(self) -> None:
        if _cwd() != self._cwd:
            with contextlib.suppress(OSError):  # it was removed meanwhile
                os.chdir(self._cwd)
        if sys.path != self._path:
            sys.path[:] = self._path

    def _restore_variables(self) -> None:
        now = dict(_variables())
        for name in now.keys() - self._variables.keys():
            del os.environ[os.fsdecode(name)]
        for name, value in self._variables.items():
            if now.get(name) != value:
                os.environ[os.fsdecode(name)] = os.fsdecode(value)


def _variables() -> Any:
    """Return the mapping behind `os.environ`, whose values need no decoding to be compared."""
    return getattr(os.environ, "_data", os.environ)


def _cwd() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # the task removed the folder it was in
        return ""
