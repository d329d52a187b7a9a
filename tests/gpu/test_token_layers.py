"""One token's products and attention by their own kernels: what plain formulations compute."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from benchmarks.kernel_cases import Case
from benchmarks.random_models import RandomModel, llama_8b
from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.memory import PAGE_TOKENS, CacheMemory
from sllm.runtime.decoder import Decoder
from sllm.runtime.kernels.attention import Paged, attend_plain
from sllm.runtime.kernels.layout import Planes, numbers
from sllm.runtime.kernels.operands import HeadNorms, NewHeads, Norm, Places, Rotation
from sllm.runtime.kernels.token_attention import AttentionShape, TokenAttention
from sllm.runtime.kernels.token_products import TokenProducts, can_multiply_tokens
from sllm.runtime.layers.kernel_operations import KernelOperations
from sllm.runtime.layers.operations import PlainOperations
from sllm.runtime.layers.recording import GraphRecorder, recorder_on

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or not can_multiply_tokens(DEVICE),
        reason="needs a CUDA device with tensor maps, and NVIDIA's compiler",
    ),
]
ROUNDED = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
SHAPES = [(1024, 4096), (28672, 4096), (4096, 14336), (16, 256), (528, 768), (8192, 28672)]
LENGTHS = [1, 15, 16, 17, 300, 1024, 1025, 5000]


def _planes(rows: int, columns: int, *, seed: int = 0) -> Planes:
    weight = Case(format="Q4_0", rows=rows, columns=columns, tokens=1).weight(DEVICE, seed=seed)
    assert isinstance(weight, Planes)
    return weight


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    made = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(*shape, device=DEVICE, generator=made).to(dtype)


def _require_near(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    error = float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max())
    assert error <= ROUNDED[dtype], f"off by {error}"


@pytest.mark.parametrize("dtype", list(ROUNDED))
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_products_are_those_of_float32(rows: int, columns: int, dtype: torch.dtype) -> None:
    planes, x = _planes(rows, columns), _random(1, columns, dtype=dtype)
    products = TokenProducts(DEVICE)
    wanted = x.float() @ numbers(planes).T
    _require_near(products.multiply(x, planes), wanted, dtype)
    bias = _random(rows, dtype=torch.float32, seed=1)
    found = products.multiply(x, planes, bias=bias)
    _require_near(found, wanted + bias, dtype)


@pytest.mark.parametrize("vectors", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_x_is_summed_and_normalised_and_rows_are_gates(
    vectors: torch.dtype, *, gated: bool, adds: bool
) -> None:
    dtype = torch.bfloat16
    planes = _planes(2048, 4096)
    x, added = (_random(1, 4096, dtype=dtype, seed=seed) for seed in (1, 2))
    norm = Norm(weight=_random(4096, dtype=vectors, seed=3), epsilon=1e-5, offset=0.0)
    total, found = TokenProducts(DEVICE).multiply_normed(
        (x, added if adds else None), norm, planes, gated=gated
    )
    wanted_total = x + added if adds else x
    assert torch.equal(total, wanted_total)
    normed = PlainOperations().normalise(wanted_total, norm)
    wanted = normed.float() @ numbers(planes).T
    if gated:
        gate, up = wanted.to(dtype).chunk(2, dim=-1)
        wanted = functional.silu(gate) * up
    _require_near(found, wanted, dtype)


def test_what_is_no_number_stays_none() -> None:
    planes, x = _planes(64, 512), _random(1, 512, dtype=torch.bfloat16)
    x[0, 300] = float("nan")
    assert bool(TokenProducts(DEVICE).multiply(x, planes).isnan().all())


def test_a_product_has_the_same_bits_however_often_it_is_asked_for_in_a_chain() -> None:
    """Stages of a ring go from hand to hand thousands of times, as fast as they can."""
    products, dtype = TokenProducts(DEVICE), torch.bfloat16
    parts = [_planes(28672, 4096), _planes(4096, 14336, seed=1)]
    norm = Norm(weight=_random(4096, dtype=dtype, seed=3), epsilon=1e-5, offset=0.0)
    x = _random(1, 4096, dtype=dtype)

    def compute() -> torch.Tensor:
        state = x, torch.zeros_like(x)
        for _ in range(20):
            total, opened = products.multiply_normed(state, norm, parts[0], gated=True)
            state = total, products.multiply(opened, parts[1])
        return state[1]

    replay = GraphRecorder(DEVICE).record(compute)
    first = replay().clone()
    different = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(500):
        different += (replay() != first).sum()
    assert int(different) == 0
    assert bool(first.isfinite().all())


def _shape(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> AttentionShape:
    return AttentionShape(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        qk_norm=False,
        interleaved=False,
        dtype=dtype,
        vectors=torch.float32,
    )


SHAPES_OF_HEADS = [
    _shape(heads, kv_heads, head_dim, dtype)
    for heads, kv_heads, head_dim in ((32, 8, 128), (4, 4, 64), (14, 2, 64), (64, 8, 128))
    for dtype in ROUNDED
]


def _make_cache(shape: AttentionShape, length: int, window: int | None) -> tuple[Paged, int]:
    """Return random keys and values of so many tokens, and where the newest one goes."""
    columns = -(-length // PAGE_TOKENS)
    made = torch.Generator().manual_seed(length)
    pages = torch.randperm(columns + 3, generator=made)[:columns]
    size = (columns + 3) * PAGE_TOKENS, shape.kv_heads, shape.head_dim
    keys, values = (_random(*size, dtype=shape.dtype, seed=seed) for seed in (1, 2))
    newest = length - 1
    place = int(pages[newest // PAGE_TOKENS]) * PAGE_TOKENS + newest % PAGE_TOKENS
    for one in (keys, values):  # What is after the newest was never written.
        one[place:][: PAGE_TOKENS - newest % PAGE_TOKENS] = float("nan")
    paged = Paged(
        keys=keys,
        values=values,
        pages=pages.to(DEVICE, torch.int32)[None],
        lengths=torch.tensor([length], dtype=torch.int32, device=DEVICE),
        page_tokens=PAGE_TOKENS,
        window=window,
    )
    return paged, place


def _attend_plainly(
    shape: AttentionShape,
    projected: torch.Tensor,
    rotation: Rotation,
    paged: Paged,
    *,
    norms: HeadNorms | None,
    place: int,
) -> torch.Tensor:
    parts = projected.view(1, -1, shape.head_dim)
    query, key, value = parts.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
    tokens = torch.tensor([place], device=DEVICE)
    places = Places(keys=paged.keys, values=paged.values, tokens=tokens)
    heads = NewHeads(query=query, key=key, value=value)
    return attend_plain(PlainOperations().place_heads(heads, norms, rotation, places), paged)


@pytest.mark.parametrize("shape", SHAPES_OF_HEADS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("window", [None, 200])
@pytest.mark.parametrize("normed", [False, True])
def test_attention_is_that_of_plain_operations(
    shape: AttentionShape, window: int | None, *, interleaved: bool, normed: bool
) -> None:
    shape = replace(shape, qk_norm=normed, interleaved=interleaved)
    norms = None
    if normed:
        query_norm, key_norm = (
            Norm(
                weight=_random(shape.head_dim, dtype=torch.float32, seed=s), epsilon=1e-6, offset=0
            )
            for s in (4, 5)
        )
        norms = HeadNorms(query=query_norm, key=key_norm)
    attention = TokenAttention(shape, DEVICE)
    for length in LENGTHS:
        paged, place = _make_cache(shape, length, window)
        plain = replace(paged, keys=paged.keys.clone(), values=paged.values.clone())
        angles = torch.arange(shape.head_dim // 2, device=DEVICE) * 0.37 * length
        cos, sin = (one.to(shape.dtype)[None] for one in (angles.cos(), angles.sin()))
        rotation = Rotation(cos, sin, interleaved)
        rows = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        projected = _random(1, rows, dtype=shape.dtype, seed=length)
        at = torch.tensor([place], dtype=torch.int32, device=DEVICE)
        found = attention.attend(projected, rotation, paged, at, norms=norms)
        wanted = _attend_plainly(shape, projected, rotation, plain, norms=norms, place=place)
        _require_near(found, wanted, shape.dtype)
        torch.testing.assert_close(paged.keys[place], plain.keys[place], rtol=2e-2, atol=2e-2)
        assert torch.equal(paged.values[place], plain.values[place])


def test_a_token_without_a_place_leaves_the_cache_as_it_is() -> None:
    shape = _shape(8, 2, 64, torch.bfloat16)
    keys, values = (_random(32, 2, 64, dtype=torch.bfloat16, seed=seed) for seed in (1, 2))
    before = keys.clone(), values.clone()
    paged = Paged(
        keys=keys,
        values=values,
        pages=torch.zeros((1, 1), dtype=torch.int32, device=DEVICE),
        lengths=torch.ones(1, dtype=torch.int32, device=DEVICE),
        page_tokens=PAGE_TOKENS,
    )
    angles = torch.zeros((1, 32), dtype=torch.bfloat16, device=DEVICE)
    place = torch.tensor([-1], dtype=torch.int32, device=DEVICE)
    projected = _random(1, 12 * 64, dtype=torch.bfloat16)
    TokenAttention(shape, DEVICE).attend(
        projected, Rotation(angles + 1, angles, interleaved=False), paged, place
    )
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])


@pytest.mark.parametrize("room", [16, 9000])
def test_a_step_is_that_of_kernels_for_any_number_of_tokens(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    multiply = TokenProducts.multiply

    def counted(products: TokenProducts, x: torch.Tensor, planes: Planes) -> torch.Tensor:
        asked.append(planes.shape)
        return multiply(products, x, planes)

    monkeypatch.setattr(TokenProducts, "multiply", counted)
    model = RandomModel(llama_8b(small=True), "Q4_0", DEVICE)
    found = []
    for operations, recorder in (
        (KernelOperations(fixes=True), None),
        (None, None),
        (None, recorder_on(DEVICE)),
    ):
        decoder = Decoder(
            model.config,
            model.weights,
            dtype=torch.bfloat16,
            device=DEVICE,
            operations=operations,
            recorder=recorder,
        )
        memory = CacheMemory(
            model.config, tokens=10000, sequences=1, dtype=torch.bfloat16, device=DEVICE
        )
        sequence = memory.open()
        sequence.reserve(room)
        logits = []
        for tokens in ([1, 2, 3, 4, 5], [6], [7], [8]):
            piece = Piece(sequence=sequence, tokens=tokens)
            logits.append(decoder.forward(Batch.of([piece], DEVICE), memory))
        found.append(torch.cat(logits))
    general, ours, recorded = found
    assert asked
    assert torch.equal(ours, recorded)
    _require_near(ours, general, torch.bfloat16)
