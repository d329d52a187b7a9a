"""How fast do several links load one split model, and one GPU by fan-in?

A store loads checkpoints that it has in its pool, over one link and over several: `load_dict` from
the call to synchronised tensors, in this process. `weights` is loaded compressed too. `qwen-32b`
has 65 GB, and wants a pool of 70 GB and as much room where DIR is. This process then loads the same
without a store, from the page cache or tmpfs.

Then the native engine alone copies a pinned pool to one GPU, to several at once, and to one over
the links of several (raw bytes, and coded ones that are decoded there), and a GPU's arena to
another. Arenas are zeroed before the engine fills them, and all bytes are compared afterwards.
Rates count bytes as they arrive, decoded. The store goes first: once a process has let GPUs reach
one another's memory, as the engine's fan-in does, the driver maps all it allocates on each of them.

    python -m benchmarks.links --work DIR --out FILE.json [--gpus 4] [--size 16GB]
        [--coded-size 4GB] [--runs 5] [--shapes llama-8b] [--pool 20GB] [--no-engine]
"""

from __future__ import annotations

import argparse
import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.checkpoints import MODELS
from benchmarks.link_loads import StoreBench
from benchmarks.result import Result, rates
from sllm_store import native
from sllm_store.units import align_up, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK_BYTES = 32 << 20
THREADS = 16
SEED = 20_261_121
MULTIPLIER = 0x9E3779B97F4A7C1


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Bytes of a pool's image that one GPU gets, over its own link and others."""

    device: int
    start: int
    size_bytes: int
    via: tuple[int, ...] = ()


class Pool:
    """Pinned chunks full of random bytes, as a store's pool holds an image."""

    def __init__(self, size_bytes: int) -> None:
        """Allocate, fill and pin them."""
        self.size_bytes = align_up(size_bytes, CHUNK_BYTES)
        self._memory = native.SharedPool(self.size_bytes)
        self._memory.populate(THREADS)
        self._memory.pin()
        self.address = self._memory.address
        self.content = host_tensor(self.address, self.size_bytes)
        words = self.content.view(torch.int64)
        generator = torch.Generator().manual_seed(SEED)
        block = torch.randint(2**62, (CHUNK_BYTES // 8,), generator=generator)
        for index, chunk in enumerate(words.split(CHUNK_BYTES // 8)):
            torch.add(block, index * MULTIPLIER % 2**61, out=chunk)

    def plan(self, spans: Sequence[Span]) -> dict[str, Any]:
        """Return the arguments of a transfer that only copies."""
        steps = [(self.address + at, -1) for at in range(0, self.size_bytes, CHUNK_BYTES)]
        copies = []
        for index, span in enumerate(spans):
            at = span.start
            while at < span.start + span.size_bytes:
                step, offset = divmod(at, CHUNK_BYTES)
                size = min(CHUNK_BYTES - offset, span.start + span.size_bytes - at)
                copies.append((step, index, at - span.start, size, offset))
                at += size
        return {"steps": steps, "copies": sorted(copies)}

    def expected(self, span: Span) -> torch.Tensor:
        """Return what a span's arena holds in the end."""
        return self.content[span.start : span.start + span.size_bytes]


class CodedPool:
    """Pinned chunks of coded weights, each segment at a multiple of 4096 and within one chunk."""

    def __init__(self, size_bytes: int) -> None:
        """Make weights and code them."""
        segment = native.SEGMENT_BYTES
        self.size_bytes = align_up(size_bytes, segment)
        count = self.size_bytes // segment
        generator = torch.Generator().manual_seed(SEED)
        numbers = (torch.randn(segment // 2, generator=generator) * 0.02).to(torch.bfloat16)
        self.raw = torch.stack([numbers.roll(7919 * i) for i in range(count)]).view(torch.uint8)
        stored = torch.empty_like(self.raw)
        pieces = [(self.raw[i].data_ptr(), segment, stored[i].data_ptr()) for i in range(count)]
        self.sizes = native.encode_segments_into(pieces, threads=THREADS, control=native.Control())
        assert all(self.sizes)
        self._places = self._lay_out()
        self._memory = native.SharedPool(CHUNK_BYTES * (self._places[-1][0] + 1))
        self._memory.populate(THREADS)
        self._memory.pin()
        content = host_tensor(self._memory.address, self._memory.size)
        for index, (chunk, offset) in enumerate(self._places):
            at, size = chunk * CHUNK_BYTES + offset, self.sizes[index]
            content[at : at + size] = stored[index, :size]

    def _lay_out(self) -> list[tuple[int, int]]:
        at = 0
        places = []
        for size in self.sizes:
            if at % CHUNK_BYTES + size > CHUNK_BYTES:
                at = align_up(at, CHUNK_BYTES)
            places.append(divmod(at, CHUNK_BYTES))
            at = align_up(at + size, 4096)
        return places

    def plan(self, spans: Sequence[Span]) -> dict[str, Any]:
        """Return the arguments of a transfer that decodes all of it onto one GPU."""
        assert len(spans) == 1
        chunks = self._places[-1][0] + 1
        segment = native.SEGMENT_BYTES
        return {
            "steps": [(self._memory.address + i * CHUNK_BYTES, -1) for i in range(chunks)],
            "copies": [],
            "decodes": [
                (chunk, 0, i * segment, segment, self.sizes[i], offset)
                for i, (chunk, offset) in enumerate(self._places)
            ],
        }

    def expected(self, span: Span) -> torch.Tensor:
        """Return what the arena holds in the end."""
        assert span.size_bytes == self.size_bytes
        return self.raw.view(-1)


def host_tensor(address: int, size_bytes: int) -> torch.Tensor:
    """Return memory as bytes."""
    return torch.frombuffer((ctypes.c_uint8 * size_bytes).from_address(address), dtype=torch.uint8)


def transfer(plan: dict[str, Any], arenas: Sequence[native.DeviceBuffer], spans: Any) -> float:
    """Run a plan; return its seconds."""
    devices = [
        (span.device, arena.address, span.via) for span, arena in zip(spans, arenas, strict=True)
    ]
    started_s = time.perf_counter()
    native.run_transfer(
        [],
        reads=[],
        devices=devices,
        mode="auto",
        threads=THREADS,
        control=native.Control(),
        **plan,
    )
    return time.perf_counter() - started_s


class Checker:
    """Zeroes arenas, and compares them with host memory."""

    def __init__(self) -> None:
        """Pin a chunk to pass things through."""
        self._chunk = native.HostBuffer(CHUNK_BYTES, pinned=True)
        self._content = host_tensor(self._chunk.address, CHUNK_BYTES)

    def zero(self, arena: native.DeviceBuffer) -> None:
        """Overwrite an arena."""
        self._content.zero_()
        for at, size in _parts(arena.size):
            native.copy_to_device(arena.device, self._chunk.address, arena.address + at, size)

    def require(self, arena: native.DeviceBuffer, expected: torch.Tensor, case: str) -> None:
        """End the run where an arena holds other bytes."""
        for at, size in _parts(expected.numel()):
            native.copy_from_device(arena.device, arena.address + at, self._chunk.address, size)
            if not torch.equal(self._content[:size], expected[at : at + size]):
                raise SystemExit(f"{case}: wrong bytes on GPU {arena.device}")


def _parts(size_bytes: int) -> list[tuple[int, int]]:
    return [(at, min(CHUNK_BYTES, size_bytes - at)) for at in range(0, size_bytes, CHUNK_BYTES)]


class Bench:
    """One run: its result, and what all cases share."""

    def __init__(self, args: argparse.Namespace, result: Result) -> None:
        """Nothing is measured yet."""
        self._args = args
        self._result = result
        self._checker = Checker()

    def native(self, case: str, pool: Pool | CodedPool, spans: Sequence[Span]) -> None:
        """Let the native engine deliver spans of a pool."""
        arenas = [native.DeviceBuffer(span.device, span.size_bytes) for span in spans]
        for arena in arenas:
            self._checker.zero(arena)
        plan = pool.plan(spans)
        seconds = [transfer(plan, arenas, spans) for _ in range(self._args.runs)]
        for arena, span in zip(arenas, spans, strict=True):
            self._checker.require(arena, pool.expected(span), case)
        self.add("native", case, seconds, sum(span.size_bytes for span in spans))

    def between(self, case: str, pool: Pool, *, source: int, target: int) -> None:
        """Copy an arena from one GPU to another, or within one."""
        span = Span(device=target, start=0, size_bytes=pool.size_bytes)
        first = native.DeviceBuffer(source, pool.size_bytes)
        transfer(pool.plan([span]), [first], [Span(device=source, start=0, size_bytes=0)])
        second = native.DeviceBuffer(target, pool.size_bytes)
        self._checker.zero(second)
        plan = {
            "steps": [(first.address, -1)],
            "copies": [(0, 0, 0, pool.size_bytes, 0)],
        }
        seconds = [transfer(plan, [second], [span]) for _ in range(self._args.runs)]
        self._checker.require(second, pool.content, case)
        self.add("native", case, seconds, pool.size_bytes)

    def add(
        self, path: str, case: str, seconds: list[float], size_bytes: int, **facts: str
    ) -> None:
        """Note what a case took, with what else is to be known of it."""
        row = {"case": case, "path": path, "size_bytes": size_bytes, "seconds": seconds}
        found = rates(size_bytes, seconds)
        self._result.add(row | facts | found)
        words = ", ".join([case, *facts.values()])
        print(f"{path:10} {words:44} {found['gb_per_s_median']:8.2f} GB/s", flush=True)


def measure_native(bench: Bench, args: argparse.Namespace) -> None:
    """Measure the engine alone."""
    pool = Pool(args.size)
    bench.native("one link", pool, [Span(device=0, start=0, size_bytes=pool.size_bytes)])
    for count in range(2, args.gpus + 1):
        part = align_up(pool.size_bytes // count, 4096)
        starts = range(0, pool.size_bytes, part)
        bench.native(
            f"split over {count} GPUs",
            pool,
            [
                Span(device=i, start=at, size_bytes=min(part, pool.size_bytes - at))
                for i, at in enumerate(starts)
            ],
        )
        via = tuple(range(1, count))
        whole = Span(device=0, start=0, size_bytes=pool.size_bytes, via=via)
        bench.native(f"fan-in over {count} links", pool, [whole])
    bench.between("within one GPU", pool, source=0, target=0)
    bench.between("from GPU 0 to GPU 1", pool, source=0, target=1)
    del pool
    coded = CodedPool(args.coded_size)
    for count in range(1, args.gpus + 1):
        via = tuple(range(1, count))
        whole = Span(device=0, start=0, size_bytes=coded.size_bytes, via=via)
        name = "one link" if count == 1 else f"fan-in over {count} links"
        bench.native(f"{name}, coded", coded, [whole])


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpus", type=int, help="how many to use; all unless told")
    parser.add_argument("--size", type=parse_size, default="16GB")
    parser.add_argument("--coded-size", type=parse_size, default="4GB")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--shapes", default="llama-8b", help="checkpoints that a store loads")
    parser.add_argument("--pool", default="20GB", help="holds the largest of them")
    parser.add_argument("--engine", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--small", action="store_true", help="a checkpoint of a few megabytes")
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    args.shapes = args.shapes.split(",")
    if strange := set(args.shapes) - set(MODELS):
        parser.error(f"--shapes {', '.join(sorted(strange))}: use {', '.join(MODELS)}")
    seen = native.device_count() if native.cuda_available() else 0
    args.gpus = min(args.gpus or seen, seen)
    if args.gpus < 2:
        raise SystemExit(f"this needs two GPUs at least, and sees {seen}")
    args.device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return args


def main() -> None:
    """Measure a store, then the native engine; write the JSON."""
    args = parse_arguments()
    question = (__doc__ or "").splitlines()[0]
    result = Result(question, out=args.out, device=args.device, commit=args.commit)
    result.describe(gpus=args.gpus)
    bench = Bench(args, result)
    if torch.cuda.device_count() >= args.gpus:
        StoreBench(args, bench.add).measure()
    else:
        print("torch sees other GPUs than the native core: nothing is loaded through a store")
    if args.engine:
        measure_native(bench, args)


if __name__ == "__main__":
    main()
