"""StoredModel: a checkpoint's tensors by Hugging Face's names, and where their bytes are on disk.

A GGUF's blocks stay blocks, and the rows of its q and k stay in llama.cpp's order, which
`interleaved_rope` says. What else llama.cpp stores otherwise is made before the first read, and
kept in memory: of models with gated DeltaNet, their norms, decays and linear attention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.checkpoint.gguf import FORMAT as GGUF
from sllm_store.checkpoint.model import contiguous_stride
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.errors import InvalidRequestError
from sllm_store.tiers.transfer import open_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sllm_store.checkpoint.model import Checkpoint, Tensor
    from sllm_store.groups.made import MadeFile, MadeTensor
    from sllm_store.native import File


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor's bytes in one file: row-major elements, or blocks if dtype is 'gguf:Q4_1', say."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    item_bytes: int
    file: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model on disk, with its files open. `config` is config.json's contents where the file has
    its own description; None where `directory` has a config.json. made: the last of `files`, if
    some tensors had to be made.
    """

    checkpoint: Checkpoint
    files: tuple[File, ...]
    tensors: tuple[StoredTensor, ...]
    config: Mapping[str, Any] | None
    interleaved_rope: bool
    made: MadeFile | None = None

    @property
    def directory(self) -> Path:
        """Where the small files (config, tokenizer) are."""
        return self.checkpoint.directory

    def prepare(self) -> None:
        """Make what has to be made, before a file is read. Raises ReadError."""
        if self.made is not None:
            self.made.fill()


def open_stored(path: Path) -> StoredModel:
    """Open a checkpoint to read its tensors as they are stored.

    Raises InvalidRequestError for one whose tensors are not plain ranges of bytes, and what
    open_checkpoint raises.
    """
    checkpoint = open_checkpoint(path)
    files = tuple(open_files(checkpoint))
    if checkpoint.format == GGUF:
        return _open_gguf(checkpoint, files)
    if checkpoint.is_compressed:
        raise InvalidRequestError(
            f"{path} is compressed, and compressed tensors cannot be read one by one yet: save it "
            "again without --compress"
        )
    tensors = [_locate(checkpoint, tensor) for tensor in checkpoint.tensors.values()]
    by_name = {tensor.name: tensor for tensor in tensors}
    for alias, name in checkpoint.aliases.items():
        if alias not in by_name and name in by_name:
            tensors.append(replace(by_name[name], name=alias))
    return StoredModel(
        checkpoint=checkpoint,
        files=files,
        tensors=tuple(tensors),
        config=None,
        interleaved_rope=False,
    )


def _open_gguf(checkpoint: Checkpoint, files: tuple[File, ...]) -> StoredModel:
    try:
        from sllm_store.convert.gguf_import import describe_gguf
        from sllm_store.groups.made import MadeFile
    except ImportError as error:
        raise InvalidRequestError(
            f"{checkpoint.path} is a GGUF: pip install 'serverless-llm[gguf]' to read it"
        ) from error
    model = describe_gguf(checkpoint, files, dtype="auto")
    changed = [conversion for conversion in model.conversions if not conversion.is_stored]
    for conversion in changed:
        if conversion.transpose:
            raise InvalidRequestError(
                f"{checkpoint.path}: {conversion.name} is stored transposed, so it cannot be used "
                "as it is: import the file with `sllm-store save`"
            )
    tensors = [
        StoredTensor(
            name=conversion.name,
            dtype=part.dtype,
            shape=conversion.shape,
            item_bytes=item_bytes(part.dtype),
            file=part.file,
            offset=part.offset,
            size_bytes=part.size_bytes,
        )
        for conversion in model.conversions
        if conversion.is_stored
        for part in conversion.parts
    ]
    made = MadeFile(changed, files) if changed else None
    if made is not None:
        tensors += [_made(tensor, file=len(files)) for tensor in made.tensors]
        files = (*files, made.file)
    return StoredModel(
        checkpoint=checkpoint,
        files=files,
        tensors=tuple(tensors),
        config=model.config,
        interleaved_rope=any(conversion.heads for conversion in model.conversions),
        made=made,
    )


def _made(tensor: MadeTensor, *, file: int) -> StoredTensor:
    dtype = tensor.conversion.rearranged
    return StoredTensor(
        name=tensor.conversion.name,
        dtype=dtype,
        shape=tensor.conversion.shape,
        item_bytes=item_bytes(dtype),
        file=file,
        offset=tensor.offset,
        size_bytes=tensor.conversion.rearranged_bytes,
    )


def _locate(checkpoint: Checkpoint, tensor: Tensor) -> StoredTensor:
    if tensor.stride != contiguous_stride(tensor.shape) and 0 not in tensor.shape:
        raise InvalidRequestError(
            f"{checkpoint.path}: the tensor {tensor.name} is a strided view, which cannot be read "
            "by itself: save a contiguous copy"
        )
    extent = checkpoint.extents[tensor.extent]
    size = item_bytes(tensor.dtype)
    start = tensor.storage_offset * size
    return StoredTensor(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        item_bytes=size,
        file=extent.file,
        offset=extent.offset + start,
        size_bytes=max(tensor.span_bytes() - start, 0),
    )


def item_bytes(dtype: str) -> int:
    """Return the size of an element; blocks are bytes."""
    return 1 if dtype.startswith("gguf:") else ITEM_SIZES[dtype]
