"""The GPU's decoder, the portable one and the fastest one agree on everything, sound or not.

The GPU's runs in an emulator that compiles its source for the CPU: see kernel_emulator.hpp.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from sllm_store import native
from tests.native.segments import bfloat16, coded, float16, spoilt

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
SOURCES = [
    HERE / "decoders.cpp",
    *(CSRC / "codec" / f"{name}.cpp" for name in ("block_decoder", "decoder")),
    CSRC / "io" / "errors.cpp",
]
INCLUDED = [HERE / "kernel_emulator.hpp", *CSRC.glob("codec/*.hpp"), *CSRC.glob("codec/*.cu")]
WAYS = ["kernel", "portable", "fastest"]
SIZES = [
    8192,
    8447,
    8448,
    8449,
    8450,
    32766,
    32768,
    32769,
    33000,
    65534,
    65535,
    65536,
    65537,
    99999,
]

Case = tuple[bytes, int]


@pytest.fixture(scope="module")
def program() -> Path:
    """Every decoder in one program, built once for each version of its sources."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler to build with")
    content = b"".join(path.read_bytes() for path in [*SOURCES, *sorted(INCLUDED)])
    path = ROOT / "build" / "decoders" / hashlib.sha256(content).hexdigest()[:16]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        # The kernel reads bytes as words, as CUDA lets it. Threads are fibres: jumps between their
        # stacks, which a fortified jump takes for an error.
        flags = ["-std=c++20", "-O1", "-g", "-fno-strict-aliasing", "-D_GNU_SOURCE", f"-I{CSRC}"]
        flags += ["-U_FORTIFY_SOURCE"]
        sources = map(str, SOURCES)
        subprocess.run([compiler, *flags, *sources, "-o", str(unfinished)], check=True)
        unfinished.rename(path)
    return path


def decode_all(program: Path, way: str, cases: list[Case], directory: Path) -> list[bytes | None]:
    """Return each case's raw bytes, None for one that was found corrupt."""
    questions, answers = directory / "cases", directory / f"answers-{way}"
    questions.write_bytes(
        b"".join(struct.pack("<II", len(stored), size) + stored for stored, size in cases)
    )
    command = [str(program), way, str(questions), str(answers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    content = answers.read_bytes()
    decoded: list[bytes | None] = []
    at = 0
    for _, size in cases:
        decoded.append(None if content[at] else content[at + 1 : at + 1 + size])
        at += 1 + size
    assert at == len(content)
    return decoded


@pytest.fixture(scope="module")
def segments() -> list[tuple[bytes, bytes]]:
    """Weights of every size that a segment has, plain and coded."""
    raws = [bfloat16(size, size) for size in SIZES]
    raws += [float16(size, size) for size in SIZES if size > 30_000]
    raws.append(bfloat16(native.SEGMENT_BYTES, 1))
    raws += [b"\x80\x3f" * size for size in (5000, 40_000)]
    return [(raw, coded(raw)) for raw in raws]


@pytest.mark.parametrize("way", WAYS)
def test_segments_of_every_size_come_back(
    program: Path, segments: list[tuple[bytes, bytes]], tmp_path: Path, way: str
) -> None:
    cases = [(stored, len(raw)) for raw, stored in segments]
    assert decode_all(program, way, cases, tmp_path) == [raw for raw, _ in segments]


@pytest.mark.parametrize("size", [9001, 40_000])
def test_all_agree_on_what_is_spoilt(program: Path, tmp_path: Path, size: int) -> None:
    cases = spoilt(coded(bfloat16(size, size)), size)
    answers = [decode_all(program, way, cases, tmp_path) for way in WAYS]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0].count(None) > len(cases) // 2
