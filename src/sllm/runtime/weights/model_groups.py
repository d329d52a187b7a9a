"""ModelGroups: a model on disk, in the pieces that are read by themselves, and what each is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch

from sllm.runtime.config.families import parse_config, read_config
from sllm.runtime.config.model import MoeConfig
from sllm.runtime.weights.assembly import assemble_ends, assemble_expert, assemble_layer
from sllm.runtime.weights.eviction import ExpertKey
from sllm.runtime.weights.expert_parts import part_experts
from sllm.runtime.weights.names import group_tensors
from sllm.runtime.weights.residency import Needs
from sllm.runtime.weights.views import view_group
from sllm_store.groups.reader import GroupReader
from sllm_store.groups.stored import open_stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.quant.matrix import Matrix
    from sllm.runtime.weights.source import Expert, ExpertSource, Weights
    from sllm_store.groups.stored import StoredModel, StoredTensor

ExpertKind: TypeAlias = tuple[int, tuple[tuple[str, str, tuple[int, ...]], ...]]

ENDS = 0  # The group of what is around the layers; layer i, without its experts, is group i + 1.


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGroups:
    """Groups of a model's tensors: around the layers, each layer, and each expert."""

    config: ModelConfig
    reader: GroupReader
    experts: Mapping[ExpertKey, int]

    @classmethod
    def open(cls, path: Path, stored: StoredModel | None = None) -> ModelGroups:
        """Open a checkpoint of any format; nothing large is read yet. `stored`: if it is open.

        Raises UnsupportedModelError for what cannot be computed, and InvalidCheckpointError for
        weights that are not those of config.json.
        """
        stored = open_stored(path) if stored is None else stored
        config = _config(stored)
        ends, layers = group_tensors(
            {tensor.name: tensor for tensor in stored.tensors}, layers=len(config.layers)
        )
        if config.tied:
            ends = {name: end for name, end in ends.items() if not name.startswith("lm_head.")}
        groups: list[Sequence[StoredTensor]] = [list(ends.values())]
        records: dict[ExpertKey, Sequence[StoredTensor]] = {}
        for index, layer in enumerate(layers):
            shared, own = _part(config, index, layer)
            groups.append(shared)
            records |= {ExpertKey(index, number): record for number, record in enumerate(own)}
        experts = {key: len(groups) + place for place, key in enumerate(records)}
        found = cls(
            config=config,
            reader=GroupReader(stored, [*groups, *records.values()]),
            experts=experts,
        )
        found._check()
        return found

    @property
    def slot_bytes(self) -> int:
        """Return what a slot for any expert takes; 0 if there are none."""
        return max(map(self.reader.size_bytes, self.experts.values()), default=0)

    def needs(
        self,
        *,
        other_bytes: int = 0,
        sizes: Callable[[int], int] | None = None,
        expert_bytes: int | None = None,
    ) -> Needs:
        """Return what the model takes; other_bytes: what else has to be on the device.

        sizes, expert_bytes: what a group and a slot take, if they are not stored as they are used.
        """
        sizes = sizes or self.reader.size_bytes
        mlps = [layer.mlp for layer in self.config.layers]
        chosen = [mlp.chosen for mlp in mlps if isinstance(mlp, MoeConfig)]
        return Needs(
            layer_bytes=tuple(sizes(index + 1) for index in range(len(self.config.layers))),
            ends_bytes=sizes(ENDS),
            experts=len(self.experts),
            expert_bytes=self.slot_bytes if expert_bytes is None else expert_bytes,
            experts_chosen=max(chosen, default=0),
            other_bytes=other_bytes,
        )

    def view(self, group: int, raw: torch.Tensor) -> dict[str, torch.Tensor | Matrix]:
        """Return a group's tensors over a buffer that holds it."""
        return view_group(self.reader.layouts[group], raw)

    def assemble_ends(self, tensors: Mapping[str, torch.Tensor | Matrix]) -> Weights:
        """Return what is around the layers."""
        return assemble_ends(self.config, tensors)

    def assemble_layer(
        self,
        index: int,
        tensors: Mapping[str, torch.Tensor | Matrix],
        experts: ExpertSource | None,
    ) -> Weights:
        """Return a layer; its experts are elsewhere."""
        return assemble_layer(self.config, index, tensors, experts)

    def assemble_expert(self, key: ExpertKey, raw: torch.Tensor) -> Expert:
        """Return an expert over a slot that holds it."""
        return assemble_expert(self.config, key, self.view(self.experts[key], raw))

    def kind_of(self, key: ExpertKey) -> ExpertKind:
        """Return what an expert shares with those of its layer that are stored in the same way."""
        tensors = self.reader.layouts[self.experts[key]].tensors
        return key.layer, tuple(sorted(_kind(tensor, key) for tensor in tensors))

    def are_placed_alike(self, keys: Sequence[ExpertKey]) -> bool:
        """Return whether experts of one kind have each tensor at the same place in a slot."""
        places = {frozenset(self._places(key)) for key in keys}
        return len(places) == 1

    def _places(self, key: ExpertKey) -> Iterator[tuple[str, int]]:
        layout = self.reader.layouts[self.experts[key]]
        for tensor, place in zip(layout.tensors, layout.places, strict=True):
            yield _kind(tensor, key)[0], place

    def _check(self) -> None:
        """Assemble everything over memory that is not there: raises for any tensor that is wrong.

        Experts that are stored alike are assembled once.
        """
        self.assemble_ends(self._nowhere(ENDS))
        for index, layer in enumerate(self.config.layers):
            experts = _NoExperts() if isinstance(layer.mlp, MoeConfig) else None
            self.assemble_layer(index, self._nowhere(index + 1), experts)
        checked: set[ExpertKind] = set()
        for key, group in self.experts.items():
            kind = self.kind_of(key)
            if kind not in checked:
                assemble_expert(self.config, key, self._nowhere(group))
                checked.add(kind)

    def _nowhere(self, group: int) -> dict[str, torch.Tensor | Matrix]:
        nothing = torch.empty(self.reader.size_bytes(group), dtype=torch.uint8, device="meta")
        return self.view(group, nothing)


class _NoExperts:
    """Experts of a layer that is only looked at."""

    capacity = 0
    grouped = None

    def lease(self, numbers: Sequence[int]) -> AbstractContextManager[Mapping[int, Expert]]:
        raise AssertionError("nothing is computed with memory that is not there")


def _kind(tensor: StoredTensor, key: ExpertKey) -> tuple[str, str, tuple[int, ...]]:
    name = tensor.name.rpartition(f"experts.{key.number}.")[2]
    return name, tensor.dtype, tensor.shape


def _part(
    config: ModelConfig, index: int, tensors: Mapping[str, StoredTensor]
) -> tuple[list[StoredTensor], list[list[StoredTensor]]]:
    mlp = config.layers[index].mlp
    if not isinstance(mlp, MoeConfig):
        return list(tensors.values()), []
    return part_experts(tensors, experts=mlp.experts, where=f"layer {index}")


def _config(stored: StoredModel) -> ModelConfig:
    if stored.config is None:
        return read_config(stored.directory)
    config = parse_config(stored.config, where=stored.checkpoint.path)
    rope = replace(config.rope, interleaved=stored.interleaved_rope)
    return replace(config, rope=rope)
