"""Builds the fakes that tests load through SLLM_CUDA_LIBRARY and SLLM_CUFILE_LIBRARY."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
# The kernel is played by the CPU's decoder.
DECODER = [CSRC / "codec" / f"{name}.cpp" for name in ("block_decoder", "decoder", "frequencies")]
SOURCES = [HERE / "fake_cuda.cpp", *DECODER, CSRC / "io" / "errors.cpp"]
CUFILE_SOURCES = [HERE / "fake_cufile.cpp"]
HEADERS = sorted((CSRC / "codec").glob("*.hpp"))


def build_fake_cuda(directory: Path) -> Path:
    """Compile the fake driver into `directory` unless these very sources are there already."""
    return _build("fake_cuda", SOURCES, directory)


def build_fake_cufile(directory: Path) -> Path:
    """Compile the fake cuFile likewise."""
    return _build("fake_cufile", CUFILE_SOURCES, directory)


def _build(name: str, sources: list[Path], directory: Path) -> Path:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: install g++ to test against the fake driver")
    content = b"".join(path.read_bytes() for path in [*sources, *HEADERS])
    digest = hashlib.sha256(content).hexdigest()[:16]
    library = directory / f"lib{name}_{digest}.so"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = directory / f"{library.name}.{os.getpid()}"
        flags = ["-std=c++20", "-O1", "-g", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra"]
        command = [compiler, *flags, f"-I{CSRC}", *map(str, sources), "-o", str(unfinished)]
        subprocess.run(command, check=True)
        unfinished.rename(library)
    return library
