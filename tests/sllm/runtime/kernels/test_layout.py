"""The planes: what is packed comes back, and a word has what its description says."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sllm.runtime.kernels.layout import WIDTH, Format, Planes, pack, unpack
from tests.sllm.runtime.kernels.plane_cases import make_case


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([4, 5, 6, 8]),
    rows=st.integers(1, 3),
    groups=st.sampled_from([2, 4, 18]),
    seed=st.integers(0, 99),
)
def test_what_is_packed_comes_back(bits: int, rows: int, groups: int, seed: int) -> None:
    form = Format(bits, 0, 32)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(0, 1 << bits, (rows, groups * form.group), generator=generator)
    low, high = pack(form, weights)
    planes = Planes(form, low, torch.ones(rows, weights.shape[1] // 32), high)
    assert torch.equal(unpack(planes), weights.int())
    assert planes.low.nbytes * 8 == weights.numel() * form.low_bits


@pytest.mark.parametrize("bits", [4, 8])
def test_part_k_of_word_w_is_column_four_k_plus_w(bits: int) -> None:
    form = Format(bits, 0, 32)
    weights = torch.arange(form.group).view(1, -1) % (1 << bits)
    low, _ = pack(form, weights)
    for part in range(form.parts):
        found = (low[0, 0] >> (part * bits)) & ((1 << bits) - 1)
        assert torch.equal(found, weights[0, part * WIDTH :][:WIDTH].int())


def test_rows_are_found_without_the_others() -> None:
    planes = make_case("Q5_K").planes
    some = planes.map(lambda plane: plane[2:5])
    assert some.shape == (3, planes.shape[1])
    assert torch.equal(unpack(some), unpack(planes)[2:5])
    assert some.low.data_ptr() == planes.low[2].data_ptr()
