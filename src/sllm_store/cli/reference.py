"""The reference of `sllm-store`, made from the commands themselves: docs/cli.md.

`python -m sllm_store.cli.reference > docs/cli.md` writes it; a test says when it is out of date.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import click

from sllm_store.cli import PROGRAM
from sllm_store.cli.root import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = """# Command line

Made from the commands by `python -m sllm_store.cli.reference > docs/cli.md`; do not edit.

Every command exits with 0 on success, 1 on failure (one line on stderr says what happened and what
to do), 2 on wrong usage and 130 when interrupted. Sizes are numbers with a unit in powers of 1024,
in either case: `32MB`, `4gb`, `1.5GiB`.
"""


def reference() -> str:
    """Return the page, as Markdown."""
    return describe(cli, program=PROGRAM, head=_HEAD)


def describe(group: click.Group, *, program: str, head: str) -> str:
    """Return a page about the commands of a program, as Markdown, under a head."""
    root = click.Context(group, info_name=program, **group.context_settings)
    lines = [head, f"## {program}", "", inspect.cleandoc(group.help or ""), ""]
    lines += ["| command | |", "| --- | --- |"]
    names = group.list_commands(root)
    lines += [f"| [`{name}`](#{name}) | {_short(group.commands[name])} |" for name in names]
    for name in names:
        command = group.commands[name]
        lines += ["", *_section(command, click.Context(command, info_name=name, parent=root))]
    return "\n".join(lines) + "\n"


def _section(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## {context.info_name}"
    yield ""
    yield "```"
    yield f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"
    yield "```"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield ""
        if paragraph.startswith("\b\n"):
            yield from ("```", paragraph.removeprefix("\b\n"), "```")
        else:
            yield paragraph
    records = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) is not None
    ]
    yield ""
    yield "| option | |"
    yield "| --- | --- |"
    for names, text in records:
        yield f"| `{_cell(names)}` | {_cell(' '.join(text.split()))} |"


def _short(command: click.Command) -> str:
    return command.get_short_help_str(limit=200)


def _cell(text: str) -> str:
    """Return text without bars, which end a cell on some renderers even in code."""
    return text.replace("|", ", ")


if __name__ == "__main__":
    click.echo(reference(), nl=False)
