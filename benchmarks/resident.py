"""How long until a process can use a model that the store has in GPU memory already?

Each load is the first of a process of its own with torch imported and the device warm, and is timed
from the call until a kernel has read the last tensor. `ours, shared` maps the store's memory;
`ours, store` makes a copy of it, on the same GPU or on another. Several processes load at once, and
while they hold the tensors the device's free memory says whether there is one copy. Afterwards
every process compares all bytes with the checkpoint's sums.

    python -m benchmarks.resident --work DIR --out FILE.json [--shapes llama-8b,many]
        [--processes 1,2,8] [--runs 5] [--pool 20GB]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.load_time import make
from benchmarks.result import Result, rates
from benchmarks.store import BenchStore
from benchmarks.timed_load import SETTLE_S
from sllm_store.client import SllmStoreClient
from sllm_store.torch.devices import parse_device, store_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.load_time import Made

CLIENT_TIMEOUT_S = 300
SHARED, PRIVATE = "ours, shared", "ours, store"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Who loads: how, how many at once, onto which device."""

    loader: str
    state: str
    device: str
    processes: int


class Client:
    """A process of timed_share."""

    def __init__(self, made: Made, case: Case, store: BenchStore) -> None:
        """Start it and wait until it is ready."""
        command = [sys.executable, "-m", "benchmarks.timed_share"]
        command += ["--checkpoint", str(made.directory), "--sums", str(made.sums)]
        command += ["--device", case.device, "--store", store.address]
        command += ["--shared"] if case.loader == SHARED else []
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.read()

    def read(self) -> str:
        """Return the next line that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise SystemExit("a client ended without its figures")
        return line

    def go(self) -> None:
        """Let it take its next step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Wait for its end, and make one if it does not come."""
        try:
            self._process.communicate(timeout=CLIENT_TIMEOUT_S)
        finally:
            self._process.kill()


def run_once(made: Made, case: Case, store: BenchStore) -> dict[str, Any]:
    """Let the clients of a case load at once; return their seconds and the memory they took."""
    with ExitStack() as stack:
        clients = [Client(made, case, store) for _ in range(case.processes)]
        for client in clients:
            stack.callback(client.end)
        if case.device != "cpu":
            time.sleep(SETTLE_S)
        before = free_bytes(case.device)
        for client in clients:
            client.go()
        told = [json.loads(client.read()) for client in clients]
        taken = before - free_bytes(case.device)
        for client in clients:
            client.go()
        verdicts = {client.read() for client in clients}
    if verdicts != {"good"}:
        raise SystemExit(f"{made.kind}, {case.loader}: {', '.join(sorted(verdicts))}")
    return {
        "seconds": max(one["seconds"] for one in told),
        "load_dict_s": max(one["load_dict_s"] for one in told),
        "tiers": sorted({one["tier"] for one in told}),
        "device_bytes": taken,
    }


def free_bytes(device: str) -> int:
    """Return how much memory a GPU has free; 0 for the CPU, which is not asked."""
    return 0 if device == "cpu" else torch.cuda.mem_get_info(device)[0]


def cases(device: str, processes: Sequence[int]) -> list[Case]:
    """Return what is measured on this machine."""
    found = [
        Case(
            loader=SHARED,
            state="resident" if count == 1 else f"resident, {count} processes",
            device=device,
            processes=count,
        )
        for count in processes
    ]
    found.append(Case(loader=PRIVATE, state="resident", device=device, processes=1))
    if device != "cpu" and torch.cuda.device_count() > 1:
        peer = "cuda:1" if device != "cuda:1" else "cuda:0"
        found.append(Case(loader=PRIVATE, state="resident on a peer", device=peer, processes=1))
    return found


def measure(made: Made, args: argparse.Namespace, store: BenchStore, result: Result) -> None:
    """Keep one checkpoint on the GPU and measure every case."""
    kept_on = {"": store_device(parse_device(args.device))}
    with SllmStoreClient(store.address) as client:
        before = free_bytes(args.device)
        started_s = time.perf_counter()
        client.set_pinned(made.kind, pinned=True, device_map=kept_on)
        facts = {"pin_s": time.perf_counter() - started_s}
        facts["resident_bytes"] = before - free_bytes(args.device)
        for case in cases(args.device, args.processes):
            runs = [run_once(made, case, store) for _ in range(args.runs)]
            seconds = [run["seconds"] for run in runs]
            row = {
                "checkpoint": made.kind,
                "loader": case.loader,
                "state": case.state,
                "processes": case.processes,
                **facts,
                "seconds": seconds,
                "load_dict_s": [run["load_dict_s"] for run in runs],
                "tiers": sorted({tier for run in runs for tier in run["tiers"]}),
                "device_bytes": max(run["device_bytes"] for run in runs),
                **rates(made.size_bytes, seconds),
            }
            result.add(row)
            show(row)
        client.set_pinned(made.kind, pinned=False, device_map=kept_on)


def show(row: dict[str, Any]) -> None:
    """Print a row."""
    median_ms, worst_ms = (1000 * f(row["seconds"]) for f in (statistics.median, max))
    print(
        f"{row['checkpoint']:10} {row['state']:24} {row['loader']:14} median {median_ms:8.2f} ms, "
        f"worst {worst_ms:8.2f} ms, from {'/'.join(row['tiers'])}, "
        f"{row['device_bytes'] / 1e9:6.2f} GB of the device taken",
        flush=True,
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", default="llama-8b,many")
    parser.add_argument("--processes", default="1,2,8")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pool", default="20GB")
    parser.add_argument("--small", action="store_true", help="checkpoints of a few megabytes")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    args.shapes = args.shapes.split(",")
    args.processes = [int(count) for count in args.processes.split(",")]
    return args


def main() -> None:
    """Make the checkpoints, keep each on the GPU, measure, write the JSON."""
    args = parse_arguments()
    question = (__doc__ or "").splitlines()[0]
    result = Result(question, out=args.out, device=args.device, commit=args.commit)
    checkpoints: dict[str, Any] = {}
    made = [make(kind, args) for kind in args.shapes]
    with BenchStore(args.work / "models", args.pool) as store:
        for one in made:
            checkpoints[one.kind] = one.facts()
            result.describe(checkpoints=checkpoints)
            measure(one, args, store, result)


if __name__ == "__main__":
    main()
