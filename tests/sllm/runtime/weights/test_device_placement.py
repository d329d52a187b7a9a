"""Weights on a device compute the same bits from every tier, with copies made as late as may be."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from sllm.runtime.weights.laid_out import write_laid_out
from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.opening import device_needs, open_on_device
from sllm.runtime.weights.residency import Budgets, Residency, plan_residency
from sllm.runtime.weights.stored import StoredWeights
from sllm_store.checkpoint.layout import plan_image
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.errors import StoreError
from sllm_store.groups.head_start import CHUNK_BYTES, Arrived
from sllm_store.stream import load_checkpoint
from tests.sllm.runtime.tiny_models import answer_logits, make_model, random_tokens
from tests.sllm.runtime.weights.deferred_lane import DeferredLane

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = random_tokens(9)


def _save(name: str, path: Path) -> Path:
    make_model(name, num_hidden_layers=4).theirs.save_pretrained(path)
    return path


def _plan(model: ModelGroups, *, device_bytes: int | None, host_bytes: int | None) -> Residency:
    budgets = Budgets(device_bytes=device_bytes, host_bytes=host_bytes, has_host=True)
    return plan_residency(device_needs(model), budgets)


def _compute_resident(path: Path) -> torch.Tensor:
    """Return logits of a model that is all on the device, and those of the host to a rounding."""
    model = ModelGroups.open(path)
    plan = _plan(model, device_bytes=None, host_bytes=None)
    with StoredWeights.open(path) as host, open_on_device(model, plan, DeferredLane()) as source:
        found = answer_logits(source, TOKENS)
        # A file may have floats where sums are taken in another order; on a device they move.
        torch.testing.assert_close(found, answer_logits(host, TOKENS), rtol=1e-5, atol=1e-5)
    return found


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "qwen3.5-moe"])
@pytest.mark.parametrize("resident", [0, 1, 4])
@pytest.mark.parametrize(("pinned", "slots"), [(0, 1), (0, 3), (1, 1), (1, 3), (3, 3)])
def test_every_split_computes_the_same_bits(
    name: str, tmp_path: Path, *, resident: int, pinned: int, slots: int
) -> None:
    path = _save(name, tmp_path)
    model = ModelGroups.open(path)
    streamed = tuple(range(resident, 4))
    plan = replace(
        _plan(model, device_bytes=None, host_bytes=None),
        resident=tuple(range(resident)),
        pinned=streamed[:pinned],
        disk=streamed[pinned:],
        slots=slots,
        staging=min(slots, 2),
    )
    if resident < 4 and model.experts:
        plan = replace(plan, expert_slots=2 + slots, host_expert_slots=1 + 4 * pinned)
    expected = _compute_resident(path)
    lane = DeferredLane()
    with open_on_device(model, plan, lane) as source:
        assert torch.equal(answer_logits(source, TOKENS), expected)
        kept = lane.allocated_bytes
        assert torch.equal(answer_logits(source, TOKENS), expected)
        assert lane.allocated_bytes == kept, "a pass allocates nothing"
        if source.counts is not None:
            assert source.counts.leased == 8 * len(streamed)
        source.close()
    assert lane.closed


@pytest.mark.parametrize("name", ["llama", "qwen3-next"])
def test_a_plan_within_budgets_is_kept_to(name: str, tmp_path: Path) -> None:
    path = tmp_path / "planes"
    write_laid_out(_save(name, tmp_path / "source"), path)
    model = ModelGroups.open(path)
    needs = device_needs(model)
    device_bytes = needs.ends_bytes + needs.other_bytes
    device_bytes += 3 * max(needs.layer_bytes) + 3 * needs.expert_bytes
    host_bytes = 2 * max(needs.layer_bytes) + 7 * needs.expert_bytes
    plan = _plan(model, device_bytes=device_bytes, host_bytes=host_bytes)
    lane = DeferredLane()
    expected = _compute_resident(path)
    with open_on_device(model, plan, lane) as source:
        assert plan.streamed
        assert torch.equal(answer_logits(source, TOKENS), expected)
        assert lane.allocated_bytes <= device_bytes
        assert (source.expert_counts is not None) == bool(needs.experts)


def test_a_read_that_fails_fails_its_pass_and_closing_still_works(tmp_path: Path) -> None:
    path = _save("qwen3-moe", tmp_path)
    model = ModelGroups.open(path)
    plan = replace(
        _plan(model, device_bytes=None, host_bytes=None), expert_slots=3, host_expert_slots=3
    )
    file = path / "model.safetensors"
    lane = DeferredLane()
    with ExitStack() as closing:
        source = closing.enter_context(open_on_device(model, plan, lane))
        file.write_bytes(file.read_bytes()[:20000])
        for _ in range(2):
            with source.layer(1) as weights:
                assert weights.experts is not None
                with pytest.raises(StoreError), weights.experts.lease([4, 5]) as experts:
                    dict(experts)
    assert lane.closed


def test_what_cannot_be_read_leaves_no_memory_pinned(tmp_path: Path) -> None:
    path = _save("llama", tmp_path)
    model = ModelGroups.open(path)
    (path / "model.safetensors").write_bytes(b"")
    lane = DeferredLane()
    with pytest.raises(StoreError):
        open_on_device(model, _plan(model, device_bytes=None, host_bytes=None), lane)
    assert lane.closed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_layers_compute_the_same_bits_from_every_tier(smollm2: Path) -> None:
    model = ModelGroups.open(smollm2)
    needs = device_needs(model)
    host_bytes = 9 * max(needs.layer_bytes)
    found = []
    for device_bytes in (None, needs.ends_bytes + 8 * max(needs.layer_bytes)):
        budgets = Budgets(device_bytes=device_bytes, host_bytes=host_bytes, has_host=True)
        plan = plan_residency(needs, budgets)
        lane = DeferredLane()
        with open_on_device(model, plan, lane) as source:
            found.append(answer_logits(source, TOKENS))
            assert bool(plan.disk) == bool(plan.pinned) == bool(device_bytes)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["llama", "qwen3.5-moe"])
@pytest.mark.parametrize("laid_out", [False, True])
def test_files_that_are_on_the_device_become_the_same_bits(
    name: str, tmp_path: Path, *, laid_out: bool
) -> None:
    path = _save(name, tmp_path / "source")
    if laid_out:
        path = tmp_path / "planes"
        write_laid_out(tmp_path / "source", path)
    model = ModelGroups.open(path)
    plan = _plan(model, device_bytes=None, host_bytes=None)
    expected = _compute_resident(path)
    memory = load_checkpoint(path, {}).arenas[0]
    assert memory is not None
    checkpoint = open_checkpoint(path)
    arrived = Arrived.of(checkpoint, plan_image(checkpoint, CHUNK_BYTES), memory)
    with open_on_device(model, plan, DeferredLane(), arrived) as source:
        assert torch.equal(answer_logits(source, TOKENS), expected)
