"""A small checkpoint on disk, and a reader of its tensors one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from sllm_store.groups.stored import open_stored
from sllm_store.torch import save_dict

if TYPE_CHECKING:
    from pathlib import Path

    from sllm_store.groups.stored import StoredModel

GROUPS = 6


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"t{n}": torch.randn(100 + 999 * n, 7) for n in range(GROUPS)}


@pytest.fixture
def model(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> StoredModel:
    save_dict(tensors, str(tmp_path / "model"))
    return open_stored(tmp_path / "model")
