"""A server is started, found, asked and stopped by commands."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sllm.cli.finding import named_url
from sllm.core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from sllm.gateway.settings import Settings
    from tests.sllm.cli.fake_ollama import FakeOllama


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://there:1/x", "http://there:1/x"),
        ("there", "http://there:11434"),
        ("there:80", "http://there:80"),
        (":80", "http://127.0.0.1:80"),
        ("0.0.0.0:80", "http://127.0.0.1:80"),
        ("http://0.0.0.0:80", "http://127.0.0.1:80"),
        ("https://there", "https://there"),
        ("there:80/below", "http://there:80/below"),
        ("::1", "http://[::1]:11434"),
        ("[::1]:80", "http://[::1]:80"),
        ("http://[::]:80", "http://[::1]:80"),
    ],
)
def test_a_server_is_named_as_ollama_names_it(
    text: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert named_url(text) == url
    monkeypatch.setenv("OLLAMA_HOST", text)
    assert named_url(None) == url
    monkeypatch.setenv("LLM_SERVER_URL", "http://nearer")
    assert named_url(None) == "http://nearer"


@pytest.mark.parametrize("text", ["a b", "there:port", "[::1", "http://[there]"])
def test_what_is_no_address_is_told(text: str, run: Callable[..., Result]) -> None:
    assert f"{text!r} is not the address of a server" in run("ps", "--host", text, code=1).stderr


def test_what_is_loaded_is_listed_and_unloaded(
    run: Callable[..., Result], ollama: FakeOllama
) -> None:
    lines = [line.split() for line in run("ps", "--host", ollama.url).stdout.splitlines()]
    assert lines[0] == ["NAME", "ID", "SIZE", "PROCESSOR", "AT", "MOST", "CONTEXT", "UNTIL"]
    assert lines[1][:5] == ["tiny", "a" * 12, "2.0", "KB", "75%/25%"]
    assert run("stop", "tiny", "--host", ollama.url).stdout == "unloaded tiny\n"
    assert ollama.bodies("/api/generate") == [{"model": "tiny", "keep_alive": 0}]


def test_without_a_server_there_is_nothing_to_ask_or_stop(run: Callable[..., Result]) -> None:
    assert "no server runs here" in run("ps", code=1).stderr
    assert "no server of yours runs here" in run("stop", code=1).stderr


def test_a_server_is_started_and_stopped(run: Callable[..., Result], home: Path) -> None:
    command = [sys.executable, "-m", "sllm.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=home) as server:
        assert server.stderr is not None
        said = b""
        while b"serving" not in said:
            said = os.read(server.stderr.fileno(), 4096)
            assert said, "it ended"
        assert "stopped the server" in run("stop").stdout
        server.communicate(timeout=60)
    assert list((home / ".state" / "gdsllm" / "servers").iterdir()) == []


def test_ollamas_variables_say_what_options_do(
    run: Callable[..., Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Settings] = []

    def listen(settings: Settings) -> None:
        given.append(settings)
        raise SettingsError("that is enough")

    monkeypatch.setattr("sllm.gateway.listening.listen", listen)
    monkeypatch.setenv("OLLAMA_NUM_PARALLEL", "3")
    monkeypatch.setenv("OLLAMA_MAX_QUEUE", "5")
    monkeypatch.setenv("OLLAMA_CONTEXT_LENGTH", "77")
    kept = ("OLLAMA_MAX_LOADED_MODELS=2", "OLLAMA_KEEP_ALIVE=1h")
    lines = (*kept, "OLLAMA_ORIGINS=app://*, http://a/")
    (home / ".env").write_text("\n".join(lines))
    try:
        assert "that is enough" in run("serve", "--queue", "6", code=1).stderr
    finally:
        for line in lines:
            os.environ.pop(line.partition("=")[0])
    (settings,) = given
    assert (settings.parallel, settings.queue, settings.context_tokens) == (3, 6, 77)
    assert (settings.max_loaded, settings.keep_alive_s) == (2, 3600)
    assert settings.origins == ("app://*", "http://a")


def test_a_port_in_use_is_told_before_a_model_is_begun(
    run: Callable[..., Result], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("pull", str(tiny))
    monkeypatch.setattr("sllm.gateway.backing.open_ahead", lambda *_: pytest.fail("it was begun"))
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1])
        told = run("serve", "tiny", "--preload", "--port", port, code=1).stderr
    assert f"127.0.0.1:{port} cannot be served on" in told


def test_what_cannot_be_served_is_told(run: Callable[..., Result]) -> None:
    assert "GDSLLM_API_TOKEN" in run("serve", "--host", "0.0.0.0", code=1).stderr
    unknown = run("serve", "gpt5", code=1).stderr
    assert "no model 'gpt5'" in unknown
    assert "gdsllm pull gpt5" not in unknown
    assert "use auto, cpu" in run("serve", "--device", "tpu", code=1).stderr
    assert "no model 'gpt5'" in run("serve", "--draft", "gpt5", code=1).stderr
    assert "needs a MODEL" in run("serve", "--preload", code=2).stderr
