"""The tree is layered: a module imports only from layers to its left."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import nbtaskq

ROOT = Path(nbtaskq.__file__).parent

LAYERS: list[set[str]] = [
    {"errors", "message", "filesystems", "workspace", "process", "launcher"},
    {"hub"},
    {"abc"},
    {"serializers", "middlewares"},
    {"client", "frames"},
    {"execution"},
    {"brokers"},
    {"worker"},
    {"supervisor"},
    {"session"},
    {"notebook", "cli"},
    {""},
]


def layer(module: str) -> int:
    top = module.split(".")[1] if "." in module else ""
    return next(i for i, names in enumerate(LAYERS) if top in names)


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ("nbtaskq", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path, tree: ast.AST) -> Iterator[str]:
    """Yield our modules that a file imports, wherever in it; `__init__` re-exports count once."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in submodules]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "nbtaskq")


GRAPH = {
    name: set(imports(path, ast.parse(path.read_text()))) - {name} for name, path in MODULES.items()
}


def test_every_module_has_a_layer() -> None:
    for module in MODULES:
        layer(module)


@pytest.mark.parametrize("module", [m for m in sorted(MODULES) if m != "nbtaskq"])
def test_a_module_imports_only_from_layers_to_its_left(module: str) -> None:
    wrong = {
        target for target in GRAPH[module] if target != "nbtaskq" and layer(target) > layer(module)
    }
    assert not wrong, f"{module} imports {sorted(wrong)}"


def test_no_modules_import_each_other() -> None:
    graph = {
        module: {t for t in targets if t != "nbtaskq" and not module.startswith(f"{t}.")}
        for module, targets in GRAPH.items()
        if module != "nbtaskq"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' → '.join(error.args[1])}")


def test_the_hub_knows_no_pickle() -> None:
    forbidden = {"pickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve"}
    for module, path in MODULES.items():
        if module.startswith("nbtaskq.hub"):
            tree = ast.parse(path.read_text())
            names = {
                alias.name.split(".")[0]
                for node in ast.walk(tree)
                if isinstance(node, ast.Import)
                for alias in node.names
            } | {
                str(node.module).split(".")[0]
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom)
            }
            assert not names & forbidden, module


def test_every_module_says_what_it_is_for() -> None:
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{module} has no docstring"
