"""Fetch of a GGUF over HTTP what says what it is: a few megabytes, before all of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sllm_store.groups.gguf_beginning import ranges_that_describe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FIRST_BYTES = 4 << 20
BEGINNING_BYTES_MAX = 64 << 20  # Headers with a quarter of a million tokens have 11 MB.
_TIMEOUT_S = 30.0
_PARTIAL_CONTENT = 206


def fetch_beginning(url: str, target: Path, *, size_bytes: int, token: str | None) -> bool:
    """Make a file of the GGUF's size that has its header, and nothing where its weights would be.

    It takes no more room than its header. Returns False where that cannot be had: the header is
    huge, or the server gives no parts of files. Raises InvalidCheckpointError for a header that
    cannot be read, and what huggingface_hub raises.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.touch()
    ranges: list[tuple[int, int]] | None = None
    known = 0
    while ranges is None:
        wanted = min(max(FIRST_BYTES, 4 * known), BEGINNING_BYTES_MAX, size_bytes)
        if wanted <= known or not _fetch(url, target, (known, wanted - known), headers):
            return False
        known = wanted
        ranges = ranges_that_describe(target, size_bytes)
    behind = [(first, size) for first, size in ranges if first + size > known]
    if not all(_fetch(url, target, one, headers) for one in behind):
        return False
    os.truncate(target, size_bytes)
    return True


def _fetch(url: str, target: Path, part: tuple[int, int], known_headers: Mapping[str, str]) -> bool:
    """Write a part (first byte, size) of a file to its place; return whether it was to be had."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    first, size = part
    headers = {
        **known_headers,
        "Range": f"bytes={first}-{first + size - 1}",
        "Accept-Encoding": "identity",
    }
    asked = get_session().stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S
    )
    with asked as response, target.open("r+b") as file:
        hf_raise_for_status(response)
        if first and response.status_code != _PARTIAL_CONTENT:
            return False
        file.seek(first)
        left = size
        for piece in response.iter_bytes():
            file.write(piece[:left])
            left -= len(piece)
            if left <= 0:
                return True
    return False
