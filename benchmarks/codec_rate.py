"""How fast are 16-bit floats coded and decoded, by the CPU's threads and by the GPU's kernel alone?

Weights of N(0, 0.02) in bfloat16, in memory, cut into segments as a save cuts them. Rates count
bytes before coding. The GPU's rows are calls that decode all of them or some, from device memory to
device memory: launches, waiting and a look at the error flag included, copies over the link not.

    python -m benchmarks.codec_rate --out FILE.json [--size 1GB] [--threads 1,4,16] [--runs 5]
        [--device cuda|cpu]
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.result import Result
from sllm_store import native
from sllm_store.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 20_261_121


class Coded:
    """Weights, and the same coded; every segment has a slot of SEGMENT_BYTES."""

    def __init__(self, size_bytes: int) -> None:
        """Make the weights; nothing is coded yet."""
        count = max(size_bytes // native.SEGMENT_BYTES, 1)
        generator = torch.Generator().manual_seed(SEED)
        # One segment's worth of numbers, turned by another amount for every segment.
        shape = (native.SEGMENT_BYTES // 2,)
        numbers = (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)
        self.raw = torch.stack([numbers.roll(7919 * i) for i in range(count)]).view(torch.uint8)
        self.stored = torch.zeros_like(self.raw)
        self.decoded = torch.zeros_like(self.raw)
        self.sizes: list[int] = []

    def encode(self, threads: int) -> None:
        """Code every segment into its slot."""
        pieces = [
            (raw.data_ptr(), native.SEGMENT_BYTES, stored.data_ptr())
            for raw, stored in zip(self.raw, self.stored, strict=True)
        ]
        self.sizes = native.encode_segments_into(pieces, threads=threads, control=native.Control())
        if 0 in self.sizes:
            raise AssertionError("a segment of weights was not coded")

    def decode(self, pool: ThreadPoolExecutor) -> None:
        """Decode every segment, each in a thread of the pool."""
        jobs = jobs_of(self.stored, self.sizes, self.decoded)
        for _ in pool.map(lambda job: native.decode_segment(*job), jobs):
            pass


def jobs_of(
    stored: torch.Tensor, sizes: list[int], decoded: torch.Tensor
) -> list[tuple[int, int, int, int]]:
    """Return what the decoders take."""
    slot = native.SEGMENT_BYTES
    return [
        (stored.data_ptr() + slot * i, size, decoded.data_ptr() + slot * i, slot)
        for i, size in enumerate(sizes)
    ]


def timed(act: Callable[[], None], *, size_bytes: int, runs: int) -> dict[str, Any]:
    """Return the rates of several runs after one that does not count."""
    act()
    seconds: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - start)
    return {
        "gb_per_s_median": size_bytes / 1e9 / statistics.median(seconds),
        "gb_per_s_best": size_bytes / 1e9 / min(seconds),
        "seconds": seconds,
    }


def measure_cpu(coded: Coded, threads: int, runs: int, result: Result) -> None:
    """Code and decode with so many threads, and look at the bytes."""
    size_bytes = coded.raw.numel()
    row = timed(partial(coded.encode, threads), size_bytes=size_bytes, runs=1)
    show(result, {"what": "encode", "threads": threads, **row})
    coded.decoded.zero_()
    with ThreadPoolExecutor(threads) as pool:
        row = timed(partial(coded.decode, pool), size_bytes=size_bytes, runs=runs)
    show(result, {"what": "decode", "threads": threads, **row})
    if not torch.equal(coded.decoded, coded.raw):
        raise AssertionError("the CPU decoded other bytes")


def measure_gpu(coded: Coded, runs: int, result: Result) -> None:
    """Decode everything on the GPU, and a step's worth, and look at the bytes."""
    stored = coded.stored.to("cuda:0")
    decoded = torch.zeros_like(stored)
    torch.cuda.synchronize()
    jobs = jobs_of(stored, coded.sizes, decoded)
    for part in (jobs, jobs[:128], jobs[:32]):
        act = partial(native.decode_segments_on_device, 0, part)
        row = timed(act, size_bytes=len(part) * native.SEGMENT_BYTES, runs=runs)
        show(result, {"what": "decode on the GPU", "segments": len(part), **row})
    if not torch.equal(decoded.cpu(), coded.raw):
        raise AssertionError("the GPU decoded other bytes")


def show(result: Result, row: dict[str, Any]) -> None:
    """Keep a row and print it."""
    result.add(row)
    by = f"{row['threads']} threads" if "threads" in row else f"{row['segments']} segments"
    rates = f"{row['gb_per_s_median']:8.2f} GB/s, best {row['gb_per_s_best']:8.2f}"
    print(f"{row['what']:18} {by:14} {rates}", flush=True)


def main() -> None:
    """Make weights, code and decode them, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="1GB")
    parser.add_argument("--threads", default="1,4,16")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    question = __doc__.splitlines()[0] if __doc__ else ""
    result = Result(question, out=arguments.out, device=arguments.device)
    coded = Coded(parse_size(arguments.size))
    result.describe(size_bytes=coded.raw.numel())
    for threads in map(int, arguments.threads.split(",")):
        measure_cpu(coded, threads, arguments.runs, result)
    result.describe(ratio=sum(coded.sizes) / coded.raw.numel())
    if arguments.device != "cpu":
        measure_gpu(coded, arguments.runs, result)


if __name__ == "__main__":
    main()
