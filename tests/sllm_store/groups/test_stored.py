"""A checkpoint of any format is found tensor by tensor; what cannot be is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from sllm_store.errors import InvalidRequestError
from sllm_store.groups.stored import open_stored
from sllm_store.torch import save_dict

if TYPE_CHECKING:
    from pathlib import Path


def _bytes(path: Path, name: str) -> bytes:
    model = open_stored(path)
    (tensor,) = (tensor for tensor in model.tensors if tensor.name == name)
    with model.checkpoint.files[tensor.file].path.open("rb") as file:
        file.seek(tensor.offset)
        return file.read(tensor.size_bytes)


def test_tensors_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(12).view(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.ones(0)}
    save_dict(tensors, str(tmp_path / "ours"))
    save_file(tensors, tmp_path / "theirs.safetensors")
    for path in (tmp_path / "ours", tmp_path / "theirs.safetensors"):
        assert _bytes(path, "a") == tensors["a"].numpy().tobytes()
        assert _bytes(path, "b") == tensors["b"].view(torch.int16).numpy().tobytes()
        assert _bytes(path, "c") == b""
        assert open_stored(path).config is None


def test_an_alias_is_where_its_tensor_is(tmp_path: Path) -> None:
    shared = torch.randn(4, 4)
    save_dict({"a": shared, "b": shared, "rows": shared[1:3]}, str(tmp_path / "model"))
    path = tmp_path / "model"
    assert _bytes(path, "a") == _bytes(path, "b") == shared.numpy().tobytes()
    assert _bytes(path, "rows") == shared[1:3].numpy().tobytes()


def test_a_strided_view_is_refused(tmp_path: Path) -> None:
    save_dict({"turned": torch.randn(3, 4).T}, str(tmp_path / "model"))
    with pytest.raises(InvalidRequestError, match="turned is a strided view"):
        open_stored(tmp_path / "model")


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    values = (torch.randn(1 << 16) * 0.02).bfloat16()
    save_dict({"a": values}, str(tmp_path / "model"), compress=True)
    with pytest.raises(InvalidRequestError, match="compressed"):
        open_stored(tmp_path / "model")
