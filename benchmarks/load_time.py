"""How long until a checkpoint's tensors are usable on a device, by who loads them?

Each loader runs in a process of its own with torch imported and CUDA warm, and is timed from the
call to synchronised tensors. Every timed load is verified: a position-weighted sum of every
tensor's bytes, taken on the device, equals the one taken when the checkpoint was made.

    python -m benchmarks.load_time --work DIR --out FILE.json [--shapes llama-8b|many|smoke]
        [--pool 20GB] [--runs 3] [--states "host pool,page cache,tmpfs,cold disk"]
        [--prefetch-path DIR_WITH_SAFETENSORS_0.9]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from benchmarks.peers import LOADERS, installed
from sllm_store import native

if TYPE_CHECKING:
    from collections.abc import Iterator

# The driver scrubs freed device memory in the background: a load in that time is 12 % slower.
SETTLE_S = 1.5
STATES = ("cold disk", "host pool", "page cache", "tmpfs")
PREFETCH = "safetensors 0.9 prefetch"
LLAMA_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def shapes_of(kind: str) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a synthetic checkpoint, by name."""
    if kind == "many":
        return {f"layers.{i // 100}.t{i % 100}": (1, 100_000) for i in range(20_000)}
    layers, hidden, ffn, kv, vocab = (32, 4096, 14336, 1024, 128256)
    if kind == "smoke":
        layers, hidden, ffn, kv, vocab = (4, 256, 512, 64, 1000)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        prefix = f"model.layers.{i}"
        shapes |= {
            f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}.mlp.gate_proj.weight": (ffn, hidden),
            f"{prefix}.mlp.up_proj.weight": (ffn, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, ffn),
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def checksum(tensor: torch.Tensor) -> int:
    """Return a sum of the tensor's 16-bit words, each weighted by its place, modulo 2**64."""
    words = tensor.contiguous().view(torch.uint8).flatten()
    if words.numel() % 2:
        words = torch.nn.functional.pad(words, (0, 1))
    total = 0
    for part_index, part in enumerate(torch.split(words.view(torch.int16), 1 << 26)):
        place = torch.arange(part.numel(), device=part.device) % 65521 + 1 + part_index
        total += int((part.long() * place).sum().item())
    return total % (1 << 64)


def make_checkpoint(directory: Path, kind: str, device: str) -> dict[str, int]:
    """Write a random bf16 checkpoint as safetensors files of about 5 GB; return its checksums."""
    sums: dict[str, int] = {}
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device=device).manual_seed(1)
    part: dict[str, torch.Tensor] = {}
    files: dict[str, str] = {}
    part_bytes = 0

    def flush() -> None:
        nonlocal part, part_bytes
        name = f"model-{len(set(files.values())) + 1:05}.safetensors"
        save_file(part, str(directory / name))
        files.update(dict.fromkeys(part, name))
        part, part_bytes = {}, 0

    for tensor_name, shape in shapes_of(kind).items():
        count = int(torch.tensor(shape).prod().item())
        raw = torch.randint(
            -(2**31), 2**31, ((count + 1) // 2,), generator=generator, device=device
        )
        tensor = raw.to(torch.int32).view(torch.bfloat16)[:count].view(shape)
        sums[tensor_name] = checksum(tensor)
        part[tensor_name] = tensor.cpu()
        part_bytes += tensor.nbytes
        if part_bytes > 5 * 10**9:
            flush()
    if part:
        flush()
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return sums


def evict(directory: Path) -> None:
    """Drop a checkpoint's pages from the page cache."""
    os.sync()
    for path in directory.iterdir():
        if path.is_file():
            native.File(str(path)).evict()


def touch_cache(directory: Path) -> None:
    """Read a checkpoint into the page cache."""
    for path in sorted(directory.iterdir()):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def run_loader(args: argparse.Namespace) -> None:
    """Time one loader in this process; print the seconds of each run as JSON."""
    directory = Path(args.checkpoint)
    device = args.device
    sums = json.loads(Path(args.sums).read_text())
    load, _ = LOADERS[args.loader]
    torch.zeros(1, device=device)
    synchronize(device)
    seconds = []
    for _ in range(args.runs):
        if args.cold:
            evict(directory)
        if device != "cpu":
            time.sleep(SETTLE_S)
        started_s = time.perf_counter()
        tensors = load(directory, device, args.store)
        synchronize(device)
        seconds.append(time.perf_counter() - started_s)
        wrong = [name for name, total in sums.items() if checksum(tensors[name]) != total]
        if wrong:
            raise SystemExit(f"wrong bytes in {wrong[:3]}")
        del tensors
        if device != "cpu":
            torch.cuda.empty_cache()
    print(json.dumps(seconds))


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def measure(
    loader: str, state: str, directory: Path, args: argparse.Namespace, *, store: str = ""
) -> dict[str, Any]:
    """Run a loader in a process of its own; return its figures, or why there are none."""
    command = [sys.executable, "-m", "benchmarks.load_time", "--loader", loader]
    command += ["--checkpoint", str(directory), "--sums", str(args.work / "sums.json")]
    command += ["--device", args.device, "--store", store, "--runs", str(args.runs)]
    command += ["--cold"] if state == "cold disk" else []
    env = dict(os.environ)
    if loader == PREFETCH:
        env["PYTHONPATH"] = f"{args.prefetch_path}:{env.get('PYTHONPATH', '')}"
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=env
    )
    row: dict[str, Any] = {"loader": loader, "state": state}
    if done.returncode:
        return row | {"error": (done.stderr or done.stdout)[-400:]}
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    size_bytes = size_of(directory)
    return row | {
        "seconds": seconds,
        "gb_per_s_first": size_bytes / seconds[0] / 1e9,
        "gb_per_s_median": size_bytes / statistics.median(seconds) / 1e9,
    }


def size_of(directory: Path) -> int:
    """Return the bytes of a checkpoint's data files."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


class Store:
    """A store process for the benchmark."""

    def __init__(self, storage: Path, pool: str) -> None:
        """Start it and wait until it is ready."""
        self.address = f"unix:{storage}/bench.sock"
        code = (
            "import sys; from pathlib import Path; from sllm_store.config import StoreConfig\n"
            "from sllm_store.units import parse_size\n"
            "from sllm_store.server.serve import serve\n"
            "serve(StoreConfig(storage_path=Path(sys.argv[1]), pool_bytes=parse_size(sys.argv[2]),"
            " socket_path=Path(sys.argv[1]) / 'bench.sock', threads=16),"
            " on_ready=lambda a: print(a, flush=True))"
        )
        started_s = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(storage), pool], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise SystemExit("the store did not start")
        self.ready_s = time.perf_counter() - started_s

    def stop(self) -> None:
        """Stop it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)


def hardware(device: str) -> dict[str, Any]:
    """Say what this ran on."""
    return {
        "device": torch.cuda.get_device_name(0) if device != "cpu" else platform.processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def parse_arguments() -> argparse.Namespace:
    """Return the command line; --loader and what follows it are for the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shapes", default="llama-8b")
    parser.add_argument("--pool", default="20GB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--states", default=",".join(STATES))
    parser.add_argument("--prefetch-path", default="")
    parser.add_argument("--loader", choices=LOADERS)
    parser.add_argument("--checkpoint")
    parser.add_argument("--sums")
    parser.add_argument("--store", default="")
    parser.add_argument("--cold", action="store_true")
    return parser.parse_args()


def measure_state(
    state: str, directory: Path, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield a row per loader for one state of the checkpoint."""
    if state == "host pool":
        store = Store(directory.parent, args.pool)
        yield measure("ours, store", state, directory, args, store=store.address) | {
            "store_ready_s": store.ready_s
        }
        store.stop()
        return
    if state == "tmpfs":
        copy = Path("/dev/shm/sllm-bench") / directory.name
        shutil.copytree(directory, copy)
        directory = copy
    elif state == "page cache":
        touch_cache(directory)
    for loader in installed():
        left_out = {"ours, store"}
        left_out |= set() if args.prefetch_path else {PREFETCH}
        left_out |= set() if args.shapes == "llama-8b" else {"transformers"}
        if loader in left_out:
            continue
        yield measure(loader, state, directory, args)
    if state == "tmpfs":
        shutil.rmtree(directory.parent)


def main() -> None:
    """Make the checkpoint, run every loader in every state, write the JSON."""
    args = parse_arguments()
    if args.loader:
        run_loader(args)
        return
    directory = args.work / "models" / args.shapes
    sums = make_checkpoint(directory, args.shapes, args.device)
    if args.shapes == "llama-8b":
        (directory / "config.json").write_text(json.dumps(LLAMA_CONFIG))
    (args.work / "sums.json").write_text(json.dumps(sums))
    rows: list[dict[str, Any]] = []
    for state in args.states.split(","):
        for row in measure_state(state, directory, args):
            rows.append(row)
            rate, error = row.get("gb_per_s_median", 0.0), row.get("error", "")
            print(f"{state:12} {row['loader']:26} {rate:7.2f} GB/s {error}", flush=True)
    shown = f"--shapes {args.shapes} --pool {args.pool} --runs {args.runs}"
    result = {
        "question": __doc__.splitlines()[0] if __doc__ else "",
        "commit": args.commit,
        "command": f"python -m benchmarks.load_time {shown}",
        "hardware": hardware(args.device),
        "versions": versions(),
        "checkpoint": {
            "shapes": args.shapes,
            "size_bytes": size_of(directory),
            "tensors": len(sums),
        },
        "rows": rows,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Return the version of each loader's package."""
    packages = ("safetensors", "transformers", "fastsafetensors", "instanttensor")
    found: dict[str, str] = {}
    for package in (*packages, "runai-model-streamer", "serverless-llm"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


if __name__ == "__main__":
    main()
