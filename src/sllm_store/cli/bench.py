"""`sllm-store bench`: how long a checkpoint takes to load, by who loads it and from where."""

from __future__ import annotations

import platform
import statistics
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from sllm_store.cli.connection import if_running
from sllm_store.cli.finding import find
from sllm_store.cli.options import (
    CheckpointName,
    address_option,
    json_option,
    storage_path_option,
    verbose_option,
)
from sllm_store.cli.terminal import note, progress, say_facts, say_json, say_table
from sllm_store.errors import DeviceError, InvalidRequestError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sllm_store.checkpoint.model import Checkpoint
    from sllm_store.cli.bench_bounds import Bound, Limits
    from sllm_store.cli.bench_loaders import Loader, Measured
    from sllm_store.cli.finding import Found
    from sllm_store.client import SllmStoreClient
    from sllm_store.disks import Comparison

STATES = ("cold", "warm")
_LIMIT_BYTES = 512 << 20
_LINK_BYTES = 256 << 20


@click.command()
@click.argument("name", type=CheckpointName(), metavar="NAME_OR_PATH")
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Loads per row; the table has their median.",
)
@click.option(
    "--device",
    help="cpu, or a GPU as cuda or cuda:1.  [default: the first GPU, else cpu]",
)
@address_option
@storage_path_option
@json_option
@verbose_option
def bench(
    *,
    name: str,
    runs: int,
    device: str | None,
    address: str | None,
    storage_path: Path | None,
    as_json: bool,
) -> None:
    """Time loads of a checkpoint.

    It is loaded cold and warm, through the store and without it; cold means that neither the page
    cache nor the store has it in memory. Every load's bytes are compared with the file's. What the
    disk, the page cache and the link to the GPU can do is measured in the same run, and told with
    what would help. For loads through the store there is also what it predicted. Where
    the files are safetensors and that package is here, it is timed too. Where cuFile is here, it is
    compared with the way to the GPU through host memory; loads remember which is faster.
    """
    with ExitStack() as stack:
        client = stack.enter_context(if_running(address))
        found = find(name, client, storage_path)
        plan = _plan(found, client, device)
        with _pin_kept(found, client):
            rows = _measure(plan, runs)
        bounds = _bounds(plan, rows)
        comparison = _compare_ways(plan)
    for missing in plan.left_out:
        note(missing)
    if as_json:
        described = _described(found, plan, rows, runs) | {"cufile": _described_ways(comparison)}
        say_json(_with_bounds(described, bounds))
    else:
        _say_rows(found, plan, rows, bounds)
        for advice in bounds.advice:
            note(advice)
        _say_ways(comparison)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What to time. `left_out` says which loaders cannot be timed, and why."""

    checkpoint: Checkpoint
    device: str
    loaders: list[Loader]
    left_out: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """The loads of one loader in one state."""

    loader: str
    state: str
    loads: list[Measured]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bounds:
    """What the links can do, what bounds each row, and what would help."""

    limits: Limits
    by_row: list[Bound | None]
    advice: list[str]


def _plan(found: Found, client: SllmStoreClient | None, device: str | None) -> _Plan:
    from sllm_store.cli.bench_loaders import InProcess, Safetensors, Store

    checkpoint = found.open()
    where = _parse_device(device)
    loaders: list[Loader] = []
    left_out: list[str] = []
    if found.served is not None and client is not None:
        loaders.append(Store(client, found.served.name, where))
    elif client is None:
        left_out.append("no store is running, so it is not timed: `sllm-store start`")
    else:
        left_out.append(f"the store at {client.address} does not serve {found.path}")
    loaders.append(InProcess(checkpoint.path, where))
    if checkpoint.format != "safetensors":
        left_out.append(f"safetensors cannot load {checkpoint.format} files")
    elif find_spec("safetensors") is None or find_spec("torch") is None:
        left_out.append("safetensors or torch is not installed: pip install safetensors torch")
    else:
        loaders.append(Safetensors(checkpoint, where))
    return _Plan(checkpoint=checkpoint, device=where, loaders=loaders, left_out=left_out)


def _parse_device(device: str | None) -> str:
    """Return 'cpu' or a GPU's UUID."""
    from sllm_store import native

    count = native.device_count() if native.cuda_available() else 0
    if device == "cpu" or (device is None and not count):
        return "cpu"
    kind, _, number = (device or "cuda:0").partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise InvalidRequestError(f"--device {device}: use cpu, cuda or cuda:1")
    if int(number or 0) >= count:
        reason = native.cuda_unavailable_reason() or f"there are {count} GPUs"
        raise DeviceError(f"--device {device}: there is no such GPU here ({reason}); use cpu")
    return native.device_uuid(int(number or 0))


def _measure(plan: _Plan, runs: int) -> list[_Row]:
    from sllm_store.cli.bench_loaders import Bench

    prepared = Bench(plan.checkpoint)
    rows: list[_Row] = []
    loads_total = len(plan.loaders) * len(STATES) * runs
    with progress("timing loads") as on_progress:
        for loader, state in _cases(plan.loaders):
            loads = []
            for _ in range(runs):
                loads.append(prepared.measure(loader, cold=state == "cold"))
                done = sum(len(row.loads) for row in rows) + len(loads)
                size = plan.checkpoint.size_bytes
                on_progress(done * size, loads_total * size)
            rows.append(_Row(loader=loader.name, state=state, loads=loads))
    return rows


def _bounds(plan: _Plan, rows: list[_Row]) -> _Bounds:
    """Measure the links that the loads passed; the page cache has the files after the last row."""
    from sllm_store.checkpoint.dtype import contiguous_bytes
    from sllm_store.cli import bench_bounds, bench_limits
    from sllm_store.tiers.device import device_ordinal

    checkpoint = plan.checkpoint
    to_gpu = plan.device != "cpu"
    paths = [file.path for file in checkpoint.files]
    with progress("measuring links"):
        cached = bench_limits.read_rates(paths, direct=False, bytes_max=_LIMIT_BYTES)
        direct = bench_limits.read_rates(paths, direct=True, bytes_max=_LIMIT_BYTES)
        limits = bench_bounds.Limits(
            disk=bench_limits.best(direct),
            page_cache=bench_limits.best(cached),
            link=bench_limits.link_bytes_per_s(device_ordinal(plan.device), size_bytes=_LINK_BYTES)
            if to_gpu
            else 0.0,
        )
    tensors = checkpoint.all_tensors().values()
    sizes = [(tensor.dtype, contiguous_bytes(tensor.dtype, tensor.shape)) for tensor in tensors]
    cargo = bench_bounds.Cargo(
        stored_bytes=checkpoint.stored_bytes,
        tensors=len(sizes),
        to_gpu=to_gpu,
        decodes=checkpoint.is_compressed and not to_gpu,
        compressible_part=bench_bounds.compressible_part(
            sizes, compressed=checkpoint.is_compressed
        ),
    )
    timed = [
        bench_bounds.Timed(
            loader=row.loader, state=row.state, tier=row.loads[-1].tier, seconds=_median(row)
        )
        for row in rows
    ]
    by_row = [bench_bounds.find_bound(row, cargo, limits) for row in timed]
    pairs = zip(timed, by_row, strict=True)
    return _Bounds(
        limits=limits, by_row=by_row, advice=list(bench_bounds.advise(pairs, cargo, limits))
    )


def _compare_ways(plan: _Plan) -> Comparison | None:
    """Measure whether cuFile would be the faster way to the GPU; loads remember the outcome."""
    if plan.device == "cpu":
        return None
    from sllm_store.tiers.device import device_ordinal
    from sllm_store.tiers.direct_storage import compare_ways
    from sllm_store.tiers.transfer import open_files

    with progress("comparing cuFile"):
        return compare_ways(open_files(plan.checkpoint), device_ordinal(plan.device))


def _described_ways(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    return {
        "by_host_bytes_per_s": comparison.by_host,
        "by_cufile_bytes_per_s": comparison.by_cufile,
        "preferred": comparison.prefers_cufile,
    }


def _say_ways(comparison: Comparison | None) -> None:
    if comparison is None:
        return
    chosen = "cuFile" if comparison.prefers_cufile else "host memory"
    note(
        f"cold, to the GPU by way of host memory: {comparison.by_host / 1e9:.2f} GB/s, by cuFile: "
        f"{comparison.by_cufile / 1e9:.2f}; loads without a store now go by {chosen}"
    )


@contextmanager
def _pin_kept(found: Found, client: SllmStoreClient | None) -> Iterator[None]:
    """Pin again what was pinned: a cold load needs the store to forget it."""
    try:
        yield
    finally:
        if client is not None and found.served is not None and found.served.pinned:
            client.set_pinned(found.served.name, pinned=True)


def _cases(loaders: list[Loader]) -> Iterator[tuple[Loader, str]]:
    for loader in loaders:
        for state in STATES:
            yield loader, state


def _described(found: Found, plan: _Plan, rows: list[_Row], runs: int) -> dict[str, Any]:
    size_bytes = plan.checkpoint.size_bytes
    return {
        "name": found.name,
        "path": str(found.path),
        "format": plan.checkpoint.format,
        "size_bytes": size_bytes,
        "device": plan.device,
        "kernel": platform.release(),
        "runs": runs,
        "left_out": plan.left_out,
        "rows": [
            {
                "loader": row.loader,
                "state": row.state,
                "tier": row.loads[-1].tier,
                "seconds": [load.load_s for load in row.loads],
                "median_s": _median(row),
                "gb_per_s": _gb_per_s(size_bytes, row),
                "read_through_s": [load.read_through_s for load in row.loads],
                "predicted_s": [load.predicted_s for load in row.loads],
                "verified": True,
                "still_cached_bytes": max(load.still_cached_bytes for load in row.loads),
            }
            for row in rows
        ],
    }


def _with_bounds(described: dict[str, Any], bounds: _Bounds) -> dict[str, Any]:
    """Add to each row what bounds it, and to all what the links can do."""
    for row, bound in zip(described["rows"], bounds.by_row, strict=True):
        row["bound"] = None if bound is None else asdict(bound)
    limits = {f"{name}_bytes_per_s": rate for name, rate in asdict(bounds.limits).items()}
    return described | {"limits": limits, "advice": bounds.advice}


def _say_rows(found: Found, plan: _Plan, rows: list[_Row], bounds: _Bounds) -> None:
    runs = len(rows[0].loads)
    size_bytes = plan.checkpoint.size_bytes
    say_facts(
        [
            ("checkpoint", f"{found.name} ({plan.checkpoint.format}, {format_size(size_bytes)})"),
            ("device", plan.device),
            ("loads", f"{runs} a row, median shown; every load's bytes are as in the files"),
        ]
    )
    say_table(
        (
            "loader",
            "state",
            "from",
            ">load s",
            ">predicted s",
            ">GB/s",
            ">read through s",
            "bound by",
            ">of it",
        ),
        [
            (
                row.loader,
                row.state,
                row.loads[-1].tier,
                f"{_median(row):.4f}",
                _predicted(row),
                f"{_gb_per_s(size_bytes, row):.2f}",
                f"{statistics.median(load.read_through_s for load in row.loads):.4f}",
                "-" if bound is None else bound.name,
                "-" if bound is None else f"{bound.part:.0%}",
            )
            for row, bound in zip(rows, bounds.by_row, strict=True)
        ],
    )
    note("of it: how much of the time the slowest link alone needs for the bytes")
    if plan.device == "cpu":
        note(
            "read through: the load, then a checksum of every byte; a loader that maps files "
            "reads them only then"
        )
    if any(load.still_cached_bytes for row in rows if row.state == "cold" for load in row.loads):
        note("the page cache kept part of the files in spite of it all: cold is not quite cold")


def _median(row: _Row) -> float:
    return statistics.median(load.load_s for load in row.loads)


def _predicted(row: _Row) -> str:
    """Return what the store said before its last load: it learns from each."""
    predicted_s = row.loads[-1].predicted_s
    return "-" if predicted_s is None else f"{predicted_s:.4f}"


def _gb_per_s(size_bytes: int, row: _Row) -> float:
    return size_bytes / _median(row) / 1e9
