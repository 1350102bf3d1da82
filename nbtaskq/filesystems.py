"""Which kind of file system holds a path: SQLite's locks cannot be relied on over a network."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MOUNTS = Path("/proc/mounts")

#: SQLite's locks and shared files cannot be relied on here.
NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "gpfs", "lustre"}
    | {"ncpfs", "nfs", "nfs4", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf"}
)


def is_network(kind: str) -> bool:
    """Whether a file system of this type is, or may be, on a network."""
    return kind in NETWORK or kind.startswith("fuse.")


def file_system(path: Path) -> str:
    """Return the type of the file system that holds a path, `""` where there is no telling."""
    real = os.path.realpath(path)
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in MOUNTS.read_text().splitlines():
            point, found = _mount(line)
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, found
    return kind


def _mount(line: str) -> tuple[str, str]:
    fields = line.split()
    # blanks and backslashes in a mount point are written as octal escapes
    return fields[1].encode().decode("unicode_escape"), fields[2]
