"""Caches have the context that is asked for, or what a quarter of the memory has room for."""

from __future__ import annotations

import re

import pytest
import torch

from sllm.backends.cache_plan import CachePlan, plan_cache
from sllm.core.errors import BudgetError
from sllm.runtime.cache.memory import bytes_per_sequence, bytes_per_token
from sllm.runtime.config.families import parse_config
from sllm.runtime.drawing import rows_at_a_time
from sllm.runtime.engine.schedule import EngineLimits
from sllm_store.units import parse_size
from tests.sllm.runtime.tiny_models import CONFIGS

CONFIG = parse_config(CONFIGS["llama"]().to_dict())
HYBRID = parse_config(CONFIGS["qwen3-next"]().to_dict())


def _plan(
    available_bytes: int,
    context_tokens: int | None = None,
    *configs: object,
    parallel: int = 4,
    device: str = "cpu",
) -> CachePlan:
    return plan_cache(
        list(configs or [CONFIG]),  # type: ignore[arg-type]
        device=torch.device(device),
        dtype=torch.float32,
        context_tokens=context_tokens,
        limits=EngineLimits(context_tokens=2, parallel=parallel, pass_tokens=64),
        available_bytes=available_bytes,
    )


def test_with_room_each_request_has_the_model_s_context() -> None:
    plan = _plan(1 << 30)
    assert (plan.tokens, plan.context_tokens) == (4 * 256, 256)
    assert plan.size_bytes > 4 * 256 * bytes_per_token(CONFIG, torch.float32)
    assert _plan(1 << 30, 1000) == plan
    assert _plan(1 << 30, 100).tokens == 400


@pytest.mark.parametrize("config", [CONFIG, HYBRID], ids=["llama", "qwen3-next"])
def test_with_less_room_the_context_is_what_a_quarter_holds(config: object) -> None:
    before = 0
    for available in (3_000_000, 2_000_000, 1_500_000):
        plan = _plan(available, None, config)
        assert plan.size_bytes <= available // 4 + 16 * bytes_per_token(CONFIG, torch.float32)
        assert plan.context_tokens <= plan.tokens
        assert before == 0 or plan.context_tokens < before
        before = plan.context_tokens


def test_states_are_copied_where_a_part_of_the_caches_holds_copies() -> None:
    each = bytes_per_sequence(HYBRID, torch.float32)
    assert _plan(1 << 30, None, HYBRID).spares == 8, "two for each request"
    assert _plan(1 << 30).spares == 0, "there are no states"
    fewer = _plan(1_500_000, None, HYBRID).spares
    assert 0 < fewer < 8
    assert fewer * each <= 1_500_000 // 16


def test_a_context_that_is_asked_for_may_take_more() -> None:
    with pytest.raises(BudgetError, match=r"a context needs .* ask for so many tokens of context"):
        _plan(400_000)
    plan = _plan(600_000, 100)
    assert (plan.tokens, plan.context_tokens) == (100, 100)
    with pytest.raises(BudgetError, match="a context of 256 tokens needs"):
        _plan(300_000, 256)


@pytest.mark.parametrize("context_tokens", [None, 100])
def test_the_budget_that_an_error_names_suffices(context_tokens: int | None) -> None:
    with pytest.raises(BudgetError) as caught:
        _plan(200_000, context_tokens)
    named = re.search(r"needs ([\d.]+ \w+)", str(caught.value))
    assert named
    assert _plan(round(1.01 * parse_size(named[1])), context_tokens).context_tokens >= 2
    with pytest.raises(BudgetError):
        _plan(round(0.98 * parse_size(named[1])), context_tokens)


def test_a_draft_has_a_cache_of_the_same_length() -> None:
    alone, both = _plan(1 << 30), _plan(1 << 30, None, CONFIG, CONFIG)
    assert both.tokens == alone.tokens
    more = both.size_bytes - alone.size_bytes
    assert more >= alone.tokens * bytes_per_token(CONFIG, torch.float32)


def test_a_gpu_has_room_for_the_rows_that_are_drawn_from_together() -> None:
    gpu, vocabulary = torch.device("cuda"), CONFIG.vocabulary
    assert rows_at_a_time(torch.device("cpu"), vocabulary) == 1
    assert rows_at_a_time(gpu, 1 << 40) == 1
    rows = min(rows_at_a_time(gpu, vocabulary), 64)
    more = _plan(1 << 30, 100, device="cuda").size_bytes - _plan(1 << 30, 100).size_bytes
    assert more >= (rows - 1) * vocabulary * 4 * 8
