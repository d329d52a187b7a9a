"""Forecast: where a model's weights lie, and how fast that lets it decode. Pure.

A token of one request needs every byte of the layers, of the head, and of the experts that it is
routed to. Whatever is not in the device's memory crosses the link to it, and what is in no memory
is read from the disk, both while other layers compute: so a pass takes as long as the slowest of
memory, link and disk needs for its bytes, and never less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sllm.runtime.weights.residency import Needs, Residency

Tier = Literal["device", "host", "disk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TierBytes:
    """Bytes by tier: memory of the device that computes, host memory beside it, disk.

    On the CPU the device's memory is the host's, and nothing is beside it.
    """

    device: int
    host: int
    disk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Bytes a second that were measured: of the device's memory, the link to it and the disk.

    None for what was not, or is not there.
    """

    memory: float | None = None
    link: float | None = None
    disk: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenNeeds:
    """What a token needs of a model.

    experts: in all layers together. unread_bytes: around the layers, what it does not read, as an
    embedding that is no head.
    """

    experts: int = 0
    unread_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a plan means for one request that decodes.

    stored: where the weights lie. Bytes of a token's pass: `read` from the device's memory,
    `crossing` the link, and `fetched` from disk. Of experts, `hit_rate` is the share that is in the
    device's cache when it is needed: that of its slots until it is measured, 1 without experts.
    """

    stored: TierBytes
    read_bytes: float
    crossing_bytes: float
    fetched_bytes: float
    hit_rate: float
    rates: Rates

    @property
    def seconds(self) -> dict[Tier, float | None]:
        """Return the least that each tier takes for a token; None where its rate is not known.

        Bytes that cross the link are the host's. Tiers that a token needs nothing of are left out.
        """
        parts: dict[Tier, tuple[float, float | None]] = {
            "device": (self.read_bytes, self.rates.memory),
            "host": (self.crossing_bytes, self.rates.link),
            "disk": (self.fetched_bytes, self.rates.disk),
        }
        return {
            tier: size / rate if rate else None for tier, (size, rate) in parts.items() if size > 0
        }

    @property
    def bound(self) -> Tier | None:
        """Return the tier that takes longest; None if a rate that matters is not known."""
        seconds = self.seconds
        known = {tier: took for tier, took in seconds.items() if took is not None}
        if not known or len(known) < len(seconds):
            return None
        return max(known, key=lambda tier: known[tier])

    @property
    def tokens_per_s(self) -> float | None:
        """Return how many tokens a second one request gets at most, but for guesses."""
        bound = self.bound
        took = None if bound is None else self.seconds[bound]
        return None if not took else 1 / took


def plan_forecast(
    needs: Needs,
    residency: Residency,
    rates: Rates,
    *,
    has_host: bool,
    token: TokenNeeds,
    hit_rate: float | None = None,
) -> Forecast:
    """Return what a plan means.

    has_host: whether host memory is beside the device's. hit_rate: of the cache of experts, once it
    is measured.
    """
    pinned, disk = (
        sum(needs.layer_bytes[layer] for layer in layers)
        for layers in (residency.pinned, residency.disk)
    )
    cached = min(residency.expert_slots, needs.experts)
    beside = min(residency.host_expert_slots, needs.experts - cached) if has_host else 0
    if hit_rate is None or cached == needs.experts:
        hit_rate = cached / needs.experts if needs.experts else 1.0
    chosen_bytes = token.experts * needs.expert_bytes
    missed_bytes = chosen_bytes * (1 - hit_rate)
    outside = needs.experts - cached
    absent_share = (outside - beside) / outside if outside else 0.0
    layer_bytes = sum(needs.layer_bytes)
    return Forecast(
        stored=TierBytes(
            device=needs.ends_bytes + layer_bytes - pinned - disk + cached * needs.expert_bytes,
            host=pinned + beside * needs.expert_bytes,
            disk=disk + (outside - beside) * needs.expert_bytes,
        ),
        read_bytes=needs.ends_bytes - token.unread_bytes + layer_bytes + chosen_bytes,
        crossing_bytes=pinned + disk + missed_bytes if has_host else 0,
        fetched_bytes=disk + missed_bytes * absent_share,
        hit_rate=hit_rate,
        rates=rates,
    )
