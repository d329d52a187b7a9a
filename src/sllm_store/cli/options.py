"""Options that several commands take, and the types of their values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sllm_store.cli.edge import VERBOSE
from sllm_store.config import ADDRESS_VARIABLE, STORAGE_VARIABLE
from sllm_store.errors import InvalidRequestError, StoreError
from sllm_store.tiers.fan_in import parse_fan_in
from sllm_store.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem

_Command = TypeVar("_Command", bound="Callable[..., Any]")

DISK_SIZE_VARIABLE = "SLLM_STORE_DISK_SIZE"
OTHER_BACKENDS = ("vllm", "sglang")


class Size(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes: '4GB', '32mb', '1.5 GiB' or a plain number."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Return the bytes; fail saying what a size looks like."""
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class FanIn(click.ParamType):  # type: ignore[type-arg]
    """GPUs by number, or all of them."""

    name = "gpus"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | None:
        """Return the numbers, None for all; fail saying what a list looks like."""
        try:
            return parse_fan_in(value)
        except InvalidRequestError as error:
            self.fail(str(error), param, ctx)


class UserPath(click.ParamType):  # type: ignore[type-arg]
    """A path in which ~ is the home directory."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path."""
        try:
            return Path(value).expanduser()
        except RuntimeError as error:
            self.fail(str(error), param, ctx)


class ReadMode(click.Choice):  # type: ignore[type-arg]
    """How a store reads. Lets cuFile pass, for StoreConfig to say why it is no way of it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the mode."""
        return value if value == "cufile" else super().convert(value, param, ctx)


class Backend(click.ParamType):  # type: ignore[type-arg]
    """What a checkpoint is saved or loaded for."""

    name = "transformers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | None:
        """Return the backend; fail for one that this distribution does not have."""
        if value in OTHER_BACKENDS:
            self.fail(
                f"{value!r} is planned, and no part of this release; use 'transformers'",
                param,
                ctx,
            )
        if value != self.name:
            self.fail(f"{value!r} is not a backend; use 'transformers'", param, ctx)
        return self.name


class CheckpointName(click.ParamType):  # type: ignore[type-arg]
    """The name of a checkpoint under the storage path, or a path to one."""

    name = "name"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the checkpoints under the storage path: the running store's, as commands do."""
        from click.shell_completion import CompletionItem

        from sllm_store.checkpoint.reader import list_checkpoints
        from sllm_store.cli.connection import if_running
        from sllm_store.cli.finding import storage_root

        try:
            with if_running(ctx.params.get("address")) as client:
                root = storage_root(client, ctx.params.get("storage_path"))
        except StoreError:
            return []  # Nobody reads errors here.
        if not root.is_dir():
            return []
        return [
            CompletionItem(name) for name in list_checkpoints(root) if name.startswith(incomplete)
        ]


def verbose_option(command: _Command) -> _Command:
    """Add --verbose: a traceback with every error."""
    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_remember_verbose,
        help="Show the traceback of an error.",
    )(command)


def json_option(command: _Command) -> _Command:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(
        command
    )


def address_option(command: _Command) -> _Command:
    """Add --address: which store to talk to."""
    return click.option(
        "--address",
        envvar=ADDRESS_VARIABLE,
        show_envvar=True,
        metavar="ADDRESS",
        help="The store to talk to: unix:/path or host:port.  [default: your own store's socket]",
    )(command)


def storage_path_option(command: _Command) -> _Command:
    """Add --storage-path, where None means: ask the store, else the default."""
    return click.option(
        "--storage-path",
        type=UserPath(),
        envvar=STORAGE_VARIABLE,
        show_envvar=True,
        help="Where the checkpoints are.  [default: the running store's, else ~/models]",
    )(command)


def disk_size_option(command: _Command) -> _Command:
    """Add --disk-size: how much the storage path may hold."""
    return click.option(
        "--disk-size",
        "disk_bytes",
        type=Size(),
        envvar=DISK_SIZE_VARIABLE,
        show_envvar=True,
        help="How much the storage path may hold; `start` warns above it, `save` refuses to "
        "exceed it.  [default: no limit]",
    )(command)


def name_argument(command: _Command) -> _Command:
    """Add NAME."""
    return click.argument("name", type=CheckpointName(), metavar="NAME")(command)


def _remember_verbose(ctx: click.Context, param: click.Parameter, value: object) -> None:
    del param
    if value:
        ctx.meta[VERBOSE] = True
