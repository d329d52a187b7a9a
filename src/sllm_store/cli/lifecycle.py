"""`sllm-store stop` and `status`: end a running store, or ask it how it is."""

from __future__ import annotations

import os
import select
import signal
import socket
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from sllm_store.cli.connection import connected
from sllm_store.cli.options import address_option, json_option, verbose_option
from sllm_store.cli.terminal import say, say_facts, say_json
from sllm_store.errors import DeadlineError, InvalidRequestError
from sllm_store.local_wire import find_peer
from sllm_store.units import format_size

if TYPE_CHECKING:
    from sllm_store.answers import StoreStatus

_UNIX = "unix:"


@click.command()
@address_option
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Seconds to wait for the store to end.",
)
@verbose_option
def stop(*, address: str | None, timeout_s: float) -> None:
    """Stop a running store of this machine.

    It is reached by its Unix socket. Loads that are running end first.
    """
    with connected(address) as client:
        where = client.address
    pid = _process_behind(where)
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        ended = select.poll()
        ended.register(process, select.POLLIN)
        if not ended.poll(timeout_s * 1000):
            raise DeadlineError(
                f"the store at {where} (process {pid}) did not end within {timeout_s:g} s: it "
                "waits for running loads; wait longer with --timeout, or kill the process"
            )
    finally:
        os.close(process)
    say(f"stopped the store at {where}")


@click.command()
@address_option
@json_option
@verbose_option
def status(*, address: str | None, as_json: bool) -> None:
    """Say what a running store is and how busy."""
    with connected(address) as client:
        where, state = client.address, client.status()
    if as_json:
        say_json({"address": where, **asdict(state)})
    else:
        say_facts(_facts(where, state))


def _process_behind(address: str) -> int:
    """Return the id of the process that listens on a Unix socket, as the kernel knows it.

    What a store says of itself may be its id in another container, and here be somebody else's.
    """
    if not address.startswith(_UNIX):
        raise InvalidRequestError(
            f"{address} does not tell which process of this machine, if any, is behind it: stop "
            "the store by its Unix socket, with --address unix:/path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(address.removeprefix(_UNIX))
        pid = find_peer(connection).pid
    if pid == 0:
        raise InvalidRequestError(
            f"the store at {address} runs in another container: stop it there"
        )
    return pid


def _facts(address: str, state: StoreStatus) -> list[tuple[str, object]]:
    pinned = "pinned for GPUs" if state.pool_pinned else "not pinned: no GPU"
    return [
        ("address", address),
        ("version", state.version),
        ("process", state.pid),
        ("up for", _duration(state.uptime_s)),
        ("storage path", state.storage_path),
        (
            "pool",
            f"{format_size(state.pool_used_bytes)} of {format_size(state.pool_bytes)} in use, in "
            f"chunks of {format_size(state.chunk_size)}, {pinned}",
        ),
        ("clients", state.sessions),
        ("leases", state.leases),
        ("loads running", state.loads_running),
        ("GPUs", ", ".join(_gpu(gpu, state) for gpu in state.devices) or "none"),
    ]


def _gpu(gpu: str, state: StoreStatus) -> str:
    used = state.resident_bytes[gpu]
    return f"{gpu} ({format_size(used)} of models)" if used else gpu


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s"))
    shown = [f"{value} {unit}" for value, unit in parts if value]
    return " ".join(shown[:2]) or "0 s"
