"""What an estimator has learned, kept between two lives of a server, a file for each disk.

The file is under the user's cache directory, beside what is remembered of the disk itself
(disks.py). It is a hint: one that is missing, damaged or of another version is as good as none.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from typing import TYPE_CHECKING, Any

from sllm_store.disks import disk_of
from sllm_store.server.lane_fit import WINDOW, Sample
from sllm_store.user_cache import keep_text, user_cache

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

VERSION = 1
RECORD_BYTES_MAX = 1 << 20
LANES_MAX = 256

Lanes = dict[str, tuple[Sample, ...]]

log = logging.getLogger(__name__)


class LaneMemory:
    """The record of one disk's loads. Thread-safe; nothing raises OSError."""

    def __init__(self, path: Path) -> None:
        """Keep it at `path`; its directory is made when there is something to keep."""
        self.path = path
        self._lock = threading.Lock()

    def recall(self) -> Lanes:
        """Return what is written down, nothing if that makes no sense."""
        try:
            with self.path.open("rb") as file:
                return _parse(json.loads(file.read(RECORD_BYTES_MAX)))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            log.debug("the record of loads at %s says nothing: %s", self.path, error)
            return {}

    def keep(self, lanes: Mapping[str, tuple[Sample, ...]]) -> None:
        """Write everything down, whole or not at all."""
        record = {
            "version": VERSION,
            "lanes": {
                lane: [[one.tensors, one.size_bytes, one.seconds] for one in samples]
                for lane, samples in lanes.items()
            },
        }
        try:
            with self._lock:
                keep_text(self.path, json.dumps(record))
        except OSError as error:
            log.debug("what loads taught is not kept: %s", error)


def lane_memory(storage_path: Path, environ: Mapping[str, str]) -> LaneMemory:
    """Return the memory of the disk that holds the storage path. Raises OSError without one."""
    disk = disk_of(storage_path)
    return LaneMemory(user_cache(environ) / "loads" / f"{disk.id}.json")


def _parse(record: Any) -> Lanes:
    if record["version"] != VERSION:
        raise ValueError(f"version {record['version']}")
    lanes = dict(record["lanes"])
    if len(lanes) > LANES_MAX:
        raise ValueError(f"{len(lanes)} lanes")
    return {
        str(lane): tuple(_sample(entry) for entry in samples[-WINDOW:])
        for lane, samples in lanes.items()
    }


def _sample(entry: Any) -> Sample:
    tensors, size_bytes, seconds = entry
    if not 0 < float(seconds) < math.inf or min(tensors, size_bytes) < 0:
        raise ValueError(f"{entry!r} is no load")
    return Sample(int(tensors), int(size_bytes), float(seconds))
