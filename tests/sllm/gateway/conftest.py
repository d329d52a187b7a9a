"""A real server on loopback over a scripted engine, and a library of tiny models."""

from __future__ import annotations

import asyncio
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING

import httpx
import ollama
import openai
import pytest
import uvicorn.server

from sllm.gateway.backing import Backing
from sllm.gateway.serve import background
from sllm.gateway.settings import Settings
from sllm.library.models import Library
from sllm.text.model import TextModel
from tests.sllm.gateway.scripted import CHATML, Script, write_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOOK_AGAIN_S = 0.005


async def _look_again(_seconds: float) -> None:
    await asyncio.sleep(LOOK_AGAIN_S)


# Each server here is stopped, and uvicorn looks every 0.1 s whether it should stop, and every 0.1 s
# whether all is done: that is most of the time of most tests.
vars(uvicorn.server)["asyncio"] = SimpleNamespace(**{**vars(asyncio), "sleep": _look_again})


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints: one that thinks and calls tools, one that only chats, one without a template."""
    root = tmp_path_factory.mktemp("models")
    write_model(root / "able")
    write_model(root / "plain", CHATML)
    write_model(root / "base", None)
    return root


@pytest.fixture(scope="session")
def created(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """What a library of those keeps."""
    root = tmp_path_factory.mktemp("created") / "library"
    library = Library(root)
    for path in sorted(models.iterdir()):
        library.create(path.name, source=path)
    return root


@pytest.fixture
def library(tmp_path: Path, created: Path) -> Library:
    """A library of those, for one test."""
    shutil.copytree(created, tmp_path / "library", symlinks=True)
    return Library(tmp_path / "library")


@pytest.fixture
def script() -> Script:
    """What engines say."""
    return Script()


@pytest.fixture
def backing(script: Script) -> Backing:
    """Real text, scripted engines."""
    return Backing(
        open_text=lambda path, template: TextModel.open(path, template=template),
        open_engine=script.open_engine,
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The defaults, on a free port."""
    return Settings(model_root=tmp_path / "library", port=0, grace_s=0)


@pytest.fixture
def url(settings: Settings, library: Library, backing: Backing, script: Script) -> Iterator[str]:
    """A running server."""
    with background(settings, library=library, backing=backing) as url:
        yield url
        script.go.set()
        script.may_open.set()


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    """A plain client."""
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


@pytest.fixture
def openai_client(url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client, which does not try again."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def ollama_client(url: str) -> Iterator[ollama.Client]:
    """Ollama's client."""
    client = ollama.Client(host=url)
    yield client
    client._client.close()
