"""What each GGUF architecture is called in Hugging Face's terms: the model class and tensor names.

llama.cpp files many models under `llama` (Llama, SmolLM2, Mistral, Yi, ...); all of them have
Llama's structure, so they become `LlamaForCausalLM`, or `MixtralForCausalLM` with experts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sllm_store.convert.gguf_metadata import GgufMetadata

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
_TOP = re.compile(r"([^.]+)\.(weight|bias)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One model class. Names are stems, without '.weight' or '.bias'.

    A '{}' in an expert's name is its index; the GGUF has the experts of a layer in one tensor.
    interleaved_rope: rows of q and k are in llama.cpp's order and have to be put back.
    transposed: stems whose matrices Hugging Face stores as (in, out).
    unsqueezed: stems that Hugging Face stores with a leading dimension of 1.
    """

    name: str
    model_type: str
    class_name: str
    top: Mapping[str, str]
    block_prefix: str
    block: Mapping[str, str]
    experts: Mapping[str, str] = field(default_factory=dict)
    interleaved_rope: bool = False
    transposed: frozenset[str] = frozenset()
    unsqueezed: frozenset[str] = frozenset()

    def rename(self, name: str) -> Renamed | None:
        """Return the Hugging Face name of a GGUF tensor, or None when the model has no such."""
        if matched := _BLOCK.fullmatch(name):
            layer, stem, kind = matched.groups()
            prefix = f"{self.block_prefix}.{layer}."
            if stem in self.experts:
                return Renamed(stem=stem, name=f"{prefix}{self.experts[stem]}.{kind}", expert=True)
            if stem in self.block:
                return Renamed(stem=stem, name=f"{prefix}{self.block[stem]}.{kind}")
        elif (matched := _TOP.fullmatch(name)) and matched[1] in self.top:
            return Renamed(stem=matched[1], name=f"{self.top[matched[1]]}.{matched[2]}")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """Where a GGUF tensor goes; an expert's name still has '{}' for its index."""

    stem: str
    name: str
    expert: bool = False


def find_architecture(metadata: GgufMetadata) -> Architecture:
    """Return the architecture of a GGUF; raise InvalidCheckpointError listing the known ones."""
    name = metadata.architecture
    if name == "llama" and metadata.integer("{arch}.expert_count", 0) > 0:
        return _MIXTRAL
    if name not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise InvalidCheckpointError(
            f"{metadata.path}: general.architecture {name!r} cannot be converted (known: {known})"
        )
    return _ARCHITECTURES[name]


_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_EXPERTS = {
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_SHARED_EXPERT = {
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}

_LLAMA = Architecture(
    name="llama",
    model_type="llama",
    class_name="LlamaForCausalLM",
    top=_TOP_NAMES,
    block_prefix="model.layers",
    block={**_ATTENTION, **_MLP},
    interleaved_rope=True,
)
_MIXTRAL = Architecture(
    name="llama",
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    top=_TOP_NAMES,
    block_prefix="model.layers",
    block={**_ATTENTION, "ffn_gate_inp": "block_sparse_moe.gate"},
    experts={
        "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
        "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
        "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    },
    interleaved_rope=True,
)
_QWEN2 = Architecture(
    name="qwen2",
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    top=_TOP_NAMES,
    block_prefix="model.layers",
    block={**_ATTENTION, **_MLP},
)
_QWEN2_MOE = Architecture(
    name="qwen2moe",
    model_type="qwen2_moe",
    class_name="Qwen2MoeForCausalLM",
    top=_TOP_NAMES,
    block_prefix="model.layers",
    block={**_ATTENTION, **_SHARED_EXPERT, "ffn_gate_inp": "mlp.gate"},
    experts=_EXPERTS,
    unsqueezed=frozenset({"ffn_gate_inp_shexp"}),
)
_QWEN3 = Architecture(
    name="qwen3",
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    top=_TOP_NAMES,
    block_prefix="model.layers",
    block={**_ATTENTION, **_QK_NORM, **_MLP},
)
_QWEN3_MOE = Architecture(
    name="qwen3moe",
    model_type="qwen3_moe",
    class_name="Qwen3MoeForCausalLM",
    top=_TOP_NAMES,
    block_prefix="model.layers",
    block={**_ATTENTION, **_QK_NORM, "ffn_gate_inp": "mlp.gate"},
    experts=_EXPERTS,
)
_GPT2 = Architecture(
    name="gpt2",
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    top={
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
    },
    block_prefix="transformer.h",
    block={
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
    transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
)

_ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (_LLAMA, _QWEN2, _QWEN2_MOE, _QWEN3, _QWEN3_MOE, _GPT2)
}
