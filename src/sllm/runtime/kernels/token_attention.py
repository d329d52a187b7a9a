"""Attention of one token in one launch: its heads rotated, put into the cache, and attended to.

Bound by reading keys and values, of which the first are on their way before the token's own heads
are there. See `device/token_attention.cu`.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.programs import Grid, find_program
from sllm.runtime.kernels.token_products import NUMBER_KINDS, number_constants

if TYPE_CHECKING:
    from sllm.runtime.kernels.attention import Paged
    from sllm.runtime.kernels.operands import HeadNorms, Rotation
    from sllm.runtime.kernels.programs import Program

_THREADS = 8 * 32
_PAGE_TOKENS = 16
_HEAD_DIMS = (64, 128)
_MOST_SHARING = 8
_CLUSTER, _WIDE_CLUSTER = 8, 16  # Blocks of a head of keys; the second where there are few heads.
_FEW_HEADS = 4
_MOST_TOKENS = 256  # For each block; of longer caches, more blocks read more at a time.


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """What attention is compiled for. qk_norm: whether heads are normalised first.

    interleaved: whether neighbouring dimensions turn together. vectors: the dtype of norms.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qk_norm: bool
    interleaved: bool
    dtype: torch.dtype
    vectors: torch.dtype

    @property
    def fits(self) -> bool:
        """Whether there is a kernel for it."""
        return (
            self.head_dim in _HEAD_DIMS
            and self.heads % self.kv_heads == 0
            and self.heads // self.kv_heads <= _MOST_SHARING
            and self.dtype in {torch.bfloat16, torch.float16}
            and self.vectors in NUMBER_KINDS
        )

    def suits(self, room: int) -> bool:
        """Whether it is the quicker way where sequences have room for so many tokens."""
        return room <= _MOST_TOKENS * self.cluster * self.kv_heads

    @property
    def cluster(self) -> int:
        """Blocks that share a head of keys and values."""
        return _WIDE_CLUSTER if self.kv_heads <= _FEW_HEADS else _CLUSTER


class _Argument(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in (
                "heads", "query_norm", "key_norm", "cos", "sin", "keys", "values", "out",
                "places", "pages", "lengths",
            )
        ),
        ("window", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("epsilon", ctypes.c_float),
    ]  # fmt: skip


class TokenAttention:
    """Attention of one shape on one device."""

    def __init__(self, shape: AttentionShape, device: torch.device) -> None:
        assert shape.fits
        self._shape = shape
        self._device = device
        self._grid = Grid(
            blocks=(shape.cluster, shape.kv_heads), threads=_THREADS, cluster=shape.cluster
        )
        self._programs: dict[bool, Program] = {}

    def attend(
        self,
        heads: torch.Tensor,
        rotation: Rotation,
        paged: Paged,
        place: torch.Tensor,
        *,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        """Return (1, heads * head_dim), and put the token's key and value into the cache.

        heads: its queries, keys and values as they were projected, one after another in a row.
        place: (1,), int32, where the token goes; none if it is negative.
        """
        shape = self._shape
        queries = shape.heads * shape.head_dim
        assert heads.shape == (1, queries + 2 * shape.kv_heads * shape.head_dim)
        assert paged.page_tokens == _PAGE_TOKENS
        assert paged.keys.dtype == paged.values.dtype == heads.dtype == shape.dtype
        assert {place.dtype, paged.pages.dtype, paged.lengths.dtype} == {torch.int32}
        given = (heads, rotation.cos, rotation.sin, paged.keys, paged.values, paged.pages)
        assert all(one.is_contiguous() for one in given)
        assert rotation.interleaved == shape.interleaved
        assert rotation.cos.shape == (1, shape.head_dim // 2)
        out = heads.new_empty((1, queries))
        argument = _Argument(
            heads=heads.data_ptr(),
            query_norm=None if norms is None else norms.query.weight.data_ptr(),
            key_norm=None if norms is None else norms.key.weight.data_ptr(),
            cos=rotation.cos.data_ptr(),
            sin=rotation.sin.data_ptr(),
            keys=paged.keys.data_ptr(),
            values=paged.values.data_ptr(),
            out=out.data_ptr(),
            places=place.data_ptr(),
            pages=paged.pages.data_ptr(),
            lengths=paged.lengths.data_ptr(),
            window=paged.window or 0,
            scale=math.log2(math.e) / math.sqrt(shape.head_dim),
            epsilon=0.0 if norms is None else norms.query.epsilon,
        )
        chained = chain_options()["chained"]
        self._program(chained=chained).launch(self._grid, argument, chained=chained)
        return out

    def _program(self, *, chained: bool) -> Program:
        if chained in self._programs:
            return self._programs[chained]
        shape = self._shape
        defined = {
            "HEADS": shape.heads,
            "KV_HEADS": shape.kv_heads,
            "HEAD_DIM": shape.head_dim,
            "CLUSTER": shape.cluster,
            "QK_NORM": int(shape.qk_norm),
            "INTERLEAVED": int(shape.interleaved),
            **number_constants(shape.dtype, shape.vectors, chained=chained),
        }
        found = self._programs[chained] = find_program("token_attention", defined, self._device)
        return found
