"""The root of `gdsllm`: its commands, in the order in which a person meets them."""

from __future__ import annotations

import click

from sllm.cli.bench import bench
from sllm.cli.changes import cp, create, rm
from sllm.cli.edge import EdgeGroup
from sllm.cli.environment import read_own_files
from sllm.cli.listing import list_command, show
from sllm.cli.pull import pull
from sllm.cli.run import run
from sllm.cli.server import ps, serve, stop


@click.group(cls=EdgeGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(
    None,
    "-v",
    "--version",
    package_name="serverless-llm",
    prog_name="gdsllm",
    message="%(prog)s %(version)s",
)
def cli() -> None:
    """Run language models on this machine, also those that are larger than its GPU."""
    read_own_files()


for _command in (run, pull, serve, stop, list_command, ps, show, rm, cp, create, bench):
    cli.add_command(_command)
cli.add_command(list_command, "ls")
