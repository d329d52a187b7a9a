"""The reference of `gdsllm`, made from the commands themselves: docs/gdsllm-cli.md.

`python -m sllm.cli.reference > docs/gdsllm-cli.md` writes it; a test says when it is out of date.
"""

from __future__ import annotations

import click

from sllm.cli import PROGRAM
from sllm.cli.root import cli
from sllm_store.cli.reference import describe

_HEAD = """# gdsllm: commands

Made from the commands by `python -m sllm.cli.reference > docs/gdsllm-cli.md`; do not edit.
[The guide](gdsllm.md) says what they are for.

Every command exits with 0 on success, 1 on failure (one line on stderr says what happened and what
to do), 2 on wrong usage and 130 when interrupted. Sizes are numbers with a unit in powers of 1024.
"""


def reference() -> str:
    """Return the page, as Markdown."""
    return describe(cli, program=PROGRAM, head=_HEAD)


if __name__ == "__main__":
    click.echo(reference(), nl=False)
