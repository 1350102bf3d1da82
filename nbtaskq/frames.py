"""Tasks as DataFrames; the only file that knows pandas.

Columns keep their types whatever has ended so far: floats are `float64` with NaN where there is
no value, other scalars have pandas' nullable types, everything else is `object`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from nbtaskq.client.handle import TaskHandle
from nbtaskq.message import TaskStatus

#: Columns that say what became of a task.
FACTS = (
    "task_id", "task_name", "task_status", "task_started", "task_seconds", "task_worker",
    "task_attempts", "task_error",
)  # fmt: skip
#: Columns of a history.
HISTORY = (*FACTS[:3], "task_submitted", *FACTS[3:], "task_notebook", "task_batch")

_STATUS = pd.CategoricalDtype([str(status) for status in TaskStatus])
_TIME = "datetime64[us, UTC]"
_DTYPES: dict[str, Any] = {
    "task_id": "string",
    "task_name": "string",
    "task_status": _STATUS,
    "task_submitted": _TIME,
    "task_started": _TIME,
    "task_seconds": "float64",
    "task_worker": "string",
    "task_attempts": "Int64",
    "task_error": "string",
    "task_notebook": "string",
    "task_batch": "string",
}
_DTYPE_OF = {"b": "boolean", "i": "Int64", "f": "float64", "s": "string", "t": _TIME}

Row = dict[str, Any]


def batch_frame(handles: Iterable[TaskHandle[Any]]) -> pd.DataFrame:
    """Return one row a task, in the order of `handles`: arguments, results, facts.

    A dict, Series, dataclass or named tuple as result gives a column for each of its keys,
    anything else the column `result`. A key that is also an argument's name shares its column
    if the values are equal in all rows, and is called `<key>_result` otherwise. A DataFrame, an
    array and other large values stay as they are.
    """
    tasks = list(handles)
    arguments = [dict(task.arguments) for task in tasks]
    results, problems = _results(tasks)
    facts = [_facts(task, problem) for task, problem in zip(tasks, problems, strict=True)]
    columns: dict[str, pd.Series] = {}
    for name in _keys(arguments):
        values = [row.get(name, pd.NA) for row in arguments]
        columns[_free(name, FACTS, "argument")] = _column(values, given=True)
    for name, key in _result_names(arguments, results).items():
        columns[name] = _column([row.get(key, pd.NA) for row in results])
    columns |= {name: _fact_column(name, facts) for name in FACTS}
    return pd.DataFrame(columns)


def history_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row a task of what a hub knows of tasks, in the order of `rows`.

    A row has the keys of `nbtaskq.hub.history.COLUMNS`, or some of them; times are Unix times or
    aware datetimes.
    """
    facts = [_history_row(row) for row in rows]
    return pd.DataFrame({name: _fact_column(name, facts) for name in HISTORY})


# -- what a row holds ----------------------------------------------------------------------


def _results(tasks: Sequence[TaskHandle[Any]]) -> tuple[list[Row], list[str]]:
    """Return the expanded result of each task, and what prevented it from being loaded."""
    rows: list[Row] = []
    problems: list[str] = []
    for task in tasks:
        row: Row = {}
        problem = ""
        if task.status is TaskStatus.SUCCEEDED:
            try:
                row = _given(task)
            except Exception as error:  # whatever loading the value raises: it is in the row
                problem = _words(error)
        elif task.facts is None and task.done():
            problem = _words(task.exception(0))
        rows.append(row)
        problems.append(problem)
    return rows, problems


def _given(task: TaskHandle[Any]) -> Row:
    """Return what a task gave as named values: its result, and names that a cell gave back."""
    value = task.result()
    named = task.vars
    if named and value is None:  # the cell's last line is no value
        return named
    return {**_expanded(value), **named}


def _words(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"


def _expanded(value: Any) -> Row:
    """Return a result as named values."""
    named: Any = None
    if isinstance(value, Mapping):
        named = dict(value)
    elif isinstance(value, pd.Series):
        named = value.to_dict() if value.index.is_unique else None
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        named = dict(zip(value._fields, value, strict=True))
    if named and all(isinstance(key, str) for key in named):
        return dict(named)
    return {"result": value}


def _facts(task: TaskHandle[Any], problem: str) -> Row:
    row: Row = {"task_id": task.task_id, "task_name": task.task_name, "task_status": task.status}
    if task.worker:
        row["task_worker"] = task.worker
    end = task.facts
    if end is None:
        if problem:  # it was not sent
            row["task_status"] = None
    else:
        row |= {"task_attempts": end.attempts, "task_error": end.error}
        if end.started:
            row |= {"task_started": end.started, "task_seconds": end.seconds}
    if problem:
        row["task_error"] = problem
    return row


def _history_row(row: Mapping[str, Any]) -> Row:
    return {
        key if key in ("task_id", "task_name") else f"task_{key}": value
        for key, value in row.items()
    }


# -- columns -------------------------------------------------------------------------------


def _keys(rows: Iterable[Row]) -> list[str]:
    """Return all keys in the order in which they first occur."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _result_names(arguments: list[Row], results: list[Row]) -> dict[str, str]:
    """Return the name of the column of each result key that needs one of its own."""
    taken = {*_keys(arguments), *FACTS}
    names: dict[str, str] = {}
    for key in _keys(results):
        pairs = zip(arguments, results, strict=True)
        shared = key in taken and key not in FACTS
        if shared and all(_agree(row, result, key) for row, result in pairs):
            continue
        name = _free(key, taken, "result")
        taken.add(name)
        names[name] = key
    return names


def _agree(arguments: Row, result: Row, key: str) -> bool:
    if key not in result:
        return True
    return key in arguments and _equal(arguments[key], result[key])


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are the same for a reader; arrays too, and NaN is NaN."""
    if one is other:
        return True
    try:
        same = one == other
        if isinstance(same, bool):
            return same or bool(one != one and other != other)
        return bool(one.shape == other.shape and same.all())
    except Exception:  # user classes and arrays of other shapes may raise anything here
        return False


def _free(name: str, taken: Iterable[str], suffix: str) -> str:
    while name in taken:
        name = f"{name}_{suffix}"
    return name


def _column(values: list[Any], *, given: bool = False) -> pd.Series:
    """Return values as a column; those of arguments, when complete, have numpy's own types."""
    known = [value for value in values if value is not pd.NA]
    # as an argument None is a value, as a result it is none
    dtype = _dtype(known if given else [value for value in known if value is not None])
    if dtype == "object":
        return pd.Series(_objects(values), dtype="object")
    if given and len(known) == len(values) and dtype != "string":
        return pd.Series(values)
    missing = float("nan") if dtype == "float64" else None
    plain = [missing if value is pd.NA or value is None else value for value in values]
    return pd.Series(plain, dtype=dtype)


def _objects(values: list[Any]) -> Any:
    """Return an array of the objects as they are: lists and arrays in it stay whole."""
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        array[place] = value
    return array


def _dtype(values: list[Any]) -> str:
    """Return the type of a column that holds these values."""
    kinds = {_kind(value) for value in values}
    if kinds == {"i", "f"}:
        return "float64"
    return _DTYPE_OF.get(kinds.pop(), "object") if len(kinds) == 1 else "object"


def _kind(value: Any) -> str:
    """Return what a value is: b, i, f, s (string), t (instant), or x for all else."""
    if isinstance(value, str):
        return "s"
    if isinstance(value, datetime):
        return "t" if value.tzinfo is UTC else "x"
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if kind is None:
        kind = {bool: "b", int: "i", float: "f"}.get(type(value), "x")
    elif getattr(value, "shape", None) != () or value.itemsize > 8:
        return "x"
    if kind in ("i", "u"):
        return "i" if -(2**63) <= value < 2**63 else "x"
    return kind if kind in ("b", "f") else "x"


def _fact_column(name: str, facts: list[Row]) -> pd.Series:
    values = [row.get(name) for row in facts]
    dtype = _DTYPES[name]
    if dtype == _TIME:
        return pd.Series([_instant(value) for value in values], dtype=_TIME)
    if name == "task_status":
        values = [None if value is None else str(TaskStatus(value)) for value in values]
        return pd.Series(pd.Categorical(values, dtype=_STATUS))
    if dtype == "string":
        values = [value or None for value in values]
    return pd.Series(values, dtype=dtype)


def _instant(value: float | datetime | None) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return value
    return datetime.fromtimestamp(value, UTC)
