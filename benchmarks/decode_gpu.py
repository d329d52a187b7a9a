"""How near does decoding on a GPU come to reading the weights and the cache once a step?

A model of Llama-3.1-8B's shapes, random, resident, made on the device. A step is what an engine
does for it: the next token of every request goes in, and the likeliest one comes back to the
host; steps are replayed as CUDA graphs, or asked for launch by launch. Its bound is what the
matrices and the keys and values take at the rate of a copy, measured in the same run (bytes read
and written). Beside it: how long the host needs to ask for a step, how long kernels run in it (by
the profiler, where there is one), those that run longest, and the tokens per second of the engine,
with everything that is around a step and contexts as long, held against the same bound, and when it
draws tokens as Ollama does by default.

    python -m benchmarks.decode_gpu --out FILE.json [--formats Q4_0,bf16] [--batches 1,8,32]
        [--context 1024] [--steps 32] [--ways graphs,launches] [--small]
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.kernel_cases import measure_limits
from benchmarks.random_models import RandomModel, llama_8b
from benchmarks.result import Result
from sllm.core.requests import TokenRequest
from sllm.core.sampling import SamplingParameters
from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.memory import AttentionMemory, CacheMemory, bytes_per_token
from sllm.runtime.decoder import Decoder
from sllm.runtime.engine.schedule import EngineLimits
from sllm.runtime.engine.token_engine import TokenEngine
from sllm.runtime.layers.recording import recorder_on
from sllm.runtime.peaks import ask_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.core.requests import Step

WARM_STEPS = 4
PROFILED_STEPS = 4
SHOWN_KERNELS = 12
DEADLINE_S = 120
DRAWN = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
COPY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Requests that decode together, each with so many tokens in the cache, and steps to time."""

    batch: int
    context: int
    steps: int


class Stepper:
    """Steps of decoding over a cache that is as full as a case says."""

    def __init__(self, decoder: Decoder, case: Case) -> None:
        self._decoder = decoder
        count = case.steps + WARM_STEPS + PROFILED_STEPS
        self._memory = make_memory(decoder, case, extra=count)
        self._sequences = [self._memory.open() for _ in range(case.batch)]
        for sequence in self._sequences:
            sequence.reserve(case.context + count)
            sequence.length = case.context - 1
        self._tokens = [1] * case.batch

    def step(self) -> float:
        """Take a step; return the seconds until all of it was asked for."""
        started_s = time.perf_counter()
        pieces = [
            Piece(sequence=sequence, tokens=[token])
            for sequence, token in zip(self._sequences, self._tokens, strict=True)
        ]
        logits = self._decoder.forward(Batch.of(pieces, self._decoder.device), self._memory)
        likeliest = ask_tokens(logits, [None] * len(pieces))
        asked_s = time.perf_counter() - started_s
        self._tokens = [peak.token for peak in likeliest.peaks]
        return asked_s


def make_memory(decoder: Decoder, case: Case, *, extra: int) -> CacheMemory:
    """Return a cache with room for a case's contexts and some more tokens, of random numbers."""
    memory = CacheMemory(
        decoder.config,
        tokens=case.batch * (case.context + extra + 16),
        sequences=case.batch,
        dtype=decoder.dtype,
        device=decoder.device,
    )
    for layer in memory.layers:
        assert isinstance(layer, AttentionMemory)
        layer.keys.normal_()
        layer.values.normal_()
    return memory


def measure(model: RandomModel, decoder: Decoder, case: Case, copy_gb_s: float) -> dict[str, Any]:
    """Return the row of a case."""
    stepper = Stepper(decoder, case)
    for _ in range(WARM_STEPS):
        stepper.step()
    asked, taken = [], []
    for _ in range(case.steps):
        started_s = time.perf_counter()
        asked.append(stepper.step())
        taken.append(time.perf_counter() - started_s)
    step_s = statistics.median(taken)
    read = case.batch * case.context * bytes_per_token(model.config, decoder.dtype)
    size_bytes = model.read_bytes() + read
    bound_s = size_bytes / copy_gb_s / 1e9
    return {
        "batch": case.batch,
        "context": case.context,
        "bytes": size_bytes,
        "step_ms": step_s * 1e3,
        "tokens_per_s": case.batch / step_s,
        "bound_ms": bound_s * 1e3,
        "of_copy": bound_s / step_s,
        "asked_ms": statistics.median(asked) * 1e3,
        **_profile(stepper, decoder.device),
        **_measure_engine(decoder, case, bound_s),
    }


def _profile(stepper: Stepper, device: torch.device) -> dict[str, Any]:
    """Return how long kernels run in a step, how many, and which of them the longest."""
    if device.type != "cuda":
        return {}
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(PROFILED_STEPS):
            stepper.step()
        torch.cuda.synchronize(device)
    found = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    found.sort(key=lambda event: -event.self_device_time_total)
    return {
        "kernels_ms": sum(event.self_device_time_total for event in found) / 1e3 / PROFILED_STEPS,
        "kernels": sum(event.count for event in found) / PROFILED_STEPS,
        "longest": [
            {
                "kernel": event.key[:80],
                "ms": event.self_device_time_total / 1e3 / PROFILED_STEPS,
                "launches": event.count / PROFILED_STEPS,
            }
            for event in found[:SHOWN_KERNELS]
        ],
    }


class _Listener:
    """Notes when each token of one request came."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.over = Event()
        self.error: Exception | None = None

    def __call__(self, step: Step) -> None:
        self.times_s.extend(time.perf_counter() for _ in step.choices)
        self.error = step.error
        if step.last:
            self.over.set()


def _measure_engine(decoder: Decoder, case: Case, bound_s: float) -> dict[str, Any]:
    """Return the tokens per second of an engine, and how near its steps come to a step's bound."""
    tokens_per_s = measure_engine(decoder, case, temperature=0)
    step_s = case.batch / tokens_per_s
    return {
        "engine_tokens_per_s": tokens_per_s,
        "engine_of_copy": bound_s / step_s,
        "drawing_tokens_per_s": measure_engine(decoder, case, **DRAWN),
    }


def measure_engine(decoder: Decoder, case: Case, **asked: Any) -> float:
    """Return the tokens per second of an engine once every request has its first.

    Each prompt is as long as a case's context, and in the cache before it is asked for: so all
    requests begin in one pass.
    """
    tokens = case.steps + WARM_STEPS
    limits = EngineLimits(context_tokens=case.context + tokens + 1, parallel=case.batch)
    memory = make_memory(decoder, case, extra=max(tokens, limits.reserve_tokens))
    prompts = [
        tuple((number + place) % decoder.config.vocabulary for place in range(case.context))
        for number in range(case.batch)
    ]
    with TokenEngine(decoder, memory, limits) as engine:
        _answer(engine, prompts, SamplingParameters(seed=0, max_tokens=1, **asked))
        parameters = SamplingParameters(seed=0, max_tokens=tokens, **asked)
        listeners = _answer(engine, prompts, parameters)
    times_s = sorted(second for listener in listeners for second in listener.times_s)
    begun_s = max(listener.times_s[WARM_STEPS - 1] for listener in listeners)
    after = sum(second > begun_s for second in times_s)
    return after / (times_s[-1] - begun_s)


def _answer(
    engine: TokenEngine, prompts: Sequence[tuple[int, ...]], parameters: SamplingParameters
) -> list[_Listener]:
    """Have tokens follow prompts; return who listened, once all are answered."""
    listeners = [_Listener() for _ in prompts]
    for prompt, listener in zip(prompts, listeners, strict=True):
        engine.submit(TokenRequest(prompt=prompt, parameters=parameters), listener)
    for listener in listeners:
        assert listener.over.wait(DEADLINE_S), "the engine answers in time"
        if listener.error is not None:
            raise listener.error
    return listeners


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case, and write the result after each."""
    args = _parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    result = Result(
        (__doc__ or "").splitlines()[0], out=args.out, device=str(device), commit=args.commit
    )
    result.limit(**measure_limits(device, 1 << 16 if args.small else COPY_BYTES))
    for name in args.formats.split(","):
        model = RandomModel(llama_8b(small=args.small), name, device)
        for batch in map(int, args.batches.split(",")):
            case = Case(batch=batch, context=args.context, steps=args.steps)
            for way, recorder in (("graphs", recorder_on(device)), ("launches", None)):
                if way not in args.ways or (way == "graphs" and recorder is None):
                    continue
                decoder = Decoder(
                    model.config, model.weights, dtype=dtype, device=device, recorder=recorder
                )
                row = measure(model, decoder, case, result.limits["copy_gb_s"])
                del decoder  # It holds on to the weights.
                result.add({"format": name, "way": way, **row})
                print(_line(result.rows[-1]), flush=True)
        del model


def _line(row: dict[str, Any]) -> str:
    step = f"{row['step_ms']:8.3f} ms, {row['asked_ms']:.3f} to ask for it"
    kernels = f", {row['kernels_ms']:.3f} in kernels" if "kernels_ms" in row else ""
    rate = f"{row['tokens_per_s']:9.1f} tokens/s {row['of_copy']:6.1%} of a copy"
    engine = f"engine {row['engine_tokens_per_s']:9.1f} tokens/s {row['engine_of_copy']:6.1%}"
    engine += f", drawing {row['drawing_tokens_per_s']:.1f}"
    return (
        f"{row['format']:6} {row['way']:8} batch {row['batch']:3} {rate} {step}{kernels}; {engine}"
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--formats", default="Q4_0,bf16")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--ways", default="graphs,launches")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--commit", default="")
    args = parser.parse_args(arguments)
    args.ways = args.ways.split(",")
    if args.small:
        args.batches, args.context, args.steps = "1,3", 32, 4
    return args


if __name__ == "__main__":
    main()
