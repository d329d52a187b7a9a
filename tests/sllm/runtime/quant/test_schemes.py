"""Schemes are found by GGUF's names."""

from __future__ import annotations

import pytest

from sllm.core.errors import UnsupportedModelError
from sllm.runtime.quant.schemes import find_scheme


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_a_known_scheme_is_found(name: str) -> None:
    assert find_scheme(name).__name__ == name


def test_an_unknown_scheme_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="IQ2_XS"):
        find_scheme("IQ2_XS")
