"""Steps that are recorded for few sizes compute what steps do."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.memory import AttentionMemory
from sllm.runtime.decoder import Decoder
from sllm.runtime.layers import recorded_steps
from sllm.runtime.layers.kernel_operations import KernelOperations
from sllm.runtime.layers.operations import PlainOperations
from sllm.runtime.layers.recorded_steps import RecordedSteps, count_rows
from sllm.runtime.layers.recording import PlainRecorder, recorder_on
from tests.sllm.runtime.layers.fake_recording import FakeRecorder
from tests.sllm.runtime.tiny_models import TOLERANCE, TinyModel, make_model, random_tokens


@pytest.fixture(scope="module")
def llama() -> TinyModel:
    return make_model("llama")


def _recording(model: TinyModel, recorder: FakeRecorder) -> Decoder:
    return Decoder(model.config, model.source, operations=KernelOperations(), recorder=recorder)


def _answer(
    model: TinyModel, decoder: Decoder, turns: list[list[int]], *, prompt: int, guesses: int
) -> list[torch.Tensor]:
    """Return the logits of steps of some of four sequences, after a prompt each."""
    memory = model.memory()
    sequences = [memory.open() for _ in range(4)]
    for number, sequence in enumerate(sequences):
        tokens = random_tokens(prompt + number, seed=number)
        model.decoder.forward(Batch.of([Piece(sequence=sequence, tokens=tokens)]), memory)
    found = []
    for turn, asked in enumerate(turns):
        given = [[5 + i + turn] * (1 + guesses * (i % 2)) for i in asked]
        pieces = [
            Piece(sequence=sequences[i], tokens=part, outputs=len(part))
            for i, part in zip(asked, given, strict=True)
        ]
        found.append(decoder.forward(Batch.of(pieces), memory))
        assert all(sequences[i].length >= prompt + i + 1 for i in asked)
    return found


@pytest.mark.parametrize(("name", "guesses"), [("llama-tied", 0), ("mistral", 1), ("qwen3", 1)])
def test_recorded_steps_compute_what_steps_do(name: str, guesses: int) -> None:
    model, recorder = make_model(name), FakeRecorder()
    turns = [[0, 1, 2], [2], [3, 0, 1, 2]]
    recording = _recording(model, recorder)
    found = _answer(model, recording, turns, prompt=14, guesses=guesses)
    expected = _answer(model, model.decoder, turns, prompt=14, guesses=guesses)
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).abs().max()) <= TOLERANCE
    assert recorder.recorded == 2 + guesses, "three tokens and four share a size"
    assert recorder.replayed == len(turns)


def test_steps_that_move_states_on_are_recorded_without_moving_them() -> None:
    model = make_model("qwen3-next", mlp_only_layers=list(range(8)))
    recorder = FakeRecorder()
    turns = [[0, 1, 2], [2], [3, 0, 1, 2], [1], [0, 1, 2, 3]]
    recording = _recording(model, recorder)
    found = _answer(model, recording, turns, prompt=14, guesses=0)
    expected = _answer(model, model.decoder, turns, prompt=14, guesses=0)
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).abs().max()) <= TOLERANCE
    assert (recorder.recorded, recorder.replayed) == (2, 4), "three steps would have a dead row"


def test_dead_rows_change_nothing_in_the_cache_or_for_others(llama: TinyModel) -> None:
    decoder = _recording(llama, FakeRecorder())
    memory = llama.memory()
    sequences = [memory.open() for _ in range(3)]
    pieces = [Piece(sequence=sequence, tokens=[9]) for sequence in sequences]
    first = decoder.forward(Batch.of(pieces), memory)
    assert torch.equal(first[0], first[1])
    for layer in memory.layers:
        assert isinstance(layer, AttentionMemory)
        used = layer.keys.flatten(1).any(dim=1).nonzero().flatten().tolist()
        assert used == sorted(sequence.places(0, 1)[0] for sequence in sequences)


def _steps(recorder: FakeRecorder) -> RecordedSteps:
    """Return steps whose logits are the tokens: nothing else is computed."""
    return RecordedSteps(
        lambda inputs, _: inputs.tokens.float().unsqueeze(-1), recorder, torch.device("cpu")
    )


def test_another_cache_and_a_longer_context_are_recorded_anew(llama: TinyModel) -> None:
    recorder = FakeRecorder()
    steps, memory = _steps(recorder), llama.memory(tokens=1024)
    sequence = memory.open()
    for tokens, recorded in ((1, 1), (512, 1), (513, 2), (1024, 2)):
        sequence.reserve(tokens)
        batch = Batch.of([Piece(sequence=sequence, tokens=[9])])
        assert steps.run(batch, memory).tolist() == [[9]]
        assert recorder.recorded == recorded
    other = llama.memory()
    steps.run(Batch.of([Piece(sequence=other.open(), tokens=[9])]), other)
    assert recorder.recorded == 3


def test_the_recording_that_was_not_used_for_longest_makes_room(
    llama: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_steps, "MOST_RECORDED", 2)
    recorder = FakeRecorder()
    steps, memory = _steps(recorder), llama.memory()
    sequences = [memory.open() for _ in range(3)]
    for count, recorded in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        pieces = [Piece(sequence=s, tokens=[n]) for n, s in enumerate(sequences[:count])]
        found = steps.run(Batch.of(pieces), memory)
        assert found.flatten().tolist() == list(range(count))
        assert recorder.recorded == recorded


def test_prompts_and_what_has_no_outputs_are_not_recorded() -> None:
    model, recorder = make_model("llama"), FakeRecorder()
    decoder = _recording(model, recorder)
    memory = model.memory()
    sequence = memory.open()
    decoder.forward(Batch.of([Piece(sequence=sequence, tokens=[9, 8])]), memory)
    decoder.forward(Batch.of([Piece(sequence=sequence, tokens=[9], outputs=0)]), memory)
    assert recorder.recorded == 0


@pytest.mark.parametrize("name", ["llama-dynamic", "qwen3-moe", "qwen3-next"])
def test_a_model_whose_steps_differ_is_not_recorded(name: str) -> None:
    model, recorder = make_model(name), FakeRecorder()
    memory = model.memory()
    step = Batch.of([Piece(sequence=memory.open(), tokens=[9])])
    _recording(model, recorder).forward(step, memory)
    assert recorder.recorded == 0


def test_nothing_is_recorded_on_a_cpu() -> None:
    assert recorder_on(torch.device("cpu")) is None
    model, recorder = make_model("llama"), FakeRecorder()
    decoder = Decoder(model.config, model.source, operations=PlainOperations(), recorder=recorder)
    memory = model.memory()
    decoder.forward(Batch.of([Piece(sequence=memory.open(), tokens=[9])]), memory)
    assert recorder.recorded == 0


def test_sizes_are_few_and_waste_little() -> None:
    assert [count_rows(steps) for steps in (1, 2, 3, 5, 8, 9, 17, 32)] == [
        1,
        2,
        4,
        8,
        8,
        16,
        24,
        32,
    ]


def test_the_plain_recorder_records_nothing() -> None:
    calls: list[torch.Tensor] = []

    def compute() -> torch.Tensor:
        calls.append(torch.zeros(1))
        return calls[-1]

    again = PlainRecorder().record(compute)
    assert not calls
    assert again() is calls[0]
