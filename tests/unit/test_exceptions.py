"""Exceptions always arrive: the same type where possible, and with the task's own frames."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from serializer_kernels import Link, Peer

from nbtaskq.errors import RemoteTraceback
from nbtaskq.serializers import DillSerializer, dump_exception, load_exception


@pytest.fixture
def link() -> Iterator[Link]:
    with Peer() as notebook, Peer() as worker:
        yield Link(notebook, worker)


def test_a_plain_exception_keeps_type_and_message(link: Link) -> None:
    link.cell("def f(): return {}['missing']")
    link.error("f")
    assert link.tell("type(error) is KeyError and error.args == ('missing',)")


def test_an_exception_class_of_a_cell_is_the_notebooks_own(link: Link) -> None:
    link.cell("class Mine(ValueError): pass\ndef f(): raise Mine('x', 1)")
    link.error("f")
    assert link.tell("type(error) is Mine and error.args == ('x', 1)")


def test_an_exception_with_another_init_keeps_its_type(link: Link) -> None:
    link.cell(
        "class Mine(Exception):\n    def __init__(self, code, *, why):\n"
        "        super().__init__(f'{code}: {why}')\n        self.code = code\n"
        "def f(): raise Mine(4, why='no')"
    )
    link.error("f")
    assert link.tell("type(error) is Mine and str(error) == '4: no' and error.code == 4")


def test_an_attribute_that_cannot_travel_is_left_behind(link: Link) -> None:
    link.cell(
        "import sqlite3\nclass Mine(LookupError): pass\n"
        "def f():\n    e = Mine('why'); e.db = sqlite3.connect(':memory:'); e.n = 3\n    raise e"
    )
    link.error("f")
    assert link.tell("type(error) is Mine and str(error) == 'why' and error.n == 3")
    assert not link.tell("hasattr(error, 'db')")


def test_an_exception_that_does_not_load_again_has_a_stand_in(link: Link) -> None:
    link.cell(
        "class Mine(OSError):\n    def __init__(self, a, b, c): super().__init__(5, 'io')\n"
        "def f(): raise Mine(1, 2, 3)"
    )
    link.error("f")
    assert link.tell("type(error).__name__ == 'Mine' and isinstance(error, OSError)")
    assert link.tell("str(error)") == "[Errno 5] io"


class _Refuses(ArithmeticError):
    def __reduce__(self) -> str:
        raise RuntimeError("never")


class _Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_a_stand_in_is_caught_by_the_builtin_base_and_travels_on() -> None:
    serializer = DillSerializer()
    error = load_exception(serializer, dump_exception(serializer, _Refuses("sum")))
    error = load_exception(serializer, dump_exception(serializer, error))
    assert isinstance(error, ArithmeticError)
    assert type(error).__name__ == "_Refuses"
    assert type(error).__module__ == __name__
    assert str(error) == "sum"


def test_an_exception_whose_message_raises_arrives() -> None:
    serializer = DillSerializer()
    error = load_exception(serializer, dump_exception(serializer, _Speechless("x")))
    assert error.args == ("x",)


@pytest.mark.parametrize(
    "error",
    [
        UnicodeDecodeError("utf-8", b"a", 0, 1, "bad"),
        FileNotFoundError(2, "none", "f.txt"),
        ImportError("no", name="m"),
        ExceptionGroup("g", [ValueError(1)]),
        SystemExit(3),
        StopIteration(4),
    ],
    ids=lambda error: type(error).__name__,
)
def test_builtin_exceptions_keep_what_they_say(error: BaseException) -> None:
    serializer = DillSerializer()
    loaded = load_exception(serializer, dump_exception(serializer, error))
    assert type(loaded) is type(error)
    assert str(loaded) == str(error)


def test_the_module_of_an_exception_may_be_missing_where_it_is_read(link: Link, tmp_path) -> None:
    (tmp_path / "worker_only.py").write_text("class Odd(ValueError): pass\n")
    link.worker.ask("cell", f"import sys\nsys.path.insert(0, {str(tmp_path)!r})")
    link.cell("def f():\n    import worker_only\n    raise worker_only.Odd('3 is odd')")
    link.error("f")
    assert link.tell("isinstance(error, ValueError) and str(error) == '3 is odd'")
    assert link.tell("type(error).__module__, type(error).__name__") == ("worker_only", "Odd")


def test_the_cause_shows_the_cells_lines_and_not_our_frames(link: Link) -> None:
    link.cell(
        "def inner(x):\n    return 1 / x  # the culprit\n"
        "def outer(x):\n    try:\n        return inner(x)\n"
        "    except ZeroDivisionError as e:\n        raise ValueError('outer') from e\n"
    )
    link.error("outer", "0")
    text = link.tell("str(error.__cause__)")
    assert link.tell("type(error.__cause__).__name__") == "RemoteTraceback"
    assert "return 1 / x  # the culprit" in text
    assert "raise ValueError('outer') from e" in text
    files = {os.path.basename(name) for name in re.findall(r'File "(.+?)"', text)}
    assert files <= {"<ipython-input-1-abc>", "serializer_peer.py"}  # wherever the checkout is
    assert text.rstrip().endswith("ValueError: outer")


def test_frames_of_the_event_loop_above_the_task_are_left_out() -> None:
    import asyncio

    async def task() -> None:
        await asyncio.wait_for(failing(), 5)

    async def failing() -> None:
        raise ValueError("x")

    serializer = DillSerializer()
    with pytest.raises(ValueError, match="x") as caught:
        asyncio.run(task())
    loaded = load_exception(serializer, dump_exception(serializer, caught.value))
    assert isinstance(loaded.__cause__, RemoteTraceback)
    lines = [line for line in str(loaded.__cause__).splitlines() if line.startswith("  File")]
    assert lines[-1].endswith("in failing")
    assert any("asyncio" in line for line in lines)
