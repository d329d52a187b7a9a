"""Kernels on a GPU, compiled, in the shapes and types of real models."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.kernel_cases import BF16, FORMATS, Case, error_of, measure_attention
from sllm.runtime.kernels import products
from sllm.runtime.kernels.layout import Planes, numbers
from sllm.runtime.kernels.operands import Frequencies, HeadNorms, NewHeads, Norm, Places, Rotation
from sllm.runtime.kernels.peaks import peaks, widen
from sllm.runtime.layers.kernel_operations import KernelOperations
from sllm.runtime.layers.operations import PlainOperations
from sllm.runtime.layers.recording import GraphRecorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = [(1024, 4096), (14336, 4096), (4096, 14336), (576, 1536)]
FLOAT_ERROR = 2.5e-7  # Two units in the last place of a number near 1.
ROUNDED = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda")


@pytest.mark.parametrize("dtype", list(ROUNDED))
@pytest.mark.parametrize("name", [*FORMATS, BF16])
def test_products_are_those_of_float32_to_the_type_s_rounding(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    for rows, columns in SHAPES:
        for tokens in (1, 2, 4, 7, 16, 33, 64):
            case = Case(format=name, rows=rows, columns=columns, tokens=tokens)
            if not case.has_kernel or (name == BF16 and dtype != torch.bfloat16):
                continue
            weight = case.weight(device, seed=tokens)
            x = torch.randn(tokens, columns, device=device).to(dtype)
            error = error_of(x, weight, case.multiply(x, weight))
            assert error <= ROUNDED[dtype], f"{case}: {error}"


@pytest.mark.parametrize("name", [*FORMATS, BF16])
@pytest.mark.parametrize("tokens", [1, 8, 33])
def test_every_launch_gives_the_same_bits_again(
    name: str, tokens: int, device: torch.device
) -> None:
    case = Case(format=name, rows=1024, columns=4096, tokens=tokens)
    if not case.has_kernel:
        pytest.skip("cuBLAS multiplies more than one token with floats")
    weight = case.weight(device, seed=1)
    x = torch.randn(tokens, case.columns, device=device, dtype=torch.bfloat16)
    first = case.multiply(x, weight)
    for _ in range(20):
        assert torch.equal(case.multiply(x, weight), first)


@pytest.mark.parametrize("name", FORMATS)
def test_dequantised_numbers_are_equal_in_every_bit(name: str, device: torch.device) -> None:
    weight = Case(format=name, rows=300, columns=4096, tokens=1).weight(device, seed=2)
    assert isinstance(weight, Planes)
    expected = numbers(weight)
    assert torch.equal(products.dequantize(weight, torch.float32), expected)
    assert torch.equal(products.dequantize(weight, torch.bfloat16), expected.bfloat16())
    ids = torch.tensor([299, 0, 7], dtype=torch.int32, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        some = products.dequantize(weight, dtype, ids)
        assert torch.equal(some, expected[ids.long()].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peaks_of_a_large_vocabulary_are_those_of_pytorch(
    dtype: torch.dtype, device: torch.device
) -> None:
    for rows in (1, 5, 64):
        logits = torch.randn(rows, 128_256, device=device).to(dtype)
        logits[0, 77] = logits[0, 100_000] = 50.0
        values, tokens = logits.cpu().max(dim=-1)
        expected = torch.stack((values.double(), tokens.double()))
        wide = widen(logits)
        assert torch.equal(wide, logits.float())
        for one in (logits, wide):
            assert torch.equal(peaks(one).cpu(), expected)


def test_rotations_are_those_of_pytorch_at_every_position(device: torch.device) -> None:
    each = 500_000.0 ** -(torch.arange(64, device=device, dtype=torch.float32) / 64)
    frequencies = Frequencies(each, 1.0, interleaved=False)
    positions = torch.arange(131_073, device=device, dtype=torch.int32)
    angles = frequencies.angles(positions)
    exact = angles.double()
    found = KernelOperations().rotate(positions, frequencies, torch.float32)
    assert float((found.cos - exact.cos()).abs().max()) <= FLOAT_ERROR
    assert float((found.sin - exact.sin()).abs().max()) <= FLOAT_ERROR
    found = KernelOperations().rotate(positions, frequencies, torch.bfloat16)
    expected = frequencies.rotate(angles, torch.bfloat16)
    for ours, theirs in ((found.cos, expected.cos), (found.sin, expected.sin)):
        assert int((ours != theirs).sum()) <= ours.numel() // 10_000


def test_products_are_captured_in_a_graph(device: torch.device) -> None:
    case = Case(format="Q4_0", rows=512, columns=4096, tokens=1)
    weight = case.weight(device, seed=3)
    x = torch.randn(1, case.columns, device=device, dtype=torch.bfloat16)
    case.multiply(x, weight)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = case.multiply(x, weight)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(found, case.multiply(x, weight))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", BF16])
def test_a_chain_has_the_bits_of_kernels_one_after_the_other(
    name: str, device: torch.device
) -> None:
    case = Case(format=name, rows=8192, columns=4096, tokens=1)
    weights = [case.weight(device, seed=seed) for seed in range(16)]
    norm = Norm(weight=torch.rand(4096, device=device).bfloat16(), epsilon=1e-5, offset=0.0)
    x = torch.randn(1, case.columns, device=device, dtype=torch.bfloat16)

    def compute(*, fixes: bool = True) -> torch.Tensor:
        kernels = KernelOperations(fixes=fixes)
        total, found = x, kernels.normalise(x, norm)
        for weight in weights * 4:
            gate, up = case.multiply(found, weight).split(4096, dim=1)
            total, found = kernels.add_normalised(total, kernels.gate_up(gate, up), norm)
        return found

    expected = compute(fixes=False)
    replay = GraphRecorder(device).record(compute)
    for _ in range(20):
        assert torch.equal(replay(), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_a_chain_begins_with_what_was_copied_before_it(name: str, device: torch.device) -> None:
    weight = Case(format=name, rows=300, columns=4096, tokens=1).weight(device, seed=4)
    assert isinstance(weight, Planes)
    each = 500_000.0 ** -(torch.arange(64, device=device, dtype=torch.float32) / 64)
    frequencies = Frequencies(each, 1.0, interleaved=False)
    norm = Norm(weight=torch.rand(4096, device=device).bfloat16(), epsilon=1e-5, offset=0.0)
    inputs = torch.zeros(2, 32, dtype=torch.int32, device=device)
    kernels = KernelOperations()

    def compute() -> torch.Tensor:
        x = products.dequantize(weight, torch.bfloat16, inputs[0])
        turned = kernels.rotate(inputs[1], frequencies, torch.bfloat16)
        return torch.cat((kernels.normalise(x, norm), turned.cos, turned.sin), dim=1)

    replay = GraphRecorder(device).record(compute)
    given = torch.randint(0, 300, (100, 2, 32), dtype=torch.int32).pin_memory()
    found, expected = [], []
    for one in given:
        inputs.copy_(one, non_blocking=True)
        found.append(replay().clone())
    for one in given:
        inputs.copy_(one)
        expected.append(compute())
    assert torch.equal(torch.stack(found), torch.stack(expected))


@pytest.mark.parametrize("dtype", list(ROUNDED))
@pytest.mark.parametrize(("requests", "length"), [(1, 1), (1, 20_000), (7, 4_097)])
def test_attention_to_pages_is_that_of_pytorch(
    requests: int, length: int, dtype: torch.dtype, device: torch.device
) -> None:
    assert measure_attention(requests, length, device, dtype)["error"] <= 2 * ROUNDED[dtype]


@pytest.mark.parametrize("dtype", list(ROUNDED))
@pytest.mark.parametrize("tokens", [1, 7, 512])
def test_what_is_between_products_is_that_of_pytorch(
    tokens: int, dtype: torch.dtype, device: torch.device
) -> None:
    plain, kernels = PlainOperations(), KernelOperations()
    x, added = (torch.randn(tokens, 4096, device=device).to(dtype) for _ in range(2))
    norm = Norm(weight=torch.rand(4096, device=device).to(dtype), epsilon=1e-5, offset=0.0)
    total, found = kernels.add_normalised(x, added, norm)
    assert torch.equal(total, x + added)
    near = partial(torch.testing.assert_close, rtol=2 * ROUNDED[dtype], atol=2 * ROUNDED[dtype])
    near(found, plain.normalise(x + added, norm))
    gate, up = (torch.randn(tokens, 14336, device=device).to(dtype) for _ in range(2))
    near(kernels.gate_up(gate, up), plain.gate_up(gate, up))
    heads = NewHeads(
        query=x.view(-1, 32, 128),
        key=added[:, :1024].unflatten(-1, (8, 128)),
        value=added[:, 1024:2048].unflatten(-1, (8, 128)),
    )
    by = Norm(weight=norm.weight[:128], epsilon=1e-5, offset=1.0)
    angles = torch.randn(tokens, 64, device=device)
    rotation = Rotation(angles.cos().to(dtype), angles.sin().to(dtype), interleaved=False)
    at = torch.randperm(1024, device=device)[:tokens]
    for norms in (None, HeadNorms(query=by, key=by)):
        kept = torch.zeros(2, 2, 1024, 8, 128, device=device, dtype=dtype)
        ours, theirs = (Places(keys=keys, values=values, tokens=at) for keys, values in kept)
        queries = kernels.place_heads(heads, norms, rotation, ours)
        expected = plain.place_heads(heads, norms, rotation, theirs)
        near(queries, expected)
        near(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
