"""Experts in planes, computed all at once, are those that are computed one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.streaming import SMALL_MOE, write_model
from sllm.runtime.batch import Batch, Piece
from sllm.runtime.cache.memory import CacheMemory
from sllm.runtime.decoder import Decoder
from sllm.runtime.layers.kernel_operations import KernelOperations
from sllm.runtime.weights import device_placement
from sllm.runtime.weights.grouped import SeatedGroup
from sllm.runtime.weights.laid_out import write_laid_out
from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.opening import open_on_device
from sllm.runtime.weights.residency import Budgets, plan_residency
from sllm.runtime.weights.stored import StoredWeights
from tests.sllm.runtime.layers.fake_recording import FakeRecorder
from tests.sllm.runtime.tiny_models import answer_logits
from tests.sllm.runtime.weights.deferred_lane import DeferredLane

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = [3, 90]
LAYERS = 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    shapes = replace(SMALL_MOE, hidden=64, width=32, heads=2, head_dim=32, experts=5, chosen=3)
    return write_model(tmp_path / "moe.gguf", shapes, LAYERS)


def _open(path: Path, **changes: int) -> StoredWeights:
    model = ModelGroups.open(path)
    plan = replace(plan_residency(model.needs(), Budgets(has_host=True)), **changes)  # type: ignore[arg-type]
    return open_on_device(model, plan, DeferredLane())


def _compute(path: Path, **changes: int) -> torch.Tensor:
    """Return logits by way of a device, with so many slots for experts there and on the host."""
    with _open(path, **changes) as source:
        return answer_logits(source, TOKENS, turns=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_planes_in_slots_compute_what_stored_blocks_do(path: Path) -> None:
    with StoredWeights.open(path) as host:
        expected = answer_logits(host, TOKENS, turns=2)
    resident = _compute(path)
    torch.testing.assert_close(resident, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(_compute(path, expert_slots=4, host_expert_slots=3), resident)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("laid_out", [False, True])
def test_groups_whose_books_the_device_keeps_have_the_same_bits(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, laid_out: bool
) -> None:
    monkeypatch.setattr(device_placement, "has_kernels", lambda _: True)
    if laid_out:
        write_laid_out(path, path.with_suffix(""))
        path = path.with_suffix("")
    resident = _compute(path)
    monkeypatch.setattr(device_placement, "FETCHED_BY_DEVICE", True)
    with _open(path, expert_slots=4, host_expert_slots=5) as source:
        # Two tokens of three experts each: their pairs go by the host, single steps do not.
        found = answer_logits(source, TOKENS, turns=2)
        counts = source.expert_counts
        assert counts is not None
        assert counts.hits > 0
        assert counts.misses > 0
        counts.reset()
        assert counts.hits + counts.misses == 0
        with source.layer(0) as weights:
            assert weights.experts is not None
            assert isinstance(weights.experts.grouped, SeatedGroup)
    assert torch.equal(found, resident)


def _step_recorded(source: StoredWeights) -> list[torch.Tensor]:
    """Return logits of recorded steps: of three sequences in four rows, then of one."""
    recorder = FakeRecorder()
    decoder = Decoder(source.config, source, operations=KernelOperations(), recorder=recorder)
    memory = CacheMemory(source.config, tokens=64, sequences=3)
    sequences = [memory.open() for _ in range(3)]
    found = []
    for some in (sequences, sequences[1:2]):
        pieces = [Piece(sequence=each, tokens=[7 * i]) for i, each in enumerate(some)]
        found.append(decoder.forward(Batch.of(pieces), memory))
    assert recorder.recorded == 2
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_steps_are_recorded_where_the_device_keeps_the_books(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_placement, "has_kernels", lambda _: True)
    monkeypatch.setattr(device_placement, "FETCHED_BY_DEVICE", True)
    shapes = replace(SMALL_MOE, hidden=64, width=32, heads=2, head_dim=32, experts=5, chosen=1)
    planes = tmp_path / "moe"
    write_laid_out(write_model(tmp_path / "moe.gguf", shapes, 1), planes)
    with _open(planes) as source:
        resident = _step_recorded(source)
    with _open(planes, expert_slots=4, host_expert_slots=5) as source:
        found = _step_recorded(source)
        counts = source.expert_counts
        assert counts is not None
        # Recording computes a step as well. The row that is dead asks for no expert.
        assert counts.hits + counts.misses <= 2 * (3 + 1)
        assert counts.misses <= 4
    for ours, theirs in zip(found, resident, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_groups_have_the_same_bits_from_any_tier(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one = _compute(path)
    monkeypatch.setattr(device_placement, "has_kernels", lambda _: True)
    resident = _compute(path)
    assert not torch.equal(resident, one_by_one), "another order of sums"
    torch.testing.assert_close(resident, one_by_one, rtol=1e-3, atol=1e-3)
    for device, host in ((4, 3), (2, 5)):
        assert torch.equal(_compute(path, expert_slots=device, host_expert_slots=host), resident)
