"""Weights on a GPU compute the same bits from its memory, from pinned memory and from disk."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.streaming import SMALL, write_model
from sllm.core.errors import BudgetError
from sllm.runtime.quant.dense_device import DeviceDense
from sllm.runtime.weights.laid_out import write_laid_out
from sllm.runtime.weights.lane import CudaLane
from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.opening import open_on_device, open_weights, place_weights
from sllm.runtime.weights.residency import Budgets, plan_residency
from sllm_store.groups.head_start import HeadStart
from tests.sllm.runtime.tiny_models import answer_logits, make_model, random_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from sllm.runtime.weights.residency import Residency
    from sllm.runtime.weights.stored import StoredWeights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Of gguf, which writes models.
]
TOKENS = random_tokens(9)


def _compute(source: StoredWeights) -> torch.Tensor:
    return answer_logits(source, TOKENS, device=torch.device("cuda"))


@pytest.fixture(params=["llama", "qwen3-moe", "qwen3.5-moe"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make_model(request.param, num_hidden_layers=4).theirs.save_pretrained(tmp_path)
    return tmp_path


def _open(path: Path, **changes: object) -> StoredWeights:
    model = ModelGroups.open(path)
    plan: Residency = plan_residency(model.needs(), Budgets(has_host=True))
    if not model.experts:
        changes = {name: value for name, value in changes.items() if "expert" not in name}
    plan = replace(plan, **changes)  # type: ignore[arg-type]
    return open_on_device(model, plan, CudaLane(torch.device("cuda")))


@pytest.mark.parametrize("pinned", [0, 2, 4])
@pytest.mark.parametrize("slots", [1, 3])
def test_every_tier_computes_the_same_bits(path: Path, *, pinned: int, slots: int) -> None:
    with open_weights(path, device="cuda") as resident:
        assert not resident.residency.streamed
        expected = _compute(resident)
    layers = range(4)
    with _open(
        path,
        resident=(),
        pinned=tuple(layers[:pinned]),
        disk=tuple(layers[pinned:]),
        slots=slots,
        staging=slots,
        expert_slots=slots,
        host_expert_slots=1 + 3 * pinned,
    ) as source:
        assert torch.equal(_compute(source), expected)
        assert torch.equal(_compute(source), expected)
        assert source.counts is not None
        assert source.counts.leased == 8 * 4


def test_planes_are_joined_wherever_they_come_from(tmp_path: Path) -> None:
    path, planes = tmp_path / "model.gguf", tmp_path / "planes"
    write_laid_out(write_model(path, SMALL, 4), planes)
    found = []
    for checkpoint in (path, planes):
        with open_weights(checkpoint, device="cuda") as resident:
            found.append(_compute(resident))
        split = {"resident": (0,), "pinned": (1,), "disk": (2, 3)}
        with _open(checkpoint, **split, slots=2, staging=1) as streamed:
            found.append(_compute(streamed))
            for index in range(4):
                with streamed.layer(index) as weights:
                    assert len(weights.joined) == 2
    assert all(torch.equal(logits, found[0]) for logits in found)


@pytest.mark.parametrize("tokens", [1, 7, 40, 90])
def test_joined_projections_are_near_those_one_by_one(tmp_path: Path, tokens: int) -> None:
    x = torch.randn(tokens, SMALL.hidden, device="cuda", dtype=torch.bfloat16)
    path = write_model(tmp_path / "model.gguf", SMALL, 1)
    with open_weights(path, device="cuda") as source, source.layer(0) as weights:
        alone = replace(weights, joined={})
        for names in weights.joined:
            found, expected = weights.project_all(names, x), alone.project_all(names, x)
            for ours, theirs in zip(found, expected, strict=True):
                assert float((ours - theirs).abs().max()) <= 1e-2 * float(theirs.abs().max())


def test_floats_laid_out_are_multiplied_by_the_kernel_for_few_tokens(
    path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    planes = tmp_path_factory.mktemp("laid-out") / "planes"
    write_laid_out(path, planes, device=torch.device("cuda"))
    with open_weights(planes, device="cuda") as source, source.layer(0) as weights:
        assert weights.matrices
        assert all(isinstance(matrix, DeviceDense) for matrix in weights.matrices.values())


def test_a_budget_is_kept_to_and_passes_allocate_no_weights(path: Path) -> None:
    needs = ModelGroups.open(path).needs()
    device_bytes = needs.ends_bytes + 2 * max(needs.layer_bytes) + 3 * needs.expert_bytes
    before = torch.cuda.memory_allocated()
    with open_weights(path, device="cuda", device_budget_bytes=device_bytes) as source:
        _compute(source)
        assert source.residency.pinned
        assert source.residency.device_bytes <= device_bytes
        # Each allocation is rounded up to 512 bytes.
        assert torch.cuda.memory_allocated() - before <= device_bytes + (1 << 20)
    with pytest.raises(BudgetError, match="on its device"):
        open_weights(path, device="cuda", device_budget_bytes=1000)


@pytest.mark.parametrize("laid_out", [False, True])
def test_files_that_came_ahead_become_the_same_bits(tmp_path: Path, *, laid_out: bool) -> None:
    path = write_model(tmp_path / "model.gguf", SMALL, 4)
    if laid_out:
        source, path = path, tmp_path / "planes"
        write_laid_out(source, path)
    with open_weights(path, device="cuda") as resident:
        expected = _compute(resident)
    with closing(HeadStart(path, device=0)) as ahead:
        model = ModelGroups.open(path, ahead.stored())
        assert ahead.taken_bytes() > 0
        with place_weights(model, device="cuda", head_start=ahead) as weights:
            ahead.close()
            assert torch.equal(_compute(weights), expected)


def test_a_gpu_lays_out_what_a_cpu_does(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", SMALL, 2)
    write_laid_out(path, tmp_path / "cpu")
    write_laid_out(path, tmp_path / "gpu", device=torch.device("cuda"))
    written = list((tmp_path / "cpu").glob("tensor.data*"))
    assert written
    for own in written:
        assert own.read_bytes() == (tmp_path / "gpu" / own.name).read_bytes()
