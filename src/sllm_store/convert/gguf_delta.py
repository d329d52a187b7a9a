"""Gated DeltaNet in a GGUF: what llama.cpp's converter changes of such models, undone.

Qwen3-Next and Qwen3.5-MoE have norms of the residual stream, and of queries and keys, with one
added, and the decays' logarithms as the decays themselves: -exp(A_log). What Qwen3-Next projects
in one matrix, by key head its query, key, values and gates, is two: all queries, keys and values,
and all gates. Qwen3.5-MoE's value heads are in another order: the first one of every key head,
then the second one of every key head, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from sllm_store.convert.gguf_metadata import GgufMetadata

    Arrays = Sequence[NDArray[Any]]

NEXT = "qwen3_next"
QWEN35 = "qwen3_5_moe_text"
_NORMS = ("attn_norm", "post_attention_norm", "output_norm", "attn_q_norm", "attn_k_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What makes Hugging Face's tensor of what a GGUF has.

    arrange: puts the numbers of the GGUF's tensors, as many as are needed, in order. compute:
    makes other numbers of them, in float32. lengths: what the GGUF's tensors must have, each in
    dimension `axis`.
    """

    arrange: Callable[[Arrays], NDArray[Any]] | None = None
    compute: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    lengths: tuple[int, ...] = ()
    axis: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaHeads:
    """The heads of gated DeltaNet."""

    keys: int
    values: int
    key_dim: int
    value_dim: int

    @classmethod
    def read(cls, metadata: GgufMetadata) -> DeltaHeads:
        """Return what a file says; raise InvalidCheckpointError if it makes no sense."""
        keys = metadata.integer("{arch}.ssm.group_count")
        values = metadata.integer("{arch}.ssm.time_step_rank")
        inner = metadata.integer("{arch}.ssm.inner_size")
        key_dim = metadata.integer("{arch}.ssm.state_size")
        if min(keys, values, inner, key_dim) < 1 or values % keys or inner % values:
            raise InvalidCheckpointError(
                f"{metadata.path}: {keys} key heads of {key_dim} and {values} value heads of "
                f"{inner} in all ({metadata.key('{arch}.ssm')}.*) cannot be"
            )
        return cls(keys=keys, values=values, key_dim=key_dim, value_dim=inner // values)

    @property
    def mixed_width(self) -> int:
        """How many numbers are convolved: queries, keys and values."""
        return 2 * self.keys * self.key_dim + self.values_width

    @property
    def values_width(self) -> int:
        """How many numbers all value heads have."""
        return self.values * self.value_dim

    def by_key_head(self, parts: Arrays, *, axis: int, width: int, start: int) -> NDArray[Any]:
        """Return a tensor whose value heads, of `width` each from `start` on, are in order."""
        (tensor,) = parts
        before, heads = np.split(tensor, [start], axis=axis)
        shape = heads.shape
        split = (*shape[:axis], self.values // self.keys, self.keys, width, *shape[axis + 1 :])
        ordered = heads.reshape(split).swapaxes(axis, axis + 1).reshape(shape)
        return np.concatenate((before, ordered), axis=axis)

    def joined(self, parts: Arrays) -> NDArray[Any]:
        """Return, by key head, its query, key, values and gates of two matrices."""
        mixed, gates = parts
        keys_width = self.keys * self.key_dim
        query, key, value = np.split(mixed, [keys_width, 2 * keys_width])
        columns = mixed.shape[1]
        by_head = [part.reshape(self.keys, -1, columns) for part in (query, key, value, gates)]
        return np.concatenate(by_head, axis=1).reshape(-1, columns)


def find_changes(model_type: str, metadata: GgufMetadata) -> Mapping[str, Change]:
    """Return the changes of an architecture's tensors, by their stems in the GGUF."""
    if model_type not in {NEXT, QWEN35}:
        return {}
    heads = DeltaHeads.read(metadata)
    norms = {stem: Change(compute=_without_one) for stem in _NORMS}
    if model_type == NEXT:
        widths = (heads.mixed_width, heads.values_width)
        return norms | {
            "attn_qkv": Change(arrange=heads.joined, lengths=widths),
            "ssm_conv1d": Change(lengths=(heads.mixed_width,)),
            "ssm_a": Change(compute=_logarithms, lengths=(heads.values,)),
        }
    return norms | _reordered(heads)


def _reordered(heads: DeltaHeads) -> dict[str, Change]:
    """Return the changes of what has a part for each value head."""

    def change(width: int, *, start: int = 0, axis: int = 0) -> Change:
        arrange = partial(heads.by_key_head, axis=axis, width=width, start=start)
        return Change(arrange=arrange, lengths=(start + heads.values * width,), axis=axis)

    mixed = change(heads.value_dim, start=2 * heads.keys * heads.key_dim)
    each = change(1)
    rates = Change(arrange=each.arrange, compute=_logarithms, lengths=each.lengths)
    return {
        "attn_qkv": mixed,
        "ssm_conv1d": mixed,
        "attn_gate": change(heads.value_dim),
        "ssm_out": change(heads.value_dim, axis=1),
        **dict.fromkeys(("ssm_alpha", "ssm_beta", "ssm_dt"), each),
        "ssm_a": rates,
    }


def _without_one(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values - np.float32(1)


def _logarithms(values: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):  # A rate that is not below zero is what the file says.
        return np.log(-values)
