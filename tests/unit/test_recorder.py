"""What is known of a worker after its sudden death."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbtaskq.errors import WorkspaceError
from nbtaskq.hub.protocol import Slot
from nbtaskq.worker import recorder as module
from nbtaskq.worker.recorder import Recorder

ROOT = Path(module.__file__).parent.parent.parent


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Recorder]:
    """The pool's view of a fresh file."""
    recorder = Recorder.create(tmp_path / "w1.rec")
    yield recorder
    recorder.close()


@pytest.fixture
def worker(owner: Recorder) -> Iterator[Recorder]:
    """The worker's view of the same file."""
    recorder = Recorder.open(owner.path)
    yield recorder
    recorder.close()


def test_a_fresh_record_is_empty_and_private(owner: Recorder) -> None:
    assert owner.slots() == []
    assert (owner.settled, owner.cancel_target, owner.ready, owner.tail()) == (0, 0, False, "")
    assert stat.S_IMODE(owner.path.stat().st_mode) == 0o600


def test_what_runs_is_seen_from_outside(owner: Recorder, worker: Recorder) -> None:
    worker.begin(0, b"one", 11, 1.5)
    worker.begin(255, b"two", 2**63, 2.5)
    worker.executed(255)
    assert owner.slots() == [Slot(b"one", 11, 1.5), Slot(b"two", 2**63, 2.5, executed=True)]
    worker.end(0)
    worker.begin(255, b"three", 13, 3.5)
    assert owner.slots() == [Slot(b"three", 13, 3.5)]


@pytest.mark.parametrize("task_id", [b"", b"a" * 64, b"\x00\x01\x00"])
def test_an_id_is_kept_byte_for_byte(owner: Recorder, worker: Recorder, task_id: bytes) -> None:
    worker.begin(3, task_id, 1, 0.0)
    assert owner.slots()[0].task_id == task_id


def test_a_long_id_is_cut_and_touches_no_neighbour(owner: Recorder, worker: Recorder) -> None:
    worker.begin(4, b"next", 2, 0.0)
    worker.begin(3, b"x" * 500, 1, 0.0)
    assert [slot.task_id for slot in owner.slots()] == [b"x" * 64, b"next"]


def test_words_pass_both_ways(owner: Recorder, worker: Recorder) -> None:
    worker.settled = 2**40
    worker.ready = True
    owner.cancel_target = 2**63 + 1
    assert (owner.settled, owner.ready, worker.cancel_target) == (2**40, True, 2**63 + 1)


@pytest.mark.parametrize("piece", [7, 1000, 65_536, 200_001])
def test_the_tail_is_the_latest_output(owner: Recorder, worker: Recorder, piece: int) -> None:
    text = b"".join(b"line %d\n" % number for number in range(40_000))
    for at in range(0, len(text), piece):
        worker.write_output(text[at : at + piece])
    assert owner.tail(3) == "line 39997\nline 39998\nline 39999"
    assert len(owner.tail(10**6).encode()) >= 65_000


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_ring_closes_exactly(owner: Recorder, worker: Recorder, extra: int) -> None:
    text = bytes(random.Random(0).choices(b"abcdefgh", k=module.RING + extra))
    for at in range(0, len(text), 1000):
        worker.write_output(text[at : at + 1000])
    assert owner.tail() == text[-module.RING :].decode()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w1.rec"
    path.write_bytes(b"something else")
    with pytest.raises(WorkspaceError, match="no flight recorder"):
        Recorder.open(path)


def test_neither_an_existing_file_nor_a_link_is_taken_for_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            Recorder.create(tmp_path / name)
    assert not (tmp_path / "target").exists()


def test_unlinking_removes_the_file(tmp_path: Path) -> None:
    recorder = Recorder.create(tmp_path / "w1.rec")
    recorder.unlink()
    assert not recorder.path.exists()


BUSY = """
import itertools, sys
from pathlib import Path
from nbtaskq.worker.recorder import Recorder

recorder = Recorder.open(Path(sys.argv[1]))
recorder.ready = True
for token in itertools.count(1):
    recorder.begin(token % 256, b"task-%d" % token, token, float(token))
    recorder.settled = token
    recorder.end(token % 256)
"""


def test_a_kill_in_the_middle_leaves_no_half_written_slot(tmp_path: Path) -> None:
    seen = 0
    pause = random.Random(1)
    for number in range(25):
        owner = Recorder.create(tmp_path / f"w{number}.rec")
        child = subprocess.Popen(
            [sys.executable, "-c", BUSY, str(owner.path)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        deadline = time.monotonic() + 10
        while not owner.settled:
            assert time.monotonic() < deadline
        time.sleep(pause.uniform(0, 0.01))
        child.send_signal(signal.SIGKILL)
        child.wait()
        for slot in owner.slots():
            seen += 1
            assert slot == Slot(b"task-%d" % slot.token, slot.token, float(slot.token))
            assert slot.token in (owner.settled, owner.settled + 1)
        owner.unlink()
    assert seen > 0
