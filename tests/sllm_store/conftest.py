"""A real store on a private socket, and the fake CUDA driver."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.store_process import StoreProcess, start_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start_store(tmp_path: Path) -> Iterator[Callable[..., StoreProcess]]:
    """Start stores with the given settings; all are stopped in the end, and must stop cleanly."""
    started: list[StoreProcess] = []

    def start(storage: Path, env: dict[str, str] | None = None, **settings: object) -> StoreProcess:
        store = start_process(storage, tmp_path, env, **settings)
        started.append(store)
        return store

    yield start
    codes = [store.stop() for store in started]
    assert all(code in {0, -9} for code in codes), codes


def _fakes() -> ModuleType:
    source = ROOT / "tests" / "native" / "fake_driver.py"
    spec = importlib.util.spec_from_file_location("fake_driver", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake_cuda() -> Path:
    """The fake CUDA driver's library; a process that has it in SLLM_CUDA_LIBRARY sees two GPUs."""
    library: Path = _fakes().build_fake_cuda(ROOT / "build" / "fake_cuda")
    return library


@pytest.fixture
def fake_storage(fake_cuda: Path, tmp_path: Path) -> dict[str, str]:
    """Variables of a process that sees two GPUs and cuFile, and knows nothing of disks."""
    library = _fakes().build_fake_cufile(ROOT / "build" / "fake_cuda")
    return {
        "SLLM_CUDA_LIBRARY": str(fake_cuda),
        "SLLM_CUFILE_LIBRARY": str(library),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
