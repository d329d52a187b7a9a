"""Whoever makes x leaves the records beside it that a launch of its own would write."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from sllm.runtime.kernels import between, fixed_columns
from sllm.runtime.kernels.attention import Paged, attend_paged
from sllm.runtime.kernels.fixed_columns import GROUP, fix, fixed, room_beside, room_of
from sllm.runtime.kernels.operands import Norm

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a device without the units pass for one that has them: records are as without."""
    monkeypatch.setattr(fixed_columns, "has_units", lambda x: x.dtype == torch.float16)


def _random(*shape: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, torch.float16)


def _normed(tokens: int, width: int, device: torch.device) -> torch.Tensor:
    x, added, weight = (_random(n, width, device=device) for n in (tokens, tokens + 1, 1))
    norm = Norm(weight=weight[0], epsilon=1e-5, offset=0.0)
    return between.add_normalised(x, added[:tokens], norm, fixes=True)[1]


def _gated(tokens: int, width: int, device: torch.device) -> torch.Tensor:
    gate, up = _random(tokens, 2 * width, device=device).chunk(2, dim=-1)
    return between.gate_up(gate, up, fixes=True)


def _attended(tokens: int, width: int, device: torch.device) -> torch.Tensor:
    keys, values = _random(2, 64, width // 64, 64, device=device)
    paged = Paged(
        keys=keys,
        values=values,
        pages=torch.arange(4, dtype=torch.int32, device=device).expand(tokens, 4).contiguous(),
        lengths=torch.tensor([50, 64][:tokens], dtype=torch.int32, device=device),
        page_tokens=16,
    )
    query = _random(tokens, width // 64, 64, device=device)
    return attend_paged(query, paged, chunks=2, fixes=True)


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("make", [_normed, _gated, _attended])
@pytest.mark.parametrize("width", [64, 192, 1024])
@pytest.mark.parametrize("tokens", [1, 2])
def test_records_are_written_beside_what_they_are_of(
    tokens: int,
    width: int,
    make: Callable[[int, int, torch.device], torch.Tensor],
    device: torch.device,
) -> None:
    x = make(tokens, width, device)
    groups = width // GROUP
    beside = fixed(x, groups)
    assert room_of(beside) == 1 << (groups - 1).bit_length()
    assert fixed(x, groups) is beside
    made = fix(x, room_of(beside))
    assert torch.equal(beside[:, :, :19], made[:, :, :19])


@pytest.mark.usefixtures("units")
def test_more_room_than_there_is_has_records_made(device: torch.device) -> None:
    x = _gated(1, 192, device)
    assert room_of(fixed(x, 16)) == 16
    assert torch.equal(fixed(x, 16)[:, :8, :19], fixed(x, 8)[:, :, :19])


def test_records_are_of_an_object_and_of_no_copy(device: torch.device) -> None:
    x = _random(1, 64, device=device)
    assert fixed(x, 2) is not fixed(x, 2)


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 64, dtype=torch.float16),
        torch.zeros(1, 48, dtype=torch.float16),
        torch.zeros(1, 64),
    ],
)
def test_what_no_product_takes_has_no_room_beside_it(x: torch.Tensor) -> None:
    assert room_beside(x) is None
    assert room_of(None) == 0
