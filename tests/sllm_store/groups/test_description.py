"""A checkpoint of any format is described without its tensors being read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sllm_store.errors import CheckpointNotFoundError
from sllm_store.groups.description import DescribedTensor, describe_checkpoint
from sllm_store.torch import save_dict

if TYPE_CHECKING:
    from pathlib import Path

TENSOR = DescribedTensor(name="w", dtype="float32", shape=(2, 3))


def test_every_format_is_described_alike(tmp_path: Path) -> None:
    save_dict({"w": torch.zeros(2, 3)}, tmp_path / "ours")
    save_file({"w": np.zeros((2, 3), np.float32)}, tmp_path / "theirs.safetensors")
    for name in ("ours", "theirs.safetensors"):
        found = describe_checkpoint(tmp_path / name)
        assert found.tensors == (TENSOR,)
        assert found.size_bytes == sum(path.stat().st_size for path in found.files)


def test_long_lists_are_left_out(smollm2: Path) -> None:
    found = describe_checkpoint(smollm2)
    assert found.metadata["general.architecture"] == "llama"
    assert "tokenizer.ggml.tokens" not in found.metadata


def test_nothing_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nothing"):
        describe_checkpoint(tmp_path / "nothing")
