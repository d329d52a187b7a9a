"""How well does the store say beforehand how long a load will take?

It serves some loads of each kind first, from which it learns, and then `--loads` more in an order
of their own: before each the store is asked, then the load is timed in this process, from the call
to its return. Bytes come from the disk, the page cache, half of each, or the store's memory, which
is checked before every load. The loads that it learns from are kept beside the others, the first of
each kind among them. `scatter` is by how much loads of one kind differ from their median, which is
known in the end alone: where that is large, the machine is what cannot be told. What it remembers
of earlier runs counts, as `samples` tells; with XDG_CACHE_HOME it starts anew.

    python -m benchmarks.estimates --work DIR --out FILE.json [--shapes few,many] [--loads 50]
        [--pool 10GB] [--seed 1] [--small]
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import page_cache
from benchmarks.load_time import make
from benchmarks.result import Result
from benchmarks.store import BenchStore
from benchmarks.timed_load import CACHED_PARTS, settle
from sllm_store.client import SllmStoreClient
from sllm_store.torch.devices import store_device

if TYPE_CHECKING:
    from sllm_store.answers import LoadEstimate

STATES = ("cold disk", "mixed", "page cache", "host pool")
FROM_DISK = ("cold disk", "mixed")
LEARNED_FROM = 3
SETTLE_S = 0.5  # The driver scrubs 4 GB that were freed in less.


def prepare(client: SllmStoreClient, directory: Path, state: str, device: str) -> None:
    """Bring a checkpoint into a state, and let the driver scrub what the last load freed."""
    name = directory.name
    if state == "host pool":
        client.set_pinned(name, pinned=True)
        client.set_pinned(name, pinned=False)
    else:
        client.unload_from_cpu(name)
        if state == "mixed":
            page_cache.halve(directory)
        elif state == "page cache":
            page_cache.fill(directory)
        else:
            page_cache.evict(directory)
    settle(device, SETTLE_S)


def require_state(directory: Path, state: str, estimate: LoadEstimate) -> None:
    """End the process unless the bytes are where the state says."""
    least, most = CACHED_PARTS.get(state, (0.0, 1.0))
    cached = page_cache.resident_part(directory)
    pooled = not estimate.disk_bytes and not estimate.cached_bytes
    if not least <= cached <= most or pooled != (state == "host pool"):
        raise SystemExit(
            f"{state}: the page cache holds {cached:.0%} of {directory}, and the store expects "
            f"{estimate.host_bytes} bytes in its memory, {estimate.cached_bytes} in the page cache "
            f"and {estimate.disk_bytes} on the disk"
        )


def measure(client: SllmStoreClient, directory: Path, state: str, device: str) -> dict[str, Any]:
    """Ask, load, and return a row."""
    prepare(client, directory, state, device)
    device_map = {"": store_device(torch.device(device))}
    estimate = client.estimate_load(directory.name, device_map)
    require_state(directory, state, estimate)
    started_s = time.perf_counter()
    loaded = client.load(directory.name, device_map)
    seconds = time.perf_counter() - started_s
    del loaded
    gc.collect()
    return {
        "checkpoint": directory.name,
        "tier": state,
        "estimate_s": estimate.seconds,
        "seconds": seconds,
        "error": estimate.seconds / seconds - 1,
        "samples": estimate.samples,
        "disk_bytes": estimate.disk_bytes,
        "cached_bytes": estimate.cached_bytes,
    }


def main() -> None:
    """Let the store learn, then compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", default="few,many")
    parser.add_argument("--loads", type=int, default=50)
    parser.add_argument("--pool", default="10GB")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="checkpoints of a few megabytes")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    question = (__doc__ or "").splitlines()[0]
    result = Result(question, out=args.out, device=args.device, commit=args.commit)
    directories = [make(kind, args).directory for kind in args.shapes.split(",")]
    kinds = [(directory, state) for directory in directories for state in STATES]
    random = Random(args.seed)
    with (
        BenchStore(args.work / "models", args.pool) as store,
        SllmStoreClient(store.address) as client,
    ):
        learning = []
        for directory, state in kinds * LEARNED_FROM:
            learning.append(measure(client, directory, state, args.device))
            result.describe(learning=learning)
        for _ in range(args.loads):
            directory, state = random.choice(kinds)
            result.add(measure(client, directory, state, args.device))
    rows = result.rows
    first = _errors(learning[: len(kinds)])
    errors = {state: _errors([row for row in rows if row["tier"] == state]) for state in STATES}
    everything = _errors(rows)
    scatter = _scatter(rows)
    from_memory = _errors([row for row in rows if row["tier"] not in FROM_DISK])
    result.describe(
        learned_from=len(learning),
        error_median=statistics.median(everything),
        error_worst=max(everything),
        error_median_from_memory=statistics.median(from_memory or [0.0]),
        error_worst_from_memory=max(from_memory, default=0.0),
        error_median_first=statistics.median(first),
        scatter_median=statistics.median(scatter),
        scatter_worst=max(scatter),
    )
    for row in (*learning, *rows):
        print(
            f"{row['checkpoint']:10} {row['tier']:11} estimated {row['estimate_s']:8.4f} s, "
            f"took {row['seconds']:8.4f} s, {row['error']:+.1%}"
        )
    for what, found in (("first of each", first), *errors.items(), ("all", everything)):
        if found:
            print(f"{what}: median error {statistics.median(found):.1%}, worst {max(found):.1%}")
    print(f"scatter: median {statistics.median(scatter):.1%}, worst {max(scatter):.1%}")


def _errors(rows: list[dict[str, Any]]) -> list[float]:
    """Return how far off the estimates of loads were, as parts of their time."""
    return [abs(float(row["error"])) for row in rows]


def _scatter(rows: list[dict[str, Any]]) -> list[float]:
    """Return how far off the median of all loads of a kind is of each one's time."""
    kinds: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        kinds.setdefault((row["checkpoint"], row["tier"]), []).append(row["seconds"])
    return [
        abs(statistics.median(taken) / seconds - 1) for taken in kinds.values() for seconds in taken
    ]


if __name__ == "__main__":
    main()
