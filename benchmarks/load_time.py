"""How long until a checkpoint's tensors are usable on a device, by who loads them?

Each loader runs in a process of its own with torch imported and CUDA warm, and is timed from the
call to synchronised tensors. Every timed load is verified: a position-weighted sum of every
tensor's bytes, taken on the device, equals the one taken when the checkpoint was made.

    python benchmarks/load_time.py --work DIR --out FILE.json [--shapes llama-8b|many|smoke]
        [--gguf SmolLM2.gguf] [--pool 20GB] [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sllm_store import native
from sllm_store.torch import load_dict

LOADERS = ("store", "in-process", "safetensors")


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
    torch.zeros(1, device=device)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds, tiers = [], []
    for _ in range(args.runs):
        if args.cold:
            evict(directory)
        started_s = time.perf_counter()
        tensors, tier = _load(args, directory)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started_s)
        tiers.append(tier)
        wrong = [name for name, total in sums.items() if checksum(tensors[name]) != total]
        if wrong or set(tensors) != set(sums):
            raise SystemExit(f"wrong bytes in {wrong[:3]}")
        del tensors
        if device != "cpu":
            torch.cuda.empty_cache()
    print(json.dumps({"seconds": seconds, "tiers": tiers}))


def _load(args: argparse.Namespace, directory: Path) -> tuple[dict[str, torch.Tensor], str]:
    if args.loader == "safetensors":
        tensors: dict[str, torch.Tensor] = {}
        for path in sorted(directory.glob("*.safetensors")):
            tensors |= load_file(str(path), device=args.device)
        return tensors, "page cache" if not args.cold else "disk"
    store = args.store if args.loader == "store" else "in-process"
    loaded = load_dict(str(directory), args.device, store=store)
    return dict(loaded), loaded.tier


def measure(
    loader: str, directory: Path, args: argparse.Namespace, **kwargs: Any
) -> dict[str, Any]:
    """Run a loader in a process of its own; return its figures."""
    command = [sys.executable, __file__, "--loader", loader, "--checkpoint", str(directory)]
    command += ["--sums", str(kwargs["sums"]), "--device", args.device]
    command += ["--runs", str(kwargs.get("runs", args.runs)), "--store", kwargs.get("store", "")]
    command += ["--cold"] if kwargs.get("cold") else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    if done.returncode:
        return {"loader": loader, "error": (done.stderr or done.stdout)[-600:]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    size_bytes = kwargs["size_bytes"]
    return {
        "loader": loader,
        "state": kwargs["state"],
        "format": kwargs["format"],
        "seconds": figures["seconds"],
        "tiers": figures["tiers"],
        "gb_per_s_first": size_bytes / figures["seconds"][0] / 1e9,
        "gb_per_s_median": size_bytes / statistics.median(figures["seconds"]) / 1e9,
    }


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
    parser.add_argument("--loader", choices=LOADERS)
    parser.add_argument("--checkpoint")
    parser.add_argument("--sums")
    parser.add_argument("--store", default="")
    parser.add_argument("--cold", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Make the checkpoint, run every loader in every state, write the JSON."""
    args = parse_arguments()
    if args.loader:
        run_loader(args)
        return
    storage = args.work / "models"
    directory = storage / args.shapes
    sums = make_checkpoint(directory, args.shapes, args.device)
    size_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    sums_path = args.work / "sums.json"
    sums_path.write_text(json.dumps(sums))
    common = {"sums": sums_path, "size_bytes": size_bytes, "format": "safetensors"}
    rows: list[dict[str, Any]] = []

    def add(loader: str, state: str, **kwargs: Any) -> None:
        row = measure(loader, directory, args, state=state, **common, **kwargs)
        rows.append(row)
        print(json.dumps(row), flush=True)

    store = Store(storage, args.pool)
    evict(directory)
    add("store", "cold disk", store=store.address, runs=1)
    add("store", "host pool", store=store.address)
    store.stop()
    touch_cache(directory)
    add("in-process", "page cache")
    add("safetensors", "page cache")
    add("in-process", "cold disk", cold=True, runs=1)
    add("safetensors", "cold disk", cold=True, runs=1)
    result = {
        "question": __doc__.splitlines()[0] if __doc__ else "",
        "commit": args.commit,
        "command": f"python benchmarks/load_time.py --shapes {args.shapes} --pool {args.pool}",
        "hardware": hardware(args.device),
        "checkpoint": {"shapes": args.shapes, "size_bytes": size_bytes, "tensors": len(sums)},
        "store_ready_s": store.ready_s,
        "rows": rows,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
