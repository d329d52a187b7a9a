"""Which files of a Hugging Face repository a model needs. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from sllm.core.errors import PullError
from sllm.library.names import LATEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SMALL_BYTES_MAX = 64 << 20
# Taken in this order where a name has no tag.
_PREFERRED = ("q4_k_m", "q4_k_s", "q4_0", "q4_1", "q5_k_m", "q6_k", "q8_0", "f16", "bf16")
_QUANT = re.compile(
    r"(?:^|[-._/])(?P<quant>(?:ud-)?i?q\d\w*|bf16|f16|fp16|f32)(?:-\d{5}-of-\d{5})?\.gguf$",
    re.IGNORECASE,
)
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_SMALL = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "USE_POLICY*")
_NOT_SMALL = ("*.safetensors.index.json", "*.bin.index.json", "*.onnx.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a repository. sha256 is known of large files, blob of all."""

    name: str
    size_bytes: int
    blob: str
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The files to fetch, and the checkpoint among them: '.' for the directory."""

    files: tuple[HubFile, ...]
    path: str


def choose_files(repository: str, files: Sequence[HubFile], tag: str) -> Choice:
    """Return what a repository has for a tag; raise PullError saying what it has instead.

    A tag names a quantisation where there are GGUFs. Without one, safetensors win.
    """
    ggufs = [file for file in files if _is_model(file.name)]
    weights = _safetensors(files)
    if weights and (tag == LATEST or not ggufs):
        small = [file for file in files if _is_small(file)]
        return Choice(files=(*small, *weights), path=".")
    if not ggufs:
        raise PullError(
            f"{repository} has neither safetensors nor GGUF files that can be used: choose another "
            "repository of this model"
        )
    chosen = _choose_gguf(repository, ggufs, tag.lower())
    return Choice(files=chosen, path=chosen[0].name)


def _choose_gguf(repository: str, files: Sequence[HubFile], tag: str) -> tuple[HubFile, ...]:
    by_quant: dict[str, list[HubFile]] = {}
    for file in files:
        matched = _QUANT.search(file.name)
        by_quant.setdefault(matched["quant"].lower() if matched else "", []).append(file)
    if tag == LATEST:
        found = next((quant for quant in _PREFERRED if quant in by_quant), None)
        found = next(iter(by_quant)) if found is None and len(by_quant) == 1 else found
    else:
        found = tag if tag in by_quant else None
    if found is None:
        known = ", ".join(sorted(quant.upper() for quant in by_quant if quant))
        raise PullError(
            f"{repository} has no GGUF of {'a usual kind' if tag == LATEST else tag.upper()}: "
            f"pull {repository}:TAG with one of {known or 'no tags at all'}"
        )
    return _one_series(sorted(by_quant[found], key=lambda file: file.name))


def _one_series(files: Sequence[HubFile]) -> tuple[HubFile, ...]:
    """Return the first model among files of one quantisation: whole, or in parts."""
    stem = _PART.sub("", files[0].name)
    if stem == files[0].name:
        return (files[0],)
    return tuple(file for file in files if _PART.sub("", file.name) == stem)


def _safetensors(files: Iterable[HubFile]) -> list[HubFile]:
    found = [file for file in files if file.name.endswith(".safetensors") and "/" not in file.name]
    usual = [file for file in found if file.name.startswith("model")]
    weights = usual or [file for file in found if not file.name.startswith("adapter")]
    index = [file for file in files if file.name == "model.safetensors.index.json"]
    return [*weights, *index] if weights else []


def _is_model(name: str) -> bool:
    return name.lower().endswith(".gguf") and "mmproj" not in name.lower()


def _is_small(file: HubFile) -> bool:
    return (
        "/" not in file.name
        and file.size_bytes <= SMALL_BYTES_MAX
        and any(fnmatch(file.name, pattern) for pattern in _SMALL)
        and not any(fnmatch(file.name, pattern) for pattern in _NOT_SMALL)
    )
