"""What benchmarks.kernels times: products with weights in every format, and a clock for them.

A case has as many copies of its weight as it takes for none to be in the cache when its turn comes.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.device_copy import copy_floats
from sllm.runtime.kernels import column_products, fixed_products, products
from sllm.runtime.kernels.attention import Paged, attend_paged, attend_plain
from sllm.runtime.kernels.chains import chained_launches
from sllm.runtime.kernels.fixed_columns import fix, room_beside, room_of
from sllm.runtime.kernels.launch_book import book_of
from sllm.runtime.kernels.launches import (
    ColumnsLaunch,
    FixedLaunch,
    GemmLaunch,
    GemvLaunch,
    candidate_columns,
    candidate_denses,
    candidate_fixed,
    candidate_gemms,
    candidate_gemvs,
)
from sllm.runtime.kernels.layout import WIDTH, Format, Planes, numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
BF16, CUBLAS = "bf16", "bf16-cublas"
FORMATS: dict[str, tuple[Format, tuple[str, ...]]] = {
    "Q4_0": (Format(4, 8, 32), ()),
    "Q4_1": (Format(4, 0, 32), ("offsets",)),
    "Q5_0": (Format(5, 16, 32), ("high",)),
    "Q8_0": (Format(8, 128, 32), ()),
    "Q4_K": (Format(4, 0, 256), ("offsets", "steps", "floors")),
    "Q5_K": (Format(5, 0, 256), ("high", "offsets", "steps", "floors")),
    "Q6_K": (Format(6, 32, 256, halves=2), ("high", "steps")),
    "affine-64": (Format(4, 0, 64), ("offsets",)),
}
_REPEATS = 20
_COPIED_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A product: the format of the weight, its shape, and the tokens."""

    format: str
    rows: int
    columns: int
    tokens: int

    def weight(self, device: torch.device, seed: int) -> torch.Tensor | Planes:
        """Return a weight of random bits."""
        generator = torch.Generator(device).manual_seed(seed)
        if self.format in {BF16, CUBLAS}:
            shape = (self.rows, self.columns)
            values = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
            return values * 0.02
        return random_planes(self, generator)

    def input(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Return x as a layer has it: in fixed point too, where whoever makes x leaves it so."""
        x = torch.randn(self.tokens, self.columns, device=device, dtype=dtype)
        beside = room_beside(x)
        if beside is not None:
            beside.copy_(fix(x, room_of(beside)))
        return x

    def multiply(
        self, x: torch.Tensor, weight: torch.Tensor | Planes, launch: Any = None
    ) -> torch.Tensor:
        """Return the product, by the kernel that the runtime takes for it."""
        if self.format == CUBLAS:
            assert isinstance(weight, torch.Tensor)
            return torch.nn.functional.linear(x, weight.to(x.dtype))
        if isinstance(weight, torch.Tensor):
            return products.multiply_dense(x, weight, launch)
        if column_products.fits_columns(x, weight):
            return column_products.multiply_columns(x, weight, launch)
        if fixed_products.fits_fixed(x, weight):
            return fixed_products.multiply_fixed(x, weight, launch)
        if self.is_tiled:
            return products.multiply_planar_tiles(x, weight, launch)
        return products.multiply_planar(x, weight, launch)

    @property
    def has_kernel(self) -> bool:
        """Whether a kernel is there for it: of floats, more tokens than one are cuBLAS's."""
        return self.format != BF16 or self.tokens == 1

    @property
    def is_tiled(self) -> bool:
        """Whether tiles of numbers are multiplied."""
        return self.format in FORMATS and self.tokens > products.MOST_GEMV_TOKENS

    def candidates(
        self, x: torch.Tensor, weight: torch.Tensor | Planes
    ) -> Iterator[ColumnsLaunch | FixedLaunch | GemvLaunch | GemmLaunch | None]:
        """Yield the launches to try."""
        if isinstance(weight, Planes) and column_products.fits_columns(x, weight):
            yield from candidate_columns(weight.low.shape[1])
        elif isinstance(weight, Planes) and fixed_products.fits_fixed(x, weight):
            yield from candidate_fixed(weight.low.shape[1])
        elif self.format == CUBLAS:
            yield None
        elif self.format == BF16:
            yield from candidate_denses(self.columns // 8)
        elif self.is_tiled:
            groups = self.columns // FORMATS[self.format][0].group
            yield from candidate_gemms(groups, tokens=self.tokens)
        else:
            yield from candidate_gemvs(self.columns // FORMATS[self.format][0].group)

    def remember(
        self,
        weight: torch.Tensor | Planes,
        launch: ColumnsLaunch | FixedLaunch | GemvLaunch | GemmLaunch,
    ) -> None:
        """Keep a launch for the runtime."""
        if isinstance(weight, torch.Tensor):
            key, device = products.dense_key(weight), weight.device
        elif isinstance(launch, ColumnsLaunch):
            key, device = column_products.columns_key(weight, self.tokens), weight.low.device
        elif isinstance(launch, FixedLaunch):
            key, device = fixed_products.fixed_key(weight, self.tokens), weight.low.device
        else:
            key, device = products.planar_key(weight, self.tokens), weight.low.device
        book_of(device).remember(key, launch)


def random_planes(case: Case, generator: torch.Generator) -> Planes:
    """Return planes of random weights, with scales that keep products small."""
    form, names = FORMATS[case.format]
    groups, wide = case.columns // form.group, case.columns // form.scale_columns
    device = generator.device
    whole = partial(torch.randint, generator=generator, device=device)

    def floats(columns: int) -> torch.Tensor:
        shape = (case.rows, columns)
        return torch.rand(shape, generator=generator, device=device).half() * 0.01

    low = whole(-(1 << 31), 1 << 31, (case.rows, groups, WIDTH), dtype=torch.int32)
    makers: dict[str, Callable[[], torch.Tensor]] = {
        "offsets": lambda: floats(wide),
        "steps": lambda: whole(1, 64, (case.rows, groups * form.halves), dtype=torch.uint8),
        "floors": lambda: whole(1, 64, (case.rows, groups), dtype=torch.uint8),
        "high": lambda: (
            whole(0, 256, (case.rows, groups, WIDTH), dtype=torch.uint8)
            if form.bits == 5
            else whole(-(1 << 15), 1 << 15, (case.rows, groups, WIDTH), dtype=torch.int16)
        ),
    }
    return Planes(form, low, floats(wide), **{name: makers[name]() for name in names})


def size_of(weight: torch.Tensor | Planes) -> int:
    """Return the bytes that a product reads of a weight."""
    return weight.nbytes if isinstance(weight, torch.Tensor) else weight.size_bytes


def error_of(x: torch.Tensor, weight: torch.Tensor | Planes, found: torch.Tensor) -> float:
    """Return the largest difference from the product in float32, over the largest result."""
    values = weight.float() if isinstance(weight, torch.Tensor) else numbers(weight)
    expected = x.float() @ values.T
    return float((found.float() - expected).abs().max() / expected.abs().max())


def measure_attention(
    requests: int, length: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the row of one decoding step's attention, in the shapes of Llama-3.1-8B."""
    heads, kv_heads, width, page_tokens = 32, 8, 128, 16
    columns = -(-length // page_tokens)
    shape = (requests * columns * page_tokens, kv_heads, width)
    keys, values = (torch.randn(shape, device=device, dtype=dtype) for _ in "kv")
    paged = Paged(
        keys=keys,
        values=values,
        pages=torch.randperm(requests * columns, device=device).int().view(requests, columns),
        lengths=torch.full((requests,), length, dtype=torch.int32, device=device),
        page_tokens=page_tokens,
    )
    query = torch.randn(requests, heads, width, device=device, dtype=dtype)
    expected = attend_plain(query, paged).float()
    found = attend_paged(query, paged).float()
    seconds = seconds_of([partial(attend_paged, query, paged)], device)
    size = 2 * requests * length * kv_heads * width * dtype.itemsize
    return {
        "format": "attention",
        "rows": requests,
        "columns": length,
        "tokens": requests,
        "launch": None,
        "bytes": size,
        "us": seconds * 1e6,
        "gb_s": size / seconds / 1e9,
        "error": float((found - expected).abs().max() / expected.abs().max()),
    }


def seconds_of(acts: list[Callable[[], Any]], device: torch.device) -> float:
    """Return what one of several acts takes: the median of replays of all of them as one graph.

    As in a recorded step, kernels of the graph make a chain.
    """
    if device.type != "cuda":
        started_s = time.perf_counter()
        for act in acts:
            act()
        return (time.perf_counter() - started_s) / len(acts)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), chained_launches(device):
        for act in acts[:2]:
            act()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), chained_launches(device):
        for act in acts:
            act()
    graph.replay()
    taken: list[float] = []
    for _ in range(_REPEATS):
        start, end = _event(), _event()
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return statistics.median(taken) / len(acts)


def measure_limits(device: torch.device, size_bytes: int) -> dict[str, float]:
    """Return GB/s of a copy on the device, read and written bytes together, and of reading.

    A copy is PyTorch's or a kernel's, whichever is faster: one by the copy engine, as a graph has
    it, falls short of what the memory allows.
    """
    source = torch.ones(size_bytes // 4, device=device)
    target = torch.empty_like(source)
    programs = -(-source.numel() // _COPIED_AT_ONCE)

    def copy() -> None:
        copy_floats[(programs,)](target, source, source.numel(), block=_COPIED_AT_ONCE)

    copied_s = min(_best_of(lambda: target.copy_(source), device), _best_of(copy, device))
    read_s = _best_of(source.sum, device)
    size = source.nbytes
    return {"copy_gb_s": 2 * size / copied_s / 1e9, "read_gb_s": size / read_s / 1e9}


def _best_of(act: Callable[[], Any], device: torch.device) -> float:
    """Return the least time of an act on its own, not as a graph."""
    if device.type != "cuda":
        return seconds_of([act], device)
    events = [(_event(), _event()) for _ in range(_REPEATS)]
    for start, end in events:
        start.record()
        act()
        end.record()
    torch.cuda.synchronize()
    taken: list[float] = [start.elapsed_time(end) / 1e3 for start, end in events]
    return min(taken)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
