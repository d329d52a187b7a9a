"""Model: what a name on this machine stands for, and how far a pull has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from pathlib import Path

Message = tuple[str, str]  # A role and what it says.


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What people ask of a model first. `parameter_size` counts parameters."""

    format: str
    family: str
    families: tuple[str, ...]
    parameter_size: int
    quantization: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What a model's maker, here, sets beside the weights; None keeps what they came with."""

    template: str | None = None
    system: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model on this machine.

    name: with its tag. path: the checkpoint directory or the GGUF. digest: of what the name stands
    for, 'sha256:' and 64 digits; copies share it. template: None means the checkpoint's own, which
    is `published_template` (None if it has none). problem: why it cannot be used now, None if it
    can. source: where it came from.
    """

    name: str
    path: Path
    digest: str
    size_bytes: int
    modified_at: datetime
    details: Details
    template: str | None
    system: str | None
    parameters: Mapping[str, Any]
    license: str | None
    messages: tuple[Message, ...]
    info: Mapping[str, Any]
    published_template: str | None
    source: str
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of a pull, in Ollama's words; bytes are known while a file is on its way."""

    status: str
    digest: str | None = None
    total: int | None = None
    completed: int | None = None


if TYPE_CHECKING:
    OnProgress = Callable[[Progress], None]
