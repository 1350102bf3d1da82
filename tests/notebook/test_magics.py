"""The magics in a shell of this process: options, captures, placeholders, errors."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest
from IPython.core.error import UsageError

import nbtaskq as nq
from nbtaskq.client import Task, TaskHandle
from nbtaskq.errors import (
    CellSyntaxError,
    SerializationError,
    TaskArgumentError,
    TaskDefinitionError,
    ValuePending,
)
from nbtaskq.notebook import load_ipython_extension, unload_ipython_extension
from nbtaskq.notebook.pending import Pending


def code_of(notebook, place=-1):
    """Return the cell of a sent task, as its worker would get it."""
    handle = notebook.broker.watchers[notebook.broker.sent[place].message.task_id]
    return handle._task.function


# -- %%kiq ---------------------------------------------------------------------------------


def test_kiq_returns_the_handle_of_a_task_of_this_name(notebook):
    handle = notebook.run("%%kiq train", "1 + 1")
    assert isinstance(handle, TaskHandle)
    assert handle.task_name == "train"
    assert "train" not in notebook.names


def test_a_cell_takes_what_it_reads_and_nothing_else(notebook):
    notebook.run("import math", "a, b, unused = 1, [2], 3", "def helper(): return a")
    notebook.run("%%kiq", "c = helper() + math.pi", "print(c, b)")
    captured, given = notebook.broker.arguments()
    assert set(captured) == {"helper", "math", "b"}
    assert captured["helper"]() == 1
    assert given == {}


def test_captures_are_those_of_the_moment_of_sending(notebook):
    notebook.run("a = [1]")
    notebook.run("%%kiq", "a")
    notebook.run("a.append(2)")
    assert notebook.broker.arguments()[0] == {"a": [1]}


def test_in_adds_names_that_the_cell_is_not_seen_to_read(notebook):
    notebook.run("low, other = 3, 4")
    notebook.run("%%kiq -i low,other", "'@low'")
    assert notebook.broker.arguments()[0] == {"low": 3, "other": 4}


def test_an_unknown_in_name_is_an_error_at_once_that_says_what_there_is(notebook):
    notebook.run("threshold = 3")
    with pytest.raises(NameError, match="did you mean threshold"):
        notebook.run("%%kiq -i treshold", "1")
    assert notebook.broker.sent == []


def test_an_out_name_that_the_cell_does_not_assign_is_an_error_at_once(notebook):
    with pytest.raises(NameError, match="did you mean score"):
        notebook.run("%%kiq -o scroe", "score = 1")
    assert notebook.broker.sent == []


@pytest.mark.parametrize("cell", ["from math import *", "%run other.py", "exec('tau = 1')"])
def test_an_out_name_may_be_assigned_where_it_cannot_be_seen(notebook, cell):
    notebook.run("%%kiq -o tau", cell)
    assert len(notebook.broker.sent) == 1


def test_a_name_that_the_cell_assigns_and_a_captured_function_reads_is_told(notebook):
    notebook.run("rate = 1", "def step(): return rate")
    with pytest.warns(UserWarning, match="assigns `rate`, and `step`, which it uses, reads"):
        notebook.run("%%kiq", "rate = 2", "step()")


def test_the_shells_own_names_stay_here(notebook):
    notebook.run("%%kiq", "get_ipython(), In, Out, __name__, print")
    assert notebook.broker.arguments()[0] == {}


def test_a_name_that_hides_a_builtin_travels(notebook):
    notebook.run("sum = 5")
    notebook.run("%%kiq", "sum")
    assert notebook.broker.arguments()[0] == {"sum": 5}


def test_a_capture_that_cannot_travel_is_named(notebook):
    notebook.run("fine = 1", "rows = [{'g': (i for i in 'abc')}]")
    with pytest.raises(SerializationError, match=r"`rows`.*rows\[0\]\['g'\]") as caught:
        notebook.run("%%kiq", "fine, rows")
    assert caught.value.path == "rows[0]['g']"
    assert notebook.broker.sent == []


def test_a_handle_cannot_be_read_by_a_cell_yet_and_says_what_to_do(notebook):
    notebook.run("h = %kiq 1")
    with pytest.raises(TaskDefinitionError, match=r"x = h\.result\(\)"):
        notebook.run("%%kiq", "h.result()")


def test_priority_and_delay_are_labels(notebook):
    notebook.run("%%kiq --priority 3 --delay 1.5", "1")
    assert notebook.broker.sent[-1].message.labels == {"priority": 3, "delay": 1.5}


def test_a_cell_with_await_is_sent_as_a_coroutine(notebook):
    notebook.run("%%kiq", "import asyncio", "await asyncio.sleep(0)")
    assert inspect.iscoroutinefunction(type(code_of(notebook)).__call__)
    notebook.run("%%kiq", "1")
    assert not inspect.iscoroutinefunction(type(code_of(notebook)).__call__)


def test_line_numbers_are_those_of_the_notebooks_cell(notebook):
    notebook.run("%%kiq train", "a = 1", "b = 2")
    assert code_of(notebook).source.splitlines() == ["# %%kiq train", "a = 1", "b = 2"]


def test_an_expression_is_sent_unevaluated_under_the_name_of_what_it_calls(notebook):
    notebook.run("def fit(d): raise AssertionError", "d = {'a': 1}")
    handle = notebook.run("%kiq fit({**d, 'b': 2})")
    assert handle.task_name == "fit"
    assert set(notebook.broker.arguments()[0]) == {"fit", "d"}


def test_the_handle_of_an_expression_can_be_assigned(notebook):
    notebook.run("h = %kiq 1 + 1")
    assert notebook.names["h"].task_name == "cell"


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("%%kiq a b\n1", "unrecognized arguments: b"),
        ("%%kiq --timeout 5\n1", "--timeout is not there yet"),
        ("%%kiq --fresh\n1", "--fresh is not there yet"),
        ("%%kiq --wrong\n1", "unrecognized arguments: --wrong"),
        ("%%kiq --priority high\n1", "invalid int value: 'high'"),
        ("%%kiq -o a,2b\n1", "'2b' is none"),
        ("%%kiq\n  ", "empty"),
        ("%kiq", "takes an expression"),
        ("%%task\nx = 1", "defines no function"),
        ("%%task -o a\ndef f(): pass", "belong to a cell with a name"),
        ("%%task not-a-name\n1", "'not-a-name' is none"),
        ("%nbtaskq upp", "knows no 'upp'"),
        ("%nbtaskq console w1", "invalid int value"),
        ("%nbtaskq clean", "not there yet"),
        ("%nbtaskq status 3", "takes no number"),
        ("%nbtaskq up 0", "from 1 on"),
    ],
)
def test_a_wrong_use_is_told_in_a_line(notebook, cell, words):
    with pytest.raises(UsageError) as caught:
        notebook.run(cell)
    assert words in str(caught.value)
    assert notebook.broker.sent == []
    assert "Traceback" not in notebook.shown(cell)


def test_a_cell_is_not_run_among_the_users_names_by_an_in_memory_broker(notebook):
    before = nq.set_default_broker(nq.InMemoryBroker())
    try:
        with pytest.raises(UsageError, match="worker kernel"):
            notebook.run("%%kiq", "1")
    finally:
        nq.set_default_broker(before)


# -- errors --------------------------------------------------------------------------------


def test_a_syntax_error_is_shown_with_the_notebooks_line_before_anything_is_sent(notebook):
    with pytest.raises(CellSyntaxError) as caught:
        notebook.run("%%kiq train", "a = 1", "b = = 2")
    assert (caught.value.lineno, caught.value.text.strip()) == (3, "b = = 2")
    assert notebook.broker.sent == []


def test_a_syntax_error_shows_the_users_line_and_none_of_ours(notebook):
    shown = notebook.shown("%%kiq train", "a = 1", "b = = 2")
    assert "Cell train:3" in shown
    assert "b = = 2" in shown
    assert "magics.py" not in shown


def test_errors_before_sending_show_no_frames_of_ours(notebook):
    assert "magics.py" not in notebook.shown("%%kiq -o y", "x = 1")


# -- placeholders --------------------------------------------------------------------------


def test_out_names_are_placeholders_until_the_task_has_ended(notebook):
    notebook.run("%%kiq train -o score,model", "score = model = 1")
    assert isinstance(notebook.names["score"], Pending)
    notebook.broker.end(score=0.9, model="m")
    assert notebook.run("(score, model)") == (0.9, "m")


def test_values_are_bound_before_result_returns(notebook):
    notebook.run("h = _ = None")
    notebook.names["h"] = notebook.run("%%kiq train -o score", "score = 1")
    notebook.broker.end(value="last", score=0.9)
    assert notebook.run("(h.result(), score)") == ("last", 0.9)


def test_values_are_bound_in_the_cell_that_takes_the_result(notebook):
    handle = notebook.run("%%kiq -o score", "score = 1")
    notebook.broker.end(score=0.9)
    assert isinstance(notebook.names["score"], Pending)
    handle.result()
    assert notebook.names["score"] == 0.9


def test_a_name_that_the_user_has_bound_since_is_left_alone_and_told(notebook):
    notebook.run("%%kiq train -o score", "score = 1")
    notebook.run("score = 'mine'")
    notebook.broker.end(score=0.9)
    assert "`score` of `train` not bound" in notebook.shown("1")
    assert notebook.names["score"] == "mine"


def test_a_run_that_was_superseded_delivers_nothing(notebook):
    for _ in range(2):
        notebook.run("%%kiq train -o score", "score = 1")
    notebook.broker.end(0, score="old")
    notebook.run("1")
    assert isinstance(notebook.names["score"], Pending)
    notebook.broker.end(1, score="new")
    assert notebook.run("score") == "new"


@pytest.mark.parametrize(
    "use",
    ["score + 1", "1 + score", "score.shape", "score[0]", "len(score)", "bool(score)", "score()",
     "float(score)", "list(score)", "score == 1", "f'{score:.2f}'", "np.asarray(score)",
     "np.float64(1) * score", "with score: pass", "pickle.dumps(score)"],
)  # fmt: skip
def test_using_a_placeholder_says_who_computes_it(notebook, use):
    notebook.names.update(np=np)
    notebook.run("%%kiq train -o score", "score = 1")
    with pytest.raises(ValuePending, match="`score` is still computed by `train`"):
        notebook.run("import pickle", use)


def test_looking_at_a_placeholder_is_no_use_of_it(notebook):
    notebook.run("%%kiq train -o score", "score = 1")
    assert "still computed by `train`" in notebook.shown("score")
    assert "still computed by `train`" in notebook.shown("print(score, [score])")


def test_a_placeholder_of_a_failed_task_says_so(notebook):
    notebook.run("%%kiq train -o score", "score = 1")
    notebook.broker.fail(ValueError("too deep"))
    with pytest.raises(ValuePending, match="not computed: `train` failed: ValueError: too deep"):
        notebook.run("score + 1")


def test_a_failed_task_that_nobody_waited_for_is_told_once(notebook):
    notebook.run("%%kiq train", "1")
    notebook.broker.fail(ValueError("too deep"))
    assert "✗ train failed: ValueError: too deep" in notebook.shown("1")
    assert "✗" not in notebook.shown("1")


def test_a_failed_task_whose_error_was_raised_is_not_told_again(notebook):
    notebook.names["h"] = notebook.run("%%kiq train", "1")
    notebook.broker.fail(ValueError("too deep"))
    notebook.names["h"].exception()
    assert "✗" not in notebook.shown("1")


def test_a_missed_name_that_the_notebook_has_is_told(notebook):
    notebook.run("threshold = 3")
    handle = notebook.run("%%kiq", "'@threshold'")
    notebook.broker.fail(NameError("name 'threshold' is not defined", name="threshold"))
    assert handle.exception(0).__notes__ == [
        "The notebook has a name 'threshold': add -i threshold to the cell"
    ]


def test_a_placeholder_is_a_dependency_of_the_cell_that_reads_it(notebook):
    first = notebook.run("%%kiq train -o score", "score = 1")
    notebook.run("%%kiq report", "score * 2")
    assert notebook.broker.sent[-1].parcel.needs == (first.task_id,)


def test_a_placeholder_is_a_dependency_of_a_task_that_is_called_with_it(notebook):
    first = notebook.run("%%kiq train -o score", "score = 1")
    notebook.run("import nbtaskq as nq", "@nq.task", "def plus(a, b): return a + b")
    notebook.run("plus.kiq(score, 1)")
    parcel = notebook.broker.sent[-1].parcel
    assert parcel.needs == (first.task_id,)
    args, _ = notebook.broker.serializer.loads(
        parcel, {first.task_id: nq.message.CellResult(None, {"score": 5})}
    )
    assert args == (5, 1)


def test_running_a_cell_again_does_not_wait_for_its_own_earlier_run(notebook):
    cell = ("%%kiq train -o score", "for i in range(3):", "    score = i", "print(score)")
    notebook.run(*cell)
    notebook.run(*cell)
    assert notebook.broker.sent[-1].parcel.needs == ()


# -- %%task --------------------------------------------------------------------------------


def test_task_without_a_name_registers_the_functions_of_the_cell(notebook):
    notebook.run("%%task --priority 2", "x = 5", "def f(a): return a + x", "async def g(): pass")
    f, g = notebook.names["f"], notebook.names["g"]
    assert isinstance(f, Task) and isinstance(g, Task)
    assert (f(1), f.task_name, f.labels) == (6, "f", {"priority": 2})


def test_a_failing_cell_of_functions_registers_nothing_and_shows_its_error_once(notebook):
    shown = notebook.shown("%%task", "def f(): pass", "1 / 0")
    assert shown.count("ZeroDivisionError: division by zero") == 1
    assert not isinstance(notebook.names["f"], Task)


def test_task_with_a_name_runs_nothing_and_sends_later(notebook):
    notebook.run("year = 2024", "def load(y): raise AssertionError")
    notebook.run("%%task report -o t", "t = load(year)")
    assert notebook.broker.sent == []
    notebook.run("year = 2025", "report.kiq()")
    assert notebook.broker.arguments()[0]["year"] == 2025


def test_keyword_arguments_override_what_a_cell_reads(notebook):
    notebook.run("year = (y for y in [2024])")  # it cannot travel, and need not
    notebook.run("%%task report", "year")
    notebook.run("report.kiq(year=2025)")
    assert notebook.broker.arguments() == ({}, {"year": 2025})


def test_a_cell_can_be_swept_and_its_arguments_are_columns(notebook):
    notebook.run("%%task report", "year * scale")
    notebook.run("scale = 3")
    batch = notebook.run("report.sweep(year=[1, 2])")
    assert [handle.arguments for handle in batch] == [{"year": 1}, {"year": 2}]
    for place, handle in enumerate(batch):
        notebook.broker.end(place, value=handle.arguments["year"] * 3)
    assert batch.to_frame()[["year", "result"]].values.tolist() == [[1, 3], [2, 6]]


def test_a_cell_refuses_names_that_it_does_not_read(notebook):
    notebook.run("%%task report", "year * 2")
    with pytest.raises(TaskArgumentError, match=r"does not read 'yaer'; it reads year"):
        notebook.run("report.kiq(yaer=1)")
    with pytest.raises(TaskArgumentError, match="no positional arguments"):
        notebook.run("report.map([1])")


def test_a_cell_task_runs_here_when_it_is_called_and_leaves_no_names(notebook):
    notebook.run("scale = 3")
    notebook.run("%%task report", "def twice(x): return 2 * x", "total = twice(year) * scale",
                 "total")  # fmt: skip
    assert notebook.run("report(year=5)") == 30
    assert "total" not in notebook.names and "year" not in notebook.names


# -- the extension -------------------------------------------------------------------------


def test_loading_twice_registers_once(notebook):
    registered = notebook.shell.magics_manager.registry["NbTaskQMagics"]
    load_ipython_extension(notebook.shell)
    assert notebook.shell.magics_manager.registry["NbTaskQMagics"] is registered
    callbacks = notebook.shell.events.callbacks["post_run_cell"]
    assert callbacks.count(registered.deliveries.between_cells) == 1


def _traces(shell):
    html = shell.display_formatter.formatters["text/html"]
    return (
        {kind: set(own) for kind, own in shell.magics_manager.magics.items()},
        set(shell.magics_manager.registry),
        {event: list(calls) for event, calls in shell.events.callbacks.items()},
        set(html.type_printers), set(html.deferred_printers), set(vars(shell)), set(shell.user_ns),
    )  # fmt: skip


def test_unloading_leaves_nothing_behind(shell):
    before = _traces(shell)
    load_ipython_extension(shell)
    assert _traces(shell) != before
    unload_ipython_extension(shell)
    unload_ipython_extension(shell)
    assert _traces(shell) == before


def test_loading_injects_no_name_and_prints_nothing(shell, capsys):
    before = set(shell.user_ns)
    load_ipython_extension(shell)
    assert set(shell.user_ns) == before
    assert capsys.readouterr().out == ""
    unload_ipython_extension(shell)


def test_loading_imports_nothing_heavy():
    program = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell as S\n"
        "shell = S(); before = set(sys.modules); import nbtaskq\n"
        "nbtaskq.load_ipython_extension(shell); print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    heavy = {"pandas", "numpy", "dill", "cloudpickle", "zmq", "msgspec", "ipywidgets", "sqlite3"}
    assert set(done.stdout.split()) & heavy == set()


@pytest.mark.parametrize("magic", ["kiq", "task", "nbtaskq"])
def test_help_has_an_example(notebook, magic):
    manager = notebook.shell.magics_manager.magics
    doc = (manager["cell"].get(magic) or manager["line"][magic]).__doc__
    assert f"%{magic} " in doc
    assert "--timeout" not in doc


# -- looks ---------------------------------------------------------------------------------


def html_of(notebook, value):
    return notebook.shell.display_formatter.format(value)[0]["text/html"]


def test_a_handle_shows_state_name_and_where_it_ran(notebook):
    handle = notebook.run("%%kiq train", "1")
    assert "queued" in html_of(notebook, handle)
    notebook.broker.end()
    html = html_of(notebook, handle)
    for word in ("✓ succeeded", "train", "2 s", "1970-01-01 00:00 UTC", "w1", handle.task_id[:8]):
        assert word in html


def test_whatever_comes_from_a_task_is_escaped(notebook):
    evil = "<script>alert('1')</script>"
    notebook.run(f"a = {evil!r}")
    handle = notebook.run("%%kiq train<b>", "a")
    notebook.broker.fail(ValueError(f"{evil}\x1b[31m"))
    for value in (handle, nq.Batch("fit<b>", [handle])):
        html = html_of(notebook, value)
        assert "<script" not in html and "<b>train" not in html and "fit<b>" not in html
        assert "\x1b" not in html
        assert "&lt;script&gt;" in html


def test_a_batch_counts_states_and_groups_equal_errors(notebook):
    handles = [notebook.run("%%kiq fit", str(i)) for i in range(5)]
    for place in (0, 1, 2):
        notebook.broker.fail(ValueError("too deep"), place)
    notebook.broker.end(3)
    html = html_of(notebook, nq.Batch("fit", handles))
    for words in ("× 5", "3 ✗ failed", "1 ✓ succeeded", "1 ○ queued", "3 × ValueError: too deep"):
        assert words in html
