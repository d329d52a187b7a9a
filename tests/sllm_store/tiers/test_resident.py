"""The books of resident arenas: what is held stays, what nobody wants goes, nothing leaks."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sllm_store.checkpoint.layout import Arena
from sllm_store.errors import (
    DeadlineError,
    InUseError,
    InvalidRequestError,
    LoadCancelledError,
)
from sllm_store.native import Control
from sllm_store.tiers.host import Patience
from sllm_store.tiers.resident import ArenaKey, DeviceTier, ResidentArena, plan_copies

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = {"a": 100, "b": 300, "c": 700}


@dataclass
class Gpu:
    """Counts the allocations that live."""

    live: int = 0


class Memory:
    """An allocation."""

    def __init__(self, gpu: Gpu) -> None:
        self.device, self.address = 0, 4096
        self._gpu = gpu
        gpu.live += 1

    def __del__(self) -> None:
        self._gpu.live -= 1

    def ipc_handle(self) -> bytes:
        return bytes(64)


@pytest.fixture
def frees() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


def patience(timeout_s: float = 0.0, control: Control | None = None) -> Patience:
    return Patience(time.monotonic() + timeout_s, control or Control(), time.monotonic)


def key(model: str, *, gpu: str = "g0", version: str = "1", extents: int = 3) -> ArenaKey:
    return ArenaKey(model=model, version=version, gpu=gpu, extents=frozenset(range(extents)))


def arena(model: str) -> Arena:
    return Arena(size_bytes=SIZES[model], offsets={}, pieces=())


def share(
    tier: DeviceTier, wanted: ArenaKey, holder: str = "test", *, on: Gpu | None = None
) -> ResidentArena:
    """Hold an arena, filled if need be."""
    resident, fills = tier.enter(wanted, arena(wanted.model), holder=holder, patience=patience())
    if fills:
        tier.commit(resident, Memory(on or Gpu()), b"handle")
    return resident


def test_an_arena_goes_with_its_last_holder(frees: ThreadPoolExecutor, gpu: Gpu) -> None:
    tier = DeviceTier(0, frees)
    first, second = share(tier, key("a"), "x", on=gpu), share(tier, key("a"), "y")
    assert first is second
    assert tier.used_bytes("g0") == 100
    tier.release(first, "x")
    assert tier.try_hold([key("a")], "z") == [first]
    tier.release(first, "z")
    tier.release(second, "y")
    tier.wait_freed()
    assert (tier.used_bytes("g0"), gpu.live) == (0, 0)
    assert tier.try_hold([key("a")], "z") is None
    assert tier.models() == []


def test_what_nobody_holds_stays_while_it_fits_the_least_recently_used_going_first(
    frees: ThreadPoolExecutor,
) -> None:
    tier = DeviceTier(800, frees)
    for model in "aba":
        tier.release(share(tier, key(model)), "test")
    assert sorted(tier.models()) == ["a", "b"]
    tier.release(share(tier, key("c")), "test")
    assert sorted(tier.models()) == ["a", "c"]
    tier.release(share(tier, key("c", gpu="g1")), "test")
    assert tier.used_bytes("g0") == 800
    assert tier.used_bytes("g1") == 700


def test_eviction_spares_what_is_held_or_pinned(frees: ThreadPoolExecutor, gpu: Gpu) -> None:
    tier = DeviceTier(10_000, frees)
    held, pinned, idle = (share(tier, key(model), on=gpu) for model in "abc")
    tier.pin([pinned])
    tier.release(pinned, "test")
    tier.release(idle, "test")
    assert tier.evict("g1") is False
    assert tier.evict("g0") is True
    assert sorted(tier.models()) == ["a", "b"]
    assert gpu.live == 2
    assert tier.evict("g0") is False
    assert tier.describe("g0") == "a (100 B, test); b (300 B, pinned)"
    tier.release(held, "test")


def test_a_pin_ends_when_it_is_unpinned(frees: ThreadPoolExecutor) -> None:
    tier = DeviceTier(0, frees)
    resident = share(tier, key("a"))
    tier.pin([resident])
    tier.release(resident, "test")
    assert tier.used_bytes("g0") == 100
    with pytest.raises(InvalidRequestError, match="a is not in the memory of GPU g1"):
        tier.unpin("a", ["g1"])
    tier.unpin("a", ["g0"])
    assert tier.used_bytes("g0") == 0


def test_who_waits_for_another_to_fill_an_arena_gets_it(frees: ThreadPoolExecutor) -> None:
    tier = DeviceTier(0, frees)
    resident, fills = tier.enter(key("a"), arena("a"), holder="x", patience=patience())
    assert fills
    assert tier.try_hold([key("a")], "y") is None
    with pytest.raises(DeadlineError, match="another load was still bringing a to GPU g0"):
        tier.enter(key("a"), arena("a"), holder="y", patience=patience())
    timer = threading.Timer(0.05, tier.commit, (resident, Memory(Gpu()), b"handle"))
    timer.start()
    again, fills = tier.enter(key("a"), arena("a"), holder="y", patience=patience(10))
    timer.join()
    assert again is resident
    assert not fills
    assert again.ipc_handle == b"handle"


def test_who_waits_fills_it_when_the_other_gives_up(frees: ThreadPoolExecutor) -> None:
    tier = DeviceTier(0, frees)
    resident, _ = tier.enter(key("a"), arena("a"), holder="x", patience=patience())
    timer = threading.Timer(0.05, tier.abandon, (resident, "x"))
    timer.start()
    again, fills = tier.enter(key("a"), arena("a"), holder="y", patience=patience(10))
    timer.join()
    assert again is not resident
    assert fills
    tier.abandon(again, "y")
    assert tier.used_bytes("g0") == 0


def test_a_cancelled_wait_ends_at_once(frees: ThreadPoolExecutor) -> None:
    tier = DeviceTier(0, frees)
    tier.enter(key("a"), arena("a"), holder="x", patience=patience())
    control = Control()

    def cancel() -> None:
        control.cancel()
        tier.wake()

    timer = threading.Timer(0.05, cancel)
    timer.start()
    with pytest.raises(LoadCancelledError):
        tier.enter(key("a"), arena("a"), holder="y", patience=patience(30, control))
    timer.join()


def test_several_arenas_are_held_together_or_not_at_all(frees: ThreadPoolExecutor) -> None:
    tier = DeviceTier(0, frees)
    resident = share(tier, key("a"))
    assert tier.try_hold([key("a"), key("a", gpu="g1")], "x") is None
    assert resident.holders == {"test": 1}


@pytest.mark.parametrize("filled", [True, False])
def test_a_retired_arena_goes_with_its_last_holder_and_is_found_by_nobody(
    frees: ThreadPoolExecutor,
    gpu: Gpu,
    filled: bool,  # noqa: FBT001 - a case
) -> None:
    tier = DeviceTier(10_000, frees)
    if filled:
        resident = share(tier, key("a"), on=gpu)
        tier.pin([resident])
    else:
        resident, _ = tier.enter(key("a"), arena("a"), holder="test", patience=patience())
    tier.retire("a")
    assert tier.try_hold([key("a")], "x") is None
    assert tier.hold_source("a", "1", [0], gpu="g0", holder="x") is None
    new = share(tier, key("a", version="2"), on=gpu)
    assert tier.used_bytes("g0") == 200
    if not filled:
        tier.commit(resident, Memory(gpu), b"")
    with pytest.raises(InvalidRequestError, match="changed while it was loaded"):
        tier.pin([resident])
    tier.release(resident, "test")
    tier.wait_freed()
    assert (tier.used_bytes("g0"), gpu.live) == (100, 1)
    tier.release(new, "test")


def test_unload_waits_for_holders_and_names_them_when_time_is_up(
    frees: ThreadPoolExecutor,
    gpu: Gpu,
) -> None:
    tier = DeviceTier(10_000, frees)
    resident = share(tier, key("a"), "client x", on=gpu)
    other = share(tier, key("a", gpu="g1"), on=gpu)
    tier.release(other, "test")
    with pytest.raises(InUseError, match="for client x: close"):
        tier.unload("a", patience())
    timer = threading.Timer(0.05, tier.release, (resident, "client x"))
    timer.start()
    tier.unload("a", patience(10))
    timer.join()
    assert (tier.models(), gpu.live) == ([], 0)
    tier.unload("a", patience())


def test_a_source_has_all_that_is_wanted_and_is_on_the_same_gpu_if_it_can_be(
    frees: ThreadPoolExecutor,
) -> None:
    tier = DeviceTier(10_000, frees)
    far, near = share(tier, key("a", gpu="g1", extents=5)), share(tier, key("a", extents=3))

    def find(extents: int, gpu: str) -> ResidentArena | None:
        return tier.hold_source("a", "1", range(extents), gpu=gpu, holder="copy")

    assert find(3, "g0") is near
    assert find(4, "g0") is far
    assert find(3, "g1") is far
    assert find(6, "g0") is None
    assert tier.hold_source("a", "2", [0], gpu="g0", holder="copy") is None
    assert near.holders == {"test": 1, "copy": 1}
    assert far.holders == {"test": 1, "copy": 2}


@settings(deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 255, 256, 5000, 40_000]), min_size=1, max_size=12),
    data=st.data(),
)
def test_copies_between_arenas_bring_every_extent(sizes: list[int], data: st.DataObject) -> None:
    """Wherever the extents lie in either arena."""

    def place(extents: list[int]) -> Arena:
        cursor, offsets = 0, {}
        for extent in extents:
            cursor += data.draw(st.sampled_from([0, 256, 8192]))
            offsets[extent] = cursor if sizes[extent] else 0
            cursor += -(-sizes[extent] // 256) * 256
        return Arena(size_bytes=cursor, offsets=offsets, pieces=())

    source = place(data.draw(st.permutations(range(len(sizes)))))
    wanted = data.draw(st.lists(st.sampled_from(range(len(sizes))), unique=True))
    target = place(wanted)
    memory = [(extent, byte) for extent, size in enumerate(sizes) for byte in range(size)]
    content = {source.offsets[extent] + byte: (extent, byte) for extent, byte in memory}
    arrived = {}
    for start, into, size in plan_copies(source, target, sizes.__getitem__):
        assert start + size <= source.size_bytes
        assert into + size <= target.size_bytes
        for byte in range(size):
            arrived[into + byte] = content.get(start + byte)
    for extent in wanted:
        for byte in (0, sizes[extent] // 2, sizes[extent] - 1) if sizes[extent] else ():
            assert arrived[target.offsets[extent] + byte] == (extent, byte)


def test_neighbours_are_copied_at_once() -> None:
    offsets = {extent: extent * 512 for extent in range(1000)}
    whole = Arena(size_bytes=512_000, offsets=offsets, pieces=())
    assert plan_copies(whole, whole, lambda _: 300) == [(0, 0, 512_000)]
    middle = {extent: extent * 512 - 51_200 for extent in range(100, 900)}
    part = Arena(size_bytes=800 * 512, offsets=middle, pieces=())
    assert plan_copies(whole, part, lambda _: 300) == [(51_200, 0, 799 * 512 + 300)]


class Books(RuleBasedStateMachine):
    """Any sequence of loads, failures, leases, pins and unloads keeps the books straight."""

    KEPT = 500

    def __init__(self) -> None:
        super().__init__()
        self.memory = Gpu()
        self.frees = ThreadPoolExecutor(1)
        self.tier = DeviceTier(self.KEPT, self.frees)
        self.leases: list[ResidentArena] = []
        self.filling: list[ResidentArena] = []

    def teardown(self) -> None:
        self.frees.shutdown()

    @rule(
        model=st.sampled_from("abc"), gpu=st.sampled_from(["g0", "g1"]), version=st.integers(1, 2)
    )
    def enter(self, model: str, gpu: str, version: int) -> None:
        wanted = key(model, gpu=gpu, version=str(version))
        try:
            resident, fills = self.tier.enter(
                wanted, arena(model), holder="test", patience=patience()
            )
        except DeadlineError:
            assert any(other.key == wanted for other in self.filling)
            return
        (self.filling if fills else self.leases).append(resident)

    @precondition(lambda self: self.filling)
    @rule(data=st.data(), fails=st.booleans())
    def end_fill(self, data: st.DataObject, *, fails: bool) -> None:
        resident = self.filling.pop(data.draw(st.integers(0, len(self.filling) - 1)))
        if fails:
            self.tier.abandon(resident, "test")
        else:
            self.tier.commit(resident, Memory(self.memory), b"handle")
            self.leases.append(resident)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), pinned=st.booleans())
    def release(self, data: st.DataObject, *, pinned: bool) -> None:
        resident = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        if pinned and not resident.retired:
            self.tier.pin([resident])
        self.tier.release(resident, "test")

    @rule(model=st.sampled_from("abc"))
    def retire(self, model: str) -> None:
        self.tier.retire(model)

    @rule(model=st.sampled_from("abc"), gpu=st.sampled_from(["g0", "g1"]))
    def unpin(self, model: str, gpu: str) -> None:
        try:
            self.tier.unpin(model, [gpu])
        except InvalidRequestError:
            assert all(state.gpu != gpu for state in self.tier.arenas(model))

    @rule(model=st.sampled_from("abc"))
    def unload(self, model: str) -> None:
        try:
            self.tier.unload(model, patience())
        except InUseError:
            return
        assert self.tier.arenas(model) == []

    @rule(gpu=st.sampled_from(["g0", "g1"]))
    def evict(self, gpu: str) -> None:
        before = self.tier.used_bytes(gpu)
        assert self.tier.evict(gpu) == (self.tier.used_bytes(gpu) < before)

    @invariant()
    def what_is_held_is_there(self) -> None:
        for resident in self.leases:
            assert resident.memory is not None
            assert resident.holders["test"] == self.leases.count(resident)

    @invariant()
    def memory_is_what_the_books_say(self) -> None:
        self.tier.wait_freed()
        listed = [state for model in "abc" for state in self.tier.arenas(model)]
        retired = {id(r): r for r in (*self.leases, *self.filling) if r.retired}
        expected = sum(s.size_bytes for s in listed) + sum(r.size_bytes for r in retired.values())
        assert self.tier.used_bytes("g0") + self.tier.used_bytes("g1") == expected
        assert self.memory.live == len(listed) + len(retired) - len(self.filling)

    @invariant()
    def what_nobody_holds_is_bounded(self) -> None:
        for gpu in ("g0", "g1"):
            listed = [s for model in "abc" for s in self.tier.arenas(model) if s.gpu == gpu]
            kept = sum(s.size_bytes for s in listed if not s.leases and not s.pinned)
            assert kept <= self.KEPT


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
