"""The fake CUDA driver as a fixture, and cases that run in a process which has loaded it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake_cuda() -> Path:
    """The fake driver's library, compiled once for each version of its source."""
    library: Path = _load("fake_driver").build_fake_cuda(ROOT / "build" / "fake_cuda")
    return library


@pytest.fixture(scope="session")
def fake_cufile() -> Path:
    """The fake cuFile's library, likewise."""
    library: Path = _load("fake_driver").build_fake_cufile(ROOT / "build" / "fake_cuda")
    return library


@pytest.fixture
def run_case(fake_cuda: Path, fake_cufile: Path, tmp_path: Path) -> Callable[..., None]:
    """Run a function of cuda_cases.py, or "file:function", in a process with the fakes."""

    def run(case: str, **settings: str) -> None:
        fakes = {"SLLM_CUDA_LIBRARY": str(fake_cuda), "SLLM_CUFILE_LIBRARY": str(fake_cufile)}
        environment = os.environ | fakes | settings
        file, function = case.split(":") if ":" in case else ("cuda_cases", case)
        command = [sys.executable, "-m", f"tests.native.{file}", function, str(tmp_path)]
        done = subprocess.run(
            command,
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""

    return run
