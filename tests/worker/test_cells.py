"""A cell as a task: names of its own, magics, await, results, tracebacks."""

from __future__ import annotations

from typing import Any

import pytest
from stand_in import Hub, Task

from nbtaskq.hub import protocol as p
from nbtaskq.worker.cells import run_cell, run_cell_async


def cell(hub: Hub, source: str, captured: Any = None, outputs: Any = (), **kwargs: Any) -> Task:
    args = (source, captured or {}, tuple(outputs))
    return hub.run(run_cell, *args, kwargs=kwargs, name="train")


def async_cell(hub: Hub, source: str, outputs: Any = ()) -> p.Assignment:
    args = (source, {}, tuple(outputs))
    return hub.assignment(run_cell_async, *args, flavor=p.Flavor.ASYNC)


def test_the_last_expression_is_the_value_and_is_shown(hub: Hub) -> None:
    task = cell(hub, "x = 20\nprint('hi')\nx + n", {"n": 1})
    assert task.value == (21, {})
    assert [n["output_type"] for n in task.notes] == ["stream", "execute_result"]
    assert task.notes[1]["data"] == {"text/plain": "21"}


def test_a_semicolon_hides_the_value_but_keeps_it(hub: Hub) -> None:
    task = cell(hub, "1 + 1;")
    assert task.value.value == 2
    assert task.notes == []


def test_a_cell_without_a_last_expression_has_no_value(hub: Hub) -> None:
    assert cell(hub, "x = 1").value == (None, {})
    assert cell(hub, "# nothing").value == (None, {})


def test_outputs_are_collected_by_name(hub: Hub) -> None:
    source = "a = 1\ndef double(x):\n    return helper(x)\ndef helper(x):\n    return 2 * x\n"
    result = cell(hub, source, {}, ["a", "double"]).value
    assert result.outputs["a"] == 1
    assert result.outputs["double"](4) == 8


def test_objects_of_a_cells_own_class_come_back(hub: Hub) -> None:
    result = cell(hub, "class Thing:\n    x = 5\nthing = Thing()", {}, ["thing"]).value
    assert result.outputs["thing"].x == 5


def test_a_missing_output_is_named_with_what_there_is(hub: Hub) -> None:
    error = cell(hub, "model = 1; other = 2; _private = 3", {"df": 1}, ["score"]).error
    assert isinstance(error, NameError)
    assert "'score'" in str(error)
    assert str(error).endswith("It assigned: model, other.")


def test_names_are_fresh_for_each_cell(hub: Hub) -> None:
    cell(hub, "import math\nleft = 1\n_hidden = 2\nx: int = 3")
    found = cell(hub, "sorted(n for n in globals() if not n.startswith('__'))").value.value
    assert "left" not in found
    assert "_hidden" not in found
    assert "math" not in found
    assert cell(hub, "left").error.args == ("name 'left' is not defined",)


def test_a_cell_is_the_main_module(hub: Hub) -> None:
    source = "import sys\nx = 1\n(__name__, sys.modules['__main__'].x)"
    assert cell(hub, source).value.value == ("__main__", 1)


def test_the_names_of_a_console_are_there_again_after_a_cell(hub: Hub) -> None:
    from jupyter_client import BlockingKernelClient

    worker: Any = hub.worker  # type: ignore[attr-defined]
    client = BlockingKernelClient(connection_file=str(worker.connection_file))
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=20)
        client.execute_interactive("mine = 5", timeout=20)
        assert cell(hub, "mine").error.args == ("name 'mine' is not defined",)
        reply = client.execute("pass", user_expressions={"x": "mine"}, reply=True, timeout=20)
        assert reply["content"]["user_expressions"]["x"]["data"]["text/plain"] == "5"
        client.execute_interactive("del mine", timeout=20)
    finally:
        client.stop_channels()


def test_magics_and_commands_work(hub: Hub) -> None:
    source = "%env NBTASKQ_TRY=7\n!echo from the shell\nlines = !echo one; echo two\nlist(lines)"
    task = cell(hub, source)
    assert task.value.value == ["one", "two"]
    assert "from the shell" in task.text()
    assert "env: NBTASKQ_TRY=7" in task.text()
    timed = cell(hub, "%%time\nsum(range(10))")
    assert "Wall time" in timed.text()


def test_a_cell_can_run_another(hub: Hub) -> None:
    task = cell(hub, "get_ipython().run_cell('inner = 6')\ninner * 7")
    assert task.value.value == 42


@pytest.mark.parametrize("flavor", ["sync", "async"])
def test_an_error_shows_the_cells_lines(hub: Hub, flavor: str) -> None:
    source = "def ratio(a, b):\n    return a / b\n\nratio(1, 0)"
    if flavor == "sync":
        error = cell(hub, source, name="train").error
    else:
        task = hub.run(run_cell_async, source, {}, (), kwargs={"name": "train"}, flavor=1)
        error = task.error
    assert isinstance(error, ZeroDivisionError)
    trace = str(error.__cause__)
    assert 'Cell train", line 4' in trace
    assert "return a / b" in trace
    assert "interactiveshell.py" not in trace


def test_an_error_is_no_output(hub: Hub) -> None:
    assert cell(hub, "1 / 0").notes == []


def test_exit_ends_the_cell_only(hub: Hub) -> None:
    for word in ("exit()", "quit()", "import sys; sys.exit(1)"):
        assert "SystemExit" in cell(hub, word).verdict.outcome.error
    assert cell(hub, "1").value.value == 1


def test_a_cell_may_await(hub: Hub) -> None:
    source = "import asyncio\nawait asyncio.sleep(0.01)\nprint('slept')\nx = 1\nx + 1"
    task = async_cell(hub, source, ["x"])
    hub.assign(task)
    hub.pump(lambda: hub.verdict(task))
    done = Task(hub, task)
    assert done.value == (2, {"x": 1})
    assert done.text() == "slept\n"


def test_cells_that_await_take_turns(hub: Hub) -> None:
    sources = [f"import asyncio\nmine = {i}\nawait asyncio.sleep(0.1)\nmine" for i in range(3)]
    tasks = [async_cell(hub, source) for source in sources]
    hub.assign(*tasks)
    hub.pump(lambda: all(hub.verdict(t) for t in tasks))
    assert [Task(hub, t).value.value for t in tasks] == [0, 1, 2]


def test_an_await_in_a_synchronous_cell_is_refused_by_name(hub: Hub) -> None:
    error = cell(hub, "import asyncio\nawait asyncio.sleep(0)", name="train").error
    assert "Cell train" in str(error)


def test_a_syntax_error_names_the_cell(hub: Hub) -> None:
    error = cell(hub, "x = (", name="train").error
    assert isinstance(error, SyntaxError)
    assert error.filename == "Cell train"


def test_a_seed_makes_random_numbers_repeatable(hub: Hub) -> None:
    pytest.importorskip("numpy")
    source = "import random, numpy as np\n(random.random(), np.random.rand())"
    first, second, third = (cell(hub, source, seed=s).value.value for s in (1, 1, 2))
    assert first == second != third


def test_figures_of_a_cell_are_shown_in_it(hub: Hub) -> None:
    pytest.importorskip("matplotlib")
    task = cell(hub, "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nprint('done');")
    kinds = [n["output_type"] for n in task.notes]
    assert kinds == ["stream", "display_data"]


def test_progress_bars_choose_text(hub: Hub) -> None:
    assert cell(hub, "'IPKernelApp' in get_ipython().config").value.value is False
