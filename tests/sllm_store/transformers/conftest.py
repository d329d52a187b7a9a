"""Tiny random models of several architectures, as their publishers would publish them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from transformers import (
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    T5Config,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LLAMA: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
T5_CONFIG: Any = T5Config
GENERATION_CONFIG: Any = GenerationConfig
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_LLAMA, tie_word_embeddings=True),
    "llama-untied": lambda: LlamaConfig(**_LLAMA, tie_word_embeddings=False),
    "qwen3": lambda: Qwen3Config(**_LLAMA, tie_word_embeddings=True),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **_LLAMA, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=160,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "opt": lambda: OPTConfig(
        vocab_size=160,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        init_std=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "t5": lambda: T5_CONFIG(
        vocab_size=160,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        initializer_factor=1.5,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=0,
    ),
}
IDS = torch.tensor([[5, 17, 3, 99, 121, 64, 8, 2]])


@dataclass(frozen=True)
class TinyModel:
    """A published model: where it is, and the auto class it loads with."""

    name: str
    path: Path
    auto_class: str

    def from_pretrained(self, **options: Any) -> Any:
        """Load it as Transformers does: what we are compared with."""
        loaded = getattr(transformers, self.auto_class).from_pretrained(self.path, **options)
        return loaded.eval()


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Return a model's logits on fixed tokens."""
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    result: torch.Tensor = model(input_ids=ids, **extra).logits
    return result


@pytest.fixture(scope="session")
def logits() -> Callable[..., torch.Tensor]:
    """Return the function that computes logits."""
    return logits_of


@pytest.fixture(scope="session")
def publish(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyModel]:
    """Return a function that makes one of the models, in bfloat16 unless told otherwise."""
    made: dict[tuple[str, torch.dtype], TinyModel] = {}

    def make(name: str, dtype: torch.dtype = torch.bfloat16) -> TinyModel:
        if (name, dtype) not in made:
            torch.manual_seed(0)
            auto = "AutoModelForSeq2SeqLM" if name == "t5" else "AutoModelForCausalLM"
            model = getattr(transformers, auto).from_config(CONFIGS[name]()).to(dtype)
            model.generation_config = GENERATION_CONFIG(
                eos_token_id=[2, 7],
                do_sample=True,
                temperature=0.7,
                bos_token_id=1,
                pad_token_id=0,
                decoder_start_token_id=0 if name == "t5" else None,
            )
            path = tmp_path_factory.mktemp("published") / name
            model.save_pretrained(path)
            made[name, dtype] = TinyModel(name=name, path=path, auto_class=auto)
        return made[name, dtype]

    return make


@pytest.fixture(params=list(CONFIGS))
def published(request: pytest.FixtureRequest, publish: Callable[..., TinyModel]) -> TinyModel:
    """Each of the models in turn."""
    return publish(request.param)
