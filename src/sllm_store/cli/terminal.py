"""What goes to the terminal: tables and JSON on stdout; notes and progress bars on stderr."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_PIPE_COLUMNS = 4096  # Nothing is cut short where no terminal has an edge.
_STYLES = {"ok": "green", "note": "cyan", "warn": "yellow", "bad": "red"}


def say(text: str) -> None:
    """Print a line on stdout."""
    _console().print(Text(text), soft_wrap=True)


def note(text: str, *, verdict: str = "note") -> None:
    """Print a line on stderr, beside the output."""
    _console(error=True).print(Text(text, style=_STYLES[verdict]), soft_wrap=True)


def say_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    sys.stdout.write(f"{json.dumps(value, indent=2, default=str, ensure_ascii=False)}\n")


def say_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None
) -> None:
    """Print a table; a column whose name begins with '>' is aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(
            column.removeprefix(">"), justify="right" if right else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(_cell(cell) for cell in row))
    _console().print(table)


def say_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair a line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, _cell(value))
    _console().print(table)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield on_progress(done, total) in bytes, shown as a bar if stderr is a terminal."""
    console = _console(error=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def styled(verdict: str) -> Text:
    """Return a verdict ('ok', 'note', 'warn', 'bad') in its colour."""
    return Text(verdict, style=_STYLES[verdict])


def _cell(value: object) -> Text:
    return value if isinstance(value, Text) else Text(str(value))


def _console(*, error: bool = False) -> Console:
    console = Console(stderr=error, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    return console
