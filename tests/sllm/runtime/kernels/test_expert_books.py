"""Books that a GPU keeps say what those of the host do, and what they ask for is copied."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sllm.runtime.kernels.expert_books import FetchLaunch, HostExperts, LayerBooks, Tally
from sllm.runtime.weights.eviction import ExpertKey, FrequencyEviction
from sllm.runtime.weights.slots import SlotTable

EXPERTS, FIRST = 24, 100


def _books(device: torch.device, *, slots: int, half_life: float) -> tuple[LayerBooks, Tally]:
    tally = Tally(device)
    own = range(FIRST, FIRST + slots)
    return LayerBooks(experts=EXPERTS, slots=own, half_life=half_life, tally=tally), tally


def _missing(books: LayerBooks) -> list[tuple[int, int]]:
    count, *rest = books.missing.tolist()
    return list(zip(rest[: 2 * count : 2], rest[1 : 2 * count : 2], strict=True))


@pytest.mark.parametrize(("tokens", "chosen", "slots"), [(1, 4, 7), (2, 3, 6), (5, 4, 20)])
def test_they_evict_what_the_host_s_policy_evicts(
    device: torch.device, *, tokens: int, chosen: int, slots: int
) -> None:
    half_life = slots / chosen
    books, tally = _books(device, slots=slots, half_life=half_life)
    table = SlotTable(slots, FrequencyEviction(half_life))
    random = np.random.default_rng(slots)
    weights = random.dirichlet(np.ones(EXPERTS) / 2)
    places: dict[int, int] = {}
    for _ in range(60):
        numbers = np.stack(
            [random.choice(EXPERTS, chosen, replace=False, p=weights) for _ in range(tokens)]
        )
        found = books.claim(torch.from_numpy(numbers).to(device)).tolist()
        wanted = sorted(set(numbers.flatten().tolist()))
        claim = table.claim(0, wanted)
        table.release(0, wanted)
        missing = _missing(books)
        assert [number for number, _ in missing] == [key.number for key in claim.misses]
        before = dict(places)
        for number, slot in missing:
            places = {other: at for other, at in places.items() if at != slot}
            places[number] = slot
        assert {ExpertKey(0, number) for number in places} == set(table.places)
        assert set(places.values()) <= set(books.slots)
        for row, there, coming in zip(numbers.tolist(), *found, strict=True):
            assert there == [before.get(number, -1) for number in row]
            assert coming == [-1 if number in before else places[number] for number in row]
    assert tally.told.tolist() == [table.counts.hits, table.counts.misses]
    assert table.counts.hits > 0


def test_what_is_no_expert_gets_no_slot(device: torch.device) -> None:
    books, _ = _books(device, slots=4, half_life=2.0)
    found = books.claim(torch.tensor([[3, -1], [-1, 3]], device=device))
    assert found.tolist() == [[[-1, -2], [-2, -1]], [[FIRST, -2], [-2, FIRST]]]
    assert _missing(books) == [(3, FIRST)]


def test_books_that_forgot_have_nothing(device: torch.device) -> None:
    books, _ = _books(device, slots=2, half_life=2.0)
    numbers = torch.tensor([5, 6], device=device)
    books.claim(numbers)
    books.forget()
    books.claim(numbers)
    assert _missing(books) == [(5, FIRST), (6, FIRST + 1)]


@pytest.mark.parametrize("programs", [1, 3])
@pytest.mark.parametrize("words", [8, 21])
def test_missing_experts_are_copied_and_nothing_else_is(
    device: torch.device, *, programs: int, words: int
) -> None:
    generator = torch.Generator().manual_seed(words)
    source = torch.randint(0, 255, (6, 4 * words), generator=generator, dtype=torch.uint8)
    source = source.pin_memory() if device.type == "cuda" else source
    target = torch.zeros((5, 4 * words + 16), dtype=torch.uint8, device=device)
    expected = target.clone()
    origins = torch.tensor([5, 4, 3, 2, 1, 0], dtype=torch.int32, device=device)
    missing = torch.tensor([2, 1, 4, 5, 0, 3, 3], dtype=torch.int32, device=device)
    for number, slot in ((1, 4), (5, 0)):
        expected[slot, : 4 * words] = source[5 - number].to(device)
    launch = FetchLaunch(programs=programs, block_bytes=32, warps=1)
    HostExperts.of(source, target).fetch(missing, origins, launch)
    assert torch.equal(target, expected)
