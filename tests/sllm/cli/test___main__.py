"""The command with nothing replaced: real weights, the real engine, the real server."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from sllm.library.models import Library
from tests.sllm.library.fake_hub import TOKEN, serve_hub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT_S = 120.0
QUESTION = ("What is the capital of France?", "--temperature", "0")
ANSWER = "The capital of France is Paris.\n"
PUBLISHED, SHORT = "meta-llama/Llama-2-7b-hf", "Llama-2-7b-hf"
SECRET = "your-secret-token"


@pytest.fixture(autouse=True)
def library(home: Path, smollm2: Path) -> Library:
    """SmolLM2 as `real`, where its file is."""
    library = Library(home / "models")
    library.create("real", source=smollm2)
    return library


def test_run_answers_by_a_server_of_its_own() -> None:
    done = _gdsllm("run", "real", *QUESTION)
    assert (done.stdout, done.returncode) == (ANSWER, 0)
    assert "no server runs here" in _gdsllm("ps").stderr


@pytest.mark.slow
def test_a_served_model_is_loaded_asked_unloaded_and_the_server_stopped() -> None:
    with _served("real", "--port", "0", "--preload") as (server, _):
        done = _gdsllm("run", "real", *QUESTION)
        assert (done.stdout, done.returncode) == (ANSWER, 0), done.stderr
        (line,) = _gdsllm("ps").stdout.splitlines()[1:]
        assert line.startswith("real:latest ")
        assert "100% CPU" in line or "GPU" in line
        assert _gdsllm("stop", "real").stdout == "unloaded real\n"
        assert "no model is loaded" in _gdsllm("ps").stderr
        assert "stopped the server" in _gdsllm("stop").stdout
        server.communicate(timeout=TIMEOUT_S)
    assert "no server runs here" in _gdsllm("ps").stderr


@pytest.mark.slow
def test_commands_and_variables_are_those_that_users_of_gdsllm_know(
    home: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the README of rscunha13/gdsllm has people type, with tokens for the hub and for here."""
    monkeypatch.delenv("GDSLLM_MODEL_ROOT")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with serve_hub() as hub:
        hub.repositories[PUBLISHED] = {"llama-Q4_K_M.gguf": smollm2.read_bytes()}
        hub.gated.add(PUBLISHED)
        (home / ".env").write_text(
            f"GDSLLM_MODEL_ROOT={home}/root\nGDSLLM_HF_CACHE={home}/hub\n"
            f"HUGGINGFACE_HUB_TOKEN={TOKEN}\nGDSLLM_API_TOKEN={SECRET}\nHF_ENDPOINT={hub.url}\n"
        )
        done = _gdsllm("pull", PUBLISHED)
        assert done.returncode == 0, done.stderr
    assert list((home / "hub").rglob("*.gguf"))
    assert list((home / "root").rglob("*.gguf"))
    (line,) = _gdsllm("list").stdout.splitlines()[1:]
    assert line.startswith(f"{PUBLISHED}:latest ")
    asked = ("--prompt", QUESTION[0], "--max-tokens", "3", *QUESTION[1:])
    assert _gdsllm("run", SHORT, *asked).stdout == "The capital of\n"
    with _served(SHORT, "--port", "0", "--preload") as (server, url):
        _ask_as_users_of_gdsllm_do(url)
        assert "stopped the server" in _gdsllm("stop").stdout
        server.communicate(timeout=TIMEOUT_S)
    assert "llama" in _gdsllm("show", SHORT).stdout
    assert _gdsllm("rm", SHORT, "--yes").returncode == 0
    assert _gdsllm("list").stdout.splitlines()[1:] == []


def _ask_as_users_of_gdsllm_do(url: str) -> None:
    """Ask every endpoint of that README, with the token and without."""
    said = [{"role": "user", "content": QUESTION[0]}]
    greedy = {"options": {"temperature": 0}}
    bodies: dict[str, dict[str, Any] | None] = {
        "/api/tags": None,
        "/v1/models": None,
        "/api/show": {},
        "/api/generate": {"prompt": QUESTION[0], **greedy},
        "/api/chat": {"messages": said, **greedy},
        "/v1/chat/completions": {"messages": said, "temperature": 0, "stream": True},
    }
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        for path, body in bodies.items():
            method = "GET" if body is None else "POST"
            asked = None if body is None else {"model": SHORT, **body}
            assert client.request(method, path, json=asked).status_code == 401
            token = {"Authorization": f"Bearer {SECRET}"}
            answer = client.request(method, path, json=asked, headers=token)
            assert answer.status_code == 200, answer.text
            assert asked is None or "messages" not in asked or " Paris" in answer.text
    with openai.OpenAI(base_url=f"{url}/v1", api_key=SECRET) as sdk:
        chat = sdk.chat.completions.create(
            model=SHORT, messages=[{"role": "user", "content": QUESTION[0]}], temperature=0
        )
        assert chat.choices[0].message.content == ANSWER.strip()


@contextmanager
def _served(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a server; yield it and its URL once it says that it serves."""
    command = [sys.executable, "-m", "sllm.cli", "serve", *arguments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        try:
            assert server.stderr is not None
            said, deadline_s = b"", time.monotonic() + TIMEOUT_S
            while b"serving " not in said or not said.endswith(b"\n"):
                left_s = max(0.0, deadline_s - time.monotonic())
                assert select.select([server.stderr], [], [], left_s)[0], said
                piece = os.read(server.stderr.fileno(), 4096)
                assert piece, said
                said += piece
            yield server, said.decode().split()[-1]
        finally:
            server.kill()


def _gdsllm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sllm.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
