"""The pool's books: nothing leaks, nothing held moves, the least recently used goes first."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sllm_store.errors import (
    DeadlineError,
    InUseError,
    InvalidRequestError,
    LoadCancelledError,
    PoolExhaustedError,
    PoolTooSmallError,
)
from sllm_store.native import Control
from sllm_store.tiers.host import RING_CHUNKS_MAX, RING_CHUNKS_MIN, Claim, HostTier, Patience

if TYPE_CHECKING:
    from collections.abc import Callable

MB = 1 << 20


def patience(timeout_s: float = 0.0, control: Control | None = None) -> Patience:
    return Patience(time.monotonic() + timeout_s, control or Control(), time.monotonic)


def load(
    host: HostTier,
    model: str,
    chunks: int,
    *,
    whole: bool = True,
    end: str = "released",
    holder: str = "test",
    version: str = "1",
) -> Claim:
    """Load a model; it ends 'released', 'kept' (held by holder) or 'failed'."""
    residency = host.enter(model, version, chunks)
    try:
        host.begin_fill(residency, patience())
        try:
            claim = host.claim(
                residency, range(chunks), whole=whole, holder=holder, patience=patience()
            )
            if end == "failed":
                host.abandon(claim)
            else:
                host.commit(claim)
            if end != "kept":
                host.release(residency, holder)
            return claim
        finally:
            host.end_fill(residency)
    finally:
        host.leave(residency)


def resident(host: HostTier, model: str) -> int:
    found = host.find(model)
    return found.resident if found else 0


def test_a_loaded_model_is_resident_and_the_next_load_finds_it() -> None:
    host = HostTier(8, 2 * MB)
    assert not load(host, "a", 3).is_ready
    assert host.used_bytes == 6 * MB
    assert load(host, "a", 3).is_ready


def test_the_least_recently_used_model_gives_up_its_last_chunks_first() -> None:
    host = HostTier(8, 2 * MB)
    load(host, "old", 4)
    load(host, "new", 4)
    load(host, "old", 4)
    load(host, "more", 2)
    found = host.find("new")
    assert found is not None
    assert [chunk is not None for chunk in found.chunks] == [True, True, False, False]
    assert resident(host, "old") == 4


def test_a_partly_resident_model_reads_only_what_is_missing() -> None:
    host = HostTier(8, 2 * MB)
    load(host, "a", 6)
    load(host, "b", 4)
    claim = load(host, "a", 6, whole=False)
    assert sorted(claim.ready) == [0, 1, 2, 3]
    assert sorted(claim.kept) == [4, 5]


def test_a_model_larger_than_the_pool_streams_through_a_ring() -> None:
    host = HostTier(20, 2 * MB)
    claim = load(host, "big", 100, whole=False)
    assert len(claim.ring) == RING_CHUNKS_MAX
    assert len(claim.kept) == 20 - RING_CHUNKS_MAX
    assert sorted([*claim.kept, *claim.streamed]) == list(range(100))
    assert resident(host, "big") == 20
    again = load(host, "big", 100, whole=False)
    assert again.ready
    assert len(again.ring) >= RING_CHUNKS_MIN
    assert host.used_bytes == 40 * MB


def test_a_host_load_larger_than_the_pool_is_refused_with_advice() -> None:
    host = HostTier(4, 2 * MB)
    with pytest.raises(PoolTooSmallError, match="--mem-pool-size"):
        load(host, "big", 5)


def test_a_full_pool_says_who_holds_it() -> None:
    host = HostTier(4, 2 * MB)
    load(host, "held", 4, end="kept", holder="client python[1]")
    with pytest.raises(PoolExhaustedError, match=r"held \(8.0 MB, client python\[1\]\)"):
        load(host, "b", 2)
    assert resident(host, "held") == 4


def test_a_pinned_model_is_never_evicted() -> None:
    host = HostTier(4, 2 * MB)
    load(host, "pinned", 2)
    host.set_pinned("pinned", pinned=True)
    load(host, "b", 2)
    load(host, "c", 2)
    assert resident(host, "pinned") == 2
    assert resident(host, "b") == 0
    with pytest.raises(InvalidRequestError):
        host.set_pinned("never seen", pinned=True)


def test_a_failed_load_gives_its_chunks_back() -> None:
    host = HostTier(4, 2 * MB)
    load(host, "a", 3, end="failed")
    assert host.used_bytes == 0
    assert host.models() == []


def test_unload_waits_for_holders_and_names_them_when_time_is_up() -> None:
    host = HostTier(4, 2 * MB)
    claim = load(host, "a", 2, end="kept", holder="client x")
    with pytest.raises(InUseError, match="client x"):
        host.unload("a", patience())
    timer = threading.Timer(0.05, host.release, (claim.residency, "client x"))
    timer.start()
    host.unload("a", patience(10))
    timer.join()
    assert host.used_bytes == 0


def test_unloading_what_is_not_there_is_fine() -> None:
    HostTier(4, 2 * MB).unload("nothing", patience())


def test_a_retired_model_keeps_its_chunks_until_its_holders_are_gone() -> None:
    host = HostTier(4, 2 * MB)
    claim = load(host, "a", 2, end="kept")
    host.retire("a")
    assert host.find("a") is None
    assert host.used_bytes == 4 * MB
    load(host, "a", 2)
    host.release(claim.residency, "test")
    assert host.used_bytes == 4 * MB
    assert load(host, "a", 2).is_ready


def test_versions_of_a_model_never_share_chunks() -> None:
    host = HostTier(8, 2 * MB)
    old = load(host, "a", 2, end="kept")
    new = load(host, "a", 3, version="2", end="kept")
    assert not new.is_ready
    assert not {*old.kept.values()} & {*new.kept.values()}
    assert load(host, "a", 3, version="2").is_ready
    host.release(old.residency, "test")
    host.release(new.residency, "test")
    host.unload("a", patience())
    assert host.used_bytes == 0


def test_a_claim_waits_until_chunks_come_free() -> None:
    host = HostTier(4, 2 * MB)
    claim = load(host, "a", 4, end="kept")
    timer = threading.Timer(0.05, host.release, (claim.residency, "test"))
    timer.start()
    residency = host.enter("b", "1", 4)
    host.begin_fill(residency, patience())
    got = host.claim(residency, range(4), whole=True, holder="b", patience=patience(10))
    timer.join()
    assert len(got.kept) == 4


def test_a_cancelled_wait_ends_at_once() -> None:
    host = HostTier(4, 2 * MB)
    load(host, "a", 4, end="kept")
    control = Control()
    residency = host.enter("b", "1", 4)
    host.begin_fill(residency, patience())

    def cancel() -> None:
        control.cancel()
        host.wake()

    timer = threading.Timer(0.05, cancel)
    timer.start()
    with pytest.raises(LoadCancelledError):
        host.claim(residency, range(4), whole=True, holder="b", patience=patience(30, control))
    timer.join()


def test_only_one_load_fills_a_model_at_a_time() -> None:
    host = HostTier(4, 2 * MB)
    residency = host.enter("a", "1", 2)
    host.begin_fill(residency, patience())
    with pytest.raises(DeadlineError, match="another load of a"):
        host.begin_fill(residency, patience())
    host.end_fill(residency)
    host.begin_fill(residency, patience())


def test_unloading_while_a_load_has_yet_to_claim_loses_no_chunk() -> None:
    host = HostTier(4, 2 * MB)
    residency = host.enter("a", "1", 2)
    host.begin_fill(residency, patience())
    host.unload("a", patience())
    claim = host.claim(residency, range(2), whole=True, holder="t", patience=patience())
    host.commit(claim)
    host.release(residency, "t")
    host.end_fill(residency)
    host.leave(residency)
    assert load(host, "a", 2).is_ready
    host.unload("a", patience())
    assert host.used_bytes == 0


class Books(RuleBasedStateMachine):
    """Any sequence of loads, failures, leases, pins and unloads keeps the books straight."""

    CHUNKS = 12

    def __init__(self) -> None:
        super().__init__()
        self.host = HostTier(self.CHUNKS, 2 * MB)
        self.leases: list[Claim] = []

    @rule(
        model=st.sampled_from("abcde"),
        whole=st.booleans(),
        end=st.sampled_from(["released", "kept", "failed"]),
    )
    def load(self, *, model: str, whole: bool, end: str) -> None:
        chunks = {"a": 1, "b": 3, "c": 7, "d": 12, "e": 30}[model]
        try:
            claim = load(self.host, model, chunks, whole=whole, end=end)
        except PoolExhaustedError:
            return
        used = [*claim.ready.values(), *claim.kept.values(), *claim.ring]
        assert len(set(used)) == len(used)
        if end == "kept":
            self.leases.append(claim)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        claim = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.host.release(claim.residency, claim.holder)

    @rule(model=st.sampled_from("abcde"))
    def retire(self, model: str) -> None:
        self.host.retire(model)

    @rule(model=st.sampled_from("abcde"), pinned=st.booleans())
    def pin(self, *, model: str, pinned: bool) -> None:
        quietly(lambda: self.host.set_pinned(model, pinned=pinned), InvalidRequestError)

    @rule(model=st.sampled_from("abcde"))
    def unload(self, model: str) -> None:
        quietly(lambda: self.host.unload(model, patience()), InUseError)

    @invariant()
    def every_chunk_has_one_place(self) -> None:
        books = [self.host.find(model) for model in self.host.models()]
        retired = {id(c.residency): c.residency for c in self.leases if c.residency.retired}
        chunks = [
            chunk
            for residency in (*books, *retired.values())
            if residency is not None
            for chunk in residency.chunks
            if chunk is not None
        ]
        assert len(set(chunks)) == len(chunks)
        assert self.host.used_bytes == len(chunks) * 2 * MB

    @invariant()
    def held_chunks_stay(self) -> None:
        for claim in self.leases:
            for image_chunk, pool_chunk in (*claim.ready.items(), *claim.kept.items()):
                assert claim.residency.chunks[image_chunk] == pool_chunk


def quietly(action: Callable[[], None], error: type[Exception]) -> None:
    try:
        action()
    except error:
        return


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
