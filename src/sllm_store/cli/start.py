"""`sllm-store start`: flags and environment become a StoreConfig, and a store runs with it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sllm_store.cli.disk_quota import used_bytes
from sllm_store.cli.options import FanIn, ReadMode, Size, UserPath, disk_size_option, verbose_option
from sllm_store.cli.terminal import say
from sllm_store.config import (
    ADDRESS_VARIABLE,
    READ_MODES,
    STORAGE_VARIABLE,
    TOKEN_VARIABLE,
    StoreConfig,
    default_address,
    default_socket_path,
)
from sllm_store.errors import InvalidRequestError
from sllm_store.units import format_size

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping

_UNIX = "unix:"
_LOOPBACK = "127.0.0.1"


@click.command()
@click.option(
    "--storage-path",
    type=UserPath(),
    envvar=STORAGE_VARIABLE,
    show_envvar=True,
    default="~/models",
    show_default=True,
    help="Where the checkpoints are; made if missing.",
)
@click.option(
    "--mem-pool-size",
    "pool_bytes",
    type=Size(),
    default="4GB",
    show_default=True,
    help="Size of the host pool, in which models stay loaded.",
)
@click.option(
    "--gpu-pool-size",
    "gpu_pool_bytes",
    type=Size(),
    default="0",
    show_default=True,
    help="How much of each GPU's memory shared models may keep that nobody uses; pinned ones stay.",
)
@click.option(
    "--num-threads",
    "--num-thread",
    "threads",
    type=int,
    default=8,
    show_default=True,
    help="Threads that read.",
)
@click.option(
    "--fan-in",
    type=FanIn(),
    default="",
    metavar="GPUS",
    help="GPUs that lend their links to loads of other GPUs: 'all', or numbers, as in '0,2'.",
)
@click.option(
    "--chunk-size",
    "chunk_bytes",
    type=Size(),
    default="32MB",
    show_default=True,
    help="Unit of the pool and of reading: a multiple of 2 MB.",
)
@disk_size_option
@click.option(
    "--registration-required",
    is_flag=False,
    flag_value="true",
    default="false",
    show_default=True,
    type=bool,
    metavar="[true|false]",
    help="Load only models that were registered; without a value, true.",
)
@click.option(
    "--host", help="Listen on TCP at this address too; one that is not loopback needs a token."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="TCP port; 0 takes a free one. Without --host, on 127.0.0.1.  [default: 8073]",
)
@click.option(
    "--socket",
    "socket_path",
    type=UserPath(),
    help="The Unix socket.  [default: one per user, or $SLLM_STORE_ADDRESS]",
)
@click.option(
    "--token",
    envvar=TOKEN_VARIABLE,
    show_envvar=True,
    help="Secret that clients must send. Other users see command lines: prefer the variable.",
)
@click.option(
    "--read-mode",
    type=ReadMode(READ_MODES),
    default="auto",
    show_default=True,
    help="How files are read; `sllm-store doctor` explains what auto does here.",
)
@click.option("--reflection", is_flag=True, help="Serve gRPC reflection.")
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), help="Serve Prometheus metrics on this port."
)
@click.option(
    "--load-timeout",
    "load_timeout_s",
    type=float,
    default=600.0,
    show_default=True,
    help="Seconds that a load may take.",
)
@click.option(
    "--unload-timeout",
    "unload_timeout_s",
    type=float,
    default=10.0,
    show_default=True,
    help="Seconds that an unload waits for a model's users.",
)
@click.option(
    "--log-format",
    type=click.Choice(("json", "text")),
    default="json",
    show_default=True,
    help="How the log is written to stderr.",
)
@verbose_option
def start(*, log_format: str, **settings: Any) -> None:
    """Run a store until it is told to stop.

    It listens on a Unix socket that only you can open, and on TCP if --host or --port is given.
    SIGTERM, Ctrl-C and `sllm-store stop` end it, once running loads have ended.
    """
    config = _config(settings, os.environ)
    _start_log(log_format)
    if not config.storage_path.exists():
        _make_storage(config.storage_path)
    if config.disk_bytes is not None:
        _warn_of_quota(config.storage_path, config.disk_bytes)
    from sllm_store.server.serve import serve

    serve(config, on_ready=lambda addresses: _say_ready(addresses, config))


def _config(settings: dict[str, Any], environ: Mapping[str, str]) -> StoreConfig:
    """Return the configuration; raise UsageError for settings that cannot work."""
    port = settings.pop("port")
    if port is not None:
        settings |= {"port": port, "host": settings["host"] or _LOOPBACK}
    settings["socket_path"] = (settings["socket_path"] or _default_socket(environ)).absolute()
    try:
        return StoreConfig(**settings)
    except InvalidRequestError as error:
        raise click.UsageError(str(error)) from error


def _default_socket(environ: Mapping[str, str]) -> Path:
    address = environ.get(ADDRESS_VARIABLE, "")
    if address.startswith(_UNIX):
        return Path(address.removeprefix(_UNIX))
    return default_socket_path(environ, uid=os.getuid())


def _make_storage(path: Path) -> None:
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise InvalidRequestError(
            f"cannot make the storage path {path}: {error.strerror}; name another with "
            "--storage-path"
        ) from error
    say(f"made the storage path {path}")


def _start_log(log_format: str) -> None:
    import logging

    from sllm_store.server.structured_log import JsonFormatter

    handler: logging.Handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _warn_of_quota(storage_path: Path, disk_bytes: int) -> None:
    import logging

    used = used_bytes(storage_path)
    if used > disk_bytes:
        logging.getLogger(__name__).warning(
            "%s holds %s, which is more than --disk-size %s: remove some with `sllm-store rm`",
            storage_path,
            format_size(used),
            format_size(disk_bytes),
            extra={"used_bytes": used, "disk_bytes": disk_bytes},
        )


def _say_ready(addresses: list[str], config: StoreConfig) -> None:
    """Print a line per address: where it is, and what a client needs to find it."""
    own = default_address(os.environ, uid=os.getuid())
    for address in addresses:
        if address == own:
            needs = ["clients find it by themselves"]
        else:
            needs = [f"export {ADDRESS_VARIABLE}={shlex.quote(address)}"]
        if config.token:
            needs.append(f"{TOKEN_VARIABLE} must hold its token")
        say(f"ready at {address} ({'; '.join(needs)})")
