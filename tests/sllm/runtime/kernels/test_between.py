"""What kernels compute between a layer's products is what PyTorch's operations do."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.kernels import between
from sllm.runtime.kernels.operands import HeadNorms, NewHeads, Norm, Places, Rotation
from sllm.runtime.layers.operations import PlainOperations

PLAIN = PlainOperations()
TOLERANCES = {torch.float32: 1e-6, torch.float16: 4e-3}


def _random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def _norm(width: int, offset: float, device: torch.device, dtype: torch.dtype) -> Norm:
    weight = _random(width, device=device, dtype=dtype)
    return Norm(weight=weight, epsilon=1e-5, offset=offset)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("width", [32, 100, 4096])
def test_a_sum_is_normalised_in_one(
    width: int, offset: float, dtype: torch.dtype, device: torch.device
) -> None:
    x, added = (_random(n, width, device=device, dtype=dtype)[-3:] for n in (3, 4))
    for weights in (dtype, torch.float32):
        norm = _norm(width, offset, device, weights)
        total, found = between.add_normalised(x, added, norm)
        assert torch.equal(total, x + added)
        expected = PLAIN.normalise(x + added, norm)
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(
            between.normalise(x, norm), PLAIN.normalise(x, norm), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_gates_and_columns_may_be_parts_of_wider_rows(
    dtype: torch.dtype, device: torch.device
) -> None:
    joined = 4 * _random(3, 2 * 1500, device=device, dtype=dtype)
    gate, up = joined.chunk(2, dim=-1)
    found = between.gate_up(gate, up)
    expected, tolerance = PLAIN.gate_up(gate, up), TOLERANCES[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("offset", [None, 0.0, 1.0])
@pytest.mark.parametrize("shape", [(4, 2, 16, 8), (3, 1, 24, 4), (9, 3, 64, 32)])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_heads_are_normalised_rotated_and_put_into_the_cache(
    shape: tuple[int, int, int, int],
    offset: float | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    interleaved: bool,
) -> None:
    heads, kv_heads, width, half = shape
    gated = _random(5, heads, 2 * width, device=device, dtype=dtype)
    joined = _random(5, 2 * kv_heads * width, device=device, dtype=dtype)
    key, value = (part.unflatten(-1, (kv_heads, width)) for part in joined.chunk(2, dim=-1))
    new = NewHeads(query=gated[..., :width], key=key, value=value)
    norms = None
    if offset is not None:
        norms = HeadNorms(
            query=_norm(width, offset, device, dtype), key=_norm(width, offset, device, dtype)
        )
    angles = _random(5, half, device=device)
    rotation = Rotation(angles.cos().to(dtype), angles.sin().to(dtype), interleaved)
    kept = torch.zeros(2, 2, 20, kv_heads, width, device=device, dtype=dtype)
    at = torch.tensor([3, 19, 0, 7, 4], device=device)
    ours, theirs = (Places(keys=k, values=v, tokens=at) for k, v in kept)
    found = between.place_heads(new, norms, rotation, ours)
    expected = PLAIN.place_heads(new, norms, rotation, theirs)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.keys, theirs.keys, rtol=tolerance, atol=tolerance)
    assert torch.equal(ours.values, theirs.values)


def test_a_token_without_a_place_is_not_kept(device: torch.device) -> None:
    new = NewHeads(
        query=_random(2, 2, 16, device=device),
        key=_random(2, 1, 16, device=device),
        value=_random(2, 1, 16, device=device),
    )
    angles = _random(2, 8, device=device)
    rotation = Rotation(angles.cos(), angles.sin(), interleaved=False)
    keys, values = torch.zeros(2, 4, 1, 16, device=device)
    at = torch.tensor([-1, 2], dtype=torch.int32, device=device)
    between.place_heads(new, None, rotation, Places(keys=keys, values=values, tokens=at))
    for kept in (keys, values):
        assert kept[2].any()
        assert not kept[[0, 1, 3]].any()
