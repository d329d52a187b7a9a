"""How long until a checkpoint's tensors are usable on a device, by who loads them and from where?

Each loader runs in a process of its own with torch imported and the device warm, and is timed from
the call to synchronised tensors, the first load included. Every timed load is verified: sums of
every tensor's bytes, taken on the device, equal those taken when the checkpoint was made. From the
disk, loaders take turns, and those that are known to be slow are left out unless they are named.

    python -m benchmarks.load_time --work DIR --out FILE.json
        [--shapes llama-8b,weights,many,few,smollm2] [--states "cold disk,host pool"]
        [--loaders "ours, store;safetensors"] [--runs 3] [--cold-runs 3] [--pool 20GB] [--small]
        [--prefetch-path DIR_WITH_SAFETENSORS_0.9] [--smollm2 FILE.gguf]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import page_cache
from benchmarks.checkpoints import KINDS, make_checkpoint, make_compressed, make_smollm2
from benchmarks.peers import LOADERS, PREFETCH
from benchmarks.raw_disk import read_limit
from benchmarks.result import Result, rates
from benchmarks.store import BenchStore
from sllm_store import native
from sllm_store.cli.bench_limits import best, link_bytes_per_s, read_rates
from sllm_store.errors import StoreError
from sllm_store.torch.devices import store_device

if TYPE_CHECKING:
    from collections.abc import Iterator

STATES = ("cold disk", "mixed", "page cache", "tmpfs", "host pool", "resident")
DISK_STATES = ("cold disk", "mixed")
SLOW_FROM_DISK = ("safetensors", "transformers", "Run:ai streamer")
COMPRESSED_KINDS = ("weights", "weights-4gb", "smollm2")
TMPFS = Path("/dev/shm/sllm-bench")
LOADER_TIMEOUT_S = 300
UNTOUCHED_BYTES = 8 << 30
ROUND_READ_BYTES = 512 << 20
_FILES = ("cold disk", "mixed", "page cache", "tmpfs")
_MODES = ("ours, direct reads", "ours, buffered reads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A checkpoint on disk, and compressed if anybody loads it so.

    `sums` names the file with its tensors' checksums.
    """

    kind: str
    directory: Path
    sums: Path
    size_bytes: int
    tensors: int
    compressed: Path | None = None

    def directory_for(self, loader: str) -> Path | None:
        """Return what a loader loads, None if that was not made."""
        return self.compressed if LOADERS[loader].compressed else self.directory

    def facts(self) -> dict[str, int]:
        """Return what a result says of it."""
        facts = {"size_bytes": self.size_bytes, "tensors": self.tensors}
        if self.compressed is not None:
            stored = sum(path.stat().st_size for path in page_cache.data_files(self.compressed))
            facts["compressed_bytes"] = stored
        return facts


class Run:
    """One run: what to measure, where, and its result."""

    def __init__(self, args: argparse.Namespace, result: Result, stack: ExitStack) -> None:
        """The stack stops the store in the end."""
        self.args = args
        self.result = result
        self._stack = stack
        self._store: BenchStore | None = None

    @property
    def store(self) -> BenchStore:
        """The store over the checkpoints, started when it is first needed."""
        if self._store is None:
            store = BenchStore(self.args.work / "models", self.args.pool)
            self._store = self._stack.enter_context(store)
            self.result.describe(store_ready_s=store.ready_s, pool=self.args.pool)
        return self._store

    def measure_states(self, made: Made) -> None:
        """Measure every loader in every state of one checkpoint."""
        for state in self.args.states:
            loaders = list(self._loaders(made, state))
            if state == "tmpfs" and loaders:
                self._in_tmpfs(loaders, made)
            elif state in {"host pool", "resident"}:
                self._in_store(loaders, state, made)
            elif state in DISK_STATES:
                self._in_rounds(loaders, state, made)
            else:
                for loader in loaders:
                    self._measure(loader, state, made)
            self._forget(made)

    def _in_rounds(self, loaders: list[str], state: str, made: Made) -> None:
        """Measure one load of each loader, round after round: a virtual disk drifts in minutes.

        Every load is the first of its process. What the disk does is measured in each round too.
        """
        rows: dict[str, dict[str, Any]] = {}
        for number in range(self.args.cold_runs):
            raw = disk_limit(made)
            self.result.limit(disk_gb_per_s=raw)
            print(f"{made.kind:10} {state:11} round {number + 1}, disk {raw:.2f} GB/s", flush=True)
            for loader in loaders:
                told = self._timed(loader, state, made, runs=1)
                known = rows.get(loader)
                if known is None:
                    told["disk_gb_per_s"] = [raw]
                    rows[loader] = self._note(loader, state, made, told)
                elif "seconds" in known and "seconds" in told:
                    known["disk_gb_per_s"].append(raw)
                    known["seconds"] += told["seconds"]
                    self._rate(known, made)
        self.result.save()

    def _in_store(self, loaders: list[str], state: str, made: Made) -> None:
        """Measure while the store keeps the checkpoint in the pool, or in GPU memory."""
        for loader in loaders:
            directory = made.directory_for(loader)
            assert directory is not None
            gpu = ""
            if state == "resident":
                gpu = store_device(torch.device(self.args.device))
            try:
                fill_s = self.store.fill(directory.name, gpu)
            except StoreError as error:
                self._note(loader, state, made, {"error": str(error)})
                continue
            self._measure(loader, state, made, facts={"store_fill_s": fill_s})

    def _in_tmpfs(self, loaders: list[str], made: Made) -> None:
        try:
            for loader in loaders:
                directory = made.directory_for(loader)
                assert directory is not None
                copy = TMPFS / directory.name
                if not copy.is_dir():
                    shutil.copytree(directory, copy)
                self._measure(loader, "tmpfs", made, directory=copy)
        finally:
            shutil.rmtree(TMPFS, ignore_errors=True)

    def _forget(self, made: Made) -> None:
        if self._store is not None:
            for directory in (made.directory, made.compressed):
                if directory is not None:
                    self._store.forget(directory.name)

    def _loaders(self, made: Made, state: str) -> Iterator[str]:
        """Yield who can load this checkpoint out of this state, ours first."""
        for name, loader in LOADERS.items():
            if not chosen(name, self.args, state) or made.directory_for(name) is None:
                continue
            fits = loader.is_installed and state in _states_of(name, self.args.device)
            if name == PREFETCH:
                fits = fits and bool(self.args.prefetch_path)
            if name == "transformers":
                fits = fits and (made.directory / "config.json").is_file()
            if fits:
                yield name

    def _measure(
        self,
        loader: str,
        state: str,
        made: Made,
        *,
        directory: Path | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Run a loader in a process of its own and note its figures, or why there are none."""
        told = self._timed(loader, state, made, runs=self.args.runs, directory=directory)
        self._note(loader, state, made, (facts or {}) | told)

    def _timed(
        self,
        loader: str,
        state: str,
        made: Made,
        *,
        runs: int,
        directory: Path | None = None,
    ) -> dict[str, Any]:
        """Run a loader in a process of its own; return what it told."""
        store = self.store.address if LOADERS[loader].through_store else ""
        command = [sys.executable, "-m", "benchmarks.timed_load", "--loader", loader]
        place = directory or made.directory_for(loader)
        command += ["--checkpoint", str(place), "--sums", str(made.sums)]
        command += ["--state", state, "--device", self.args.device, "--store", store]
        command += ["--runs", str(runs)]
        command += ["--memory"] if state == "page cache" else []
        return self._told(command, loader)

    def _note(self, loader: str, state: str, made: Made, told: dict[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {"checkpoint": made.kind, "loader": loader, "state": state} | told
        self._rate(row, made)
        self.result.add(row)
        return row

    def _rate(self, row: dict[str, Any], made: Made) -> None:
        """Work out a row's rates, and tell them."""
        loader, state = row["loader"], row["state"]
        if seconds := row.get("seconds"):
            row |= rates(made.size_bytes, seconds)
        rate = row.get("gb_per_s_median", 0.0)
        error = (row.get("error", "").strip().splitlines() or [""])[-1]
        print(f"{made.kind:10} {state:11} {loader:26} {rate:8.2f} GB/s {error}", flush=True)

    def _told(self, command: list[str], loader: str) -> dict[str, Any]:
        """Run a command; return the JSON that it prints last, or its error."""
        env = dict(os.environ)
        if loader == PREFETCH:
            env["PYTHONPATH"] = f"{self.args.prefetch_path}:{env.get('PYTHONPATH', '')}"
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=LOADER_TIMEOUT_S,
                env=env,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"it took longer than {LOADER_TIMEOUT_S} s"}
        if done.returncode:
            return {"error": (done.stderr or done.stdout)[-400:]}
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told


def chosen(loader: str, args: argparse.Namespace, state: str = "") -> bool:
    """Whether a loader is to be timed; some that are slow from a cold disk only if named."""
    if not args.loaders:
        return state not in DISK_STATES or loader not in SLOW_FROM_DISK
    return loader in args.loaders


def wants_compressed(args: argparse.Namespace) -> bool:
    """Whether a loader of compressed checkpoints is to be timed."""
    return any(chosen(name, args) for name, loader in LOADERS.items() if loader.compressed)


def _states_of(loader: str, device: str) -> tuple[str, ...]:
    """Return the states from which a loader is timed."""
    resident = () if device == "cpu" else ("resident",)
    if loader in _MODES:
        return ("mixed",)
    if loader == "ours, shared":
        return resident
    if LOADERS[loader].compressed:
        return ("cold disk", "host pool") if LOADERS[loader].through_store else _FILES
    if LOADERS[loader].through_store:
        return ("cold disk", "host pool", *resident)
    return _FILES


def make(kind: str, args: argparse.Namespace, *, compressed: bool = False) -> Made:
    """Make a checkpoint, or take the one that an earlier run left in the same place.

    With `compressed`, kinds that are worth it are saved a second time, compressed.
    """
    directory = args.work / "models" / kind
    sums = args.work / f"{kind}.json"
    if not sums.is_file():
        started_s = time.perf_counter()
        if kind == "smollm2":
            made = make_smollm2(directory, args.smollm2, device=args.device)
        else:
            made = make_checkpoint(directory, kind, device=args.device, small=args.small)
        sums.write_text(json.dumps(made))
        print(f"{kind:10} made in {time.perf_counter() - started_s:.1f} s", flush=True)
        if args.device != "cpu":
            torch.cuda.empty_cache()
    twin = args.work / "models" / f"{kind}-compressed"
    if kind in COMPRESSED_KINDS and compressed and not twin.is_dir():
        started_s = time.perf_counter()
        make_compressed(twin, directory)
        print(f"{kind:10} compressed in {time.perf_counter() - started_s:.1f} s", flush=True)
    return Made(
        kind=kind,
        directory=directory,
        sums=sums,
        size_bytes=sum(path.stat().st_size for path in page_cache.data_files(directory)),
        tensors=len(json.loads(sums.read_text())),
        compressed=twin if twin.is_dir() else None,
    )


def measure_limits(made: Made, args: argparse.Namespace, result: Result) -> None:
    """Measure what the disk and the link can do, in the same run as the loads."""
    if disk := disk_limit(made):
        result.limit(disk_gb_per_s=disk)
    if args.device != "cpu":
        ordinal = torch.device(args.device).index or 0
        result.limit(link_gb_per_s=link_bytes_per_s(ordinal) / 1e9)


def disk_limit(made: Made) -> float:
    """Return the best rate of direct reads in GB/s, by queues or by threads; 0.0 without any."""
    files = page_cache.data_files(made.directory)
    by_threads = best(read_rates(files, direct=True, bytes_max=ROUND_READ_BYTES))
    return max(read_limit(files, ROUND_READ_BYTES), by_threads / 1e9)


def touch_memory(device: str) -> float:
    """Have a virtual machine's memory backed before anything is timed; return the seconds."""
    if device == "cpu":
        return 0.0
    started_s = time.perf_counter()
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if available > UNTOUCHED_BYTES:
        native.HostBuffer(available - UNTOUCHED_BYTES).populate(os.cpu_count() or 1)
    return time.perf_counter() - started_s


def show(result: Result) -> None:
    """Print one compact table a checkpoint."""
    for kind in dict.fromkeys(row["checkpoint"] for row in result.rows):
        rows = [row for row in result.rows if row["checkpoint"] == kind]
        states = list(dict.fromkeys(row["state"] for row in rows))
        print(f"\n{kind}, GB/s first / median")
        print(" " * 26 + "".join(f"{state:>16}" for state in states))
        for loader in dict.fromkeys(row["loader"] for row in rows):
            cells = {
                row["state"]: f"{row['gb_per_s_first']:.2f} / {row['gb_per_s_median']:.2f}"
                for row in rows
                if row["loader"] == loader and "seconds" in row
            }
            print(f"{loader:26}" + "".join(f"{cells.get(state, '-'):>16}" for state in states))
    print("limits, GB/s:", {name: round(rate, 2) for name, rate in result.limits.items()})


def parse_arguments() -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", default="llama-8b")
    parser.add_argument("--states", default=",".join(STATES))
    parser.add_argument(
        "--loaders", default="", help="names separated by ;, spelt as in the table; default: all"
    )
    parser.add_argument("--pool", default="20GB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cold-runs", type=int, default=3, help="rounds of loads from the disk")
    parser.add_argument("--small", action="store_true", help="checkpoints of a few megabytes")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", default="")
    parser.add_argument("--prefetch-path", default="")
    parser.add_argument("--smollm2", type=Path)
    args = parser.parse_args()
    for name, known in (("shapes", KINDS), ("states", STATES)):
        chosen = getattr(args, name).split(",")
        setattr(args, name, chosen)
        if strange := set(chosen) - set(known):
            parser.error(f"--{name} {', '.join(sorted(strange))}: use {', '.join(known)}")
    args.loaders = [name for name in args.loaders.split(";") if name]
    if strange := set(args.loaders) - set(LOADERS):
        parser.error(f"--loaders {'; '.join(sorted(strange))}: use {'; '.join(LOADERS)}")
    if "smollm2" in args.shapes and args.smollm2 is None:
        parser.error("--shapes smollm2 needs --smollm2 FILE.gguf: see examples/fetch_smollm2.py")
    return args


def main() -> None:
    """Make the checkpoints, run every loader in every state, write the JSON."""
    args = parse_arguments()
    question = (__doc__ or "").splitlines()[0]
    result = Result(question, out=args.out, device=args.device, commit=args.commit)
    result.describe(memory_touched_s=touch_memory(args.device), checkpoints={})
    checkpoints: dict[str, Any] = {}
    with ExitStack() as stack:
        run = Run(args, result, stack)
        for kind in args.shapes:
            made = make(kind, args, compressed=wants_compressed(args))
            checkpoints[kind] = made.facts()
            result.describe(checkpoints=checkpoints)
            measure_limits(made, args, result)
            run.measure_states(made)
            measure_limits(made, args, result)
    show(result)


if __name__ == "__main__":
    main()
