"""nbtaskq beside `ProcessPoolExecutor` in one run, two workers each; a table of ratios, and JSON.

    python benchmarks/peers.py [--tasks 20000] [--json FILE]

Everything is on: FULL commits, results stored, worker kernels. Throughput is timed until the
last result is *recorded*: a batch hears of an end only when it is durable.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbtaskq as nq

WORKERS = 2
ROUNDS = 5
ARRAY_BYTES = 100_000_000

COLD = """
import sys, time
begin = time.perf_counter()
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
begin = time.perf_counter()
shell.run_line_magic("load_ext", "nbtaskq")
shell.run_cell("import nbtaskq as nq\\n@nq.task\\ndef null(x): return x")
assert shell.user_ns["null"].kiq(1).result(30) == 1
print(time.perf_counter() - begin)
"""

COLD_POOL = """
import time
begin = time.perf_counter()
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2) as pool:
    assert pool.submit(abs, 1).result() == 1
    print(time.perf_counter() - begin)
"""


def null(x: Any) -> Any:
    """Return the argument."""
    return x


@contextmanager
def workspace() -> Iterator[None]:
    """Use a workspace of its own and leave nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="nbtaskq-bench-"))
    os.environ["NBTASKQ_WORKSPACE"] = str(folder / ".nbtaskq")
    try:
        yield
    finally:
        if nq.status().running:
            nq.down(force=True)
        nq.set_default_broker(None)
        shutil.rmtree(folder)


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def latencies(call: Callable[[int], Any], count: int = 300) -> tuple[float, float]:
    """Return median and 99th percentile of single round trips, in milliseconds."""
    call(0)
    times = sorted(timed(lambda i=i: call(i)) * 1e3 for i in range(count))
    return statistics.median(times), times[int(count * 0.99)]


def cold(script: str) -> float:
    """Return the seconds that a fresh process takes to its first result."""
    with workspace():
        out = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        return float(out.stdout.split()[-1])


def measure(tasks: int) -> tuple[dict[str, float], dict[str, float]]:
    """Measure hub with worker kernels and the standard library's pool, turn by turn.

    Shared machines change their speed within seconds, so each figure is the median of rounds
    in which both had their turn.
    """
    import numpy as np

    array = np.ones(ARRAY_BYTES // 8)
    numbers = list(range(tasks))
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}

    def note(figures: dict[str, list[float]], **values: float) -> None:
        for name, value in values.items():
            figures.setdefault(name, []).append(value)

    with workspace(), ProcessPoolExecutor(WORKERS) as pool:
        nq.up(WORKERS)
        task = nq.task("null")(cell_function())

        def submitted() -> None:
            futures: list[Future[Any]] = [pool.submit(null, i) for i in numbers]
            assert [f.result() for f in futures] == numbers

        def sent_one_by_one() -> None:
            handles = [task.kiq(i) for i in numbers]
            nq.wait(handles, 120)
            assert [handle.result(0) for handle in handles] == numbers

        assert list(pool.map(null, range(1000))) == list(range(1000))
        assert task.map(range(1000)).results(30) == list(range(1000))
        for _ in range(ROUNDS):
            p50, p99 = latencies(lambda i: pool.submit(null, i).result())
            note(theirs, p50_ms=p50, p99_ms=p99)
            p50, p99 = latencies(lambda i: task.kiq(i).result(10))
            note(ours, p50_ms=p50, p99_ms=p99)
        for _ in range(ROUNDS):
            note(theirs, tasks_per_s=tasks / timed(submitted))
            note(ours, tasks_per_s=tasks / timed(sent_one_by_one))
            chunked = timed(lambda: list(pool.map(null, numbers, chunksize=100)))
            note(theirs, tasks_per_s_map=tasks / chunked)
            note(ours, tasks_per_s_map=tasks / timed(lambda: task.map(numbers).results(120)))
        for _ in range(ROUNDS):
            note(theirs, array_s=timed(lambda: pool.submit(null, array).result()))
            note(ours, array_s=timed(lambda: task.kiq(array).result(60)))
    for _ in range(ROUNDS):
        note(theirs, cold_s=cold(COLD_POOL))
        note(ours, cold_s=cold(COLD))
    return tuple(  # type: ignore[return-value]
        {name: statistics.median(values) for name, values in figures.items()}
        for figures in (ours, theirs)
    )


def cell_function() -> Callable[[Any], Any]:
    """Return a function as a cell defines it: it travels as code."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("def null(x): return x", "<cell>", "exec"), namespace)
    function: Callable[[Any], Any] = namespace["null"]
    return function


def table(ours: dict[str, float], pool: dict[str, float]) -> list[tuple[str, float, float, float]]:
    """Return rows of (what, ours, the pool's, ratio); map stands beside the pool's `submit`."""
    return [
        (
            "null tasks/s: map | submit",
            ours["tasks_per_s_map"],
            pool["tasks_per_s"],
            ours["tasks_per_s_map"] / pool["tasks_per_s"],
        ),
        (
            "null tasks/s: kiq | submit",
            ours["tasks_per_s"],
            pool["tasks_per_s"],
            ours["tasks_per_s"] / pool["tasks_per_s"],
        ),
        (
            "null tasks/s: map | map(chunksize=100)",
            ours["tasks_per_s_map"],
            pool["tasks_per_s_map"],
            ours["tasks_per_s_map"] / pool["tasks_per_s_map"],
        ),
        ("p50 round trip, ms", ours["p50_ms"], pool["p50_ms"], ours["p50_ms"] / pool["p50_ms"]),
        ("p99 round trip, ms", ours["p99_ms"], pool["p99_ms"], ours["p99_ms"] / pool["p99_ms"]),
        ("100 MB array there and back, s", ours["array_s"], pool["array_s"],
         ours["array_s"] / pool["array_s"]),
        ("first result from cold, s", ours["cold_s"], pool["cold_s"],
         ours["cold_s"] / pool["cold_s"]),
    ]  # fmt: skip


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ours, pool = measure(options.tasks)
    print(f"{'':40}{'nbtaskq':>12}{'pool':>12}{'ratio':>9}")
    for what, mine, other, ratio in table(ours, pool):
        print(f"{what:40}{mine:12.4g}{other:12.4g}{ratio:9.2f}")
    if options.json:
        options.json.write_text(json.dumps({"nbtaskq": ours, "pool": pool}, indent=2))


if __name__ == "__main__":
    main()
