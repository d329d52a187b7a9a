"""save_model: a model's tensors as they are, and the small files that loading it needs."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from sllm_store.errors import InvalidRequestError
from sllm_store.torch.save import write_checkpoint
from sllm_store.transformers.internals import save_custom_code
from sllm_store.transformers.module_sizes import (
    MODULE_SIZES_FILE,
    TIED_SIZES_FILE,
    no_split_modules,
    tied_no_split_modules,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch

_SHOWN_MAX = 3


def save_model(
    model: PreTrainedModel,
    model_path: str | os.PathLike[str],
    max_shard_size: int | str = "10GB",
    *,
    tokenizer: Any = None,
    compress: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Save a model at model_path, whole or not at all: every tensor in its own dtype.

    Beside the tensors (state dict and non-persistent buffers, tied ones once) go config.json,
    generation_config.json, upstream's two files of module sizes, and what `tokenizer` (or a
    processor) saves. Files that are there already and are not part of a checkpoint stay. The model
    is neither moved nor changed. With compress, float16 and bfloat16 tensors are coded without
    loss where that makes them smaller.
    """
    if not isinstance(model, PreTrainedModel):
        raise InvalidRequestError(
            f"save_model takes a Transformers model, not a {type(model).__name__}: use save_lora "
            "for an adapter, sllm_store.torch.save_dict for other modules"
        )
    tensors, buffers = model.state_dict(), _non_persistent_buffers(model)
    _require_materialized({**tensors, **buffers})

    def write_small_files(directory: Path) -> None:
        _write_configs(model, directory)
        _write_json(directory / MODULE_SIZES_FILE, no_split_modules(model))
        _write_json(directory / TIED_SIZES_FILE, tied_no_split_modules(model))
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)

    write_checkpoint(
        tensors,
        model_path,
        buffers=buffers,
        max_shard_size=max_shard_size,
        compress=compress,
        write_small_files=write_small_files,
        on_progress=on_progress,
    )


def _non_persistent_buffers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    persistent = model.state_dict().keys()
    return {
        name: buffer
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if name not in persistent
    }


def _require_materialized(tensors: Mapping[str, torch.Tensor]) -> None:
    on_meta = [name for name, tensor in tensors.items() if tensor.is_meta]
    if on_meta:
        raise InvalidRequestError(
            f"{len(on_meta)} tensors of the model are on the meta device, so they have no value "
            f"(such as {', '.join(on_meta[:_SHOWN_MAX])}): load the model without offloading"
        )


def _write_configs(model: PreTrainedModel, directory: Path) -> None:
    """Write copies of the configurations that say what the tensors are."""
    config = copy.deepcopy(model.config)
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__]
    save_custom_code(model, directory, config)
    config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
