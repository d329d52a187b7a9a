"""A layer's share of a cache of experts, whose books the GPU keeps: no layer waits for the host.

A claim is one program's work of microseconds. Fetching E bytes takes E / the link's rate, as long
as enough bytes are under way: of 55 GB/s, 110 kB if the host answers a read after 2 microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.expert_books import claim_slots, fetch_missing
from sllm.runtime.kernels.shares import power_of_two

_WORD_BYTES = 4
_PAIRS_AT_ONCE = 16
_CLAIM_WARPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLaunch:
    """How many programs copy, the bytes that each has under way, and its warps."""

    programs: int = 32
    block_bytes: int = 16 << 10
    warps: int = 8


class Tally:
    """Experts of all layers that were there when they were asked for, and that were fetched.

    told: two numbers that the host reads and the device writes, whenever it gets there.
    """

    def __init__(self, device: torch.device) -> None:
        self.told = torch.zeros(2, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.totals = torch.zeros(2, dtype=torch.int64, device=device)


class LayerBooks:
    """Which expert of a layer is in which of its slots, and which leaves when another comes.

    The one of least worth of late leaves, as of `FrequencyEviction` over this layer alone; what is
    asked for stays. slots: those of the layer, among all.
    """

    def __init__(self, *, experts: int, slots: range, half_life: float, tally: Tally) -> None:
        device = tally.totals.device
        self.slots = slots
        self._experts = experts
        self._half_life = half_life
        self._tally = tally
        self._places = torch.empty(experts, dtype=torch.int32, device=device)
        self._scores = torch.empty(experts, dtype=torch.float32, device=device)
        self._uses = torch.empty(experts, dtype=torch.int32, device=device)
        self._clock = torch.empty(2, dtype=torch.int32, device=device)
        self.missing = torch.zeros(1 + 2 * len(slots), dtype=torch.int32, device=device)
        self.forget()

    def forget(self) -> None:
        """Begin anew: nothing is there, and nothing was asked for."""
        self._places.fill_(-1)
        for table in (self._scores, self._uses, self._clock):
            table.zero_()

    def claim(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return the slots of chosen experts, two for each: if it is there, and if it is to come.

        The other one is -1. What is to come is noted in `missing`, and counts as there from the
        next claim on. There are as many slots as numbers at least. A number of -1 has -2 twice.
        """
        pairs = chosen.numel()
        assert 0 < pairs <= len(self.slots), "what is claimed fits the slots"
        slots = torch.empty((2, *chosen.shape), dtype=torch.int32, device=chosen.device)
        claim_slots[(1,)](
            slots,
            self.missing,
            chosen.contiguous(),
            self._places,
            self._scores,
            self._uses,
            self._clock,
            self._tally.totals,
            self._tally.told,
            pairs,
            self._experts,
            len(self.slots),
            self.slots.start,
            self._half_life,
            block_experts=power_of_two(self._experts),
            block_pairs=_PAIRS_AT_ONCE,
            num_warps=_CLAIM_WARPS,
            enable_fp_fusion=False,
            **chain_options(),
        )
        return slots


@dataclass(frozen=True, slots=True)
class HostExperts:
    """Experts in pinned memory, and slots for some on a device; both in words of 32 bits.

    source: (places, words); target: (slots, words), of which an expert may fill a part.
    """

    source: torch.Tensor
    target: torch.Tensor

    @classmethod
    def of(cls, source: torch.Tensor, target: torch.Tensor) -> HostExperts:
        """Return them over rows of bytes."""
        return cls(source.view(torch.int32), target.view(torch.int32))

    def fetch(
        self, missing: torch.Tensor, origins: torch.Tensor, launch: FetchLaunch | None = None
    ) -> None:
        """Copy the experts that books say are missing; origins: each one's place by its number."""
        launch = launch or FetchLaunch()
        words = min(self.source.shape[1], self.target.shape[1])
        fetch_missing[(launch.programs,)](
            self.target,
            self.source,
            missing,
            origins,
            words,
            self.target.stride(0),
            self.source.stride(0),
            block=launch.block_bytes // _WORD_BYTES,
            num_warps=launch.warps,
            enable_fp_fusion=False,
            **chain_options(),
        )
