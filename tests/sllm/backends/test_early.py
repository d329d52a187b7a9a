"""What can be begun before PyTorch is there is begun, for a GPU alone, and changes no answer."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from sllm.backends import local
from sllm.backends.early import begin_early
from sllm.backends.local import EngineOptions, open_engine
from sllm.backends.measured_rates import rates_for
from sllm_store.groups.head_start import HeadStart
from tests.sllm.runtime.tiny_models import make_model

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from sllm.runtime.weights.forecast import Rates


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_model("llama").theirs.save_pretrained(path)
    return path


@pytest.mark.parametrize("device", ["cpu", "cuda:x", "gpu", ""])
def test_for_a_device_that_is_no_gpu_nothing_is_begun(path: Path, device: str) -> None:
    assert begin_early(path, device) is None


def test_an_engine_opens_what_was_opened_early(path: Path) -> None:
    head_start = begin_early(path, "auto")
    assert head_start is not None
    with closing(head_start):
        stored = head_start.stored(60)
        options = EngineOptions(device="cpu", context_tokens=8)
        with closing(open_engine(path, options, head_start=head_start)) as engine:
            assert engine.context_tokens == 8
        assert stored is head_start.stored(60)


def test_rates_are_measured_once_nothing_comes_ahead_any_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    class Ahead(HeadStart):
        def taken_bytes(self, timeout_s: float = 60.0) -> int:
            return super().taken_bytes(timeout_s) or 1  # As on a GPU.

        def close(self) -> None:
            super().close()
            happened.append("closed")

    def measure(measured: Path, device: torch.device) -> Rates:
        happened.append("measured")
        return rates_for(measured, device)

    monkeypatch.setattr(local, "rates_for", measure)
    with closing(Ahead(path, device=0)) as head_start:
        options = EngineOptions(device="cpu", context_tokens=8)
        with closing(open_engine(path, options, head_start=head_start)):
            assert happened[-1] == "measured"
            assert "closed" in happened


def test_it_needs_no_torch() -> None:
    program = "import sys, sllm.backends.early; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_runtime_is_imported_once_with_all_that_it_needs() -> None:
    program = (
        "import gc, sys; from sllm.backends.early import import_runtime; import_runtime(); "
        "frozen = gc.get_freeze_count(); assert frozen > 0; assert gc.isenabled(); "
        "assert 'sllm.backends.local' in sys.modules; import_runtime(); "
        "assert gc.get_freeze_count() == frozen; import torch; "
        "assert torch.ones(3).sum().item() == 3"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
