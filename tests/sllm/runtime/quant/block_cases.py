"""What is true of every quantised matrix: it is the matrix of its numbers, in fewer bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np
import torch

from sllm.runtime.quant import blockwise

if TYPE_CHECKING:
    import pytest

    from sllm.runtime.quant.block_matrix import BlockMatrix
    from sllm.runtime.quant.matrix import Matrix

ROWS, COLUMNS = 7, 512


def random_bytes(scheme: type[BlockMatrix], *, rows: int = ROWS, seed: int = 0) -> np.ndarray:
    """Return rows of blocks with every bit random, but for scales that are neither inf nor nan."""
    generator = np.random.default_rng(seed)
    blocks = rows * COLUMNS // scheme.block_weights
    raw = generator.integers(0, 256, (blocks, scheme.block_bytes), dtype=np.uint8)
    for offset in half_offsets(scheme):
        halves = generator.normal(size=blocks).astype(np.float16)
        raw[:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
    return raw.reshape(rows, -1)


def half_offsets(scheme: type[BlockMatrix]) -> tuple[int, ...]:
    """Return where a block has float16 numbers."""
    return {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(
        scheme.__name__, (0,)
    )


def require_equal_to_gguf(scheme: type[BlockMatrix]) -> None:
    """Every bit of the numbers is the one that the gguf package decodes."""
    raw = random_bytes(scheme)
    kind = gguf.GGMLQuantizationType[scheme.__name__]
    expected = gguf.quants.dequantize(raw, kind)
    matrix = scheme.of(torch.from_numpy(raw).flatten(), rows=ROWS, columns=COLUMNS)
    found = matrix.dequantize(torch.float32)
    assert np.array_equal(found.numpy().view(np.uint32), expected.view(np.uint32))


def require_matrix(matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    """It multiplies, embeds and divides as the matrix of its numbers does."""
    values = matrix.dequantize(torch.float32)
    rows, columns = matrix.shape
    assert values.shape == (rows, columns)
    assert matrix.size_bytes < values.nbytes // 3
    x = torch.randn(3, columns)
    expected = x @ values.T
    close = 1e-6 * float(expected.abs().max())
    torch.testing.assert_close(matrix.linear(x), expected, rtol=1e-4, atol=close)
    for elements in (blockwise.BLOCK_ELEMENTS, 2 * columns, 1):
        monkeypatch.setattr(blockwise, "BLOCK_ELEMENTS", elements)
        found = blockwise.multiply_blockwise(x, matrix)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=close)
    ids = torch.tensor([rows - 1, 0, 0])
    assert torch.equal(matrix.embed(ids, torch.float32), values[ids])
    assert torch.equal(matrix.part(2, 5).dequantize(torch.float32), values[2:5])
    assert torch.equal(matrix.part(2, 5).part(1, 2).dequantize(torch.float32), values[3:4])
    assert matrix.dequantize(torch.bfloat16).dtype == torch.bfloat16
