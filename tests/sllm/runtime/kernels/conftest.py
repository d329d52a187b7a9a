"""Kernels run on a GPU where there is one; elsewhere Triton's interpreter runs them on the CPU."""

from __future__ import annotations

import pytest
import torch
from triton import language

from tests.sllm.runtime.kernels.warp_model import model_asm


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def modelled_ptx(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no PTX run where there is no GPU."""
    if device.type == "cpu":
        monkeypatch.setattr(language, "inline_asm_elementwise", model_asm)
