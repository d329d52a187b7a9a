"""Every scheme as its file has it, and in planes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from sllm.runtime.kernels import repack
from sllm.runtime.quant.affine import AffineQ4
from sllm.runtime.quant.schemes import find_scheme
from tests.sllm.runtime.quant.block_cases import COLUMNS, ROWS, random_bytes

if TYPE_CHECKING:
    from sllm.runtime.kernels.layout import Planes
    from sllm.runtime.quant.matrix import Matrix

BLOCKS = {
    "Q4_0": repack.repack_q4_0,
    "Q4_1": repack.repack_q4_1,
    "Q5_0": repack.repack_q5_0,
    "Q5_1": repack.repack_q5_1,
    "Q8_0": repack.repack_q8_0,
    "Q4_K": repack.repack_q4_k,
    "Q5_K": repack.repack_q5_k,
    "Q6_K": repack.repack_q6_k,
}
SCHEMES = (*BLOCKS, "affine-64", "affine-128")


class Case(NamedTuple):
    """A matrix as it is stored, and its planes."""

    stored: Matrix
    planes: Planes


def make_case(scheme: str, *, rows: int = ROWS, seed: int = 0) -> Case:
    """Return a matrix of random bits with COLUMNS columns."""
    if scheme in BLOCKS:
        kind = find_scheme(scheme)
        raw = torch.from_numpy(random_bytes(kind, rows=rows, seed=seed))
        return Case(kind.of(raw.flatten(), rows=rows, columns=COLUMNS), BLOCKS[scheme](raw))
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, COLUMNS // int(scheme.removeprefix("affine-")))
    words = torch.randint(-(2**31), 2**31, (rows, COLUMNS // 8), generator=generator)
    scales, offsets = (torch.randn(shape, generator=generator).to(torch.bfloat16) for _ in "so")
    tensors = (words.to(torch.int32), scales, offsets)
    return Case(AffineQ4.of(*tensors), repack.repack_affine(*tensors))
