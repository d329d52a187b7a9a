"""Adapters come back exact: several on one model, on bare models, with errors that name keys."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from sllm_store import transformers as adapter
from sllm_store.errors import InvalidCheckpointError, InvalidRequestError
from sllm_store.peft import load_lora, save_lora
from sllm_store.torch import load_dict, save_dict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# PEFT asks Transformers a question by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
IDS = torch.tensor([[5, 17, 3, 99, 121, 64, 8, 2]])
SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,
}
PeftModel: Any = peft.PeftModel
HERE: dict[str, Any] = {"store": "in-process"}


def base(dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES))
    return model.to(dtype).eval()


@torch.no_grad()
def logits(model: Any, **extra: Any) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=IDS, **extra).logits
    return result


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that makes a random adapter, saved by PEFT and by us."""

    def make(name: str, seed: int, model: Any = None, **options: Any) -> Any:
        settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], **options}
        made: Any = peft.get_peft_model(
            model or base(), peft.LoraConfig(**settings), autocast_adapter_dtype=False
        )
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in made.named_parameters():
            if "lora_" in key:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data = (0.1 * noise).to(parameter.dtype)
        made.save_pretrained(tmp_path / "published" / name)
        save_lora(made, tmp_path / "own" / name)
        return made

    return make


def reference(path: Path, model: Any = None) -> Any:
    return PeftModel.from_pretrained(model or base(), path, autocast_adapter_dtype=False).eval()


@pytest.mark.parametrize("where", ["own", "published"])
def test_an_adapter_on_a_bare_model_is_exact(
    tmp_path: Path, make_adapter: Callable[..., Any], where: str
) -> None:
    make_adapter("first", 1)
    loaded = load_lora(base(), "first", tmp_path / where / "first", **HERE)
    assert isinstance(loaded, peft.PeftModel)
    assert torch.equal(logits(loaded), logits(reference(tmp_path / "published" / "first")))
    assert loaded.active_adapters == ["first"]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    assert not loaded.training


def test_a_second_and_a_third_adapter_load_on_the_same_model(
    tmp_path: Path, make_adapter: Callable[..., Any]
) -> None:
    expected = {}
    for seed, name in enumerate(("first", "second", "third")):
        make_adapter(name, seed, r=4 + 4 * seed, target_modules=["q_proj", "up_proj"][: seed + 1])
        expected[name] = logits(reference(tmp_path / "published" / name))
    model: Any = base()
    plain = logits(model)
    for name in expected:
        model = load_lora(model, name, tmp_path / "own" / name, **HERE)
    assert set(model.peft_config) == {"first", "second", "third"}
    assert model.active_adapters == ["first"]
    for name, wanted in expected.items():
        model.set_adapter(name)
        assert torch.equal(logits(model), wanted)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    model.delete_adapter("second")
    model.set_adapter("third")
    assert torch.equal(logits(model), expected["third"])


def test_there_is_no_spurious_default_adapter(
    tmp_path: Path, make_adapter: Callable[..., Any]
) -> None:
    make_adapter("first", 1)
    assert set(load_lora(base(), "mine", tmp_path / "own" / "first", **HERE).peft_config) == {
        "mine"
    }


def test_the_layout_is_upstreams(tmp_path: Path, make_adapter: Callable[..., Any]) -> None:
    make_adapter("first", 1)
    names = {path.name for path in (tmp_path / "own" / "first").iterdir()}
    assert names == {
        "adapter_config.json",
        "checkpoint.json",
        "tensor.data_0",
        "tensor_index.json",
    }
    index = json.loads((tmp_path / "own" / "first" / "tensor_index.json").read_text())
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in index


def test_one_of_several_adapters_is_saved_by_name(
    tmp_path: Path, make_adapter: Callable[..., Any]
) -> None:
    for seed, name in enumerate(("first", "second")):
        make_adapter(name, seed)
    model: Any = base()
    for name in ("first", "second"):
        model = load_lora(model, name, tmp_path / "own" / name, **HERE)
    save_lora(model, tmp_path / "again", adapter_name="second")
    again = load_lora(base(), "x", tmp_path / "again", **HERE)
    assert torch.equal(logits(again), logits(reference(tmp_path / "published" / "second")))
    with pytest.raises(InvalidRequestError, match="no adapter 'z'"):
        save_lora(model, tmp_path / "z", adapter_name="z")


def test_an_adapter_that_transformers_injected_is_saved_like_any_other(
    tmp_path: Path, make_adapter: Callable[..., Any]
) -> None:
    make_adapter("first", 1)
    model: Any = base()
    model.load_adapter(str(tmp_path / "published" / "first"), adapter_name="mine")
    save_lora(model, tmp_path / "again")
    again = load_lora(base(), "x", tmp_path / "again", **HERE)
    assert torch.equal(logits(again), logits(reference(tmp_path / "published" / "first")))


def test_saving_does_not_change_the_adapter(
    tmp_path: Path, make_adapter: Callable[..., Any]
) -> None:
    made = make_adapter("first", 1)
    assert made.peft_config["default"].inference_mode is False
    assert any(parameter.requires_grad for parameter in made.parameters())


def test_a_trainable_adapter_trains_and_the_base_does_not(
    tmp_path: Path, make_adapter: Callable[..., Any]
) -> None:
    make_adapter("first", 1)
    model: Any = load_lora(base(), "first", tmp_path / "own" / "first", is_trainable=True, **HERE)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    before = logits(model)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.5)
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert not torch.equal(logits(model.eval()), before)


def test_an_adapter_gets_the_dtype_of_its_layers_or_the_one_asked_for(
    tmp_path: Path, make_adapter: Callable[..., Any]
) -> None:
    make_adapter("first", 1)
    for model_dtype, wish, expected in (
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, "float32", torch.float32),
    ):
        loaded = load_lora(
            base(model_dtype), "first", tmp_path / "own" / "first", torch_dtype=wish, **HERE
        )
        dtypes = {p.dtype for name, p in loaded.named_parameters() if "lora_" in name}
        assert dtypes == {expected}
        logits(loaded)


def test_values_of_the_dtype_asked_for_are_not_rounded_to_that_of_the_layers(
    tmp_path: Path, make_adapter: Callable[..., Any]
) -> None:
    made = make_adapter("first", 1, base(torch.float32))
    expected = {key: value for key, value in made.named_parameters() if "lora_" in key}
    path = tmp_path / "own" / "first"
    loaded = load_lora(base(), "default", path, torch_dtype="float32", **HERE)
    found = dict(loaded.named_parameters())
    for key, value in expected.items():
        assert torch.equal(found[key], value)


def test_an_adapter_with_modules_to_save_comes_back_whole(
    tmp_path: Path, make_adapter: Callable[..., Any]
) -> None:
    made = make_adapter("first", 1, modules_to_save=["lm_head"])
    made.lm_head.modules_to_save["default"].weight.data.mul_(2)
    made.save_pretrained(tmp_path / "published" / "first")
    save_lora(made, tmp_path / "own" / "first")
    loaded = load_lora(base(), "first", tmp_path / "own" / "first", **HERE)
    assert torch.equal(logits(loaded), logits(reference(tmp_path / "published" / "first")))
    assert torch.equal(logits(loaded), logits(made.eval()))


def test_an_adapter_of_a_moe_model_is_exact(
    tmp_path: Path, make_adapter: Callable[..., Any]
) -> None:
    def moe() -> Any:
        torch.manual_seed(0)
        model: Any = Qwen3MoeForCausalLM(
            Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
        )
        return model.to(torch.bfloat16).eval()

    make_adapter("first", 1, moe())
    loaded = load_lora(moe(), "first", tmp_path / "own" / "first", **HERE)
    assert torch.equal(logits(loaded), logits(reference(tmp_path / "published" / "first", moe())))


def test_a_name_that_is_taken_is_refused(tmp_path: Path, make_adapter: Callable[..., Any]) -> None:
    make_adapter("first", 1)
    model = load_lora(base(), "first", tmp_path / "own" / "first", **HERE)
    with pytest.raises(InvalidRequestError, match="already has an adapter 'first'"):
        load_lora(model, "first", tmp_path / "own" / "first", **HERE)


@pytest.mark.parametrize("stacked", [False, True])
def test_unexpected_and_missing_tensors_are_named_and_the_model_is_as_before(
    tmp_path: Path,
    make_adapter: Callable[..., Any],
    stacked: bool,  # noqa: FBT001
) -> None:
    make_adapter("first", 1)
    config = (tmp_path / "own" / "first" / "adapter_config.json").read_text()
    tensors = dict(load_dict(tmp_path / "own" / "first", "cpu", **HERE))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    wrong = {**tensors, "base_model.model.other.lora_A.weight": tensors[name]}
    model: Any = base()
    plain = logits(model)
    if stacked:
        model = load_lora(model, "old", tmp_path / "own" / "first", **HERE)
    before = logits(model)
    cases = [
        (wrong, r"other\.lora_A"),
        ({k: v for k, v in tensors.items() if k != name}, "layers.0.self_attn.q_proj.lora_A"),
        ({**tensors, name: torch.ones(3, 3)}, "does not fit"),
    ]
    for number, (state, match) in enumerate(cases):
        path = tmp_path / f"broken{number}"
        save_dict(state, path)
        (path / "adapter_config.json").write_text(config)
        with pytest.raises(InvalidCheckpointError, match=match):
            load_lora(model, "broken", path, **HERE)
        assert torch.equal(logits(model), before)
    if not stacked:
        assert torch.equal(logits(model), plain)
        assert not any("lora_" in key for key, _ in model.named_modules())


def test_an_adapter_for_other_layers_is_refused(
    tmp_path: Path, make_adapter: Callable[..., Any]
) -> None:
    make_adapter("first", 1)
    config = json.loads((tmp_path / "own" / "first" / "adapter_config.json").read_text())
    config["target_modules"] = ["no_such_module"]
    (tmp_path / "own" / "first" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidRequestError, match="does not fit"):
        load_lora(base(), "first", tmp_path / "own" / "first", **HERE)


def test_a_checkpoint_that_is_no_adapter_says_so(tmp_path: Path) -> None:
    save_dict({"w": torch.ones(1)}, tmp_path / "m")
    with pytest.raises(InvalidCheckpointError, match=r"adapter_config\.json"):
        load_lora(base(), "first", tmp_path / "m", **HERE)


def test_a_model_without_adapters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="has no adapter"):
        save_lora(base(), tmp_path / "m")


def test_adapters_load_through_a_store_and_from_the_storage_path(
    tmp_path: Path, make_adapter: Callable[..., Any], start_store: Callable[..., Any]
) -> None:
    make_adapter("first", 1)
    store = start_store(tmp_path / "own")
    loaded = load_lora(base(), "first", "first", "auto", tmp_path / "own", store=store.address)
    assert torch.equal(logits(loaded), logits(reference(tmp_path / "published" / "first")))


def test_the_transformers_adapter_offers_the_functions_too() -> None:
    assert adapter.save_lora is save_lora
    assert adapter.load_lora is load_lora
    with pytest.raises(AttributeError, match="no_such"):
        adapter.no_such  # noqa: B018
