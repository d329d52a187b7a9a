"""The books of a cache of experts, kept by the device, and the copies that they ask for.

One program keeps a layer's: it is a few microseconds beside a hundred for each expert that comes.
Copies are read from the host's pinned memory by the device itself, so nobody has to tell the host.
"""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow

_NEVER = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def rank_worths(score, age, half_life, expert, place):
    """Return numbers that are in the order of worths, then of experts; they end with the place.

    A worth is a score that fell by half with each half-life since it was last raised: its logarithm
    is compared, which does not vanish. A score is 1 at least, once there was a use.
    """
    worth = tl.log2(tl.maximum(score, 1.0)) - age.to(tl.float32) / half_life
    bits = worth.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # Of negative floats, the larger has fewer bits.
    return (ordered.to(tl.int64) << 32) | (expert.to(tl.int64) << 16) | place.to(tl.int64)


@triton.jit
def mark_asked(chosen, pairs, expert, block_pairs: tl.constexpr):
    """Return which experts some pairs ask for."""
    asked = tl.zeros_like(expert)
    for first in range(0, pairs, block_pairs):
        pair = first + tl.arange(0, block_pairs)
        number = tl.load(chosen + pair, mask=pair < pairs, other=-1).to(tl.int32)
        same = (expert[:, None] == number[None, :]).to(tl.int32)
        asked = tl.maximum(asked, tl.max(same, 1))
    return asked > 0


@triton.jit
def seat_missing(
    missing, place, rank, coming, misses, expert, filled, room, first_slot, nobody: tl.constexpr
):
    """Return the places, and how many were ever filled, once all that come have one.

    Slots that were never filled are first, then those of the least ranks.
    """
    for turn in range(misses):
        number = tl.min(coming, 0)
        least = tl.min(rank, 0)
        slot = tl.where(filled < room, filled, (least & 0xFFFF).to(tl.int32))
        gone = (rank == least) & (filled >= room)
        place = tl.where(gone, -1, place)
        rank = tl.where(gone, _NEVER, rank)
        place = tl.where(expert == number, slot, place)
        coming = tl.where(expert == number, nobody, coming)
        filled = tl.minimum(filled + 1, room)
        tl.store(missing + 1 + 2 * turn, number)
        tl.store(missing + 2 + 2 * turn, first_slot + slot)
    tl.store(missing, misses)
    return place, filled


@triton.jit
def tell_slots(slots, chosen, pairs, expert, slot, block_pairs: tl.constexpr):
    """Write the slot of each pair's expert, and -2 for a pair that has none."""
    for first in range(0, pairs, block_pairs):
        pair = first + tl.arange(0, block_pairs)
        number = tl.load(chosen + pair, mask=pair < pairs, other=-1).to(tl.int32)
        same = expert[:, None] == number[None, :]
        found = tl.sum(tl.where(same, slot[:, None] + 2, 0), 0) - 2
        tl.store(slots + pair, found, mask=pair < pairs)


@triton.jit
def count_more(totals, told, index, more):
    """Add to a total, and tell the host."""
    total = tl.load(totals + index) + more
    tl.store(totals + index, total)
    tl.store(told + index, total)


@triton.jit
def claim_slots(
    slots, missing, chosen, places, scores, uses, clock, totals, told,
    pairs, experts, room, first_slot, half_life,
    block_experts: tl.constexpr, block_pairs: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """Give the experts of some pairs slots: slots (2, pairs), of what is there, and what comes.

    Whichever a pair's expert is not has -1 there; a pair that has no expert has -2 twice. missing:
    how many come, then the number and the slot of each. clock: the layer's visits, and its slots
    that were ever filled. totals, told: hits and misses so far, the latter where the host sees it.
    """
    follow(chained)
    expert = tl.arange(0, block_experts)
    known = expert < experts
    place = tl.load(places + expert, mask=known, other=-1)
    score = tl.load(scores + expert, mask=known, other=0.0)
    used = tl.load(uses + expert, mask=known, other=0)
    visit = tl.load(clock) + 1
    asked = mark_asked(chosen, pairs, expert, block_pairs)
    hit = asked & (place >= 0)
    miss = asked & (place < 0)
    misses = tl.sum(miss.to(tl.int32), 0)
    age = visit - used
    rank = rank_worths(score, age, half_life, expert, place)
    rank = tl.where((place >= 0) & ~asked, rank, _NEVER)
    coming = tl.where(miss, expert, block_experts)
    place, filled = seat_missing(
        missing, place, rank, coming, misses, expert, tl.load(clock + 1), room, first_slot,
        block_experts,
    )  # fmt: skip
    tell_slots(slots, chosen, pairs, expert, tl.where(hit, first_slot + place, -1), block_pairs)
    came = tl.where(miss, first_slot + place, -1)
    tell_slots(slots + pairs, chosen, pairs, expert, came, block_pairs)
    tl.store(places + expert, place, mask=known)
    raised = 1.0 + score * tl.exp2(-age.to(tl.float32) / half_life)
    tl.store(scores + expert, raised, mask=known & asked)
    tl.store(uses + expert, used * 0 + visit, mask=known & asked)
    tl.store(clock, visit)
    tl.store(clock + 1, filled)
    count_more(totals, told, 0, tl.sum(hit.to(tl.int32), 0))
    count_more(totals, told, 1, misses)


@triton.jit
def fetch_missing(
    target, source, missing, origins, words, target_words, source_words,
    block: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """Copy what is missing: to its slot in the target, from where its number's origin says.

    Blocks of all experts are dealt out to the programs in turn. What a program asks of the host at
    once is a block, so blocks times programs are the bytes under way.
    """
    follow(chained)
    blocks = tl.cdiv(words, block)
    for unit in range(tl.program_id(0), tl.load(missing) * blocks, tl.num_programs(0)):
        rank = unit // blocks
        number = tl.load(missing + 1 + 2 * rank)
        slot = tl.load(missing + 2 + 2 * rank).to(tl.int64)
        origin = tl.load(origins + number).to(tl.int64)
        word = (unit - rank * blocks) * block + tl.arange(0, block)
        values = tl.load(source + origin * source_words + word, mask=word < words)
        tl.store(target + slot * target_words + word, values, mask=word < words)
