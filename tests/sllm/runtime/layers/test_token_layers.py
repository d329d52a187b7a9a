"""A token's own launches, by plain stand-ins: what other steps compute. GPU tests run them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from benchmarks.random_models import RandomModel, llama_8b
from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.memory import AttentionMemory, CacheMemory
from sllm.runtime.decoder import Decoder
from sllm.runtime.kernels.attention import attend_plain
from sllm.runtime.kernels.layout import numbers
from sllm.runtime.kernels.operands import NewHeads, Places
from sllm.runtime.kernels.token_products import ProductShape, TokenProducts, can_multiply_tokens
from sllm.runtime.layers import token_layers
from sllm.runtime.layers.operations import PlainOperations
from sllm.runtime.layers.paged_steps import PagedSteps
from sllm.runtime.layers.passage import Passage
from sllm.runtime.layers.token_layers import TokenLayers
from sllm.runtime.weights.joining import join_matrices

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sllm.runtime.batch import Span
    from sllm.runtime.kernels.attention import Paged
    from sllm.runtime.kernels.layout import Planes
    from sllm.runtime.kernels.operands import HeadNorms, Norm, Rotation
    from sllm.runtime.kernels.token_attention import AttentionShape
    from sllm.runtime.weights.source import Weights

CPU = torch.device("cpu")
PROMPT, STEPS = [1, 2, 3, 4, 5], [[6], [7], [8]]


class SteppingOperations(PlainOperations):
    """Plain, but steps attend in one launch."""

    def line_up(self, spans: Sequence[Span], device: torch.device) -> PagedSteps | None:
        short = [span for span in spans if span.is_short]
        return PagedSteps.of(short, device) if short else None


class JoinedWeights:
    """Weights of a model whose neighbours are joined, as they are on a GPU."""

    stays = True

    def __init__(self, model: RandomModel) -> None:
        self.ends = model.weights.ends
        self._source = model.weights

    @contextmanager
    def layer(self, index: int) -> Iterator[Weights]:
        with self._source.layer(index) as weights:
            yield replace(weights, joined=join_matrices(weights.matrices))


class PlainAttention:
    """Attention of one token by plain operations."""

    asked = 0

    def __init__(self, shape: AttentionShape, device: torch.device) -> None:
        self._shape = shape

    def attend(
        self,
        heads: torch.Tensor,
        rotation: Rotation,
        paged: Paged,
        place: torch.Tensor,
        *,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        """Return what is mixed."""
        PlainAttention.asked += 1
        shape = self._shape
        parts = heads.view(1, -1, shape.head_dim)
        query, key, value = parts.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
        places = Places(keys=paged.keys, values=paged.values, tokens=place.long())
        given = NewHeads(query=query, key=key, value=value)
        placed = PlainOperations().place_heads(given, norms, rotation, places)
        return attend_plain(placed, paged)


def _multiply(
    products: TokenProducts, x: torch.Tensor, planes: Planes, *, bias: torch.Tensor | None = None
) -> torch.Tensor:
    found = (x.float() @ numbers(planes).T).to(x.dtype)
    return found if bias is None else found + bias.to(x.dtype)


def _multiply_normed(
    products: TokenProducts,
    state: tuple[torch.Tensor, torch.Tensor | None],
    norm: Norm,
    planes: Planes,
    *,
    bias: torch.Tensor | None = None,
    gated: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    x, added = state
    total = x if added is None else x + added
    found = _multiply(products, PlainOperations().normalise(total, norm), planes, bias=bias)
    if gated:
        gate, up = found.chunk(2, dim=-1)
        found = functional.silu(gate) * up
    return total, found


def _attend_plain(
    steps: PagedSteps,
    query: torch.Tensor,
    memory: AttentionMemory,
    window: int | None,
    *,
    fixes: bool = False,
) -> torch.Tensor:
    return attend_plain(query, steps.over(memory, window))


@pytest.fixture
def plain_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have plain operations stand in for all that runs on a GPU alone."""
    monkeypatch.setattr(TokenProducts, "multiply", _multiply)
    monkeypatch.setattr(TokenProducts, "multiply_normed", _multiply_normed)
    monkeypatch.setattr(ProductShape, "fits", lambda shape, device: True)
    monkeypatch.setattr(token_layers, "TokenAttention", PlainAttention)
    monkeypatch.setattr(PagedSteps, "attend", _attend_plain)
    monkeypatch.setattr(PlainAttention, "asked", 0)


def _answer(model: RandomModel, layers: TokenLayers | None, *, room: int) -> torch.Tensor:
    decoder = Decoder(
        model.config,
        JoinedWeights(model),
        dtype=torch.bfloat16,
        device=CPU,
        operations=SteppingOperations(),
    )
    decoder._token = layers
    memory = CacheMemory(model.config, tokens=room + 64, sequences=1, dtype=torch.bfloat16)
    sequence = memory.open()
    sequence.reserve(room)
    pieces = [Piece(sequence=sequence, tokens=tokens) for tokens in (PROMPT, *STEPS)]
    return torch.cat([decoder.forward(Batch.of([piece]), memory) for piece in pieces])


@pytest.mark.usefixtures("plain_launches")
@pytest.mark.parametrize("room", [16, 9000])
def test_steps_are_those_of_other_kernels_with_attention_in_one_launch_or_three(room: int) -> None:
    model = RandomModel(llama_8b(small=True), "Q4_0", CPU)
    ours = _answer(model, TokenLayers(model.config, CPU, stays=True), room=room)
    assert PlainAttention.asked == (len(STEPS) * len(model.config.layers) if room == 16 else 0)
    moving = _answer(model, TokenLayers(model.config, CPU, stays=False), room=room)
    others = _answer(model, None, room=room)
    assert torch.equal(ours, moving)
    torch.testing.assert_close(ours, others, rtol=0, atol=2e-2 * float(others.abs().max()))


@pytest.mark.usefixtures("plain_launches")
def test_layers_of_another_format_are_left_to_other_kernels() -> None:
    model = RandomModel(llama_8b(small=True), "Q8_0", CPU)
    found = _answer(model, TokenLayers(model.config, CPU, stays=True), room=16)
    assert PlainAttention.asked == 0
    assert torch.equal(found, _answer(model, None, room=16))


def test_a_cpu_has_none_of_them() -> None:
    assert not can_multiply_tokens(CPU)
    assert TokenLayers.on(llama_8b(small=True), CPU, stays=True) is None


def test_a_pass_without_steps_is_not_for_them() -> None:
    passage = Passage(None, None, None, torch.zeros(1))  # type: ignore[arg-type]
    assert not TokenLayers.takes(passage, 1)


def test_a_model_whose_norms_are_shifted_is_not_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_layers, "can_multiply_tokens", lambda device: True)
    config = llama_8b(small=True)
    assert TokenLayers.on(config, CPU, stays=True) is not None
    assert TokenLayers.on(replace(config, norm_offset=1.0), CPU, stays=True) is None
