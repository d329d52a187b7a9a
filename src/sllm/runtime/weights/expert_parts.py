"""Which stored bytes are whose: a layer's tensors, cut into what is shared and each expert's own.

An expert is then read by itself, whether a checkpoint has its matrices as tensors of their own or
the matrices of all experts in one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sllm_store.groups.stored import StoredTensor

_SINGLE = re.compile(r"mlp\.experts\.(\d{1,6})\..+")
_JOINED = re.compile(
    r"mlp\.(?:experts|switch_mlp)\.(gate_up_proj|gate_proj|up_proj|down_proj)"
    r"(?:\.(weight|scales|biases))?"
)
_HALVES = ("gate_proj", "up_proj")


def part_experts(
    tensors: Mapping[str, StoredTensor], *, experts: int, where: str
) -> tuple[list[StoredTensor], list[list[StoredTensor]]]:
    """Return a layer's tensors that every token needs, and those of each expert.

    tensors: by their names in the layer. Raises InvalidCheckpointError for a tensor that experts
    cannot share, and for an expert that the model has no use for.
    """
    shared: list[StoredTensor] = []
    own: list[list[StoredTensor]] = [[] for _ in range(experts)]
    for name, tensor in tensors.items():
        if single := _SINGLE.fullmatch(name):
            number = int(single[1])
            if number >= experts:
                raise InvalidCheckpointError(
                    f"{where}: the tensor {name} is of expert {number}, and config.json says "
                    f"{experts} experts"
                )
            own[number].append(tensor)
        elif joined := _JOINED.fullmatch(name):
            prefix = tensor.name.removesuffix(name)
            for number, part in enumerate(_divide(tensor, experts, where)):
                stem = f"{prefix}mlp.experts.{number}"
                names = _HALVES if joined[1] == "gate_up_proj" else (joined[1],)
                for piece, projection in zip(_divide(part, len(names), where), names, strict=True):
                    called = f"{stem}.{projection}.{joined[2] or 'weight'}"
                    own[number].append(replace(piece, name=called))
        else:
            shared.append(tensor)
    return shared, own


def _divide(tensor: StoredTensor, parts: int, where: str) -> Iterator[StoredTensor]:
    """Yield equal parts of a tensor's leading dimension, each a matrix."""
    rows, rest = divmod(tensor.shape[0] if tensor.shape else 0, parts)
    if rest or not rows or not prod(tensor.shape):
        raise InvalidCheckpointError(
            f"{where}: {tensor.name} has the shape {tensor.shape}, which {parts} cannot share"
        )
    shape = (rows, *tensor.shape[1:])
    if len(shape) > 2:
        shape = (prod(shape[:-1]), shape[-1])
    size_bytes = tensor.size_bytes // parts
    for number in range(parts):
        offset = tensor.offset + number * size_bytes
        yield replace(tensor, shape=shape, offset=offset, size_bytes=size_bytes)
