"""LaunchBook: the launches that were found fastest on this device, kept on disk.

Nothing is measured here, and nothing is read before a kernel first asks. What is remembered holds
for one device, one version of Triton, one kernel, one format and one shape.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import triton

from sllm_store.user_cache import keep_text, user_cache

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sllm.runtime.kernels.launches import ColumnsLaunch, FixedLaunch, GemmLaunch, GemvLaunch

_Launch = TypeVar("_Launch", "ColumnsLaunch", "FixedLaunch", "GemmLaunch", "GemvLaunch")


class LaunchBook:
    """Launches by kernel and shape, in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._launches = _read(path)

    def find(self, kind: type[_Launch], key: str) -> _Launch | None:
        """Return the launch that was remembered; None if there is none, or it is not readable."""
        found = self._launches.get(key)
        try:
            return None if found is None else kind(**found)
        except TypeError:
            return None

    def remember(
        self, key: str, launch: ColumnsLaunch | FixedLaunch | GemmLaunch | GemvLaunch
    ) -> None:
        """Keep a launch, for this process and for later ones."""
        self._launches = {**_read(self._path), key: asdict(launch)}
        keep_text(self._path, json.dumps(self._launches, indent=1, sort_keys=True))


@cache
def book_of(device: torch.device) -> LaunchBook:
    """Return the book of a device's kind."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    file = re.sub(r"[^A-Za-z0-9.]+", "-", f"{name}-triton-{triton.__version__}.json")
    return LaunchBook(user_cache(os.environ) / "launches" / file)


def _read(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Return what a file holds; nothing if it is not there, or damaged: it is only a cache."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, dict)}
