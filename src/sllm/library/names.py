"""ModelName: `smollm2`, `smollm2:135m`, `org/name`, `hf.co/org/name:Q4_K_M`, in any case."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

LATEST = "latest"
CHARACTERS_MAX = 200
_HUBS = ("hf.co/", "huggingface.co/")
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?")
_PARTS_MAX = 2


@dataclass(frozen=True, slots=True)
class ModelName:
    """A checked name. `str(name)` always has a tag; names that differ in case are one name."""

    model: str
    tag: str = LATEST

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Return the name that a person wrote; raise InvalidRequestError if it is none.

        The hub's host and scheme are left out: `https://hf.co/org/name` is `org/name`.
        """
        model, _, tag = _without_hub(text.strip()).partition(":")
        parts = model.split("/")
        right = len(parts) <= _PARTS_MAX and all(_PART.fullmatch(part) for part in parts)
        if not right or len(text) > CHARACTERS_MAX or (tag and not _PART.fullmatch(tag)):
            shown = text if len(text) <= CHARACTERS_MAX else f"{text[:40]}..."
            raise InvalidRequestError(
                f"{shown!r} is not the name of a model: write name, name:tag or organisation/name, "
                f"of letters, digits and '_', '-', '.', at most {CHARACTERS_MAX} in all"
            )
        return cls(model, tag or LATEST)

    def __str__(self) -> str:
        return f"{self.model}:{self.tag}"

    @property
    def key(self) -> str:
        """Return what is equal for equal names, and is the name of a file."""
        return f"{self.model.replace('/', '+')}@{self.tag}".lower()

    @property
    def short(self) -> str:
        """Return the last part of the model: what remains of `org/name` when people are lazy."""
        return self.model.rpartition("/")[2]


def nearest(name: ModelName, known: Iterable[ModelName], *, most: int = 3) -> list[str]:
    """Return the names that a person may have meant, the most likely first."""
    import difflib

    names = {_bare(one): str(one) for one in known}
    same = [text for text in names if text.partition(":")[0] == name.model.lower()]
    close = difflib.get_close_matches(_bare(name), names, n=most, cutoff=0.6)
    return [names[text] for text in dict.fromkeys([*same, *close])][:most]


def _bare(name: ModelName) -> str:
    return str(name).lower().removesuffix(f":{LATEST}")


def _without_hub(text: str) -> str:
    bare = re.sub(r"^https?://", "", text, flags=re.IGNORECASE)
    for host in _HUBS:
        if bare.lower().startswith(host):
            return bare[len(host) :]
    return text
