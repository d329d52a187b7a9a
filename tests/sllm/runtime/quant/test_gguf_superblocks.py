"""Q4_K, Q5_K and Q6_K: the gguf package's numbers, and the formulas of the format."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
import torch

from sllm.runtime.quant.gguf_superblocks import Q4_K, Q5_K, Q6_K
from tests.sllm.runtime.quant.block_cases import (
    COLUMNS,
    ROWS,
    random_bytes,
    require_equal_to_gguf,
    require_matrix,
)

if TYPE_CHECKING:
    from sllm.runtime.quant.block_matrix import BlockMatrix

SCHEMES = pytest.mark.parametrize("scheme", [Q4_K, Q5_K, Q6_K])


@SCHEMES
def test_numbers_equal_the_gguf_package_s(scheme: type[BlockMatrix]) -> None:
    require_equal_to_gguf(scheme)


@SCHEMES
def test_it_is_a_matrix(scheme: type[BlockMatrix], monkeypatch: pytest.MonkeyPatch) -> None:
    raw = torch.from_numpy(random_bytes(scheme)).flatten()
    require_matrix(scheme.of(raw, rows=ROWS, columns=COLUMNS), monkeypatch)


def _group_scale(block: bytes, group: int) -> tuple[int, int]:
    """Return a group's scale and minimum of six bits, as ggml's get_scale_min_k4 defines them."""
    q = block[4:16]
    if group < 4:
        return q[group] & 63, q[group + 4] & 63
    low, high = q[group + 4] & 15, q[group + 4] >> 4
    return low | (q[group - 4] >> 6) << 4, high | (q[group] >> 6) << 4


def _weight(scheme: type[BlockMatrix], block: bytes, index: int) -> float:
    """Return one weight of a block, by the format's formulas."""
    if scheme is Q6_K:
        half, place = divmod(index, 128)
        quarter, column = divmod(place, 32)
        low = block[64 * half + column + 32 * (quarter % 2)] >> (4 * (quarter // 2)) & 15
        high = block[128 + 32 * half + column] >> (2 * quarter) & 3
        (scale,) = struct.unpack_from("<b", block, 192 + index // 16)
        return float(struct.unpack_from("<e", block, 208)[0] * scale * ((low | high << 4) - 32))
    d, dmin = struct.unpack_from("<2e", block)
    group, column = divmod(index, 32)
    scale, minimum = _group_scale(block, group)
    start = scheme.block_bytes - 128
    nibble = block[start + 32 * (group // 2) + column] >> (4 * (group % 2)) & 15
    if scheme is Q5_K:
        nibble |= (block[16 + column] >> group & 1) << 4
    return float(d * scale * nibble - dmin * minimum)


@SCHEMES
def test_numbers_follow_from_the_formulas_of_the_format(scheme: type[BlockMatrix]) -> None:
    raw = random_bytes(scheme, rows=2, seed=3).reshape(-1, scheme.block_bytes)
    decoded = scheme.decode(torch.from_numpy(raw))
    for block, values in zip(raw, decoded.tolist(), strict=True):
        expected = [_weight(scheme, block.tobytes(), index) for index in range(256)]
        assert values == pytest.approx(expected, rel=1e-5, abs=1e-5)
