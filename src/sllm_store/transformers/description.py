"""What a checkpoint says of the model in it, whichever format it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sllm_store.torch.dtypes import dtype_named, parse_float_dtype
from sllm_store.torch.views import view_tensors
from sllm_store.transformers.module_sizes import MODULE_SIZES_FILE
from sllm_store.transformers.skeleton import read_config, read_generation_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import GenerationConfig, PretrainedConfig

    from sllm_store.checkpoint.loaded import Loaded
    from sllm_store.checkpoint.model import Checkpoint
    from sllm_store.torch.views import Views

OWN_FORMAT = "sllm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A model that is about to be loaded.

    dtype is what its class is built under. `published` tensors have a publisher's names, others
    the module's own. What is `on_host` has to be loaded there, and is made by `view` before it can
    be moved.
    """

    config: PretrainedConfig
    generation_config: GenerationConfig | None
    dtype: torch.dtype
    published: bool
    on_host: bool
    size_bytes: int
    view: Callable[[Loaded], Views]


def describe_directory(
    checkpoint: Checkpoint, dtype: torch.dtype | None, *, trust_remote_code: bool
) -> Description:
    """Describe a checkpoint with the small files of a Transformers model beside it."""
    directory = checkpoint.directory
    config = read_config(directory, trust_remote_code=trust_remote_code)
    # Both our save_model and upstream's write this file; an import keeps the publisher's names.
    by_module = checkpoint.format == OWN_FORMAT and (directory / MODULE_SIZES_FILE).is_file()
    return Description(
        config=config,
        generation_config=read_generation_config(directory),
        dtype=dtype or parse_float_dtype(config.dtype) or _stored_dtype(checkpoint),
        published=not by_module,
        on_host=False,
        size_bytes=checkpoint.size_bytes,
        view=view_tensors,
    )


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the dtype of the first floating tensor, as `from_pretrained` guesses it."""
    for tensor in checkpoint.tensors.values():
        if not tensor.is_blocks and dtype_named(tensor.dtype).is_floating_point:
            return dtype_named(tensor.dtype)
    return torch.float32
