"""Key-values are returned in their type, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sllm_store.convert.gguf_metadata import GgufMetadata, without_long_lists
from sllm_store.errors import InvalidCheckpointError


def metadata(**values: object) -> GgufMetadata:
    return GgufMetadata(path=Path("m.gguf"), values={"general.architecture": "llama", **values})


@pytest.mark.parametrize("value", [1e-5, 1e-6, 0.1, 1e6, 0.0, -2.5, 1.1920929e-07])
def test_a_float_is_the_shortest_decimal_of_what_was_stored(value: float) -> None:
    assert metadata(eps=float(np.float32(value))).number("eps") == value


def test_a_float64_is_left_alone() -> None:
    assert metadata(eps=0.1234567890123).number("eps") == 0.1234567890123
    assert metadata(eps=1e300).number("eps") == 1e300


def test_the_architecture_stands_in_keys() -> None:
    found = metadata(**{"llama.block_count": 3})
    assert found.integer("{arch}.block_count") == 3
    assert found.has("{arch}.block_count")
    assert found.integer("{arch}.other", 7) == 7


def test_equal_numbers_per_layer_are_one_number() -> None:
    assert metadata(heads=[8, 8, 8]).integer("heads") == 8
    with pytest.raises(InvalidCheckpointError, match=r"m\.gguf: heads differs between layers"):
        metadata(heads=[8, 4]).integer("heads")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(InvalidCheckpointError, match=r"m\.gguf: the key llama\.eps is missing"):
        metadata().number("{arch}.eps")


def test_a_file_without_architecture_cannot_be_converted() -> None:
    with pytest.raises(InvalidCheckpointError, match=r"general\.architecture is missing"):
        _ = GgufMetadata(path=Path("m.gguf"), values={}).architecture


@pytest.mark.parametrize("value", ["1", 1.5, True, [1, "x"]])
def test_what_is_no_integer_is_refused(value: object) -> None:
    with pytest.raises(InvalidCheckpointError, match=r"m\.gguf: n (is .* an integer|differs)"):
        metadata(n=value).integer("n")


def test_long_lists_are_left_out() -> None:
    values = {"tokens": ["a"] * 100, "languages": ["en"], "name": "x" * 100}
    assert without_long_lists(values) == {"languages": ["en"], "name": "x" * 100}
