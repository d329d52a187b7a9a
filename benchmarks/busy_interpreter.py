"""How much slower is a load while another thread of the process computes in Python?

One process loads by turns with a thread that counts and without, through the store from its host
pool and by itself from the page cache. A thread that computes holds the interpreter lock whenever
the load does not: what the load does in Python, and every time that it waits and wakes, costs more.
Each load is timed from the call to synchronised tensors, and its bytes are checked once.

    python -m benchmarks.busy_interpreter --work DIR --out FILE.json [--shapes llama-8b,many]
        [--runs 5] [--pool 20GB]
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import page_cache
from benchmarks.checksums import differing
from benchmarks.load_time import make
from benchmarks.result import Result
from benchmarks.store import BenchStore
from benchmarks.timed_load import SETTLE_S, synchronize
from sllm_store.interpreter import short_turns
from sllm_store.torch import load_dict
from sllm_store.torch.route import IN_PROCESS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.load_time import Made

WAYS = {"ours, store": "host pool", "ours, in-process": "page cache"}


@contextmanager
def counting(*, on: bool) -> Iterator[None]:
    """Have a thread that does nothing but compute in Python, or none."""
    stop = threading.Event()

    def count() -> None:
        number = 0
        while not stop.is_set():
            for _ in range(1000):
                number += 1

    thread = threading.Thread(target=count)
    if on:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if on:
            thread.join()


def timed(made: Made, store: str, device: str, *, busy: bool) -> float:
    """Return the seconds of one load."""
    if device != "cpu":
        time.sleep(SETTLE_S)
    with counting(on=busy):
        started_s = time.perf_counter()
        tensors = load_dict(made.directory, device, store=store)
        with short_turns():  # The load's own are over: this would wait 5 ms for the lock.
            synchronize(device)
        taken_s = time.perf_counter() - started_s
    del tensors
    return taken_s


def measure(made: Made, address: str, device: str, *, runs: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each way to load one checkpoint."""
    expected = json.loads(made.sums.read_text())
    page_cache.fill(made.directory)
    for loader, state in WAYS.items():
        store = address if state == "host pool" else IN_PROCESS
        wrong = differing(load_dict(made.directory, device, store=store), expected)
        if wrong:
            raise SystemExit(f"{made.kind}, {loader}: wrong bytes in {wrong[:3]}")
        # By turns, so that what drifts drifts for both.
        pairs = [
            [timed(made, store, device, busy=busy) for busy in (False, True)] for _ in range(runs)
        ]
        quiet, busy = ([pair[number] for pair in pairs] for number in (0, 1))
        yield {
            "checkpoint": made.kind,
            "loader": loader,
            "state": state,
            "seconds": quiet,
            "busy_seconds": busy,
            "slowdown": statistics.median(busy) / statistics.median(quiet) - 1,
        }


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", default="llama-8b,many")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pool", default="20GB")
    parser.add_argument("--small", action="store_true", help="checkpoints of a few megabytes")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", default="")
    return parser.parse_args()


def main() -> None:
    """Make the checkpoints, load each both ways, write the JSON."""
    args = parse_arguments()
    question = (__doc__ or "").splitlines()[0]
    result = Result(question, out=args.out, device=args.device, commit=args.commit)
    checkpoints: dict[str, Any] = {}
    torch.zeros(1, device=args.device)
    made = [make(kind, args) for kind in args.shapes.split(",")]
    with BenchStore(args.work / "models", args.pool) as store:
        for one in made:
            checkpoints[one.kind] = one.facts()
            result.describe(checkpoints=checkpoints)
            for row in measure(one, store.address, args.device, runs=args.runs):
                result.add(row)
                quiet_ms, busy_ms = (
                    1000 * statistics.median(row[name]) for name in ("seconds", "busy_seconds")
                )
                print(
                    f"{row['checkpoint']:10} {row['loader']:18} {quiet_ms:8.1f} ms, "
                    f"with a busy thread {busy_ms:8.1f} ms: {row['slowdown']:+.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
