"""What chunks have for targets is worked out once for a plan, and again for another."""

from __future__ import annotations

from dataclasses import replace

from sllm_store.checkpoint.layout import Arena, Image, Piece, Run
from sllm_store.server.cuts import CUTS_MAX, Cuts
from sllm_store.tiers.transfer import ChunkedImage, Target, TransferPlan, cut_image, cut_targets

CHUNK = 1 << 20
CHUNKS = 6


def image() -> ChunkedImage:
    size = CHUNKS * CHUNK - 5
    run = Run(file=0, file_offset=0, size_bytes=size, image_offset=0)
    return cut_image(Image(size_bytes=size, offsets=(), runs=(run,)), CHUNK)


def arena(first: int, count: int) -> Arena:
    start, end = first * CHUNK, min((first + count) * CHUNK, CHUNKS * CHUNK - 5)
    piece = Piece(image_offset=start, size_bytes=end - start, arena_offset=0)
    return Arena(size_bytes=end - start, offsets={}, pieces=(piece,))


def target(placed: Arena, *, address: int = 1 << 30) -> Target:
    return Target(device=0, address=address, pieces=placed.pieces, arena=placed)


def test_a_plan_is_what_adding_step_by_step_makes() -> None:
    chunked, targets = image(), [target(arena(1, 3)), target(arena(4, 2))]
    cut = Cuts().deliver(targets, chunked).cut
    assert cut.moves == cut_targets(targets, chunked)
    assert cut.wanted == [1, 2, 3, 4, 5]
    for chunks in ([1, 4, 2, 5, 3], [1, 4, 2, 5, 3], [5], []):
        plain = TransferPlan()
        for chunk in chunks:
            plain.add(chunk << 40, moves=cut.moves[chunk])
        made = cut.plan([chunk << 40 for chunk in chunks], chunks)
        assert made == plain
        made.add(7, moves=cut.moves[1])  # Which changes nothing that is kept.
    assert cut.moves_total == 5


def test_the_same_arenas_are_cut_once_wherever_they_are() -> None:
    cuts, chunked, placed = Cuts(), image(), arena(0, 4)
    first = cuts.deliver([target(placed)], chunked)
    moved = target(placed, address=1 << 31)
    again = cuts.deliver([moved], chunked)
    assert again.cut is first.cut
    assert list(again.targets) == [moved]
    assert cuts.deliver([target(placed), target(placed)], chunked).cut is not first.cut
    assert cuts.deliver([target(placed)], image()).cut is not first.cut
    assert cuts.deliver([target(arena(0, 4))], chunked).cut is not first.cut


def test_what_was_prepared_for_arenas_is_there_for_their_load() -> None:
    cuts, chunked, placed = Cuts(), image(), [arena(1, 3), arena(4, 2)]
    cuts.prepare(placed, chunked)
    cut = cuts.deliver([target(each) for each in placed], chunked).cut
    assert cuts.deliver([target(each) for each in placed], chunked).cut is cut
    assert cut.moves == cut_targets(placed, chunked)
    assert cut.turns == [1, 4, 2, 5, 3]


def test_targets_without_arenas_are_cut_each_time() -> None:
    cuts, chunked = Cuts(), image()
    pieces = replace(target(arena(0, 2)), arena=None)
    assert cuts.deliver([pieces], chunked).cut is not cuts.deliver([pieces], chunked).cut


def test_cuts_that_were_asked_for_last_are_kept() -> None:
    cuts, chunked = Cuts(), image()
    targets = [target(arena(0, 1 + index % CHUNKS)) for index in range(CUTS_MAX)]
    made = [cuts.deliver([each], chunked).cut for each in targets]
    assert cuts.deliver([targets[0]], chunked).cut is made[0]
    cuts.deliver([target(arena(2, 2))], chunked)  # In the place of the second.
    assert cuts.deliver([targets[0]], chunked).cut is made[0]
    assert cuts.deliver([targets[1]], chunked).cut is not made[1]
