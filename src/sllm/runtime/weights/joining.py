"""Joined matrices: those that multiply the same x, next to each other, so that one product does.

A step of decoding is launches: at Llama-8B's shapes 225 of them are products with a matrix each,
and 129 with q, k and v joined, and gate and up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.runtime.kernels.layout import Planes
from sllm.runtime.quant.dense import Dense
from sllm.runtime.quant.moving import place_dense
from sllm.runtime.quant.planar import PlanarMatrix

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    import torch

    from sllm.runtime.quant.matrix import Matrix

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_FAMILIES = (
    QKV,
    GATE_UP,
    ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
)


def find_families(weights: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Yield the names, without `.weight`, of projections of the same x that are all there."""
    for family in _FAMILIES:
        if all(f"{name}.weight" in weights for name in family):
            yield family


def join_matrices(matrices: Mapping[str, Matrix]) -> dict[tuple[str, ...], Matrix]:
    """Return the families whose rows follow one another in memory, each as one matrix over it.

    Nothing is copied. Families that lie otherwise, or whose matrices are of several formats, are
    left out.
    """
    found: dict[tuple[str, ...], Matrix] = {}
    for family in find_families(matrices):
        joined = _join([matrices[f"{name}.weight"] for name in family])
        if joined is not None:
            found[family] = joined
    return found


def _join(matrices: Sequence[Matrix]) -> Matrix | None:
    floats = [matrix.values for matrix in matrices if isinstance(matrix, Dense)]
    planes = [matrix.planes for matrix in matrices if isinstance(matrix, PlanarMatrix)]
    if len(floats) == len(matrices):
        values = _join_rows(floats)
        return None if values is None else place_dense(values)
    joined = _join_planes(planes) if len(planes) == len(matrices) else None
    return None if joined is None else PlanarMatrix(joined)


def _join_planes(parts: Sequence[Planes]) -> Planes | None:
    first = parts[0]
    kinds = first.tensors.keys()
    if any(part.format != first.format or part.tensors.keys() != kinds for part in parts):
        return None
    joined: dict[str, torch.Tensor] = {}
    for kind in kinds:
        rows = _join_rows([part.tensors[kind] for part in parts])
        if rows is None:
            return None
        joined[kind] = rows
    return Planes(first.format, **joined)


def _join_rows(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return one tensor of the rows of some; None if they do not follow one another."""
    first = tensors[0]
    memory, place = first.untyped_storage().data_ptr(), first.storage_offset()
    for tensor in tensors:
        if (
            tensor.untyped_storage().data_ptr() != memory
            or tensor.storage_offset() != place
            or tensor.dtype != first.dtype
            or tensor.shape[1:] != first.shape[1:]
            or not tensor.is_contiguous()
        ):
            return None
        place += tensor.numel()
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())
