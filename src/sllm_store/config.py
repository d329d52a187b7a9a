"""StoreConfig: one frozen record, resolved once from flags and environment."""

from __future__ import annotations

import ipaddress
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from sllm_store.errors import InvalidRequestError
from sllm_store.units import align_up, format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping

ADDRESS_VARIABLE = "SLLM_STORE_ADDRESS"
TOKEN_VARIABLE = "SLLM_STORE_TOKEN"
STORAGE_VARIABLE = "STORAGE_PATH"
READ_MODES = ("auto", "buffered", "direct", "io_uring")

_CHUNK_GRANULE = 2 << 20  # A huge page.
_PORT_DEFAULT = 8073  # Upstream's.
_UNIX = "unix:"
_LOCAL = ".local"
_SERVES = ".serves"
_SOCKET_PATH_BYTES_MAX = 107  # Of the kernel's struct sockaddr_un, without the zero at the end.


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Everything the server needs to know, checked on construction.

    socket_path is the Unix socket, always open to its owner alone. host and port add a TCP
    listener; a host that is not loopback needs a token. Sizes are in bytes; gpu_pool_bytes is per
    GPU. fan_in names the GPUs that lend their links to loads of others; None names all.
    """

    storage_path: Path
    socket_path: Path
    host: str | None = None
    port: int = _PORT_DEFAULT
    token: str | None = None
    pool_bytes: int = 4 << 30
    chunk_bytes: int = 32 << 20
    gpu_pool_bytes: int = 0
    disk_bytes: int | None = None
    threads: int = 8
    fan_in: tuple[int, ...] | None = ()
    read_mode: str = "auto"
    registration_required: bool = False
    reflection: bool = False
    metrics_port: int | None = None
    load_timeout_s: float = 600.0
    unload_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        """Raise InvalidRequestError naming the first setting that cannot work."""
        _require_socket_path(self.socket_path)
        if self.chunk_bytes < _CHUNK_GRANULE or self.chunk_bytes % _CHUNK_GRANULE:
            raise InvalidRequestError(
                f"chunk size {format_size(self.chunk_bytes)}: use a multiple of 2 MB"
            )
        if self.pool_bytes < 2 * self.chunk_bytes:
            raise InvalidRequestError(
                f"pool size {format_size(self.pool_bytes)}: it must hold at least two chunks of "
                f"{format_size(self.chunk_bytes)}; use a larger pool or a smaller chunk size"
            )
        if self.gpu_pool_bytes < 0:
            raise InvalidRequestError(f"GPU pool size {self.gpu_pool_bytes}: it is negative")
        if not 1 <= self.threads <= 64:
            raise InvalidRequestError(f"{self.threads} threads: use 1 to 64")
        if self.read_mode == "cufile":
            raise InvalidRequestError(
                "a store keeps what it reads in host memory, and cuFile reads past it: use another "
                "read mode, or load without a store"
            )
        if self.read_mode not in READ_MODES:
            raise InvalidRequestError(f"read mode {self.read_mode!r}: use one of {READ_MODES}")
        for what, limit_s in (("load", self.load_timeout_s), ("unload", self.unload_timeout_s)):
            if not 0 < limit_s < math.inf:
                raise InvalidRequestError(f"{what} timeout {limit_s} s: it must be positive")
        require_token(self.token or "")
        if self.host is not None and not is_loopback(self.host) and not self.token:
            raise InvalidRequestError(
                f"host {self.host} can be reached from other machines: set {TOKEN_VARIABLE} to a "
                "secret that clients must send, or use 127.0.0.1"
            )

    @property
    def chunks_total(self) -> int:
        """Chunks in the pool: its size rounded up, as upstream rounds it."""
        return align_up(self.pool_bytes, self.chunk_bytes) // self.chunk_bytes


def default_socket_path(environ: Mapping[str, str], *, uid: int) -> Path:
    """Return where the store listens unless told otherwise: one place per user."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    directory = Path(runtime) if runtime else Path("/tmp")
    return directory / f"sllm-store-{uid}" / "store.sock"


def local_socket_path(socket_path: Path) -> Path:
    """Return where the store of this socket speaks to processes of its machine."""
    return socket_path.with_name(f"{socket_path.name}{_LOCAL}")


def serves_link_path(local_socket: Path) -> Path:
    """Return the link whose text is `serves_text` of the store that listens at a local socket."""
    return local_socket.with_name(f"{local_socket.name}{_SERVES}")


def serves_text(process: int, storage_path: str) -> str:
    """Return what a store's process says of itself beside its local socket."""
    return f"{process}:{storage_path}"


def tcp_address(host: str, port: int) -> str:
    """Return the address of a TCP port; colons of IPv6 stand in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def require_token(token: str) -> None:
    """Raise InvalidRequestError for a secret that no header of HTTP can carry unchanged."""
    if not (token.isascii() and token.isprintable() and token == token.strip()):
        raise InvalidRequestError(
            f"the token ({TOKEN_VARIABLE}): use printable ASCII without spaces at its ends"
        )


def rpc_target(address: str) -> str:
    """Return the address as gRPC reads it, for which a path is part of a URI."""
    if not address.startswith(_UNIX):
        return address
    return _UNIX + quote(os.fsencode(address.removeprefix(_UNIX)), safe="/")


def default_address(environ: Mapping[str, str], *, uid: int) -> str:
    """Return the address a client uses unless told otherwise: 'unix:/path' or 'host:port'."""
    return environ.get(ADDRESS_VARIABLE) or f"{_UNIX}{default_socket_path(environ, uid=uid)}"


def default_storage_path(environ: Mapping[str, str]) -> Path:
    """Return where checkpoints are kept unless told otherwise (upstream's rule)."""
    return Path(environ.get(STORAGE_VARIABLE) or "~/models").expanduser()


def size_setting(name: str, text: str) -> int:
    """Return a size setting in bytes; raise InvalidRequestError naming the setting."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise InvalidRequestError(f"{name}: {error}") from error


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _require_socket_path(path: Path) -> None:
    """Raise InvalidRequestError where no socket can be; a second one is made beside it."""
    if not path.name:
        raise InvalidRequestError(f"socket {path}: name a file for it, not a directory")
    longest = _SOCKET_PATH_BYTES_MAX - len(_LOCAL)
    if len(os.fsencode(path)) > longest:
        raise InvalidRequestError(
            f"socket {path}: the system allows paths of {longest} bytes; use a shorter one"
        )
