"""How long until a second process has a model's first token, and where does that time go?

A process is started that imports what it needs, opens a model as an engine and answers 16 tokens,
greedy. The first one finds Triton's cache empty and compiles; those after it find what it left.
All find the model's file in the page cache: this reads it once before. Seconds begin where the
process is asked for. The text side (tokenizer, template) is opened beside the engine, as in the
server.

Without --model, a GGUF of Llama 8B's layers is written, Q4_0, random, with a small vocabulary; the
target for a second process is 2 s. With --for-gpu it is laid out first, as `gdsllm pull --for-gpu`
does.

    python -m benchmarks.warm_start --work DIR --out FILE.json [--model FILE] [--layers 32]
        [--runs 3] [--device cuda] [--for-gpu] [--small]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.result import ROOT, Result
from benchmarks.streaming import SMALL, Shapes, write_model
from sllm.runtime.weights.laid_out import write_laid_out

if TYPE_CHECKING:
    from collections.abc import Sequence

LLAMA_8B = Shapes(hidden=4096, width=14336, heads=32, kv_heads=8, head_dim=128, layers_total=32)
LIMIT_S = 300
_READ_BYTES = 1 << 24


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write what came out."""
    options = _parse(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    result = Result((__doc__ or "").splitlines()[0], out=options.out, device=options.device)
    shapes = SMALL if options.small else LLAMA_8B
    layers = options.layers or shapes.layers_total
    result.describe(for_gpu=options.for_gpu, **({} if options.model else {"layers": layers}))
    with tempfile.TemporaryDirectory(dir=options.work) as own:
        path = options.model or write_model(Path(own, "warm.gguf"), shapes, layers)
        if options.for_gpu:
            source, path = path, Path(own, "planes")
            write_laid_out(source, path, device=torch.device(options.device))
        _read(path)
        with tempfile.TemporaryDirectory(dir=options.work) as kernels:
            for kind, count in (("first process", 1), ("second process", options.runs)):
                for run in range(count):
                    _add(result, kind, run, start(path, options.device, Path(kernels)))
    found = [row["first_token_s"] for row in result.rows if row["process"] == "second process"]
    print(f"second process: {statistics.median(found):.2f} s to the first token")


def start(path: Path, device: str, kernels: Path) -> dict[str, Any]:
    """Return what a process said that keeps its compiled kernels in a directory."""
    command = [sys.executable, "-m", "benchmarks.warm_process", str(path), device]
    environ = {**os.environ, "TRITON_CACHE_DIR": str(kernels)}
    ran = subprocess.run(
        [*command, repr(time.monotonic())],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def _add(result: Result, process: str, run: int, found: dict[str, Any]) -> None:
    result.add({"process": process, "run": run, **found})
    stages = ", ".join(f"{name} {seconds:.3f}" for name, seconds in found["stages"].items())
    print(f"{process}: {found['first_token_s']:.3f} s ({stages})", flush=True)


def _read(path: Path) -> None:
    """Have a checkpoint's files in the page cache."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            with file.open("rb") as opened:
                while opened.read(_READ_BYTES):
                    pass


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a checkpoint of any format")
    parser.add_argument("--layers", type=int, help="of the model that is written")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--for-gpu", action="store_true", help="lay weights out before")
    parser.add_argument("--small", action="store_true", help="small shapes, to try the program")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
