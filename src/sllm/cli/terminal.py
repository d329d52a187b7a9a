"""What goes to the terminal: results on stdout; notes and progress bars on stderr."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

_PIPE_COLUMNS = 4096  # Nothing is cut short where no terminal has an edge.
_AGES = ((60, "second"), (60, "minute"), (24, "hour"), (7, "day"), (4.35, "week"), (12, "month"))
_NS = 1_000_000_000


def say(text: str, *, end: str = "\n") -> None:
    """Write text to stdout at once."""
    click.echo(text, nl=False)
    click.echo(end, nl=False)


def note(text: str, *, end: str = "\n", dim: bool = False) -> None:
    """Write text to stderr, beside the output."""
    click.secho(text, err=True, nl=False, dim=dim)
    click.echo(end, err=True, nl=False)


def is_interactive() -> bool:
    """Return whether somebody can type; the input may be a pipe, or closed."""
    return sys.stdin is not None and sys.stdin.isatty()


def say_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table as Ollama does: headings in capitals, no lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 4, 0, 0), header_style="")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    _console().print(table)


def say_facts(title: str, facts: Mapping[str, object]) -> None:
    """Print a heading, and names with values below it."""
    if not facts:
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(str(value)))
    console = _console()
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()


@contextmanager
def pull_bars() -> Iterator[Callable[[str, int | None, int | None], None]]:
    """Yield on_step(status, total, completed): a bar for each file, a line for each other step."""
    console = _console(error=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def say_once(status: str, total: int | None, completed: int | None) -> None:
            del total, completed
            if status not in seen:
                seen.add(status)
                note(status)

        yield say_once
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, int] = {}

        def show(status: str, total: int | None, completed: int | None) -> None:
            if total is None:
                bars.console.print(Text(status))
                return
            if status not in tasks:
                tasks[status] = int(bars.add_task(status, total=total))
            bars.update(tasks[status], completed=completed or 0)  # type: ignore[arg-type]

        yield show


def format_age(then: datetime, now: datetime) -> str:
    """Return how long ago something was: '2 hours ago'."""
    age = max((now - then).total_seconds(), 0.0)
    for step, unit in _AGES:
        if age < step:
            return _ago(int(age), unit)
        age /= step
    return _ago(int(age), "year")


def format_count(count: int) -> str:
    """Return a number of parameters: '134.5M'."""
    for factor, suffix in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= factor:
            return f"{count / factor:.1f}{suffix}"
    return str(count)


def format_duration(nanoseconds: int) -> str:
    """Return a duration: '1.234s', '56.7ms'."""
    seconds = nanoseconds / _NS
    if seconds >= 60:
        return f"{int(seconds // 60)}m{seconds % 60:.1f}s"
    return f"{seconds:.3f}s" if seconds >= 1 else f"{seconds * 1e3:.1f}ms"


def _ago(count: int, unit: str) -> str:
    if unit == "second" and count < 5:
        return "just now"
    return f"{count} {unit}{'' if count == 1 else 's'} ago"


def _console(*, error: bool = False) -> Console:
    console = Console(stderr=error, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    return console
