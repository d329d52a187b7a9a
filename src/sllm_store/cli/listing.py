"""`sllm-store list` and `show`: which checkpoints there are, and what is in one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sllm_store.cli.connection import if_running
from sllm_store.cli.finding import find, serves, storage_root
from sllm_store.cli.options import (
    address_option,
    json_option,
    name_argument,
    storage_path_option,
    verbose_option,
)
from sllm_store.cli.terminal import note, say_facts, say_json, say_table
from sllm_store.errors import StoreError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from sllm_store.checkpoint.model import Checkpoint
    from sllm_store.cli.finding import Found
    from sllm_store.client import SllmStoreClient


@click.command("list")
@address_option
@storage_path_option
@json_option
@verbose_option
def list_command(*, address: str | None, storage_path: Path | None, as_json: bool) -> None:
    """List the checkpoints.

    A running store says what of them is in its memory; where none runs, the storage path is read.
    """
    with if_running(address) as client:
        root = storage_root(client, storage_path)
        if client is not None and serves(client, root):
            store = client.address
            models = [asdict(model) for model in client.list_models()]
        else:
            store = None
            models = _read_models(root)
    if as_json:
        say_json({"store": store, "storage_path": str(root), "models": models})
        return
    if store is None:
        note(f"read from {root}, which no running store serves")
    if not models:
        note(f"no checkpoints under {root}: save one with `sllm-store save`")
        return
    say_table(
        ("name", "format", ">size", ">tensors", ">in memory", ">on GPUs", ">leases", ""),
        [_row(model) for model in models],
    )


@click.command()
@name_argument
@address_option
@storage_path_option
@json_option
@verbose_option
def show(*, name: str, address: str | None, storage_path: Path | None, as_json: bool) -> None:
    """Show a checkpoint's tensors and files.

    And where its bytes are now: in the store's pool, in the page cache, on disk. A store that
    serves it also says how long a load would take now.
    """
    with if_running(address) as client:
        found = find(name, client, storage_path)
        checkpoint = found.open()
        estimate = _estimate(found, client)
    described = _describe(found, checkpoint) | {"estimate": estimate}
    if as_json:
        say_json(described)
    else:
        _say_described(described)


def _estimate(found: Found, client: SllmStoreClient | None) -> dict[str, Any] | None:
    """Return how long a load to the store's first GPU, or else to the host, would take now."""
    if client is None or found.served is None:
        return None
    device = next(iter(client.status().devices), "cpu")
    estimate = client.estimate_load(found.served.name, {"": device})
    return {"device": device, **asdict(estimate)}


def _read_models(root: Path) -> list[dict[str, Any]]:
    """Return what a store would list, read by this process."""
    from sllm_store.checkpoint.reader import list_checkpoints, open_checkpoint

    models: list[dict[str, Any]] = []
    for name in sorted(list_checkpoints(root)) if root.is_dir() else ():
        try:
            checkpoint = open_checkpoint(root / name, root=root)
        except StoreError as error:
            models.append({"name": name, "error": str(error)})
            continue
        models.append(
            {
                "name": name,
                "format": checkpoint.format,
                "size_bytes": checkpoint.size_bytes,
                "stored_bytes": checkpoint.stored_bytes,
                "tensors": len(checkpoint.tensors),
                "error": "",
            }
        )
    return models


def _row(model: dict[str, Any]) -> tuple[object, ...]:
    if model["error"]:
        return (model["name"], "", "", "", "", "", "", f"broken: {model['error']}")
    on_gpus = sum(arena["size_bytes"] for arena in model.get("resident", ()))
    pinned_gpus = {arena["device"] for arena in model.get("resident", ()) if arena["pinned"]}
    pins = ["pinned"] if model.get("pinned") else []
    pins += [f"pinned on {len(pinned_gpus)} GPU{'s' * (len(pinned_gpus) > 1)}"] * bool(pinned_gpus)
    return (
        model["name"],
        model["format"],
        format_size(model["size_bytes"]),
        model["tensors"],
        format_size(model["host_bytes"]) if model.get("host_bytes") else "-",
        format_size(on_gpus) if on_gpus else "-",
        model.get("leases") or "-",
        ", ".join([*pins, *_compression(model)]),
    )


def _compression(model: dict[str, Any]) -> list[str]:
    if model["stored_bytes"] == model["size_bytes"]:
        return []
    return [f"compressed to {model['stored_bytes'] / model['size_bytes']:.1%}"]


def _describe(found: Found, checkpoint: Checkpoint) -> dict[str, Any]:
    from sllm_store.checkpoint.dtype import contiguous_bytes

    served = found.served
    files = [
        {"path": str(file.path), "size_bytes": file.size_bytes, "page_cache_bytes": cached}
        for file, cached in zip(checkpoint.files, _cached_bytes(checkpoint), strict=True)
    ]
    return {
        "name": found.name,
        "path": str(found.path),
        "format": checkpoint.format,
        "encoding": checkpoint.encoding,
        "size_bytes": checkpoint.size_bytes,
        "stored_bytes": checkpoint.stored_bytes,
        "tiers": {
            "resident": [asdict(arena) for arena in served.resident] if served else [],
            "host_bytes": served.host_bytes if served else 0,
            "pinned": served.pinned if served else False,
            "leases": served.leases if served else 0,
            "page_cache_bytes": sum(file["page_cache_bytes"] for file in files),
            "disk_bytes": sum(file["size_bytes"] for file in files),
        },
        "files": files,
        "small_files": _small_files(checkpoint),
        "tensors": [
            {
                "name": name,
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "size_bytes": contiguous_bytes(tensor.dtype, tensor.shape),
                "buffer": name in checkpoint.buffers,
            }
            for name, tensor in checkpoint.all_tensors().items()
        ],
        "aliases": dict(checkpoint.aliases),
    }


def _cached_bytes(checkpoint: Checkpoint) -> list[int]:
    from sllm_store.tiers.transfer import open_files

    files = open_files(checkpoint)
    return [file.resident_bytes(0, file.size) if file.size else 0 for file in files]


def _small_files(checkpoint: Checkpoint) -> list[str]:
    if not checkpoint.path.is_dir():
        return []
    data = {file.path.name for file in checkpoint.files}
    return sorted(
        path.name for path in checkpoint.path.iterdir() if path.is_file() and path.name not in data
    )


def _describe_arena(arena: dict[str, Any]) -> str:
    pinned = ", pinned" if arena["pinned"] else ""
    leases = f", {arena['leases']} leases" if arena["leases"] else ""
    return f"{format_size(arena['size_bytes'])} on GPU {arena['device']}{pinned}{leases}"


def _estimated(estimate: dict[str, Any] | None) -> list[tuple[str, str]]:
    if estimate is None:
        return []
    device = "host memory" if estimate["device"] == "cpu" else f"GPU {estimate['device']}"
    samples = estimate["samples"]
    known = f"learned from {samples} like it" if samples else "a guess: none like it was served yet"
    wait = f", {estimate['wait_s']:.3f} of it behind others" if estimate["wait_s"] else ""
    return [("a load now", f"about {estimate['seconds']:.3f} s to {device}{wait} ({known})")]


def _say_described(described: dict[str, Any]) -> None:
    tiers = described["tiers"]
    in_pool = format_size(tiers["host_bytes"])
    if tiers["pinned"]:
        in_pool += ", pinned"
    on_gpus = sum(arena["leases"] for arena in tiers["resident"])
    if tiers["leases"] > on_gpus:
        in_pool += f", {tiers['leases'] - on_gpus} leases"
    say_facts(
        [
            ("name", described["name"]),
            ("path", described["path"]),
            ("format", described["format"]),
            ("encoding", ", ".join([described["encoding"], *_compression(described)])),
            ("size", f"{format_size(described['size_bytes'])} in tensors"),
            *(("in GPU memory", _describe_arena(arena)) for arena in tiers["resident"]),
            ("in the host pool", in_pool),
            ("in the page cache", format_size(tiers["page_cache_bytes"])),
            ("on disk", format_size(tiers["disk_bytes"])),
            *_estimated(described["estimate"]),
            ("small files", ", ".join(described["small_files"]) or "none"),
        ]
    )
    say_table(
        ("file", ">size", ">in the page cache"),
        [
            (file["path"], format_size(file["size_bytes"]), format_size(file["page_cache_bytes"]))
            for file in described["files"]
        ],
    )
    rows = [
        (
            tensor["name"],
            tensor["dtype"],
            " x ".join(map(str, tensor["shape"])) or "scalar",
            format_size(tensor["size_bytes"]),
            "buffer" if tensor["buffer"] else "",
        )
        for tensor in described["tensors"]
    ]
    rows += [
        (alias, "", "", "", f"the same as {name}") for alias, name in described["aliases"].items()
    ]
    say_table(("tensor", "dtype", "shape", ">size", ""), rows)
