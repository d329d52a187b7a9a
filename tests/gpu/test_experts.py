"""Experts on a GPU: one launch for all pairs of tokens and experts, out of slots of a cache."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.expert_products import FORMATS, make_case
from benchmarks.streaming import SMALL_MOE, write_model
from sllm.runtime.weights import device_placement
from sllm.runtime.weights.laid_out import write_laid_out
from sllm.runtime.weights.lane import CudaLane
from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.opening import device_needs, open_on_device
from sllm.runtime.weights.residency import Budgets, plan_residency
from tests.sllm.runtime.tiny_models import answer_logits, random_tokens

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
ROUNDED = 1.2e-2


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tokens", [1, 7])
def test_groups_of_real_shapes_are_the_loop_over_experts(name: str, tokens: int) -> None:
    case = make_case(name, tokens=tokens, width=1024, hidden=4096, experts=16, chosen=10)
    found, expected = case.group(), case.loop()
    assert float((found - expected).abs().max() / expected.abs().max()) <= ROUNDED
    for _ in range(10):
        assert torch.equal(case.group(), found)


def test_a_resident_group_is_captured_in_a_graph() -> None:
    case = make_case("Q4_0", tokens=1, width=256, hidden=512, experts=8, chosen=2)
    case.group()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = case.group()
    case.x.copy_(torch.randn_like(case.x))
    case.chosen.copy_((case.chosen + 1) % 8)
    graph.replay()
    assert torch.equal(found, case.group())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "moe.gguf", replace(SMALL_MOE, experts=8, chosen=3), 3)


def _compute(path: Path, **changes: int) -> torch.Tensor:
    model = ModelGroups.open(path)
    plan = replace(plan_residency(device_needs(model), Budgets(has_host=True)), **changes)  # type: ignore[arg-type]
    with open_on_device(model, plan, CudaLane(torch.device("cuda"))) as source:
        return answer_logits(source, random_tokens(9), device=torch.device("cuda"))


@pytest.mark.parametrize(("device", "host"), [(3, 4), (5, 24), (1, 1)])
def test_cached_experts_compute_the_bits_of_resident_ones(
    path: Path, *, device: int, host: int
) -> None:
    resident = _compute(path)
    assert torch.equal(_compute(path, expert_slots=device, host_expert_slots=host), resident)


@pytest.mark.parametrize("slots", [9, 14])
@pytest.mark.parametrize("laid_out", [False, True])
def test_books_of_the_device_compute_the_bits_of_resident_experts(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, slots: int, laid_out: bool
) -> None:
    if laid_out:
        write_laid_out(path, path.with_suffix(""), device=torch.device("cuda"))
        path = path.with_suffix("")
    resident = _compute(path)
    monkeypatch.setattr(device_placement, "FETCHED_BY_DEVICE", True)
    for _ in range(3):
        assert torch.equal(_compute(path, expert_slots=slots, host_expert_slots=24), resident)


def test_groups_are_what_experts_one_by_one_are(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped = _compute(path)
    monkeypatch.setattr(device_placement, "has_kernels", lambda _: False)
    torch.testing.assert_close(grouped, _compute(path), rtol=1e-3, atol=1e-3)
