"""Names are read as people write them, and lead nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sllm.core.errors import InvalidRequestError
from sllm.library.names import ModelName, nearest


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("smollm2", "smollm2:latest"),
        ("smollm2:135m", "smollm2:135m"),
        (" meta-llama/Llama-3.1-8B ", "meta-llama/Llama-3.1-8B:latest"),
        ("hf.co/org/name:Q4_K_M", "org/name:Q4_K_M"),
        ("https://huggingface.co/org/name", "org/name:latest"),
    ],
)
def test_a_name_is_completed(text: str, full: str) -> None:
    assert str(ModelName.parse(text)) == full
    assert ModelName.parse(text.upper()).key == ModelName.parse(text).key


@pytest.mark.parametrize(
    "text",
    ["", ":", "/a", "a/", "..", "../a", "a/..", "a/b/c", ".a", "a.", "a b", "a:b:c", "a\0"],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="is not the name of a model"):
        ModelName.parse(text)


@pytest.mark.parametrize("text", ["a:../b", "~", "a" * 201, "a\nb", "é", "a:b/c"])
def test_what_leads_elsewhere_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="is not the name of a model"):
        ModelName.parse(text)


@given(st.text())
def test_the_key_of_any_name_is_one_file_name(text: str) -> None:
    try:
        key = ModelName.parse(text).key
    except InvalidRequestError:
        return
    assert "/" not in key
    assert not key.startswith(".")
    assert "\0" not in key
    assert len(key.encode()) < 250


def test_different_names_have_different_keys() -> None:
    names = ["a", "a:b", "a/b", "b/a", "a-b", "a_b", "a.b", "a/b:c", "a:b-c"]
    assert len({ModelName.parse(name).key for name in names}) == len(names)


def test_near_names_are_those_one_may_have_meant() -> None:
    known = [ModelName.parse(name) for name in ("smollm2:135m", "llama3:8b", "qwen")]
    assert nearest(ModelName.parse("SmolLM2"), known)[0] == "smollm2:135m"
    assert nearest(ModelName.parse("lama3:8b"), known) == ["llama3:8b"]
    assert nearest(ModelName.parse("zzz"), known) == []
