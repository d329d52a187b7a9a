"""The GPUs of this process: which there are, memory on them, what the driver says of errors."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from sllm_store import native
from sllm_store.checkpoint.plan import CPU
from sllm_store.errors import DeviceError, OutOfDeviceMemoryError, StoreError
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    ArenaSizes = Iterable[tuple[str, int]]  # By the device's UUID.

CUDA_OUT_OF_MEMORY = 2
_KNOWN_MAX = 64
_SPARE_PART = 64  # Of what is needed, one part more may be taken.

Planned = TypeVar("Planned")


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
    gpus = range(len(visible_gpus()))
    with ThreadPoolExecutor(max(len(gpus), 1), "store-gpu") as threads:
        list(threads.map(_open, gpus))


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
    """Allocate arenas, given by device and size; None for empty ones, and for the host's.

    One after the other: asked from several threads, the driver takes no less time. Raises as
    allocate_device.
    """
    return [
        allocate_device(device_ordinal(device), size) if device != CPU and size else None
        for device, size in arenas
    ]


class KnownArenas:
    """What earlier loads took of GPUs, so that the same again is there before they are planned.

    The driver takes 1 to 7 ms for 16 GB, and a store meanwhile plans. Thread-safe.
    """

    def __init__(self) -> None:
        """Know of no load."""
        self._sizes: OrderedDict[object, list[tuple[str, int]]] = OrderedDict()
        self._lock = threading.Lock()

    def allocate(
        self,
        load: object,
        plan: Callable[[], Planned],
        sizes: Callable[[Planned], ArenaSizes],
        *,
        guess: Callable[[], list[tuple[str, int]]] = list,
    ) -> tuple[Planned, list[native.DeviceBuffer | None]]:
        """Return what `plan` returns, and the arenas whose `sizes` that has, or some bytes more.

        They are allocated before `plan` is called: as for the last load of the same name, or as
        `guess` says of the first one; and again where that does not fit. Raises as allocate_device,
        and what `plan` raises.
        """
        with self._lock:
            known = self._sizes.get(load)
        if known is None:
            known = guess()
        early: list[native.DeviceBuffer | None] = []
        with suppress(StoreError):  # It is tried again for what the plan says.
            early += allocate_arenas(known)
        try:
            planned = plan()
            wanted = list(sizes(planned))
        except BaseException:  # Whose traceback keeps this frame.
            early.clear()
            raise
        with self._lock:
            self._sizes[load] = wanted
            while len(self._sizes) > _KNOWN_MAX:
                self._sizes.popitem(last=False)
        if early and _fits(known, wanted):
            return planned, early
        early.clear()
        return planned, allocate_arenas(wanted)


def _fits(there: Sequence[tuple[str, int]], wanted: Sequence[tuple[str, int]]) -> bool:
    """Whether arenas are where they are wanted, large enough, and hardly larger."""
    return len(there) == len(wanted) and all(
        device == other and size <= room <= size + size // _SPARE_PART
        for (device, room), (other, size) in zip(there, wanted, strict=True)
    )


def device_ordinal(uuid: str) -> int:
    """Return this process's ordinal of the GPU; raise DeviceError listing those it sees."""
    known = visible_gpus()
    wanted = uuid.lower().removeprefix("gpu-")
    if wanted not in known:
        seen = ", ".join(known) or native.cuda_unavailable_reason() or "none"
        raise DeviceError(f"no GPU {uuid} is visible here (visible: {seen})")
    return known.index(wanted)
