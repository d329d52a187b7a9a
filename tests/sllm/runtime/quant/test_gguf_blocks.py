"""Q4_0 to Q8_0: the gguf package's numbers, and the formulas of the format."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
import torch

from sllm.runtime.quant.gguf_blocks import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from tests.sllm.runtime.quant.block_cases import (
    COLUMNS,
    ROWS,
    random_bytes,
    require_equal_to_gguf,
    require_matrix,
)

if TYPE_CHECKING:
    from sllm.runtime.quant.block_matrix import BlockMatrix

SCHEMES = pytest.mark.parametrize("scheme", [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0])


@SCHEMES
def test_numbers_equal_the_gguf_package_s(scheme: type[BlockMatrix]) -> None:
    require_equal_to_gguf(scheme)


@SCHEMES
def test_it_is_a_matrix(scheme: type[BlockMatrix], monkeypatch: pytest.MonkeyPatch) -> None:
    raw = torch.from_numpy(random_bytes(scheme)).flatten()
    require_matrix(scheme.of(raw, rows=ROWS, columns=COLUMNS), monkeypatch)


def _weight(scheme: type[BlockMatrix], block: bytes, index: int) -> float:
    """Return one weight of a block, by the format's formulas."""
    (scale,) = struct.unpack_from("<e", block)
    if scheme is Q8_0:
        return float(scale * struct.unpack_from("<b", block, 2 + index)[0])
    byte = block[scheme.block_bytes - 16 + index % 16]
    nibble = byte & 15 if index < 16 else byte >> 4
    if scheme in {Q5_0, Q5_1}:
        nibble |= (struct.unpack_from("<I", block, scheme.block_bytes - 20)[0] >> index & 1) << 4
    if scheme is Q5_0:
        return float(scale * (nibble - 16))
    if scheme is Q4_0:
        return float(scale * (nibble - 8))
    return float(scale * nibble + struct.unpack_from("<e", block, 2)[0])


@SCHEMES
def test_numbers_follow_from_the_formulas_of_the_format(scheme: type[BlockMatrix]) -> None:
    raw = random_bytes(scheme, rows=1, seed=3).reshape(-1, scheme.block_bytes)
    decoded = scheme.decode(torch.from_numpy(raw))
    for block, values in zip(raw, decoded.tolist(), strict=True):
        expected = [_weight(scheme, block.tobytes(), index) for index in range(32)]
        assert values == pytest.approx(expected, rel=1e-6)
