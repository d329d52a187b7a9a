"""Builds the fake CUDA driver that tests load through SLLM_CUDA_LIBRARY."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_cuda.cpp")
CSRC = SOURCE.parents[2] / "csrc"
# The kernel is played by the CPU's decoder.
DECODER = [CSRC / "codec" / f"{name}.cpp" for name in ("block_decoder", "decoder", "frequencies")]
SOURCES = [SOURCE, *DECODER, CSRC / "io" / "errors.cpp"]
HEADERS = sorted((CSRC / "codec").glob("*.hpp"))


def build_fake_cuda(directory: Path) -> Path:
    """Compile the fake driver into `directory` unless these very sources are there already."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: install g++ to test against the fake driver")
    content = b"".join(path.read_bytes() for path in [*SOURCES, *HEADERS])
    digest = hashlib.sha256(content).hexdigest()[:16]
    library = directory / f"libfake_cuda_{digest}.so"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = directory / f"{library.name}.{os.getpid()}"
        flags = ["-std=c++20", "-O1", "-g", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra"]
        command = [compiler, *flags, f"-I{CSRC}", *map(str, SOURCES), "-o", str(unfinished)]
        subprocess.run(command, check=True)
        unfinished.rename(library)
    return library
