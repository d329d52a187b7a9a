"""Rope parameters are read in every form that config.json has had, and unknown ones are refused."""

from __future__ import annotations

from typing import Any

import pytest

from sllm.core.errors import UnsupportedModelError
from sllm.runtime.config.fields import Fields
from sllm.runtime.config.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    RopeConfig,
    YarnScaling,
    parse_rope,
)
from sllm_store.errors import InvalidCheckpointError

LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def _parse(**values: Any) -> RopeConfig:
    config = Fields({"max_position_embeddings": 128, **values}, "config.json")
    return parse_rope(config, head_dim=64)


def test_nothing_said_is_the_plain_rope() -> None:
    assert _parse() == RopeConfig(theta=10000.0, rotated=64)


def test_pairs_may_be_neighbours() -> None:
    assert _parse(rope_interleave=True).interleaved
    with pytest.raises(InvalidCheckpointError, match="rope_interleave"):
        _parse(rope_interleave="yes")


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
    ],
)
def test_old_and_new_forms_say_the_same(values: dict[str, Any]) -> None:
    assert _parse(**values) == RopeConfig(theta=5e5, rotated=64, scaling=LinearScaling(factor=2.0))


def test_a_context_that_is_not_given_is_the_model_s() -> None:
    for kind, scaling in (("dynamic", DynamicScaling), ("llama3", Llama3Scaling)):
        parsed = _parse(
            rope_scaling={"rope_type": kind, **(LLAMA_3 if kind == "llama3" else {"factor": 2})}
        )
        assert isinstance(parsed.scaling, scaling)
        assert parsed.scaling.context == 128


def test_yarn_without_a_factor_takes_the_ratio_of_contexts() -> None:
    scaling = _parse(
        rope_scaling={"rope_type": "yarn", "original_max_position_embeddings": 32}
    ).scaling
    assert isinstance(scaling, YarnScaling)
    assert (scaling.factor, scaling.context, scaling.beta_fast) == (4.0, 32, 32.0)


def test_a_part_of_the_head_may_be_rotated() -> None:
    assert _parse(partial_rotary_factor=0.25).rotated == 16
    with pytest.raises(InvalidCheckpointError, match="rotates 63 of 64"):
        _parse(partial_rotary_factor=0.99)


@pytest.mark.parametrize("kind", ["longrope", "su", "axial", "proportional"])
def test_a_scaling_that_is_not_computed_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"rope type '{kind}'"):
        _parse(rope_scaling={"rope_type": kind, "factor": 2.0})


def test_a_parameter_that_is_not_computed_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="beta_fast"):
        _parse(rope_scaling={"rope_type": "linear", "factor": 2.0, "beta_fast": 32})


def test_llama_3_needs_its_bounds_in_order() -> None:
    with pytest.raises(InvalidCheckpointError, match="low_freq_factor is 4"):
        _parse(rope_scaling={"rope_type": "llama3", **LLAMA_3, "low_freq_factor": 4.0})
    with pytest.raises(InvalidCheckpointError, match="factor is missing"):
        _parse(rope_scaling={"rope_type": "llama3"})
