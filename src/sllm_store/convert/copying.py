"""Plan the copy of a safetensors directory, or of a checkpoint of ours: steps per storage.

Bytes are copied as they are, so views, sharing and every element type survive. With a dtype, the
storages of float tensors are cast; others (integers, fp8 with its scales) stay as they are, and
so do non-persistent buffers.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sllm_store.checkpoint.decoding import read_extent
from sllm_store.checkpoint.writer import Source
from sllm_store.convert.steps import Made, Step
from sllm_store.errors import InvalidRequestError
from sllm_store.native import File, HostBuffer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm_store.checkpoint.model import Checkpoint, Extent, Tensor

_FLOATS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def plan_copies(checkpoint: Checkpoint, files: Sequence[File], *, dtype: str) -> list[Step]:
    """Return one step per storage, in the order in which the state dict first needs it."""
    views: dict[int, list[Tensor]] = {}
    for tensor in checkpoint.all_tensors().values():
        views.setdefault(tensor.extent, []).append(tensor)
    return [
        _plan(checkpoint, index, tensors, files=files, dtype=dtype)
        for index, tensors in views.items()
    ]


def _plan(
    checkpoint: Checkpoint,
    index: int,
    views: list[Tensor],
    *,
    files: Sequence[File],
    dtype: str,
) -> Step:
    extent = checkpoint.extents[index]
    kinds = {view.dtype for view in views}
    kept = any(view.name in checkpoint.buffers for view in views)
    if dtype == "auto" or kept or kinds == {dtype} or not kinds <= _FLOATS.keys():
        make = partial(_copy, checkpoint, index, views, files[extent.file])
        return Step(size_bytes=extent.size_bytes, make=make)
    if len(kinds) > 1:
        raise InvalidRequestError(
            f"{checkpoint.path}: {views[0].name} shares its storage with tensors of another dtype, "
            f"so it cannot become {dtype}: import it as it is"
        )
    size_bytes = extent.size_bytes // _FLOATS[kinds.pop()] * _FLOATS[dtype]
    return Step(
        size_bytes=size_bytes,
        make=partial(_cast, views, index, extent, file=files[extent.file], dtype=dtype),
    )


def _copy(checkpoint: Checkpoint, index: int, views: list[Tensor], file: File) -> Made:
    memory, address, size_bytes = _read(file, checkpoint.extents[index])
    sources = {
        view.name: _source(view, index, address, size_bytes, dtype=view.dtype) for view in views
    }
    buffers = sources.keys() & checkpoint.buffers.keys()
    return Made(
        sources=tuple(source for name, source in sources.items() if name not in buffers),
        buffers=tuple(source for name, source in sources.items() if name in buffers),
        memory=memory,
    )


def _cast(views: list[Tensor], index: int, extent: Extent, *, file: File, dtype: str) -> Made:
    import numpy as np

    from sllm_store.convert.floats import cast

    raw = np.empty(extent.size_bytes, dtype=np.uint8)
    read_extent(file, extent, raw.ctypes.data)
    values = cast(raw, source=views[0].dtype, target=dtype, name=views[0].name)
    return Made(
        sources=tuple(
            _source(view, index, values.ctypes.data, values.nbytes, dtype=dtype) for view in views
        ),
        memory=values,
    )


def _source(view: Tensor, storage: int, address: int, size_bytes: int, *, dtype: str) -> Source:
    return Source(
        name=view.name,
        dtype=dtype,
        shape=view.shape,
        stride=view.stride,
        storage_offset=view.storage_offset,
        storage=storage,
        address=address,
        size_bytes=size_bytes,
    )


def _read(file: File, extent: Extent) -> tuple[HostBuffer | None, int, int]:
    """Return memory with the extent's bytes: its owner, address and size."""
    if extent.size_bytes == 0:
        return None, 0, 0
    buffer = HostBuffer(extent.size_bytes)
    read_extent(file, extent, buffer.address)
    return buffer, buffer.address, extent.size_bytes
