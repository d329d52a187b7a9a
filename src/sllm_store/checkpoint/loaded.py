"""What a load returns, whoever did it: memory that owns itself, and where each tensor is in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sllm_store.checkpoint.plan import PlacedTensors


class ArenaMemory(Protocol):
    """One-dimensional bytes that any framework can view, alive until the last view is gone."""

    @property
    def size(self) -> int: ...
    def __dlpack__(self, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a checkpoint is in memory, or will be. `arenas[i]` is None where it would be empty.

    `tensors` index into `arenas`; `directory` has the small files.
    """

    arenas: tuple[ArenaMemory | None, ...]
    devices: tuple[str, ...]
    tensors: PlacedTensors
    aliases: Mapping[str, str]
    directory: Path
    format: str

    def loaded(self, *, tier: str, store: str) -> Loaded:
        """Return the same with its bytes: where they came from, and who moved them."""
        return Loaded(
            arenas=self.arenas,
            devices=self.devices,
            tensors=self.tensors,
            aliases=self.aliases,
            directory=self.directory,
            format=self.format,
            tier=tier,
            store=store,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Placed):
    """A checkpoint in memory, every byte of it.

    `tier` tells where the bytes came from ('device', 'host', 'disk', 'mixed'), `store` who moved
    them (an address, or 'in-process').
    """

    tier: str
    store: str
