"""How much the storage path holds, and whether another checkpoint still fits its quota."""

from __future__ import annotations

import os
from pathlib import Path

from sllm_store.errors import InvalidRequestError
from sllm_store.units import format_size


def used_bytes(storage_path: Path) -> int:
    """Return the size of all files below a directory; a file with two names counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for parent, _, names in os.walk(storage_path):
        for name in names:
            try:
                status = Path(parent, name).lstat()
            except FileNotFoundError:
                continue  # A save or a removal is at work.
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_size
    return total


def require_room(storage_path: Path, target: Path, size_bytes: int, disk_bytes: int | None) -> None:
    """Raise InvalidRequestError if a checkpoint of this size, at target, exceeds the quota.

    What is at the target now is replaced, so it does not count.
    """
    if disk_bytes is None:
        return
    kept = used_bytes(storage_path) - used_bytes(target)
    if kept + size_bytes > disk_bytes:
        raise InvalidRequestError(
            f"{target} would take {format_size(size_bytes)}, and {storage_path} already holds "
            f"{format_size(kept)} of the {format_size(disk_bytes)} that --disk-size allows: remove "
            "checkpoints with `sllm-store rm`, or raise --disk-size"
        )
