"""Where a server listens, and for how long."""

from __future__ import annotations

import statistics
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest
import uvicorn

from sllm.backends import early, local
from sllm.core.errors import SettingsError
from sllm.gateway.backing import open_ahead
from sllm.gateway.ollama.answers import RunningModels
from sllm.gateway.serve import background
from sllm.gateway.settings import Settings
from sllm.library.models import Library
from sllm_store.groups.head_start import HeadStart

if TYPE_CHECKING:
    from pathlib import Path

    from sllm.backends.engine import Engine
    from sllm.backends.local import EngineOptions
    from sllm.gateway.backing import Backing


def test_a_server_is_there_until_its_user_is_done(
    settings: Settings, library: Library, backing: Backing
) -> None:
    with background(settings, library=library, backing=backing) as url:
        assert httpx.get(f"{url}/health").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_connection_is_kept_for_longer_than_clients_keep_it(
    settings: Settings, library: Library, backing: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured: list[uvicorn.Config] = []
    begin = uvicorn.Server.__init__

    def note(server: uvicorn.Server, config: uvicorn.Config) -> None:
        configured.append(config)
        begin(server, config)

    monkeypatch.setattr(uvicorn.Server, "__init__", note)
    with background(settings, library=library, backing=backing):
        pass
    kept_s = httpx.Limits().keepalive_expiry
    assert kept_s is not None
    assert configured[0].timeout_keep_alive > 2 * kept_s


def test_a_port_in_use_is_named(settings: Settings, url: str) -> None:
    port = int(url.rpartition(":")[2])
    with (
        pytest.raises(SettingsError, match=f"127.0.0.1:{port} cannot be served on"),
        background(replace(settings, port=port)),
    ):
        pass


@pytest.mark.parametrize("drafted", [False, True])
def test_a_real_model_knows_the_capital_of_france(
    tmp_path: Path, smollm2: Path, *, drafted: bool
) -> None:
    Library(tmp_path).create("smollm2", source=smollm2)
    asked = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 12,
    }
    draft = smollm2 if drafted else None
    settings = Settings(model_root=tmp_path, port=0, context_tokens=256, draft=draft)
    with background(settings) as url:
        done = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=120).json()
        (loaded,) = RunningModels.model_validate(httpx.get(f"{url}/api/ps").json()).models
    assert loaded.forecast is not None
    assert loaded.forecast.stored_bytes.device == loaded.size > 0
    assert done["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert done["choices"][0]["finish_reason"] == "stop"


def test_an_import_that_fails_ahead_is_left_to_who_opens_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    monkeypatch.setattr(early, "import_runtime", refuse)
    settings = Settings(model_root=tmp_path, port=0, device="cpu")
    with open_ahead(settings) as backing, pytest.raises(OSError, match="libcudart"):
        backing.open_engine(tmp_path, settings)
    assert not told


def test_a_model_that_was_begun_ahead_is_taken_from_there_once(
    tmp_path: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []
    given: list[bool] = []

    def begin(path: Path, device: str, *, budget_bytes: int | None) -> HeadStart:
        begun.append(path)
        return HeadStart(path, device=999, budget_bytes=budget_bytes)

    def open_engine(path: Path, options: EngineOptions, *, head_start: HeadStart) -> Engine:
        given.append(path == head_start.path == head_start.stored(60).checkpoint.path)
        return opened(path, options, head_start=head_start)

    opened = local.open_engine
    monkeypatch.setattr(early, "begin_early", begin)
    monkeypatch.setattr(local, "open_engine", open_engine)
    settings = Settings(model_root=tmp_path, port=0, context_tokens=64, device="cpu")
    with open_ahead(settings, smollm2) as backing:
        assert begun == [smollm2]
        for openings in (1, 2):
            backing.open_engine(smollm2, settings).close()
            assert begun == [smollm2] * openings
    assert given == [True, True]
    with open_ahead(settings, smollm2):
        pass  # Nobody asks: what began ends.


def test_a_real_model_that_computes_keeps_nobody_waiting(tmp_path: Path, smollm2: Path) -> None:
    Library(tmp_path).create("smollm2", source=smollm2)
    options = {"num_predict": 4000, "temperature": 0}
    asked = {"model": "smollm2", "prompt": "Once upon a time", "options": options}
    with (
        background(Settings(model_root=tmp_path, port=0, context_tokens=4096, grace_s=0)) as url,
        httpx.Client(base_url=url, timeout=120) as client,
        client.stream("POST", "/api/generate", json=asked | {"raw": True}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        waits_s = [httpx.get(f"{url}/api/tags").elapsed.total_seconds() for _ in range(9)]
        assert '"done":false' in next(lines)
        assert httpx.get(f"{url}/metrics").text.count("gdsllm_requests_running 1.0") == 1
    assert statistics.median(waits_s) < 0.5
