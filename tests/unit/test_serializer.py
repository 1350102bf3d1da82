"""The default serializer against a real second process: what a notebook holds must travel."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from serializer_kernels import ROOT, Link, Peer, PeerError, code_parcel

from nbtaskq.errors import DeserializationError, SerializationError
from nbtaskq.message import Parcel
from nbtaskq.serializers import DillSerializer


@pytest.fixture
def link() -> Iterator[Link]:
    with Peer() as notebook, Peer() as worker:
        yield Link(notebook, worker)


class Case(NamedTuple):
    """Cells, a call that runs in the worker, and what must then hold in the notebook."""

    cells: str
    call: str
    arguments: str
    holds: str


POINT = """
class Point:
    def __init__(self, x):
        self.x = x
    def moved(self, by):
        return Point(self.x + by)
"""

CASES = {
    "isinstance in the task": Case(
        POINT + "def check(p): return isinstance(p, Point)", "check", "Point(1)", "result is True"
    ),
    "isinstance of the result": Case(
        POINT + "def make(x): return Point(x)", "make", "3",
        "isinstance(result, Point) and type(result) is Point and result.x == 3",
    ),
    "isinstance of a method's result": Case(
        POINT + "def move(p): return p.moved(2)", "move", "Point(1)",
        "type(result) is Point and result.x == 3",
    ),
    "function and argument share a class": Case(
        POINT + "def same(p, cls): return type(p) is cls is Point", "same", "Point(1), Point",
        "result is True",
    ),
    "enum": Case(
        "import enum\nclass Color(enum.Enum):\n    RED = 1\n    BLUE = 2\n"
        "def other(c): return c is Color.RED, Color.BLUE",
        "other", "Color.RED", "result[0] and result[1] is Color.BLUE",
    ),
    "flag with methods": Case(
        "import enum\nclass Mode(enum.Flag):\n    R = 1\n    W = 2\n"
        "    def writes(self): return Mode.W in self\n"
        "def both(m): return m.writes(), m | Mode.R",
        "both", "Mode.W", "result == (True, Mode.R | Mode.W)",
    ),
    "dataclass": Case(
        "import dataclasses\n@dataclasses.dataclass\nclass D:\n    x: int\n"
        "    y: list = dataclasses.field(default_factory=list)\n"
        "def bump(d): return dataclasses.replace(D(d.x + 1), y=[len(dataclasses.fields(D))])",
        "bump", "D(1)", "result == D(2, [2])",
    ),
    "dataclass that is subclassed in the task": Case(
        "import dataclasses\n@dataclasses.dataclass\nclass D:\n    x: int\n    y: int = 5\n"
        "def task():\n"
        "    @dataclasses.dataclass\n    class E(D):\n        z: int = 1\n"
        "    return dataclasses.astuple(E(2))",
        "task", "", "result == (2, 5, 1)",
    ),
    "frozen dataclass with slots": Case(
        "import dataclasses\n@dataclasses.dataclass(frozen=True, slots=True)\nclass S:\n"
        "    x: int\n"
        "def bump(s): return S(s.x + 1)",
        "bump", "S(1)", "result == S(2) and type(result) is S",
    ),
    "NamedTuple": Case(
        "from typing import NamedTuple\nclass N(NamedTuple):\n    a: int\n    b: str = 'b'\n"
        "    def twice(self): return N(self.a * 2, self.b)\n"
        "def f(n): return isinstance(n, N), n.twice()",
        "f", "N(2)", "result == (True, N(4, 'b')) and type(result[1]) is N",
    ),
    "namedtuple()": Case(
        "from collections import namedtuple\nRow = namedtuple('Row', 'a b')\n"
        "def f(r): return Row(r.b, r.a)",
        "f", "Row(1, 2)", "result == Row(2, 1) and type(result) is Row",
    ),
    "mutual recursion": Case(
        "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)",
        "even", "10", "result is True",
    ),
    "self recursion": Case(
        "def fact(n): return 1 if n < 2 else n * fact(n - 1)", "fact", "5", "result == 120"
    ),
    "closure": Case(
        "def outer(k):\n    def inner(x): return x + k\n    return inner",
        "outer(5)", "1", "result == 6",
    ),
    "recursive closure": Case(
        "def outer():\n    def inner(n): return 0 if n == 0 else 1 + inner(n - 1)\n"
        "    return inner",
        "outer()", "4", "result == 4",
    ),
    "lambda": Case("", "(lambda x: x * 2)", "4", "result == 8"),
    "lambda as argument and result": Case(
        "def apply(f): return f(2), lambda y: y + 1", "apply", "lambda x: x * 3",
        "result[0] == 6 and result[1](1) == 2",
    ),
    "lru_cache wrapper captured": Case(
        "import functools\n@functools.lru_cache(maxsize=7)\ndef cached(n): return n + 1\n"
        "def use(n): return cached(n), cached.cache_info().maxsize",
        "use", "1", "result == (2, 7)",
    ),
    "lru_cache wrapper itself": Case(
        "import functools\n@functools.lru_cache\ndef cached(n): return n + 1",
        "cached", "1", "result == 2",
    ),
    "recursive lru_cache wrapper": Case(
        "import functools\n@functools.cache\ndef fib(n):\n"
        "    return n if n < 2 else fib(n - 1) + fib(n - 2)",
        "fib", "80", "result == 23416728348467685",
    ),
    "partial": Case(
        "import functools\ndef add(a, b, c=0): return a + b + c\n"
        "add1 = functools.partial(add, 1, c=5)",
        "add1", "2", "result == 8",
    ),
    "partial captured": Case(
        "import functools\nadd1 = functools.partial(lambda a, b: a + b, 1)\n"
        "def f(x): return add1(x)",
        "f", "2", "result == 3",
    ),
    "generator function": Case(
        "def count(n):\n    for i in range(n):\n        yield i * step\nstep = 2",
        "count", "3", "result == [0, 2, 4]",
    ),
    "async function": Case(
        "import asyncio\nasync def later(x):\n    await asyncio.sleep(0)\n    return x + y\ny = 1",
        "later", "1", "result == 2",
    ),
    "nested class": Case(
        "class Outer:\n    class Inner:\n        def __init__(self, v): self.v = v\n"
        "def f(i): return isinstance(i, Outer.Inner), type(i).__qualname__, Outer.Inner(2)",
        "f", "Outer.Inner(1)",
        "result[:2] == (True, 'Outer.Inner') and type(result[2]) is Outer.Inner",
    ),
    "hierarchy with super()": Case(
        "class A:\n    def hi(self): return ['A']\n"
        "class B(A):\n    def hi(self): return super().hi() + ['B']\n"
        "class C(B):\n    def hi(self): return super().hi() + ['C']\n"
        "def f(c): return c.hi(), isinstance(c, A), B()",
        "f", "C()", "result[:2] == (['A', 'B', 'C'], True) and type(result[2]) is B",
    ),
    "abstract base class": Case(
        "import abc\nclass Shape(abc.ABC):\n    @abc.abstractmethod\n    def area(self): ...\n"
        "class Square(Shape):\n    def area(self): return 4\n"
        "def f(s): return s.area(), isinstance(s, Shape)",
        "f", "Square()", "result == (4, True)",
    ),
    "property, classmethod, staticmethod, cached_property": Case(
        "import functools\nclass K:\n    n = 3\n"
        "    @property\n    def p(self): return self.n\n"
        "    @classmethod\n    def c(cls): return cls.n + 1\n"
        "    @staticmethod\n    def s(): return K.n + 2\n"
        "    @functools.cached_property\n    def d(self): return K.c() * 10\n"
        "def f(k): return k.p, k.c(), K.s(), k.d",
        "f", "K()", "result == (3, 4, 5, 40)",
    ),
    "bound method as task": Case(
        "class M:\n    def __init__(self, k): self.k = k\n"
        "    def add(self, x): return self.k + x\n",
        "M(3).add", "4", "result == 7",
    ),
    "class method as task": Case(
        "class M:\n    @classmethod\n    def make(cls, x): return cls, x",
        "M.make", "4", "result == (M, 4) and result[0] is M",
    ),
    "callable instance as task": Case(
        "class Adder:\n    def __init__(self, k): self.k = k\n"
        "    def __call__(self, x): return x + self.k",
        "Adder(2)", "1", "result == 3",
    ),
    "decorated with wraps": Case(
        "import functools\ndef twice(f):\n    @functools.wraps(f)\n"
        "    def wrapper(*a): return f(*a) * 2\n    return wrapper\n"
        "@twice\ndef g(x):\n    'doc'\n    return x + 1",
        "g", "1", "result == 4",
    ),
    "helpers share their globals": Case(
        "count = 0\ndef bump():\n    global count\n    count += 1\n"
        "def task():\n    bump(); bump()\n    return count",
        "task", "", "result == 2 and count == 0",
    ),
    "helpers share captured objects": Case(
        "rows = []\ndef add(x): rows.append(x)\ndef task():\n    add(1)\n    return rows",
        "task", "", "result == [1] and rows == []",
    ),
    "class body inside a function reads globals": Case(
        "base = 7\ndef task():\n    class Local:\n        value = base + 1\n    return Local.value",
        "task", "", "result == 8",
    ),
    "submodule reached through its package": Case(
        "import xml.dom.minidom\ndef task(): return xml.dom.minidom.parseString('<a/>').toxml()",
        "task", "", "'<a/>' in result",
    ),
    "lock captured": Case(
        "import threading\nlock = threading.Lock(); lock.acquire()\n"
        "def task():\n    with lock:\n        return 1",
        "task", "", "result == 1",
    ),
    "what only dill knows": Case(
        "import weakref\nclass T: pass\nt = T()\ndef task(): return weakref.ref(t) == r\n"
        "r = weakref.ref(t)",
        "task", "", "result is True",
    ),
    "logger captured": Case(
        "import logging\nlog = logging.getLogger('x.y')\ndef task(): return log.name",
        "task", "", "result == 'x.y'",
    ),
    "generic class": Case(
        "from typing import Generic, TypeVar\nT = TypeVar('T')\n"
        "class Box(Generic[T]):\n    def __init__(self, v: T): self.v = v\n"
        "def f(b): return Box[int](b.v + 1)",
        "f", "Box(1)", "type(result) is Box and result.v == 2",
    ),
    "class with slots": Case(
        "class S:\n    __slots__ = ('a',)\n    def __init__(self, a): self.a = a\n"
        "def f(s): return S(s.a + 1)",
        "f", "S(1)", "type(result) is S and result.a == 2",
    ),
    "metaclass": Case(
        "class Meta(type):\n    def __len__(cls): return 4\nclass X(metaclass=Meta): pass\n"
        "def f(): return len(X), type(X) is Meta",
        "f", "", "result == (4, True)",
    ),
    "exception value with another __init__": Case(
        "class E(Exception):\n    def __init__(self, a, b):\n        super().__init__(a)\n"
        "        self.b = b\n"
        "def f(e): return e, E(3, 4)",
        "f", "E(1, 2)",
        "[(type(e) is E, e.args, e.b) for e in result] == [(True, (1,), 2), (True, (3,), 4)]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("visible", [True, False], ids=["source known", "source unknown"])
@pytest.mark.parametrize("name", CASES)
def test_it_travels(name: str, visible: bool, link: Link) -> None:
    case = CASES[name]
    link.cell(case.cells, visible)
    link.result(case.call, case.arguments)
    assert link.tell(case.holds), link.tell("result")


RESTART = {
    "a class with methods": (POINT, "Point(3)", "type(result) is Point and result.x == 3"),
    "a class with nothing in it": ("class Empty: pass", "Empty()", "type(result) is Empty"),
    "a class whose attribute has changed since": (
        "class Run:\n    count = 0\n    def __init__(self): Run.count += 1",
        "Run()", "type(result) is Run",
    ),
    "a dataclass": (
        "import dataclasses\n@dataclasses.dataclass\nclass D:\n    x: int = 4",
        "D()", "result == D(4)",
    ),
    "an enum": ("import enum\nclass E(enum.Enum):\n    A = 1", "E.A", "result is E.A"),
    "a subclass": (
        "class A: pass\nclass B(A):\n    def f(self): return 1", "B()",
        "type(result) is B and isinstance(result, A)",
    ),
    "a nested class": ("class O:\n    class I: pass", "O.I()", "type(result) is O.I"),
    "a NamedTuple": (
        "from typing import NamedTuple\nclass N(NamedTuple):\n    a: int",
        "N(1)", "type(result) is N",
    ),
}  # fmt: skip


#: Without source a class is told by its content, which this one changes.
TOLD_BY_SOURCE = {"a class whose attribute has changed since"}


@pytest.mark.parametrize(
    ("name", "visible"),
    [(name, True) for name in RESTART]
    + [(name, False) for name in sorted(RESTART.keys() - TOLD_BY_SOURCE)],
)
def test_a_stored_result_finds_the_class_of_the_next_kernel_session(
    name: str, visible: bool, link: Link
) -> None:
    source, expression, holds = RESTART[name]
    link.cell(source + f"\ndef make(): return {expression}", visible)
    link.result("make")
    _, parcel = link.send("make")
    with Peer() as restarted:
        restarted.ask("cell", "an_earlier_cell = 1", visible)
        restarted.ask("cell", source, visible)
        restarted.ask("load", parcel)
        assert restarted.ask("tell", holds), restarted.ask("tell", "result")


def test_a_stored_result_loads_where_its_class_is_not_defined(link: Link) -> None:
    link.cell(POINT + "def make(x): return Point(x)")
    _, parcel = link.send("make", "3")
    with Peer() as restarted:
        restarted.ask("load", parcel)
        assert restarted.ask("tell", "result.moved(1).x") == 4


def test_a_redefined_class_is_another_class(link: Link) -> None:
    link.cell("class P:\n    def f(self): return 1")
    link.cell("def make(): return P()\nold = P()")
    link.result("make")
    link.cell("kept = result")
    link.cell("class P:\n    def f(self): return 2")
    link.result("make")
    assert link.tell("result.f(), type(result) is P") == (2, True)
    assert link.tell("kept.f(), isinstance(kept, P)") == (1, False)
    link.cell("def check(p): return isinstance(p, P), p.f()")
    link.result("check", "old")
    assert link.tell("result") == (False, 1)


def test_a_cell_run_again_unchanged_gives_the_same_class(link: Link) -> None:
    link.cell(POINT + "def make(x): return Point(x)")
    _, parcel = link.send("make", "1")
    link.cell(POINT)
    link.notebook.ask("load", parcel)
    assert link.tell("type(result) is Point")


def test_classes_of_one_factory_are_kept_apart(link: Link) -> None:
    link.cell(
        "def make(k):\n    class A:\n        def f(self): return k\n    return A\n"
        "One, Two = make(1), make(2)\n"
        "def f(a, b): return a.f(), b.f(), type(a) is One, type(b) is One"
    )
    link.result("f", "One(), Two()")
    assert link.tell("result") == (1, 2, True, False)


def test_a_global_that_a_method_reads_is_sent_again(link: Link) -> None:
    link.cell("lr = .1\nclass M:\n    def rate(self): return lr\ndef f(): return M().rate()")
    link.result("f")
    assert link.tell("result") == 0.1
    link.cell("lr = .2")
    link.result("f")
    assert link.tell("result") == 0.2


def test_a_global_changed_between_two_freezes_is_seen(link: Link) -> None:
    link.cell("lr = .1\ndef read(): return lr")
    first = link.notebook.ask("freeze", "read")
    link.cell("lr = .2")
    second = link.notebook.ask("freeze", "read")
    assert first.digest != second.digest
    values = []
    for frozen in (first, second):
        _, parcel = link.run(frozen)
        link.notebook.ask("load", parcel)
        values.append(link.tell("result"))
    assert values == [0.1, 0.2]


@pytest.mark.parametrize("name", CASES)
def test_freezing_the_same_twice_gives_the_same_digest(name: str, link: Link) -> None:
    case = CASES[name]
    link.cell(case.cells)
    link.cell(f"frozen_function = {case.call}")
    first = link.notebook.ask("freeze", "frozen_function")
    link.notebook.ask("dumps", f"(lambda *a: (a, {{}}))({case.arguments})")
    again = link.notebook.ask("freeze", "frozen_function")
    assert first.digest == again.digest


def test_a_large_captured_array_is_an_object_of_its_own(link: Link) -> None:
    link.cell(
        "import numpy as np\ntable = np.arange(50_000_000 // 8, dtype='i8')\nscale = 2\n"
        "def total(): return int(table.sum()) * scale\n"
        "def first():\n    table[0] = 7\n    return int(table[0])"
    )
    total, first = (link.notebook.ask("freeze", name) for name in ("total", "first"))
    assert [item.digest for item in total.objects] == [item.digest for item in first.objects]
    assert len(total.code.body) < 10_000
    assert dict(total.captures) == {"scale": pytest.approx(28, abs=40), "table": 50_000_000}
    link.cell("scale = 3")
    changed = link.notebook.ask("freeze", "total")
    assert changed.code.refs == total.code.refs
    assert changed.digest != total.digest
    _, parcel = link.run(first)
    link.notebook.ask("load", parcel)
    assert link.tell("result") == 7


def test_captures_are_listed_through_helpers(link: Link) -> None:
    link.cell(
        "import math\ncfg = {'a': 1}\nrows = [1, 2]\nclass K:\n    def m(self): return rows\n"
        "def helper(): return cfg, math.pi, K\ndef f(): return helper()"
    )
    frozen = link.notebook.ask("freeze", "f")
    assert [name for name, _ in frozen.captures] == ["cfg", "rows"]


SHELL = """
from traitlets.config import Config
from IPython.core.interactiveshell import InteractiveShell
config = Config()
config.HistoryManager.enabled = False
shell = InteractiveShell.instance(config=config)
get_ipython = shell.get_ipython
"""


def test_the_notebooks_shell_stands_for_that_of_the_worker(link: Link) -> None:
    link.cell(SHELL + "def f(): return shell is None, get_ipython() is None")
    frozen = link.notebook.ask("freeze", "f")
    assert frozen.captures == ()
    link.result("f")
    assert link.tell("result") == (True, True)


def test_a_large_argument_is_what_it_was_when_it_was_sent() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(1_000_000)
    serializer = DillSerializer()
    parcel = serializer.dumps(((array,), {}), root="call")
    array[:] = 1
    assert [memoryview(b).nbytes for b in parcel.buffers] == [8_000_000]
    (loaded,), _ = serializer.loads(parcel)
    assert loaded.sum() == 0
    loaded[0] = 5
    (again,), _ = serializer.loads(parcel)
    assert again[0] == 0


def test_small_arrays_stay_in_the_body() -> None:
    numpy = pytest.importorskip("numpy")
    parcel = DillSerializer().dumps([numpy.zeros(1000)])
    assert parcel.buffers == ()


class Handle:
    """A stand-in for a task handle; at module level, so that it can be a live one too."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id

    def __nbtaskq_task__(self) -> str:
        return self.task_id


def test_handles_in_arguments_are_dependencies() -> None:
    serializer = DillSerializer()
    one, two = Handle("a"), Handle("b")
    parcel = serializer.dumps((([one, {"x": two}], one), {"k": Handle("a")}), root="call")
    assert parcel.needs == ("a", "b")
    args, kwargs = serializer.loads(parcel, {"a": 1, "b": [2]})
    assert (args, kwargs) == (([1, {"x": [2]}], 1), {"k": 1})
    with pytest.raises(DeserializationError, match="result of task b"):
        serializer.loads(parcel, {"a": 1})


def test_captured_handles_stay_handles(link: Link) -> None:
    link.cell(
        "class H:\n    def __init__(self, i): self.i = i\n"
        "    def __nbtaskq_task__(self): return self.i\n"
        "h = H('a')\ndef f(): return type(h).__name__, h.i"
    )
    link.result("f")
    assert link.tell("result") == ("H", "a")


CONNECTION = "import sqlite3\nconn = sqlite3.connect(':memory:')\n"

REFUSED = {
    "args[2].conn": ("", "((1, 2, Holder(conn)), {})"),
    "args[0]['x'][3]": ("", "(({'x': [0, 1, 2, conn]},), {})"),
    "kwargs['lock'].conn": ("", "((), {'lock': Holder(conn)})"),
    "kwargs['lock']": ("", "((), {'lock': conn})"),
    "args[0][5000]": ("", "(([0] * 5000 + [conn] + [0] * 5000,), {})"),
    "args[0].a.conn": (
        "import collections\nR = collections.namedtuple('R', 'a')", "((R(Holder(conn)),), {})",
    ),
    "global 'conn' captured by train()": ("def train(): return conn", "((train,), {})"),
    "variable 'held' captured by inner()": (
        "def outer(held):\n    def inner(): return held\n    return inner", "((outer(conn),), {})",
    ),
}  # fmt: skip


@pytest.mark.parametrize("path", REFUSED)
def test_an_argument_that_cannot_travel_is_named_by_its_path(path: str, link: Link) -> None:
    cell, call = REFUSED[path]
    link.cell("class Holder:\n    def __init__(self, c): self.conn = c")
    link.cell(CONNECTION + cell)
    with pytest.raises(PeerError) as caught:
        link.notebook.ask("dumps", call)
    assert caught.value.kind == "SerializationError"
    assert caught.value.text.startswith(f"{path} cannot be serialized: cannot pickle 'sqlite3.")


CAPTURED = {
    "global 'conn' captured by train()": "def train(): return conn",
    "global 'conn' captured by helper()": "def helper(): return conn\ndef train(): return helper()",
    "cfg['db'] in global 'cfg' captured by train()": "cfg = {'db': conn}\ndef train(): return cfg",
    "default 'c' of train()": "def train(x=1, c=conn): return c",
    "global 'conn' captured by K.m()": (
        "class K:\n    def m(self): return conn\ndef train(): return K().m()"
    ),
    "variable 'held' captured by inner()": (
        "def outer(held):\n    def inner(): return held\n    return inner\ntrain = outer(conn)"
    ),
}


@pytest.mark.parametrize("path", CAPTURED)
def test_a_capture_that_cannot_travel_is_named(path: str, link: Link) -> None:
    link.cell(CONNECTION + CAPTURED[path])
    with pytest.raises(PeerError) as caught:
        link.notebook.ask("freeze", "train")
    assert caught.value.kind == "SerializationError"
    assert caught.value.text.startswith(f"{path} cannot be serialized: cannot pickle 'sqlite3.")


def test_a_result_that_cannot_travel_is_named_and_the_worker_lives_on(link: Link) -> None:
    link.cell("def bad():\n    import sqlite3\n    return {'db': sqlite3.connect(':memory:')}")
    with pytest.raises(PeerError, match=r"result\['db'\] cannot be serialized"):
        link.send("bad")
    link.result("(lambda: 1)")
    assert link.tell("result") == 1


def test_an_open_file_is_refused_rather_than_emptied(link: Link, tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    link.cell(f"out = open({str(kept)!r}, 'w'); out.write('kept'); out.flush()")
    with pytest.raises(PeerError, match=r"args\[0\] cannot be serialized"):
        link.notebook.ask("dumps", "((out,), {})")
    assert kept.read_text() == "kept"


class _Raises:
    def __reduce__(self) -> str:
        raise ValueError("not me")


class _Exits:
    def __reduce__(self) -> str:
        raise SystemExit(3)


class _Recurses:
    def __reduce__(self) -> tuple[object, ...]:
        return (list, ([_Recurses()],))


class _NoAttributes:
    def __init__(self) -> None:
        self.fine = 1

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)

    def __getstate__(self) -> object:
        raise RuntimeError("no state")


class _ReprRaises:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __reduce__(self) -> str:
        raise RuntimeError("no reduce")


@pytest.mark.parametrize("hostile", [_Raises, _Exits, _Recurses, _NoAttributes, _ReprRaises])
def test_a_hostile_object_is_named_by_its_path(hostile: type) -> None:
    with pytest.raises(SerializationError) as caught:
        DillSerializer().dumps((([1, hostile()],), {}), root="call")
    assert caught.value.path.startswith("args[0]")


def test_a_missing_module_is_named(link: Link, tmp_path: Path) -> None:
    (tmp_path / "only_there.py").write_text("def f(): return 1\nclass C: pass\n")
    link.cell(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport only_there")
    parcel = link.notebook.ask("dumps", "((only_there.C(),), {})")
    with pytest.raises(
        DeserializationError, match="module 'only_there' cannot be imported"
    ) as caught:
        DillSerializer().loads(parcel)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_function_of_a_local_module_is_imported_in_the_worker(link: Link, tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("SCALE = 3\ndef scaled(x): return x * SCALE\n")
    link.cell(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom helpers import scaled")
    link.cell("def f(x): return scaled(x)")
    link.result("scaled", "2")
    assert link.tell("result") == 6
    link.result("f", "3")
    assert link.tell("result") == 9


def test_a_function_that_its_module_has_no_more_is_named(link: Link, tmp_path: Path) -> None:
    module = tmp_path / "shrinking.py"
    module.write_text("def gone(): return 1\n")
    link.cell(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom shrinking import gone")
    frozen = link.notebook.ask("freeze", "gone")
    module.write_text("other = 1\n")
    with pytest.raises(PeerError, match=r"gone.*edited after it was imported") as caught:
        link.run(frozen)
    assert caught.value.kind == "DeserializationError"


def test_damaged_bytes_are_a_deserialization_error() -> None:
    serializer = DillSerializer()
    for body in (b"", b"\x80\x05", b"garbage", b"\x80\x05K\x01"):
        with pytest.raises(DeserializationError):
            serializer.loads(Parcel(body))
        with pytest.raises(DeserializationError):
            serializer.thaw(Parcel(body))


def test_a_frozen_function_knows_its_home(tmp_path: Path) -> None:
    extra = tmp_path / "lib"
    with Peer(cwd=tmp_path) as notebook:
        notebook.ask("cell", f"import sys\nsys.path.append({str(extra)!r})\ndef f(): return 1")
        frozen = notebook.ask("freeze", "f")
    home = DillSerializer().thaw_home(code_parcel(frozen))
    assert home.cwd == str(tmp_path)
    assert str(extra) in home.sys_path
    assert not any("site-packages" in path for path in home.sys_path)


def test_importing_the_serializers_imports_neither_dill_nor_cloudpickle() -> None:
    check = (
        "import sys, nbtaskq.serializers, nbtaskq.serializers.default as d\n"
        "d.DillSerializer().dumps(((1, 'a'), {'k': None}), root='call')\n"
        "print(sorted({'dill', 'cloudpickle', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
