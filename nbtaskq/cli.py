"""The command `nbtaskq`: what a notebook can say to its workspace, for the shell.

Exit status: 0 done · 1 it failed, with the reason on standard error · 2 wrong usage ·
3 nothing runs in this workspace (`status`) or nothing was logged (`logs`).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from nbtaskq.errors import NbTaskQError, UnknownTask
from nbtaskq.workspace import VARIABLE, Workspace

FAILED, NOTHING = 1, 3

_EPILOG = """\b
Exit status:
  0  done
  1  it failed; the reason is on standard error
  2  wrong usage
  3  nothing runs (status), or nothing was logged (logs)
"""


class Commands(click.Group):
    """Commands whose errors are sentences, not tracebacks."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except NbTaskQError as error:
            raise click.ClickException(str(error)) from error


def _choose(_: click.Context, __: click.Parameter, value: str | None) -> None:
    if value:
        os.environ[VARIABLE] = os.path.abspath(value)


_workspace = click.option(
    "--workspace",
    metavar="FOLDER",
    callback=_choose,
    expose_value=False,
    help=f"The workspace, instead of the nearest .nbtaskq (also: {VARIABLE}).",
)


def _command(examples: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of the group, with the option for the workspace and with examples."""
    epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples.splitlines())

    def wrap(function: Callable[..., None]) -> click.Command:
        return main.command(epilog=f"{epilog}\n\n{_EPILOG}")(_workspace(function))

    return wrap


@click.group(cls=Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nbtaskq")
def main() -> None:
    """Run functions and cells of notebooks in background worker kernels."""


@_command("nbtaskq up\nnbtaskq up 4\nnbtaskq up -n 4 --workspace ~/project/.nbtaskq")
@click.argument("count", metavar="[N]", type=click.IntRange(min=0), required=False)
@click.option("-n", "--workers", type=click.IntRange(min=0), help="Have at least so many workers.")
def up(count: int | None, workers: int | None) -> None:
    """Start hub and workers unless they run; wait for them.

    `up N` has at least N workers, as `%nbtaskq up N` has. They outlive this shell, and end by
    themselves ten minutes after the last work.
    """
    from nbtaskq import session

    if None not in (count, workers):
        raise click.UsageError("Say how many workers once: `nbtaskq up 4` or `nbtaskq up -n 4`.")
    click.echo(str(session.up(workers if count is None else count)))


@_command("nbtaskq down\nnbtaskq down --force")
@click.option("--force", is_flag=True, help="Also while other notebooks have unfinished tasks.")
def down(force: bool) -> None:
    """Stop hub and workers.

    The data stays. Running tasks are interrupted, and run again after the next `up`.
    """
    from nbtaskq import session

    click.echo(str(session.down(force)))


@_command("nbtaskq status\nnbtaskq status --json | jq .tasks")
@click.option("--json", "as_json", is_flag=True, help="Everything that is known, as JSON.")
def status(as_json: bool) -> None:
    """Say what runs in this workspace; start nothing."""
    from nbtaskq import session

    found = session.status()
    click.echo(json.dumps(found.to_dict(), indent=2, default=str) if as_json else str(found))
    if not found.running:
        raise SystemExit(NOTHING)


@_command("nbtaskq logs\nnbtaskq logs --worker w1 -n 200\nnbtaskq logs -f")
@click.option("-n", "--lines", default=50, show_default=True, help="Lines of each log.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now on.")
@click.option("--worker", metavar="NAME", help="Only of this worker, or of hub or supervisor.")
def logs(lines: int, follow: bool, worker: str | None) -> None:
    """Show what hub, supervisor and workers logged."""
    from nbtaskq import session

    files = _logs(worker)
    if follow:
        _follow(files, lines)
    elif worker:
        text = files[0].read_text(errors="replace").splitlines()
        click.echo("\n".join(text[-lines:]))
    else:
        click.echo(session.logs(lines))


def _logs(name: str | None) -> list[Path]:
    """Return the log files that are meant."""
    folder = Workspace.find().logs
    files = sorted(folder.glob("*.log"))
    if not files:
        click.echo(f"Nothing was logged in {folder}.", err=True)
        raise SystemExit(NOTHING)
    chosen = [file for file in files if name in (None, file.stem)]
    if not chosen:
        names = ", ".join(file.stem for file in files)
        raise UnknownTask(f"There is no log of {name!r} in {folder}; there are: {names}.")
    return chosen


def _follow(files: list[Path], lines: int) -> NoReturn:
    command = ["tail", "-n", str(lines), "-F", *map(str, files)]
    try:
        raise SystemExit(subprocess.run(command, check=False).returncode)
    except KeyboardInterrupt:
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
