"""Batches and histories as DataFrames."""

from __future__ import annotations

import pickle
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nbtaskq.client.handle import TaskHandle
from nbtaskq.client.task import Task
from nbtaskq.errors import SendError
from nbtaskq.frames import FACTS, batch_frame, history_frame
from nbtaskq.hub.protocol import Outcome
from nbtaskq.message import CellResult, Parcel, TaskStatus


class Loads:
    """The serializer's half that a handle needs to read its end."""

    def loads(self, parcel: Parcel, results: Mapping[str, Any] | None = None) -> Any:
        return pickle.loads(parcel.body)


class Road:
    """A broker that nobody asks anything: ends are told to the handles here."""

    serializer = Loads()

    def trouble(self) -> None:
        return None

    def watch(self, task_id: str, watcher: Any, *, value: bool = False) -> None:
        pass


def fit(depth: int, trees: int = 50, **rest: Any) -> Any:
    return depth


TASK = Task(fit, Road())  # type: ignore[arg-type]


def sent(task_id: str = "a1", *args: Any, **kwargs: Any) -> TaskHandle[Any]:
    return TaskHandle(Road(), task_id, "fit", TASK, args, kwargs)  # type: ignore[arg-type]


def ended(value: Any, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
    handle = sent("a1", *args, **kwargs)
    handle.on_outcome(
        Outcome(
            b"a1", TaskStatus.SUCCEEDED, pickle.dumps(value),
            started=1_700_000_000.25, seconds=2.5, worker="w1", attempts=1,
        ),
        (),
    )  # fmt: skip
    return handle


def failed(*args: Any, **kwargs: Any) -> TaskHandle[Any]:
    handle = sent("a2", *args, **kwargs)
    error = Outcome(b"a2", TaskStatus.CRASHED, started=1.0, worker="w2", error="signal 9")
    handle.on_outcome(error, ())
    return handle


def test_a_frame_has_one_row_a_task_in_input_order_with_arguments_results_and_facts():
    frame = batch_frame([ended(0.9, 8, 50), ended(0.8, 4, trees=200)])
    assert list(frame.columns) == ["depth", "trees", "result", *FACTS]
    assert frame[["depth", "trees", "result"]].values.tolist() == [[8, 50, 0.9], [4, 200, 0.8]]


def test_names_that_a_cell_gives_back_are_columns_and_its_value_is_one_if_it_has_any():
    frame = batch_frame([ended(CellResult(None, {"table": 1, "n": 2}), 8)])
    assert list(frame.columns) == ["depth", "table", "n", *FACTS]
    assert frame[["table", "n"]].values.tolist() == [[1, 2]]
    frame = batch_frame([ended(CellResult(0.5, {"table": 1}), 8)])
    assert frame[["result", "table"]].values.tolist() == [[0.5, 1]]


def test_facts_have_fixed_types():
    row = batch_frame([ended(1, 8)]).iloc[0]
    assert row.task_started == pd.Timestamp("2023-11-14T22:13:20.25Z")
    assert (row.task_seconds, row.task_worker, row.task_attempts) == (2.5, "w1", 1)
    assert row.task_status == "succeeded"
    assert row.task_error is pd.NA


@pytest.mark.parametrize(
    "handles", [[], [sent("a1", 1)], [ended(1, 1)], [failed(1)], [ended(1, 1), failed(1)]]
)
def test_types_of_facts_do_not_depend_on_what_has_ended(handles):
    dtypes = batch_frame(handles)[list(FACTS)].dtypes.astype(str).tolist()
    assert dtypes == [
        "string", "string", "category", "datetime64[us, UTC]", "float64", "string", "Int64",
        "string",
    ]  # fmt: skip


def test_the_status_column_knows_all_states():
    categories = batch_frame([])["task_status"].cat.categories
    assert set(categories) == {str(status) for status in TaskStatus}


def test_an_empty_batch_is_an_empty_frame_with_fact_columns():
    frame = batch_frame([])
    assert len(frame) == 0
    assert list(frame.columns) == list(FACTS)


def test_failed_and_unfinished_rows_are_missing_and_say_why():
    frame = batch_frame([ended(7, 1), failed(2), sent("a3", 3)])
    assert frame["result"].dtype == "Int64"
    assert frame["result"].isna().tolist() == [False, True, True]
    assert frame["task_status"].tolist() == ["succeeded", "crashed", "queued"]
    assert frame["task_error"].fillna("").tolist() == ["", "signal 9", ""]
    assert frame["task_started"].isna().tolist() == [False, False, True]


def test_a_task_that_was_not_sent_has_no_status_and_says_why():
    handle = sent("a1", 1)
    handle.on_refused(SendError("no hub"))
    row = batch_frame([handle]).iloc[0]
    assert pd.isna(row.task_status)
    assert row.task_error == "SendError: no hub"


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], "Int64"),
        ([1, 2.5], "float64"),
        ([np.int32(1), np.uint8(2)], "Int64"),
        ([np.float32(1), 2.0], "float64"),
        ([True, np.bool_(False)], "boolean"),
        (["a", "b"], "string"),
        ([1, "b"], "object"),
        ([True, 1], "object"),
        ([2**70, 1], "object"),
        ([np.uint64(2**63), 1], "object"),
        ([datetime(2026, 1, 1, tzinfo=UTC)] * 2, "datetime64[us, UTC]"),
    ],
)
def test_a_result_column_has_the_same_type_with_and_without_missing_values(values, dtype):
    whole = [ended(value, i) for i, value in enumerate(values)]
    assert str(batch_frame(whole)["result"].dtype) == dtype
    assert str(batch_frame([*whole, failed(9)])["result"].dtype) == dtype


def test_a_heat_map_takes_float_results_as_they_are():
    handles = [ended(d + t / 10, d, trees=t) for d in (1, 2) for t in (3, 4)]
    table = batch_frame(handles).pivot(index="depth", columns="trees", values="result")
    assert table.to_numpy().dtype == np.float64


@dataclass
class Scores:
    accuracy: float
    depth: int


Pair = namedtuple("Pair", ["accuracy", "loss"])


@pytest.mark.parametrize(
    "value",
    [
        {"accuracy": 0.5, "loss": 0.1},
        pd.Series({"accuracy": 0.5, "loss": 0.1}),
        Pair(0.5, 0.1),
    ],
    ids=["dict", "series", "namedtuple"],
)
def test_results_with_names_become_columns(value):
    frame = batch_frame([ended(value, 1), failed(2)])
    assert list(frame.columns) == ["depth", "accuracy", "loss", *FACTS]
    assert frame["accuracy"].fillna(-1).tolist() == [0.5, -1]


def test_a_dataclass_becomes_columns_and_shares_those_of_equal_arguments():
    frame = batch_frame([ended(Scores(0.5, 3), 3), failed(4)])
    assert list(frame.columns) == ["depth", "accuracy", *FACTS]
    assert frame["depth"].tolist() == [3, 4]


def test_a_result_that_differs_from_the_argument_of_its_name_gets_its_own_column():
    frame = batch_frame([ended(Scores(0.5, 3), 3), ended(Scores(0.6, 5), 4)])
    assert frame["depth"].tolist() == [3, 4]
    assert frame["depth_result"].tolist() == [3, 5]


@pytest.mark.parametrize("twin", [np.arange(3), float("nan"), pd.Series([1, 2]), [1, np.nan]])
def test_equal_arrays_and_nans_share_their_column(twin):
    frame = batch_frame([ended({"depth": twin}, twin)])
    assert [c for c in frame.columns if c.startswith("depth")] == (
        ["depth"] if not isinstance(twin, list) else ["depth", "depth_result"]
    )


def test_keys_that_are_called_like_facts_do_not_hide_them():
    frame = batch_frame([ended({"task_id": 5, "result": 6}, 1, task_name="mine")])
    assert frame["task_id"].tolist() == ["a1"]
    assert frame["task_id_result"].tolist() == [5]
    assert frame["task_name"].tolist() == ["fit"]
    assert frame["task_name_argument"].tolist() == ["mine"]
    assert frame.columns.is_unique


@pytest.mark.parametrize(
    "value",
    [
        np.arange(4), [1, 2], {1: 2}, {}, (1, 2), pd.DataFrame({"a": [1]}),
        pd.Series([1, 2]), Scores, object(),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_other_values_stay_as_they_are(value):
    handle = sent("a1", 1)
    handle._loaded = (value, None)
    handle.on_outcome(Outcome(b"a1", TaskStatus.SUCCEEDED), ())
    frame = batch_frame([handle, failed(2)])
    assert frame["result"].dtype == object
    assert frame["result"].iloc[0] is value


def test_results_of_different_shapes_fill_only_their_columns():
    frame = batch_frame([ended({"a": 1}, 1), ended(2, 2), ended({"b": "x"}, 3)])
    assert frame["a"].fillna(-1).tolist() == [1, -1, -1]
    assert frame["result"].fillna(-1).tolist() == [-1, 2, -1]
    assert frame["b"].fillna("").tolist() == ["", "", "x"]


def test_none_is_a_value_as_an_argument_and_none_as_a_result():
    frame = batch_frame([ended(None, None), ended(5, 3)])
    assert frame["depth"].tolist() == [None, 3]
    assert frame["result"].isna().tolist() == [True, False]


def test_arguments_that_some_calls_lack_are_missing_there():
    frame = batch_frame([ended(1, 1, trees=20), ended(1, 2)])
    assert frame["trees"].dtype == "Int64"
    assert frame["trees"].fillna(-1).tolist() == [20, -1]


def test_a_value_that_cannot_be_loaded_is_named_in_its_row():
    handle = sent("a1", 1)
    handle.on_outcome(Outcome(b"a1", TaskStatus.SUCCEEDED, b"nonsense"), ())
    frame = batch_frame([handle, ended(2, 2)])
    assert frame["result"].fillna(-1).tolist() == [-1, 2]
    assert "UnpicklingError" in frame["task_error"].iloc[0]


def test_a_history_has_one_row_a_task_and_its_times_are_numbers_or_datetimes():
    at = datetime(2026, 5, 1, 12, tzinfo=UTC)
    facts = {"task_id": "a1", "task_name": "fit", "status": 10, "submitted": at, "started": at,
             "seconds": 1.5, "worker": "w1", "attempts": 1, "notebook": "nb"}  # fmt: skip
    row = {"task_id": "a2", "task_name": "fit", "status": 11, "submitted": at.timestamp(),
           "started": None, "seconds": None, "error": "ValueError", "batch": "ff"}  # fmt: skip
    frame = history_frame([facts, row])
    assert frame["task_status"].tolist() == ["succeeded", "failed"]
    assert frame["task_submitted"].tolist() == [pd.Timestamp(at)] * 2
    assert frame["task_seconds"].fillna(0).tolist() == [1.5, 0]
    assert frame["task_notebook"].fillna("").tolist() == ["nb", ""]
    assert frame["task_error"].fillna("").tolist() == ["", "ValueError"]


def test_an_empty_history_has_the_same_columns_and_types():
    at = datetime(2026, 5, 1, 12, tzinfo=UTC)
    one = history_frame([{"task_id": "a1", "task_name": "fit", "status": 1, "submitted": at}])
    assert history_frame([]).dtypes.equals(one.dtypes)
