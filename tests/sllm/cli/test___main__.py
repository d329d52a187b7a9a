"""The command with nothing replaced: real weights, the real engine, the real server."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from sllm.library.models import Library

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT_S = 120.0
QUESTION = ("What is the capital of France?", "--temperature", "0")
ANSWER = "The capital of France is Paris.\n"


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
    with _served("real", "--port", "0", "--preload") as server:
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


@contextmanager
def _served(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server; yield once it says that it serves."""
    command = [sys.executable, "-m", "sllm.cli", "serve", *arguments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        try:
            assert server.stderr is not None
            said, deadline_s = b"", time.monotonic() + TIMEOUT_S
            while b"serving " not in said:
                left_s = max(0.0, deadline_s - time.monotonic())
                assert select.select([server.stderr], [], [], left_s)[0], said
                piece = os.read(server.stderr.fileno(), 4096)
                assert piece, said
                said += piece
            yield server
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
