"""The magics: `%nbtaskq`, `%kiq` and `%%kiq`, `%%task`.

What they need of nbtaskq is imported when one is first used, so that loading them costs nothing.
"""

# mypy: disable-error-code="no-untyped-call,untyped-decorator"
# IPython's decorators and parsers have no types

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import (
    Magics,
    cell_magic,
    line_cell_magic,
    line_magic,
    magics_class,
    no_var_expand,
)
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from nbtaskq.notebook.delivery import Deliveries, Delivery
from nbtaskq.notebook.errors import CellFailed, brief, remote_frames

#: options of cells that this version does not act on, with how many values they take
_NOT_BUILT = {"--timeout": 1, "--retries": 1, "--seed": 1, "--cron": 1, "--fresh": 0,
              "--quiet": 0, "--force": 0}  # fmt: skip
_NO_ACTIONS = ("console", "clean", "refresh")


def _cell_options(method: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `%%kiq` and `%%task` share."""
    options = [
        argument("name", nargs="?", default="", metavar="NAME", help="name of the task"),
        argument("-i", "--in", dest="inputs", default="", metavar="a,b",
                 help="names that the cell needs beside those that it is seen to read"),
        argument("-o", "--out", dest="outputs", default="", metavar="a,b",
                 help="names of the cell whose values come back"),
        argument("--priority", type=int, default=None, help="higher runs first; 0 is usual"),
        argument("--delay", type=float, default=None, metavar="SECONDS",
                 help="wait before it may start"),
    ]  # fmt: skip
    for option, values in _NOT_BUILT.items():
        action: dict[str, Any] = {} if values else {"action": "store_true"}
        options.append(argument(option, help=argparse.SUPPRESS, default=None, **action))
    for option_decorator in reversed(options):
        method = option_decorator(method)
    return method


@magics_class
class NbTaskQMagics(Magics):
    """The magics of one shell, and its cells that are on their way."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._ipython = shell
        self.deliveries = Deliveries(shell.user_ns)

    @magic_arguments()
    @argument("action", nargs="?", default="status", metavar="ACTION",
              help="up [N] | down [--force] | status | restart | logs [-n LINES]")  # fmt: skip
    @argument("count", nargs="?", type=int, metavar="N", help="up: workers, at least so many")
    @argument("--force", action="store_true", help="down: also while others have work here")
    @argument("-n", "--lines", type=int, default=50, help="logs: how many lines of each")
    @line_magic
    def nbtaskq(self, line: str) -> Any:
        """Start, stop and look at this folder's hub and workers.

        ::

            %nbtaskq up 4       a hub and four worker kernels; they outlive this notebook
            %nbtaskq status     what runs
            %nbtaskq restart    fresh workers; what they were running runs again
            %nbtaskq logs -n 20
            %nbtaskq down       stop them; unfinished tasks go on after the next `up`
        """
        options = parse_argstring(self.nbtaskq, line)
        act = _ACTIONS.get(options.action)
        if act is None:
            known = ", ".join(_ACTIONS)
            if options.action in _NO_ACTIONS:
                raise UsageError(f"%nbtaskq {options.action} is not there yet; there is {known}")
            raise UsageError(f"%nbtaskq knows no {options.action!r}; it knows {known}")
        if options.count is not None and options.action != "up":
            raise UsageError(f"%nbtaskq {options.action} takes no number")
        return act(options)

    @magic_arguments()
    @_cell_options
    @argument("--again", action="store_true", help="start another run; this is always done now")
    @no_var_expand
    @line_cell_magic
    def kiq(self, line: str, cell: str | None = None) -> Any:
        """Run this cell in the background; its value is the task's handle.

        What the cell reads of the notebook goes with it. Names of `-o` get their values between
        cells once the task has ended, unless you have bound them since.

        ::

            %%kiq train -o model,score
            model = fit(df)
            score = model.score(X, y)

            %kiq fit(df, depth=8)       one expression, evaluated there

        A front end that takes no input (nbclient, nbval, papermill) waits in the cell, shows
        the output as it comes and raises the task's error.
        """
        from nbtaskq.notebook.checks import Spec, name_of_call

        if cell is None:
            if not line.strip():
                raise UsageError("%kiq takes an expression: %kiq fit(df, depth=8)")
            return self._send(line, Spec(name_of_call(line)), {})
        options = self._options(self.kiq, "%%kiq", line)
        if not cell.strip():
            raise UsageError("the cell below %%kiq is empty")
        return self._send(cell, _spec(options, f"%%kiq {line}"), _labels(options))

    @magic_arguments()
    @_cell_options
    @no_var_expand
    @cell_magic
    def task(self, line: str, cell: str) -> Any:
        """Make this cell a task, or the functions that it defines.

        With a NAME nothing runs now: the cell becomes the task NAME, and keyword arguments
        stand for names that it reads.

        ::

            %%task report -o table
            table = summary(data, year)

            report.kiq(year=2025)
            report.sweep(year=[2023, 2024, 2025]).to_frame()

        Without a NAME the cell runs, and each function that it defines becomes a task.
        """
        from nbtaskq import session  # noqa: F401 - a cell task is sent through its broker

        options = self._options(self.task, "%%task", line)
        if options.name:
            return self._register_cell(options, line, cell)
        if options.inputs or options.outputs:
            raise UsageError("-i and -o belong to a cell with a name: %%task NAME -o a,b")
        return self._register_functions(options, cell)

    # -- behind them -----------------------------------------------------------------------

    def _options(self, magic: Any, called: str, line: str) -> Any:
        options = parse_argstring(magic, line)
        for option in _NOT_BUILT:
            if getattr(options, option.removeprefix("--")):
                raise UsageError(
                    f"{called} {option} is not there yet; there is -i, -o, --priority, --delay"
                )
        return options

    def _send(self, source: str, spec: Any, labels: dict[str, Any]) -> Any:
        from nbtaskq.notebook.cells import CellTask
        from nbtaskq.notebook.stream import follow, is_headless

        _require_workers()
        with brief():
            handle = CellTask(self._ipython, source, spec, labels).kiq()
        if is_headless(self._ipython):
            Delivery(handle, spec.outputs, self._ipython.user_ns)
            follow(handle)
            with remote_frames():
                handle.result()
        else:
            self.deliveries.expect(handle, spec.outputs)
        return handle

    def _register_cell(self, options: Any, line: str, cell: str) -> Any:
        from nbtaskq.notebook.cells import CellTask

        if not options.name.isidentifier():
            raise UsageError(f"%%task NAME binds the name, and {options.name!r} is none")
        spec = _spec(options, f"%%task {line}")
        with brief():
            made = CellTask(self._ipython, cell, spec, _labels(options))
        self._ipython.user_ns[options.name] = made
        return made

    def _register_functions(self, options: Any, cell: str) -> Any:
        from nbtaskq import session
        from nbtaskq.client import Task
        from nbtaskq.notebook.checks import Spec, defined_functions, parse_cell

        names = defined_functions(parse_cell(self._ipython, cell, Spec("task", heading="%%task")))
        if not names:
            raise UsageError("the cell defines no function; %%task NAME makes the cell a task")
        # lines as in the notebook, below the magic's
        ran = self._ipython.run_cell(f"# %%task\n{cell}", store_history=False)
        if not ran.success:
            raise CellFailed("the cell failed; no task was made")
        namespace = self._ipython.user_ns
        for name in names:
            if not isinstance(namespace[name], Task):
                namespace[name] = session.task(name, **_labels(options))(namespace[name])
        print(f"{', '.join(names)}: run one in the background with {names[0]}.kiq(…)")


def _up(options: Any) -> Any:
    from nbtaskq import session

    if options.count is not None and options.count < 1:
        raise UsageError("%nbtaskq up takes a number of workers from 1 on")
    return session.up(options.count)


def _down(options: Any) -> Any:
    from nbtaskq import session

    return session.down(force=options.force)


def _status(_: Any) -> Any:
    from nbtaskq import session

    return session.status()


def _restart(_: Any) -> Any:
    from nbtaskq import session

    return session.restart()


def _logs(options: Any) -> None:
    from nbtaskq import session

    print(session.logs(options.lines))


_ACTIONS: dict[str, Callable[[Any], Any]] = {
    "up": _up, "down": _down, "status": _status, "restart": _restart, "logs": _logs,
}  # fmt: skip


def _spec(options: Any, heading: str) -> Any:
    from nbtaskq.notebook.checks import Spec

    return Spec(
        options.name or "cell", _names("-i", options.inputs), _names("-o", options.outputs), heading
    )


def _names(option: str, text: str) -> tuple[str, ...]:
    """Return the names of `a,b`."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not name.isidentifier():
            raise UsageError(f"{option} takes names with commas between them, and {name!r} is none")
    return tuple(dict.fromkeys(names))


def _labels(options: Any) -> dict[str, Any]:
    labels = {"priority": options.priority, "delay": options.delay}
    return {name: value for name, value in labels.items() if value is not None}


def _require_workers() -> None:
    """Refuse a broker that would run the cell in this kernel, among the user's names."""
    from nbtaskq import session
    from nbtaskq.brokers import InMemoryBroker

    if isinstance(session.default_broker(), InMemoryBroker):
        raise UsageError(
            "a cell runs in a worker kernel, and the default broker is an InMemoryBroker; "
            "nq.set_default_broker(None) goes back to the workspace's hub"
        )
