"""Where errors become one red line and an exit code.

0 is success, 1 a failure, 2 wrong usage, 130 an interruption by Ctrl-C. A traceback is shown only
for a bug.
"""

from __future__ import annotations

import errno
import os
from typing import IO, Any

import click

from sllm.cli import INTERRUPTED
from sllm.core.errors import ServingError
from sllm_store.errors import StoreError

_ELSEWHERE = "choose another place: --model-root, or GDSLLM_MODEL_ROOT"
_ADVICE = {
    errno.ENOSPC: f"free some space, or {_ELSEWHERE}",
    errno.EDQUOT: f"free some space, or {_ELSEWHERE}",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: "ask its owner for the right to it, or choose another",
}


class Failure(click.ClickException):
    """An error as the terminal shows it."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message as one line, red on a terminal."""
        line = " ".join(self.message.split())
        click.secho(f"error: {line}", fg="red", err=True, file=file)


class EdgeGroup(click.Group):
    """A group of commands, in the order in which they were added, whose errors end here."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names, without second names."""
        del ctx
        return [name for name, command in self.commands.items() if name == command.name]

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; translate what it raises."""
        try:
            return super().invoke(ctx)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads the output.
        except OSError as error:
            raise Failure(_told(error)) from error
        except (ServingError, StoreError) as error:
            raise Failure(str(error)) from error


def _told(error: OSError) -> str:
    """Return what the system refused, and what to do where that is known."""
    if error.errno is None:
        return str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    advice = _ADVICE.get(error.errno)
    # Not all words are the system's: tempfile names the directories that it has tried.
    words = error.strerror or os.strerror(error.errno)
    return f"{where}{words}" + (f"; {advice}" if advice else "")
