"""What a task puts out arrives in order, before its verdict, and in bounds."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from stand_in import Hub, Task

from nbtaskq.hub import protocol as p
from nbtaskq.message import TaskStatus
from tests.waiting import until


def test_a_task_that_prints_nothing_sends_nothing(hub: Hub) -> None:
    def quiet() -> int:
        print(end="")
        return 1

    assert hub.run(quiet).value == 1
    assert hub.of(p.Output) == []


def test_prints_arrive_before_the_verdict_by_stream(hub: Hub) -> None:
    def chatter() -> None:
        import sys

        print("one", "two")
        print("three", flush=True)
        print("oops", file=sys.stderr)
        print("four")

    notes = hub.run(chatter).notes
    assert [(n["name"], n["text"]) for n in notes if n["output_type"] == "stream"][-1] == (
        "stdout",
        "four\n",
    )
    assert "".join(n["text"] for n in notes) == "one two\nthree\noops\nfour\n"


def test_output_of_a_failed_task_arrives_too(hub: Hub) -> None:
    def fail() -> None:
        print("last words")
        raise ValueError

    task = hub.run(fail)
    assert task.status == TaskStatus.FAILED
    assert task.text() == "last words\n"


def test_output_arrives_while_the_task_runs(hub: Hub) -> None:
    def slow() -> None:
        import time

        print("begun")
        time.sleep(0.5)

    task = hub.assignment(slow)
    hub.assign(task)
    hub.pump(lambda: hub.of(p.Output))
    assert hub.verdict(task) is None
    hub.pump(lambda: hub.verdict(task))
    assert Task(hub, task).text() == "begun\n"


def test_logging_warnings_and_tracebacks_arrive(hub: Hub) -> None:
    def log() -> None:
        import logging
        import traceback
        import warnings

        logging.getLogger("mine").warning("from logging")
        warnings.warn("from warnings", stacklevel=1)
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            traceback.print_exc()

    text = hub.run(log).text("stderr")
    assert "from logging" in text
    assert "from warnings" in text
    assert "ZeroDivisionError" in text


def test_threads_of_a_task_print_for_it(hub: Hub) -> None:
    def spread() -> None:
        import threading
        from concurrent.futures import ThreadPoolExecutor

        thread = threading.Thread(target=print, args=("thread",))
        thread.start()
        thread.join()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(print, ["pool"]))

    assert sorted(hub.run(spread).text().split()) == ["pool", "thread"]


def test_commands_subprocesses_and_c_code_arrive_in_full(hub: Hub) -> None:
    def call() -> None:
        import os
        import subprocess
        import sys

        os.system("echo system; echo wrong >&2")
        subprocess.run(["echo", "subprocess"], check=True)
        subprocess.run(["echo", "given"], check=True, stdout=sys.stdout)
        os.write(1, "ä".encode() * 100_000)
        os.write(2, b"end")

    task = hub.run(call)
    assert task.text().splitlines()[:3] == ["system", "subprocess", "given"]
    assert task.text().endswith("ä" * 100_000)
    assert task.text("stderr") == "wrong\nend"


def test_children_that_are_forks_print_for_the_task(hub: Hub) -> None:
    def fork() -> None:
        import multiprocessing

        child = multiprocessing.get_context("fork").Process(target=print, args=("child",))
        child.start()
        child.join()

    assert hub.run(fork).text() == "child\n"


def test_displays_arrive_as_notebook_outputs(hub: Hub) -> None:
    def show() -> None:
        from IPython.display import HTML, clear_output, display, update_display

        display(HTML("<b>one</b>"), display_id="d")
        print("between")
        update_display(HTML("<b>two</b>"), display_id="d")
        clear_output(wait=True)
        display({"text/plain": "raw", "image/png": b"\x89PNG"}, raw=True)

    notes = hub.run(show).notes
    assert [n["output_type"] for n in notes] == [
        "display_data",
        "stream",
        "update_display_data",
        "clear_output",
        "display_data",
    ]
    assert notes[0]["data"]["text/html"] == "<b>one</b>"
    assert notes[0]["transient"] == {"display_id": "d"}
    assert notes[2]["data"]["text/html"] == "<b>two</b>"
    assert notes[3] == {"output_type": "clear_output", "wait": True}
    assert base64.b64decode(notes[4]["data"]["image/png"]) == b"\x89PNG"


def test_updates_that_nobody_could_see_become_one(hub: Hub) -> None:
    def animate() -> None:
        from IPython.display import display, update_display

        display(0, display_id="d")
        for i in range(1000):
            update_display(i, display_id="d")

    notes = hub.run(animate).notes
    assert len(notes) < 500
    assert notes[-1]["data"]["text/plain"] == "999"


def test_figures_that_are_left_open_are_shown_and_closed(hub: Hub) -> None:
    pytest.importorskip("matplotlib")

    def plot() -> None:
        import matplotlib.pyplot as plt

        plt.plot([1, 2])

    def count() -> int:
        import matplotlib.pyplot as plt

        return len(plt.get_fignums())

    for _ in range(2):
        (note,) = [n for n in hub.run(plot).notes if n["output_type"] == "display_data"]
        assert base64.b64decode(note["data"]["image/png"]).startswith(b"\x89PNG")
    assert hub.run(count).value == 0


def test_coroutines_have_their_own_output(hub: Hub) -> None:
    async def talk(name: str) -> None:
        import asyncio

        for i in range(3):
            print(name, i)
            await asyncio.sleep(0.01)
        await asyncio.to_thread(print, name, "thread")

    talk.__module__ = "__main__"
    tasks = [hub.assignment(talk, name, flavor=p.Flavor.ASYNC) for name in "ab"]
    hub.assign(*tasks)
    hub.pump(lambda: all(hub.verdict(t) for t in tasks))
    for task, name in zip(tasks, "ab", strict=True):
        lines = Task(hub, task).text().splitlines()
        assert lines == [f"{name} 0", f"{name} 1", f"{name} 2", f"{name} thread"]


def test_a_thread_that_outlives_its_task_does_not_print_for_the_next(hub: Hub) -> None:
    async def leave() -> None:
        import asyncio
        import builtins

        async def late() -> None:
            await builtins.go.wait()  # type: ignore[attr-defined]
            print("late")
            builtins.gone.set()  # type: ignore[attr-defined]

        builtins.go, builtins.gone = asyncio.Event(), asyncio.Event()  # type: ignore[attr-defined]
        builtins.late = asyncio.ensure_future(late())  # type: ignore[attr-defined]

    async def next_one() -> None:
        import builtins

        builtins.go.set()  # type: ignore[attr-defined]
        await builtins.gone.wait()  # type: ignore[attr-defined]
        print("next")

    for function in (leave, next_one):
        function.__module__ = "__main__"
        task = hub.run(function, flavor=p.Flavor.ASYNC)
    assert task.text() == "next\n"


def test_the_notes_of_a_later_attempt_come_behind_those_of_an_earlier(hub: Hub) -> None:
    def say() -> None:
        print("again")

    first, second = (hub.assignment(say, attempt=n) for n in (1, 2))
    hub.assign(first, second)
    hub.pump(lambda: hub.verdict(second))
    one, two = (n for output in hub.of(p.Output) for n in output.notes)
    assert one.number == 0
    assert two.number > 20_000


def test_many_short_lines_become_few_notes(hub: Hub) -> None:
    def count() -> None:
        for i in range(20_000):
            print(i)

    task = hub.run(count)
    assert task.text().split() == [str(i) for i in range(20_000)]
    assert len(task.notes) < 2000


def test_an_endless_line_is_capped_and_counted_and_others_are_unhurt(hub: Hub) -> None:
    def shout() -> None:
        print("x" * 100_000_000)
        for i in range(10):
            print(i)

    def say() -> None:
        print("hello")

    task = hub.run(shout)
    text = task.text()
    assert 9_000_000 < len(text) < 11_000_000
    assert task.notes[-1] == {
        "output_type": "stream",
        "name": "stderr",
        "text": "\n… 11 more lines dropped\n",
    }
    assert hub.run(say).text() == "hello\n"


def test_displays_count_towards_the_bound(hub: Hub) -> None:
    def flood() -> None:
        from IPython.display import display

        for _ in range(30):
            display({"text/plain": "x" * 1_000_000}, raw=True)

    task = hub.run(flood)
    assert len([n for n in task.notes if n["output_type"] == "display_data"]) < 11
    assert "more lines dropped" in task.text("stderr")


def test_text_that_is_no_unicode_arrives_as_something(hub: Hub) -> None:
    def odd() -> None:
        from IPython.display import display

        print("a\udc80b")
        display({"text/plain": "c\udc80d", "application/json": {1: float("nan")}}, raw=True)

    notes = hub.run(odd).notes
    assert notes[0]["text"].startswith("a")
    assert len(notes) == 2


def test_what_was_printed_is_in_the_flight_recorder_at_once(hub: Hub) -> None:
    def mark() -> None:
        print("marked", "line")

    worker: Any = hub.worker  # type: ignore[attr-defined]
    hub.run(mark)
    assert worker.recorder.tail().splitlines()[-1] == "marked line"


def test_output_that_nobody_could_take_waits_for_the_hub(pair: tuple[Hub, Any]) -> None:
    hub, worker = pair

    def speak() -> None:
        import time

        time.sleep(0.2)
        print("spoken")

    task = hub.assignment(speak)
    hub.assign(task)
    hub.pump(lambda: worker.recorder.slots())
    hub.unbind()
    until(lambda: worker.recorder.settled, "it has settled, while nobody listens")
    hub.bind()
    hub.pump(lambda: hub.verdict(task))
    assert Task(hub, task).text() == "spoken\n"
