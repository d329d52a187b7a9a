"""StoredWeights: a WeightSource over a checkpoint on disk, as much of it in memory as is allowed.

Resident and streamed layers come from the same reads into the same layout, so what is computed is
the same in every bit.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.utils.dlpack import from_dlpack

from sllm.runtime.config.families import parse_config, read_config
from sllm.runtime.weights.assembly import assemble_ends, assemble_layer
from sllm.runtime.weights.names import group_tensors
from sllm.runtime.weights.residency import SLOTS, plan_residency
from sllm.runtime.weights.views import view_group
from sllm_store.groups.reader import GroupReader
from sllm_store.groups.ring import Ring
from sllm_store.groups.stored import open_stored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.weights.residency import Residency
    from sllm.runtime.weights.source import Weights
    from sllm_store.groups.ring import RingCounts
    from sllm_store.groups.stored import StoredModel

_ENDS = 0  # The group of what is around the layers; layer i is group i + 1.


class StoredWeights:
    """The weights of one model on disk, for one forward pass at a time. Close it, or use it as a
    context, to end its reads.
    """

    def __init__(self, config: ModelConfig, reader: GroupReader, residency: Residency) -> None:
        self.config = config
        self.residency = residency
        self._reader = reader
        self._ends = assemble_ends(config, view_group(reader.layouts[_ENDS], self._load(_ENDS)))
        self._resident = {
            index: self._assemble(index, self._load(index + 1)) for index in residency.resident
        }
        order = [index + 1 for index in residency.streamed]
        self._ring = Ring(reader, order, slots=residency.slots) if order else None

    @classmethod
    def open(
        cls, path: Path, *, budget_bytes: int | None = None, slots: int = SLOTS
    ) -> StoredWeights:
        """Open a checkpoint of any format, and read what stays.

        budget_bytes: what the weights may take in memory; None for all. Raises BudgetError if that
        is too little, and for what cannot be computed UnsupportedModelError, before anything large
        is read.
        """
        stored = open_stored(path)
        config = _config(stored)
        ends, layers = group_tensors(
            {tensor.name: tensor for tensor in stored.tensors}, layers=len(config.layers)
        )
        if config.tied:
            ends = {name: end for name, end in ends.items() if not name.startswith("lm_head.")}
        reader = GroupReader(
            stored, [list(ends.values()), *(list(layer.values()) for layer in layers)]
        )
        _check(config, reader)
        residency = plan_residency(
            [reader.size_bytes(index + 1) for index in range(len(layers))],
            ends_bytes=reader.size_bytes(_ENDS),
            budget_bytes=budget_bytes,
            slots=slots,
        )
        return cls(config, reader, residency)

    def __enter__(self) -> StoredWeights:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def ends(self) -> Weights:
        """Return the weights around the layers."""
        return self._ends

    @property
    def counts(self) -> RingCounts | None:
        """Return what the streaming has done; None if every layer is resident."""
        return None if self._ring is None else self._ring.counts

    def layer_bytes(self, index: int) -> int:
        """Return what a layer takes in memory."""
        return self._reader.size_bytes(index + 1)

    def layer(self, index: int) -> AbstractContextManager[Weights]:
        """Return a layer's weights; of a streamed one, for as long as the context is open."""
        resident = self._resident.get(index)
        return self._stream(index) if resident is None else nullcontext(resident)

    def close(self) -> None:
        """End the reads. A second call does nothing."""
        if self._ring is not None:
            self._ring.close()

    @contextmanager
    def _stream(self, index: int) -> Iterator[Weights]:
        assert self._ring is not None, "a layer is resident or streamed"
        with self._ring.lease(index + 1) as buffer:
            yield self._assemble(index, from_dlpack(buffer))

    def _load(self, group: int) -> torch.Tensor:
        raw: torch.Tensor = from_dlpack(self._reader.load(group))
        return raw

    def _assemble(self, index: int, raw: torch.Tensor) -> Weights:
        return assemble_layer(self.config, index, view_group(self._reader.layouts[index + 1], raw))


def _config(stored: StoredModel) -> ModelConfig:
    if stored.config is None:
        return read_config(stored.directory)
    config = parse_config(stored.config, where=stored.checkpoint.path)
    rope = replace(config.rope, interleaved=stored.interleaved_rope)
    return replace(config, rope=rope)


def _check(config: ModelConfig, reader: GroupReader) -> None:
    """Assemble everything over memory that is not there: raises for any tensor that is wrong."""
    for group, layout in enumerate(reader.layouts):
        nowhere = torch.empty(layout.size_bytes, dtype=torch.uint8, device="meta")
        tensors = view_group(layout, nowhere)
        if group == _ENDS:
            assemble_ends(config, tensors)
        else:
            assemble_layer(config, group - 1, tensors)
