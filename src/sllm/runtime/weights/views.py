"""Tensors and matrices over a buffer that holds a group of stored tensors. Nothing is copied."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch

from sllm.runtime.quant.affine import AffineQ4
from sllm.runtime.quant.schemes import find_scheme
from sllm.runtime.weights.names import split_name
from sllm.runtime.weights.plane_names import join_planes
from sllm_store.torch.dtypes import dtype_named

if TYPE_CHECKING:
    from sllm.runtime.quant.matrix import Matrix
    from sllm_store.groups.layout import GroupLayout
    from sllm_store.groups.stored import StoredTensor

_BLOCKS = "gguf:"


def view_group(layout: GroupLayout, raw: torch.Tensor) -> dict[str, torch.Tensor | Matrix]:
    """Return a group's tensors over its buffer, by their names without prefix.

    Raises UnsupportedModelError for a scheme that is not computed.
    """
    found: dict[str, torch.Tensor | Matrix] = {}
    for tensor, place in zip(layout.tensors, layout.places, strict=True):
        split = split_name(tensor.name)
        assert split is not None, "unused tensors are in no group"
        found[split[1]] = _view(tensor, raw[place : place + tensor.size_bytes])
    return join_planes(_join_affine(found))


def _view(tensor: StoredTensor, raw: torch.Tensor) -> torch.Tensor | Matrix:
    if tensor.dtype.startswith(_BLOCKS):
        scheme = find_scheme(tensor.dtype.removeprefix(_BLOCKS))
        return scheme.of(raw, rows=prod(tensor.shape[:-1]), columns=tensor.shape[-1])
    return raw.view(dtype_named(tensor.dtype)).view(tensor.shape)


def _join_affine(
    tensors: dict[str, torch.Tensor | Matrix],
) -> dict[str, torch.Tensor | Matrix]:
    """Make one matrix of each three tensors that MLX stores an affine one as."""
    joined = dict(tensors)
    for name in tensors:
        stem = name.removesuffix(".scales")
        parts = [tensors.get(f"{stem}.{part}") for part in ("weight", "scales", "biases")]
        if stem != name and all(isinstance(part, torch.Tensor) for part in parts):
            words, scales, biases = (part for part in parts if isinstance(part, torch.Tensor))
            del joined[f"{stem}.scales"], joined[f"{stem}.biases"]
            joined[f"{stem}.weight"] = AffineQ4.of(words, scales, biases)
    return joined
