"""The GPUs of this process: which there are, memory on them, what the driver says of errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from sllm_store import native
from sllm_store.checkpoint.plan import CPU
from sllm_store.errors import DeviceError, OutOfDeviceMemoryError, StoreError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CUDA_OUT_OF_MEMORY = 2

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


def visible_gpus() -> tuple[str, ...]:
    """Return the UUIDs of the GPUs this process sees, by ordinal; none where there is no driver."""
    if not native.cuda_available():
        return ()
    return tuple(native.device_uuid(index) for index in range(native.device_count()))


def open_gpus() -> None:
    """Open every GPU that this process sees, all at once, so that no load waits for it.

    A context takes some tenths of a second, and so does the kernel that decodes. A GPU that cannot
    be opened is left to the loads that want it.
    """
    on_each(_open, range(len(visible_gpus())))


def on_each(function: Callable[[_Item], _Answer], items: Sequence[_Item]) -> list[_Answer]:
    """Return what `function` says of each item, asked at the same time, one thread an item.

    The driver takes milliseconds for what concerns one GPU, and works on several side by side.
    """
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(len(items), "store-gpu") as threads:
        return list(threads.map(function, items))


def _open(device: int) -> None:
    with suppress(native.CudaError):
        native.device_memory(device)
        native.prepare_decoder(device)


def device_error(error: native.CudaError, what: str) -> StoreError:
    """Return the store's error for a driver error, with what was being done."""
    message, code = error.args
    if code == CUDA_OUT_OF_MEMORY:
        return OutOfDeviceMemoryError(f"{what}: {message}; free GPU memory or use another GPU")
    return DeviceError(f"{what}: {message}")


def allocate_device(device: int, size_bytes: int) -> native.DeviceBuffer:
    """Allocate one arena; raise OutOfDeviceMemoryError saying how much there was."""
    try:
        return native.DeviceBuffer(device, size_bytes)
    except native.CudaError as error:
        if error.args[1] != CUDA_OUT_OF_MEMORY:
            raise device_error(error, f"cannot allocate on GPU {device}") from error
        free, total = native.device_memory(device)
        raise OutOfDeviceMemoryError(
            f"GPU {device} has {format_size(free)} free of {format_size(total)}, the load needs "
            f"{format_size(size_bytes)}: free some, or spread the model over more GPUs"
        ) from error


def allocate_arenas(arenas: Sequence[tuple[str, int]]) -> list[native.DeviceBuffer | None]:
    """Allocate arenas, given by device and size, on all GPUs at once; None for other devices' ones.

    There is nothing for empty arenas either. Raises as allocate_device.
    """
    on_gpus = [index for index, (device, size) in enumerate(arenas) if device != CPU and size]
    memories: list[native.DeviceBuffer | None] = [None] * len(arenas)
    made = on_each(lambda index: _allocate_arena(*arenas[index]), on_gpus)
    for index, memory in zip(on_gpus, made, strict=True):
        memories[index] = memory
    return memories


def _allocate_arena(device: str, size_bytes: int) -> native.DeviceBuffer:
    return allocate_device(device_ordinal(device), size_bytes)


def device_ordinal(uuid: str) -> int:
    """Return this process's ordinal of the GPU; raise DeviceError listing those it sees."""
    known = visible_gpus()
    wanted = uuid.lower().removeprefix("gpu-")
    if wanted not in known:
        seen = ", ".join(known) or native.cuda_unavailable_reason() or "none"
        raise DeviceError(f"no GPU {uuid} is visible here (visible: {seen})")
    return known.index(wanted)
