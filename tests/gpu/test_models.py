"""Transformers models on a real GPU: the same logits as from_pretrained, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from sllm_store.transformers import load_model, save_model
from tests.store_process import start_process

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
KINDS = {"llama": {}, "qwen3": {}, "qwen3_moe": MOE}


def publish(directory: Path, kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, **SIZES, **KINDS[kind], dtype="bfloat16")
    made: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    made.to(torch.bfloat16).save_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, device_map="cuda:0")
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(torch.arange(40, device="cuda:0").view(2, 20)).logits
        return output


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device_map", ["cuda:0", "auto", 0, {"": "cuda:0"}])
def test_logits_are_from_pretraineds(tmp_path: Path, kind: str, device_map: Any) -> None:
    reference = publish(tmp_path / "models" / "hf", kind)
    save_model(reference, tmp_path / "models" / "ours")
    store = start_process(tmp_path / "models", tmp_path)
    try:
        for name in ("hf", "ours"):
            for how in (store.address, "in-process"):
                model: Any = load_model(
                    str(tmp_path / "models" / name), device_map=device_map, store=how
                )
                assert {p.device for p in model.parameters()} == {torch.device("cuda:0")}
                assert torch.equal(logits(model), logits(reference))
                model.half()
                assert logits(model).dtype == torch.float16
    finally:
        store.stop()


def test_a_loaded_model_trains(tmp_path: Path) -> None:
    publish(tmp_path / "hf", "llama")
    model = load_model(str(tmp_path / "hf"), device_map="cuda:0", store="in-process")
    model.train()
    model.requires_grad_(requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.arange(20, device="cuda:0").view(1, 20)
    losses = []
    for _ in range(5):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
