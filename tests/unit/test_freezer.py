"""What a send sees of a function's surroundings, and what it does not pay for again."""

from __future__ import annotations

import gc
import threading
import types
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbtaskq.abc.serializer import Frozen
from nbtaskq.client import freezer as freezer_module
from nbtaskq.client.freezer import Freezer, LargeCaptureWarning
from nbtaskq.errors import SerializationError
from nbtaskq.message import Parcel
from nbtaskq.serializers import DillSerializer


class Counting(DillSerializer):
    """The real serializer; counts what it is asked for."""

    def __init__(self) -> None:
        self.frozen = 0

    def freeze(self, function: Callable[..., Any]) -> Frozen:
        self.frozen += 1
        return super().freeze(function)


class Notebook:
    """Runs cells in a namespace of their own and freezes what they define."""

    def __init__(self) -> None:
        self.serializer = Counting()
        self.freezer = Freezer(self.serializer)
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def cell(self, source: str) -> None:
        exec(compile(source, "<cell>", "exec"), self.names)

    def freeze(self, name: str = "f") -> Frozen:
        return self.freezer.freeze(self.names[name])

    def sees(self, change: str, name: str = "f") -> bool:
        """Whether the cell `change` between two sends makes the second one different."""
        before = self.freeze(name).digest
        self.cell(change)
        return self.freeze(name).digest != before


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Set the number of the running cell."""
    shell = types.SimpleNamespace(execution_count=1)
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(freezer_module.sys.modules, "IPython", ipython)
    return shell


SEEN = {
    "a global bound anew": ("lr = .1\ndef f(): return lr", "lr = .2"),
    "a dict changed in place": ("cfg = {'lr': 1}\ndef f(): return cfg", "cfg['lr'] = 2"),
    "a nested list changed in place": ("rows = [[1]]\ndef f(): return rows", "rows[0].append(2)"),
    "a list in a tuple": ("pair = ([],)\ndef f(): return pair", "pair[0].append(1)"),
    "an attribute of an instance": (
        "class C: pass\nc = C(); c.x = 1\ndef f(): return c", "c.x = 2",
    ),
    "an array changed in place": (
        "import numpy as np\na = np.zeros(10)\ndef f(): return a", "a[3] = 1",
    ),
    "a name bound after the first send": ("def f(): return later", "later = 1"),
    "a helper run again": ("def h(): return 1\ndef f(): return h()", "def h(): return 2"),
    "a helper's helper run again": (
        "def g(): return 1\ndef h(): return g()\ndef f(): return h()", "def g(): return 2",
    ),
    "a helper's global": ("k = 1\ndef h(): return k\ndef f(): return h()", "k = 2"),
    "a class run again": ("class C: x = 1\ndef f(): return C", "class C: x = 2"),
    "a class attribute": ("class C: x = 1\ndef f(): return C", "C.x = 2"),
    "a method replaced": (
        "class C:\n    def m(self): return 1\ndef f(): return C", "C.m = lambda self: 2",
    ),
    "a global that a method reads": (
        "k = 1\nclass C:\n    def m(self): return k\ndef f(): return C", "k = 2",
    ),
    "a global that a property reads": (
        "k = 1\nclass C:\n    @property\n    def m(self): return k\ndef f(): return C", "k = 2",
    ),
    "a method of a base class": (
        "k = 1\nclass A:\n    def m(self): return k\nclass B(A): pass\ndef f(): return B", "k = 2",
    ),
    "a global read by a captured instance's class": (
        "k = 1\nclass C:\n    def m(self): return k\nc = C()\ndef f(): return c.m()", "k = 2",
    ),
    "a closure variable": (
        "def make():\n    n = [0]\n    def f(): return n\n    def up(): n[0] += 1\n"
        "    return f, up\nf, up = make()", "up()",
    ),
    "a closure variable bound anew": (
        "def make():\n    n = 0\n    def f(): return n\n"
        "    def up():\n        nonlocal n\n        n += 1\n"
        "    return f, up\nf, up = make()", "up()",
    ),
    "a mutable default": ("def f(seen=[]): return seen", "f().append(1)"),
    "the function's attributes": ("def f(): pass\nf.tag = 1", "f.tag = 2"),
    "a function inside a container": (
        "k = 1\ndef h(): return k\ntable = {'h': h}\ndef f(): return table['h']()", "k = 2",
    ),
    "what a partial calls": (
        "import functools\nk = 1\ndef h(x): return x + k\nf = functools.partial(h, 1)", "k = 2",
    ),
    "what a cached function reads": (
        "import functools\nk = 1\n@functools.cache\ndef h(): return k\ndef f(): return h()",
        "k = 2",
    ),
    "what a decorated function reads": (
        "import functools\nk = 1\ndef deco(g):\n    @functools.wraps(g)\n"
        "    def inner(): return g()\n    return inner\n@deco\ndef f(): return k",
        "k = 2",
    ),
    "the instance of a bound method": (
        "class C:\n    def m(self): return self.x\nc = C(); c.x = 1\nf = c.m", "c.x = 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_a_send_sees(name: str, notebook: Notebook) -> None:
    setup, change = SEEN[name]
    notebook.cell(setup)
    assert notebook.sees(change)


@pytest.mark.parametrize("name", SEEN)
def test_nothing_is_frozen_again_while_nothing_changes(name: str, notebook: Notebook) -> None:
    notebook.cell(SEEN[name][0])
    first = notebook.freeze()
    assert notebook.freeze() is first
    assert notebook.freeze() is first
    assert notebook.serializer.frozen == 1


def test_both_values_of_a_changed_global_are_sent(notebook: Notebook) -> None:
    notebook.cell("lr = .1\ndef f(): return lr")
    first = notebook.freeze()
    notebook.cell("lr = .2")
    second = notebook.freeze()
    thaw = notebook.serializer.thaw
    assert [thaw(Parcel(bytes(f.code.body)))() for f in (first, second)] == [0.1, 0.2]


def test_a_global_that_nothing_reads_does_not_matter(notebook: Notebook) -> None:
    notebook.cell("lr = .1\ndef f(): return 1")
    assert not notebook.sees("lr = .2")
    assert notebook.serializer.frozen == 1


def test_a_changed_directory_is_seen(
    notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook.cell("def f(): return 1")
    first = notebook.freeze()
    monkeypatch.chdir(tmp_path)
    second = notebook.freeze()
    homes = [notebook.serializer.thaw_home(Parcel(bytes(f.code.body))) for f in (first, second)]
    assert homes[0].cwd != homes[1].cwd == str(tmp_path)


LARGE = "import numpy as np\nbig = np.zeros(2_000_000)\ndef f(): return big"


def test_a_large_capture_is_frozen_once_per_cell_with_a_warning(
    notebook: Notebook, cells: types.SimpleNamespace
) -> None:
    notebook.cell(LARGE)
    with pytest.warns(LargeCaptureWarning, match=r"f\(\) captures 'big', about 16 MB") as caught:
        before = notebook.freeze()
    assert "In [1]" in str(caught[0].message)
    assert "argument" in str(caught[0].message)
    notebook.cell("big[0] = 1")
    assert notebook.freeze() is before
    cells.execution_count = 2
    with pytest.warns(LargeCaptureWarning, match="'big'"):
        after = notebook.freeze()
    assert after.digest != before.digest


def test_a_large_capture_bound_anew_is_seen_in_the_same_cell(notebook: Notebook) -> None:
    notebook.cell(LARGE)
    with pytest.warns(LargeCaptureWarning):
        before = notebook.freeze()
    notebook.cell("big = np.ones(2_000_000)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the same name warns once in a cell
        assert notebook.freeze().digest != before.digest


def test_a_large_list_bound_anew_is_seen(notebook: Notebook) -> None:
    notebook.cell("big = list(range(10**7))\ndef f(): return len(big)")
    with pytest.warns(LargeCaptureWarning, match="'big'"):
        before = notebook.freeze()
    notebook.cell("big = None; big = list(range(1, 10**7 + 1))")
    assert notebook.freeze().digest != before.digest


def test_a_capture_below_the_limit_does_not_warn(notebook: Notebook) -> None:
    notebook.cell("import numpy as np\na = np.zeros(1_000_000)\ndef f(): return a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notebook.freeze()
    assert notebook.sees("a[0] = 1")


@pytest.mark.parametrize(
    "source",
    [
        "def f(): return f",
        "def f(): return g()\ndef g(): return f()",
        "table = {}\ndef f(): return table\ntable['f'] = f",
        "class C:\n    def m(self): return f\ndef f(): return C",
        "import functools\n@functools.cache\ndef f(n): return f(n - 1)",
    ],
    ids=["itself", "mutual", "in a dict", "in a class", "cached"],
)
def test_an_old_function_is_not_kept(source: str, notebook: Notebook) -> None:
    notebook.cell(source)
    notebook.freeze()
    assert notebook.freeze() is notebook.freeze()
    gone = weakref.ref(notebook.names["f"])
    notebook.names.clear()
    gc.collect()
    assert gone() is None


def test_captured_data_is_not_kept(notebook: Notebook) -> None:
    notebook.cell("class C: pass\nc = C()\ndef f(): return c")
    notebook.freeze()
    gone = weakref.ref(notebook.names["c"])
    notebook.cell("del c")
    gc.collect()
    assert gone() is None


def test_a_capture_that_cannot_travel_is_named_each_time(notebook: Notebook) -> None:
    notebook.cell("import sqlite3\nconn = sqlite3.connect(':memory:')\ndef f(): return conn")
    for _ in range(2):
        with pytest.raises(SerializationError, match="global 'conn' captured by f"):
            notebook.freeze()
    notebook.cell("conn = None")
    notebook.freeze()


def test_threads_may_freeze_at_once(notebook: Notebook) -> None:
    notebook.cell("cfg = {'n': 0}\ndef f(): return cfg")
    start = threading.Barrier(4)
    digests: list[bytes] = []

    def send() -> None:
        start.wait(10)
        digests.extend(notebook.freeze().digest for _ in range(50))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(digests) == 200
    assert len(set(digests)) == 1
    assert notebook.serializer.frozen == 1
