"""How near does streaming come to the link and the disk that bound it?

Writes a model of Llama 70B's layer shapes in Q4_0, a few layers of it, random, and decodes with it
on a device whose budget holds no layer: out of pinned host memory, then from disk, for 1 and for 16
requests. Then experts of Qwen3.5-MoE-397B's shapes, in Q4_0, are used by a routing trace from a
cache on the device over pinned memory, whose books the host keeps, or the device: then a pass is
recorded once and replayed. The link and the disk are measured in the same run, with the
same bytes; a fraction is the time that they need over the time that was needed. Tokens per second
are those of a model with all of its layers. Before anything is read from the disk, the page cache
gives the files up. Without a GPU only the disk is streamed from. With --for-gpu the
models are laid out first, as `gdsllm pull --for-gpu` does.

    python -m benchmarks.streaming --work DIR --out FILE.json [--layers 6] [--passes 8] [--small]
        [--for-gpu] [--only experts] [--books host device]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from benchmarks import page_cache
from benchmarks.result import Result
from benchmarks.routing import Routing, route_tokens
from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.memory import CacheMemory
from sllm.runtime.decoder import Decoder
from sllm.runtime.layers.recording import PlainRecorder, recorder_on
from sllm.runtime.weights import device_placement
from sllm.runtime.weights.laid_out import write_laid_out
from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.opening import device_needs, open_weights
from sllm.runtime.weights.residency import HOST_SLOTS
from sllm_store.groups.ring import open_ring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sllm.runtime.weights.source import ExpertSource
    from sllm.runtime.weights.stored import StoredWeights

BATCHES = (1, 16)
BOOKS = ("host", "device")
WARM_PASSES = 2
TOKENS_OF_PASS = 20
BLOCK_WEIGHTS, BLOCK_BYTES = 32, 18
BUFFERS = 3
VOCABULARY = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """A model's dimensions; `layers_total` is what it is extrapolated to."""

    hidden: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    layers_total: int
    experts: int = 0
    chosen: int = 0


LLAMA_70B = Shapes(hidden=8192, width=28672, heads=64, kv_heads=8, head_dim=128, layers_total=80)
QWEN_397B = Shapes(
    hidden=4096,
    width=1024,
    heads=32,
    kv_heads=2,
    head_dim=256,
    layers_total=60,
    experts=512,
    chosen=10,
)
SMALL = Shapes(hidden=256, width=512, heads=4, kv_heads=2, head_dim=64, layers_total=8)
SMALL_MOE = Shapes(
    hidden=256,
    width=64,
    heads=4,
    kv_heads=2,
    head_dim=64,
    layers_total=8,
    experts=16,
    chosen=2,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a directory on the disk meant")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--small", action="store_true", help="small shapes, to try the program")
    parser.add_argument("--for-gpu", action="store_true", help="lay weights out before")
    parser.add_argument("--only", choices=("layers", "experts"), help="measure these alone")
    parser.add_argument(
        "--books", nargs="+", choices=BOOKS, default=BOOKS, help="who keeps those of the experts"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", default="")
    options = parser.parse_args(arguments)
    if options.layers <= BUFFERS:
        parser.error(f"--layers has to be more than the {BUFFERS} buffers that they go through")
    device = torch.device(options.device)
    shapes, experts = (SMALL, SMALL_MOE) if options.small else (LLAMA_70B, QWEN_397B)
    question = (__doc__ or "").splitlines()[0]
    result = Result(question, out=options.out, device=str(device), commit=options.commit)
    result.describe(layers=options.layers, for_gpu=options.for_gpu)
    laid_out_on = device if options.for_gpu else None
    if options.only != "experts":
        with _written(options.work / "dense.gguf", shapes, options.layers, laid_out_on) as path:
            run = Run(path, shapes, device=device, passes=options.passes)
            _stream_layers(result, run)
    if options.only != "layers":
        with _written(options.work / "moe.gguf", experts, 2, laid_out_on) as path:
            for books in options.books if device.type == "cuda" else ("host",):
                _stream_experts(result, path, experts, device=device, books=books)


def _stream_layers(result: Result, run: Run) -> None:
    for tier in ("host", "disk") if run.device.type == "cuda" else ("disk",):
        for batch in BATCHES:
            _add(result, "layers", run.measure(tier=tier, batch=batch))


def _stream_experts(
    result: Result, path: Path, experts: Shapes, *, device: torch.device, books: str
) -> None:
    device_placement.FETCHED_BY_DEVICE = books == "device"
    for slots in sorted({2 * experts.chosen, experts.experts // 8, experts.experts // 4}):
        row = lease_experts(path, experts, device=device, slots=slots)
        _add(result, "experts", {"books": books, **row})


def _add(result: Result, streamed: str, row: dict[str, Any]) -> None:
    result.add({"streamed": streamed, **row})
    where = f"from {row['tier']:5} batch {row['batch']:3}" if "tier" in row else ""
    where = where or (
        f"{row['slots_per_layer']:4} slots, {row['hit_rate']:.1%} hits, {row['books']}'s books"
    )
    print(
        f"{streamed:8} {where:40} {row['fraction_of_bound']:6.1%} of the bound, "
        f"{row['tokens_per_s_of_whole']:8.2f} tokens/s",
        flush=True,
    )


@contextmanager
def _written(
    path: Path, shapes: Shapes, layers: int, laid_out_on: torch.device | None
) -> Iterator[Path]:
    """Yield a model on disk, laid out if it is said on which device; remove it at the end."""
    planes = path.with_suffix("")
    try:
        write_model(path, shapes, layers)
        if laid_out_on is None:
            yield path
            return
        write_laid_out(path, planes, device=laid_out_on)
        path.unlink()
        yield planes
    finally:
        path.unlink(missing_ok=True)
        shutil.rmtree(planes, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Run:
    """Passes over a model of which nothing but its ends stays on the device."""

    path: Path
    shapes: Shapes
    device: torch.device
    passes: int

    def measure(self, *, tier: str, batch: int) -> dict[str, Any]:
        """Return what passes took, from 'host' memory or 'disk', and what they had to take."""
        model = ModelGroups.open(self.path)
        needs = device_needs(model) if self.device.type == "cuda" else model.needs()
        page_cache.evict(self.path)
        layer_bytes = max(needs.layer_bytes)
        buffers = BUFFERS if self.device.type == "cuda" else HOST_SLOTS
        on_device = needs.ends_bytes + needs.other_bytes + buffers * layer_bytes
        on_host = None if tier == "host" else BUFFERS * layer_bytes
        with open_weights(
            self.path,
            device=self.device,
            device_budget_bytes=on_device,
            host_budget_bytes=on_host if self.device.type == "cuda" else None,
        ) as source:
            streamed = source.residency.streamed
            streamed_bytes = sum(source.layer_bytes(index) for index in streamed)
            seconds = self._decode(source, batch)
        disk_rate = None if tier == "host" else read_rate(model, streamed)
        link_rate = copy_rate(self.device, layer_bytes)
        rates = [rate for rate in (disk_rate, link_rate) if rate is not None]
        bound_s = streamed_bytes / min(rates)
        layers = len(source.config.layers)
        return {
            "tier": tier,
            "batch": batch,
            "streamed_layers": len(streamed),
            "streamed_bytes": streamed_bytes,
            "link_gb_per_s": None if link_rate is None else link_rate / 1e9,
            "disk_gb_per_s": None if disk_rate is None else disk_rate / 1e9,
            "seconds_per_pass": seconds,
            "fraction_of_bound": bound_s / seconds,
            "tokens_per_s_of_whole": batch / (seconds / layers * self.shapes.layers_total),
        }

    def _decode(self, source: StoredWeights, batch: int) -> float:
        """Return the median seconds of a pass of one token for each request."""
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        decoder = Decoder(source.config, source, dtype=dtype, device=self.device)
        memory = CacheMemory(
            source.config, tokens=64 * batch, sequences=batch, dtype=dtype, device=self.device
        )
        sequences = [memory.open() for _ in range(batch)]

        def step() -> None:
            pieces = [Piece(sequence=sequence, tokens=[7]) for sequence in sequences]
            logits = decoder.forward(Batch.of(pieces, self.device), memory)
            logits.argmax(-1).tolist()

        for _ in range(WARM_PASSES):
            step()
        return statistics.median(_seconds(step) for _ in range(self.passes))


def lease_experts(
    path: Path, shapes: Shapes, *, device: torch.device, slots: int, tokens: int = 200
) -> dict[str, Any]:
    """Return what the experts of a routing trace took, with so many slots per layer.

    On a GPU the experts are computed with as well, all that a token was sent to at once. Some
    tokens make a pass, and passes follow each other, since a real one has many times the layers.
    """
    model = ModelGroups.open(path)
    needs = device_needs(model) if device.type == "cuda" else model.needs()
    layers = len(model.config.layers)
    kept = needs.ends_bytes + needs.other_bytes + sum(needs.layer_bytes)
    budget = kept + slots * layers * needs.expert_bytes
    routing = Routing(experts=shapes.experts, chosen=shapes.chosen, layers=layers)
    trace = torch.from_numpy(np.stack(list(route_tokens(routing, tokens=tokens, seed=1))))
    trace, warm = trace.to(device), tokens // 2
    with open_weights(path, device=device, device_budget_bytes=budget) as source:
        counts = source.expert_counts
        assert counts is not None, "not all experts fit"
        step = _experts_step(source, shapes, trace)
        for number in range(0, warm, TOKENS_OF_PASS):
            step(number)
        _synchronise(device)
        counts.reset()
        started_s = time.perf_counter()
        for number in range(warm, tokens, TOKENS_OF_PASS):
            step(number)
        _synchronise(device)
        seconds = (time.perf_counter() - started_s) / (tokens - warm)
        missed, hit_rate = counts.misses / (tokens - warm), counts.hit_rate
    rate = copy_rate(device, needs.expert_bytes)
    if rate is None:
        rate = read_rate(model, range(layers))
    bound_s = missed * needs.expert_bytes / rate
    return {
        "slots_per_layer": slots,
        "hit_rate": hit_rate,
        "bytes_per_token_and_layer": missed / layers * needs.expert_bytes,
        "gb_per_s_of_bound": rate / 1e9,
        "seconds_per_layer": seconds / layers,
        "fraction_of_bound": bound_s / seconds,
        "tokens_per_s_of_whole": 1 / (seconds / layers * shapes.layers_total),
    }


def _experts_step(
    source: StoredWeights, shapes: Shapes, trace: torch.Tensor
) -> Callable[[int], object]:
    """Return what computes the experts of some tokens of a trace, (tokens, layers, chosen)."""
    device = trace.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn((1, shapes.hidden), device=device).to(dtype)
    shares = torch.full((1, shapes.chosen), 1 / shapes.chosen, dtype=dtype, device=device)
    now = trace[:TOKENS_OF_PASS].clone()

    def compute() -> torch.Tensor:
        found = x
        for token, layer in product(range(TOKENS_OF_PASS), range(now.shape[1])):
            with source.layer(layer) as weights:
                assert weights.experts is not None, "every layer has experts"
                found = _use(weights.experts, now[token : token + 1, layer], x, shares)
        return found

    waits = not device_placement.FETCHED_BY_DEVICE
    recorder = PlainRecorder() if waits else recorder_on(device)
    assert recorder is not None, "a device that keeps books records"
    replay = recorder.record(compute)

    def step(number: int) -> object:
        now.copy_(trace[number : number + TOKENS_OF_PASS])
        return replay()

    return step


def _use(
    experts: ExpertSource, chosen: torch.Tensor, x: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    if experts.grouped is not None:
        return experts.grouped(x, chosen, shares)
    with experts.lease(chosen[0].tolist()) as leased:
        dict(leased)
    return x


def copy_rate(device: torch.device, size_bytes: int) -> float | None:
    """Return the bytes per second of copies from pinned memory; None without a link."""
    if device.type != "cuda":
        return None
    source = torch.empty(size_bytes, dtype=torch.uint8).pin_memory()
    target = torch.empty(size_bytes, dtype=torch.uint8, device=device)

    def copies() -> None:
        for _ in range(8):
            target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)

    copies()
    return 8 * size_bytes / min(_seconds(copies) for _ in range(3))


def read_rate(model: ModelGroups, layers: Sequence[int]) -> float:
    """Return the bytes per second at which layers are read one after another, for nobody."""
    groups = [index + 1 for index in layers]
    with open_ring(model.reader, groups, slots=BUFFERS) as ring:

        def turn() -> None:
            for group in groups:
                with ring.lease(group):
                    pass

        turn()
        seconds = statistics.median(_seconds(turn) for _ in range(5))
    return sum(model.reader.size_bytes(group) for group in groups) / seconds


def write_model(path: Path, shapes: Shapes, layers: int) -> Path:
    """Write a GGUF of so many layers: Q4_0 matrices of random blocks, small ends."""
    writer = GGUFWriter(path, "qwen3moe" if shapes.experts else "llama")
    _describe(writer, shapes, layers)
    random = np.random.default_rng(7)
    norm = np.ones(shapes.hidden, dtype=np.float32)
    embedding = random.standard_normal((VOCABULARY, shapes.hidden), dtype=np.float32)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", norm)
    for layer in range(layers):
        floats = {"attn_norm": norm, "ffn_norm": norm}
        if shapes.experts:
            router = random.standard_normal((shapes.experts, shapes.hidden), dtype=np.float32)
            heads = dict.fromkeys(("attn_q_norm", "attn_k_norm"), norm[: shapes.head_dim])
            floats |= {"ffn_gate_inp": router, **heads}
        for name, values in floats.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", values)
        for name, shape in _matrices(shapes).items():
            blocks = random_blocks(random, shape)
            kind = GGMLQuantizationType.Q4_0
            writer.add_tensor(f"blk.{layer}.{name}.weight", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: GGUFWriter, shapes: Shapes, layers: int) -> None:
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(shapes.hidden)
    writer.add_feed_forward_length(shapes.width)
    writer.add_head_count(shapes.heads)
    writer.add_head_count_kv(shapes.kv_heads)
    writer.add_key_length(shapes.head_dim)
    writer.add_value_length(shapes.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if shapes.experts:
        writer.add_expert_count(shapes.experts)
        writer.add_expert_used_count(shapes.chosen)
        writer.add_expert_feed_forward_length(shapes.width)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{number}" for number in range(VOCABULARY)])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["t 0"])


def _matrices(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    queries, keys = shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    experts = (shapes.experts,) if shapes.experts else ()
    suffix = "_exps" if shapes.experts else ""
    return {
        "attn_q": (queries, shapes.hidden),
        "attn_k": (keys, shapes.hidden),
        "attn_v": (keys, shapes.hidden),
        "attn_output": (shapes.hidden, queries),
        f"ffn_gate{suffix}": (*experts, shapes.width, shapes.hidden),
        f"ffn_up{suffix}": (*experts, shapes.width, shapes.hidden),
        f"ffn_down{suffix}": (*experts, shapes.hidden, shapes.width),
    }


def random_blocks(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return Q4_0 blocks of small numbers, as bytes."""
    blocks = (*shape[:-1], shape[-1] // BLOCK_WEIGHTS, BLOCK_BYTES)
    raw = random.integers(0, 256, blocks, dtype=np.uint8)
    raw[..., :2] = np.frombuffer(np.float16(0.004).tobytes(), dtype=np.uint8)
    return raw.reshape(*shape[:-1], -1)


def _seconds(run: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
