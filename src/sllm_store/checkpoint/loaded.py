"""What a load returns, whoever did it: memory that owns itself, and where each tensor is in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sllm_store.checkpoint.plan import PlacedTensor


class ArenaMemory(Protocol):
    """One-dimensional bytes that any framework can view, alive until the last view is gone."""

    @property
    def size(self) -> int: ...
    def __dlpack__(self, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A checkpoint in memory. `arenas[i]` is None where the arena would be empty.

    `tensors` index into `arenas`; `directory` has the small files; `tier` tells where the bytes
    came from ('device', 'host', 'disk', 'mixed'), `store` who moved them (an address, or
    'in-process').
    """

    arenas: tuple[ArenaMemory | None, ...]
    devices: tuple[str, ...]
    tensors: tuple[PlacedTensor, ...]
    aliases: Mapping[str, str]
    directory: Path
    format: str
    tier: str
    store: str
