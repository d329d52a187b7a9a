"""Tensor names: Hugging Face's, in all their prefixes, as a layer's number and a name within it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

_T = TypeVar("_T")

_PREFIX = r"(?:model\.language_model\.|language_model\.model\.|model\.)?"
_LAYER = re.compile(_PREFIX + r"layers\.(\d{1,6})\.(.+)")
# MLX stores a quantised matrix as three tensors, and a checkpoint of planes as a few more.
_PARTS = r"\.(?:weight|scales|biases)(?:\.planes-[0-9-]+\.[a-z]+)?"
_END = re.compile(_PREFIX + rf"((?:embed_tokens|norm){_PARTS})")
_HEAD = re.compile(rf"(?:language_model\.)?(lm_head{_PARTS})")
# What a language model does not need: draft layers, vision, and tables that are computed.
_UNUSED = re.compile(r"mtp\..*|(?:model\.)?visual\..*|.*rotary_emb\.inv_freq")


def split_name(name: str) -> tuple[int | None, str] | None:
    """Return (layer, name in it), (None, name) for what is around the layers, or None.

    None means that the forward pass has no use for the tensor, and that this is known to be right.
    A name that is not known comes back whole, for the caller to refuse.
    """
    if _UNUSED.fullmatch(name):
        return None
    if found := _LAYER.fullmatch(name):
        return int(found[1]), found[2]
    if found := _END.fullmatch(name) or _HEAD.fullmatch(name):
        return None, found[1]
    return None, name


def group_tensors(
    tensors: Mapping[str, _T], *, layers: int
) -> tuple[dict[str, _T], list[dict[str, _T]]]:
    """Return what is around the layers, and what is in each layer, by names without prefix."""
    ends: dict[str, _T] = {}
    groups: list[dict[str, _T]] = [{} for _ in range(layers)]
    for name, tensor in tensors.items():
        found = split_name(name)
        if found is None:
            continue
        layer, rest = found
        if layer is not None and layer >= layers:
            raise InvalidCheckpointError(
                f"the tensor {name} is of layer {layer}, and config.json says {layers} layers"
            )
        group = ends if layer is None else groups[layer]
        if rest in group:
            raise InvalidCheckpointError(f"the tensor {name} is there twice, under two prefixes")
        group[rest] = tensor
    return ends, groups
