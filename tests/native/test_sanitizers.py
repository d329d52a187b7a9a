"""The native core under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native.fake_driver import SOURCES as FAKE_SOURCES

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
SOURCES = sorted(
    str(path)
    for folder in ("codec", "io", "lanes", "pool", "products", "shim")
    for path in (CSRC / folder).glob("*.cpp")
)
STRESS = [str(path) for path in sorted(HERE.glob("stress*.cpp"))]


def compile_with(flags: list[str], directory: Path) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build with")
    shared = [compiler, "-std=c++20", "-O1", "-g", "-fno-omit-frame-pointer", "-pthread", *flags]
    program = directory / "stress"
    embedded = directory / "embedded_ptx.cpp"
    ptx = (CSRC / "codec" / "decode_segments.ptx").read_text()
    template = (CSRC / "codec" / "embedded_ptx.cpp.in").read_text()
    embedded.write_text(template.replace("@SLLM_DECODE_SEGMENTS_PTX@", ptx))
    # As it is built: with any instructions, products and sums are rounded as they are written.
    options = ["-ffp-contract=off", "-D_GNU_SOURCE", f"-I{CSRC}", "-ldl", "-o", str(program)]
    built = subprocess.run(
        [*shared, *STRESS, *SOURCES, str(embedded), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find" in built.stderr:
        pytest.skip(f"the compiler has no runtime for {flags}")
    assert built.returncode == 0, built.stderr
    library = directory / "libfake_cuda.so"
    fake = [*map(str, FAKE_SOURCES), f"-I{CSRC}", "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([*shared, *fake], check=True)
    return program


@pytest.mark.slow
@pytest.mark.sanitizer
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_core_runs_clean(tmp_path: Path, sanitizer: str) -> None:
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    program = compile_with(flags, tmp_path)
    environment = os.environ | {
        "SLLM_CUDA_LIBRARY": str(tmp_path / "libfake_cuda.so"),
        "FAKE_CUDA_COPY_DELAY_US": "50",
        "ASAN_OPTIONS": "detect_leaks=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    # ThreadSanitizer cannot place its shadow where the kernel randomises addresses widely.
    command = ["setarch", "-R", str(program), str(tmp_path), "20"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
