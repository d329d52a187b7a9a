"""Which disk holds a path, and what transfers learnt about it, remembered between processes.

How many requests of what size a disk wants in flight cannot be read off it: it is learnt while
bytes flow (native.Tuner) and kept in one small file a disk under the user's cache directory. The
file is a hint: one that is missing, damaged or of another version is as good as none, and of
processes that write at once the last one wins.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm_store import native
from sllm_store.user_cache import keep_text, user_cache

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSION = 1
RECORD_BYTES_MAX = 1 << 16

_SYSFS = Path("/sys/dev/block")
_MIB = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What holds files: a block device, or a file system without one of its own.

    `kind` is 'virtual' (one queue behind a hypervisor), 'flash', 'spinning', 'array' (several disks
    as one) or 'unknown' (network and overlay file systems).
    """

    id: str
    name: str
    kind: str


def disk_of(path: Path, sysfs: Path = _SYSFS) -> Disk:
    """Return the disk that holds an existing path. Raises OSError."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        block = (sysfs / number).resolve(strict=True)
    except OSError:  # No block device: the file system's own id is as stable as it gets.
        return Disk(id=f"fs-{os.statvfs(path).f_fsid:x}", name=f"device {number}", kind="unknown")
    if (block / "partition").exists():
        block = block.parent
    serial = _attribute(block, "serial") or _attribute(block, "wwid")
    size = _attribute(block, "size")
    marks = "".join(letter if letter.isalnum() else "-" for letter in serial)
    name = "-".join(part for part in (block.name, size, marks) if part)
    return Disk(id=f"block-{name}"[:200], name=block.name, kind=_kind(block))


def _kind(block: Path) -> str:
    slaves = block / "slaves"
    if slaves.is_dir() and len(list(slaves.iterdir())) > 1:
        return "array"
    if block.name.startswith(("vd", "xvd", "sd")) and _is_virtual(block):
        return "virtual"
    if _attribute(block, "queue/rotational") == "1":
        return "spinning"
    return "flash"


def _is_virtual(block: Path) -> bool:
    """Virtual disks call themselves spinning or not as their hypervisor pleases."""
    vendor = _attribute(block, "device/vendor").lower()
    return block.name.startswith(("vd", "xvd")) or vendor in {"qemu", "google", "msft", "vmware"}


def _attribute(block: Path, name: str) -> str:
    try:
        return (block / name).read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What is known of one way to use a disk; the fields are those of native.Tuner."""

    best: tuple[int, int, int]
    rate: float = 0.0
    refused: tuple[tuple[int, int, int, float], ...] = ()
    settled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Bytes a second from a disk to a GPU: by way of host memory, and by cuFile."""

    by_host: float
    by_cufile: float

    @property
    def prefers_cufile(self) -> bool:
        """Whether cuFile is faster by more than two measurements of one way differ."""
        return self.by_cufile > 1.05 * self.by_host > 0


# Where a search starts: threads, requests in flight, bytes of one. What suits one disk of the kind.
_STARTS = {
    "virtual": (1, 16, _MIB),
    "flash": (1, 32, _MIB),
    "array": (4, 64, _MIB),
    "spinning": (1, 4, 2 * _MIB),
    "unknown": (2, 32, _MIB),
}
_THREADS_START = (8, 8, 2 * _MIB)  # Without queues, a request takes a thread.
USES = ("queued reads", "reads by threads", "reads by cuFile", "writes")
_BY_THREADS = {"reads by threads", "reads by cuFile"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What one disk's file says."""

    uses: Mapping[str, Learnt] = field(default_factory=dict)
    comparison: Comparison | None = None


class DiskMemory:
    """What was learnt about disks, in a directory. Any thread may call; nothing raises OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._disks: dict[int, Disk] = {}
        self._tuners: dict[tuple[str, str], native.Tuner] = {}
        self._kept: dict[tuple[str, str], int] = {}
        self._recalled: dict[str, tuple[object, _Record]] = {}

    def find(self, path: Path) -> Disk:
        """Return the disk that holds a path, looked at once in this process. Raises OSError."""
        device = path.stat().st_dev
        if device not in self._disks:
            self._disks[device] = disk_of(path)
        return self._disks[device]

    def tuner(self, disk: Disk, use: str) -> native.Tuner:
        """Return this process's tuner of a disk for one of USES, which starts from its record."""
        with self._lock:
            key = disk.id, use
            if key not in self._tuners:
                known = self.recall(disk).get(use)
                self._tuners[key] = _make_tuner(use, known, _start(disk, use))
                self._kept[key] = 0
            return self._tuners[key]

    def keep(self, disk: Disk, use: str) -> None:
        """Write down what the tuner has learnt since it was last kept, if anything."""
        with self._lock:
            key = disk.id, use
            tuner = self._tuners.get(key)
            if tuner is None or tuner.windows == self._kept[key]:
                return
            self._kept[key] = tuner.windows
            learnt = Learnt(
                best=tuner.best,
                rate=tuner.rate,
                refused=tuple(tuner.refused),
                settled=tuner.settled,
            )
            record = self._recall(disk)
            self._write(disk, replace(record, uses={**record.uses, use: learnt}))

    def keep_comparison(self, disk: Disk, comparison: Comparison) -> None:
        """Write down how cuFile compares."""
        with self._lock:
            self._write(disk, replace(self._recall(disk), comparison=comparison))

    def recall(self, disk: Disk) -> Mapping[str, Learnt]:
        """Return what is written down about a disk, by use."""
        return self._recall(disk).uses

    def recall_comparison(self, disk: Disk) -> Comparison | None:
        """Return how cuFile compares on a disk, None where it was not measured."""
        return self._recall(disk).comparison

    def _recall(self, disk: Disk) -> _Record:
        """Return what a disk's file says, which is read again when it is another."""
        try:
            status = self._path(disk).stat()
            seen = status.st_ino, status.st_size, status.st_mtime_ns
            known, record = self._recalled.get(disk.id, (None, _Record()))
            if known != seen:
                record = self._read(disk)
                self._recalled[disk.id] = seen, record
            return record
        except FileNotFoundError:
            return _Record()
        except OSError as error:
            _log.debug("the record of disk %s says nothing: %s", disk.name, error)
            return _Record()

    def _read(self, disk: Disk) -> _Record:
        try:
            with self._path(disk).open("rb") as file:
                text = file.read(RECORD_BYTES_MAX)
            return _parse(json.loads(text))
        except FileNotFoundError:
            return _Record()
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            _log.debug("the record of disk %s says nothing: %s", disk.name, error)
            return _Record()

    def _path(self, disk: Disk) -> Path:
        return self._directory / f"{disk.id}.json"

    def _write(self, disk: Disk, known: _Record) -> None:
        record = {"version": VERSION, "disk": asdict(disk), **asdict(known)}
        try:
            keep_text(self._path(disk), json.dumps(record))
        except OSError as error:
            _log.debug("what was learnt about disk %s is not kept: %s", disk.name, error)


def _start(disk: Disk, use: str) -> tuple[int, int, int]:
    if use in _BY_THREADS:
        return _THREADS_START
    threads, depth, size = _STARTS[disk.kind]
    return (1 if use == "writes" else threads), depth, size  # One thread writes a file.


def _make_tuner(use: str, known: Learnt | None, start: tuple[int, int, int]) -> native.Tuner:
    queued = use not in _BY_THREADS
    if known is not None:
        try:
            return native.Tuner(
                queued=queued, start=known.best, rate=known.rate, refused=known.refused
            )
        except ValueError as error:
            _log.debug("a remembered setting is not one: %s", error)
    return native.Tuner(queued=queued, start=start)


def _parse(record: Any) -> _Record:
    if record["version"] != VERSION:
        raise ValueError(f"version {record['version']}")
    learnt = {}
    for use in USES:
        if use not in record["uses"]:
            continue
        known = record["uses"][use]
        threads, depth, size = (_integer(value) for value in known["best"])
        learnt[use] = Learnt(
            best=(threads, depth, size),
            rate=float(known["rate"]),
            refused=tuple(_refused(entry) for entry in known["refused"]),
            settled=known["settled"] is True,
        )
    return _Record(uses=learnt, comparison=_parse_comparison(record.get("comparison")))


def _parse_comparison(entry: Any) -> Comparison | None:
    if entry is None:
        return None
    return Comparison(by_host=float(entry["by_host"]), by_cufile=float(entry["by_cufile"]))


def _refused(entry: Any) -> tuple[int, int, int, float]:
    threads, depth, size, ratio = entry
    return _integer(threads), _integer(depth), _integer(size), float(ratio)


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise ValueError(f"{value!r} is no count")
    return value


@contextmanager
def learning(memory: DiskMemory, path: Path, use: str) -> Iterator[native.Tuner | None]:
    """Give the tuner for a use of a path's disk, and keep what it has learnt in the end.

    None where it cannot be told which disk that is.
    """
    try:
        disk = memory.find(path)
    except OSError:
        yield None
        return
    try:
        yield memory.tuner(disk, use)
    finally:
        memory.keep(disk, use)


@cache
def read_use(mode: str) -> str:
    """Return which of USES reads from a disk in a read mode are. The kernel is asked once."""
    if mode == "cufile":
        return "reads by cuFile"
    return "queued reads" if native.has_queues(mode) else "reads by threads"


@cache
def memory_in(directory: Path) -> DiskMemory:
    """Return this process's memory of a directory."""
    return DiskMemory(directory)


def disk_memory(environ: Mapping[str, str]) -> DiskMemory:
    """Return the memory in the user's cache directory."""
    return memory_in(user_cache(environ) / "disks")
