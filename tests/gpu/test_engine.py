"""An engine on a GPU opens with its kernels there, says what bounds it, and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from sllm.backends.local import EngineOptions, open_engine
from sllm.backends.measured_rates import rates_for
from sllm.core.sampling import SamplingParameters
from sllm.runtime.peaks import Wanted, ask_tokens, find_peaks
from sllm.runtime.sampler import Draw, draw_each
from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.warming import warmed_products
from tests.sllm.runtime.engine.listening import Listener, make_request
from tests.sllm.runtime.tiny_models import make_model, random_tokens

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_product_of_a_real_model_is_warmed(
    smollm2: Path, device: str, dtype: torch.dtype
) -> None:
    model = ModelGroups.open(smollm2)
    where = torch.device(device)
    with warmed_products(model, device=where, dtype=dtype, room_bytes=1 << 30) as kinds:
        pass
    torch.cuda.synchronize()
    assert len(kinds) >= 5


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "qwen3.5-moe"])
def test_an_engine_opens_warm_and_answers(name: str, tmp_path: Path) -> None:
    make_model(name).theirs.save_pretrained(tmp_path)
    engine, listener = open_engine(tmp_path, EngineOptions(device="cuda")), Listener()
    forecast = engine.state().forecast
    engine.submit(make_request(random_tokens(5), temperature=0), listener)
    assert len(listener.last.choices) > 0 or listener.tokens
    engine.close()
    assert forecast is not None
    assert forecast.bound == "device"
    assert forecast.rates.link
    assert forecast.stored.host == forecast.stored.disk == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_an_engine_on_the_second_gpu_answers_as_on_the_first(tmp_path: Path) -> None:
    make_model("llama").theirs.save_pretrained(tmp_path)
    answers = []
    for device in ("cuda:0", "cuda:1"):
        engine, listener = open_engine(tmp_path, EngineOptions(device=device)), Listener()
        engine.submit(make_request(random_tokens(5), temperature=0), listener)
        assert len(listener.last.choices) > 0 or listener.tokens
        engine.close()
        answers.append(list(listener.tokens))
    assert answers[0] == answers[1]


def test_measuring_what_bounds_a_gpu_leaves_its_memory_to_weights(tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    rates = rates_for(tmp_path, torch.device("cuda"), {"XDG_CACHE_HOME": str(tmp_path)})
    assert rates.link
    assert torch.cuda.memory_reserved() <= before


@pytest.mark.parametrize("spread", [0.05, 3.0])
def test_kernels_draw_what_a_cpu_does(spread: float) -> None:
    generator = torch.Generator().manual_seed(6)
    logits = (torch.randn(40, 151_936, generator=generator) * spread).to(torch.bfloat16).float()
    asked: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
        {"top_k": 64, "min_p": 0.1},
        {"top_p": 0.3, "temperature": 0.1},
        {"temperature": 0},
    ]
    parameters = [
        SamplingParameters(seed=row, max_tokens=9, **asked[row % len(asked)])
        for row in range(len(logits))
    ]
    draws = [Draw(parameters=one, prompt=[1] * 60, answer=[]) for one in parameters]
    expected = draw_each(logits, draws, find_peaks(logits))
    wanted = [Wanted(one, position=60) for one in parameters]
    found = ask_tokens(logits.cuda(), wanted).drawn
    told = [pair for pair in zip(found, expected, strict=True) if pair[0] is not None]
    assert len(told) >= 32, "only top-p alone may leave too many to list"
    assert sum(one == other for one, other in told) >= len(told) - 1, "sums are rounded otherwise"
    assert ask_tokens(logits[1:3].cuda(), wanted[1:3]).drawn == found[1:3], "whoever else is there"


@pytest.mark.parametrize("spread", [0.05, 3.0])
def test_rows_are_drawn_from_together_as_on_a_cpu(spread: float) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = (torch.randn(40, 151_936, generator=generator) * spread).to(torch.bfloat16)
    asked: list[dict[str, Any]] = [{}, {"top_k": 40, "top_p": 0.9}, {"top_p": 0.95}, {"min_p": 0.1}]
    draws = [
        Draw(
            parameters=SamplingParameters(
                seed=row, max_tokens=9, repeat_penalty=1.1, **asked[row % len(asked)]
            ),
            prompt=list(range(row, row + 60)),
            answer=[],
        )
        for row in range(len(logits))
    ]
    expected = draw_each(logits, draws, find_peaks(logits))
    found = draw_each(logits.cuda(), draws, find_peaks(logits.cuda()))
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    assert same >= len(draws) - 1, "sums are rounded in another order"
