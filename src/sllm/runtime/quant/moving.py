"""Move a stored matrix to where it is computed with, in the layout that is fast there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.runtime.kernels import repack
from sllm.runtime.quant.affine import AffineQ4
from sllm.runtime.quant.block_matrix import BlockMatrix
from sllm.runtime.quant.dense import Dense
from sllm.runtime.quant.gguf_blocks import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from sllm.runtime.quant.gguf_superblocks import Q4_K, Q5_K, Q6_K
from sllm.runtime.quant.planar import PlanarMatrix

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from sllm.runtime.kernels.layout import Planes
    from sllm.runtime.quant.matrix import Matrix

_LOAD_BYTES = 16
_REPACKS: dict[type[BlockMatrix], Callable[[torch.Tensor], Planes]] = {
    Q4_0: repack.repack_q4_0,
    Q4_1: repack.repack_q4_1,
    Q5_0: repack.repack_q5_0,
    Q5_1: repack.repack_q5_1,
    Q8_0: repack.repack_q8_0,
    Q4_K: repack.repack_q4_k,
    Q5_K: repack.repack_q5_k,
    Q6_K: repack.repack_q6_k,
}


def move_matrix(matrix: Matrix, device: torch.device) -> Matrix:
    """Return the same numbers on a device: quantised ones in planes, floats in DeviceDense.

    Bytes cross as they are stored, and are laid out anew where they arrive.
    """
    if isinstance(matrix, BlockMatrix):
        return PlanarMatrix(_REPACKS[type(matrix)](matrix.raw.to(device)))
    if isinstance(matrix, AffineQ4):
        words, scales, offsets = (tensor.to(device) for tensor in matrix.tensors)
        return PlanarMatrix(repack.repack_affine(words, scales, offsets))
    if isinstance(matrix, PlanarMatrix):
        return PlanarMatrix(matrix.planes.map(lambda plane: plane.to(device)))
    assert isinstance(matrix, Dense), f"no matrix that is stored: {type(matrix).__name__}"
    return place_dense(matrix.values.to(device))


def place_dense(values: torch.Tensor) -> Dense:
    """Return the matrix of floats that computes fastest where they are.

    In a published file rows may begin anywhere, and loads of 16 bytes want to begin at 16.
    """
    if values.device.type != "cuda" or values.data_ptr() % _LOAD_BYTES:
        return Dense(values)
    from sllm.runtime.kernels.products import fits_dense
    from sllm.runtime.quant.dense_device import DeviceDense

    return DeviceDense(values) if fits_dense(values) else Dense(values)
