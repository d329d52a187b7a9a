"""Open GGUF in place: one file, or a model split into -00001-of-00003 and so on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sllm_store.checkpoint.extents import unique_extents
from sllm_store.checkpoint.fields import TENSORS_MAX, FieldError, shown
from sllm_store.checkpoint.files import data_file
from sllm_store.checkpoint.gguf_header import read_header
from sllm_store.checkpoint.model import Checkpoint, Extent, Tensor, contiguous_stride
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sllm_store.checkpoint.gguf_header import Header, TensorInfo

FORMAT = "gguf"
PARTS_MAX = 10_000

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf")


def is_first_of_series(name: str) -> bool:
    """Return whether a file stands for itself: it is whole, or the first part of a series."""
    part = _PART.fullmatch(name)
    return part is None or int(part["number"]) == 1


def one_series(names: Sequence[str]) -> bool:
    """Return whether GGUF files of these names are one model."""
    parts = [_PART.fullmatch(name) for name in names]
    if len(names) == 1:
        return True
    series = {(part["stem"], part["total"]) for part in parts if part}
    return bool(names) and all(parts) and len(series) == 1


def open_gguf(path: Path, *, root: Path | None) -> Checkpoint:
    """Return the checkpoint of a .gguf file, a part of a series, or a directory with one model."""
    paths = _parts_of(path)
    files = tuple(data_file(part, root=root) for part in paths)
    headers: list[Header] = []
    for file in files:
        try:
            headers.append(read_header(file.path, file.size_bytes, root=root))
        except FieldError as error:
            raise InvalidCheckpointError(f"{file.path}: {error}") from None
    _check_series(paths, headers)
    infos: dict[str, tuple[int, TensorInfo]] = {}
    for number, header in enumerate(headers):
        for info in header.tensors:
            if info.name in infos:
                raise InvalidCheckpointError(
                    f"{paths[number]}: tensor {shown(info.name)} is in "
                    f"{paths[infos[info.name][0]].name} too"
                )
            infos[info.name] = (number, info)
    if len(infos) > TENSORS_MAX:
        raise InvalidCheckpointError(f"{path}: more than {TENSORS_MAX} tensors")
    names = list(infos)
    ranges = [Extent(file, info.offset, info.size_bytes) for file, info in infos.values()]
    _refuse_shared(names, ranges, path)
    extents, numbers = unique_extents(names, ranges, source=str(path))
    tensors = {
        name: Tensor(name, info.dtype, info.shape, contiguous_stride(info.shape), number)
        for (name, (_, info)), number in zip(infos.items(), numbers, strict=True)
    }
    return Checkpoint(
        path=path,
        format=FORMAT,
        files=files,
        extents=extents,
        tensors=tensors,
        metadata=headers[0].metadata,
    )


def _refuse_shared(names: list[str], ranges: list[Extent], path: Path) -> None:
    """Two tensors at one place are an overlap: GGUF knows no sharing."""
    owners: dict[Extent, str] = {}
    for name, place in zip(names, ranges, strict=True):
        if place.size_bytes and owners.setdefault(place, name) != name:
            raise InvalidCheckpointError(
                f"{path}: tensors {shown(owners[place])} and {shown(name)} overlap: "
                f"both have offset {place.offset}"
            )


def _parts_of(path: Path) -> list[Path]:
    """Return the files of a model, in order."""
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        if len(found) == 1 and _PART.fullmatch(found[0].name) is None:
            return found
        path = found[0]
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path]
    total = int(part["total"])
    if not 1 <= total <= PARTS_MAX:
        raise InvalidCheckpointError(f"{path}: its name says {total} parts")
    return [
        path.with_name(f"{part['stem']}-{number:05d}-of-{total:05d}.gguf")
        for number in range(1, total + 1)
    ]


def _check_series(paths: list[Path], headers: list[Header]) -> None:
    """The parts must be of one model: count, order and number of tensors agree with the names."""
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        count = header.metadata.get("split.count", len(paths) if len(paths) == 1 else None)
        if count != len(paths) and not (len(paths) == 1 and count == 0):
            raise InvalidCheckpointError(
                f"{path}: split.count is {shown(count)} where there are {len(paths)} parts"
            )
        if len(paths) > 1 and header.metadata.get("split.no") != number:
            raise InvalidCheckpointError(
                f"{path}: split.no is {shown(header.metadata.get('split.no'))}, not {number}"
            )
    total = sum(len(header.tensors) for header in headers)
    said = headers[0].metadata.get("split.tensors.count", total)
    if said != total:
        raise InvalidCheckpointError(
            f"{paths[0]}: split.tensors.count is {shown(said)}, but the parts have {total} tensors"
        )
