"""`sllm-store pin`, `unpin`, `unload` and `clear`: what stays in the store's memory."""

from __future__ import annotations

import click

from sllm_store.cli.connection import connected
from sllm_store.cli.options import address_option, name_argument, verbose_option
from sllm_store.cli.terminal import say


@click.command()
@name_argument
@address_option
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds that the load may take.",
)
@verbose_option
def pin(*, name: str, address: str | None, timeout_s: float) -> None:
    """Keep a checkpoint in the store's memory.

    It is loaded if it is not there yet.
    """
    with connected(address) as client:
        client.set_pinned(name, pinned=True, timeout_s=timeout_s)
    say(f"{name} is loaded and stays in memory")


@click.command()
@name_argument
@address_option
@verbose_option
def unpin(*, name: str, address: str | None) -> None:
    """Let a checkpoint leave memory.

    It does when others need the room.
    """
    with connected(address) as client:
        client.set_pinned(name, pinned=False)
    say(f"{name} may leave memory")


@click.command()
@name_argument
@address_option
@verbose_option
def unload(*, name: str, address: str | None) -> None:
    """Free the memory of a checkpoint.

    Its pin ends too. Fails while somebody uses it.
    """
    with connected(address) as client:
        client.unload_from_cpu(name)
    say(f"{name} is no longer in memory")


@click.command()
@address_option
@verbose_option
def clear(*, address: str | None) -> None:
    """Free all of the store's memory.

    Fails while a checkpoint is in use.
    """
    with connected(address) as client:
        client.clear_mem()
    say("the store's memory is empty")
