"""A process that loads what the store has on a GPU, when it is told to, and checks the bytes.

    python -m benchmarks.timed_share --checkpoint DIR --sums FILE --device DEVICE --store ADDRESS
        [--shared]

It says `ready` once torch is imported and the device warm; loads at the first line of its input,
and prints one line of JSON; at the second line it compares the bytes, and says `good` or which are
wrong. Meanwhile it holds the tensors.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.checksums import differing
from benchmarks.timed_load import synchronize
from sllm_store.torch import load_dict


def main() -> None:
    """Wait, load, wait, check."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--sums", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--shared", action="store_true")
    args = parser.parse_args()
    expected = json.loads(Path(args.sums).read_text())
    torch.zeros(8, dtype=torch.bfloat16, device=args.device).sum().item()
    synchronize(args.device)
    print("ready", flush=True)
    sys.stdin.readline()
    started_s = time.perf_counter()
    loaded = load_dict(args.checkpoint, args.device, store=args.store, shared=args.shared)
    loaded_s = time.perf_counter() - started_s
    next(reversed(loaded.values())).sum().item()
    synchronize(args.device)
    seconds = time.perf_counter() - started_s
    told = {"seconds": seconds, "load_dict_s": loaded_s, "tier": loaded.tier}
    print(json.dumps(told), flush=True)
    sys.stdin.readline()
    wrong = differing(loaded, expected)
    print(f"wrong bytes in {wrong[:3]}" if wrong else "good", flush=True)


if __name__ == "__main__":
    main()
