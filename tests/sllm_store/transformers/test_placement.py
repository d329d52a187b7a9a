"""Placement follows the caller, or what fits: WB5's defects of device maps stay gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig

from sllm_store import native
from sllm_store.errors import InvalidRequestError
from sllm_store.transformers.placement import (
    device_of,
    place,
    place_without_model,
    require_covered,
)
from sllm_store.transformers.skeleton import build_on_meta, resolve_class

if TYPE_CHECKING:
    from collections.abc import Callable

CUDA0, CUDA1, CPU = torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cpu")


@pytest.fixture
def skeleton(publish: Callable[..., Any]) -> Callable[[str], Any]:
    """Return a function that builds one of the models on meta."""

    def build(name: str) -> Any:
        config = AutoConfig.from_pretrained(publish(name).path)
        model_class = resolve_class(publish(name).auto_class)
        return build_on_meta(config, model_class, torch.bfloat16, trust_remote_code=False)

    return build


def bytes_per_device(model: Any, placement: dict[str, torch.device]) -> dict[torch.device, int]:
    sizes: dict[torch.device, int] = {}
    for name, parameter in model.named_parameters():
        device = device_of(placement, name)
        sizes[device] = sizes.get(device, 0) + parameter.numel() * parameter.element_size()
    return sizes


def total_bytes(model: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", "llama-untied", "qwen3-moe", "gpt2", "opt", "t5"])
@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential", "balanced_low_0"])
def test_every_tensor_gets_one_device_and_none_is_overfilled(
    skeleton: Callable[[str], Any], name: str, device_map: str
) -> None:
    model = skeleton(name)
    limit = int(total_bytes(model) * 0.8)
    placement = place(model, device_map, max_memory={0: limit, 1: limit, "cpu": 10 * limit})
    require_covered(model, placement)
    sizes = bytes_per_device(model, placement)
    assert sum(sizes.values()) == total_bytes(model)
    assert sizes.get(CUDA0, 0) <= limit
    assert sizes.get(CUDA1, 0) <= limit


def test_wb5_sequential_fills_one_device_before_the_next(skeleton: Callable[[str], Any]) -> None:
    model = skeleton("llama-untied")
    total = total_bytes(model)
    placement = place(model, "sequential", max_memory={0: total // 2, 1: total, "cpu": 0})
    assert set(bytes_per_device(model, placement)) == {CUDA0, CUDA1}
    whole = place(model, "sequential", max_memory={0: 3 * total, 1: 3 * total, "cpu": 0})
    assert set(bytes_per_device(model, whole)) == {CUDA0}


def test_wb5_more_gpus_than_modules_is_no_failure(skeleton: Callable[[str], Any]) -> None:
    model = skeleton("llama")
    limits: dict[int | str, int] = {**dict.fromkeys(range(16), 1 << 30), "cpu": 1 << 30}
    for device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        require_covered(model, place(model, device_map, max_memory=limits))


def test_tied_weights_go_to_one_device(skeleton: Callable[[str], Any]) -> None:
    model = skeleton("llama")
    limit = int(total_bytes(model) * 0.95)
    placement = place(model, "auto", max_memory={0: limit, 1: limit, "cpu": 0})
    assert device_of(placement, "lm_head.weight") == device_of(
        placement, "model.embed_tokens.weight"
    )


@pytest.mark.filterwarnings("ignore:Current model requires:UserWarning")
def test_a_model_that_fits_nowhere_is_refused(skeleton: Callable[[str], Any]) -> None:
    with pytest.raises(InvalidRequestError, match="does not fit"):
        place(skeleton("llama"), "auto", max_memory={0: 1000, "cpu": 1000})


def test_a_prefix_is_a_whole_name() -> None:
    placement = {"layers.1": CUDA1, "layers.10": CPU, "": CUDA0}
    assert device_of(placement, "layers.1.w") == CUDA1
    assert device_of(placement, "layers.10.w") == CPU
    assert device_of(placement, "layers.11.w") == CUDA0
    assert device_of(placement, "layers.1") == CUDA1


def test_one_gpu_takes_a_model_that_fits_before_it_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "cuda_available", lambda: True)
    monkeypatch.setattr(native, "device_count", lambda: 1)
    monkeypatch.setattr(native, "device_memory", lambda device: (1000, 2000))
    assert place_without_model("auto", 800) == {"": CUDA0}
    assert place_without_model("auto", 950) is None
    assert place_without_model({"a": 0, "": "cpu"}, 950) == {"a": CUDA0, "": CPU}
    monkeypatch.setattr(native, "device_count", lambda: 2)
    assert place_without_model("auto", 800) is None
    monkeypatch.setattr(native, "cuda_available", lambda: False)
    assert place_without_model("balanced", 800) == {"": CPU}
