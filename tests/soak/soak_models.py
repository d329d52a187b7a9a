"""Five checkpoints, each of another kind, and the checksum of every tensor in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sllm_store.checkpoint.checksum import crc32c
from tests.store_process import random_tensors, weight_tensors, write_checkpoint, write_upstream

if TYPE_CHECKING:
    from pathlib import Path

MB = 1 << 20
MODEL_BYTES = 12 * MB

Sums = dict[str, dict[str, int]]


def write_models(storage: Path) -> Sums:
    """Write the checkpoints; return the CRC-32C of each model's tensors, by name."""
    few = random_tensors(4, MODEL_BYTES // 4, seed=1)
    many = random_tensors(300, MODEL_BYTES // 300, seed=2)
    weights = weight_tensors(6, MODEL_BYTES // 6)
    ours = random_tensors(12, MODEL_BYTES // 12 // 2 * 2, seed=3)
    ours = {name: content[: len(content) // 2 * 2] for name, content in ours.items()}
    write_upstream(storage / "few", few)
    write_upstream(storage / "many", many)
    write_checkpoint(storage / "ours", ours, compress=False)
    write_checkpoint(storage / "weights", weights, compress=False)
    write_checkpoint(storage / "small", weights, compress=True)
    contents = {"few": few, "many": many, "ours": ours, "weights": weights, "small": weights}
    return {
        model: {name: crc32c(content) for name, content in tensors.items()}
        for model, tensors in contents.items()
    }


def write_sums(path: Path, sums: Sums) -> None:
    """Keep the checksums for processes that check them."""
    path.write_text(json.dumps(sums))


def read_sums(path: Path) -> Sums:
    """Return what write_sums kept."""
    sums: Sums = json.loads(path.read_text())
    return sums
