"""Projections of the same x are one matrix where they follow one another, and several elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from sllm.runtime.kernels.repack import repack_q4_0, repack_q8_0
from sllm.runtime.quant.dense import Dense
from sllm.runtime.quant.planar import PlanarMatrix
from sllm.runtime.quant.schemes import find_scheme
from sllm.runtime.weights.images import Image
from sllm.runtime.weights.joining import join_matrices
from sllm.runtime.weights.source import Weights
from tests.sllm.runtime.quant.block_cases import COLUMNS, random_bytes

if TYPE_CHECKING:
    from sllm.runtime.quant.matrix import Matrix

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
HALVES = ("mlp.gate_proj", "mlp.up_proj")
ROWS = dict(zip((*QKV, *HALVES), (64, 16, 16, 48, 48), strict=True))


def _quantised(name: str, rows: int) -> PlanarMatrix:
    raw = torch.from_numpy(random_bytes(find_scheme(name), rows=rows, seed=rows))
    return PlanarMatrix({"Q4_0": repack_q4_0, "Q8_0": repack_q8_0}[name](raw))


def _matrices(**changes: Matrix) -> dict[str, torch.Tensor | Matrix]:
    """Return matrices in an order in which a published file may have them."""
    made = {
        name: changes.get(name.rpartition(".")[2], _quantised("Q4_0", ROWS[name]))
        for name in sorted(ROWS)
    }
    return {f"{name}.weight": matrix for name, matrix in made.items()}


def _laid_out(tensors: dict[str, torch.Tensor | Matrix]) -> dict[str, Matrix]:
    image = Image(tensors)
    memory = torch.zeros(image.size_bytes, dtype=torch.uint8)
    image.write(memory, tensors)
    found = image.view(memory)
    return {
        name: Dense(stored) if isinstance(stored, torch.Tensor) else stored
        for name, stored in found.items()
    }


def _floats() -> dict[str, torch.Tensor | Matrix]:
    return {f"{name}.weight": torch.randn(ROWS[name], COLUMNS) for name in sorted(ROWS)}


@pytest.mark.parametrize("kind", ["planes", "floats"])
def test_an_image_has_families_as_one_matrix_that_is_no_copy(kind: str) -> None:
    tensors = _matrices() if kind == "planes" else _floats()
    matrices = _laid_out(tensors)
    joined = join_matrices(matrices)
    assert joined.keys() == {QKV, HALVES}
    for names, matrix in joined.items():
        parts = [matrices[f"{name}.weight"] for name in names]
        numbers = torch.cat([part.dequantize(torch.float32) for part in parts])
        assert torch.equal(matrix.dequantize(torch.float32), numbers)
        assert matrix.size_bytes == sum(part.size_bytes for part in parts)
    for name, stored in tensors.items():
        numbers = stored if isinstance(stored, torch.Tensor) else stored.dequantize(torch.float32)
        assert torch.equal(matrices[name].dequantize(torch.float32), numbers)


def test_a_change_of_a_part_is_one_of_the_joined_matrix() -> None:
    matrices = _laid_out(_floats())
    joined = join_matrices(matrices)[HALVES]
    up = matrices["mlp.up_proj.weight"]
    assert isinstance(up, Dense)
    up.values.zero_()
    assert not joined.dequantize(torch.float32)[48:].any()
    assert joined.dequantize(torch.float32)[:48].any()


def test_families_of_several_formats_stay_apart() -> None:
    other = _quantised("Q8_0", ROWS["self_attn.v_proj"])
    assert join_matrices(_laid_out(_matrices(v_proj=other))).keys() == {HALVES}


def test_families_with_a_row_that_no_wide_load_begins_at_stay_apart() -> None:
    odd = {f"{name}.weight": torch.randn(3, 6).half() for name in HALVES}
    assert join_matrices(_laid_out({**_floats(), **odd})).keys() == {QKV}


def test_matrices_that_lie_elsewhere_stay_apart() -> None:
    tensors = _matrices()
    apart = {name: stored for name, stored in tensors.items() if isinstance(stored, PlanarMatrix)}
    assert len(apart) == len(tensors)
    assert not join_matrices(apart)
    del apart["mlp.up_proj.weight"]
    assert not join_matrices(apart)


@pytest.mark.parametrize("tokens", [1, 5, 65])
def test_projections_are_the_same_joined_or_one_by_one(tokens: int) -> None:
    matrices = _laid_out(_matrices())
    vectors = {"self_attn.k_proj.bias": torch.randn(ROWS["self_attn.k_proj"])}
    x = torch.randn(tokens, COLUMNS)
    joined = Weights(matrices, vectors, joined=join_matrices(matrices))
    alone = Weights(matrices, vectors)
    for names in (QKV, HALVES):
        found, expected = joined.project_all(names, x), alone.project_all(names, x)
        for name, ours, theirs in zip(names, found, expected, strict=True):
            assert ours.shape == (tokens, ROWS[name])
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)
            assert torch.equal(theirs, alone.project(name, x))


def test_few_tokens_are_one_product_and_many_are_several() -> None:
    matrices = _laid_out(_floats())
    joined = join_matrices(matrices)
    weights = Weights(matrices, {}, joined=joined)
    few = weights.project_all(HALVES, torch.randn(2, COLUMNS))
    many = weights.project_all(HALVES, torch.randn(100, COLUMNS))
    assert few[0].untyped_storage().data_ptr() == few[1].untyped_storage().data_ptr()
    assert many[0].untyped_storage().data_ptr() != many[1].untyped_storage().data_ptr()
