"""Planes come back as the matrix that was named, and what is not whole is refused."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.quant.planar import PlanarMatrix
from sllm.runtime.weights.plane_names import join_planes, name_planes
from sllm_store.errors import InvalidCheckpointError
from tests.sllm.runtime.kernels.plane_cases import SCHEMES, make_case

NAME = "mlp.up_proj.weight"


def _named(scheme: str) -> dict[str, torch.Tensor]:
    return dict(name_planes({NAME: PlanarMatrix(make_case(scheme).planes)}))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_comes_back(scheme: str) -> None:
    norm = torch.ones(3)
    found = join_planes({"norm.weight": norm, **_named(scheme)})
    matrix = found.pop(NAME)
    assert found == {"norm.weight": norm}
    assert isinstance(matrix, PlanarMatrix)
    planes = make_case(scheme).planes
    assert matrix.planes.format == planes.format
    for name, plane in planes.tensors.items():
        assert torch.equal(matrix.planes.tensors[name], plane)


@pytest.mark.parametrize("plane", ["low", "scales", "high"])
def test_a_plane_that_is_missing_is_refused(plane: str) -> None:
    named = _named("Q6_K")
    del named[next(name for name in named if name.endswith(plane))]
    with pytest.raises(InvalidCheckpointError, match="planes"):
        join_planes(named)


@pytest.mark.parametrize("plane", ["low", "scales", "offsets", "steps", "floors"])
def test_a_plane_of_another_shape_or_type_is_refused(plane: str) -> None:
    key = next(name for name in _named("Q4_K") if name.endswith(plane))
    stored = _named("Q4_K")[key]
    for other in (stored[:-1], stored.double()):
        with pytest.raises(InvalidCheckpointError, match="of another shape or type"):
            join_planes({**_named("Q4_K"), key: other})


def test_an_unknown_format_and_a_second_matrix_are_refused() -> None:
    named = _named("Q4_0")
    with pytest.raises(InvalidCheckpointError, match="no known format"):
        join_planes({name.replace("-4-8-", "-3-8-"): plane for name, plane in named.items()})
    with pytest.raises(InvalidCheckpointError, match="twice"):
        join_planes({NAME: torch.ones(2, 2), **named})
