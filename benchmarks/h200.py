"""The measurements that an H200 is wanted for, in groups that end within nine minutes each.

    python -m benchmarks.h200 --work /disk/directory --out results GROUP…

Every benchmark of a group runs in a process group of its own, with a limit, and is killed with its
store when that is over: what it had measured is in its file by then. A benchmark that does not fit
into what is left of --budget-s is named and not begun. Groups:

    disk       what the disk can do, what a save reaches, which way of reading cold is slow, and why
    cold       cold and half-cached loads beside other loaders
    memory     loads out of the host pool, and beside a busy thread
    coded      compressed loads, cold and out of the host pool
    columns    compressed and half-cached loads of 4 GB in one process, and a save of as much
    estimates  fifty predicted loads
    links      two GPUs: split, fan-in, through the engine and the store
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

OURS = "ours, in-process;ours, store"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A benchmark, its arguments and the seconds that it may take; `out` names its result."""

    name: str
    out: str
    arguments: tuple[str, ...] = ()
    limit_s: float = 240.0


def load_time(out: str, limit_s: float, *arguments: str) -> Step:
    """Return a step of the benchmark that most of the questions are put to."""
    return Step(name="load_time", out=out, limit_s=limit_s, arguments=arguments)


GROUPS: dict[str, list[Step]] = {
    "disk": [
        Step(name="raw_disk", out="raw_disk", arguments=("--ours", "--case-gib", "1")),
        Step(name="cold_ways", out="cold_ways", limit_s=150),
        Step(name="save_rate", out="save_rate", arguments=("--device", "cuda:0"), limit_s=120),
    ],
    "cold": [
        load_time(
            "load_time-cold",
            500.0,
            "--shapes=llama-8b",
            "--states=cold disk,mixed",
            f"--loaders={OURS};ours, direct reads;ours, buffered reads;fastsafetensors;safetensors",
            "--cold-runs=3",
        ),
    ],
    "memory": [
        load_time(
            "load_time-pool",
            240.0,
            "--shapes=llama-8b",
            "--states=host pool,page cache",
            f"--loaders={OURS}",
        ),
        Step(name="busy_interpreter", out="busy_interpreter", limit_s=240),
    ],
    "coded": [
        load_time(
            "load_time-coded",
            500.0,
            "--shapes=weights",
            "--states=cold disk,host pool",
            f"--loaders={OURS};ours, in-process, compressed;ours, store, compressed",
            "--cold-runs=3",
        ),
    ],
    "columns": [
        Step(name="disk_columns", out="load_time-disk", limit_s=150),
        Step(
            name="save_rate",
            out="save_rate",
            limit_s=60,
            arguments=("--device", "cuda:0", "--gib", "4"),
        ),
    ],
    "estimates": [
        Step(
            name="estimates",
            out="estimates",
            limit_s=300,
            arguments=("--shapes", "few-2gb,many-2gb", "--pool", "6GB"),
        )
    ],
    "links": [Step(name="links", out="links-2", arguments=("--gpus", "2"), limit_s=400)],
}


def run(step: Step, work: Path, out: Path, limit_s: float) -> str:
    """Run a benchmark and whatever it starts; return how that ended."""
    command = [sys.executable, "-m", f"benchmarks.{step.name}", "--work", str(work)]
    command += ["--out", str(out / f"{step.out}.json"), *step.arguments]
    print(f"::: {shlex.join(command[1:])}", flush=True)
    log = out / f"{step.out}.log"
    with log.open("w") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit_s)
            ended = "done" if code == 0 else f"failed with {code}, see {log.name}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit_s:.0f} s"
        finally:
            end_session(process)
    return ended


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a benchmark's process group, its store among it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def main() -> None:
    """Run the groups; the exit status says whether everything was done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget-s", type=float, default=540.0)
    parser.add_argument("groups", nargs="+", choices=GROUPS, metavar="GROUP")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    until_s = time.monotonic() + args.budget_s
    undone = 0
    for step in (step for group in args.groups for step in GROUPS[group]):
        began_s = time.monotonic()
        left_s = until_s - began_s
        if left_s < step.limit_s / 4:
            ended = "not begun: no time is left"
        else:
            ended = run(step, args.work, args.out, min(step.limit_s, left_s))
        undone += ended != "done"
        print(f"::: {step.out}: {ended}, {time.monotonic() - began_s:.0f} s", flush=True)
    raise SystemExit(min(undone, 1))


if __name__ == "__main__":
    main()
