"""What NVIDIA's compiler is told of a program, and what it finds; GPU tests run the programs."""

from __future__ import annotations

import re

import pytest

from sllm.runtime.kernels.programs import checked, make_options, sources


def test_the_compiler_is_told_the_device_and_every_constant_in_one_order() -> None:
    options = make_options({"ROWS": 4096, "CHAINED": 1}, (9, 0))
    assert options == make_options({"CHAINED": 1, "ROWS": 4096}, (9, 0))
    assert b"--gpu-architecture=sm_90" in options
    assert options[-2:] == [b"-DCHAINED=1", b"-DROWS=4096"]


@pytest.mark.parametrize("name", ["token_product", "token_attention"])
def test_a_program_comes_with_all_that_it_includes(name: str) -> None:
    text, headers = sources(name)
    included = re.findall(rb'#include "([^"]+)"', text)
    assert included
    assert {one.decode() for one in included} <= headers.keys()
    assert f" {name}(".encode() in text


def test_a_call_that_fails_is_an_error_that_says_how() -> None:
    assert checked((0,)) is None
    assert checked((0, 7)) == 7
    with pytest.raises(RuntimeError, match="failed: 719"):
        checked((719,))
