"""Tiny random models of every architecture that the runtime computes, as Transformers has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import (
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig

from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.memory import CacheMemory
from sllm.runtime.config.families import parse_config
from sllm.runtime.decoder import Decoder
from sllm.runtime.weights.resident import ResidentWeights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.weights.source import WeightSource
    from sllm.runtime.weights.stored import StoredWeights

VOCABULARY = 96
TOLERANCE = 1e-5
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3}
_HYBRID: dict[str, Any] = {
    **_SMALL,
    **_EXPERTS,
    "num_hidden_layers": 4,
    "shared_expert_intermediate_size": 20,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
}
_YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _rope(theta: float = 10000.0, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **parameters}}


def _llama(**changes: Any) -> Callable[[], Any]:
    return lambda: LlamaConfig(**{**_SMALL, **changes})


CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": _llama(),
    "llama-tied": _llama(tie_word_embeddings=True),
    "llama-one-head": _llama(num_key_value_heads=4),
    "llama-biases": _llama(attention_bias=True, mlp_bias=True),
    "llama-3": _llama(**_rope(500000.0, **_LLAMA3)),
    "llama-linear": _llama(**_rope(rope_type="linear", factor=2.0)),
    "llama-dynamic": _llama(max_position_embeddings=16, **_rope(rope_type="dynamic", factor=2.0)),
    "llama-yarn": _llama(**_rope(**_YARN)),
    "llama-yarn-scaled": _llama(**_rope(**_YARN, mscale=0.7, mscale_all_dim=0.3, beta_fast=16)),
    "mistral": lambda: MistralConfig(**_SMALL, sliding_window=7),
    "mistral-whole": lambda: MistralConfig(**_SMALL, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**{**_SMALL, "head_dim": 8}),
    "qwen2-windows": lambda: Qwen2Config(
        **{**_SMALL, "head_dim": 8}, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**_SMALL, tie_word_embeddings=True),
    "qwen3-yarn": lambda: Qwen3Config(**_SMALL, **_rope(**_YARN)),
    "qwen3-moe": lambda: Qwen3MoeConfig(**_SMALL, **_EXPERTS, norm_topk_prob=True),
    "qwen3-moe-mixed": lambda: Qwen3MoeConfig(**_SMALL, **_EXPERTS, mlp_only_layers=[0]),
    "qwen3-next": lambda: Qwen3NextConfig(**_HYBRID),
    "qwen3.5-moe": lambda: Qwen3_5MoeTextConfig(**_HYBRID),
}


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A model of Transformers, and ours over the same weights."""

    theirs: Any
    config: ModelConfig
    source: WeightSource
    decoder: Decoder

    def memory(self, *, tokens: int = 512, sequences: int = 8, spares: int = 0) -> CacheMemory:
        """Return a cache for it."""
        return CacheMemory(self.config, tokens=tokens, sequences=sequences, spares=spares)

    @torch.inference_mode()
    def expected(self, tokens: Sequence[int], **inputs: Any) -> torch.Tensor:
        """Return Transformers' logits of a whole sequence: (tokens, vocabulary)."""
        logits: torch.Tensor = self.theirs(torch.tensor([tokens]), **inputs).logits
        return logits[0]


def make_model(name: str, **changes: Any) -> TinyModel:
    """Return a model with weights large enough to make its logits differ.

    changes: other fields of its configuration.
    """
    torch.manual_seed(7)
    their_config = CONFIGS[name]()
    if changes:
        their_config = type(their_config)(**{**their_config.to_dict(), **changes})
    automatic: Any = transformers.AutoModelForCausalLM
    theirs = automatic.from_config(their_config).eval().float()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    config = parse_config(their_config.to_dict(), where=name)
    source = ResidentWeights.of(config, theirs.state_dict())
    return TinyModel(theirs, config, source, Decoder(config, source))


def random_tokens(count: int, seed: int = 0) -> list[int]:
    """Return token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (count,), generator=generator).tolist()


def answer_logits(
    source: StoredWeights,
    tokens: Sequence[int],
    *,
    turns: int = 4,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Return the logits of a prompt and of the likeliest tokens after it, in so many passes."""
    decoder = Decoder(source.config, source, device=device)
    memory = CacheMemory(source.config, tokens=64, sequences=1, device=device)
    sequence, found = memory.open(), []
    for _ in range(turns):
        piece = Piece(sequence=sequence, tokens=tokens, outputs=len(tokens))
        found.append(decoder.forward(Batch.of([piece], device), memory))
        tokens = [int(found[-1][-1].argmax())]
    return torch.cat(found).cpu()


def run_whole(model: TinyModel, tokens: Sequence[int]) -> torch.Tensor:
    """Return our logits of a whole sequence, in one pass."""
    memory = model.memory()
    sequence = memory.open()
    piece = Piece(sequence=sequence, tokens=tokens, outputs=len(tokens))
    return model.decoder.forward(Batch.of([piece]), memory)
