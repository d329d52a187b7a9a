"""Where the store's errors become one red line and an exit code.

0 is success, 1 a failure, 2 wrong usage, 130 an interruption by Ctrl-C. A traceback is shown for
a failure only with --verbose, and always for a bug.
"""

from __future__ import annotations

import sys
import traceback
from typing import IO, Any

import click

from sllm_store.cli import INTERRUPTED
from sllm_store.errors import StoreError

VERBOSE = "sllm_store.verbose"  # In a context's meta.


class Failure(click.ClickException):
    """An error as the terminal shows it."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message as one line, red on a terminal."""
        line = " ".join(self.message.split())
        click.secho(f"error: {line}", fg="red", err=True, file=file)


class EdgeGroup(click.Group):
    """A group of commands whose errors end here."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; translate what it raises."""
        try:
            return super().invoke(ctx)
        except click.Abort:
            self._interrupt(ctx)
        except KeyboardInterrupt:
            self._interrupt(ctx)
        except (StoreError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise  # click ends quietly when nobody reads the output.
            if ctx.meta.get(VERBOSE):
                traceback.print_exception(error, file=sys.stderr)
            raise Failure(str(error)) from error

    @staticmethod
    def _interrupt(ctx: click.Context) -> None:
        click.echo("interrupted", err=True)
        ctx.exit(INTERRUPTED)
