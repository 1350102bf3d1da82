"""The id of a class from a cell: equal for equal source, in every process and kernel session."""

from __future__ import annotations

import ast
import linecache
import types
from collections.abc import Callable, Iterator
from typing import Any

from nbtaskq.message import digest_of
from nbtaskq.serializers.home import is_cell

#: Types whose values pickle by themselves and never change.
ATOMS: frozenset[type] = frozenset({int, float, str, bytes, bool, complex, type(None)})

#: Entries of a class's dict that say nothing about its source.
_INCIDENTAL = frozenset(
    {"__dict__", "__weakref__", "__module__", "__abstractmethods__", "__slotnames__", "__doc__"}
)


def class_id(cls: type, id_of_base: Callable[[type], str]) -> str:
    """Return a digest of the class's qualified name, its bases and its source.

    The source is that of the cell, when one of its methods leads there. Otherwise (no methods,
    no source, or a file that may have been edited since) it is what the class consists of:
    the code of its functions and the values of its simple attributes.
    """
    text = class_source(cls)
    content = [text] if text is not None else list(_structure(cls))
    parts = [cls.__qualname__, *map(id_of_base, cls.__bases__), *content]
    return digest_of("\0".join(parts).encode("utf-8", "surrogatepass")).hex()


def class_source(cls: type) -> str | None:
    """Return the class statement in its cell, decorators included, or None."""
    for code in _method_codes(cls):
        if is_cell(code.co_filename):
            text = "".join(linecache.getlines(code.co_filename))
            found = _class_statement(text, cls.__qualname__, code.co_firstlineno)
            if found is not None:
                return found
    return None


def _class_statement(text: str, qualname: str, line: int) -> str | None:
    try:
        nodes = ast.parse(text).body
    except SyntaxError:
        return None
    for path, node in _class_nodes(nodes, ""):
        if path == qualname and node.lineno <= line <= (node.end_lineno or node.lineno):
            heads = [ast.unparse(decorator) for decorator in node.decorator_list]
            return "\n".join([*heads, ast.unparse(node)])
    return None


def _class_nodes(nodes: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield classes outside functions with their qualified names, also below ``if`` and ``try``."""
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name, node
            yield from _class_nodes(node.body, f"{prefix}{node.name}.")
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _class_nodes(getattr(node, field, []), prefix)


def _method_codes(cls: type) -> Iterator[types.CodeType]:
    for value in vars(cls).values():
        for function in functions_in(value):
            yield function.__code__


def functions_in(attribute: Any) -> Iterator[types.FunctionType]:
    """Yield the functions that an attribute of a class stands for."""
    parts: tuple[Any, ...] = (attribute,)
    if isinstance(attribute, property):
        parts = (attribute.fget, attribute.fset, attribute.fdel)
    elif isinstance(attribute, staticmethod | classmethod):
        parts = (attribute.__func__,)
    for part in parts:
        if isinstance(part, types.FunctionType):
            yield part


def _structure(cls: type) -> Iterator[str]:
    for name, value in sorted(vars(cls).items()):
        if name not in _INCIDENTAL:
            yield name
            yield from _content(value)


def _content(value: Any) -> Iterator[str]:
    functions = list(functions_in(value))
    if functions:
        for function in functions:
            yield from _code_content(function.__code__)
            yield from _simple(function.__defaults__)
    else:
        yield from _simple(value)


def _simple(value: Any) -> Iterator[str]:
    if type(value) in ATOMS:
        yield repr(value)
    elif type(value) in (tuple, list):
        for item in value:
            yield from _simple(item)
    elif type(value) is dict:
        for key, item in value.items():
            yield from _simple(key)
            yield from _simple(item)
    else:
        # a repr may hold an address; the type does not
        yield getattr(value, "__qualname__", type(value).__qualname__)


def _code_content(code: types.CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield from (*code.co_names, *code.co_varnames, *code.co_freevars)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _code_content(const)
        else:
            yield from _simple(const)
