"""LocalEngine: a model on disk, computed in this process."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from sllm.backends.cache_plan import plan_cache
from sllm.backends.engine import EngineState
from sllm.backends.forecasting import forecaster
from sllm.backends.measured_rates import disk_rate, rates_for
from sllm.core.errors import InvalidRequestError
from sllm.runtime.cache.memory import CacheMemory
from sllm.runtime.decoder import Decoder
from sllm.runtime.engine.draft import Draft, check_draft
from sllm.runtime.engine.first_passes import compute_first
from sllm.runtime.engine.guesses import Lookup, takes_back
from sllm.runtime.engine.schedule import EngineLimits
from sllm.runtime.engine.token_engine import TokenEngine
from sllm.runtime.layers.recording import recorder_on
from sllm.runtime.weights.free_memory import free_on_device, free_on_host
from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.opening import place_weights
from sllm.runtime.weights.warming import warmed_products
from sllm_store.interpreter import short_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sllm.backends.cache_plan import CachePlan
    from sllm.backends.engine import Ticket
    from sllm.core.requests import Step, TokenRequest
    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.engine.guesses import Guesser
    from sllm.runtime.weights.forecast import Forecast
    from sllm.runtime.weights.stored import StoredWeights
    from sllm_store.groups.head_start import HeadStart


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a model is opened.

    context_tokens: of a prompt and its answer; None for the model's own, or what memory allows.
    device: `cpu`, `cuda` or `cuda:1` and so on; `auto` for a GPU if there is one. The CPU computes
    in float32, a GPU in the checkpoint's floats of 16 bits, or else in bfloat16.
    device_budget_bytes: what weights, caches and what is in between may take of the device's
    memory; host_budget_bytes: what weights may take of the host's, and on the CPU that is the
    device. None for most of what is free. Weights beyond that are streamed.
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
    """An engine over weights that are its own; what is in `opened` is closed after it.

    idle: its state without requests.
    """

    def __init__(
        self,
        engine: TokenEngine,
        idle: EngineState,
        opened: ExitStack,
        *,
        forecast: Callable[[], Forecast],
    ) -> None:
        self._engine = engine
        self._forecast = forecast
        self._idle = idle
        self._opened = opened

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
        return replace(
            self._idle,
            running=load.running,
            waiting=load.waiting,
            tokens_per_s=load.tokens_per_s,
            forecast=self._forecast(),
        )

    def close(self) -> None:
        """End every request with EngineClosedError, then free everything."""
        self._engine.close()
        self._opened.close()


def open_engine(
    path: Path, options: EngineOptions, *, head_start: HeadStart | None = None
) -> LocalEngine:
    """Open a checkpoint of any format, ready for requests.

    head_start: of the same checkpoint, on the same device; it is not needed afterwards.
    Raises UnsupportedModelError for what cannot be computed, BudgetError for too little memory,
    and the store's errors for a checkpoint that cannot be read.
    """
    model = ModelGroups.open(path, None if head_start is None else head_start.stored())
    config = model.config
    site = _choose_site(config, options, head_start)
    limits = EngineLimits(context_tokens=2, parallel=options.parallel, waiting=options.waiting)
    # Nothing is measured beside what comes ahead; where that fits twice, there is room afterwards.
    comes_ahead = head_start is not None and head_start.taken_bytes() > 0
    rates = None if comes_ahead else rates_for(path, site.device)
    with ExitStack() as opened:
        draft = _open_draft(config, site, options)
        if draft is not None:
            opened.enter_context(draft)
        plan = plan_cache(
            [config] if draft is None else [config, draft.config],
            device=site.device,
            dtype=site.dtype,
            context_tokens=options.context_tokens,
            limits=limits,
            available_bytes=site.budget_bytes,
        )
        draft_bytes = 0 if draft is None else draft.residency.device_bytes
        other_bytes = plan.size_bytes + draft_bytes
        # Other threads parse and compile meanwhile.
        with short_turns(), site.warming(model, plan.size_bytes):
            source = opened.enter_context(
                place_weights(
                    model,
                    device=site.device,
                    device_budget_bytes=site.budget_bytes,
                    host_budget_bytes=options.host_budget_bytes,
                    other_bytes=other_bytes,
                    head_start=head_start,
                )
            )
        if head_start is not None:
            head_start.close()
        # The load may have taught the disk's rate.
        rates = replace(rates or rates_for(path, site.device), disk=disk_rate(path))
        limits = replace(limits, context_tokens=plan.context_tokens)
        guesser: Guesser | None = None
        if draft is not None:
            decoder, memory = site.prepare(draft, plan, limits)
            guesser = Draft(decoder, memory, pass_tokens=limits.pass_tokens)
        elif options.speculate and takes_back(config):
            guesser = Lookup()
        decoder, memory = site.prepare(source, plan, limits)
        if site.has_kernels and not source.residency.streamed:
            compute_first(decoder, memory, context_tokens=plan.context_tokens)
        engine = TokenEngine(decoder, memory, limits, guesser=guesser)
        idle = _idle_state(source, site, plan, other_bytes)
        forecast = forecaster(model, source, rates, has_host=site.has_kernels)
        return LocalEngine(engine, idle, opened.pop_all(), forecast=forecast)


def _idle_state(
    source: StoredWeights, site: _Site, plan: CachePlan, other_bytes: int
) -> EngineState:
    return EngineState(
        weight_bytes=source.weight_bytes,
        device_bytes=source.residency.device_bytes - other_bytes,
        device=str(site.device),
        context_tokens=plan.context_tokens,
        running=0,
        waiting=0,
        tokens_per_s=0.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """Where a model is computed, in which floats, and what may be taken of the memory there."""

    device: torch.device
    dtype: torch.dtype
    budget_bytes: int

    @property
    def has_kernels(self) -> bool:
        """Return whether anything is compiled, or loaded by its first use."""
        return self.device.type != "cpu"

    def warming(self, model: ModelGroups, room_bytes: int) -> AbstractContextManager[object]:
        """Return a context beside which kernels for a model are made ready.

        room_bytes: memory of the device that nothing in the context takes.
        """
        if not self.has_kernels:
            return nullcontext()
        from sllm.runtime.kernels.warm_memory import memory_of

        return warmed_products(
            model,
            device=self.device,
            dtype=self.dtype,
            room_bytes=room_bytes,
            memory=memory_of(self.device),
        )

    def prepare(
        self, source: StoredWeights, plan: CachePlan, limits: EngineLimits
    ) -> tuple[Decoder, CacheMemory]:
        """Return what computes with weights, and its cache."""
        memory = CacheMemory(
            source.config,
            tokens=plan.tokens,
            sequences=limits.parallel,
            spares=plan.spares,
            dtype=self.dtype,
            device=self.device,
        )
        decoder = Decoder(
            source.config,
            source,
            dtype=self.dtype,
            device=self.device,
            recorder=recorder_on(self.device),
        )
        return decoder, memory


def _choose_site(
    config: ModelConfig, options: EngineOptions, head_start: HeadStart | None
) -> _Site:
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cpu":
        given = [options.device_budget_bytes, options.host_budget_bytes]
        free = free_on_host()
        budget = min((size for size in given if size is not None), default=free)
        return _Site(device=device, dtype=torch.float32, budget_bytes=budget)
    if device.type != "cuda" or not torch.cuda.is_available():
        raise InvalidRequestError(
            f"device {options.device!r}: use auto, cpu, or cuda and a number where there is a GPU"
        )
    asked = options.device_budget_bytes
    # What came ahead goes once the weights are laid out, and caches are made after that.
    ahead_bytes = 0 if head_start is None else head_start.taken_bytes()
    budget = free_on_device(device) + ahead_bytes if asked is None else asked
    dtype = torch.float16 if config.dtype == "float16" else torch.bfloat16
    return _Site(device=device, dtype=dtype, budget_bytes=budget)


def _open_draft(config: ModelConfig, site: _Site, options: EngineOptions) -> StoredWeights | None:
    """Open the draft, if there is to be one; all of it stays on the device."""
    if not options.speculate or options.draft is None:
        return None
    draft = ModelGroups.open(options.draft)
    check_draft(draft.config, config)
    return place_weights(draft, device=site.device, device_budget_bytes=site.budget_bytes)
