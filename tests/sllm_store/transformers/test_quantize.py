"""Quantised models are the ones that from_pretrained makes, and what is missing is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from sllm_store import transformers as adapter
from sllm_store.errors import InvalidCheckpointError, InvalidRequestError
from sllm_store.torch import load_dict, save_dict
from sllm_store.transformers import save_model

if TYPE_CHECKING:
    from pathlib import Path

load_model: Any = adapter.load_model
Config: Any = transformers.BitsAndBytesConfig
HERE: dict[str, Any] = {"device_map": "cpu", "store": "in-process"}
WISHES: dict[str, dict[str, Any]] = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
    "fp4": {"load_in_4bit": True},
    "int8": {"load_in_8bit": True},
}
# bitsandbytes says which of its kernels it does without.
quiet = pytest.mark.filterwarnings("ignore:::bitsandbytes")


@pytest.mark.parametrize("wish", [{"load_in_8bit": True}, Config(load_in_4bit=True)])
def test_without_bitsandbytes_the_error_says_what_to_install(
    publish: Any, wish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sllm_store.transformers.quantize.find_spec", lambda name: None)
    with pytest.raises(InvalidRequestError, match="pip install bitsandbytes"):
        load_model(publish("llama").path, quantization_config=wish, **HERE)


@pytest.mark.parametrize("wish", [{"bits": 4}, {"quant_method": "no-such"}, "nf4"])
def test_a_quantisation_that_nobody_knows_is_refused(publish: Any, wish: Any) -> None:
    with pytest.raises(InvalidRequestError, match="quantization_config"):
        load_model(publish("llama").path, quantization_config=wish, **HERE)


@quiet
@pytest.mark.parametrize("kind", list(WISHES))
@pytest.mark.parametrize("form", ["object", "dictionary"])
@pytest.mark.parametrize("source", ["own", "published"])
def test_quantising_while_loading_is_exact(
    publish: Any, tmp_path: Path, logits: Any, *, kind: str, form: str, source: str
) -> None:
    pytest.importorskip("bitsandbytes")
    path = publish("llama").path
    if source == "own":
        save_model(publish("llama").from_pretrained(), tmp_path / "own")
    wish = Config(**WISHES[kind])
    theirs = publish("llama").from_pretrained(quantization_config=wish, device_map={"": "cpu"})
    ours = load_model(
        tmp_path / "own" if source == "own" else path,
        quantization_config=wish if form == "object" else dict(WISHES[kind]),
        **HERE,
    )
    assert torch.equal(logits(ours), logits(theirs))
    assert type(ours.model.layers[0].mlp.up_proj) is type(theirs.model.layers[0].mlp.up_proj)
    assert ours.generation_config.eos_token_id == [2, 7]
    assert not ours.training
    assert ours.hf_device_map == {"": torch.device("cpu")}


@quiet
@pytest.mark.parametrize("kind", list(WISHES))
def test_a_model_that_is_quantised_already_is_exact(
    publish: Any, tmp_path: Path, kind: str, logits: Any
) -> None:
    pytest.importorskip("bitsandbytes")
    quantised = {"quantization_config": Config(**WISHES[kind]), "device_map": {"": "cpu"}}
    publish("llama").from_pretrained(**quantised).save_pretrained(tmp_path / "published")
    save_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "published", device_map={"": "cpu"}),
        tmp_path / "own",
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "published", device_map={"": "cpu"})
    for path in (tmp_path / "published", tmp_path / "own"):
        assert torch.equal(logits(load_model(path, **HERE)), logits(theirs))


@quiet
def test_missing_tensors_are_listed_for_quantised_models_too(publish: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    published = publish("llama")
    state = dict(load_dict(published.path, "cpu", store="in-process"))
    del state["model.norm.weight"]
    save_dict(state, tmp_path / "broken")
    config = (published.path / "config.json").read_text()
    (tmp_path / "broken" / "config.json").write_text(config)
    with pytest.raises(InvalidCheckpointError, match=r"model\.norm\.weight"):
        load_model(tmp_path / "broken", quantization_config={"load_in_4bit": True}, **HERE)
