"""The process in which one loader is timed: torch imported, the device warm, every load checked.

    python -m benchmarks.timed_load --loader NAME --checkpoint DIR --sums FILE --device DEVICE ...

It prints one line of JSON: the seconds of each load, and what one more load took of memory.
"""

from __future__ import annotations

import argparse
import importlib
import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import page_cache
from benchmarks.checksums import differing
from benchmarks.peers import LOADERS
from sllm_store import native
from sllm_store.client import SllmStoreClient

if TYPE_CHECKING:
    from collections.abc import Callable

# The driver scrubs freed device memory in the background: a load in that time is 12 % slower.
SETTLE_S = 1.5
# Which part of a checkpoint the page cache has to hold before a load is timed.
CACHED_PARTS = {"cold disk": (0.0, 0.02), "mixed": (0.4, 0.6), "page cache": (0.99, 1.0)}
_SAMPLE_S = 0.002


def main() -> None:
    """Time the loads; a wrong byte ends the process with a message and no figures."""
    args = _parse_arguments()
    directory, device = Path(args.checkpoint), args.device
    expected = json.loads(Path(args.sums).read_text())
    loader = LOADERS[args.loader]
    for module in loader.modules:
        importlib.import_module(module)
    torch.zeros(1, device=device)
    synchronize(device)
    _prime_checksums(expected, device)

    def load() -> dict[str, torch.Tensor]:
        return loader.load(directory, device, args.store)

    seconds = []
    for _ in range(args.runs):
        prepare(args.state, directory, args.store)
        settle(device)
        started_s = time.perf_counter()
        tensors = load()
        synchronize(device)
        seconds.append(time.perf_counter() - started_s)
        wrong = differing(tensors, expected)
        if wrong:
            raise SystemExit(f"wrong bytes in {wrong[:3]}")
        del tensors
    told: dict[str, Any] = {"seconds": seconds}
    if args.memory and device != "cpu":
        prepare(args.state, directory, args.store)
        settle(device)
        extra = extra_device_bytes(load, device)
        if extra >= 0:  # A loader that keeps memory from load to load takes it out of that.
            told["extra_device_bytes"] = extra
    print(json.dumps(told))


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def extra_device_bytes(load: Callable[[], dict[str, torch.Tensor]], device: str) -> int:
    """Load once more; return how much device memory it took at most beyond its tensors."""
    free_before = torch.cuda.mem_get_info(device)[0]
    lowest = free_before
    done = threading.Event()

    def sample() -> None:
        nonlocal lowest
        while not done.wait(_SAMPLE_S):
            lowest = min(lowest, torch.cuda.mem_get_info(device)[0])

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        tensors = load()
        synchronize(device)
    finally:
        done.set()
        sampler.join()
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    return free_before - min(lowest, torch.cuda.mem_get_info(device)[0]) - size_bytes


def _prime_checksums(expected: dict[str, int], device: str) -> None:
    """Load the kernels that checksums need, so that they are not loaded after the first load."""
    assert expected
    differing({"": torch.zeros(1 << 20, dtype=torch.bfloat16, device=device)}, {"": 0})


def prepare(state: str, directory: Path, store: str) -> None:
    """Bring the checkpoint into its state; a state that cannot be had ends the process."""
    if state == "cold disk":
        if store:
            with SllmStoreClient(store) as client:
                client.unload_from_cpu(directory.name)
        page_cache.evict(directory)
    elif state == "mixed":
        page_cache.halve(directory)
    elif state == "page cache":
        page_cache.fill(directory)
    elif state == "tmpfs" and native.probe(str(directory))["file_system"] != "tmpfs":
        raise SystemExit(f"{directory} is not in tmpfs")
    least, most = CACHED_PARTS.get(state, (0.0, 1.0))
    cached = page_cache.resident_part(directory)
    if not least <= cached <= most:
        raise SystemExit(f"{state}: the page cache holds {cached:.0%} of {directory}")


def settle(device: str, seconds: float = SETTLE_S) -> None:
    """Give what the last load freed back to the driver, and let it scrub that."""
    if device != "cpu":
        torch.cuda.empty_cache()
        time.sleep(seconds)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loader", choices=LOADERS, required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--sums", required=True)
    parser.add_argument("--state", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--store", default="")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
