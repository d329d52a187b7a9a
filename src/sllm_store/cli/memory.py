"""`sllm-store pin`, `unpin`, `unload` and `clear`: what stays in the store's memory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from sllm_store.cli.connection import connected
from sllm_store.cli.finding import served_name
from sllm_store.cli.options import address_option, name_argument, verbose_option
from sllm_store.cli.terminal import say
from sllm_store.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

_GPU = re.compile(r"cuda(?::(\d+))?")


def _device_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--device",
        default="cpu",
        show_default=True,
        help="cpu, for the host pool, or a GPU: cuda, cuda:1 or its UUID.",
    )(command)


@click.command()
@name_argument
@address_option
@_device_option
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds that the load may take.",
)
@verbose_option
def pin(*, name: str, address: str | None, device: str, timeout_s: float) -> None:
    """Keep a checkpoint in the store's memory.

    It is loaded if it is not there yet. On a GPU, programs that load it there with shared=True use
    this one copy.
    """
    device_map = {"": _store_device(device)}
    with connected(address) as client:
        model = served_name(name, client)
        client.set_pinned(model, pinned=True, device_map=device_map, timeout_s=timeout_s)
    say(f"{name} is loaded and stays in memory{_where(device)}")


@click.command()
@name_argument
@address_option
@_device_option
@verbose_option
def unpin(*, name: str, address: str | None, device: str) -> None:
    """Let a checkpoint leave memory.

    It does when others need the room; a GPU when nobody uses it, but for what --gpu-pool-size lets
    stay.
    """
    device_map = {"": _store_device(device)}
    with connected(address) as client:
        client.set_pinned(served_name(name, client), pinned=False, device_map=device_map)
    say(f"{name} may leave memory{_where(device)}")


@click.command()
@name_argument
@address_option
@verbose_option
def unload(*, name: str, address: str | None) -> None:
    """Free the memory of a checkpoint, the host's and that of GPUs.

    Its pins end too. Fails while somebody uses it.
    """
    with connected(address) as client:
        model = served_name(name, client)
        client.unload_from_gpu(model)
        client.unload_from_cpu(model)
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


def _store_device(device: str) -> str:
    """Return the store's name of a device: 'cpu', or a GPU's UUID."""
    if device == "cpu":
        return device
    from sllm_store import native
    from sllm_store.tiers.device import device_ordinal, visible_gpus

    named = _GPU.fullmatch(device)
    gpus = visible_gpus()
    if named is None:
        return gpus[device_ordinal(device)]
    index = int(named[1] or 0)
    if index >= len(gpus):
        seen = f"GPUs 0 to {len(gpus) - 1} are" if gpus else "no GPU is"
        reason = native.cuda_unavailable_reason()
        raise InvalidRequestError(
            f"device {device!r}: {seen} visible here{reason and f' ({reason})'}"
        )
    return gpus[index]


def _where(device: str) -> str:
    return "" if device == "cpu" else f" of {device}"
