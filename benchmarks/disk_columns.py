"""What do compression and half a file in the page cache come to, on one disk within minutes?

    python -m benchmarks.disk_columns --work DIR --out FILE.json [--rounds 3] [--small]

Loaders of ours take turns in this process, so that a round takes half a minute: a virtual disk
drifts within minutes. What the disk gives directly is measured in every round. Loads are verified.

Sketch: 3.8 GB at 1.8 GB/s are 2.1 s, compressed 1.4 s, half-cached 1.1 s; a round of eight loads
and as many preparations takes 30 s there, and half of that on a disk twice as fast.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.checksums import differing
from benchmarks.load_time import disk_limit, make, show
from benchmarks.peers import LOADERS
from benchmarks.result import Result, rates
from benchmarks.store import BenchStore
from benchmarks.timed_load import prepare, settle, synchronize
from sllm_store.disks import disk_memory, disk_of

if TYPE_CHECKING:
    from benchmarks.load_time import Made

KIND = "weights-4gb"
SETTLE_S = 0.5  # The driver scrubs 4 GB that were freed in less.
TURNS = (
    ("ours, store", "cold disk"),
    ("ours, store, compressed", "cold disk"),
    ("ours, in-process", "cold disk"),
    ("ours, in-process, compressed", "cold disk"),
    ("ours, in-process", "mixed"),
    ("ours, direct reads", "mixed"),
    ("ours, buffered reads", "mixed"),
    ("ours, store", "host pool"),
    ("ours, store, compressed", "host pool"),
)


class Turns:
    """Loads of one checkpoint, one after another, and what they took."""

    def __init__(self, made: Made, store: BenchStore, device: str) -> None:
        """Bytes are compared with the sums that were taken when the checkpoint was made."""
        self._made = made
        self._store = store
        self._device = device
        self._expected: dict[str, int] = json.loads(made.sums.read_text())

    def seconds(self, loader: str, state: str) -> float:
        """Prepare the state and load; a wrong byte ends the run."""
        directory = self._made.directory_for(loader)
        assert directory is not None
        address = self._store.address if LOADERS[loader].through_store else ""
        if state == "host pool":
            self._store.fill(directory.name)
        else:
            self._store.forget(directory.name)
            prepare(state, directory, address)
        settle(self._device, SETTLE_S)
        started_s = time.perf_counter()
        tensors = LOADERS[loader].load(directory, self._device, address)
        synchronize(self._device)
        taken_s = time.perf_counter() - started_s
        if wrong := differing(tensors, self._expected):
            raise SystemExit(f"{loader}, {state}: wrong bytes in {wrong[:3]}")
        del tensors
        gc.collect()
        return taken_s


def main() -> None:
    """Make the checkpoint, let everyone take turns, write the JSON after every round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pool", default="10GB")
    parser.add_argument("--small", action="store_true", help="a checkpoint of a few megabytes")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    question = (__doc__ or "").splitlines()[0]
    result = Result(question, out=args.out, device=args.device, commit=args.commit)
    made = make(KIND, args, compressed=True)
    result.describe(checkpoints={KIND: made.facts()})
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    with BenchStore(args.work / "models", args.pool) as store:
        turns = Turns(made, store, args.device)
        for number in range(args.rounds):
            if disk := disk_limit(made):
                result.limit(disk_gb_per_s=disk)
            print(f"round {number + 1}, disk {disk:.2f} GB/s", flush=True)
            for loader, state in TURNS:
                if (loader, state) not in rows:
                    rows[loader, state] = {"checkpoint": KIND, "loader": loader, "state": state}
                    rows[loader, state] |= {"seconds": [], "disk_gb_per_s": []}
                    result.add(rows[loader, state])
                row = rows[loader, state]
                row["disk_gb_per_s"].append(disk)
                row["seconds"].append(turns.seconds(loader, state))
                row |= rates(made.size_bytes, row["seconds"])
                rate = made.size_bytes / row["seconds"][-1] / 1e9
                print(f"  {state:10} {loader:30} {rate:6.2f} GB/s", flush=True)
            result.save()
    learnt = disk_memory(os.environ).recall(disk_of(args.work))
    result.describe(learnt={use: asdict(known) for use, known in learnt.items()})
    show(result)


if __name__ == "__main__":
    main()
