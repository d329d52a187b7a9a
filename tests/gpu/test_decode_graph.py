"""Steps replayed as CUDA graphs, in chains, compute the bits of those asked for one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.random_models import RandomModel, llama_8b
from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.memory import CacheMemory
from sllm.runtime.decoder import Decoder
from sllm.runtime.layers.recording import PlainRecorder, recorder_on
from sllm.runtime.weights.opening import open_weights
from tests.sllm.runtime.tiny_models import make_model, random_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.layers.recording import Recorder
    from sllm.runtime.weights.source import WeightSource

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda")
TURNS = [[0, 1, 2], [2], [0, 1, 2], [3, 0, 1, 2], [1, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0]]


def _answer(
    config: ModelConfig, source: WeightSource, dtype: torch.dtype, recorder: Recorder | None
) -> list[torch.Tensor]:
    """Return logits of steps between prompts, whose lengths grow over pages and widths."""
    decoder = Decoder(config, source, dtype=dtype, device=DEVICE, recorder=recorder)
    memory = CacheMemory(config, tokens=4096, sequences=10, dtype=dtype, device=DEVICE)
    sequences = [memory.open() for _ in range(10)]
    found = []
    for number, sequence in enumerate(sequences):
        tokens = random_tokens(14 + number, seed=number)
        piece = Piece(sequence=sequence, tokens=tokens)
        found.append(decoder.forward(Batch.of([piece], DEVICE), memory))
    for turn, asked in enumerate(TURNS * 2):
        if turn == len(TURNS):  # A prompt in between, after which sequence 0 needs more pages.
            piece = Piece(sequence=sequences[0], tokens=random_tokens(600, seed=99))
            found.append(decoder.forward(Batch.of([piece], DEVICE), memory))
        given = [[5 + i + turn] * (1 + i % 3) for i in asked]  # Steps, and guesses after some.
        pieces = [
            Piece(sequence=sequences[i], tokens=part, outputs=len(part))
            for i, part in zip(asked, given, strict=True)
        ]
        found.append(decoder.forward(Batch.of(pieces, DEVICE), memory))
    return found


def _check(config: ModelConfig, source: WeightSource, dtype: torch.dtype, near: float) -> None:
    recorder = recorder_on(DEVICE)
    graphs = _answer(config, source, dtype, recorder)
    asked = _answer(config, source, dtype, PlainRecorder())
    plain = _answer(config, source, dtype, None)
    for number, (ours, same, other) in enumerate(zip(graphs, asked, plain, strict=True)):
        assert torch.equal(ours, same), f"pass {number} differs"
        error = float((ours - other).abs().max() / other.abs().max())
        assert error <= near, f"pass {number} differs by {error} from one without dead rows"


@pytest.mark.parametrize("name", ["Q4_0", "bf16"])
def test_graphs_compute_the_same_bits(name: str) -> None:
    model = RandomModel(llama_8b(small=True), name, DEVICE)
    _check(model.config, model.weights, torch.bfloat16, near=5e-2)


@pytest.mark.parametrize("name", ["llama-3", "mistral", "qwen2-windows", "qwen3", "qwen3-moe"])
def test_graphs_of_every_architecture_that_has_them(name: str, tmp_path: Path) -> None:
    make_model(name, max_position_embeddings=1024).theirs.save_pretrained(tmp_path)
    with open_weights(tmp_path, device="cuda") as source:
        _check(source.config, source, torch.float32, near=1e-4)


def test_a_model_in_bfloat16_answers_the_same(tmp_path: Path) -> None:
    make_model("qwen3").theirs.bfloat16().save_pretrained(tmp_path)
    with open_weights(tmp_path, device="cuda") as source:
        _check(source.config, source, torch.bfloat16, near=5e-2)


def test_graphs_move_states_on_as_steps_do(tmp_path: Path) -> None:
    model = make_model("qwen3-next", max_position_embeddings=1024, mlp_only_layers=list(range(8)))
    model.theirs.save_pretrained(tmp_path)
    with open_weights(tmp_path, device="cuda") as source:
        _check(source.config, source, torch.float32, near=1e-3)
