"""Loads through a store over several links: one model split over GPUs, and one GPU by fan-in.

Every load gets memory that the driver has just allocated, after a pause in which it scrubs what the
load before gave back: that is what takes time out of the next load, and none of it is timed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.checkpoints import shapes_of
from benchmarks.checksums import differing
from benchmarks.load_time import COMPRESSED_KINDS, make
from benchmarks.store import BenchStore
from benchmarks.timed_load import SETTLE_S
from sllm_store.torch import load_dict
from sllm_store.torch.route import IN_PROCESS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.load_time import Made

SCRUBBED_BYTES_PER_S = 25e9

Load = Callable[[], dict[str, torch.Tensor]]
DeviceMap = str | dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A checkpoint on its way to one GPU or more."""

    name: str
    directory: Path
    device_map: DeviceMap


def split_evenly(sizes: dict[str, int], gpus: int) -> dict[str, str]:
    """Return a device map that gives every GPU the same bytes, in the model's order.

    Layers are named whole where one GPU gets all of one.
    """
    total = sum(sizes.values())
    ends = accumulate(sizes.values())
    middles = [end - size / 2 for end, size in zip(ends, sizes.values(), strict=True)]
    devices = [f"cuda:{int(middle * gpus / total)}" for middle in middles]
    of_layer: dict[str, set[str]] = {}
    for name, device in zip(sizes, devices, strict=True):
        of_layer.setdefault(layer_of(name), set()).add(device)
    return {
        layer_of(name) if len(of_layer[layer_of(name)]) == 1 else name: device
        for name, device in zip(sizes, devices, strict=True)
    }


def layer_of(name: str) -> str:
    """Return the layer that a tensor belongs to, or its name where it belongs to none."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return name if number is None else ".".join(parts[: number + 1])


class StoreBench:
    """Loads through a store, timed; every byte is checked."""

    def __init__(self, args: argparse.Namespace, add: Callable[..., None]) -> None:
        """Tell `add` what each case took: the path, the case, seconds, bytes, and facts."""
        self._args = args
        self._add = add

    def measure(self) -> None:
        """Measure every checkpoint: with links lent to other GPUs, without, and without a store."""
        checkpoints = [
            make(kind, self._args, compressed=kind in COMPRESSED_KINDS)
            for kind in self._args.shapes
        ]
        for gpu in range(self._args.gpus):
            torch.zeros(1, device=f"cuda:{gpu}")
        for is_lent in (True, False):
            fan_in = ",".join(map(str, range(self._args.gpus))) if is_lent else ""
            with BenchStore(self._args.work / "models", self._args.pool, fan_in=fan_in) as store:
                for made in checkpoints:
                    for case in self._cases(made, is_lent=is_lent):
                        store.fill(case.directory.name)
                        self._measure("store", made, case, partial(load, store.address, case))
                        store.forget(case.directory.name)
        for made in checkpoints:
            for case in self._cases(made, is_lent=False):
                self._measure(IN_PROCESS, made, case, partial(load, IN_PROCESS, case))

    def _cases(self, made: Made, *, is_lent: bool) -> Iterator[Case]:
        gpus = self._args.gpus
        one = f"fan-in over {gpus} links" if is_lent else "one link"
        sizes = {
            name: prod(shape)
            for name, shape in shapes_of(made.kind, small=self._args.small).items()
        }
        split = split_evenly(sizes, gpus)
        lent = ", links lent" if is_lent else ""
        yield Case(name=one, directory=made.directory, device_map="cuda:0")
        yield Case(name=f"split over {gpus} GPUs{lent}", directory=made.directory, device_map=split)
        if made.compressed is not None:
            yield Case(name=f"{one}, coded", directory=made.compressed, device_map="cuda:0")

    def _measure(self, path: str, made: Made, case: Case, load: Load) -> None:
        expected = json.loads(made.sums.read_text())
        seconds = []
        for _ in range(self._args.runs):
            torch.cuda.empty_cache()
            time.sleep(max(SETTLE_S, made.size_bytes / SCRUBBED_BYTES_PER_S))
            started_s = time.perf_counter()
            tensors = load()
            for device in range(self._args.gpus):
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started_s)
            wrong = differing(tensors, expected)
            if wrong:
                raise SystemExit(f"{case.name}: wrong bytes in {wrong[:3]}")
            del tensors
        self._add(path, case.name, seconds, made.size_bytes, checkpoint=made.kind)


def load(address: str, case: Case) -> dict[str, Any]:
    """Load a checkpoint through the store at an address, or in this process."""
    return dict(load_dict(case.directory, case.device_map, store=address))
