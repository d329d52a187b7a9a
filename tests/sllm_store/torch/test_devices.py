"""Devices are parsed once, as PyTorch users write them, and errors name what was written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sllm_store import native
from sllm_store.errors import DeviceError, InvalidRequestError
from sllm_store.torch.devices import parse_device, parse_device_map, store_device, torch_device


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")], ids=str)
def test_every_name_of_the_host_is_cpu(device: Any) -> None:
    assert parse_device(device) == torch.device("cpu")
    assert store_device(parse_device(device)) == "cpu"
    assert torch_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", [-1, True, None, 1.5, "disk", "meta", "gpu", "mps", ""])
def test_a_device_that_cannot_be_loaded_to_is_refused(device: Any) -> None:
    with pytest.raises(InvalidRequestError, match="device"):
        parse_device(device)


def test_a_map_keeps_its_prefixes_and_one_device_takes_everything() -> None:
    cpu = torch.device("cpu")
    assert parse_device_map({"a.b": "cpu", "": cpu}) == {"a.b": cpu, "": cpu}
    assert parse_device_map("cpu") == {"": cpu}
    with pytest.raises(InvalidRequestError, match="empty"):
        parse_device_map({})


@pytest.mark.skipif(native.cuda_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", [0, "cuda", "cuda:1"])
def test_without_a_gpu_the_error_says_why(device: Any) -> None:
    with pytest.raises(DeviceError, match=r"no usable GPU here \(.+\); use 'cpu'"):
        parse_device(device)
    with pytest.raises(DeviceError, match="no GPU 1234"):
        torch_device("1234")


@pytest.mark.parametrize(
    ("device", "index"), [(0, 0), (1, 1), ("cuda:1", 1), (torch.device("cuda", 0), 0)], ids=str
)
def test_gpus_are_known_to_the_store_by_uuid(
    monkeypatch: pytest.MonkeyPatch, device: Any, index: int
) -> None:
    monkeypatch.setattr(native, "cuda_available", lambda: True)
    monkeypatch.setattr(native, "device_count", lambda: 2)
    monkeypatch.setattr(native, "device_uuid", lambda ordinal: f"uuid-{ordinal}")
    assert parse_device(device) == torch.device("cuda", index)
    assert store_device(parse_device(device)) == f"uuid-{index}"
    assert torch_device(f"uuid-{index}") == torch.device("cuda", index)
    with pytest.raises(DeviceError, match="GPUs 0 to 1"):
        parse_device(2)
