"""LocalEngine: a model on disk, computed in this process."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sllm.backends.engine import EngineState
from sllm.core.errors import BudgetError, UnsupportedModelError
from sllm.runtime.cache.memory import CacheMemory, bytes_per_token
from sllm.runtime.decoder import Decoder
from sllm.runtime.engine.draft import Draft, check_draft
from sllm.runtime.engine.guesses import Lookup, takes_back
from sllm.runtime.engine.schedule import EngineLimits
from sllm.runtime.engine.token_engine import TokenEngine
from sllm.runtime.weights.stored import StoredWeights
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sllm.backends.engine import Ticket
    from sllm.core.requests import Step, TokenRequest
    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.engine.guesses import Guesser

_CACHE_SHARE = 4  # The cache takes up to this part of the memory that is free, unless told.


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a model is opened.

    context_tokens: of a prompt and its answer; None for the model's own, or what memory allows.
    device: `cpu`, or `auto`, which is the CPU so far. device_budget_bytes and host_budget_bytes:
    what the weights may take in the memory of the device and of the host; None for all of them.
    parallel and waiting: requests that are computed at a time, and that may wait beyond those.
    speculate: whether to guess tokens and check them, where the model allows it; by what came
    before, or by a small model of the same tokens at `draft`, which stays in memory.
    """

    context_tokens: int | None = None
    device: str = "auto"
    device_budget_bytes: int | None = None
    host_budget_bytes: int | None = None
    parallel: int = 8
    waiting: int = 512
    draft: Path | None = None
    speculate: bool = True


class LocalEngine:
    """An engine over weights that are its own; `open_files` are closed after it."""

    def __init__(self, engine: TokenEngine, source: StoredWeights, open_files: ExitStack) -> None:
        self._engine = engine
        self._source = source
        self._open_files = open_files

    @property
    def context_tokens(self) -> int:
        """Return how many tokens a prompt and its answer may have together."""
        return self._engine.limits.context_tokens

    def submit(self, request: TokenRequest, on_step: Callable[[Step], None]) -> Ticket:
        """Take a request; see Engine.submit."""
        return self._engine.submit(request, on_step)

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return one vector a prompt; see Engine.embed."""
        return self._engine.embed(prompts)

    def state(self) -> EngineState:
        """Return what it holds and does."""
        load = self._engine.load()
        return EngineState(
            weight_bytes=self._source.weight_bytes,
            device_bytes=self._source.residency.device_bytes,
            device="cpu",
            context_tokens=self.context_tokens,
            running=load.running,
            waiting=load.waiting,
            tokens_per_s=load.tokens_per_s,
        )

    def close(self) -> None:
        """End every request with EngineClosedError, then free everything."""
        self._engine.close()
        self._open_files.close()


def open_engine(path: Path, options: EngineOptions) -> LocalEngine:
    """Open a checkpoint of any format, ready for requests.

    Raises UnsupportedModelError for what cannot be computed, BudgetError for too little memory,
    and the store's errors for a checkpoint that cannot be read.
    """
    if options.device not in {"auto", "cpu"}:
        raise UnsupportedModelError(f"device {options.device!r}: models are computed on the cpu")
    budgets = [options.device_budget_bytes, options.host_budget_bytes]
    given = [budget for budget in budgets if budget is not None]
    with ExitStack() as opened:
        source = opened.enter_context(
            StoredWeights.open(path, budget_bytes=min(given, default=None))
        )
        draft = None
        if options.speculate and options.draft is not None:
            draft = opened.enter_context(StoredWeights.open(options.draft))
            check_draft(draft.config, source.config)
        configs = [each.config for each in (source, draft) if each is not None]
        tokens, context = _plan_cache(configs, options, free_bytes=_free_bytes())
        limits = EngineLimits(
            context_tokens=context, parallel=options.parallel, waiting=options.waiting
        )
        guesser: Guesser | None = None
        if draft is not None:
            guesser = Draft(*_computing(draft, tokens, limits), pass_tokens=limits.pass_tokens)
        elif options.speculate and takes_back(source.config):
            guesser = Lookup()
        engine = TokenEngine(*_computing(source, tokens, limits), limits, guesser=guesser)
        return LocalEngine(engine, source, opened.pop_all())


def _computing(
    source: StoredWeights, tokens: int, limits: EngineLimits
) -> tuple[Decoder, CacheMemory]:
    memory = CacheMemory(source.config, tokens=tokens, sequences=limits.parallel)
    return Decoder(source.config, source), memory


def _plan_cache(
    configs: Sequence[ModelConfig], options: EngineOptions, *, free_bytes: int
) -> tuple[int, int]:
    """Return the tokens that the caches have room for, and the context of one request."""
    each = max(sum(bytes_per_token(config, torch.float32) for config in configs), 1)
    fits = free_bytes // _CACHE_SHARE // each
    longest = configs[0].context
    context = min(longest, options.context_tokens or longest)
    if options.context_tokens is None:
        context = min(context, fits)
    if context < 2 or context > fits:
        raise BudgetError(
            f"a context of {context} tokens takes {format_size(context * each)}, and the cache may "
            f"have {format_size(fits * each)}: ask for fewer tokens"
        )
    return min(context * options.parallel, fits), context


def _free_bytes() -> int:
    """Return the host memory that is free, or would be once the page cache gave way."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise AssertionError("Linux tells what memory is available")
