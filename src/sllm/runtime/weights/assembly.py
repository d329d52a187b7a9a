"""Make a layer's Weights out of its tensors: checked against the model, experts one by one.

A tensor that is missing, of another shape, or that the model has no use for is an error: dropping
it in silence would compute something else.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from sllm.runtime.config.model import MoeConfig
from sllm.runtime.quant.dense import Dense
from sllm.runtime.quant.moving import place_dense
from sllm.runtime.weights.expected import end_shapes, expert_shapes, is_vector, layer_shapes
from sllm.runtime.weights.joining import join_matrices
from sllm.runtime.weights.source import Expert, Weights
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.quant.matrix import Matrix
    from sllm.runtime.weights.eviction import ExpertKey
    from sllm.runtime.weights.expected import Shapes
    from sllm.runtime.weights.source import ExpertGroup, ExpertSource

_EXPERTS = "mlp.experts."
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class ResidentExperts:
    """All experts of a layer, in memory."""

    experts: Mapping[int, Expert]
    grouped: ExpertGroup | None = None

    @property
    def capacity(self) -> int:
        """Return how many there are."""
        return len(self.experts)

    def lease(self, numbers: Sequence[int]) -> AbstractContextManager[Mapping[int, Expert]]:
        """Return some experts; nothing has to be fetched."""
        return nullcontext({number: self.experts[number] for number in numbers})


def assemble_ends(config: ModelConfig, tensors: Mapping[str, torch.Tensor | Matrix]) -> Weights:
    """Return the weights around the layers.

    A head that is stored although the model ties it to the embedding is left out.
    """
    kept = dict(tensors)
    if config.tied:
        kept.pop("lm_head.weight", None)
    return _assemble(kept, end_shapes(config), where="the model")


def assemble_layer(
    config: ModelConfig,
    index: int,
    tensors: Mapping[str, torch.Tensor | Matrix],
    experts: ExpertSource | None = None,
) -> Weights:
    """Return the weights of a layer; raise InvalidCheckpointError naming the tensor at fault.

    experts: where its experts come from, if they are not among the tensors.
    """
    mlp, where = config.layers[index].mlp, f"layer {index}"
    shapes = layer_shapes(config, index)
    if not isinstance(mlp, MoeConfig):
        return _assemble(tensors, shapes, where=where)
    if experts is not None:
        shared = {name: shapes[name] for name in shapes if not name.startswith(_EXPERTS)}
        return replace(_assemble(tensors, shared, where=where), experts=experts)
    weights = _assemble(_split_experts(mlp, dict(tensors), where), shapes, where=where)
    resident = {number: _take_expert(weights.matrices, number) for number in range(mlp.experts)}
    others = {
        name: matrix for name, matrix in weights.matrices.items() if not name.startswith(_EXPERTS)
    }
    return replace(weights, matrices=others, experts=ResidentExperts(resident))


def assemble_expert(
    config: ModelConfig, key: ExpertKey, tensors: Mapping[str, torch.Tensor | Matrix]
) -> Expert:
    """Return an expert; raise InvalidCheckpointError naming the tensor at fault."""
    mlp = config.layers[key.layer].mlp
    assert isinstance(mlp, MoeConfig), "the layer has experts"
    shapes = expert_shapes(mlp, config.hidden, key.number)
    return _take_expert(_assemble(tensors, shapes, where=f"layer {key.layer}").matrices, key.number)


def _assemble(
    tensors: Mapping[str, torch.Tensor | Matrix], shapes: Shapes, *, where: str
) -> Weights:
    for name in shapes.keys() - tensors.keys():
        raise InvalidCheckpointError(f"{where}: the tensor {name} is missing")
    for name in tensors.keys() - shapes.keys():
        raise InvalidCheckpointError(
            f"{where}: the model has no use for the tensor {name}, so config.json does not "
            "describe these weights"
        )
    matrices: dict[str, Matrix] = {}
    vectors: dict[str, torch.Tensor] = {}
    for name, stored in tensors.items():
        if tuple(stored.shape) != shapes[name]:
            raise InvalidCheckpointError(
                f"{where}: the tensor {name} has the shape {tuple(stored.shape)}, not "
                f"{shapes[name]} as config.json says"
            )
        if not isinstance(stored, torch.Tensor):
            matrices[name] = stored
        elif is_vector(name):
            vectors[name] = stored
        else:
            matrices[name] = place_dense(stored)
    for name in (name for name in matrices if is_vector(name)):
        raise InvalidCheckpointError(f"{where}: the tensor {name} is quantised; floats are needed")
    # A CPU computes products one by one: there, a launch costs nothing.
    on_gpu = any(stored.device.type == "cuda" for stored in vectors.values())
    return Weights(matrices, vectors, joined=join_matrices(matrices) if on_gpu else {})


def _split_experts(
    moe: MoeConfig, tensors: dict[str, torch.Tensor | Matrix], where: str
) -> dict[str, torch.Tensor | Matrix]:
    """Replace tensors that hold all experts of a layer by views of each expert's rows."""
    parts = dict(tensors)
    for name in ("gate_up_proj", *_PROJECTIONS):
        stored = parts.pop(f"{_EXPERTS}{name}", None)
        if stored is None:
            continue
        matrix = Dense(stored.flatten(0, -2)) if isinstance(stored, torch.Tensor) else stored
        each, rest = divmod(matrix.shape[0], moe.experts)
        if rest:
            raise InvalidCheckpointError(
                f"{where}: {_EXPERTS}{name} has {matrix.shape[0]} rows, which {moe.experts} "
                "experts cannot share"
            )
        for number in range(moe.experts):
            rows = matrix.part(number * each, (number + 1) * each)
            prefix = f"{_EXPERTS}{number}"
            if name == "gate_up_proj":
                parts[f"{prefix}.gate_proj.weight"] = rows.part(0, each // 2)
                parts[f"{prefix}.up_proj.weight"] = rows.part(each // 2, each)
            else:
                parts[f"{prefix}.{name}.weight"] = rows
    return parts


def _take_expert(matrices: Mapping[str, Matrix], number: int) -> Expert:
    gate, up, down = (matrices[f"{_EXPERTS}{number}.{name}.weight"] for name in _PROJECTIONS)
    return Expert(gate, up, down)
