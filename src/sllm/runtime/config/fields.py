"""Typed access to config.json: each getter returns its type, or raises naming file and field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm.core.errors import UnsupportedModelError
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from pathlib import Path

SIZE_MAX = 1 << 32
_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and where it is from. A field that is null counts as absent."""

    values: Mapping[str, object]
    where: Path | str

    def has(self, name: str) -> bool:
        """Return whether the field is there and not null."""
        return self.values.get(name) is not None

    def size(self, name: str, default: int | None = None) -> int:
        """Return a positive integer."""
        value = self._value(name, default)
        if type(value) is not int or not 0 < value <= SIZE_MAX:
            raise self._wrong(name, value, f"an integer from 1 to {SIZE_MAX}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """Return an integer that may be zero."""
        value = self._value(name, default)
        if type(value) is not int or not 0 <= value <= SIZE_MAX:
            raise self._wrong(name, value, f"an integer from 0 to {SIZE_MAX}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a finite number above zero."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, value, "a number")
        if not 0 < value < float("inf"):
            raise self._wrong(name, value, "a number above zero")
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a boolean."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings; empty if the field is absent."""
        value = self._value(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, value, "a list of strings")
        return tuple(value)

    def counts(self, name: str) -> tuple[int, ...]:
        """Return a list of integers; empty if the field is absent."""
        value = self._value(name, [])
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self._wrong(name, value, "a list of integers")
        return tuple(value)

    def nested(self, name: str) -> Fields | None:
        """Return an object's fields; None if the field is absent or empty."""
        value = self._value(name, {})
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return Fields(value, f"{self.where}: {name}") if value else None

    def require(self, name: str, allowed: object) -> None:
        """Raise UnsupportedModelError unless the field is absent or has this value."""
        value = self.values.get(name)
        if value is not None and value != allowed:
            raise UnsupportedModelError(
                f"{self.where}: {name} is {_shown(value)}; the runtime computes only "
                f"{_shown(allowed)}"
            )

    def invalid(self, name: str, problem: str) -> InvalidCheckpointError:
        """Return the error that says what is wrong with a field."""
        return InvalidCheckpointError(f"{self.where}: {name} {problem}")

    def _value(self, name: str, default: object) -> object:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise self.invalid(name, "is missing")
        return default

    def _wrong(self, name: str, value: object, wanted: str) -> InvalidCheckpointError:
        return self.invalid(name, f"is {_shown(value)}, not {wanted}")


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
