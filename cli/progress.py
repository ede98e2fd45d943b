"""Progress of long work on stderr: lines, and a bar with an estimate in a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from .flags import with_flags
from .output import print_error, printable


def say(line: str) -> None:
    """What is being done, to stderr: stdout is for results."""
    print_error(printable(with_flags(line)))


@contextlib.contextmanager
def byte_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over bytes; the context's value advances it: the bytes that came, and those of all."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with contextlib.ExitStack() as stack:
        progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        task = progress.add_task(label, total=None)

        def advance(count: int, total: int) -> None:
            if progress.tasks[0].total is None:  # the lines of what comes before stand above the bar
                stack.enter_context(progress)
                progress.update(task, total=total)
            progress.advance(task, count)

        yield advance


@contextlib.contextmanager
def step_progress(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar over ``total`` steps; the context's value advances it by one, and shows what was done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(label, total=total, done="")
        yield lambda done: progress.update(task, advance=1, done=done)
