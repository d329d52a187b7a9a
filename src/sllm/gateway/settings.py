"""Settings: everything about a server that is chosen before it starts, checked once."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm.core.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

KEEP_ALIVE_S = 300.0
PARALLEL_MAX = 512  # A pass has room for a token of each.
_DEVICE = re.compile(r"auto|cpu|cuda(?::[0-9]{1,3})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a server is started with.

    token: what clients have to bear; needed for a host that others can reach. keep_alive_s: how
    long a model stays loaded after a request, negative for ever. max_loaded: models at a time.
    parallel: requests that a model answers at a time; queue: how many more may wait.
    context_tokens and the budgets of bytes: None lets the runtime plan. speculate: whether to guess
    tokens and check them; draft: a small model that guesses, of the same tokens as every model that
    is served. preload: models to load at
    the start. origins: web pages of other hosts that may use the server; a * in one stands for
    anything. grace_s: how long running answers may take at the end.
    """

    model_root: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    keep_alive_s: float = KEEP_ALIVE_S
    max_loaded: int = 1
    parallel: int = 8
    queue: int = 512
    context_tokens: int | None = None
    device: str = "auto"
    device_budget_bytes: int | None = None
    host_budget_bytes: int | None = None
    draft: Path | None = None
    speculate: bool = True
    preload: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    grace_s: float = 5.0

    def __post_init__(self) -> None:
        """Raise SettingsError for what cannot be served, or not safely."""
        ranges = {
            "port": (self.port, 0, 65535),
            "max_loaded": (self.max_loaded, 1, math.inf),
            "parallel": (self.parallel, 1, PARALLEL_MAX),
            "queue": (self.queue, 0, math.inf),
            "context_tokens": (self.context_tokens, 2, math.inf),
            "device_budget_bytes": (self.device_budget_bytes, 1, math.inf),
            "host_budget_bytes": (self.host_budget_bytes, 1, math.inf),
            "grace_s": (self.grace_s, 0, math.inf),
        }
        for name, (value, least, most) in ranges.items():
            if value is not None and not least <= value <= most:  # False for nan, too.
                limit = f"at least {least}" if most == math.inf else f"between {least} and {most}"
                raise SettingsError(f"{name} is {value}, and has to be {limit}")
        if not _DEVICE.fullmatch(self.device):
            raise SettingsError(
                f"device is {self.device!r}: use auto, cpu, cuda, or cuda:1 and so on"
            )
        if self.draft is not None and not self.speculate:
            raise SettingsError("draft names a model that guesses, and speculate is off")
        if self.keep_alive_s != self.keep_alive_s:
            raise SettingsError("keep_alive_s is not a number")
        if self.token is not None and not is_token(self.token):
            raise SettingsError(
                "the token is empty or not plain ASCII, and no HTTP header can carry it: set "
                "GDSLLM_API_TOKEN to letters and digits"
            )
        if len(self.preload) > self.max_loaded:
            raise SettingsError(
                f"preload names {len(self.preload)} models, but max_loaded is "
                f"{self.max_loaded}; raise it, or name fewer"
            )
        if self.token is None and not self.is_loopback:
            raise SettingsError(
                f"{self.host} can be reached from other machines, and no token is set: set "
                "GDSLLM_API_TOKEN, or serve on 127.0.0.1"
            )

    @property
    def is_loopback(self) -> bool:
        """Return whether only this machine can reach the server."""
        return is_loopback(self.host)

    @property
    def origin_pattern(self) -> str:
        """Return an expression that matches the origins that are allowed, and nothing without."""
        patterns = [".*".join(map(re.escape, origin.split("*"))) for origin in self.origins]
        return "|".join(patterns) or "(?!)"


def is_token(text: str) -> bool:
    """Return whether a header of HTTP can carry a text as a token."""
    return text.isascii() and text.isprintable() and bool(text.strip())


def is_loopback(host: str) -> bool:
    """Return whether a host name, or an address, can only mean this machine."""
    name = host.strip("[]").lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
