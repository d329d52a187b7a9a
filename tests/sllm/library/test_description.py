"""A checkpoint is described from its headers, in Ollama's words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from sllm.library.description import describe, list_tensors
from sllm_store.errors import StoreError
from tests.sllm.library.checkpoints import (
    TEMPLATE,
    make_directory,
    make_gguf,
    truncated_safetensors,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_a_gguf_says_what_it_is(tmp_path: Path) -> None:
    found = describe(make_gguf(tmp_path / "tiny.gguf"))
    assert found.details.format == "gguf"
    assert found.details.family == "llama"
    assert found.details.parameter_size == 32 * 64 + 32
    assert found.details.quantization == "Q8_0"
    assert found.info["llama.context_length"] == 64
    assert found.info["general.parameter_count"] == 2080
    assert "tokenizer.chat_template" not in found.info
    assert found.template == TEMPLATE
    assert found.license == "mit"
    assert found.size_bytes == (tmp_path / "tiny.gguf").stat().st_size


def test_its_tensors_are_listed_with_their_types(tmp_path: Path) -> None:
    found = {one["name"]: one for one in list_tensors(make_gguf(tmp_path / "tiny.gguf"))}
    assert {one["type"] for one in found.values()} == {"Q8_0", "F32"}
    assert sorted(one["shape"] for one in found.values()) == [[32], [32, 64]]


def test_a_directory_is_described_from_its_configuration(tmp_path: Path) -> None:
    found = describe(make_directory(tmp_path / "tiny"))
    assert found.details.format == "safetensors"
    assert found.details.quantization == "F16"
    assert found.info == {
        "general.architecture": "llama",
        "general.parameter_count": 40,
        "llama.context_length": 128,
        "llama.embedding_length": 8,
        "llama.block_count": 2,
    }
    assert found.template == TEMPLATE
    assert found.license == "do as you like"


def test_packed_weights_count_as_what_they_are(tmp_path: Path) -> None:
    save_file(
        {
            "a.weight": np.zeros((4, 16), np.uint32),
            "a.scales": np.zeros((4, 2), np.float16),
            "a.biases": np.zeros((4, 2), np.float16),
        },
        tmp_path / "model.safetensors",
    )
    quantization = {"bits": 4, "group_size": 64}
    config = {"model_type": "qwen3_5_moe", "quantization": quantization}
    text = {"max_position_embeddings": 32, "model_type": "qwen3_5_moe_text"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": text}))
    found = describe(tmp_path)
    assert found.details.parameter_size == 4 * 128
    assert found.details.quantization == "affine Q4 (group 64)"
    assert found.info["qwen3_5_moe.context_length"] == 32


def test_a_template_of_its_own_file_wins(tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "tiny")
    (directory / "chat_template.jinja").write_text("mine")
    assert describe(directory).template == "mine"


def test_named_templates_give_the_default_one(tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "tiny")
    templates = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert describe(directory).template == "d"


@pytest.mark.parametrize("name", ["nothing", "empty", "broken", "config"])
def test_what_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "config")
    (directory / "config.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").write_bytes(truncated_safetensors())
    with pytest.raises(StoreError, match=name):
        describe(tmp_path / name)


def test_smollm2_is_described(smollm2: Path) -> None:
    found = describe(smollm2)
    assert found.details.parameter_size == 134_515_008
    assert found.details.quantization == "Q4_1"
    assert found.info["llama.context_length"] == 8192
    assert found.license == "apache-2.0"
