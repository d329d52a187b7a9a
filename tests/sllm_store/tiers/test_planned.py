"""A checkpoint is opened and planned once, and again as soon as a file of it is another."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from sllm_store.errors import CheckpointNotFoundError, InvalidRequestError
from sllm_store.tiers import planned as planned_module
from sllm_store.tiers.planned import PlannedLoads
from sllm_store.tiers.ring_steps import Ring, plan_ring
from sllm_store.tiers.transfer import Target, cut_targets
from tests.store_process import random_tensors, write_upstream

if TYPE_CHECKING:
    from pathlib import Path

CHUNK_BYTES = 1 << 20
GPU = {"": "gpu"}


def test_the_same_load_is_planned_once(tmp_path: Path) -> None:
    write_upstream(tmp_path / "m", random_tensors(3, 1000))
    loads = PlannedLoads(CHUNK_BYTES)
    first = loads.plan(tmp_path / "m", GPU)
    assert loads.plan(tmp_path / "m", dict(GPU)) is first
    assert loads.plan(tmp_path / "m", {}) is not first
    assert first.chunked.chunk_bytes == CHUNK_BYTES
    assert {tensor.name for tensor in first.plan.tensors} == set(random_tensors(3, 1000))


@pytest.mark.parametrize("change", ["touched", "index", "added", "replaced", "removed"])
def test_any_change_of_a_file_has_it_opened_again(tmp_path: Path, change: str) -> None:
    model = tmp_path / "m"
    write_upstream(model, random_tensors(3, 1000))
    loads = PlannedLoads(CHUNK_BYTES)
    first = loads.plan(model, GPU)
    if change == "touched":
        os.utime(model / "tensor.data_0", ns=(1, 1))
    elif change == "index":
        index = json.loads((model / "tensor_index.json").read_text())
        index["other"] = index.pop(next(iter(index)))
        (model / "tensor_index.json").write_text(json.dumps(index))
    elif change == "added":
        (model / "config.json").write_text("{}")
    elif change == "replaced":
        shutil.rmtree(model)
        write_upstream(model, random_tensors(2, 500))
    else:
        shutil.rmtree(model)
        with pytest.raises(CheckpointNotFoundError):
            loads.plan(model, GPU)
        return
    again = loads.plan(model, GPU)
    assert again is not first
    if change == "index":
        assert "other" in {tensor.name for tensor in again.plan.tensors}
    if change == "replaced":
        assert len(again.plan.tensors) == 2
    again.checkpoint.require_unchanged()


def test_what_cannot_be_planned_is_not_kept(tmp_path: Path) -> None:
    write_upstream(tmp_path / "m", random_tensors(3, 1000))
    loads = PlannedLoads(CHUNK_BYTES)
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match="places no tensor"):
            loads.plan(tmp_path / "m", {"other": "gpu"})


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned_module, "KEPT_MAX", 2)
    monkeypatch.setattr(planned_module, "KEPT_TENSORS_MAX", 10)
    for name, count in {"a": 2, "b": 3, "c": 4, "large": 11}.items():
        write_upstream(tmp_path / name, random_tensors(count, 10))
    loads = PlannedLoads(CHUNK_BYTES)
    a, b = (loads.plan(tmp_path / name, GPU) for name in "ab")
    assert loads.plan(tmp_path / "a", GPU) is a
    loads.plan(tmp_path / "c", GPU)
    assert loads.plan(tmp_path / "a", GPU) is a
    assert loads.plan(tmp_path / "b", GPU) is not b
    large = loads.plan(tmp_path / "large", GPU)
    assert len(large.plan.tensors) == 11
    assert loads.plan(tmp_path / "large", GPU) is not large


def test_a_way_through_a_ring_is_planned_once_and_is_the_plain_one(tmp_path: Path) -> None:
    write_upstream(tmp_path / "m", random_tensors(30, 1 << 18))
    planned = PlannedLoads(CHUNK_BYTES).plan(tmp_path / "m", GPU)
    targets = [Target(device=0, address=1 << 30, pieces=planned.plan.arenas[0].pieces)]
    moves = cut_targets(targets, planned.chunked)
    everything = frozenset(range(planned.chunked.chunks_total))
    for address, slots in ((1 << 20, 4), (1 << 24, 4), (1 << 20, 3)):
        ring = Ring(address=address, slots=slots, slot_bytes=CHUNK_BYTES)
        for cold in (frozenset[int](), everything, frozenset({0, 2})):
            plain = plan_ring(planned.chunked, moves, ring, cold=cold)
            found = planned.through_ring(slots, cold).moved_to(address)
            assert (found.steps, found.copies) == (plain.steps, plain.copies)
            assert (found.reads, found.decodes) == (plain.reads, plain.decodes)
            assert (found.parsed is None) == (len(cold) == 2)
