"""The runtime computes on a GPU what it computes on the CPU."""

from __future__ import annotations

import pytest
import torch

from sllm.core.sampling import SamplingParameters
from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.memory import CacheMemory
from sllm.runtime.decoder import Decoder
from sllm.runtime.engine.guesses import Lookup
from sllm.runtime.engine.schedule import EngineLimits
from sllm.runtime.engine.token_engine import TokenEngine
from sllm.runtime.generation import generate
from sllm.runtime.quant.schemes import find_scheme
from sllm.runtime.weights.resident import ResidentWeights
from tests.sllm.runtime.engine.listening import listen, make_request
from tests.sllm.runtime.quant.block_cases import COLUMNS, ROWS, random_bytes
from tests.sllm.runtime.tiny_models import CONFIGS, TinyModel, make_model, random_tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = 1e-4  # Products are summed in another order there.


def _on_gpu(model: TinyModel) -> tuple[Decoder, CacheMemory]:
    device = torch.device("cuda")
    tensors = {name: tensor.to(device) for name, tensor in model.theirs.state_dict().items()}
    decoder = Decoder(model.config, ResidentWeights.of(model.config, tensors), device=device)
    return decoder, CacheMemory(model.config, tokens=512, sequences=4, device=device)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_batch_computes_what_it_computes_on_the_cpu(name: str) -> None:
    model = make_model(name)
    on_gpu, memory = _on_gpu(model)
    ours = model.memory()
    prompts = [random_tokens(length, seed=length) for length in (5, 1, 90)]
    on_cpu, there = [ours.open() for _ in prompts], [memory.open() for _ in prompts]
    for tokens in (prompts, [[7], [8], [9]]):
        here = [
            Piece(sequence=sequence, tokens=part)
            for sequence, part in zip(on_cpu, tokens, strict=True)
        ]
        expected = model.decoder.forward(Batch.of(here), ours)
        pieces = [
            Piece(sequence=sequence, tokens=part)
            for sequence, part in zip(there, tokens, strict=True)
        ]
        found = on_gpu.forward(Batch.of(pieces, torch.device("cuda")), memory)
        assert float((found.cpu() - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_blocks_decode_to_the_same_bits(name: str) -> None:
    scheme = find_scheme(name)
    raw = torch.from_numpy(random_bytes(scheme)).flatten()
    here = scheme.of(raw, rows=ROWS, columns=COLUMNS).dequantize(torch.float32)
    there = scheme.of(raw.cuda(), rows=ROWS, columns=COLUMNS).dequantize(torch.float32)
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("name", ["llama", "qwen3-next"])
def test_a_chat_is_answered_the_same_with_guesses_and_what_was_computed(name: str) -> None:
    model = make_model(name)
    on_gpu, alone = _on_gpu(model)
    memory = CacheMemory(
        model.config, tokens=512, sequences=2, spares=4, device=torch.device("cuda")
    )
    limits = EngineLimits(context_tokens=256, parallel=2)
    said = random_tokens(40)
    with TokenEngine(on_gpu, memory, limits, guesser=Lookup()) as engine:
        for turn in range(3):
            request = make_request(said, max_tokens=30, temperature=0)
            listener, _ = listen(engine, request)
            assert listener.last.error is None
            assert (listener.steps[0].cached > 0) == (turn > 0)
            expected = generate(on_gpu, alone, request.prompt, request.parameters)
            assert listener.tokens == [choice.token for choice in expected]
            said = [*said, *listener.tokens, 7]


def test_an_answer_goes_on_as_it_would_have() -> None:
    model = make_model("qwen3-next")
    on_gpu, memory = _on_gpu(model)
    parameters = SamplingParameters(seed=3, max_tokens=16, top_p=0.9)
    prompt = random_tokens(11)
    whole = [choice.token for choice in generate(on_gpu, memory, prompt, parameters)]
    rest = [c.token for c in generate(on_gpu, memory, prompt, parameters, answer=whole[:6])]
    assert rest == whole[6:]
