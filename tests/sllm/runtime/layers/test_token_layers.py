"""Which passes, models and devices a token's own launches are for; a GPU's tests compute them."""

from __future__ import annotations

import torch

from benchmarks.random_models import llama_8b
from sllm.runtime.kernels.token_products import can_multiply_tokens
from sllm.runtime.layers.passage import Passage
from sllm.runtime.layers.token_layers import TokenLayers

CPU = torch.device("cpu")


def test_a_cpu_has_none_of_them() -> None:
    assert not can_multiply_tokens(CPU)
    assert TokenLayers.on(llama_8b(small=True), CPU, stays=True) is None


def test_a_pass_without_steps_is_not_for_them() -> None:
    passage = Passage(None, None, None, torch.zeros(1))  # type: ignore[arg-type]
    assert not TokenLayers.takes(passage, 1)
