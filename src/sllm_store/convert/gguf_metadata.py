"""Typed access to a GGUF's key-values: each getter returns its type, or raises naming the key."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from sllm_store.checkpoint.gguf_header import StringArray
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufMetadata:
    """The key-values of one GGUF file. A key may start with '{arch}', as the GGUF text does."""

    path: Path
    values: Mapping[str, object]

    @property
    def architecture(self) -> str:
        """The model's architecture, which also prefixes its hyperparameters."""
        value = self.values.get("general.architecture")
        if not isinstance(value, str) or not value:
            raise InvalidCheckpointError(
                f"{self.path}: general.architecture is missing, so the file cannot be converted"
            )
        return value

    def key(self, key: str) -> str:
        """Return the key as the file spells it."""
        return key.replace("{arch}", self.architecture) if "{arch}" in key else key

    def has(self, key: str) -> bool:
        """Return whether the file has the key."""
        return self.key(key) in self.values

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string; without a default the key has to be there."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._mistyped(key, value, "a string")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return an integer; a list of equal integers (one per layer) counts as one."""
        value = self._value(key, default)
        if _is_list(value):
            distinct = set(value)
            if len(distinct) != 1:
                raise InvalidCheckpointError(
                    f"{self.path}: {self.key(key)} differs between layers, which the "
                    f"architecture {self.architecture!r} cannot express here"
                )
            value = distinct.pop()
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._mistyped(key, value, "an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a float: the shortest decimal that is the stored float32, such as 1e-05."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._mistyped(key, value, "a number")
        return _shortest(float(value))

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a boolean."""
        value = self._value(key, default)
        if not isinstance(value, bool | int):
            raise self._mistyped(key, value, "a boolean")
        return bool(value)

    def texts(self, key: str) -> list[str]:
        """Return a list of strings."""
        value = self._value(key, None)
        if isinstance(value, StringArray):  # It can hold nothing else, and may be long.
            return list(value)
        if not _is_list(value) or not all(isinstance(item, str) for item in value):
            raise self._mistyped(key, value, "a list of strings")
        return [str(item) for item in value]

    def integers(self, key: str) -> list[int]:
        """Return a list of integers."""
        value = self._value(key, None)
        if not _is_list(value) or not all(isinstance(item, int) for item in value):
            raise self._mistyped(key, value, "a list of integers")
        return [item for item in value if isinstance(item, int)]

    def numbers(self, key: str) -> list[float]:
        """Return a list of floats."""
        value = self._value(key, None)
        if not _is_list(value) or not all(isinstance(item, int | float) for item in value):
            raise self._mistyped(key, value, "a list of numbers")
        return [float(item) for item in value if isinstance(item, int | float)]

    def _value(self, key: str, default: object) -> object:
        value = self.values.get(self.key(key), default)
        if value is None:
            raise InvalidCheckpointError(f"{self.path}: the key {self.key(key)} is missing")
        return value

    def _mistyped(self, key: str, value: object, wanted: str) -> InvalidCheckpointError:
        return InvalidCheckpointError(
            f"{self.path}: {self.key(key)} is {_brief(value)}, expected {wanted}"
        )


def without_long_lists(values: Mapping[str, object], *, items_max: int = 64) -> dict[str, object]:
    """Return the key-values that a person may want to read: no vocabulary, no merges."""
    return {
        key: value
        for key, value in values.items()
        if not (_is_list(value) and len(value) > items_max)
    }


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shortest(value: float) -> float:
    try:
        packed = struct.pack("f", value)
    except OverflowError:
        return value
    if struct.unpack("f", packed)[0] != value:
        return value
    for digits in range(1, 9):
        candidate = float(f"{value:.{digits}g}")
        if struct.pack("f", candidate) == packed:
            return candidate
    return float(f"{value:.9g}")
