"""Compiles decode_segments.cu to PTX, which is committed beside it: `make ptx`.

Needs NVRTC from PyPI, and nothing else of CUDA. PTX for an old virtual architecture runs on every
later GPU, and the oldest NVRTC of CUDA 12 that will do is what the oldest drivers understand.
"""

from __future__ import annotations

import ctypes
import hashlib
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("decode_segments.cu")
OPTIONS = ("--gpu-architecture=compute_70", "--std=c++17")


class CompilationError(Exception):
    """NVRTC did not accept the source."""


def compile_ptx(source: str, name: str) -> str:
    """Return the PTX of a CUDA source."""
    nvrtc = _load_nvrtc()
    program = ctypes.c_void_p()
    _check(
        nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), name.encode(), 0, None, None
        )
    )
    options = (ctypes.c_char_p * len(OPTIONS))(*(option.encode() for option in OPTIONS))
    failed = nvrtc.nvrtcCompileProgram(program, len(OPTIONS), options)
    log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
    if failed or log.strip():
        raise CompilationError(f"{name}: {log.strip() or failed}")
    return _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)


def main() -> None:
    """Write the PTX, with the source's hash in its first line."""
    source = SOURCE.read_bytes()
    ptx = compile_ptx(source.decode(), SOURCE.name)
    digest = hashlib.sha256(source).hexdigest()
    SOURCE.with_suffix(".ptx").write_text(f"// {SOURCE.name} sha256 {digest}\n{ptx.strip()}\n")


def _load_nvrtc() -> ctypes.CDLL:
    spec = find_spec("nvidia.cuda_nvrtc")
    if spec is None or not spec.submodule_search_locations:
        raise CompilationError("there is no NVRTC: run this by `make ptx`")
    return ctypes.CDLL(f"{spec.submodule_search_locations[0]}/lib/libnvrtc.so.12")


def _text(
    get_size: ctypes._NamedFuncPointer, get: ctypes._NamedFuncPointer, program: object
) -> str:
    size = ctypes.c_size_t()
    _check(get_size(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(get(program, buffer))
    return buffer.value.decode()


def _check(result: int) -> None:
    if result:
        raise CompilationError(f"NVRTC answers with error {result}")


if __name__ == "__main__":
    main()
