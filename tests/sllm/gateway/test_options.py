"""Options in Ollama's words."""

from __future__ import annotations

from typing import Any

import pytest

from sllm.core.errors import InvalidRequestError
from sllm.gateway.options import OLLAMA_DEFAULTS, parse_options, sampling


def test_what_a_request_names_goes_before_the_model_and_that_before_the_defaults() -> None:
    options = parse_options(OLLAMA_DEFAULTS, {"top_k": 7, "top_p": 0.5}, {"top_p": 0.2})
    assert (options["temperature"], options["top_k"], options["top_p"]) == (0.8, 7, 0.2)


def test_null_is_as_good_as_nothing() -> None:
    assert parse_options({"top_k": 7}, {"top_k": None, "num_gpu": 3}) == {"top_k": 7}


def test_a_seed_is_drawn_unless_it_is_given() -> None:
    seeds = {sampling({"seed": -1}, logprobs=None, room_tokens=5).seed for _ in range(4)}
    assert len(seeds) == 4
    assert sampling({"seed": 42}, logprobs=None, room_tokens=5).seed == 42


def test_an_answer_never_outgrows_its_room() -> None:
    assert sampling({"num_predict": -1}, logprobs=None, room_tokens=5).max_tokens == 5
    assert sampling({"num_predict": 9}, logprobs=None, room_tokens=5).max_tokens == 5
    assert sampling({"num_predict": 3}, logprobs=None, room_tokens=5).max_tokens == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_k", 1.5),
        ("stop", [1]),
        ("stop", ["x"] * 65),
        ("logit_bias", {"a": 1}),
        ("logit_bias", [1]),
        ("logit_bias", {"1": "much"}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", dict.fromkeys(range(1025), 1)),
        ("mirostat", 1),
        ("typical_p", 0.5),
    ],
)
def test_a_wrong_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        parse_options({name: value})


def test_another_sampler_at_its_neutral_value_does_nothing() -> None:
    assert parse_options({"mirostat": 0, "typical_p": 1.0}) == {}
