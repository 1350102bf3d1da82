"""The guard: ends the workers' process groups when the supervisor is killed.

A worker dies with its supervisor by itself; what its tasks started does not. A shell of one
megabyte reads the list of groups from a pipe whose other end only the supervisor holds, and
kills the last list that it read when the pipe breaks.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterable

_SCRIPT = """
groups=
while read -r line; do groups=$line; done
for group in $groups; do kill -s KILL -- "-$group"; done
"""


class Guard:
    """A process that outlives this one by the moment it takes to clean up."""

    def __init__(self) -> None:
        self._groups: list[int] = []
        self._shell = _start()

    @property
    def pid(self) -> int:
        """Of the shell."""
        return self._shell.pid

    def watch(self, groups: Iterable[int]) -> None:
        """Have these process groups, and no others, killed when this process ends."""
        wanted = sorted(groups)
        if wanted == self._groups:
            return
        self._groups = wanted
        try:
            self._tell()
        except BrokenPipeError:  # somebody killed it
            self.close()
            self._shell = _start()
            self._tell()

    def close(self) -> None:
        """End the guard; the groups that it watches end too."""
        assert self._shell.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.close()
        self._shell.wait()

    def _tell(self) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(" ".join(map(str, self._groups)).encode() + b"\n")


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        bufsize=0,
    )
