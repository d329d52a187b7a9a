"""What each GGUF architecture is called in Hugging Face's terms: the model class and tensor names.

llama.cpp files many models under `llama` (Llama, SmolLM2, Mistral, Yi, ...); all of them have
Llama's structure, so they become `LlamaForCausalLM`, or `MixtralForCausalLM` with experts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sllm_store.convert.gguf_delta import NEXT, QWEN35
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sllm_store.convert.gguf_metadata import GgufMetadata

_IN_BLOCK = re.compile(r"blk\.(\d{1,9})\.(.+)")
_TOP = re.compile(r"([^.]+)\.(weight|bias)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One model class. Names are stems, without '.weight' or '.bias'.

    A '{}' in an expert's name is its index; the GGUF has the experts of a layer in one tensor.
    interleaved_rope: rows of q and k are in llama.cpp's order and have to be put back.
    transposed: stems whose matrices Hugging Face stores as (in, out).
    unsqueezed: stems that Hugging Face stores with a leading dimension of 1. convolutions: with one
    after the first. joined: stems whose tensor is one with that of another stem. whole: names
    without a layer's prefix, of tensors that are not called '.weight' or '.bias' by both.
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
    convolutions: frozenset[str] = frozenset()
    joined: Mapping[str, str] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)

    def rename(self, name: str, *, layers: int) -> Renamed | None:
        """Return the Hugging Face name of a GGUF tensor, or None when the model has no such.

        Of what comes after its layers, a model may make guesses; nothing else needs that.
        """
        if matched := _IN_BLOCK.fullmatch(name):
            layer, rest = matched.groups()
            if int(layer) >= layers:
                return Renamed(stem=rest, name="", unused=True)
            return self._rename_in_block(f"{self.block_prefix}.{layer}", rest)
        if (matched := _TOP.fullmatch(name)) and matched[1] in self.top:
            return Renamed(stem=matched[1], name=f"{self.top[matched[1]]}.{matched[2]}")
        return None

    def _rename_in_block(self, prefix: str, name: str) -> Renamed | None:
        stem, _, kind = name.partition(".")
        if stem in self.joined.values():
            return Renamed(stem=stem, name="", unused=True)
        if name in self.whole:
            return Renamed(stem=stem, name=f"{prefix}.{self.whole[name]}")
        names = self.experts if stem in self.experts else self.block
        if stem not in names or kind not in {"weight", "bias"}:
            return None
        return Renamed(
            stem=stem, name=f"{prefix}.{names[stem]}.{kind}", expert=names is self.experts
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """Where a GGUF tensor goes; an expert's name still has '{}' for its index.

    unused: whether nothing is made of it by itself.
    """

    stem: str
    name: str
    expert: bool = False
    unused: bool = False


def layer_count(metadata: GgufMetadata) -> int:
    """Return how many layers a model has, without those behind them that only guess."""
    layers = metadata.integer("{arch}.block_count")
    guessing = metadata.integer("{arch}.nextn_predict_layers", 0)
    if not 0 <= guessing <= layers:
        raise InvalidCheckpointError(
            f"{metadata.path}: {guessing} of {layers} layers cannot be for guesses "
            f"({metadata.key('{arch}.nextn_predict_layers')})"
        )
    return layers - guessing


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

_HYBRID_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    **_QK_NORM,
}
_DELTA = {
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
_HYBRID_ATTENTION = {
    name: _ATTENTION[name] for name in ("attn_q", "attn_k", "attn_v", "attn_output")
}
_HYBRID_BLOCK = {
    **_HYBRID_NORMS,
    **_HYBRID_ATTENTION,
    **_DELTA,
    **_SHARED_EXPERT,
    "ffn_gate_inp": "mlp.gate",
}
_QWEN3_NEXT = Architecture(
    name="qwen3next",
    model_type=NEXT,
    class_name="Qwen3NextForCausalLM",
    top=_TOP_NAMES,
    block_prefix="model.layers",
    block={
        **_HYBRID_BLOCK,
        "attn_qkv": "linear_attn.in_proj_qkvz",
        "ssm_in": "linear_attn.in_proj_qkvz",  # What the first files have.
        "ssm_ba": "linear_attn.in_proj_ba",
    },
    experts=_EXPERTS,
    unsqueezed=frozenset({"ffn_gate_inp_shexp"}),
    convolutions=frozenset({"ssm_conv1d"}),
    joined={"attn_qkv": "attn_gate"},
    whole={"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"},
)
_QWEN35_MOE = replace(
    _QWEN3_NEXT,
    name="qwen35moe",
    model_type=QWEN35,
    class_name="Qwen3_5MoeForCausalLM",
    block={
        **_HYBRID_BLOCK,
        "attn_qkv": "linear_attn.in_proj_qkv",
        "attn_gate": "linear_attn.in_proj_z",
        "ssm_alpha": "linear_attn.in_proj_a",
        "ssm_beta": "linear_attn.in_proj_b",
    },
    joined={},
)

_ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        _LLAMA,
        _QWEN2,
        _QWEN2_MOE,
        _QWEN3,
        _QWEN3_MOE,
        _QWEN3_NEXT,
        _QWEN35_MOE,
        _GPT2,
    )
}
