"""Does a save take as long as the disk needs for its bytes?

    python -m benchmarks.save_rate --work /disk/directory --out save_rate.json

In turn, so that a disk that drifts does so for both: raw direct writes of so many bytes to a fresh
file, in a few ways, synced; and save_dict of tensors of as many bytes, on the host or a GPU, which
checksums, syncs and publishes them. The target is 90 % of the best raw rate of the run.

Sketch: 8 GB at 3 GB/s is 2.7 s; three raw ways and one save in three rounds take half a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.raw_disk import GIB, KIB, MIB, Case, Sweep
from benchmarks.result import command, find_commit
from sllm_store.disks import disk_memory, disk_of
from sllm_store.torch import save_dict

WAYS = [(1, 16, MIB), (1, 32, 512 * KIB), (1, 4, 4 * MIB)]
TENSOR_BYTES = 128 * MIB


def main() -> None:
    """Measure, and write what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gib", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="where the tensors are: cpu or cuda:0")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    count = max(1, int(args.gib * GIB) // TENSOR_BYTES)
    total = count * TENSOR_BYTES
    tensors = {
        f"layers.{index}.weight": torch.full((TENSOR_BYTES // 2,), index, dtype=torch.bfloat16)
        for index in range(count)
    }
    tensors = {name: tensor.to(args.device) for name, tensor in tensors.items()}
    raw: dict[tuple[int, int, int], list[float]] = {way: [] for way in WAYS}
    ours: list[float] = []
    for _ in range(args.rounds):
        for way, rates in raw.items():
            rates.append(_raw(args.work / "save_rate.bin", way, total))
        ours.append(_save(args.work / "save_rate", tensors, total))
    best = max(statistics.median(rates) for rates in raw.values())
    content: dict[str, Any] = {
        "question": "Does a save take as long as the disk needs for its bytes?",
        "commit": find_commit(),
        "command": command(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "disk": asdict(disk_of(args.work)),
        "bytes": total,
        "device": args.device,
        "raw_gb_per_s": [
            {"threads": threads, "depth": depth, "size_bytes": size, "gb_per_s": rates}
            for (threads, depth, size), rates in raw.items()
        ],
        "save_gb_per_s": ours,
        "share_of_raw": statistics.median(ours) / best,
        "learnt": {
            use: asdict(known)
            for use, known in disk_memory(os.environ).recall(disk_of(args.work)).items()
        },
    }
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


def _raw(path: Path, way: tuple[int, int, int], size_bytes: int) -> float:
    threads, depth, size = way
    try:
        sweep = Sweep(path, size_bytes, size_bytes)
        return sweep.run(Case(write=True, threads=threads, depth=depth, size_bytes=size))
    finally:
        path.unlink(missing_ok=True)


def _save(path: Path, tensors: dict[str, torch.Tensor], size_bytes: int) -> float:
    started_s = time.perf_counter()
    save_dict(tensors, path)
    elapsed_s = time.perf_counter() - started_s
    shutil.rmtree(path)
    return size_bytes / elapsed_s / 1e9


if __name__ == "__main__":
    main()
