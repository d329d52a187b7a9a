"""CachePlan: how much context there is room for, from bytes alone. Pure.

Weights come first, since what is not there is read again for each pass: caches, and what is in
between, take up to a quarter of the memory, unless a longer context is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm.core.errors import BudgetError
from sllm.runtime.cache.memory import PAGE_TOKENS, bytes_per_sequence, bytes_per_token
from sllm.runtime.config.model import AttentionConfig, MlpConfig
from sllm.runtime.drawing import rows_at_a_time
from sllm.runtime.engine.guesses import GUESSES_MAX
from sllm_store.units import div_ceil, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sllm.runtime.config.model import LayerConfig, ModelConfig
    from sllm.runtime.engine.schedule import EngineLimits

_SHARE = 4
_SAMPLING_BYTES = 4 + 5 * 8  # Of a token: its score, and doubles that are sorted and summed.


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """Tokens that the caches have room for, tokens of one request, and the bytes of it all.

    spares: copies of the states of a sequence, of layers that keep no tokens.
    """

    tokens: int
    context_tokens: int
    spares: int
    size_bytes: int


def plan_cache(
    configs: Sequence[ModelConfig],
    *,
    device: torch.device,
    dtype: torch.dtype,
    context_tokens: int | None,
    limits: EngineLimits,
    available_bytes: int,
) -> CachePlan:
    """Return the plan for a model, and perhaps a draft after it, that have caches of one length.

    Without a context that is asked for, it is the model's own or what fits. Raises BudgetError if
    that is nothing, or if what is asked for needs more than there is.
    """
    parallel, pass_tokens = limits.parallel, limits.pass_tokens
    each = max(sum(bytes_per_token(config, dtype) for config in configs), 1)
    outputs = min(pass_tokens, parallel * (1 + GUESSES_MAX))
    # Where steps are recorded, states are kept meanwhile: see CacheMemory.keep_states.
    kept = 1 if device.type == "cpu" else 2
    fixed = sum(
        kept * parallel * bytes_per_sequence(config, dtype)
        + _pass_bytes(config, dtype, tokens=pass_tokens, outputs=outputs)
        + min(outputs, rows_at_a_time(device, config.vocabulary))
        * config.vocabulary
        * _SAMPLING_BYTES
        for config in configs
    )
    seen = max(_context_bytes(config, dtype, pass_tokens) for config in configs)
    share = available_bytes // _SHARE - fixed
    spares, spares_bytes = _plan_spares(configs[0], dtype, parallel, share)
    share, fixed = share - spares_bytes, fixed + spares_bytes
    longest = configs[0].context
    if context_tokens is None:
        context = min(longest, share // (each + seen) // PAGE_TOKENS * PAGE_TOKENS)
    else:
        context = min(longest, context_tokens)
    tokens = max(context, min(context * parallel, (share - context * seen) // each))
    pages_bytes = div_ceil(tokens, PAGE_TOKENS) * PAGE_TOKENS * each
    size_bytes = fixed + context * seen + pages_bytes
    if context < 2 or size_bytes > available_bytes:
        allowed = f"{format_size(available_bytes)} are allowed for it and the weights"
        if context_tokens is not None:
            raise BudgetError(
                f"a context of {max(context, 2)} tokens needs {format_size(size_bytes)} of memory, "
                f"and {allowed}: ask for a shorter context, or allow more"
            )
        least_bytes = _SHARE * (fixed + PAGE_TOKENS * (each + seen))
        raise BudgetError(
            f"a context needs {format_size(least_bytes)} of memory, of which it takes a quarter, "
            f"and {allowed}: allow more, or ask for so many tokens of context (--context 512), "
            "which may take more than a quarter"
        )
    return CachePlan(tokens=tokens, context_tokens=context, spares=spares, size_bytes=size_bytes)


def _plan_spares(
    config: ModelConfig, dtype: torch.dtype, parallel: int, share_bytes: int
) -> tuple[int, int]:
    """Return how many copies of states there are, and their bytes: up to a part of the share.

    That is one for each request's guesses, and one to begin another request with.
    """
    each = bytes_per_sequence(config, dtype)
    if each == 0:
        return 0, 0
    spares = max(min(2 * parallel, share_bytes // _SHARE // each), 0)
    return spares, spares * each


def _pass_bytes(config: ModelConfig, dtype: torch.dtype, *, tokens: int, outputs: int) -> int:
    """Return what is in between in a pass: the widest layer and logits."""
    widest = max(_width(layer) for layer in config.layers) + 6 * config.hidden
    logits = outputs * config.vocabulary * (dtype.itemsize + 4)
    return tokens * widest * dtype.itemsize + logits


def _width(layer: LayerConfig) -> int:
    mixer, mlp = layer.mixer, layer.mlp
    if isinstance(mixer, AttentionConfig):
        mixed = (3 * mixer.heads + 2 * mixer.kv_heads) * mixer.head_dim
    else:
        mixed = 4 * mixer.convolved_width
    mlp_width = mlp.width if isinstance(mlp, MlpConfig) else mlp.width * mlp.chosen
    return max(mixed, 3 * mlp_width)


def _context_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int) -> int:
    """Return what a pass has in between for each token that a prompt's chunk looks back at.

    That is keys and values, gathered, and scores with their exponentials, of one layer.
    """
    attentions = [
        layer.mixer for layer in config.layers if isinstance(layer.mixer, AttentionConfig)
    ]
    gathered = max((2 * each.kv_heads * each.head_dim for each in attentions), default=0)
    scores = max((2 * each.heads * tokens for each in attentions), default=0)
    return (gathered + scores) * dtype.itemsize
