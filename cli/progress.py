"""Progress of long work on stderr: lines, and a bar with an estimate in a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


def say(line: str) -> None:
    """What is being done, to stderr: stdout is for results."""
    click.echo(line, err=True)


@contextlib.contextmanager
def byte_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` bytes; the context's value advances it by a number of bytes."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)


def export_bytes(total: int) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    """The bar of an export that writes ``total`` bytes."""
    return byte_progress("Exporting", total)


@contextlib.contextmanager
def step_progress(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar over ``total`` steps; the context's value advances it by one, and shows what was done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(label, total=total, done="")
        yield lambda done: progress.update(task, advance=1, done=done)
