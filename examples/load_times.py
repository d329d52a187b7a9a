"""How long the same tensors take to load, by who loads them and from where, verified each time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from rich import box
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import load, load_file

from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.client import SllmStoreClient
from sllm_store.native import File
from sllm_store.torch import load_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from rich.console import Console

RUNS = 3

_Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTime:
    """The fastest of some loads. `cached` is the part that was in memory before a cold one."""

    loader: str
    state: str
    usable_s: float
    read_s: float
    equal: bool
    cached: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What is compared: a checkpoint that the store at `address` serves, and its safetensors copy.

    `name` is the checkpoint's under the store's storage path, `directory` where that is.
    """

    address: str
    name: str
    directory: Path
    safetensors: Path
    device: str

    def run(self, runs: int = RUNS) -> list[LoadTime]:
        """Time each loader, cold and warm; every load is compared with the file's bytes."""
        files = [file.path for file in open_checkpoint(self.directory).files]
        expected = read_plainly(self.safetensors)
        times = []
        with SllmStoreClient(self.address) as client:
            for loader, state, load_tensors, prepare in (
                ("store", "cold", self._load_by_store, lambda: _forget(client, self.name, files)),
                ("store", "warm", self._load_by_store, lambda: 0.0),
                ("safetensors", "cold", self._load_by_safetensors, self._evict_copy),
                ("safetensors", "warm", self._load_by_safetensors, lambda: 0.0),
            ):
                if state == "warm":
                    load_tensors()
                measured = [
                    _measure(load_tensors, prepare, expected, self.device) for _ in range(runs)
                ]
                fastest = min(measured, key=lambda one: one.read_s)
                times.append(
                    LoadTime(
                        loader=loader,
                        state=state,
                        usable_s=fastest.usable_s,
                        read_s=fastest.read_s,
                        equal=all(one.equal for one in measured),
                        cached=max(one.cached for one in measured),
                    )
                )
        return times

    def _load_by_store(self) -> _Tensors:
        return load_dict(self.name, self.device, self.directory.parent, store=self.address)

    def _load_by_safetensors(self) -> _Tensors:
        return load_file(self.safetensors, device=self.device)

    def _evict_copy(self) -> float:
        return evict([self.safetensors])


@dataclass(frozen=True, slots=True)
class _Measured:
    usable_s: float
    read_s: float
    equal: bool
    cached: float


def _measure(
    load_tensors: Callable[[], _Tensors],
    prepare: Callable[[], float],
    expected: Mapping[str, torch.Tensor],
    device: str,
) -> _Measured:
    """Load once, read every byte once, then compare; what was loaded is gone on return."""
    cached = prepare()
    started_s = time.perf_counter()
    tensors = load_tensors()
    synchronise(device)
    usable_s = time.perf_counter() - started_s
    for tensor in tensors.values():
        tensor.sum()
    synchronise(device)
    read_s = time.perf_counter() - started_s
    return _Measured(usable_s, read_s, are_equal(tensors, expected), cached)


def are_equal(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    """Return whether both have the same names, and the same dtype, shape and bytes for each."""
    return tensors.keys() == expected.keys() and all(
        tensor.dtype == expected[name].dtype
        and tensor.shape == expected[name].shape
        and torch.equal(_bytes(tensor), _bytes(expected[name]))
        for name, tensor in tensors.items()
    )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def read_plainly(path: Path) -> _Tensors:
    """Return a safetensors file's tensors by one ordinary read: no mapping, no store."""
    return load(path.read_bytes())


def evict(paths: Iterable[Path]) -> float:
    """Drop files from the page cache; return the part that stayed there."""
    files = [File(str(path)) for path in paths]
    for file in files:
        file.evict()
    total = sum(file.size for file in files)
    return sum(file.resident_bytes(0, file.size) for file in files) / total if total else 0.0


def _forget(client: SllmStoreClient, name: str, files: Iterable[Path]) -> float:
    """Make the store and the page cache forget a checkpoint."""
    client.unload_from_cpu(name)
    return evict(files)


def synchronise(device: str) -> None:
    """Wait until the GPU has done what it was asked to; nothing on the CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def copied_version(path: Path) -> str | None:
    """Return which state of a checkpoint a safetensors copy was made of, None if there is none."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    version: str | None = metadata.get("version")
    return version


def show(times: list[LoadTime], size_bytes: int, device: str, console: Console) -> None:
    """Print the table, and what its words mean."""
    on_gpu = torch.device(device).type == "cuda"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("loader")
    table.add_column("from")
    table.add_column("tensors usable", justify="right")
    table.add_column("every byte read", justify="right")
    table.add_column("GB/s", justify="right")
    table.add_column("bytes verified equal")
    for one in times:
        moved_s = one.usable_s if on_gpu else one.read_s
        table.add_row(
            one.loader,
            one.state if one.cached < 0.01 else f"{one.state} ({one.cached:.0%} cached)",
            f"{one.usable_s * 1000:.1f} ms",
            f"{one.read_s * 1000:.1f} ms",
            f"{size_bytes / moved_s / 1e9:.2f}",
            "[green]yes[/]" if one.equal else "[bold red]NO[/]",
        )
    console.print(table)
    notes = [
        "cold: neither in the store nor in the page cache. warm: in the store's pool, or in the "
        "page cache.",
        "tensors usable: the load has returned, and the tensors are on the GPU."
        if on_gpu
        else "tensors usable: the load has returned. On the CPU both loaders map memory instead of "
        "copying it, so some of its cost is still to come.",
        "every byte read: one sum over each tensor has ended too, which is what any use costs.",
        f"GB/s: {size_bytes / 1e6:.0f} MB by the time until "
        + ("tensors are usable." if on_gpu else "every byte was read.")
        + f" The fastest of {RUNS} loads, with {os.cpu_count()} cores.",
    ]
    for text in notes:
        console.print(text, style="dim", highlight=False)
