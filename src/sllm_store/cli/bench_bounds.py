"""Which link bounds a load, how near the load came to it, and what would help.

A load of B stored bytes takes at least B over the rate of the slowest link that they pass. What it
takes beyond that is our own: calls, and work for every tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DISK, PAGE_CACHE, LINK = "disk", "page cache", "link"
OURS, DECODING = "calls and tensors", "decoding"
# Below this part of its limit, a load is bound by what it does besides moving bytes.
_LINK_BOUND_PART = 0.5
_COMPRESSIBLE = {"bfloat16", "float16"}
_WORTH_COMPRESSING_PART = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the links did in this run, in bytes a second; 0.0 for one that was not measured."""

    disk: float
    page_cache: float
    link: float

    def rate(self, link: str) -> float:
        """Return the rate of a link by its name."""
        return {DISK: self.disk, PAGE_CACHE: self.page_cache, LINK: self.link}[link]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """The loads of one row: who, from where, and their median."""

    loader: str
    state: str
    tier: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cargo:
    """What was loaded; `compressible_part` of it is 16-bit floats that are not compressed.

    With `decodes`, the processor decodes it after it came.
    """

    stored_bytes: int
    tensors: int
    to_gpu: bool
    compressible_part: float = 0.0
    decodes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What holds a row up. `limit_s` is the least that its slowest link takes, `part` of its time.

    `name` is that link, or OURS or DECODING where the link is not what the time went into.
    """

    name: str
    limit_s: float
    part: float
    own_s: float


def passed(row: Timed, *, to_gpu: bool) -> tuple[str, ...]:
    """Return the links that the bytes of a row's loads pass; none where they are mapped."""
    link = (LINK,) if to_gpu else ()
    if row.tier == "device":
        return ()
    if row.tier == "host":
        return link
    if row.tier == "file" and not to_gpu:  # Mapped, and read when somebody looks.
        return ()
    return (DISK if row.state == "cold" else PAGE_CACHE, *link)


def find_bound(row: Timed, cargo: Cargo, limits: Limits) -> Bound | None:
    """Return what bounds a row, None where no link that it passes was measured."""
    times = {
        link: cargo.stored_bytes / limits.rate(link)
        for link in passed(row, to_gpu=cargo.to_gpu)
        if limits.rate(link)
    }
    if not times:
        return None
    slowest = max(times, key=lambda link: times[link])
    limit_s = times[slowest]
    part = limit_s / row.seconds
    beyond = DECODING if cargo.decodes else OURS
    return Bound(
        name=slowest if part >= _LINK_BOUND_PART else beyond,
        limit_s=limit_s,
        part=part,
        own_s=max(row.seconds - limit_s, 0.0),
    )


def advise(
    rows: Iterable[tuple[Timed, Bound | None]], cargo: Cargo, limits: Limits
) -> Iterator[str]:
    """Yield what bounds our own loads, and what would make them faster."""
    ours = [(row, bound) for row, bound in rows if row.tier != "file" and bound is not None]
    names = {bound.name for _, bound in ours}
    if DISK in names:
        yield (
            f"cold loads are bound by the disk ({limits.disk / 1e9:.2f} GB/s): keep the model in "
            f"the store's memory (`sllm-store pin`), or its files on a faster disk"
        )
    if PAGE_CACHE in names:
        yield (
            f"warm loads without the store are bound by copying out of the page cache "
            f"({limits.page_cache / 1e9:.1f} GB/s): the store's memory needs no such copy"
        )
    if LINK in names:
        yield (
            f"loads are bound by the link to the GPU ({limits.link / 1e9:.1f} GB/s): what is in "
            "the store's GPU memory is mapped (`sllm-store pin --device`, `shared=True`), and "
            "several GPUs may lend their links (`sllm-store start --fan-in`)"
        )
    worth = cargo.compressible_part >= _WORTH_COMPRESSING_PART
    if worth and names & {DISK, LINK}:
        yield (
            f"{cargo.compressible_part:.0%} of the bytes are 16-bit floats: saved with "
            "`--compress`, trained weights take about a third less on that way"
        )
    if DECODING in names:
        yield (
            "loads are bound by decoding on the processor: it takes more threads where there are "
            "processors, and none for a checkpoint saved without `--compress`"
        )
    worst = max(ours, key=lambda pair: pair[1].own_s if pair[1].name == OURS else 0, default=None)
    if worst is not None and worst[1].name == OURS:
        row, bound = worst
        each_us = bound.own_s / max(cargo.tensors, 1) * 1e6
        yield (
            f"{row.loader}, {row.state}: {bound.own_s * 1e3:.1f} ms beyond what the bytes need, "
            f"{each_us:.0f} us for each of {cargo.tensors} tensors; a faster link would not help, "
            "fewer and larger tensors might"
        )


def compressible_part(sizes: Iterable[tuple[str, int]], *, compressed: bool) -> float:
    """Return which part of (dtype, bytes) is 16-bit floats that could be coded and are not."""
    counted = list(sizes)
    total = sum(size for _, size in counted)
    if compressed or not total:
        return 0.0
    return sum(size for dtype, size in counted if dtype in _COMPRESSIBLE) / total
