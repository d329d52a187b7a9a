"""`sllm-store doctor`: what this machine allows, what the store makes of it, what to change."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sllm_store.cli.options import (
    address_option,
    json_option,
    storage_path_option,
    verbose_option,
)
from sllm_store.cli.terminal import say_json, say_table, styled
from sllm_store.config import default_storage_path
from sllm_store.errors import StoreError
from sllm_store.host_memory import available_bytes
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

_DESCRIPTORS_WANTED = 4096
_POOL_DEFAULT_BYTES = 4 << 30
_FREE_WANTED_BYTES = 10 << 30
_NVIDIA_FS = Path("/proc/driver/nvidia-fs")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: a fact, its verdict ('ok', 'note', 'warn', 'bad'), and what to do about it."""

    topic: str
    fact: str
    verdict: str
    advice: str = ""


@click.command()
@address_option
@storage_path_option
@json_option
@verbose_option
@click.pass_context
def doctor(
    ctx: click.Context, *, address: str | None, storage_path: Path | None, as_json: bool
) -> None:
    """Say what this machine allows.

    Each line is a fact, whether it is good, and what would be better. Exits with 1 if something
    keeps the store from working.
    """
    root = (storage_path or default_storage_path(os.environ)).absolute()
    findings = [
        *_storage(root),
        *_reading(root),
        *_gpus(),
        *_limits(),
        *_memory(),
        _store(address),
        *_packages(),
    ]
    if as_json:
        say_json([asdict(finding) for finding in findings])
    else:
        say_table(
            ("", "", "fact", "what to do"),
            [
                (styled(finding.verdict), finding.topic, finding.fact, finding.advice)
                for finding in findings
            ],
        )
    ctx.exit(1 if any(finding.verdict == "bad" for finding in findings) else 0)


def _storage(root: Path) -> Iterator[Finding]:
    topic = "storage path"
    if not root.exists():
        yield Finding(
            topic=topic,
            fact=f"{root} does not exist",
            verdict="note",
            advice="`sllm-store start` and `save` make it",
        )
    elif not root.is_dir():
        yield Finding(
            topic=topic,
            fact=f"{root} is not a directory",
            verdict="bad",
            advice="name another with --storage-path or $STORAGE_PATH",
        )
    elif not os.access(root, os.R_OK | os.X_OK):
        yield Finding(
            topic=topic,
            fact=f"{root} cannot be read by this user",
            verdict="bad",
            advice="change its owner or mode, or name another with --storage-path",
        )
    else:
        free = shutil.disk_usage(root).free
        scarce = free < _FREE_WANTED_BYTES
        yield Finding(
            topic=topic,
            fact=f"{root}, {format_size(free)} free",
            verdict="warn" if scarce else "ok",
            advice="a model may not fit: free some, or name another path" if scarce else "",
        )


def _reading(root: Path) -> Iterator[Finding]:
    """Explain what `--read-mode auto` does for files at root."""
    from sllm_store.native import probe

    place = next(path for path in (root, *root.parents) if path.is_dir())
    found = probe(str(place))
    yield Finding(
        topic="system", fact=f"Linux {found['kernel']}, {platform.machine()}", verdict="ok"
    )
    yield _direct(place, found)
    ring = found["io_uring"]
    yield Finding(
        topic="io_uring",
        fact="available" if ring else f"not available: {found['io_uring_reason']}",
        verdict="ok" if ring else "note",
        advice=""
        if ring
        else "threads with pread do its work; sysctl kernel.io_uring_disabled "
        "and the container's seccomp profile decide",
    )
    yield _read_mode(found)
    if found["direct_alignment"]:
        yield from _disk(place)
    yield from _cufile(place)
    yield _huge_pages(
        "huge pages",
        used_by="buffers of loads without a store",
        setting=_HUGE_PAGES / "enabled",
        good=("always", "madvise"),
    )
    yield _huge_pages(
        "huge pages (pool)",
        used_by="the store's pool, which is shared memory",
        setting=_HUGE_PAGES / "shmem_enabled",
        good=("always", "within_size", "advise", "force"),
    )


def _disk(place: Path) -> Iterator[Finding]:
    """Say what earlier transfers have learnt about the disk."""
    from sllm_store.disks import disk_memory, disk_of

    disk = disk_of(place)
    learnt = disk_memory(os.environ).recall(disk)
    if not learnt:
        yield Finding(
            topic="disk",
            fact=f"{disk.name} ({disk.kind}): nothing learnt about it yet",
            verdict="note",
            advice="cold loads find out how it is read best, and the next ones start from there",
        )
    for use, known in learnt.items():
        threads, depth, size = known.best
        state = "settled" if known.settled else "still learning"
        fact = (
            f"{disk.name} ({disk.kind}), {use}: {threads} thread{'s' if threads > 1 else ''}, "
            f"{depth} of {format_size(size)} in flight, {format_size(int(known.rate))}/s, {state}"
        )
        yield Finding(topic="disk", fact=fact, verdict="ok")


def _cufile(place: Path) -> Iterator[Finding]:
    """Say what cuFile is good for here; nothing where there is no GPU."""
    from sllm_store import native
    from sllm_store.tiers.direct_storage import recall_comparison

    if not native.cuda_available():
        return
    reason = native.cufile_unavailable_reason()
    comparison = recall_comparison(place)
    if reason:
        yield Finding(
            topic="cuFile",
            fact=f"not available: {reason}",
            verdict="ok",
            advice="none is needed: GPUs are loaded by way of pinned host memory",
        )
        return
    path = "" if _NVIDIA_FS.exists() else " (no nvidia-fs: it may only run in compatibility mode)"
    if comparison is None:
        yield Finding(
            topic="cuFile",
            fact=f"available{path}, not compared yet: auto reads by way of host memory",
            verdict="note",
            advice="`sllm-store bench NAME --device cuda` compares them, with 1 GB or more",
        )
        return
    by_cufile, by_host = (
        f"{format_size(int(rate))}/s" for rate in (comparison.by_cufile, comparison.by_host)
    )
    chosen = "auto takes it" if comparison.prefers_cufile else "auto does without it"
    yield Finding(
        topic="cuFile",
        fact=f"reads to a GPU at {by_cufile}{path}, and by way of host memory it is {by_host}: "
        f"{chosen} in loads without a store",
        verdict="ok",
    )


def _huge_pages(topic: str, *, used_by: str, setting: Path, good: tuple[str, ...]) -> Finding:
    """Say whether the kernel gives huge pages to memory that asks for them."""
    try:
        _, _, rest = setting.read_text().partition("[")
    except OSError as error:
        return Finding(
            topic=topic,
            fact=f"this kernel does not say: {error}",
            verdict="note",
            advice="small pages serve",
        )
    chosen = rest.partition("]")[0]
    wanted = "madvise" if "madvise" in good else "advise"
    return Finding(
        topic=topic,
        fact=f"{chosen}, for {used_by}",
        verdict="ok" if chosen in good else "note",
        advice=""
        if chosen in good
        else f"small pages serve; for huge ones: echo {wanted} > {setting}",
    )


def _direct(place: Path, found: dict[str, Any]) -> Finding:
    alignment = found["direct_alignment"]
    if alignment:
        fact = f"{place} ({found['file_system']}) allows direct reads, aligned to {alignment} bytes"
        return Finding(topic="file system", fact=fact, verdict="ok")
    return Finding(
        topic="file system",
        fact=f"{place} ({found['file_system']}) has no direct reads",
        verdict="note" if found["file_system"] in {"tmpfs", "ramfs"} else "warn",
        advice="cold loads go through the page cache; a local ext4 or xfs disk is faster",
    )


def _read_mode(found: dict[str, Any]) -> Finding:
    asks = "cachestat" if found["cachestat"] else "mincore"
    if not found["direct_alignment"]:
        fact = "auto reads through the page cache, because the file system has no direct reads"
    else:
        way = "io_uring" if found["io_uring"] else "pread threads"
        fact = (
            f"auto reads what the page cache holds ({asks} tells) from there, all else directly "
            f"with {way}"
        )
    return Finding(topic="read mode", fact=fact, verdict="ok")


def _gpus() -> Iterator[Finding]:
    from sllm_store import native

    if not native.cuda_available():
        yield Finding(
            topic="GPU",
            fact=f"CUDA cannot be used: {native.cuda_unavailable_reason()}",
            verdict="note",
            advice="models load into host memory; install the NVIDIA driver to use a GPU",
        )
        return
    for index in range(native.device_count()):
        try:
            free, total = native.device_memory(index)
        except native.CudaError as error:
            yield Finding(
                topic=f"GPU {index}",
                fact=f"{native.device_name(index)} does not answer: {error.args[0]}",
                verdict="bad",
                advice="look at nvidia-smi; hide it with CUDA_VISIBLE_DEVICES",
            )
            continue
        fact = (
            f"{native.device_name(index)}, {format_size(free)} free of {format_size(total)}, "
            f"{native.device_uuid(index)}"
        )
        yield Finding(topic=f"GPU {index}", fact=fact, verdict="ok")


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < _DESCRIPTORS_WANTED
    yield Finding(
        topic="open files",
        fact=f"RLIMIT_NOFILE is {_limit(soft)} of at most {_limit(hard)}",
        verdict="warn" if few else "ok",
        advice=f"ulimit -n {_DESCRIPTORS_WANTED} before many clients or models of many files"
        if few
        else "",
    )
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    bounded = soft != resource.RLIM_INFINITY
    shown = format_size(soft) if bounded else "unlimited"
    yield Finding(
        topic="locked memory",
        fact=f"RLIMIT_MEMLOCK is {shown}",
        verdict="note" if bounded and soft < _POOL_DEFAULT_BYTES else "ok",
        advice="if pinning the pool for a GPU fails: ulimit -l unlimited"
        if bounded and soft < _POOL_DEFAULT_BYTES
        else "",
    )


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _memory() -> Iterator[Finding]:
    available = available_bytes()
    small = available < _POOL_DEFAULT_BYTES
    yield Finding(
        topic="memory",
        fact=f"{format_size(available)} available",
        verdict="warn" if small else "ok",
        advice="start with a smaller --mem-pool-size" if small else "",
    )
    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield Finding(
            topic="shared memory",
            fact="/dev/shm is not there",
            verdict="note",
            advice="the store does not need it (its pool has no file); PyTorch workers do",
        )
        return
    size = shutil.disk_usage(shared).total
    yield Finding(
        topic="shared memory",
        fact=f"/dev/shm has {format_size(size)}; the pool is not in it",
        verdict="ok",
    )


def _store(address: str | None) -> Finding:
    from sllm_store.cli.connection import connected

    try:
        with connected(address) as client:
            state = client.status()
            fact = (
                f"running at {client.address}, version {state.version}, "
                f"{format_size(state.pool_used_bytes)} of {format_size(state.pool_bytes)} in use"
            )
    except StoreError as error:
        return Finding(
            topic="store",
            fact=str(error).partition(": start one")[0],
            verdict="note",
            advice="start one with `sllm-store start`; without it, processes load by themselves",
        )
    return Finding(topic="store", fact=fact, verdict="ok")


def _packages() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    for package, use in (
        ("torch", "to load tensors"),
        ("transformers", "to load models"),
        ("peft", "to load adapters"),
        ("gguf", "to import GGUF files"),
        ("bitsandbytes", "to quantise while loading"),
    ):
        try:
            yield Finding(topic=package, fact=f"version {version(package)}", verdict="ok")
        except PackageNotFoundError:
            yield Finding(
                topic=package,
                fact="not installed",
                verdict="note",
                advice=f"pip install {package} {use}",
            )
