"""How near do products with a stored weight come to reading it once at the memory's bandwidth?

Every product is timed over enough copies of its weight that none is in the cache, as one CUDA
graph, and compared with the product in float32. Its rate is the bytes of the weight over its time,
and its bound is what a copy of a gigabyte reaches on the same device in the same run, counting
bytes read and written. So is attention to caches of requests x tokens: the rows called that, whose
bytes are the keys and values. --sweep tries every launch and shows the best ones, which --remember
keeps for the runtime. Where no kernel is (bf16 of more tokens than one), cuBLAS's row stands alone.

    python -m benchmarks.kernels --out FILE.json [--formats Q4_0,bf16] [--shapes 8192x8192]
        [--tokens 1,4,16] [--caches 8x16384] [--sweep] [--remember] [--small]
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.kernel_cases import Case
    from sllm.runtime.kernels.layout import Planes

SHAPES = "4096x4096,8192x8192,14336x4096,4096x14336,128256x4096"
FORMATS = "Q4_0,Q4_1,Q8_0,Q4_K,Q5_K,Q6_K,affine-64,bf16,bf16-cublas"
CACHES = "1x65536,8x16384,32x8192"
ALL_COPIES_BYTES = 1 << 30
_SHOWN = 5


def main() -> None:
    """Measure every case and write the result after each."""
    args = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # Before the kernels are imported.
    from benchmarks.kernel_cases import Case, measure_attention, measure_limits

    room = ALL_COPIES_BYTES if device.type == "cuda" else 1 << 16
    result = Result(
        (__doc__ or "").splitlines()[0], out=args.out, device=str(device), commit=args.commit
    )
    result.limit(**measure_limits(device, room))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    for requests, length in (tuple(map(int, one.split("x"))) for one in args.caches.split(",")):
        row = measure_attention(requests, length, device, dtype)
        result.add({**row, "of_copy": row["gb_s"] / result.limits["copy_gb_s"]})
        print(_line(result.rows[-1]), flush=True)
    for shape in args.shapes.split(","):
        rows, columns = map(int, shape.split("x"))
        for name in args.formats.split(","):
            for tokens in map(int, args.tokens.split(",")):
                case = Case(format=name, rows=rows, columns=columns, tokens=tokens)
                if not case.has_kernel:
                    continue
                for row in measure(case, device, room, sweep=args.sweep, keep=args.remember):
                    row["of_copy"] = row["gb_s"] / result.limits["copy_gb_s"]
                    result.add(row)
                    print(_line(row), flush=True)


def measure(
    case: Case, device: torch.device, room_bytes: int, *, sweep: bool, keep: bool
) -> list[dict[str, Any]]:
    """Return the row of a case, or the rows of its fastest launches."""
    from benchmarks.kernel_cases import error_of, size_of

    first = case.weight(device, 0)
    size = size_of(first)
    copies = max(room_bytes // size, 1)
    weights = [first, *(case.weight(device, seed) for seed in range(1, copies))]
    # The interpreter that stands in for a GPU multiplies no tiles of bfloat16.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    x = case.input(device, dtype)
    error = error_of(x, first, case.multiply(x, first))
    if error > 0.02:
        raise AssertionError(f"{case}: wrong by {error}")
    launches = list(case.candidates(x, first)) if sweep else [None]
    timed = [
        (seconds, launch)
        for launch in launches
        if (seconds := _seconds(case, x, weights, launch)) is not None
    ]
    timed.sort(key=lambda one: one[0])
    if keep and timed[0][1] is not None:
        case.remember(first, timed[0][1])
    return [
        {
            **asdict(case),
            "launch": None if launch is None else asdict(launch),
            "bytes": size,
            "us": seconds * 1e6,
            "gb_s": size / seconds / 1e9,
            "error": error,
        }
        for seconds, launch in timed[:_SHOWN]
    ]


def _seconds(
    case: Case, x: torch.Tensor, weights: list[torch.Tensor | Planes], launch: Any
) -> float | None:
    """Return the time of one product; None for a launch that the device has no room for."""
    from triton.runtime.errors import OutOfResources

    from benchmarks.kernel_cases import seconds_of

    acts: list[Callable[[], Any]] = [
        partial(case.multiply, x, weight, launch) for weight in weights
    ]
    try:
        return seconds_of(acts, x.device)
    except OutOfResources:
        return None


def _line(row: dict[str, Any]) -> str:
    shape = f"{row['rows']}x{row['columns']}"
    rate = f"{row['gb_s']:8.1f} GB/s {row['of_copy']:6.1%} of a copy"
    head = f"{row['format']:12} {shape:12} {row['tokens']:3} tokens"
    return f"{head} {row['us']:9.1f} us {rate}  error {row['error']:.1e}  {row['launch'] or ''}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--caches", default=CACHES)
    parser.add_argument("--tokens", default="1,4,16")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--remember", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    if args.small:
        args.shapes, args.tokens, args.caches = "32x512", "1,5", "2x70"
    return args


if __name__ == "__main__":
    main()
