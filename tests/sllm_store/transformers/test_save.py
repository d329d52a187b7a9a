"""save_model writes what upstream writes, in the native dtype, and leaves the model alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sllm_store import transformers as adapter
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.errors import InvalidRequestError
from sllm_store.torch import load_dict
from sllm_store.transformers import save_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

load_model: Any = adapter.load_model
Tokenizer: Any = PreTrainedTokenizerFast


def test_the_files_are_upstreams_and_ours(published: Any, tmp_path: Path) -> None:
    model = published.from_pretrained()
    save_model(model, tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == {
        "checkpoint.json",
        "config.json",
        "generation_config.json",
        "no_split_modules.json",
        "tensor.data_0",
        "tensor_index.json",
        "tied_no_split_modules.json",
    }
    index = json.loads((tmp_path / "m" / "tensor_index.json").read_text())
    assert list(index) == list(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_compressed_model_is_the_plain_one(
    publish: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = publish("llama").from_pretrained().to(dtype)
    model.resize_token_embeddings(4000)
    save_model(model, tmp_path / "m", compress=True)
    assert open_checkpoint(tmp_path / "m").is_compressed == (dtype != torch.float32)
    loaded = load_model(tmp_path / "m", device_map="cpu", store="in-process")
    state, expected = loaded.state_dict(), model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert {value.dtype for value in state.values()} == {dtype}


def test_module_sizes_are_in_upstreams_form(publish: Any, tmp_path: Path) -> None:
    model = publish("llama").from_pretrained()
    save_model(model, tmp_path / "m")
    sizes = json.loads((tmp_path / "m" / "no_split_modules.json").read_text())
    layer_bytes = sum(p.numel() * 2 for p in model.model.layers[0].parameters())
    assert sizes == {
        "model.embed_tokens": 160 * 64 * 2,
        "model.layers.0": layer_bytes,
        "model.layers.1": layer_bytes,
        "model.norm": 64 * 2,
        "model.rotary_emb": 0,
        "lm_head": 160 * 64 * 2,
    }
    tied = json.loads((tmp_path / "m" / "tied_no_split_modules.json").read_text())
    assert tied == [[["lm_head", "model.embed_tokens"], 160 * 64 * 2]]


def test_integer_parameters_and_classes_without_no_split_modules_are_saved(
    publish: Any, tmp_path: Path
) -> None:
    model = publish("llama").from_pretrained()
    model._no_split_modules = None
    for module in model.modules():
        if hasattr(module, "_no_split_modules"):
            module._no_split_modules = None
    model.model.norm.scale = torch.nn.Parameter(torch.arange(4), requires_grad=False)
    save_model(model, tmp_path / "m")
    assert torch.equal(
        load_dict(tmp_path / "m", "cpu", store="in-process")["model.norm.scale"], torch.arange(4)
    )


def test_the_callers_model_is_neither_moved_nor_changed(published: Any, tmp_path: Path) -> None:
    model = published.from_pretrained(dtype=torch.float32)
    model.train()
    config = model.config.to_dict()
    before = {name: (p, p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    save_model(model, tmp_path / "m")
    assert model.config.to_dict() == config
    assert model.training
    for name, parameter in model.named_parameters():
        assert before[name] == (parameter, parameter.data_ptr(), parameter.dtype)


def test_wb3_a_mixed_model_keeps_each_dtype(publish: Any, tmp_path: Path) -> None:
    model = publish("llama").from_pretrained()
    model.model.norm.float()
    model.model.layers[0].mlp.half()
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m", device_map="cpu", store="in-process")
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert loaded.model.norm.weight.dtype == torch.float32


def test_tied_weights_are_stored_once(publish: Any, tmp_path: Path) -> None:
    model = publish("llama").from_pretrained()
    save_model(model, tmp_path / "m")
    index = json.loads((tmp_path / "m" / "tensor_index.json").read_text())
    assert index["lm_head.weight"] == index["model.embed_tokens.weight"]


def test_the_tokenizer_comes_along(publish: Any, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(20)}
    model = tokenizers.models.WordLevel(vocab=words, unk_token="w0")
    tokenizer = Tokenizer(tokenizer_object=tokenizers.Tokenizer(model), unk_token="w0")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    save_model(publish("llama").from_pretrained(), tmp_path / "m", tokenizer=tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == tokenizer.chat_template


def test_files_that_were_there_stay_and_the_old_tensors_go(publish: Any, tmp_path: Path) -> None:
    save_model(publish("llama").from_pretrained(), tmp_path / "m", max_shard_size="40KB")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    save_model(publish("llama").from_pretrained(), tmp_path / "m")
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert "tokenizer.json" in names
    assert {name for name in names if name.startswith("tensor.data")} == {"tensor.data_0"}


def test_shards_have_the_size_that_was_asked_for(publish: Any, tmp_path: Path) -> None:
    model = publish("llama").from_pretrained()
    save_model(model, tmp_path / "m", "40KB")
    files = list((tmp_path / "m").glob("tensor.data_*"))
    assert len(files) > 2
    assert max(path.stat().st_size for path in files) <= 40 << 10
    loaded = load_model(tmp_path / "m", device_map="cpu", store="in-process")
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True)
    )


def test_a_model_on_meta_is_refused_and_nothing_is_written(publish: Any, tmp_path: Path) -> None:
    model = publish("llama").from_pretrained().to("meta")
    with pytest.raises(InvalidRequestError, match=r"on the meta device.*embed_tokens"):
        save_model(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_what_is_no_transformers_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="save_dict"):
        save_model(torch.nn.Linear(2, 2), tmp_path / "m")  # type: ignore[arg-type]


def test_a_save_that_fails_leaves_the_old_checkpoint(
    publish: Any, tmp_path: Path, logits: Callable[..., torch.Tensor]
) -> None:
    model = publish("llama").from_pretrained()
    save_model(model, tmp_path / "m")

    class Broken:
        def save_pretrained(self, directory: Path) -> None:
            (directory / "half").write_text("written")
            raise OSError("the disk is full")

    with pytest.raises(Exception, match="the disk is full"):
        save_model(publish("opt").from_pretrained(), tmp_path / "m", tokenizer=Broken())
    loaded = load_model(tmp_path / "m", device_map="cpu", store="in-process")
    assert torch.equal(logits(loaded), logits(model))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
