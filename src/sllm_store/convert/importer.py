"""Import a checkpoint of another format into one of ours: `sllm-store save --source`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.checkpoint.writer import CheckpointWriter
from sllm_store.convert.copying import plan_copies
from sllm_store.convert.small_files import (
    carry,
    change_config_dtype,
    find_small_files,
    write_texts,
)
from sllm_store.convert.steps import run_steps
from sllm_store.errors import InvalidCheckpointError, InvalidRequestError
from sllm_store.native import Control
from sllm_store.tiers.transfer import open_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sllm_store.checkpoint.compressed_writer import Compression
    from sllm_store.checkpoint.model import Checkpoint
    from sllm_store.convert.steps import Made, Step

DTYPES = ("auto", "float32", "float16", "bfloat16")
MAX_SHARD_BYTES = 10 << 30

_EXTRA = "serverless-llm[gguf]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import did. `small_files` are names in the target's directory.

    `compression` is None where none was asked for.
    """

    source_format: str
    tensors_total: int
    size_bytes: int
    small_files: tuple[str, ...]
    compression: Compression | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Everything to write: made by steps, copied verbatim from `directory`, or given as text."""

    steps: list[Step]
    directory: Path
    carried: list[Path]
    texts: dict[str, str]


def import_checkpoint(  # noqa: PLR0913 - the options of one command, each with a default.
    source: Path,
    target: Path,
    *,
    dtype: str = "auto",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    threads: int | None = None,
    compress: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    control: Control | None = None,
) -> ImportReport:
    """Write the checkpoint at `source` (GGUF, safetensors or ours) as one of ours at `target`.

    dtype 'auto' keeps float tensors as they are and makes GGUF blocks float32, which is exact;
    'float32', 'float16' and 'bfloat16' cast every float tensor. Everything else in a source
    directory (configuration, tokenizer, chat template) is carried verbatim; a GGUF's is made from
    its key-values. The target appears whole or not at all.

    on_progress(done, total) counts bytes of tensors. Raises a StoreError that names what is wrong,
    LoadCancelledError when `control` is cancelled.
    """
    if dtype not in DTYPES:
        raise InvalidRequestError(f"dtype {dtype!r} is not known (known: {', '.join(DTYPES)})")
    _require_apart(source, target)
    checkpoint = open_checkpoint(source)
    plan = _plan(checkpoint, dtype)
    control = control or Control()
    tensors_total = 0

    with CheckpointWriter(
        target,
        max_shard_bytes=max_shard_bytes,
        threads=threads,
        control=control,
        keep_files=False,
        compress=compress,
    ) as writer:

        def write(made: Made) -> None:
            nonlocal tensors_total
            writer.write(made.sources, buffers=made.buffers)
            tensors_total += len(made.sources)

        size_bytes = run_steps(
            plan.steps, write, threads=threads, on_progress=on_progress, control=control
        )
        writer.write((), aliases=checkpoint.aliases)
        carry(plan.directory, plan.carried, writer.directory)
        write_texts(plan.texts, writer.directory)
        if dtype != "auto" and not plan.texts:
            change_config_dtype(writer.directory, dtype)
        checkpoint.require_unchanged()
    return ImportReport(
        source_format=checkpoint.format,
        tensors_total=tensors_total,
        size_bytes=size_bytes,
        small_files=tuple(sorted([*map(str, plan.carried), *plan.texts])),
        compression=writer.compression,
    )


def carry_small_files(source: Path, into: Path) -> None:
    """Write what is not tensors: a checkpoint's small files verbatim, or those that a GGUF makes.

    Raises InvalidRequestError for a single file of tensors, which is without the others.
    """
    checkpoint = open_checkpoint(source)
    if checkpoint.format != "gguf" and not source.is_dir():
        raise InvalidRequestError(
            f"{source} is one file of tensors: give the directory that also has its config.json"
        )
    plan = _plan(checkpoint, "auto")
    carry(plan.directory, plan.carried, into)
    write_texts(plan.texts, into)


def _plan(checkpoint: Checkpoint, dtype: str) -> _Plan:
    files = open_files(checkpoint)
    directory = checkpoint.directory
    if checkpoint.format == "gguf":
        try:
            import gguf  # noqa: F401 - what makes floats of blocks

            from sllm_store.convert.gguf_import import plan_gguf
        except ImportError as error:
            raise _missing(error, "a GGUF") from error
        planned = plan_gguf(checkpoint, files, dtype=dtype)
        return _Plan(steps=planned.steps, directory=directory, carried=[], texts=planned.texts)
    if dtype != "auto":
        _require_numpy()
    if not checkpoint.tensors:
        raise InvalidCheckpointError(f"{checkpoint.path}: there are no tensors to import")
    # Beside a single file may lie anything; a directory given as such is the model's own.
    carried = find_small_files(directory) if checkpoint.path.is_dir() else []
    steps = plan_copies(checkpoint, files, dtype=dtype)
    return _Plan(steps=steps, directory=directory, carried=carried, texts={})


def _require_apart(source: Path, target: Path) -> None:
    """Refuse a target that would replace the source, or become a part of it."""
    one, other = source.resolve(), target.resolve()
    if one.is_relative_to(other):
        raise InvalidRequestError(
            f"importing {source} into {target} would replace the source: choose another target"
        )
    if other.is_relative_to(one):
        raise InvalidRequestError(
            f"{target} is inside the source {source}: choose a target outside of it"
        )


def _require_numpy() -> None:
    try:
        import numpy as np  # noqa: F401 - the cast will need it.
    except ImportError as error:
        raise _missing(error, "another dtype") from error


def _missing(error: ImportError, what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"importing {what} needs the package {error.name}: run pip install '{_EXTRA}'"
    )
