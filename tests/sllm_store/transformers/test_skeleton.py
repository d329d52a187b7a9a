"""What a model is built of may be wrong: each wrong file is an error that names it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM

from sllm_store.errors import InvalidCheckpointError, InvalidRequestError
from sllm_store.transformers.skeleton import build_on_meta, read_config, read_generation_config

if TYPE_CHECKING:
    from pathlib import Path

LLAMA = '{"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2}'
NO_HEADS = LLAMA.replace('heads": 2', 'heads": 0')
NO_NUMBER = LLAMA.replace('heads": 2', 'heads": "x"')


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "nobody"}', NO_HEADS, NO_NUMBER])
def test_a_configuration_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidCheckpointError, match=r"config\.json: "):
        read_config(tmp_path, trust_remote_code=False)


def test_generation_settings_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(InvalidCheckpointError, match=r"generation_config\.json: "):
        read_generation_config(tmp_path)


def test_a_model_that_cannot_be_built_is_an_error_of_its_configuration(tmp_path: Path) -> None:
    described = json.loads(LLAMA) | {"hidden_size": -8}
    (tmp_path / "config.json").write_text(json.dumps(described))
    config = read_config(tmp_path, trust_remote_code=False)
    with pytest.raises(InvalidRequestError, match="LlamaConfig as AutoModelForCausalLM: "):
        build_on_meta(config, AutoModelForCausalLM, torch.float32, trust_remote_code=False)
