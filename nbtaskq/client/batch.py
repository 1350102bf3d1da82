"""Many sent messages, in input order, and waiting for several handles."""

from __future__ import annotations

import asyncio
import queue
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from nbtaskq.client.asking import ask
from nbtaskq.client.handle import TaskHandle
from nbtaskq.client.waiting import NUDGE
from nbtaskq.errors import ResultTimeout
from nbtaskq.message import TaskStatus

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R")


class Batch(Sequence[TaskHandle[R]], Generic[R]):
    """The handles of one `map`, `starmap` or `sweep`, in input order."""

    def __init__(self, name: str, handles: Sequence[TaskHandle[R]], batch_id: str = "") -> None:
        self.name = name
        self.batch_id = batch_id
        self._handles = list(handles)

    @overload
    def __getitem__(self, index: int) -> TaskHandle[R]: ...
    @overload
    def __getitem__(self, index: slice) -> Batch[R]: ...
    def __getitem__(self, index: int | slice) -> TaskHandle[R] | Batch[R]:
        if isinstance(index, slice):
            return Batch(self.name, self._handles[index], self.batch_id)
        return self._handles[index]

    def __len__(self) -> int:
        return len(self._handles)

    def __iter__(self) -> Iterator[TaskHandle[R]]:
        return iter(self._handles)

    def __await__(self) -> Generator[Any, None, Batch[R]]:
        for handle in self._handles:
            yield from handle.__await__()
        return self

    def results(
        self,
        timeout: float | None = None,
        *,
        errors: Literal["raise", "skip", "keep"] = "raise",
    ) -> list[Any]:
        """Wait for all and return their values in input order.

        Parameters
        ----------
        timeout : float or None
            Seconds for all together; `None` waits for ever.
        errors : str
            "raise" raises the first failed task's exception, "skip" leaves failed tasks out,
            "keep" puts the exception in the value's place.
        """
        if errors not in ("raise", "skip", "keep"):
            raise ValueError(f"errors={errors!r}: choose 'raise', 'skip' or 'keep'")
        end = None if timeout is None else time.monotonic() + timeout
        values: list[Any] = []
        for handle in self._handles:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not handle._wait_for("done", left, alone=False):
                raise handle._timeout(timeout)
            error = handle.exception(left or None)
            if error is None:
                values.append(handle.result(0))
            elif errors == "raise":
                raise error
            elif errors == "keep":
                values.append(error)
        return values

    async def values(self) -> list[R]:
        """Wait for all without blocking the event loop; raise the first error."""
        return [await handle.value() for handle in self._handles]

    def as_completed(self, timeout: float | None = None) -> Iterator[TaskHandle[R]]:
        """Yield the handles in the order in which their tasks end."""
        return as_completed(self._handles, timeout)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all have ended; return whether they have."""
        return not wait(self._handles, timeout)[1]

    def done(self) -> bool:
        """Whether all have ended."""
        return all(handle.done() for handle in self._handles)

    @property
    def counts(self) -> dict[str, int]:
        """How many are in each state."""
        return dict(Counter(str(handle.status) for handle in self._handles))

    @property
    def succeeded(self) -> Batch[R]:
        """Those that ended with a value, so far."""
        return self._where(lambda status: status is TaskStatus.SUCCEEDED)

    @property
    def failed(self) -> Batch[R]:
        """Those that ended without a value, so far."""
        return self._where(lambda status: status.ended and status is not TaskStatus.SUCCEEDED)

    def _where(self, test: Any) -> Batch[R]:
        kept = [handle for handle in self._handles if test(handle.status)]
        return Batch(self.name, kept, self.batch_id)

    def cancel(self, timeout: float = 5.0) -> dict[str, int]:
        """End all that have not begun; return how often each answer came."""
        waiting = [handle for handle in self._handles if not handle.done()]
        if not waiting:
            return {}
        ids = [handle.task_id for handle in waiting]
        words = ask(waiting[0]._broker, "cancel", ids, timeout)
        return dict(Counter(words.values()))

    def to_frame(self, wait: bool = True, timeout: float | None = None) -> pd.DataFrame:
        """Return one row a task, in input order: arguments, results, and facts.

        Parameters
        ----------
        wait : bool
            `False` gives a snapshot; unfinished rows hold missing values.
        timeout : float or None
            Seconds to wait; `ResultTimeout` when they are over.

        Returns
        -------
        pandas.DataFrame
            Arguments and results under their plain names; facts as `task_id task_name
            task_status task_started task_seconds task_worker task_attempts task_error`.
        """
        from nbtaskq.frames import batch_frame

        if wait and not self.wait(timeout):
            raise ResultTimeout(f"{self!r} has not ended after {timeout:g} s; it goes on")
        return batch_frame(self._handles)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {state}" for state, n in self.counts.items())
        return f"<{self.name} x {len(self)}: {counts or 'empty'}>"


def as_completed(
    handles: Iterable[TaskHandle[R]], timeout: float | None = None
) -> Iterator[TaskHandle[R]]:
    """Yield handles in the order in which their tasks end; each once.

    Raises
    ------
    ResultTimeout
        Not all have ended in `timeout` seconds.
    """
    pending = list(dict.fromkeys(handles))
    total = len(pending)
    ended: queue.SimpleQueue[TaskHandle[R]] = queue.SimpleQueue()
    for handle in pending:
        handle.add_done_callback(ended.put)
    end = None if timeout is None else time.monotonic() + timeout
    count = 0
    left_over = set(pending)
    while count < total:
        left = NUDGE if end is None else min(NUDGE, end - time.monotonic())
        try:
            handle = ended.get(timeout=max(0.0, left)) if left > 0 else ended.get_nowait()
        except queue.Empty:
            if end is not None and time.monotonic() >= end:
                raise ResultTimeout(
                    f"{total - count} of {total} tasks have not ended after {timeout:g} s; "
                    "they go on"
                ) from None
            for waiting in left_over:
                waiting._check_trouble()
                waiting._nudge("done")
            continue
        count += 1
        left_over.discard(handle)
        yield handle


def wait(
    handles: Iterable[TaskHandle[Any]], timeout: float | None = None
) -> tuple[set[TaskHandle[Any]], set[TaskHandle[Any]]]:
    """Wait until all have ended or time is over; return those that have and those that have not."""
    all_handles = list(dict.fromkeys(handles))
    try:
        for _ in as_completed(all_handles, timeout):
            pass
    except ResultTimeout:
        pass
    done = {handle for handle in all_handles if handle.done()}
    return done, set(all_handles) - done


async def gather(*handles: TaskHandle[Any], timeout: float | None = None) -> list[Any]:
    """Wait for handles without blocking the event loop; values in the order of the arguments."""
    return list(await asyncio.gather(*(handle.value(timeout) for handle in handles)))
