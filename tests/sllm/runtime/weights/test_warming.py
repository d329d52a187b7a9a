"""Products with each kind of matrix are computed once beside a load, over memory of no content."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from sllm.runtime.kernels.warm_memory import WarmMemory
from sllm.runtime.quant.dense import Dense
from sllm.runtime.weights.model_groups import ModelGroups
from sllm.runtime.weights.warming import find_kinds, warmed_products
from tests.sllm.runtime.tiny_models import make_model

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelGroups:
    path: Path = tmp_path_factory.mktemp("model")
    make_model("llama", num_hidden_layers=4).theirs.save_pretrained(path)
    return ModelGroups.open(path)


def test_every_shape_of_a_matrix_is_found_once(model: ModelGroups) -> None:
    kinds = find_kinds(model)
    shapes = {
        tuple(parameter.shape)
        for parameter in make_model("llama", num_hidden_layers=4).theirs.parameters()
        if parameter.dim() == 2
    }
    # Transformers writes gate and up, of 64 rows each, next to each other: they are one as well.
    shapes.add((128, 32))
    assert {(kind.rows, kind.columns) for kind in kinds} == shapes
    assert {matrix.shape for matrix in kinds.values()} == shapes


def test_one_token_of_all_kinds_of_floats_is_computed_by_the_end_of_the_context(
    model: ModelGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[int, tuple[int, int]]] = []

    def linear(matrix: Dense, x: torch.Tensor) -> torch.Tensor:
        done.append((len(x), matrix.shape))
        return x

    monkeypatch.setattr(Dense, "linear", linear)
    with warmed_products(model, device=CPU, dtype=torch.float32, room_bytes=1 << 30) as kinds:
        pass
    assert sorted(done) == sorted((1, (k.rows, k.columns)) for k in kinds)


def test_what_a_process_has_done_is_left_to_first_use_by_the_next(
    model: ModelGroups, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = WarmMemory(tmp_path, circumstances=["here"])
    done: list[int] = []
    counts: list[int] = []

    def linear(_matrix: Dense, x: torch.Tensor) -> torch.Tensor:
        if not done:
            done.append(len(x))
            raise torch.OutOfMemoryError
        done.append(len(x))
        return x

    monkeypatch.setattr(Dense, "linear", linear)
    for dtype in (torch.float32, torch.float32, torch.float32, torch.float64):
        before = len(done)
        with warmed_products(
            model, device=CPU, dtype=dtype, room_bytes=1 << 30, memory=memory
        ) as kinds:
            pass
        done.append(-len(kinds))
        counts.append(len(done) - before)
    every = len(find_kinds(model)) + 1
    assert counts == [every, every, 1, every], "once all of it was done"


def test_what_a_kernel_raises_is_raised(
    model: ModelGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_matrix: Dense, _x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(Dense, "linear", refuse)
    with (
        pytest.raises(RuntimeError, match="no such instruction"),
        warmed_products(model, device=CPU, dtype=torch.float32, room_bytes=1 << 30),
    ):
        pass


def test_without_room_there_is_nothing_warm_and_nothing_wrong(
    model: ModelGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_matrix: Dense, _x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Dense, "linear", refuse)
    with warmed_products(model, device=CPU, dtype=torch.float32, room_bytes=1 << 30):
        pass


def test_a_load_that_fails_is_what_is_raised(
    model: ModelGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_matrix: Dense, _x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(Dense, "linear", refuse)
    with (
        pytest.raises(ValueError, match="the load's own"),
        warmed_products(model, device=CPU, dtype=torch.float32, room_bytes=1 << 30),
    ):
        raise ValueError("the load's own")


def test_a_matrix_that_there_is_no_room_for_is_left_out(model: ModelGroups) -> None:
    sizes = {kind: matrix.size_bytes for kind, matrix in find_kinds(model).items()}
    room = sorted(sizes.values())[len(sizes) // 2]
    with warmed_products(model, device=CPU, dtype=torch.float32, room_bytes=room) as kinds:
        pass
    assert kinds == {kind for kind, size in sizes.items() if size <= room}
    assert kinds
    with warmed_products(model, device=CPU, dtype=torch.float32, room_bytes=0) as kinds:
        pass
    assert not kinds
