"""Notebooks end to end: a kernel, a hub, worker kernels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kernels import Screen, run_through, screen

from nbtaskq.workspace import Workspace

pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("default")]

START = "%load_ext nbtaskq\nimport nbtaskq as nq"


@pytest.fixture(scope="module", autouse=True)
def modules_at_hand():
    """Let kernels find this package where it is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(__file__).parents[2])
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture
def front(hub: Workspace, tmp_path: Path):
    """Give a kernel with a front end that takes input, and the extension."""
    with screen(tmp_path) as found:
        found.run(START)
        yield found


# -- run through ---------------------------------------------------------------------------


def test_a_cell_waits_streams_and_assigns(hub, tmp_path):
    *_, cell, after = run_through(
        tmp_path,
        START,
        "%%kiq train -o score,rows\nfor i in range(3): print('step', i)\nscore = 0.5\nrows = [1]",
        "score, rows",
    )
    assert cell.text == "step 0\nstep 1\nstep 2\n"
    assert "<train() succeeded on w" in cell.value
    assert after.value == "(0.5, [1])"


def test_the_first_thing_a_kernel_sends_may_be_a_cell_task(hub, tmp_path):
    *_, frame = run_through(
        tmp_path,
        START + "\nscale = 3",
        "%%task report -o table\ntable = year * scale",
        "report.sweep(year=[1, 2]).to_frame()[['year', 'table']].values.tolist()",
    )
    assert frame.value == "[[1, 3], [2, 6]]"


def test_output_appears_while_the_task_runs(front: Screen, tmp_path):
    flag = tmp_path / "seen"  # the second half runs once the first half has been seen here
    cell = front.run(
        f"%%kiq\nimport pathlib, time\nprint('first')\nend = time.time() + 30\n"
        f"flag = pathlib.Path({str(flag)!r})\n"
        "while not flag.exists() and time.time() < end: time.sleep(0.01)\n"
        "print('second', flag.exists())",
        stdin=False,
        seen=lambda text: flag.touch() if "first" in text else None,
    )
    assert cell.text == "first\nsecond True\n"


def test_figures_and_rich_values_appear_in_the_cell(hub, tmp_path):
    pytest.importorskip("matplotlib")
    _, cell = run_through(
        tmp_path,
        START,
        "%%kiq\nimport matplotlib.pyplot as plt\nfrom IPython.display import HTML, display\n"
        "plt.plot([1, 2])\ndisplay(HTML('<b>bold</b>'))",
    )
    kinds = [set(o["data"]) for o in cell if o["output_type"] == "display_data"]
    assert any("image/png" in kind for kind in kinds)
    assert any("text/html" in kind for kind in kinds)


def test_a_failing_cell_raises_the_tasks_exception_with_the_cells_line(hub, tmp_path):
    _, cell = run_through(tmp_path, START, "%%kiq bad\na = 0\nb = 1 / a")
    error = next(o for o in cell if o["output_type"] == "error")
    assert error["ename"] == "ZeroDivisionError"
    assert 'File "Cell bad", line 3' in cell.error
    assert "b = 1 / a" in cell.error
    assert "magics.py" not in cell.error


def test_functions_classes_and_modules_of_the_notebook_travel(hub, tmp_path):
    *_, last = run_through(
        tmp_path,
        START,
        "import math\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Point:\n    x: float\n"
        "def shifted(p): return Point(p.x + math.floor(offset))\n"
        "offset = 2.5\np = Point(1)",
        "%%kiq -o q\nq = shifted(p)\nassert isinstance(q, Point)",
        "q, isinstance(q, Point)",
    )
    assert last.value == "(Point(x=3), True)"


def test_top_level_await_and_magics_work_in_a_cell(hub, tmp_path):
    _, cell, after = run_through(
        tmp_path,
        START,
        "%%kiq -o x\nimport asyncio\nx = await asyncio.sleep(0.01, 'slept')\n!echo from a shell",
        "x",
    )
    assert cell.text.splitlines() == ["from a shell"]
    assert after.value == "'slept'"


def test_a_value_that_cannot_travel_does_not_cost_the_outputs(hub, tmp_path):
    *_, last = run_through(
        tmp_path, START, "%%kiq -o x\nx = 1\n(i for i in 'abc')", "x, _.result()"
    )
    assert last.value.startswith("(1, <generator that could not be sent")


def test_run_all_twice_gives_the_same(hub, tmp_path):
    cells = (START, "%%kiq -o a\na = 2", "%%kiq -o b\nb = a + 1", "a, b")
    assert [run_through(tmp_path, *cells)[-1].value for _ in range(2)] == ["(2, 3)"] * 2


def test_a_batch_becomes_a_frame_in_the_notebook(hub, tmp_path):
    *_, last = run_through(
        tmp_path,
        START,
        "@nq.task\ndef fit(depth, trees): return {'depth': depth, 'score': depth / trees}",
        "runs = fit.sweep(depth=[1, 2], trees=[4, 8])\n"
        "runs.to_frame()[['depth', 'trees', 'score']].values.tolist()",
    )
    assert last.value == "[[1.0, 4.0, 0.25], [1.0, 8.0, 0.125], [2.0, 4.0, 0.5], [2.0, 8.0, 0.25]]"


# -- at a screen ---------------------------------------------------------------------------


def test_a_cell_returns_at_once_and_its_names_come_between_cells(front: Screen, tmp_path):
    go = tmp_path / "go"
    sent = front.run(
        f"%%kiq train -o score\nimport pathlib, time\nend = time.time() + 30\n"
        f"while not pathlib.Path({str(go)!r}).exists() and time.time() < end: time.sleep(0.01)\n"
        "score = 0.5"
    )
    assert "train" in sent.value and "succeeded" not in sent.value
    assert "`score` is still computed by `train`" in front.run("score + 1").error
    go.touch()
    front.run("nq.attach('train').result()")
    assert front.run("score").value == "0.5"


def test_a_pending_name_is_a_dependency_of_cells_and_tasks(front: Screen):
    front.run("%%kiq first -o x,y\nimport time\ntime.sleep(0.3)\nx, y = 2, 3\n'last'")
    front.run("h = _")
    front.run("@nq.task\ndef plus(a, b, c): return [a, b, c]")
    front.run("%%kiq second -o z\nz = x * y")
    assert front.run("plus.kiq(x, y, h).result()").value == "[2, 3, 'last']"
    assert front.run("nq.attach('second').vars").value == "{'z': 6}"


def test_a_cell_is_found_again_after_the_kernel_is_gone(hub, tmp_path):
    with screen(tmp_path) as first:
        first.run(START)
        first.run("%%kiq lasting -o x\nprint('said')\nx = 7\nx * 2")
        first.run("nq.attach('lasting').result()")
    with screen(tmp_path) as second:
        second.run("import nbtaskq as nq")
        assert second.run("h = nq.attach('lasting')\nh.result(), h.vars").value == "(14, {'x': 7})"
        assert second.run("h.output.show()").text.startswith("said\n")
        assert "lasting" in second.run("nq.history(name='lasting').task_name.iloc[0]").value


def test_the_magics_of_the_workspace_answer(front: Screen):
    assert "w1" in front.run("%nbtaskq status").value
    assert "idle" in front.run("%nbtaskq up 1").value
    assert front.run("%nbtaskq logs -n 2").error == ""


def test_unloading_in_a_kernel_leaves_its_names_and_no_magics(front: Screen):
    front.run("%unload_ext nbtaskq")
    assert "not found" in front.run("%kiq 1").text
    assert front.run("%load_ext nbtaskq\nh = %kiq 1 + 1\nh.result()").value == "2"
