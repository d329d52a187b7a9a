"""write_laid_out: a checkpoint once more, as a GPU's kernels read it.

Each piece that is read by itself (what is around the layers, a layer, an expert) is one range of
the file from the beginning of a page on, quantised matrices in planes. So a copy from the disk or
from pinned memory is what kernels read, and nothing is laid out while a model runs. It costs
reading the source once and writing it once.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch.utils.dlpack import from_dlpack

from sllm.runtime.config.families import CONFIG_FILE
from sllm.runtime.config.rope import INTERLEAVED
from sllm.runtime.weights.images import Image
from sllm.runtime.weights.model_groups import ENDS, ModelGroups
from sllm.runtime.weights.plane_names import name_planes
from sllm_store.groups.ring import open_ring
from sllm_store.groups.writer import GroupTensor, GroupWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_HEAD = "lm_head."
_BUFFERS = 2


def write_laid_out(
    source: Path,
    target: Path,
    *,
    device: torch.device | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the checkpoint at `source`, of any format, to the directory `target`.

    Weights that the runtime has no use for are left out. device: what lays matrices out; the CPU
    unless given. on_progress(done, total) counts bytes that are read; what it raises ends the
    writing. The target appears whole or not at all. Raises UnsupportedModelError for a model that
    is not computed, and the store's errors.
    """
    model = ModelGroups.open(source)
    order = [group for group, layout in enumerate(model.reader.layouts) if layout.tensors]
    sizes = {group: model.reader.size_bytes(group) for group in order}
    stems = _stems(model)
    done, total = 0, sum(sizes.values())
    on_progress(done, total)
    with (
        GroupWriter(target) as writer,
        open_ring(model.reader, order, slots=_BUFFERS) as ring,
    ):
        for group in order:
            with ring.lease(group) as slot:
                raw = from_dlpack(slot.buffer)[slot.offset : slot.offset + sizes[group]]
                stored = model.view(group, raw if device is None else raw.to(device))
                image = Image(stored)
                memory = torch.zeros(image.size_bytes, dtype=torch.uint8, device=device)
                image.write(memory, stored)
            memory = memory.cpu()
            tensors = _describe(stems[group], name_planes(image.view(memory)))
            writer.write(tensors, address=memory.data_ptr(), size_bytes=memory.nbytes)
            done += sizes[group]
            on_progress(done, total)
        writer.carry(source)
        if model.config.rope.interleaved:
            _say_interleaved(writer.directory / CONFIG_FILE)


def _stems(model: ModelGroups) -> dict[int, str]:
    """Return what Hugging Face puts before the names in each group, but for the head's."""
    layers = {index + 1: index for index in range(len(model.config.layers))}
    layers |= {group: key.layer for key, group in model.experts.items()}
    return {ENDS: "model."} | {group: f"model.layers.{i}." for group, i in layers.items()}


def _describe(stem: str, tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[GroupTensor]:
    """Yield what views of one memory are."""
    for name, tensor in tensors:
        yield GroupTensor(
            name=name if name.startswith(_HEAD) else stem + name,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            offset=int(tensor.storage_offset()) * tensor.element_size(),
        )


def _say_interleaved(path: Path) -> None:
    """Keep in config.json that rows of q and k are in llama.cpp's order."""
    config = json.loads(path.read_text("utf-8"))
    text = json.dumps({**config, INTERLEAVED: True}, ensure_ascii=False, indent=2)
    path.write_text(text + "\n", "utf-8")
