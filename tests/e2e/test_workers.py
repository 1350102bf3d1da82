"""Worker kernels as a notebook's user meets them: code, output, consoles, environments."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
from jupyter_client import BlockingKernelClient

import nbtaskq as nq
from nbtaskq.errors import BrokerUnreachable
from nbtaskq.workspace import Workspace
from tests.waiting import until


def cell(source: str, **names: object) -> dict[str, object]:
    """Return the names that a cell of this source defines."""
    namespace: dict[str, object] = {"__name__": "__main__", "nq": nq, **names}
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), namespace)
    return namespace


def test_a_global_changed_between_two_sends_is_sent_both_times(hub: Workspace) -> None:
    names = cell("lr = 0.1\ndef rate(): return lr")
    rate = nq.task(names["rate"])
    first = rate.kiq()
    names["lr"] = 0.2
    second = rate.kiq()
    assert (first.result(10), second.result(10)) == (0.1, 0.2)


def test_a_large_captured_array_is_sent_once(hub: Workspace) -> None:
    names = cell("def total(i): return float(data[i])", data=np.arange(50 << 17, dtype=float))
    total = nq.task(names["total"])
    with pytest.warns(UserWarning, match="data"):
        batch = total.map(range(20))
    assert batch.results(60) == [float(i) for i in range(20)]
    blobs = [path.stat().st_size for path in hub.folder.rglob("*") if path.is_file()]
    assert sum(size >= 50 << 20 for size in blobs) == 1


def test_classes_of_the_notebook_keep_their_identity(
    hub: Workspace, main_module: dict[str, object]
) -> None:
    source = """
    class Point:
        def __init__(self, x): self.x = x
        def moved(self): return Point(self.x + 1)

    def move(p):
        assert isinstance(p, Point)
        return p.moved()
    """
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), main_module)
    point = main_module["Point"](1)  # type: ignore[operator]
    moved = nq.task(main_module["move"]).kiq(point).result(10)  # type: ignore[arg-type]
    assert isinstance(moved, main_module["Point"])  # type: ignore[arg-type]
    assert moved.x == 2


def test_prints_arrive_with_the_result(hub: Workspace) -> None:
    source = """
    import sys
    def talk(n):
        for i in range(n): print("line", i)
        print("oh", file=sys.stderr)
        return n
    """
    handle = nq.task(cell(source)["talk"]).kiq(3)
    assert handle.result(10) == 3
    assert handle.output.text == "line 0\nline 1\nline 2\noh\n"
    assert nq.attach(handle.task_id).output.text == handle.output.text


def test_a_task_can_send_tasks(hub: Workspace) -> None:
    source = """
    def inner(x): return x + 1
    def outer(x):
        import nbtaskq as nq
        return nq.task(inner).kiq(x).result(20)
    """
    assert nq.task(cell(source)["outer"]).kiq(1).result(30) == 2


def test_a_console_attaches_to_an_idle_worker(hub: Workspace) -> None:
    name = until(lambda: nq.status().workers, "a worker is there")[0]["name"]
    client = BlockingKernelClient(connection_file=str(hub.connection_file(name)))
    client.load_connection_file()
    assert client.transport == "ipc"
    client.start_channels()
    try:
        client.wait_for_ready(20)
        texts: list[str] = []
        client.execute_interactive(
            "print(6 * 7)",
            timeout=20,
            output_hook=lambda m: texts.append(m["content"].get("text", "")),
        )
        assert "42\n" in texts
    finally:
        client.stop_channels()


def test_tasks_run_in_the_senders_folder(
    hub: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 'from beside'\n")
    (tmp_path / "data.txt").write_text("here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = """
    def read():
        import os, beside
        return open("data.txt").read(), beside.VALUE
    """
    assert nq.task(cell(source)["read"]).kiq().result(10) == ("here", "from beside")


def test_scaling_up_and_down_keeps_the_tasks(fresh_workspace: Workspace) -> None:
    nq.up(1)
    slow = nq.task(cell("import time\ndef slow(i): time.sleep(0.05); return i")["slow"])
    batch = slow.map(range(60))
    assert len(nq.scale(3).workers) == 3
    assert len(nq.scale(1).workers) == 1
    assert len(nq.up(1).workers) == 1
    assert batch.results(30) == list(range(60))
    assert set(batch.to_frame().task_status) == {"succeeded"}


def test_down_and_up_again_resumes_what_was_running(fresh_workspace: Workspace) -> None:
    nq.up(2)
    slow = nq.task(cell("import time\ndef slow(i): time.sleep(0.3); return i")["slow"])
    batch = slow.map(range(12))
    until(lambda: batch.counts.get("succeeded", 0) >= 2, "two have ended")
    nq.down()
    assert not nq.status().running
    nq.up(2)
    assert batch.results(30) == list(range(12))
    assert {h.facts.attempts for h in batch} == {1}  # interrupted by `down`: uncharged


def test_work_after_down_starts_anew_though_a_question_before_it_was_in_vain(
    fresh_workspace: Workspace,
) -> None:
    quick = nq.task("quick")(cell("def quick(i): return i")["quick"])
    assert quick.kiq(1).result(30) == 1
    nq.down(force=True)
    with pytest.raises(BrokerUnreachable):
        nq.attach("quick")
    assert quick.kiq(2).result(30) == 2


def test_the_history_tells_who_did_what(hub: Workspace) -> None:
    handle = nq.task("told", priority=1)(cell("def told(): return 1")["told"]).kiq()
    handle.result(10)
    row = nq.history("told").iloc[0]
    assert row.task_id == handle.task_id
    assert row.task_status == "succeeded"
    assert row.task_worker == handle.worker
    assert row.task_attempts == 1


def test_a_thousand_handles_are_found_again_by_id(hub: Workspace) -> None:
    quick = nq.task("quick")(cell("def quick(i): return i")["quick"])
    batch = quick.map(range(1000))
    batch.results(30)
    again = nq.attach("quick")
    assert isinstance(again, nq.Batch)
    assert again.counts == {"succeeded": 1000}  # at once, not when somebody waits
    assert again.results(30) == list(range(1000))


def test_what_is_attached_knows_at_once_how_the_task_ended(hub: Workspace) -> None:
    for name, source in (("good", "return 3"), ("bad", "1 / 0")):
        sent = nq.task(name)(cell(f"def {name}(): {source}")[name]).kiq()
        sent.exception(10)
        assert nq.attach(sent.task_id).status == sent.status
    assert "failed" in repr(nq.attach("bad"))


def test_a_long_history_is_whole(hub: Workspace) -> None:
    batch = nq.task("many")(cell("def many(i): return i")["many"]).map(range(12_000))
    batch.results(60)
    frame = nq.history("many", limit=50_000)
    assert len(frame) == 12_000
    assert set(frame.task_id) == {handle.task_id for handle in batch}
    assert len(nq.history("many", limit=7_001)) == 7_001
