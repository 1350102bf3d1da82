"""What a cell reads and assigns, found without running it.

Compound statements are walked as a tree, for what is assigned on every path; each simple
statement and each expression is compiled by itself, and its bytecode says in which order it
loads and stores names.
"""

from __future__ import annotations

import ast
import dis
import inspect
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

_LOADS = frozenset({"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"})
_STORES = frozenset({"STORE_NAME", "STORE_GLOBAL"})
_DELETES = frozenset({"DELETE_NAME", "DELETE_GLOBAL"})
_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_COMPOUND = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar, ast.With, ast.AsyncWith,
    ast.Match,
)  # fmt: skip
_COMPREHENSIONS = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})
#: statements that cannot be compiled outside a loop, or need not be
_NAMELESS = (ast.Break, ast.Continue, ast.Pass, ast.Global)


@dataclass(frozen=True)
class Reading:
    """What was found out about a cell.

    Attributes
    ----------
    needs : frozenset of str
        Names that are read before the cell can have assigned them.
    may_need : frozenset of str
        Names that the cell assigns, but not on every path to where they are read.
    assigns : frozenset of str
        Names that the cell assigns.
    is_async : bool
        Whether there is an `await` outside functions.
    imports_all : bool
        Whether a ``from … import *`` assigns names that cannot be known.
    """

    needs: frozenset[str]
    may_need: frozenset[str]
    assigns: frozenset[str]
    is_async: bool = False
    imports_all: bool = False


def read_cell(tree: ast.Module, filename: str = "<cell>") -> Reading:
    """Return what a cell reads and assigns; raises `SyntaxError` if it does not compile."""
    whole = compile(tree, filename, "exec", _FLAGS, dont_inherit=True)
    flow = _Flow()
    flow.block(tree.body)
    flow.finish()
    return Reading(
        frozenset(flow.needs),
        frozenset(flow.may_need - flow.needs),
        frozenset(flow.assigned),
        bool(whole.co_flags & inspect.CO_COROUTINE),
        any(
            isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
            for node in ast.walk(tree)
        ),
    )


@dataclass
class _Flow:
    """Follows the order in which names are assigned and read.

    `sure` holds what is assigned on every path so far, `assigned` what is assigned anywhere.
    """

    sure: set[str] = field(default_factory=set)
    assigned: set[str] = field(default_factory=set)
    needs: set[str] = field(default_factory=set)
    may_need: set[str] = field(default_factory=set)
    #: read in the bodies of functions, which run later than where they stand
    later: set[str] = field(default_factory=set)

    def block(self, statements: Iterable[ast.stmt]) -> None:
        """Follow statements one after the other."""
        for statement in statements:
            if isinstance(statement, _COMPOUND):
                self._compound(statement)
            elif not isinstance(statement, _NAMELESS):
                self._simple(statement)

    def finish(self) -> None:
        """Decide about names that functions read."""
        self.may_need |= self.later & self.assigned
        self.needs |= self.later - self.assigned

    # -- compound statements ---------------------------------------------------------------

    def _compound(self, node: ast.stmt) -> None:
        if isinstance(node, ast.If):
            self._expression(node.test)
            self._branches(node.body, node.orelse)
        elif isinstance(node, ast.While):
            self._expression(node.test)
            self._branches([*node.body, *node.orelse], ())
        elif isinstance(node, ast.For | ast.AsyncFor):
            self._expression(node.iter)
            self._branches([_assignment(node.target), *node.body, *node.orelse], ())
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                self._expression(item.context_expr)
                if item.optional_vars is not None:
                    self._simple(_assignment(item.optional_vars))
            self.block(node.body)
        elif isinstance(node, ast.Try | ast.TryStar):
            self._try(node)
        elif isinstance(node, ast.Match):
            self._expression(node.subject)
            self._branches(*(_case(case) for case in node.cases), ())

    def _try(self, node: ast.Try | ast.TryStar) -> None:
        handlers = [_handler(handler) for handler in node.handlers]
        if handlers:
            before = set(self.sure)
            self.block([*node.body, *node.orelse])
            whole = self.sure
            self.sure = before
            ends = [whole, *(self._branch(handler) for handler in handlers)]
            self.sure = set.intersection(*ends)
        else:
            self.block(node.body)
        self.block(node.finalbody)

    def _branches(self, *branches: Sequence[ast.stmt]) -> None:
        """Follow alternatives; sure is afterwards what all of them assign."""
        self.sure = set.intersection(*[self._branch(branch) for branch in branches])

    def _branch(self, statements: Sequence[ast.stmt]) -> set[str]:
        before = set(self.sure)
        self.block(statements)
        after, self.sure = self.sure, before
        return after

    # -- bytecode --------------------------------------------------------------------------

    def _expression(self, node: ast.expr) -> None:
        self._simple(ast.copy_location(ast.Expr(node), node))

    def _simple(self, node: ast.stmt) -> None:
        module = ast.fix_missing_locations(ast.Module([node], []))
        self._follow(compile(module, "<cell>", "exec", _FLAGS, dont_inherit=True))

    def _follow(self, code: types.CodeType) -> None:
        """Follow code that runs where it stands: a statement, a class body, a comprehension."""
        local: set[str] = set()
        in_class = _is_class_body(code)
        for instruction in dis.get_instructions(code):
            name, operation = instruction.argval, instruction.opname
            if in_class and operation == "STORE_NAME":
                local.add(name)
            elif operation in _LOADS and name not in local:
                self._read(name)
            elif operation in _STORES:
                self._assign(name)
            elif operation in _DELETES and name not in local:
                self._read(name)
                self.sure.discard(name)
            elif isinstance(name, types.CodeType) and operation == "LOAD_CONST":
                self._nested(name)

    def _nested(self, code: types.CodeType) -> None:
        if _is_class_body(code) or code.co_name in _COMPREHENSIONS:
            self._follow(code)
        else:
            self._body(code)

    def _body(self, code: types.CodeType) -> None:
        """Take the names of a function's body."""
        local = frozenset(_stored(code)) if _is_class_body(code) else frozenset()
        for instruction in dis.get_instructions(code):
            name = instruction.argval
            if isinstance(name, types.CodeType):
                self._body(name)
            elif instruction.opname in _LOADS | _DELETES and name not in self.sure | local:
                self.later.add(name)
            elif instruction.opname == "STORE_GLOBAL":
                self.assigned.add(name)

    def _read(self, name: str) -> None:
        if name in self.sure:
            return
        (self.may_need if name in self.assigned else self.needs).add(name)

    def _assign(self, name: str) -> None:
        self.sure.add(name)
        self.assigned.add(name)


def _assignment(target: ast.expr) -> ast.stmt:
    """Return a statement that only assigns to what a `for` or `with` assigns to."""
    return ast.copy_location(ast.Assign([target], ast.Constant(None)), target)


def _case(case: ast.match_case) -> list[ast.stmt]:
    """Return the statements of a case, with what its pattern reads and assigns before them."""
    before: list[ast.stmt] = []
    for node in ast.walk(case.pattern):
        if isinstance(node, ast.MatchValue):
            before.append(ast.copy_location(ast.Expr(node.value), node))
        elif isinstance(node, ast.MatchClass):
            before.append(ast.copy_location(ast.Expr(node.cls), node))
        name = getattr(node, "name", None) or getattr(node, "rest", None)
        if name:
            before.append(_named(name, node))
    if case.guard is not None:
        before.append(ast.copy_location(ast.Expr(case.guard), case.guard))
    return [*before, *case.body]


def _handler(handler: ast.ExceptHandler) -> list[ast.stmt]:
    """Return the statements of an `except`; its name is gone after them."""
    before: list[ast.stmt] = []
    after: list[ast.stmt] = []
    if handler.type is not None:
        before.append(ast.copy_location(ast.Expr(handler.type), handler.type))
    if handler.name:
        before.append(_named(handler.name, handler))
        gone = ast.Delete([ast.Name(handler.name, ast.Del())])
        after.append(ast.copy_location(gone, handler))
    return [*before, *handler.body, *after]


def _named(name: str, where: ast.AST) -> ast.stmt:
    target = ast.copy_location(ast.Name(name, ast.Store()), where)
    return _assignment(target)


def _is_class_body(code: types.CodeType) -> bool:
    return "__qualname__" in _stored(code)


def _stored(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_NAME":
            yield instruction.argval
