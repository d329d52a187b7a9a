"""An engine on a GPU opens with its kernels there, says what bounds it, and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from sllm.backends.local import EngineOptions, open_engine
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
