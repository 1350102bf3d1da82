"""The store's tables, and how its file is created, checked, migrated and opened.

    task      facts that never change        payload   bytes of the call
    pending   what changes, unended tasks    result    how a task ended, and its value
    output    numbered pieces of output      object    bytes under a digest
    origin    who sends from where           meta      the epoch

Facts have tables of their own, so that a scan of them does not drag payloads along. Ending a
task takes its row out of `pending` and adds one to `result`; no row ever grows in place.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from pathlib import Path

from nbtaskq.errors import StoreError
from nbtaskq.hub.blobs import sync_folder
from nbtaskq.hub.soundness import APPLICATION, MOVE, Log, check_file, newer, refuse

FILE = "hub.sqlite"

_FIRST = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
INSERT INTO meta VALUES ('epoch', 0);
CREATE TABLE origin (
    id INTEGER PRIMARY KEY, owner BLOB, notebook TEXT, environment TEXT,
    UNIQUE (owner, notebook, environment));
CREATE TABLE task (
    seq INTEGER PRIMARY KEY, task_id BLOB NOT NULL, name TEXT, origin INTEGER, submitted REAL,
    checksum INTEGER, flavor INTEGER, priority INTEGER, expires REAL, at_most_once INTEGER,
    needs BLOB, batch BLOB, number INTEGER);
CREATE UNIQUE INDEX task_by_id ON task (task_id);
CREATE INDEX task_by_name ON task (name, seq, origin);
CREATE INDEX task_by_batch ON task (batch) WHERE batch IS NOT NULL;
CREATE TABLE payload (
    seq INTEGER PRIMARY KEY, crc INTEGER, data BLOB, parts BLOB, labels BLOB, labels_crc INTEGER);
CREATE TABLE pending (
    seq INTEGER PRIMARY KEY, due REAL, attempts INTEGER, lease INTEGER, reasons BLOB);
CREATE TABLE result (
    seq INTEGER PRIMARY KEY, status INTEGER, started REAL, seconds REAL, worker TEXT,
    attempts INTEGER, error TEXT, size INTEGER, crc INTEGER, data BLOB, parts BLOB);
CREATE INDEX result_not_succeeded ON result (seq, status) WHERE status > 10;
CREATE TABLE output (seq INTEGER, number INTEGER, content BLOB, PRIMARY KEY (seq, number));
CREATE TABLE object (digest BLOB PRIMARY KEY, refs BLOB, size INTEGER, crc INTEGER, body BLOB);
"""

#: Script `n` takes a file from version `n` to `n + 1`.
MIGRATIONS = (_FIRST,)
VERSION = len(MIGRATIONS)

#: Files up to this size are looked through when they are opened: 8 MB take some 20 ms.
CHECKED = 8 << 20


def connect(folder: Path) -> tuple[sqlite3.Connection, list[str]]:
    """Open or create the store's file; the caller holds the workspace's lock.

    Returns
    -------
    connection, notices
        The only connection, in exclusive mode, and sentences on damage that was got over.

    Raises
    ------
    StoreError
        The file cannot be used; it is as it was.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        _create(path)
    log = check_file(path, VERSION)
    connection = _open(path)
    try:
        notices = _check(connection, path, log)
        _migrate(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise translated(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection, notices


def _create(path: Path) -> None:
    """Create the file under another name first: one that is empty was never ours."""
    log = path.with_name(path.name + "-wal")
    if log.exists():
        raise refuse(path, f"it is missing, but its log {log.name} is there", "move the log away")
    fresh = path.with_name(path.name + ".new")
    for left in path.parent.glob(fresh.name + "*"):
        left.unlink()
    try:
        os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        connection = _open(fresh)
        try:
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            _migrate(connection, fresh)
        finally:
            connection.close()
        fresh.rename(path)
        sync_folder(path.parent)
    except (OSError, sqlite3.Error) as error:
        raise refuse(
            path, f"it cannot be created ({error})", "make room and start again"
        ) from error


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        for pragma in _pragmas():
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except sqlite3.Error as error:
        connection.close()
        raise translated(path, error) from error
    return connection


def _pragmas() -> list[str]:
    # EXCLUSIVE comes first: SQLite then needs no shared memory file for the log. A checkpoint
    # every 16 MB and a cache of 32 MB spare the random pages of the index over task ids.
    pragmas = [
        "locking_mode = EXCLUSIVE",
        "journal_mode = WAL",
        "synchronous = FULL",
        "wal_autocheckpoint = 4000",
        "journal_size_limit = 67108864",
        "cache_size = -32768",
        "temp_store = MEMORY",
    ]
    if sys.platform == "darwin":
        pragmas += ["fullfsync = ON", "checkpoint_fullfsync = ON"]
    return pragmas


def _check(connection: sqlite3.Connection, path: Path, log: Log) -> list[str]:
    """Look at the structure; return what was lost with a damaged log, of which a copy is kept."""
    notices = []
    read = connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
    if read is None:
        raise refuse(path, "its epoch is missing", MOVE)
    if not log.sound or _recovered(connection) < log.frames:
        kept = _keep_copy(path.with_name(path.name + "-wal"))
        notices.append(
            f"the end of {path.name}'s log could not be read: what was stored last may be missing;"
            f" a copy of the log is in {kept}"
        )
    if path.stat().st_size <= CHECKED:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise refuse(path, f"it is damaged ({found})", MOVE)
    for table in ("task", "payload", "pending", "result"):
        # two queries: SQLite finds both ends of a table, but not in one without reading it all
        for end in ("min", "max"):
            connection.execute(f"SELECT {end}(seq) FROM {table}").fetchone()
    return notices


def _recovered(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1])


def _keep_copy(log: Path) -> Path:
    for number in range(1, 1000):
        kept = log.with_name(f"{log.name}.damaged-{number}")
        if not kept.exists():
            break
    shutil.copyfile(log, kept)
    kept.chmod(0o600)
    return kept


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a file of an earlier version to this one, in one transaction."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise newer(path, version, VERSION)
    if version == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    for script in MIGRATIONS[version:]:
        for statement in script.split(";"):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def translated(path: Path, error: Exception) -> StoreError:
    """Say in one line what SQLite, or the file system, found."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return refuse(path, "another process has it open", "end that process and start again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return refuse(path, f"it cannot be written ({error})", "allow writing to it and its folder")
    if code == sqlite3.SQLITE_FULL:
        return refuse(path, "the disk is full", "make room and start again")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return refuse(path, f"it is damaged ({error})", MOVE)
    return refuse(path, f"it cannot be opened ({error})", MOVE)
