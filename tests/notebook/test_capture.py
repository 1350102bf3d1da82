"""Which names a cell takes with it."""

from __future__ import annotations

import ast

import pytest

from nbtaskq.notebook.capture import Reading, read_cell


def read(source: str) -> Reading:
    return read_cell(ast.parse(source))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("y = x + 1", "x"),
        ("x = x + 1", "x"),
        ("x = 1\ny = x", ""),
        ("x += 1", "x"),
        ("x.y = 1", "x"),
        ("x[i] = 1", "x i"),
        ("del x", "x"),
        ("x = 1\ndel x\nprint(x)", "print"),
        ("print(x := 3, x)", "print"),
        ("import numpy as np\nnp.arange(n)", "n"),
        ("from math import pi\npi", ""),
        ("f'{a} {b!r:>{width}}'", "a b width"),
        ("[x * k for x in xs if x > low]", "k xs low"),
        ("{k: v for k, v in pairs}", "pairs"),
        ("sum(x for x in xs)", "sum xs"),
        ("[[y for y in x] for x in xs]", "xs"),
        ("[last := x for x in xs]\nlast", "xs"),
        ("f = lambda x, y=d: x + y + z", "d z"),
        ("def f(a, b=c):\n    t = a + g\n    return t", "c g"),
        ("def f():\n    def inner():\n        return deep\n    return inner", "deep"),
        ("def f():\n    x = 1\n    def g():\n        nonlocal x\n        x += 1\n    return g", ""),
        ("def f():\n    return [x + k for x in xs]", "k xs"),
        ("@decorate\ndef f(): pass", "decorate"),
        ("def f(x: Thing) -> Other: pass", "Thing Other"),
        ("async def f():\n    return await fetch(url)", "fetch url"),
        ("def f(): return f()", ""),
        ("def f():\n    global n\n    n += 1\nf()", ""),
        ("class A(Base, metaclass=Meta):\n    x = y\n    z = x\n    def m(self): return A, w",
         "Base Meta y w"),
        ("class A:\n    x = x", "x"),
        ("with open(p) as f:\n    t = f.read()\nt, f", "open p"),
        ("with a as (b, c):\n    b + c", "a"),
        ("for i in range(n):\n    s = i\n", "range n"),
        ("while go:\n    go = step()", "go step"),
        ("try:\n    a()\nexcept (B, C) as e:\n    print(e)\nfinally:\n    d", "a B C print d"),
        ("if c:\n    x = 1\nelse:\n    x = 2\nx", "c"),
        ("match v:\n    case {'a': a, **rest} if a > low: rest\n    case K(x=[1, *b]): b\n"
         "    case M.y: 1", "v low K M"),
        ("assert ok, why", "ok why"),
        ("raise Wrong from cause", "Wrong cause"),
        ("await x", "x"),
        ("async for i in xs:\n    i", "xs"),
        ("async with a as b:\n    b", "a"),
        ("for x in xs:\n    if x: break\n    continue", "xs"),
        ("global g\ng = 1\ng", ""),
        ("x: int = 3\nx", "int"),
        ("*a, b = c\na, b", "c"),
    ],
)  # fmt: skip
def test_a_cell_needs_the_names_that_it_reads_before_it_assigns_them(source, names):
    found = read(source)
    assert {n for n in found.needs if not n.startswith("__")} == set(names.split())


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("if c:\n    x = 1\nx", "x"),
        ("for i in xs:\n    m = i\nm, i", "m i"),
        ("while c:\n    x = 1\nx", "x"),
        ("try:\n    x = 1\nexcept E:\n    pass\nx", "x"),
        ("try:\n    x = 1\nexcept E:\n    x = 2\nx", ""),
        ("match v:\n    case 1: x = 1\nx", "x"),
        ("def f(): return x\nx = 1\nf()", "x"),
        ("x = 1\ndef f(): return x\n", ""),
        ("def f():\n    global n\n    n += 1\nf()", "n"),
        ("if a:\n    x = 1\nx\nx = 2\nx", "x"),
    ],
)
def test_names_that_the_cell_may_have_assigned_itself_are_told_apart(source, names):
    assert read(source).may_need == set(names.split())


def test_what_a_cell_assigns_is_known_also_below_statements_and_globals():
    found = read(
        "import os.path as p\na = 1\nb: int = 2\nfor c in x: d = 1\nwith y as e: f = 1\n"
        "def g():\n    global h\n    h = 1\n    local = 2\nclass K: member = 1\n"
        "[inner for inner in x]\nif (w := 1): pass"
    )
    assert found.assigns == set("pabcdefghKw")


def test_top_level_await_makes_a_cell_async():
    assert read("await f()").is_async
    assert read("[x async for x in xs]").is_async
    assert not read("async def f(): await g()").is_async


def test_star_imports_are_known():
    assert read("from math import *").imports_all
    assert not read("from math import pi").imports_all


@pytest.mark.parametrize("source", ["return 1", "yield 1", "break", "x = = 1", "await = 3"])
def test_what_does_not_compile_is_a_syntax_error(source):
    with pytest.raises(SyntaxError):
        read(source)
