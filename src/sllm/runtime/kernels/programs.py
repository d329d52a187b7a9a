"""Programs: CUDA C++ that is compiled where it runs, for one shape, and kept for later processes.

For what Triton cannot say: copies through tensor maps that begin before what a kernel waits for is
there, and blocks that share their memory. NVIDIA's run-time compiler takes part of a second; what
it made is kept in the user's cache directory.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sllm_store.user_cache import keep_bytes, user_cache

if TYPE_CHECKING:
    from collections.abc import Mapping

_SOURCES = Path(__file__).parent / "device"
_PORTABLE_CLUSTER = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How many blocks there are, in x and y, of how many threads, and what memory they share.

    cluster: neighbouring blocks, in x, that are there together and see each other's memory.
    """

    blocks: tuple[int, int]
    threads: int
    shared_bytes: int = 0
    cluster: int = 1


def find_program(name: str, defined: Mapping[str, int], device: torch.device) -> Program:
    """Return `name`.cu compiled for a device; a process has each once, and keeps it.

    defined: its constants, by name. Raises RuntimeError if it does not compile, or the driver does
    not take it.
    """
    with torch.cuda.device(device):
        return _program(name, tuple(sorted(defined.items())), torch.cuda.current_device())


@cache
def _program(name: str, defined: tuple[tuple[str, int], ...], device: int) -> Program:
    assert torch.cuda.current_device() == device
    return Program(name, dict(defined))


class Program:
    """One kernel on one device."""

    def __init__(self, name: str, defined: Mapping[str, int]) -> None:
        """Compile it for the current device: see `find_program`."""
        from cuda.bindings import driver

        self._driver = driver
        torch.cuda.current_stream()  # There is a context.
        image = _compiled(name, defined, torch.cuda.get_device_capability())
        self._module = checked(driver.cuModuleLoadData(image))
        self._function = checked(driver.cuModuleGetFunction(self._module, name.encode()))
        self._prepared: set[Grid] = set()

    def launch(self, grid: Grid, argument: ctypes.Structure, *, chained: bool) -> None:
        """Launch it on the current stream. chained: see `sllm.runtime.kernels.chains`."""
        driver = self._driver
        if grid not in self._prepared:
            self._prepare(grid)
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY = grid.blocks
        config.gridDimZ = config.blockDimY = config.blockDimZ = 1
        config.blockDimX = grid.threads
        config.sharedMemBytes = grid.shared_bytes
        config.hStream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
        config.attrs = self._attributes(grid, chained=chained)
        config.numAttrs = len(config.attrs)
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        checked(driver.cuLaunchKernelEx(config, self._function, ctypes.addressof(arguments), 0))

    def _prepare(self, grid: Grid) -> None:
        kinds = self._driver.CUfunction_attribute
        wanted = {kinds.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: grid.shared_bytes}
        if grid.cluster > _PORTABLE_CLUSTER:
            wanted[kinds.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED] = 1
        for kind, value in wanted.items():
            checked(self._driver.cuFuncSetAttribute(self._function, kind, value))
        self._prepared.add(grid)

    def _attributes(self, grid: Grid, *, chained: bool) -> list[Any]:
        driver, found = self._driver, []
        kinds = driver.CUlaunchAttributeID
        if chained:
            value = driver.CUlaunchAttributeValue()
            value.programmaticStreamSerializationAllowed = 1
            found.append((kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value))
        if grid.cluster > 1:
            value = driver.CUlaunchAttributeValue()
            size = value.clusterDim
            size.x, size.y, size.z = grid.cluster, 1, 1
            found.append((kinds.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value))
        attributes = []
        for kind, value in found:
            attribute = driver.CUlaunchAttribute()
            attribute.id, attribute.value = kind, value
            attributes.append(attribute)
        return attributes


@cache
def can_compile() -> bool:
    """Return whether NVIDIA's bindings, which PyTorch for CUDA 13 brings, and compiler are here."""
    try:
        from cuda.bindings import driver, nvrtc

        return driver is not None and nvrtc.nvrtcVersion()[0] == 0
    except (ImportError, RuntimeError):
        return False


def checked(answer: tuple[Any, ...]) -> Any:
    """Return what a call of the bindings brought. Raises RuntimeError if it failed."""
    status, *found = answer
    if status != 0:
        raise RuntimeError(f"a call to the GPU's driver or compiler failed: {status!r}")
    return found[0] if found else None


def compile_source(name: str, options: list[bytes]) -> bytes:
    """Return the machine code of `name`.cu. Raises RuntimeError with what the compiler says."""
    from cuda.bindings import nvrtc

    text, headers = sources(name)
    program = checked(
        nvrtc.nvrtcCreateProgram(
            text,
            f"{name}.cu".encode(),
            len(headers),
            list(headers.values()),
            [header.encode() for header in headers],
        )
    )
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status != 0:
            log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
            checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise RuntimeError(f"{name} does not compile: {log.decode(errors='replace')}")
        image = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
        checked(nvrtc.nvrtcGetCUBIN(program, image))
        return bytes(image)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def make_options(defined: Mapping[str, int], capability: tuple[int, int]) -> list[bytes]:
    """Return what the compiler is told: the constants, and for which device it is."""
    return [
        b"--std=c++17",
        f"--gpu-architecture=sm_{capability[0]}{capability[1]}".encode(),
        *(f"-D{constant}={value}".encode() for constant, value in sorted(defined.items())),
    ]


@cache
def sources(name: str) -> tuple[bytes, dict[str, bytes]]:
    """Return the text of `name`.cu, and those of all headers by name."""
    headers = {path.name: path.read_bytes() for path in sorted(_SOURCES.glob("*.cuh"))}
    return (_SOURCES / f"{name}.cu").read_bytes(), headers


def _compiled(name: str, defined: Mapping[str, int], capability: tuple[int, int]) -> bytes:
    """Return the machine code, out of the cache if it was compiled before."""
    from cuda.bindings import nvrtc

    options = make_options(defined, capability)
    text, headers = sources(name)
    version = repr(nvrtc.nvrtcVersion()).encode()
    told = b"\0".join((text, *headers.values(), version, *options))
    kept = user_cache(os.environ) / "programs" / f"{name}-{hashlib.sha256(told).hexdigest()}.cubin"
    with suppress(OSError):
        return kept.read_bytes()
    made = compile_source(name, options)
    with suppress(OSError):
        keep_bytes(kept, made)
    return made
