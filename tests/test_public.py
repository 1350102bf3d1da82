"""The public names: flat, few, each with a docstring, imported when used."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import nbtaskq as nq

NAMES = {
    "task", "up", "down", "status", "scale", "restart", "attach", "history", "logs",
    "default_broker", "set_default_broker", "gather", "wait", "as_completed",
    "Broker", "InMemoryBroker", "ZeroMQBroker",
    "Task", "Kicker", "TaskHandle", "Batch", "Message", "Result", "TaskStatus", "AckType", "Event",
    "Middleware", "SimpleRetryMiddleware", "Serializer", "Receiver", "Workspace",
    "NbTaskQError", "TaskError", "ResultTimeout", "errors",
    "load_ipython_extension", "unload_ipython_extension",
}  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert set(nq.__all__) == NAMES
    assert set(nq.__all__) <= set(dir(nq))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(nq, name)
    assert inspect.getdoc(value), f"{name} has no docstring"


@pytest.mark.parametrize("name", sorted(n for n in NAMES if n[0].isupper()))
def test_public_methods_are_documented(name: str) -> None:
    kind = getattr(nq, name)
    for attribute, value in vars(kind).items():
        if not attribute.startswith("_") and inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{attribute} has no docstring"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nq.nothing  # noqa: B018


def test_every_error_stands_in_the_tree_of_the_docstring() -> None:
    from nbtaskq import errors

    classes = [
        c for c in vars(errors).values() if inspect.isclass(c) and c.__module__ == errors.__name__
    ]
    for kind in classes:
        assert kind.__name__ in (errors.__doc__ or "")
        assert issubclass(kind, errors.NbTaskQError)


def test_importing_costs_nothing_heavy() -> None:
    code = (
        "import sys, nbtaskq\n"
        "heavy = {'zmq', 'pandas', 'dill', 'cloudpickle', 'IPython', 'ipykernel', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_sending_needs_no_pandas_and_no_ipython() -> None:
    code = (
        "import sys, nbtaskq as nq\n"
        "b = nq.ZeroMQBroker(nq.Workspace.at('/nowhere'))\n"
        "heavy = {'pandas', 'IPython', 'ipykernel', 'ipywidgets', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
