"""How fast does a CPU decode SmolLM2-135M (Q4_1): resident, streamed, beside Transformers?

One request, greedy, the same prompt for all. Ours computes from GGUF's blocks, Transformers from
the same weights unpacked to float32. Streamed keeps about half of the layers, and reads the others
from disk in each pass; its bound is the larger of what those bytes take at the best rate at which
the same run read the file, cold, and what a resident pass takes. The file is read whole, and layer
by layer as it is streamed, for nobody, which is a way of its own. The ways take turns, so that what
else the machine does meets all of them.

    python -m benchmarks.decode_cpu --smollm2 FILE.gguf --out FILE.json [--tokens 64] [--threads 2]
        [--runs 3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.result import Result
from sllm.core.sampling import SamplingParameters
from sllm.runtime.cache.memory import CacheMemory
from sllm.runtime.decoder import Decoder
from sllm.runtime.generation import generate
from sllm.runtime.weights.stored import StoredWeights
from sllm_store import native
from sllm_store.groups.reader import GroupReader
from sllm_store.groups.stored import open_stored
from sllm_store.transformers import load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROMPT = list(range(1000, 1032))
RATE_READS = 5
TRANSFORMERS = "Transformers, float32"
STREAMED = "ours, streamed"
FOR_NOBODY = "streamed for nobody"


@dataclass(frozen=True, slots=True)
class Run:
    """The seconds of each token but the first, which waits for the prompt."""

    seconds: list[float]
    tokens: list[int]


class Ours:
    """A decoder over weights in memory, or as much of them as a budget allows."""

    def __init__(self, path: Path, *, budget_bytes: int | None) -> None:
        self.source = StoredWeights.open(path, budget_bytes=budget_bytes)
        self._decoder = Decoder(self.source.config, self.source)
        self._memory = CacheMemory(self.source.config, tokens=1024, sequences=1)

    def run(self, count: int) -> Run:
        """Generate so many tokens."""
        parameters = SamplingParameters(seed=0, max_tokens=count, temperature=0)
        seconds, tokens = [], []
        before_s = time.perf_counter()
        for choice in generate(self._decoder, self._memory, PROMPT, parameters):
            after_s = time.perf_counter()
            seconds.append(after_s - before_s)
            tokens.append(choice.token)
            before_s = after_s
        return Run(seconds[1:], tokens)

    def streamed_bytes(self) -> int:
        """Return what a pass reads."""
        return sum(map(self.source.layer_bytes, self.source.residency.streamed))

    def stream(self, count: int) -> Run:
        """Stream the layers of so many passes for nobody."""
        seconds = []
        for _ in range(count):
            before_s = time.perf_counter()
            for index in self.source.residency.streamed:
                with self.source.layer(index):
                    pass
            seconds.append(time.perf_counter() - before_s)
        return Run(seconds, [])


class Theirs:
    """Transformers' generate."""

    def __init__(self, path: Path) -> None:
        self._model: Any = load_model(
            path, device_map="cpu", torch_dtype=torch.float32, store="in-process"
        )

    def run(self, count: int) -> Run:
        """Generate so many tokens, with a clock that is asked as a streamer is: once a token."""
        clock = _Clock()
        with torch.inference_mode():
            out = self._model.generate(
                torch.tensor([PROMPT]),
                attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
                repetition_penalty=1.0,
                pad_token_id=0,
                streamer=clock,
            )
        return Run(clock.between()[1:], out[0, len(PROMPT) :].tolist())


class _Clock:
    """A streamer that notes when it was given something: the prompt, then each token."""

    def __init__(self) -> None:
        self._times_s: list[float] = []

    def put(self, _value: torch.Tensor) -> None:
        self._times_s.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""

    def between(self) -> list[float]:
        """Return the seconds of each token."""
        pairs = zip(self._times_s, self._times_s[1:], strict=False)
        return [after - before for before, after in pairs]


def read_rate(path: Path) -> float:
    """Return the best rate of several cold reads of the whole file by the store's engine."""
    model = open_stored(path)
    reader = GroupReader(model, [model.tensors])
    size_bytes, best = reader.size_bytes(0), 0.0
    buffer = native.HostBuffer(size_bytes)
    buffer.populate(1)
    for _ in range(RATE_READS):
        native.File(str(path)).evict()
        before_s = time.perf_counter()
        reader.read(0, buffer)
        best = max(best, size_bytes / (time.perf_counter() - before_s))
    return best


def row(name: str, runs: list[Run]) -> dict[str, Any]:
    """Return what some runs say: the median over all their tokens."""
    seconds = [second for run in runs for second in run.seconds]
    return {
        "way": name,
        "tokens_per_s_median": 1 / statistics.median(seconds),
        "tokens_per_s_of_runs": [1 / statistics.median(run.seconds) for run in runs],
    }


def take_turns(
    ways: Mapping[str, Callable[[int], Run]], path: Path, *, tokens: int, runs: int
) -> dict[str, list[Run]]:
    """Run each way once for nothing, then in turns; the file is not in the page cache."""
    done: dict[str, list[Run]] = {name: [] for name in ways}
    for turn in range(runs + 1):
        for name, run in ways.items():
            native.File(str(path)).evict()
            found = run(tokens if turn else 4)
            if turn:
                done[name].append(found)
    return done


def add_rows(result: Result, done: dict[str, list[Run]], *, streamed_bytes: int) -> None:
    """Add a row for each way, and to the streamed one its bounds."""
    reference = done[TRANSFORMERS][0].tokens
    pass_s = {name: 1 / row("", runs)["tokens_per_s_median"] for name, runs in done.items()}
    for name, runs in done.items():
        found = row(name, runs)
        if ours := runs[0].tokens:
            same = [ours[i] == reference[i] for i in range(len(reference))]
            found["tokens_as_transformers"] = same.index(False) if False in same else len(same)
        if name == STREAMED:
            read_s = streamed_bytes / (result.limits["disk"] * 1e9)
            resident_s = pass_s["ours, resident"]
            found["streamed_bytes"] = streamed_bytes
            found["bound_tokens_per_s"] = 1 / max(read_s, resident_s)
            found["bytes_bound_tokens_per_s"] = 1 / read_s
            found["share_of_bound"] = max(read_s, resident_s) / pass_s[name]
            found["share_of_streaming_for_nobody"] = pass_s[FOR_NOBODY] / pass_s[name]
        result.add(found)
        print(f"{name:24} {found['tokens_per_s_median']:8.1f} tokens/s", flush=True)


def main() -> None:
    """Load the three, let them take turns, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smollm2", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path: Path = arguments.smollm2
    result = Result(__doc__.splitlines()[0] if __doc__ else "", out=arguments.out, device="cpu")
    result.describe(threads=arguments.threads, tokens=arguments.tokens)
    result.limit(disk=read_rate(path) / 1e9)
    resident = Ours(path, budget_bytes=None)
    config = resident.source.config
    layers = sum(map(resident.source.layer_bytes, range(len(config.layers))))
    budget_bytes = resident.source.weight_bytes - layers // 2
    streamed, theirs = Ours(path, budget_bytes=budget_bytes), Theirs(path)
    ways = {
        "ours, resident": resident.run,
        STREAMED: streamed.run,
        FOR_NOBODY: streamed.stream,
        TRANSFORMERS: theirs.run,
    }
    done = take_turns(ways, path, tokens=arguments.tokens, runs=arguments.runs)
    result.limit(disk=read_rate(path) / 1e9)
    streamed_bytes = streamed.streamed_bytes()
    for run in done[FOR_NOBODY]:
        result.limit(disk=streamed_bytes / statistics.median(run.seconds) / 1e9)
    result.describe(budget_bytes=budget_bytes)
    add_rows(result, done, streamed_bytes=streamed_bytes)
    for ours in (resident, streamed):
        ours.source.close()


if __name__ == "__main__":
    main()
