"""Builds the fake CUDA driver that tests load through SLLM_CUDA_LIBRARY."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_cuda.cpp")


def build_fake_cuda(directory: Path) -> Path:
    """Compile fake_cuda.cpp into `directory` unless this very source is there already."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: install g++ to test against the fake driver")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = directory / f"libfake_cuda_{digest}.so"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = directory / f"{library.name}.{os.getpid()}"
        flags = ["-std=c++20", "-O1", "-g", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra"]
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(unfinished)], check=True)
        unfinished.rename(library)
    return library
