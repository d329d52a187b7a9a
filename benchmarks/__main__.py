"""Every benchmark, one after the other: `python -m benchmarks --work DIR [--small]`.

With --small they run on checkpoints of a few megabytes, anywhere, to prove that they work; the
figures mean something only at full size on a machine with a GPU, where each is run by itself.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

SUITE: dict[str, list[str]] = {
    "load_time": ["--shapes", "llama-8b,weights,many,few"],
    "resident": [],
    "busy_interpreter": [],
    "codec_rate": [],
    "kernels": [],
    "decode_gpu": [],
    "warm_start": [],
    "links": [],
    "estimates": [],
}
SMALL: dict[str, list[str]] = {
    "load_time": ["--small", "--pool", "256MB", "--runs", "1", "--cold-runs", "1"],
    "disk_columns": ["--small", "--pool", "256MB", "--rounds", "1"],
    "estimates": ["--small", "--pool", "64MB", "--loads", "10"],
    "resident": ["--small", "--pool", "256MB", "--processes", "1,2", "--runs", "1"],
    "busy_interpreter": ["--small", "--pool", "256MB", "--runs", "1"],
    "links": ["--small", "--size", "64MB", "--coded-size", "8MB", "--pool", "256MB", "--runs", "1"],
    "kernels": ["--small"],
    "decode_gpu": ["--small"],
    "warm_start": ["--small", "--runs", "1"],
    "codec_rate": ["--size", "8MB", "--threads", "1", "--runs", "1"],
}
GPUS_MIN = {"links": 2}
WITHOUT_FILES = {"codec_rate", "kernels", "decode_gpu"}


def main() -> None:
    """Run them; the exit status says whether all of them could."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(SUITE)}; all")
    args = parser.parse_args()
    failed = []
    for name in args.names or SUITE:
        if torch.cuda.device_count() < GPUS_MIN.get(name, 0):
            print(f"::: {name} needs {GPUS_MIN[name]} GPUs", flush=True)
            continue
        work = args.work / name
        work.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        command += [] if name in WITHOUT_FILES else ["--work", str(work)]
        command += ["--out", str(args.work / f"{name}.json"), *SUITE[name]]
        command += SMALL[name] if args.small else []
        print(f"::: {shlex.join(command[1:])}", flush=True)
        started_s = time.monotonic()
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(f"::: {name} took {time.monotonic() - started_s:.0f} s", flush=True)
    if failed:
        raise SystemExit(f"these failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
