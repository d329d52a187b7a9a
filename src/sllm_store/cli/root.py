"""The root of `sllm-store`: its commands, in the order in which a person meets them."""

from __future__ import annotations

import click

from sllm_store.cli.bench import bench
from sllm_store.cli.completion import completion
from sllm_store.cli.doctor import doctor
from sllm_store.cli.edge import EdgeGroup
from sllm_store.cli.lifecycle import status, stop
from sllm_store.cli.listing import list_command, show
from sllm_store.cli.load import load
from sllm_store.cli.memory import clear, pin, unload, unpin
from sllm_store.cli.removal import rm
from sllm_store.cli.save import save
from sllm_store.cli.start import start
from sllm_store.cli.verification import verify


class _InOrder(EdgeGroup):
    """Lists commands as they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names."""
        del ctx
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="serverless-llm", message="%(package)s %(version)s")
def cli() -> None:
    """Save checkpoints of large models, and load them at the speed of the hardware."""


for _command in (
    start,
    stop,
    status,
    list_command,
    show,
    save,
    load,
    rm,
    verify,
    pin,
    unpin,
    unload,
    clear,
    doctor,
    bench,
    completion,
):
    cli.add_command(_command)
