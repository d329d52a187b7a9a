"""Matrices in slots, which products with chosen experts are tried with."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sllm.runtime.kernels.expert_products import SlotPlanes
from sllm.runtime.kernels.layout import Planes, numbers
from sllm_store.units import align_up
from tests.sllm.runtime.kernels.plane_cases import make_case

SLOTS = 4


class Slots(NamedTuple):
    """Matrices side by side in slots, and the numbers of each slot."""

    planes: list[SlotPlanes]
    numbers: list[torch.Tensor]


def fill_slots(schemes: list[str], rows: int, device: torch.device) -> Slots:
    """Return a matrix of each scheme in every slot: numbers are (slots, rows, columns)."""
    cases = [
        [make_case(scheme, rows=rows, seed=10 * place + slot).planes for slot in range(SLOTS)]
        for place, scheme in enumerate(schemes)
    ]
    offsets, size = [], 0
    for case in cases:
        places = {}
        for name, plane in case[0].tensors.items():
            places[name] = size
            size = align_up(size + plane.nbytes, 256)
        offsets.append(places)
    memory = torch.zeros((SLOTS, size), dtype=torch.uint8)
    for case, places in zip(cases, offsets, strict=True):
        for slot, planes in enumerate(case):
            for name, plane in planes.tensors.items():
                raw = plane.contiguous().view(-1).view(torch.uint8)
                memory[slot, places[name] : places[name] + len(raw)] = raw
    memory = memory.to(device)
    found = []
    for case, places in zip(cases, offsets, strict=True):
        views = {}
        for name, plane in case[0].tensors.items():
            raw = memory[0, places[name] : places[name] + plane.nbytes]
            views[name] = raw.view(plane.dtype).view(plane.shape)
        found.append(SlotPlanes(Planes(case[0].format, **views), size))
    values = [torch.stack([numbers(planes) for planes in case]).to(device) for case in cases]
    return Slots(found, values)
