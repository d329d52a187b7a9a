"""The benchmark of several links gives every GPU its part of a model."""

from __future__ import annotations

from math import prod

import pytest

from benchmarks.checkpoints import MODELS
from benchmarks.link_loads import layer_of, split_evenly


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("gpus", [2, 3, 4])
def test_every_gpu_gets_the_same_bytes_in_the_models_order(kind: str, gpus: int) -> None:
    sizes = {name: prod(shape) for name, shape in MODELS[kind].shapes().items()}
    split = split_evenly(sizes, gpus)
    devices = [split.get(name) or split[layer_of(name)] for name in sizes]
    assert devices == sorted(devices)
    shares = dict.fromkeys(devices, 0)
    for device, size in zip(devices, sizes.values(), strict=True):
        shares[device] += size
    assert len(shares) == gpus
    assert max(shares.values()) < 1.1 * sum(sizes.values()) / gpus


def test_layers_that_one_gpu_gets_whole_are_named_once() -> None:
    sizes = {"a": 2, "layers.0.x": 1, "layers.0.y": 1, "layers.1.x": 1, "layers.1.y": 1, "z": 2}
    assert split_evenly(sizes, 2) == {
        "a": "cuda:0",
        "layers.0": "cuda:0",
        "layers.1": "cuda:1",
        "z": "cuda:1",
    }
    assert split_evenly({"layers.0.x": 1, "layers.0.y": 1}, 2) == {
        "layers.0.x": "cuda:0",
        "layers.0.y": "cuda:1",
    }


def test_a_tensor_outside_of_layers_is_named_itself() -> None:
    assert layer_of("model.layers.12.mlp.up_proj.weight") == "model.layers.12"
    assert layer_of("model.embed_tokens.weight") == "model.embed_tokens.weight"
